"""Labels as people give them: one for all, a list, a tensor."""

from collections.abc import Sequence
from numbers import Integral
from typing import cast

import torch
from torch import Tensor

from zoo.checks.calls import reads_values
from zoo.checks.errors import UserError

Labels = Tensor | Sequence[int] | int


def as_labels(labels: Labels, n: int, num_classes: int, device: torch.device) -> Tensor:
    """``n`` labels from 0 to ``num_classes`` - 1 as a tensor (n,) on ``device``; a single number stands for all.

    In a training step the values of a tensor on a GPU are not looked at.

    Raises:
        UserError: for what is no such label, or another number of them, saying what was given.
    """
    rule = f"y must be labels, whole numbers from 0 to {num_classes - 1}"
    if isinstance(labels, Tensor):
        if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
            raise UserError(f"{rule}, got a tensor of {labels.dtype}")
        values = labels.to(device, torch.long)
        if reads_values(values):
            outside = values[(values < 0) | (values >= num_classes)]
            if len(outside):
                raise UserError(f"{rule}, got {outside[0].item()}")
    else:
        listed = [labels] * n if isinstance(labels, Integral | float) else labels
        if isinstance(listed, str) or not isinstance(listed, Sequence):
            raise UserError(f"{rule}, one for all or a list or tensor of one for each, got {labels!r}")
        for label in listed:
            if not isinstance(label, Integral) or isinstance(label, bool) or not 0 <= int(label) < num_classes:
                raise UserError(f"{rule}, got {label!r}")
        values = torch.tensor(listed, dtype=torch.long, device=device)
    if values.shape != (n,):
        got = len(values) if values.ndim == 1 else tuple(values.shape)
        raise UserError(f"y must be one label for each of {n} images, or one for all; got {got}")
    return values


def sampled_labels(
    y: Labels | str | None, n: int, num_classes: int | None, uniform: Tensor, guidance: float
) -> Tensor | None:
    """The labels of ``n`` samples, (n,) on the device of ``uniform``; None draws without labels.

    Args:
        y: as for :func:`as_labels`; ``dropped`` for none; None for ``uniform``.
        num_classes: None for a model without labels.
        uniform: labels that were drawn, (n,).
        guidance: towards the labels.

    Raises:
        UserError: for what is no such label, for labels of a model without, and for guidance without labels.
    """
    if num_classes is None:
        if y is not None or guidance:
            raise UserError(
                "this model was trained without labels (num_classes=null), so its samples take no y and no guidance"
            )
        return None
    if isinstance(y, str) and y == "dropped":
        if guidance:
            raise UserError(f"guidance={guidance!r} is towards labels, which y=dropped leaves out")
        return None
    return uniform if y is None else as_labels(cast(Labels, y), n, num_classes, uniform.device)
