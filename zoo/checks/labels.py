"""Check labels. They are a list, a tensor, or one integer for all examples."""

from collections.abc import Sequence
from numbers import Integral
from typing import cast

import torch
from torch import Tensor

from zoo.checks.calls import reads_values
from zoo.checks.errors import UserError
from zoo.checks.values import check_fraction, check_integer

Labels = Tensor | Sequence[int] | int


def check_classes(num_classes: object, label_dropout: object) -> None:
    """Check the options of a model with labels: a number of classes or None, and a fraction of labels to drop.

    Raises:
        UserError: if a value is not allowed.
    """
    if num_classes is not None:
        check_integer("num_classes", num_classes)
    check_fraction("label_dropout", label_dropout)


def as_labels(labels: Labels, n: int, num_classes: int, device: torch.device) -> Tensor:
    """Return ``n`` labels from 0 to ``num_classes`` - 1 as a tensor (n,) on ``device``.

    A training step reads no tensor of labels, so it does not check their range. A loss checks their range on the CPU.

    Args:
        labels: one label for each example, or a single label for all examples.
        n: number of examples.
        num_classes: number of classes.
        device: device of the result.

    Raises:
        UserError: if a label is not an integer or is out of range, or if there are not ``n`` labels.
    """
    rule = f"y must be labels, integers from 0 to {num_classes - 1}"
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
            raise UserError(f"{rule}: one label for all, or a list or tensor of labels; got {labels!r}")
        for label in listed:
            if not isinstance(label, Integral) or isinstance(label, bool) or not 0 <= int(label) < num_classes:
                raise UserError(f"{rule}, got {label!r}")
        values = torch.tensor(listed, dtype=torch.long, device=device)
    if values.shape != (n,):
        got = len(values) if values.ndim == 1 else tuple(values.shape)
        raise UserError(f"y must be one label for each of {n} images, or one for all; got {got}")
    return values


def labels_or_none(y: Labels | None, n: int, num_classes: int | None, device: torch.device) -> Tensor | None:
    """Return the labels of ``n`` examples, (n,) on ``device``. Return None for a model without labels.

    Args:
        y: labels as in :func:`as_labels`.
        n: number of examples.
        num_classes: number of classes. None for a model without labels.
        device: device of the result.

    Raises:
        UserError: if a label is not allowed, if the model needs labels and ``y`` is None, or if a model without labels
            gets labels.
    """
    if num_classes is None:
        if y is not None:
            raise UserError("this model was trained without labels (num_classes=null): leave out y")
        return None
    if y is None:
        raise UserError(f"y is missing, and this model needs labels: give y, integers from 0 to {num_classes - 1}")
    return as_labels(y, n, num_classes, device)


def sampled_labels(
    y: Labels | str | None, n: int, num_classes: int | None, uniform: Tensor, guidance: float
) -> Tensor | None:
    """Return the labels of ``n`` samples, (n,) on the device of ``uniform``, or None for samples without labels.

    Args:
        y: labels as in :func:`as_labels`. ``dropped`` means no labels. None means the labels in ``uniform``.
        n: number of samples.
        num_classes: number of classes. None for a model that was trained without labels.
        uniform: labels that were drawn uniformly, (n,).
        guidance: strength of the guidance towards the labels.

    Raises:
        UserError: if a label is not allowed, if the model has no labels, or if there is guidance without labels.
    """
    if num_classes is None:
        if y is not None or guidance:
            raise UserError("this model was trained without labels (num_classes=null): give no y and no guidance")
        return None
    if isinstance(y, str) and y == "dropped":
        if guidance:
            raise UserError(
                f"guidance={guidance!r} needs labels, and y=dropped leaves them out: give labels, or guidance=0"
            )
        return None
    return uniform if y is None else as_labels(cast(Labels, y), n, num_classes, uniform.device)
