"""One picture of many images: in the run folder, and in every logger that takes images."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from zoo.callbacks.cadence import logged_step
from zoo.checks import capabilities
from zoo.sampling.pictures import in_rows, save_grid


def write_grid(trainer, images: Tensor, path: Path, name: str, columns: int) -> None:
    """Write images in [0, 1], as :func:`in_rows` lays them out, to ``path``, and log them as ``name``.

    On the first process alone.
    """
    save_grid(images, path, columns)
    images, columns = in_rows(images, columns)
    grid = make_grid(images.clamp(0, 1), nrow=columns)
    for logger in trainer.loggers:
        if isinstance(logger, capabilities.LogsImages):
            logger.log_image(name, [to_pil_image(grid)], step=logged_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, grid, logged_step(trainer))
