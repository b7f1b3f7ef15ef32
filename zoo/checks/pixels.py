"""Check examples: images in [0, 1], one-hot sequences and points."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checks.errors import UserError


def _plain(x: Tensor) -> Tensor | None:
    """Return the values of ``x``, also inside torch.func transforms. Return None for a meta tensor."""
    x = torch.func.debug_unwrap(x.detach())
    return None if x.is_meta else x


def check_pixels(x: Tensor, low: int = 0) -> None:
    """Raise UserError if a pixel is NaN or outside [``low``, 1]."""
    if (values := _plain(x)) is None:
        return
    wrong = ~((values >= low) & (values <= 1))  # true for NaN
    if wrong.any():
        grey = bool((values >= 0).all() and values.max() <= 255)
        advice = ": divide grey values of 0 to 255 by 255" if grey and low == 0 else ""
        got = f"{values[wrong][0].item():g} ({int(wrong.sum())} such)"
        raise UserError(f"pixels must be numbers from {low} to 1, got {got}{advice}")


def check_finite(name: str, x: Tensor, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise UserError if a value of ``x`` is infinite, NaN or outside [``low``, ``high``]."""
    if (values := _plain(x)) is None:
        return
    wrong = ~(values.isfinite() & (values >= low) & (values <= high))
    if wrong.any():
        allowed = "finite numbers" if math.isinf(low) else f"numbers from {low:g} to {high:g}"
        raise UserError(f"{name} must be {allowed}, got {values[wrong][0].item():g} ({int(wrong.sum())} such)")


def check_one_hot(name: str, x: Tensor) -> None:
    """Raise UserError unless sequences (..., T, K) have exactly one 1 and K - 1 zeros at each position."""
    if (values := _plain(x)) is None:
        return
    wrong = ~(((values == 0) | (values == 1)).all(-1) & (values.sum(-1) == 1))
    if wrong.any():
        raise UserError(
            f"{name} must be one-hot: each position has exactly one 1, and 0 elsewhere; "
            f"{int(wrong.sum())} positions are not"
        )


def as_examples(name: str, x: Any, shape: tuple[int, ...] | int, dtype: torch.dtype, leading: bool = False) -> Tensor:
    """Return ``x`` as examples of ``shape``, (B, *shape), in ``dtype``. The values are not read.

    Args:
        name: name of the argument in error messages.
        x: the examples.
        shape: shape of one example, or its number of pixels. A number allows any shape (B, ...) with this many pixels.
        dtype: dtype of the result.
        leading: True allows any number of axes before ``shape``. False requires exactly one.

    Raises:
        UserError: if ``x`` is not a tensor of floating-point numbers or booleans, or has another shape.
    """
    if isinstance(shape, int):
        wanted = f"{shape} pixels each, as images or as vectors (B, {shape})"
    else:
        axes = ["..." if leading else "B", *map(str, shape)]
        wanted = f"the shape ({', '.join(axes)}{',' if len(axes) == 1 else ''})"
    if not isinstance(x, Tensor):
        raise UserError(f"{name} must be a tensor with {wanted}; got {type(x).__name__}")
    if not x.is_floating_point() and x.dtype != torch.bool:
        advice = ": convert images with x.float() / 255" if x.dtype == torch.uint8 else ""
        raise UserError(f"{name} must be floating-point numbers, got a tensor of {x.dtype}{advice}")
    if isinstance(shape, int):
        fits = x.ndim >= 2 and x.shape[1:].numel() == shape
    else:
        rank = len(shape)
        fits = x.ndim >= rank if leading else x.ndim == rank + 1
        fits = fits and tuple(x.shape[x.ndim - rank :]) == shape
    if not fits:
        raise UserError(f"{name} must have {wanted}; got {tuple(x.shape)}")
    return x.to(dtype)


def as_batch(batch: Any) -> list[Any]:
    """Return a batch as a list: the examples, then the labels if any. A tensor is a batch without labels.

    Raises:
        UserError: if ``batch`` is neither a tensor nor a list or tuple that begins with a tensor.
    """
    if isinstance(batch, Tensor):
        return [batch]
    if not isinstance(batch, list | tuple) or not batch or not isinstance(batch[0], Tensor):
        keys = f" with {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else ""
        got = f"a {type(batch).__name__}{keys}"
        raise UserError(f"a batch must be a tensor x, or a list or tuple of tensors, (x,) or (x, y); got {got}")
    return list(batch)


def flat_pixels(x: Tensor, like: Tensor) -> Tensor:
    """Return images (B, ...) as vectors (B, V) in the dtype of ``like``, (V,).

    Raises:
        UserError: if the images do not have V pixels.
    """
    return as_examples("images", x, len(like), like.dtype).flatten(1)


def sum_images(batches: Iterable[Any], vectors: Callable[[Tensor], Tensor], first: int) -> tuple[Tensor, Tensor]:
    """Check the pixels of all images, and sum their vectors on the CPU.

    Args:
        batches: images (B, ...), or lists and tuples that begin with images.
        vectors: images -> (B, V), the vectors to sum.
        first: number of images to return, at least 1.

    Returns:
        two tensors. The first holds the sum of all vectors and then the number of vectors, (V + 1,), float64. The
        second holds the first images, (at most ``first``, ...).

    Raises:
        UserError: if a pixel is outside [0, 1].
    """
    total = torch.zeros((), dtype=torch.float64)
    found: list[Tensor] = []
    for batch in batches:
        x = as_batch(batch)[0].cpu()
        v = vectors(x).double()
        check_pixels(x)
        total = total + torch.cat([v.sum(0), torch.tensor([len(v)])])
        if sum(len(images) for images in found) < first:
            found.append(x)
    return total, torch.cat(found)[:first]
