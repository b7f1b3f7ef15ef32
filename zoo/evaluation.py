"""What turns a trained model into a published number."""

import inspect
import math
import sys
from collections.abc import Callable

import numpy as np
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


def clustering_scores(table: Tensor) -> dict[str, float]:
    """How clusters agree with labels that were not used to find them.

    Args:
        table: how many examples of each label lie in each cluster, (clusters, labels), whole numbers.

    Returns:
        ``accuracy``: the share of examples in the cluster of their label, for the one-to-one assignment of clusters to
        labels that makes it largest (Yang et al. 2010); ``nmi``: the mutual information over the mean of the two
        entropies; ``ari``: the Rand index, adjusted to 0 for chance. All at most 1.

    Raises:
        ValueError: for a table without examples.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    counts = table.cpu().numpy()
    if counts.sum() < 1:
        raise ValueError("there are no examples to score clusters on")
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    # The scores depend on the table alone: any list of pairs with these counts will do.
    cluster, label = np.indices(counts.shape).reshape(2, -1).repeat(counts.ravel(), axis=1)
    return {
        "accuracy": float(matched / counts.sum()),
        "nmi": float(normalized_mutual_info_score(label, cluster)),
        "ari": float(adjusted_rand_score(label, cluster)),
    }


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
