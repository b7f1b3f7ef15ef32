"""Samples as pictures: how many, in which rows, and written as one PNG."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid
from torchvision.utils import save_image as save_png

from zoo.checks import capabilities
from zoo.checks.values import check_whole
from zoo.training.files import written_whole
from zoo.training.outputs import check_picture


class Picture(NamedTuple):
    """What one picture of samples asks for: ``n`` samples under ``conditions``, in rows of ``columns``."""

    n: int
    conditions: dict[str, Any]
    columns: int


def picture(model, n: int, conditions: dict[str, Any]) -> Picture:
    """``n`` samples, as square as can be; or at least ``n``, one row for each of ``model.rows()``, where it has them.

    A model whose samples come in kinds names the condition and its values, ``rows() -> ("y", [0, ..., 9])``, or
    None if it was made without. Where the caller has set that condition, there are no rows.
    """
    check_whole("the number of samples", n)
    rows = model.rows() if isinstance(model, capabilities.SampleRows) else None
    if rows is not None:
        name, values = rows
        if name not in conditions:
            columns = -(-n // len(values))  # whole rows: n, or a few more
            return Picture(
                columns * len(values), {**conditions, name: [v for v in values for _ in range(columns)]}, columns
            )
    return Picture(n, conditions, max(1, round(n**0.5)))


def in_rows(images: Tensor, columns: int | None = None) -> tuple[Tensor, int]:
    """Images as a grid shows them, (n, 1, H, W), and how many go in a row.

    Args:
        images: (n, 1, H, W); (n, frames, 1, H, W), n chains over time, each of which has a row; (n, T, K), one-hot
            sequences, each an image; or (n, 2), points, which make one scatter plot, and (n, frames, 2) one for each
            frame.
        columns: of the former; as many as make the picture square if None.
    """
    if images.ndim == 2:
        return scatter(images), 1
    if images.ndim == 3 and images.shape[-1] == 2:
        return torch.cat([scatter(moment) for moment in images.unbind(1)]), images.shape[1]
    if images.ndim == 3:
        # Time goes to the right, and a symbol is a square of 4 x 4 pixels.
        images = images[:, None].transpose(-1, -2).repeat_interleave(4, -1).repeat_interleave(4, -2)
    if images.ndim == 5:
        return images.flatten(0, 1), images.shape[1]
    return images, columns or max(1, round(len(images) ** 0.5))


def scatter(points: Tensor) -> Tensor:
    """Points in the plane, (n, 2), as one image (1, 3, 480, 480); those far out are left out."""
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
    """A matplotlib figure as an image in [0, 1], (1, 3, H, W)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.from_numpy(np.asarray(canvas.buffer_rgba()).copy())
    return pixels[..., :3].permute(2, 0, 1)[None].float() / 255


def save_grid(images: Tensor, path: str | Path, columns: int | None = None) -> None:
    """Write images in [0, 1] as one PNG, in the rows of :func:`in_rows`; the file appears whole or not at all."""
    path = Path(path)
    check_picture(path)
    images, columns = in_rows(images, columns)
    with written_whole(path) as file:
        save_png(make_grid(images.clamp(0, 1), nrow=columns, padding=2, pad_value=0.5), file, format="png")


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as PNG; the file appears whole or not at all."""
    check_picture(path)
    with written_whole(path) as file:
        figure.savefig(file, dpi=dpi, format="png")
