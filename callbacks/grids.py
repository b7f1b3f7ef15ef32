"""Write a grid of images to the run folder and to every logger that accepts images."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from zoo.callbacks.cadence import logged_step
from zoo.checks import capabilities
from zoo.sampling.pictures import in_rows, save_grid


def write_grid(trainer, images: Tensor, path: Path, name: str, columns: int) -> None:
    """Write a picture of samples to ``path``, and log the picture as ``name``. Call this function on rank 0 only.

    Args:
        trainer: Lightning's trainer.
        images: images in [0, 1], points or sequences, in a shape that :func:`in_rows` accepts.
        path: path of the PNG file.
        name: name of the picture in the loggers.
        columns: images per row. Points have another layout (see :func:`in_rows`).
    """
    save_grid(images, path, columns)
    images, columns = in_rows(images, columns)
    grid = make_grid(images.clamp(0, 1), nrow=columns)
    for logger in trainer.loggers:
        if isinstance(logger, capabilities.LogsImages):
            logger.log_image(name, [to_pil_image(grid)], step=logged_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, grid, logged_step(trainer))
