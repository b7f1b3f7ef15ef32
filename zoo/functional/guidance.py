"""Labels of conditional diffusion and score models, and classifier-free guidance; Ho & Salimans 2022, arXiv:2207.12598.

Training drops some labels at random, so one network learns to predict with and without labels. For the network, the
label K, one more than the last of K labels, means "no label".
"""

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.labels import Labels, sampled_labels
from zoo.functional.noise import rand


def with_dropped(y: Tensor, u: Tensor, label_dropout: float, num_classes: int) -> Tensor:
    """Return labels, (B,), where "no label" replaces the labels ``y`` (B,) whose ``u`` is below ``label_dropout``.

    Args:
        y: labels, (B,).
        u: uniform numbers in [0, 1), (B,).
        label_dropout: fraction of labels to drop.
        num_classes: number of classes, which is also the label that means "no label".
    """
    return torch.where(u < label_dropout, num_classes, y)


def network_labels(y: Tensor | None, x: Tensor, num_classes: int | None, label_dropout: float) -> Tensor | None:
    """Return the labels that a network takes for the inputs ``x`` (B, ...), (B,), or None without classes.

    Without ``y``, a network with classes takes "no label" for each input.

    Raises:
        UserError: if ``y`` is missing and the network never learned to predict without labels.
    """
    if num_classes is None or y is not None:
        return y
    if label_dropout == 0:
        raise UserError("y is missing: this model was never trained without labels (label_dropout=0), give y")
    return torch.full((len(x),), num_classes, device=x.device)


def guided(predict: Callable[[Tensor | None], Tensor], y: Tensor | None, guidance: float) -> Tensor:
    """Return (1 + w) predict(y) - w predict(None), eq. 6, with the weight w = ``guidance``.

    Without labels ``y``, or with w = 0, this is predict(y), and ``predict`` is called once.
    """
    output = predict(y)
    if y is not None and guidance:
        output = (1 + guidance) * output - guidance * predict(None)
    return output


def draw_labels(
    y: Labels | str | None,
    n: int,
    num_classes: int | None,
    guidance: float,
    *,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor | None:
    """Return the labels of ``n`` samples, (n,), or None for samples without labels.

    Labels are drawn uniformly even if ``y`` is given. Noise that is drawn later therefore does not depend on ``y``.

    Args:
        y, n, num_classes, guidance: as for :func:`zoo.checks.labels.sampled_labels`.
        generator: source of the labels. None selects PyTorch's default generator.
        device: device of the result.

    Raises:
        UserError: if the model has no labels, if a label is not allowed, or if there is guidance without labels.
    """
    classes = num_classes or 0
    uniform = (rand(n if classes else 0, generator=generator, device=device) * classes).long()
    return sampled_labels(y, n, num_classes, uniform, guidance)
