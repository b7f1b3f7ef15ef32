"""Clusters as people give them: one for all images, or one for each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.checks.errors import UserError

Codes = Tensor | Sequence[int] | int


def as_codes(key: str, codes: Codes, n: int, num_codes: int, device: torch.device) -> Tensor:
    """``n`` codes from 0 to ``num_codes`` - 1 as a tensor (n,) on ``device``; a single number stands for all.

    Raises:
        UserError: for what is no such code, or another number of them, naming ``key``.
    """
    values = codes.tolist() if isinstance(codes, Tensor) else codes
    values = values if isinstance(values, list | tuple) else [values] * n
    if any(isinstance(c, bool) or not isinstance(c, int) for c in values):
        raise UserError(f"{key} must be whole numbers, got {codes!r}")
    if len(values) != n:
        raise UserError(f"{key} must be one number for each of the {n} images, or one for all; got {len(values)}")
    if wrong := [c for c in values if not 0 <= c < num_codes]:
        raise UserError(f"{key} must lie between 0 and {num_codes - 1}, got {wrong[0]}")
    return torch.tensor(values, dtype=torch.long, device=device)
