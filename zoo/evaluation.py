"""What turns a trained model into a published number."""

import inspect
import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import zoo
from zoo.sampling import check_conditions, sample_chunks


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


@torch.no_grad()
def judged_accuracy(model, n: int = 10_000, seed: int = 0, judge=None) -> dict[str, float]:
    """The share of class-conditional samples that a classifier recognises as their label.

    It measures whether conditions are obeyed, not whether samples are varied: one good sample of each class, repeated,
    would score 1. The judge's own share of errors on test images is on its card.

    Args:
        model: anything with ``sample(n, *, labels, generator)``; put it in eval mode first.
        n: how many samples, as many of each class; drawn in the chunks of zoo/sampling.py.
        seed: of the noise.
        judge: the classifier, in eval mode; the zoo's own, trained on MNIST, if None.

    Returns:
        ``judged_accuracy``, and ``judged_accuracy/<label>`` for each: shares of 1.

    Raises:
        ValueError: for a model whose samples take no labels, or ``n`` that is no multiple of the number of classes.
    """
    check_conditions(model, {"labels": 0})
    if judge is None:
        judge = zoo.load("classifier").to(getattr(model, "device", "cpu"))
    classes = judge.hparams.num_classes
    if n < 1 or n % classes:
        raise ValueError(f"n must be a multiple of the {classes} classes, as many samples of each, got {n}")
    labels = [k for k in range(classes) for _ in range(n // classes)]
    images = sample_chunks(model, n, seed, labels=labels)
    predicted = torch.cat([judge.predict(x.to(judge.device)).cpu() for x in images.split(500)])
    right = (predicted == torch.tensor(labels)).double().view(classes, -1).mean(1)
    return {"judged_accuracy": right.mean().item()} | {
        f"judged_accuracy/{k}": share for k, share in enumerate(right.tolist())
    }


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
