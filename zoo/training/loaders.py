"""Read the training images of a run, for models that need all images or the first images before a step of training."""

import copy
import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.checks.capabilities import Batched, SplitData
from zoo.checks.pixels import as_batch, sum_images
from zoo.functional.progress import tracked
from zoo.training.ranks import all_rows, exact_sum, shows_progress


def training_loader(trainer) -> Iterable[Any]:
    """Return a loader of the training batches of this process. The trainer's loader keeps its position in the epoch.

    A datamodule with ``splits`` makes a new loader. Otherwise the result is a copy of the loader of ``fit``, in which
    Lightning has given each process its part of the examples. A stream has all its examples on every process.
    """
    if _has_splits(trainer):
        loader = trainer.datamodule.train_dataloader()
    else:
        if trainer.train_dataloader is None:  # with max_steps, Lightning has not yet made the loader in on_fit_start
            trainer.fit_loop.setup_data()
        loader = trainer.train_dataloader
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)
        loader._iterator = None  # with persistent workers, a loader has only one iterator, which training uses
    return loader


def _has_splits(trainer) -> bool:
    return isinstance(trainer.datamodule, SplitData)


def training_batches(trainer) -> Iterable[Any]:
    """Return the training batches of this process, in a pass that training does not see. See :func:`training_loader`.

    A datamodule with ``splits`` gives all batches. Other loaders give the batches of one epoch. An endless stream gives
    the batches of the whole run, which ``max_steps`` limits.
    """
    return islice(training_loader(trainer), _most(trainer))


def _most(trainer) -> int | None:
    """Return the largest number of batches to read, or None to read all."""
    if _has_splits(trainer):
        return None
    if math.isfinite(trainer.num_training_batches):
        return int(trainer.num_training_batches)
    if trainer.max_steps < 0:
        return None
    return trainer.max_steps * trainer.accumulate_grad_batches


def number_of_training_images(trainer) -> float:
    """Return the largest possible number of images in an epoch, over all processes, or infinity if it is unknown."""
    loader = training_loader(trainer)
    batches, size = sized_len(loader), loader.batch_size if isinstance(loader, Batched) else None
    if batches is None or size is None:
        return math.inf
    return batches * size * (trainer.world_size if isinstance(loader, DataLoader) else 1)


def sum_over_training_images(trainer, vectors: Callable[[Tensor], Tensor], first: int) -> tuple[Tensor, Tensor]:
    """Return a sum over the training images of all processes, and the first images. All processes must call it.

    Reading does not change the random numbers of the run. Only a generator that the user gave to a loader advances.

    Args:
        trainer: the Trainer of the run, during ``fit``.
        vectors: images (B, ...) -> vectors (B, V) to sum.
        first: number of images to return, over all processes.

    Returns:
        two tensors. The first holds the sum of all vectors and then the number of images, (V + 1,), float64, on the
        CPU. The second holds the first images, (at most ``first``, ...), on the device of this process.

    Raises:
        UserError: if a pixel is outside [0, 1].
    """
    with isolate_rng():
        total, images = sum_images(training_batches(trainer), vectors, max(1, first // trainer.world_size))
    return exact_sum(total, trainer), all_rows(images.to(trainer.strategy.root_device), trainer)


@torch.no_grad()
def encode_training_images(trainer, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``encode`` of the training images of all processes, (N, ...), in their order. All processes must call it.

    Args:
        trainer: the Trainer of the run, during ``fit``.
        encode: images (B, C, H, W) on the device of this process -> (B, ...).
    """
    loader, most = training_loader(trainer), _most(trainer)
    total = sized_len(loader) if most is None else most
    batches = tracked(islice(loader, most), "encoding the images", "batch", total=total, show=shows_progress(trainer))
    codes = [encode(as_batch(batch)[0].to(trainer.strategy.root_device)) for batch in batches]
    return all_rows(torch.cat(codes), trainer)


def first_training_images(trainer, most: int) -> Tensor | None:
    """Return the first training images of a run, (at most ``most``, C, H, W), uint8, equal on all processes.

    The images come from the datamodule. If there is no datamodule with ``splits``, they come from the training loader.
    If there is no training loader either, the result is None.
    """
    data = trainer.datamodule
    if isinstance(data, SplitData):
        return _bytes(data.splits["train"].images[:most])  # the images may be read from disk
    if trainer.train_dataloader is None:
        return None
    found: list[Tensor] = []
    with isolate_rng():
        for batch in training_batches(trainer):
            found.append(as_batch(batch)[0].to(trainer.strategy.root_device))
            if sum(map(len, found)) * trainer.world_size >= most:
                break
    return _bytes(all_rows(torch.cat(found), trainer)[:most])


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().byte() if images.is_floating_point() else images
