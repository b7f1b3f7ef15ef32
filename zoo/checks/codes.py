"""Check codes of images: integers, such as clusters or categories, and continuous codes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.checks.errors import UserError

Codes = Tensor | Sequence[int] | int  # one for each image, or one for all
Numbers = float | Sequence[float] | Sequence[Sequence[float]]


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


def as_numbers(key: str, numbers: Numbers, n: int, D: int, device: torch.device) -> Tensor:
    """Return continuous codes as a tensor (n, D) on ``device``, float32.

    Args:
        key: name of the argument in error messages.
        numbers: (n, D) numbers, or D numbers for all images, or one number for all D numbers of all images.
        n: number of images, at least 1.
        D: number of codes of an image.
        device: device of the result.

    Raises:
        UserError: if ``numbers`` has another shape, or if a number is not finite.
    """
    try:
        values = torch.tensor(numbers, dtype=torch.float32, device=device).expand(n, D)
    except (TypeError, ValueError, RuntimeError):  # torch raises these for other types and shapes
        values = torch.tensor(math.nan)
    if not values.isfinite().all():
        raise UserError(f"{key} must be a number, {D} numbers, or {D} for each of {n} images; got {numbers!r}")
    return values
