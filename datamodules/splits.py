"""The parts of a data set: training, validation and test examples."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """Examples of one part of a data set.

    Attributes:
        images: images (n, C, H, W), uint8, or other examples (n, ...), float. It is a tensor, or an object with a
            length that returns a tensor for a slice or a tensor of indices. This object may read images from files.
        labels: labels (n,), integers, or None if there are none.
    """

    images: Any
    labels: Tensor | None

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield batches of at most ``size`` examples in their order: examples as floats, and labels (B,) or None.

        Images are in [0, 1].
        """
        for begin in range(0, len(self.images), size):
            part = slice(begin, begin + size)
            labels = None if self.labels is None else self.labels[part].to(device).long()
            yield as_floats(self.images[part].to(device)), labels

    def to(self, device: torch.device | str) -> "Split":
        """Return the same examples and labels on ``device``."""
        return Split(self.images.to(device), None if self.labels is None else self.labels.to(device))


def joined(splits: Sequence[Split]) -> Split:
    """Return the examples of all ``splits`` as one. A single one is returned without a copy."""
    if len(splits) == 1:
        return splits[0]
    labels = None if splits[0].labels is None else torch.cat([split.labels for split in splits])
    return Split(torch.cat([split.images for split in splits]), labels)


def shuffled(split: Split, sizes: list[int]) -> list[Split]:
    """Return parts of ``split`` with these sizes, drawn with a fixed seed."""
    order = torch.randperm(len(split.images), generator=torch.Generator().manual_seed(0)).split(sizes)
    return [Split(split.images[i], None if split.labels is None else split.labels[i]) for i in order]


def as_floats(x: Tensor) -> Tensor:
    """Return images of grey values from 0 to 255 as floats in [0, 1]. Other examples are returned unchanged."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x
