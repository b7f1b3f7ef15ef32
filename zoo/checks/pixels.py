"""Check examples: images in [0, 1], one-hot sequences and points."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from zoo.checks.errors import UserError

# Keys of examples and of labels in batches that are dictionaries.
EXAMPLE_KEYS = ("image", "images", "img", "pixel_values", "x")
LABEL_KEYS = ("label", "labels", "y", "target")


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
    """Return a batch as a list: the examples, then the labels if any. Everything else in the batch is left out.

    A tensor is a batch without labels. In a list or tuple, the second entry holds the labels. In a dictionary, the
    examples have one of the keys ``EXAMPLE_KEYS``, and the labels have one of the keys ``LABEL_KEYS``. Labels that are
    texts or None are left out.

    Raises:
        UserError: if ``batch`` is none of these, or if the keys of a dictionary do not tell what the examples are.
    """
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = [batch[key] for key in _keys_in(batch)]
    if not isinstance(batch, list | tuple) or not batch or not isinstance(batch[0], Tensor):
        inside = f" that begins with a {type(batch[0]).__name__}" if isinstance(batch, list | tuple) and batch else ""
        raise UserError(
            "a batch must be a tensor x, a list or tuple of tensors, (x,) or (x, y), or a dictionary such as "
            f"{{'image': x, 'label': y}}; got a {type(batch).__name__}{inside}"
        )
    return [batch[0], *(y for y in batch[1:2] if _are_labels(y))]


def _keys_in(batch: Mapping[Any, Any]) -> list[Any]:
    """Return the key of the examples of a dictionary, then the key of the labels if there are labels."""
    examples, labels = ([key for key in keys if key in batch] for keys in (EXAMPLE_KEYS, LABEL_KEYS))
    if len(examples) == 1 and len(labels) <= 1:
        return [*examples, *labels]
    kind, found, keys = ("labels", labels, LABEL_KEYS) if len(labels) > 1 else ("examples", examples, EXAMPLE_KEYS)
    several = f"{' and '.join(map(repr, found))} may all be its {kind}" if found else f"none is the key of its {kind}"
    raise UserError(
        f"the keys of a batch are {', '.join(map(repr, batch)) or 'none'}, and {several}: give exactly one of "
        f"{', '.join(keys)} for the {kind}"
    )


def _are_labels(y: Any) -> bool:
    """Return whether ``y`` is meant as labels: a tensor or numbers. Captions, dictionaries and None are not."""
    return isinstance(y, Tensor | Number) or (isinstance(y, Sequence) and all(isinstance(i, Number) for i in y))


def flat_pixels(x: Tensor, like: Tensor) -> Tensor:
    """Return images (B, ...) as vectors (B, V) in the dtype of ``like``, (V,).

    Raises:
        UserError: if the images do not have V pixels.
    """
    return as_examples("images", x, len(like), like.dtype).flatten(1)


def sum_images(batches: Iterable[Any], vectors: Callable[[Tensor], Tensor], first: int) -> tuple[Tensor, Tensor]:
    """Check the pixels of all images, and sum their vectors on the CPU.

    Args:
        batches: batches in a form that :func:`as_batch` accepts.
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
