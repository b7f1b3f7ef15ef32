"""Check codes, such as clusters or categories. They are a list, a tensor, or one integer for all images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.checks.errors import UserError

Codes = Tensor | Sequence[int] | int


def as_codes(key: str, codes: Codes, n: int, num_codes: int, device: torch.device) -> Tensor:
    """Return ``n`` codes from 0 to ``num_codes`` - 1 as a tensor (n,) on ``device``.

    Args:
        key: name of the argument in error messages.
        codes: one code for each image, or a single code for all images.
        n: number of images.
        num_codes: number of codes that the model has.
        device: device of the result.

    Raises:
        UserError: if a code is not an integer or is out of range, or if there are not ``n`` codes.
    """
    values = codes.tolist() if isinstance(codes, Tensor) else codes
    values = values if isinstance(values, list | tuple) else [values] * n
    if any(isinstance(c, bool) or not isinstance(c, int) for c in values):
        raise UserError(f"{key} must be integers, got {codes!r}")
    if len(values) != n:
        raise UserError(f"{key} must be one integer for each of the {n} images, or one for all; got {len(values)}")
    if wrong := [c for c in values if not 0 <= c < num_codes]:
        raise UserError(f"{key} must lie between 0 and {num_codes - 1}, got {wrong[0]}")
    return torch.tensor(values, dtype=torch.long, device=device)
