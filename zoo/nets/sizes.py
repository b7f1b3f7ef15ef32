"""Sides of feature maps, for convolutional networks of images of any size."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

SMALLEST = 7  # largest side of the smallest feature map, in pixels


def halvings(shape: Sequence[int]) -> int:
    """Return how often a network halves the sides of images (C, H, W): until the longer side is at most 7 pixels.

    Sides of 28 pixels become 14 and 7. Sides of 32 become 16, 8 and 4. Sides of 64 become 32, 16, 8 and 4.
    """
    return max(0, math.ceil(math.log2(max(shape[-2:]) / SMALLEST)))


def smallest_sides(shape: Sequence[int], times: int) -> tuple[int, int]:
    """Return the sides of images (C, H, W) after they are padded to multiples of 2^times and halved ``times`` times."""
    height, width = (-(-side // 2**times) for side in shape[-2:])
    return height, width


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Return images (..., H, W) with zeros around them, so that both sides are multiples of ``multiple``.

    The images stay in the middle. If the number of rows or columns to add is odd, one more is added after the image.
    Images whose sides are multiples already are returned unchanged.
    """
    extra = [-side % multiple for side in x.shape[-2:]]
    if not any(extra):
        return x
    (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in extra)
    return F.pad(x, (left, right, top, bottom))


def crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the middle of images (..., H, W), with the sides of ``shape``. It undoes :func:`pad_to_multiple`."""
    height, width = shape[-2:]
    if tuple(x.shape[-2:]) == (height, width):
        return x
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]
