"""Read all training images of a run before the first step."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from zoo.checks.pixels import sum_images
from zoo.training.ranks import all_rows, exact_sum


def sum_over_training_images(trainer, vectors: Callable[[Tensor], Tensor], first: int) -> tuple[Tensor, Tensor]:
    """Return a sum over all training images of all processes, and the first images. All processes must call it.

    Reading does not change the position of the trainer's loader, or the random numbers of the run. A datamodule makes a
    new loader, which has the images of this process. A plain DataLoader has all images on every process.

    Args:
        trainer: the Trainer of the run, in ``on_fit_start``.
        vectors: images (B, ...) -> vectors (B, V) to sum.
        first: number of images to return, over all processes.

    Returns:
        two tensors. The first holds the sum of all vectors and then the number of images, (V + 1,), float64, on the
        CPU. The second holds the first images, (at most ``first``, ...), on the device of this process.

    Raises:
        UserError: if a pixel is outside [0, 1].
    """
    device, shared = trainer.strategy.root_device, trainer.datamodule is not None
    most = max(1, first // trainer.world_size) if shared else first
    with isolate_rng():
        total, images = sum_images(training_batches(trainer), vectors, most)
    images = images.to(device)
    return (exact_sum(total, trainer), all_rows(images, trainer)) if shared else (total, images)


def training_batches(trainer) -> Iterable[Any]:
    """Return a loader of the training images of a run: a new loader of the datamodule, or the user's DataLoader.

    A loader without a length may be endless. Then the result has at most the batches of an epoch, or of the whole run.
    """
    if trainer.datamodule is not None:
        return trainer.datamodule.train_dataloader()
    loader = trainer.fit_loop._data_source.dataloader()  # Lightning has no public name for the loader given to fit
    limits = [n for n in (trainer.limit_train_batches, trainer.max_steps) if isinstance(n, int) and n > 0]
    return loader if sized_len(loader) is not None or not limits else islice(loader, min(limits))
