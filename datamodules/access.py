"""Access to the examples of any data module: of the zoo, or of the user.

Data modules of the zoo keep their examples in ``splits``. Other data modules have only loaders, whose batches are read.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.checks.capabilities import NamedData, SplitData
from zoo.checks.errors import UserError
from zoo.checks.pixels import as_batch
from zoo.datamodules.splits import Split, as_floats


def name_of(data: Any) -> str:
    """Return the name of the data set, or the name of the class if the data module does not name its data."""
    return (data.used if isinstance(data, NamedData) else None) or type(data).__name__


def make_ready(data: Any) -> Any:
    """Call the hooks of a data module that Lightning calls before training and test, and return the data module."""
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def batches_of(
    data: Any, split: str, size: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield all examples of a split in batches: examples as floats, and their labels or None.

    Args:
        data: data module after ``setup``.
        split: ``train``, ``val`` or ``test``.
        size: examples in a batch. The batches of loaders keep their size.
        device: device of the batches.
    """
    if isinstance(data, SplitData):
        yield from data.splits[split].batches(size, device)
        return
    for batch in getattr(data, f"{split}_dataloader")():
        x, *rest = as_batch(batch)
        yield as_floats(x.to(device)), rest[0].to(device).long() if rest else None


def split_of(data: Any, split: str, most: int | None = None) -> Split:
    """Return the first ``most`` examples of a split with their labels, as tensors.

    None returns all examples. The images of a data module of the zoo can then be an object that reads them from files.

    Raises:
        UserError: if the split has no examples.
    """
    if isinstance(data, SplitData):
        found = data.splits[split]
        if most is not None:
            found = Split(found.images[:most], None if found.labels is None else found.labels[:most])
    else:
        parts, n = [], 0
        for part in batches_of(data, split, 1):
            parts.append(part)
            n += len(part[0])
            if most is not None and n >= most:
                break
        labels = [y for _, y in parts if y is not None]
        x = torch.cat([x for x, _ in parts])[:most] if parts else torch.zeros(0)
        found = Split(x, torch.cat(labels)[:most] if labels else None)
    if not len(found.images):
        raise UserError(f"{name_of(data)} has no {split} examples: choose other data")
    return found


def has_labels(data: Any, split: str = "test") -> bool:
    """Return whether the examples of a split have labels. Without ``splits``, the first batch decides."""
    if isinstance(data, SplitData):
        return data.splits[split].labels is not None
    return next(batches_of(data, split, 1), (None, None))[1] is not None


def size_of(data: Any, split: str) -> int:
    """Return the number of examples of a split. Without ``splits``, the loader is read."""
    if isinstance(data, SplitData):
        return len(data.splits[split].images)
    return sum(len(x) for x, _ in batches_of(data, split, 1))
