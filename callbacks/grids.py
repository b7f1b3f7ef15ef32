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
    """Write a grid of images in [0, 1] to ``path``, and log it as ``name``. Call it on rank 0 only.

    :func:`in_rows` arranges the images in rows.
    """
    save_grid(images, path, columns)
    images, columns = in_rows(images, columns)
    grid = make_grid(images.clamp(0, 1), nrow=columns)
    for logger in trainer.loggers:
        if isinstance(logger, capabilities.LogsImages):
            logger.log_image(name, [to_pil_image(grid)], step=logged_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, grid, logged_step(trainer))
