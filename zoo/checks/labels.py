"""Labels as people give them: one for all, a list, a tensor."""

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from zoo.checks.errors import UserError

Labels = Tensor | Sequence[int] | int


def as_labels(labels: Labels, n: int, num_classes: int, device: torch.device) -> Tensor:
    """``n`` labels from 0 to ``num_classes`` - 1 as a tensor (n,) on ``device``; a single number stands for all.

    Raises:
        UserError: for what is no such label, or another number of them, saying what was given.
    """
    rule = f"labels are whole numbers from 0 to {num_classes - 1}"
    if isinstance(labels, Tensor):
        if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
            raise UserError(f"{rule}, got a tensor of {labels.dtype}")
        values = labels.to(device, torch.long)
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
        raise UserError(f"{n} images have {n} labels, got {len(values) if values.ndim == 1 else tuple(values.shape)}")
    return values
