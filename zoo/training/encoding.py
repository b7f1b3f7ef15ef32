"""Encode all training images of a run, for models that need the whole set once."""

import copy
import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.checks.capabilities import Batched, SplitData
from zoo.checks.pixels import as_batch
from zoo.functional.progress import tracked
from zoo.training.ranks import all_rows, shows_progress


def training_batches(trainer) -> Iterable[Any]:
    """Return a loader of the training batches of this process. The trainer's loader keeps its position in the epoch.

    A datamodule with ``splits`` makes a new loader. Otherwise, the loader is the one that ``fit`` received.
    """
    if isinstance(trainer.datamodule, SplitData):
        return trainer.datamodule.train_dataloader()
    loader = trainer.train_dataloader
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)
        loader._iterator = None  # with persistent workers, a loader has only one iterator, which training uses
    return loader


def number_of_training_images(trainer) -> float:
    """Return the largest possible number of images in an epoch, over all processes, or infinity if it is unknown."""
    loader = training_batches(trainer)
    batches, size = sized_len(loader), loader.batch_size if isinstance(loader, Batched) else None
    if batches is None or size is None:
        return math.inf
    return batches * size * (trainer.world_size if isinstance(loader, DataLoader) else 1)


@torch.no_grad()
def encode_training_images(trainer, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``encode`` of the training images of all processes, (N, ...), in their order. All processes must call it.

    If ``fit`` received a loader, the images are those of the batches of one epoch.

    Args:
        trainer: the Trainer of the run, during ``fit``.
        encode: images (B, C, H, W) on the device of this process -> (B, ...).
    """
    loader, most = training_batches(trainer), trainer.num_training_batches
    limit = None if isinstance(trainer.datamodule, SplitData) or math.isinf(most) else int(most)
    total = sized_len(loader) if limit is None else limit
    batches = islice(loader, limit)
    shown = tracked(batches, "encoding the images", "batch", total=total, show=shows_progress(trainer))
    codes = [encode(as_batch(batch)[0].to(trainer.strategy.root_device)) for batch in shown]
    return all_rows(torch.cat(codes), trainer)
