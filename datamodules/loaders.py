"""Loaders of batches, and the part that data modules of images share.

In each epoch, a generator with the key (seed, epoch) draws a permutation. The indices of a batch are a slice of this
permutation. The same seed therefore gives the same order. Each process takes a part of every batch. Two processes
together see the same batches as one process. Loaders store their position in the epoch (``state_dict``), so training
can resume within an epoch.
"""

import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.datamodules.files import DataError, resumes
from zoo.datamodules.limits import SPLITS, check_limits, check_model, overfits
from zoo.datamodules.splits import Split, as_floats
from zoo.training.interruption import SIGNALS, signals_blocked

SANITY_CHECK_IMAGES = 32  # images per process; few, because the sanity check only shows that validation works


class ImageLoader:
    """Loader of batches (images (B, C, H, W) float in [0, 1], labels (B,) int64), or (images,) without labels.

    Args:
        split: images and labels. The batches are on the same device as these tensors.
        batch_size: images per step, over all processes.
        shuffle: True draws a new permutation for each epoch and drops the last incomplete batch. False keeps the order
            of the images. Each image then occurs once, and the batches have nearly equal sizes.
        seed: seed of the permutations.
        repeat: passes over the images per epoch.
        rank, world_size: rank and number of processes. Rank r takes images r, r + world_size, ... of each batch.
        fixed: whether every epoch has the batches of the first epoch.
        used: number of images in a batch -> number of images to use, which are the first ones. None uses all images.
        flip: whether half of the images of a pass, drawn at random, are mirrored left-right. Only ``shuffle`` draws.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        repeat: int = 1,
        rank: int = 0,
        world_size: int = 1,
        fixed: bool = False,
        used: Callable[[int], int] | None = None,
        flip: bool = False,
    ):
        self.used, self.flip = used, flip
        self.split, self.batch_size, self.shuffle, self.seed, self.repeat = split, batch_size, shuffle, seed, repeat
        self.rank, self.world_size, self.fixed = rank, world_size, fixed
        self.epoch = 0
        self.position = 0  # batches drawn in this epoch
        self._resume_at = 0

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """A namespace in which Lightning finds ``set_epoch``. As an attribute, it would form a cycle of references."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = 0 if self.fixed else epoch

    def __len__(self) -> int:
        n = len(self.split.images) * self.repeat
        return n // self.batch_size if self.shuffle else -(-n // self.batch_size)

    def indices(self) -> list[Tensor]:
        """Return the indices of this process into the split, one tensor for each batch of the current epoch.

        The tensors are views of one tensor on the device of the split. With a copy for each batch, the CPU would wait
        for the device each time. With ``flip``, index n + i means the mirrored image i of n images. The draws of the
        order come first, so the order is the same without ``flip``.
        """
        images = self.split.images
        n, device = len(images), images.device if isinstance(images, Tensor) else torch.device("cpu")
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.cat([torch.randperm(n, generator=generator) for _ in range(self.repeat)])
            order = order[: len(self) * self.batch_size]
            if self.flip:
                order += n * torch.randint(2, order.shape, generator=generator)
            batches = order.to(device).split(self.batch_size)
        else:
            batches = torch.arange(n, device=device).tensor_split(len(self))
        return [batch[self.rank :: self.world_size] for batch in batches]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        begin, self._resume_at = self._resume_at, 0
        used = self.used
        wanted = (index if used is None else index[: used(len(index))] for index in self.indices()[begin:])
        self.position = begin
        for batch in self.read(wanted):
            self.position += 1
            yield batch

    def read(self, wanted: Iterator[Tensor]) -> Iterable[tuple[Tensor, ...]]:
        """Yield the batch of each tensor of indices."""
        return map(self.examples, wanted)

    def examples(self, index: Tensor) -> tuple[Tensor, ...]:
        """Return the examples with these indices, and their labels if there are labels."""
        x, index = images_at(self.split.images, index, self.flip)
        labels = self.split.labels
        return (as_floats(x),) if labels is None else (as_floats(x), labels[index].long())

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = self._resume_at = state["position"]


class DiskLoader(ImageLoader):
    """Loader of the same batches as :class:`ImageLoader`, of images that are read from disk by worker processes.

    The workers live for one pass over the images. They read ahead by two batches each. The position counts the batches
    that were given out, not those that were read.

    Args:
        arguments: arguments of :class:`ImageLoader`. The images of the split are an object that reads from disk.
        workers: number of processes that read. 0 reads in this process.
        device: device of the batches.
    """

    def __init__(self, *arguments: Any, workers: int, device: torch.device, **named: Any):
        super().__init__(*arguments, **named)
        self.workers, self.device = workers, device

    def read(self, wanted: Iterator[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        labels, indices = self.split.labels, (index.numpy() for index in wanted)  # tensors would travel more slowly
        for index, images in in_workers(_Reading(self.split.images, self.flip), indices, self.workers, self.device):
            x = as_floats(images.to(self.device, non_blocking=True))
            yield (x,) if labels is None else (x, labels[torch.from_numpy(index).to(labels.device)].long())


def images_at(images: Any, index: Tensor, flip: bool) -> tuple[Tensor, Tensor]:
    """Return the images with some indices, and their indices without the marks of mirrored images.

    Args:
        images: n images (n, C, H, W), a tensor or an object that reads from disk.
        index: indices (B,) below n. With ``flip``, n + i means the mirrored image i.
        flip: whether indices can mean mirrored images.
    """
    if not flip:
        return images[index], index
    mirrored, index = (index >= len(images)).view(-1, 1, 1, 1), index % len(images)
    x = images[index]
    return torch.where(mirrored, x.flip(-1), x), index


class _Reading:
    """Give the images with some indices, and the indices of their labels."""

    def __init__(self, images: Any, flip: bool):
        self.images, self.flip = images, flip

    def __getitem__(self, index: np.ndarray) -> tuple[np.ndarray, Tensor]:
        images, found = images_at(self.images, torch.from_numpy(index), self.flip)
        return found.numpy(), images


def in_workers(items: Any, keys: Iterable[Any], workers: int, device: torch.device | None = None) -> Iterator[Any]:
    """Return an iterator over ``items[key]`` for each key, in the order of the keys. Worker processes compute them.

    The workers begin at once. They end with the iterator.

    Args:
        items: an object with ``__getitem__``, which is copied to the workers.
        keys: the keys.
        workers: number of processes. 0 computes in this process.
        device: device to which the caller copies the tensors. None if the caller makes no copy.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
        # Newer versions of Python warn about a fork if the process has several threads. With another start method,
        # each worker would import torch, in each pass.
        warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
        loader: DataLoader = DataLoader(
            items,
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=device is not None and device.type == "cuda",
            worker_init_fn=_leave_signals,
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # without it, DataLoader would draw from the random stream of the run
        )
        with signals_blocked():  # a new worker has the handlers of this process until _leave_signals
            return iter(loader)


def _unchanged(x: Any) -> Any:
    return x


def _leave_signals(_: int) -> None:
    """Let the main process alone answer signals. A worker process has inherited its handlers.

    Terminals, SLURM and torchrun can send a signal to the workers too. The main process still needs them for the
    batch that it finishes. A worker therefore ends only at the second SIGTERM, which DataLoader sends if it must.
    """
    signal.set_wakeup_fd(-1)  # the main process reads the other end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class ImageModule(L.LightningDataModule):
    """Part of a data module of images that does not depend on where the images come from.

    A subclass fills ``splits`` in ``setup``. Its hyperparameters have ``batch_size``, ``eval_batch_size``, ``seed`` and
    ``flip``.

    The sanity check before training uses the first 32 images of a batch on each process, so that training begins soon.
    ``sanity_check_fraction`` is the fraction of the batch that the latest sanity check used.
    """

    repeat = 1  # passes over the training images per epoch
    workers = 0  # processes that read images from disk
    used: str | None
    shape: Sequence[int]
    num_classes: int | None

    def __init__(self) -> None:
        super().__init__()
        self.splits: dict[str, Split] = {}
        self.sanity_check_fraction = 1.0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def check(self) -> None:
        """Check that the model, the batches and the arguments of the Trainer suit the data.

        Raises:
            DataError: if they do not.
        """
        if self.trainer is not None:
            check_model(self.trainer.lightning_module, self)
        batch_size, images = self.hparams["batch_size"], len(self.splits["train"].images) * self.repeat
        if batch_size > images:
            raise DataError(
                f"data.batch_size is {batch_size}, but an epoch has {images:,} training images: set at most {images}"
            )
        if self.trainer is not None:
            check_limits(self.trainer, {split: self._loader(split) for split in SPLITS}, batch_size)

    def _loader(self, split: str) -> ImageLoader:
        train, images = split == "train", self.splits[split].images
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        reading = {} if isinstance(images, Tensor) else {"workers": self.workers, "device": self.device}
        return (DiskLoader if reading else ImageLoader)(
            self.splits[split],
            self.hparams["batch_size" if train else "eval_batch_size"],
            shuffle=train,
            seed=self.hparams["seed"],
            repeat=self.repeat if train else 1,
            rank=rank,
            world_size=world_size,
            fixed=overfits(self.trainer),
            used=self._used_in_validation if split == "val" else None,
            flip=train and self.hparams["flip"],
            **reading,
        )

    def train_dataloader(self) -> ImageLoader:
        return self._loader("train")

    def val_dataloader(self) -> ImageLoader:
        return self._loader("val")

    def test_dataloader(self) -> ImageLoader:
        return self._loader("test")

    def _used_in_validation(self, images: int) -> int:
        """Return how many of the ``images`` of a validation batch to use on this process."""
        if self.trainer is None or not self.trainer.sanity_checking:
            return images
        self.sanity_check_fraction = min(1.0, SANITY_CHECK_IMAGES / images)
        return SANITY_CHECK_IMAGES

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise DataError if the data or their order differ from the checkpoint. Lightning calls it after ``setup``."""
        if not resumes(self):
            return
        if state["used"] != self.used:
            raise DataError(
                f"this run has data={self.used}, but its checkpoint was trained on {state['used']}: set "
                f"data={state['used']}, or start a new run without ckpt"
            )
        state = {"flip": False} | state  # checkpoints of earlier versions lack it
        for key, value in self.state_dict().items():
            if (before := state.get(key, value)) != value:
                raise DataError(f"data.{key} is {value}, but was {before} when this run began: use the earlier value")
