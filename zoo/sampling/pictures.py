"""Make pictures of samples: choose the number of samples, arrange them in rows, and write the PNG file."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid
from torchvision.utils import save_image as save_png

from zoo.checks import capabilities
from zoo.checks.values import check_integer
from zoo.training.files import atomic_write
from zoo.training.outputs import check_picture


class Picture(NamedTuple):
    """Layout of one picture: ``n`` samples under ``conditions``, with ``columns`` samples in each row."""

    n: int
    conditions: dict[str, Any]
    columns: int


def picture(model, n: int, conditions: dict[str, Any]) -> Picture:
    """Return the layout of a picture of samples.

    Some models have kinds of samples, such as classes or clusters. Their method ``rows()`` returns the name of a
    condition and its values, such as ``("y", [0, ..., 9])``. The picture then has one row for each value and at least
    ``n`` samples.

    If ``rows()`` is missing or returns None, the picture is nearly square and has exactly ``n`` samples. The picture
    also has this form if ``conditions`` already sets the condition that ``rows()`` names.
    """
    check_integer("the number of samples", n)
    rows = model.rows() if isinstance(model, capabilities.SampleRows) else None
    if rows is not None:
        name, values = rows
        if name not in conditions:
            columns = -(-n // len(values))  # rounded up, so all rows are full
            return Picture(
                columns * len(values), {**conditions, name: [v for v in values for _ in range(columns)]}, columns
            )
    return Picture(n, conditions, max(1, round(n**0.5)))


def in_rows(images: Tensor, columns: int | None = None) -> tuple[Tensor, int]:
    """Return the images of a picture as one batch, (n, 1 or 3, H, W), and the number of images in each row.

    The shape of ``images`` selects the layout:

        (n, C, H, W)            images
        (n, frames, C, H, W)    n chains over time, one row for each chain
        (n, T, K)               one-hot sequences, one image for each sequence
        (n, 2)                  points, one scatter plot
        (n, frames, 2)          points over time, one scatter plot for each frame

    Images of 1 channel are grey, and images of 3 channels are in colour. In other images, the channels are grey images
    side by side.

    Args:
        images: samples in one of these shapes.
        columns: number of images in a row. It is used only for images and sequences. None makes the picture nearly
            square.
    """
    if images.ndim == 2:
        return scatter(images), 1
    if images.ndim == 3 and images.shape[-1] == 2:
        return torch.cat([scatter(moment) for moment in images.unbind(1)]), images.shape[1]
    if images.ndim == 3:
        # Time runs from left to right. Each symbol is a square of 4 x 4 pixels.
        images = images[:, None].transpose(-1, -2).repeat_interleave(4, -1).repeat_interleave(4, -2)
    if images.ndim == 5:
        columns, images = images.shape[1], images.flatten(0, 1)
    if images.shape[1] not in (1, 3):
        images = torch.cat(images.split(1, 1), -1)  # (n, 1, H, C W)
    return images, columns or max(1, round(len(images) ** 0.5))


def scatter(points: Tensor) -> Tensor:
    """Return a scatter plot of points, (n, 2), as one image, (1, 3, 480, 480). Outliers can be outside the plot."""
    figure = Figure(figsize=(4.8, 4.8), dpi=100, layout="constrained")
    axes = figure.subplots()
    points = points.float().cpu()
    axes.plot(*points.T.tolist(), ".", markersize=2, alpha=0.5)
    low, high = (points.quantile(q, dim=0) for q in (0.01, 0.99))
    middle, half = ((low + high) / 2).tolist(), max(0.1, 0.7 * float((high - low).max()))
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
    axes.grid(alpha=0.3)
    return as_image(figure)


def as_image(figure: Figure) -> Tensor:
    """Return a matplotlib figure as an image in [0, 1], (1, 3, H, W)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.from_numpy(np.asarray(canvas.buffer_rgba()).copy())
    return pixels[..., :3].permute(2, 0, 1)[None].float() / 255


def save_grid(images: Tensor, path: str | Path, columns: int | None = None) -> None:
    """Write images in [0, 1] as one PNG, in the layout of :func:`in_rows`. An error leaves no partial file."""
    path = Path(path)
    check_picture(path)
    images, columns = in_rows(images, columns)
    with atomic_write(path) as file:
        save_png(make_grid(images.clamp(0, 1), nrow=columns, padding=2, pad_value=0.5), file, format="png")


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as PNG. An error leaves no partial file."""
    check_picture(path)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=dpi, format="png")
