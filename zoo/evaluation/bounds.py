"""Log likelihoods and bounds of test images, in batches that can each be measured again."""

import math
from itertools import islice

import torch
from torch import Tensor

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.pixels import as_batch
from zoo.datamodules.access import split_of
from zoo.evaluation.units import error_name
from zoo.functional.noise import chunk_generator
from zoo.functional.precision import in_float64
from zoo.functional.progress import tracked

IMAGES_AT_ONCE = 100  # images in a batch of log likelihoods
BOUND_AT_ONCE = 5  # images in a row of the bound


def log_likelihood(model, batch, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Return ``model.log_likelihood`` of the images of a batch, (B,) nats.

    If the batch has labels, the model also receives the labels.
    """
    x, *labels = as_batch(batch)
    return model.log_likelihood(x, y=labels[0] if labels else None, num_samples=num_samples, generator=generator)


@torch.no_grad()
def log_likelihood_per_batch(
    model, data, num_samples: int, batches: int | None = None, progress: bool = False
) -> list[float]:
    """Return the mean log likelihood of each batch of 100 test images, nats per image. Cards publish the overall mean.

    The noise of a batch depends only on its index. Each batch can therefore be measured again without the others.

    Args:
        model: model in eval mode with ``log_likelihood``.
        data: ``Images`` datamodule, after ``setup``.
        num_samples: importance samples per image.
        batches: number of batches, beginning with the first. None measures all batches.
        progress: show a progress bar.
    """
    test = split_of(data, "test")
    total = -(-len(test.images) // IMAGES_AT_ONCE)
    total = total if batches is None else min(batches, total)
    hundreds = islice(test.batches(IMAGES_AT_ONCE, model.device), total)
    means = []
    for i, (x, y) in enumerate(tracked(hundreds, "log likelihood", "hundred", total=total, show=progress)):
        found = log_likelihood(model, [x] if y is None else [x, y], num_samples, generator=chunk_generator(0, i))
        means.append(in_float64(found).mean().item())
    return means


def check_importance_weighted(model) -> None:
    """Raise unless the model has a ``log_likelihood`` that uses importance samples.

    Raises:
        UserError: if the model has no ``log_likelihood``, or computes it without importance samples.
    """
    name = type(model).__name__
    if not capabilities.has_log_likelihood(model):
        raise UserError(f"{name} has no log_likelihood(); leave out importance samples")
    if not capabilities.has_log_likelihood(model, by=capabilities.IMPORTANCE):
        bound = capabilities.has_log_likelihood(model, by=capabilities.BOUND)
        instead = "use --bound-images for its bound" if bound else "its test loss is the negative log likelihood"
        raise UserError(f"the log likelihood of {name} takes no importance samples; {instead}")


@torch.no_grad()
def bound_per_batch(model, data, fives: int, progress: bool = False) -> Tensor:
    """Return the terms of a diffusion model's bound on the first test images, (fives, 3), nats per image.

    The columns are L_0, the sum of L_t over 0 < t < T, and L_T. Each row is the mean over five images. The noise of a
    row depends only on its index. Each row can therefore be measured again without the others. Each image takes T
    network evaluations.

    Args:
        model: diffusion model in eval mode. If the model was trained with labels, it also receives the labels.
        data: ``Images`` datamodule, after ``setup``.
        fives: number of rows. Each row needs five images.
        progress: show a progress bar.
    """
    test, found = split_of(data, "test", fives * BOUND_AT_ONCE), []
    total = len(test.images) // BOUND_AT_ONCE  # fewer than ``fives`` if there are too few test images
    batches = islice(test.batches(BOUND_AT_ONCE, model.device), total)
    for i, (x, y) in enumerate(tracked(batches, "bound", "five", total=total, show=progress)):
        y = None if model.hparams.num_classes is None else y
        terms = in_float64(model.bound_terms(x, generator=chunk_generator(0, i), y=y)).mean(1)
        found.append(torch.stack([terms[0], terms[1:-1].sum(), terms[-1]]).cpu())
    return torch.stack(found)


def bound_metrics(terms: Tensor, dimensions: int) -> dict[str, float]:
    """Return the metrics of the bound for a card, from the terms that :func:`bound_per_batch` returns.

    ``dimensions`` is the number of values in an image, C H W.
    ``bound/L_0``, ``bound/L_t`` and ``bound/L_T`` are in nats per image. Each metric has its standard error under
    ``<name>_error`` if there are at least two rows.
    """
    names = ("bits_per_dim", "bound/L_0", "bound/L_t", "bound/L_T")
    bits_per_dim = terms.sum(1) / (dimensions * math.log(2))
    metrics = {}
    for name, rows in zip(names, (bits_per_dim, *terms.T), strict=True):
        metrics[name] = float(rows.mean())
        if len(rows) > 1:
            metrics[error_name(name)] = float(rows.std() / len(rows) ** 0.5)
    return metrics
