"""What turns a trained model into a published number."""

import inspect
import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor


def importance_weighted_log_likelihood(log_weight: Callable[[], Tensor], num_samples: int) -> Tensor:
    """log 1/K sum_k w_k over ``num_samples`` independent draws, Burda et al. 2015, eq. 8.

    A lower bound of log p(x) in expectation, tighter with every sample; one draw at a time, so that memory does not
    grow with their number.

    Args:
        log_weight: draws log w = log p(x, z) - log q(z | x), (B,) nats, anew at each call.
        num_samples: K, at least 1.

    Returns:
        (B,): nats.

    Raises:
        ValueError: for ``num_samples`` below 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    total = log_weight().double()
    for _ in range(num_samples - 1):
        total = torch.logaddexp(total, log_weight().double())
    return (total - math.log(num_samples)).float()


def log_likelihood(model, batch, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """``model.log_likelihood`` of the images of a batch, given their labels where the model wants them; (B,) nats."""
    x, y = batch[0], batch[1]
    given = {"y": y} if "y" in inspect.signature(model.log_likelihood).parameters else {}
    return model.log_likelihood(x, num_samples=num_samples, generator=generator, **given)


def evaluate(model, data) -> dict[str, float]:
    """Run the test loop of ``model`` on ``data`` (a LightningDataModule), on one device, without a run folder.

    Models key the noise of their test by batch, so that the same weights give the same numbers.

    Returns:
        the metrics that the model logs under ``test/``, as floats.
    """
    import lightning as L

    from zoo.hardware import quiet_lightning

    quiet_lightning()
    trainer = L.Trainer(
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),
    )
    trainer.test(model, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
