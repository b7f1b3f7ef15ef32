"""Draw ``docs/samples.png``, the picture of the README, from the pretrained checkpoints.

Run ``python docs/make_picture.py``. It needs no data.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

import zoo
from zoo.sampling.chunks import sample_chunks

DIGITS = list(range(10))


def panels() -> list[tuple[str, torch.Tensor, int]]:
    """Return the title, the images (n, 1, 28, 28) in [0, 1] and the number of columns of each panel."""
    ddpm, guided = zoo.load("ddpm-guided"), {"guidance": 0.5, "eta": 1.0}
    labelled = sample_chunks(ddpm, 70, 0, progress=True, y=[y for y in DIGITS for _ in range(7)], **guided)
    chains = sample_chunks(ddpm, 10, 0, progress=True, y=DIGITS, frames=7, **guided)
    infogan = zoo.load("infogan")
    name, values = infogan.rows()
    categories = sample_chunks(infogan, 70, 0, progress=True, **{name: [v for v in values for _ in range(7)]})
    return [
        ("DDPM with labels:\none row for each label", labelled, 7),
        ("InfoGAN, trained without labels:\none row for each category it found", categories, 7),
        ("The same DDPM:\nfrom noise to digits", chains.flatten(0, 1), chains.shape[1]),
    ]


def figure() -> Figure:
    """Return the panels side by side."""
    drawn = panels()
    figure = Figure(figsize=(9.6, 5.2), dpi=100, layout="constrained", facecolor="white")
    for axes, (title, images, columns) in zip(figure.subplots(1, len(drawn)), drawn, strict=True):
        axes.imshow(make_grid(images, nrow=columns, padding=2, pad_value=0.5).permute(1, 2, 0))
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    return figure


if __name__ == "__main__":
    figure().savefig(Path(__file__).parent / "samples.png", bbox_inches="tight", pad_inches=0.05)
