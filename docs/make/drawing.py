"""The style that all pictures of the documentation share, and the functions that lay out images and save figures.

Figures are 8 inches wide and have 160 pixels per inch. A page shows them about 640 pixels wide. There, a letter of
10 points is 11 pixels high. The colours are those of Okabe & Ito 2008, which colour-blind readers can tell apart.
"""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.utils import make_grid

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # modules that import zoo after this one find the zoo of this checkout
RESULTS = ROOT / "docs" / "results"
PICTURES = ROOT / "docs" / "pictures"

WIDTH, DPI, COLOURS_OF_A_FILE = 8.0, 160, 256
SOFTWARE = f"matplotlib {matplotlib.__version__}"  # other versions draw letters and margins slightly differently
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442",
)  # fmt: skip
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)
INK, GREY, PALE = "#222222", "#6b6b6b", "#d9d9d9"

STYLE = {
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "axes.prop_cycle": matplotlib.cycler(color=(*COLOURS, INK)),
    "lines.linewidth": 2,
    "lines.markersize": 6,
}


class Picture(NamedTuple):
    """One picture: the function that draws it, and its caption, which is also its text for screen readers."""

    draw: Callable[[], Figure]
    caption: str


def styled():
    """Return a context in which matplotlib uses ``STYLE`` and no settings of the user."""
    return matplotlib.style.context(STYLE, after_reset=True)


def canvas(height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, object]:
    """Return a figure of ``height`` inches, and its axes as :meth:`Figure.subplots` returns them."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    return figure, figure.subplots(rows, columns, **options)


def tiles(images: Tensor, columns: int, gap: int = 2, grey: float = 1.0) -> Tensor:
    """Return images in [0, 1], (n, C, H, W), as one image, (h, w, 3), with ``columns`` images in a row.

    Lines of ``gap`` pixels of the value ``grey`` separate the images.
    """
    edge = make_grid(images.float().clamp(0, 1), nrow=columns, padding=gap, pad_value=grey).permute(1, 2, 0)
    return edge[gap:-gap, gap:-gap] if gap else edge


def show_tiles(
    axes: Axes,
    images: Tensor,
    columns: int,
    title: str = "",
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    gap: int = 2,
    noisy: bool = False,
) -> None:
    """Show images (n, C, H, W) in rows, with names to the left of the rows and above the columns.

    ``noisy`` keeps the edges of pixels. Smoothed noise would make the file several times larger.
    """
    height, width = images.shape[-2] + gap, images.shape[-1] + gap
    axes.imshow(tiles(images, columns, gap).numpy(), interpolation="nearest" if noisy else "antialiased")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9.5, pad=3)
    axes.xaxis.tick_top()
    centres = lambda n, step: [step * i + (step - gap) / 2 for i in range(n)]  # noqa: E731
    axes.set_xticks(centres(len(column_names), width), column_names)
    axes.set_yticks(centres(len(row_names), height), row_names)
    axes.set_title(title, pad=8)


def join(parts: Sequence[Tensor], gap: int = 10) -> Tensor:
    """Return images of one height, (C, H, W_i), as one image (C, H, W), with white gaps between them."""
    white = torch.ones(parts[0].shape[0], parts[0].shape[1], gap)
    return torch.cat([piece for part in parts for piece in (white, part)][1:], -1)


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file, with 256 colours, the version of matplotlib, and no date."""
    drawn, written = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png", bbox_inches="tight", pad_inches=0.06)
    image = Image.open(drawn).convert("RGB")
    image = image.quantize(COLOURS_OF_A_FILE, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    drawn_by = PngInfo()
    drawn_by.add_text("Software", SOFTWARE)
    image.save(written, format="PNG", optimize=True, pnginfo=drawn_by)
    return written.getvalue()
