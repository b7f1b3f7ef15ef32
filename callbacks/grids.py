"""Write a grid of images to the run folder, and pictures and tables of samples to the loggers that accept them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as lightning_loggers
import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from zoo.callbacks.cadence import logged_step
from zoo.checks import capabilities
from zoo.sampling.pictures import in_rows, save_grid

MOST_ROWS = 100  # largest number of samples in a table. Tables of images are large


def write_grid(trainer, images: Tensor, path: Path, name: str, columns: int, caption: str = "") -> None:
    """Write a picture of samples to ``path``, and log the picture as ``name``. Call this function on rank 0 only.

    Args:
        trainer: Lightning's trainer.
        images: images in [0, 1], points or sequences, in a shape that :func:`in_rows` accepts.
        path: path of the PNG file.
        name: name of the picture in the loggers.
        columns: images per row. Points have another layout (see :func:`in_rows`).
        caption: what the rows and columns of the picture show.
    """
    save_grid(images, path, columns)
    images, columns = in_rows(images, columns)
    grid = make_grid(images.clamp(0, 1), nrow=columns)
    log_picture(trainer, name, to_pil_image(grid), caption)
    for logger in trainer.loggers:
        if isinstance(logger, lightning_loggers.TensorBoardLogger):
            logger.experiment.add_image(name, grid, logged_step(trainer))


def log_picture(trainer, name: str, image: Any, caption: str = "") -> None:
    """Log one picture as ``name`` to every logger that accepts images. Call this function on rank 0 only.

    A picture has the same name at every step, so that the loggers show its development. In Weights & Biases, its
    caption has the step.

    Args:
        trainer: Lightning's trainer.
        name: name of the picture.
        image: a PIL image, or the path of an image file as a string.
        caption: what the picture shows.
    """
    step = logged_step(trainer)
    for logger in trainer.loggers:
        if isinstance(logger, lightning_loggers.WandbLogger):
            text = f"step {step}: {caption}" if caption else f"step {step}"
            logger.log_image(name, [image], step=step, caption=[text])
        elif isinstance(logger, capabilities.LogsImages):
            logger.log_image(name, [image], step=step)


def log_samples(trainer, samples: Tensor, labels: Sequence[Any] | None, step: int, seed: int) -> None:
    """Log a table of samples as ``samples_table`` to Weights & Biases. Call this function on rank 0 only.

    Each row has the sample, its label, the step and the seed. A sample is an image, the coordinates of a point, or the
    symbols of a sequence. If the samples are chains over time, the table has the last state of each chain. At most
    MOST_ROWS samples are logged, evenly spaced.

    Args:
        trainer: Lightning's trainer.
        samples: samples in a shape that :func:`zoo.sampling.pictures.in_rows` accepts.
        labels: label of each sample, or None if the samples have no labels.
        step: step at which the samples were drawn.
        seed: seed of the noise of the samples.
    """
    for logger in trainer.loggers:
        if isinstance(logger, lightning_loggers.WandbLogger):
            chosen = torch.linspace(0, len(samples) - 1, min(len(samples), MOST_ROWS)).round().long()
            head, cells = _cells(samples[chosen])
            rows = [
                [*cell, None if labels is None else labels[i], step, seed]
                for i, cell in zip(chosen.tolist(), cells, strict=True)
            ]
            logger.log_table("samples_table", columns=[*head, "label", "step", "seed"], data=rows, step=step)


def _cells(samples: Tensor) -> tuple[list[str], list[list[Any]]]:
    """Return the names of the columns that show a sample, and the values of these columns for each sample."""
    import wandb

    if samples.ndim == 5 or (samples.ndim == 3 and samples.shape[-1] == 2):
        samples = samples[:, -1]  # the last state of each chain
    if samples.ndim == 2 and samples.shape[1] == 2:
        return ["x", "y"], samples.tolist()
    if samples.ndim == 3:
        return ["sequence"], [[" ".join(map(str, symbols))] for symbols in samples.argmax(-1).tolist()]
    return ["image"], [[wandb.Image(to_pil_image(in_rows(sample[None])[0][0].clamp(0, 1)))] for sample in samples]
