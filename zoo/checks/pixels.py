"""Pixels as models take them: numbers from 0 to 1."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from zoo.checks.errors import UserError


def check_pixels(x: Tensor) -> None:
    """Refuse pixels that are no numbers in [0, 1].

    Raises:
        UserError: naming one.
    """
    wrong = ~((x >= 0) & (x <= 1))  # also where x is not a number
    if wrong.any():
        raise UserError(f"pixels must be numbers from 0 to 1, got {x[wrong][0].item():g} ({int(wrong.sum())} such)")


def flat_pixels(x: Tensor, like: Tensor) -> Tensor:
    """Images, (B, ...), as vectors, (B, V), of the dtype of ``like``, (V,).

    Raises:
        UserError: for images of another number of pixels.
    """
    if x.ndim < 2 or x.shape[1:].numel() != len(like):
        raise UserError(
            f"images must have {len(like)} pixels each, such as (B, 1, 28, 28) for 784; got {tuple(x.shape)}"
        )
    return x.flatten(1).to(like.dtype)


def look_through(
    batches: Iterable[Sequence[Tensor]], vectors: Callable[[Tensor], Tensor], first: int
) -> tuple[Tensor, Tensor]:
    """Check the pixels of all images, and add them up on the CPU.

    Args:
        batches: images come first in each, (B, ...).
        vectors: images -> (B, V), what is added up.
        first: how many images to return, at least 1.

    Returns:
        the sum of vectors and last their number, (V + 1,), float64; the first images, (at most ``first``, ...).

    Raises:
        UserError: for pixels outside [0, 1].
    """
    total = torch.zeros((), dtype=torch.float64)
    found: list[Tensor] = []
    for x, *_ in batches:
        check_pixels(x)
        x = x.cpu()
        v = vectors(x).double()
        total = total + torch.cat([v.sum(0), torch.tensor([len(v)])])
        if sum(len(images) for images in found) < first:
            found.append(x)
    return total, torch.cat(found)[:first]
