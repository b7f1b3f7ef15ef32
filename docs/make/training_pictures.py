"""Draw a strip of samples over the epochs of a run, with the curve of a metric beneath.

    python docs/make/training_pictures.py RUN NAME METRIC LABEL
    python docs/make/training_pictures.py runs/ddpm/2026-01-31_12-00-00 ddpm val/loss "validation loss"

RUN is the folder of a run with ``samples/epoch_000.png``, ... and ``metrics.csv``. The command writes three files:

    docs/results/training/NAME.csv     the curve, and how the run was made
    docs/results/training/NAME.png     images of some epochs, side by side
    docs/pictures/training-NAME.png    the picture

The first two files are committed, so ``docs/make/pictures.py`` draws the picture again without the run.
"""

import argparse
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
from drawing import BLUE, GREY, RESULTS, Picture, canvas, png, styled
from drawing import PICTURES as FOLDER
from matplotlib.figure import Figure
from PIL import Image

from zoo.checks.errors import UserError
from zoo.evaluation.curves import read_curve
from zoo.evaluation.results import read_results, write_results
from zoo.hub.loading import best_of, read_training_checkpoint
from zoo.training.files import atomic_write
from zoo.training.tables import read_rows

TRAINING = RESULTS / "training"
COLUMNS, SIDE = 8, 4  # pictures in a strip; each shows SIDE x SIDE samples
FALL = 10  # the axis of a metric that changes by more than this factor is logarithmic


def opened(path: Path, mode: str = "RGB") -> np.ndarray:
    """Return the pixels of an image file."""
    try:
        return np.asarray(Image.open(path).convert(mode))
    except OSError as error:  # also of Pillow, for a file that is no image or has only a part of it
        raise UserError(f"{path} cannot be read as an image: remove it, or copy it from the run again") from error


def corner(path: Path, tile: int) -> np.ndarray:
    """Return the first SIDE rows and the last SIDE columns of a grid, (h, w, 3), with lines of 2 pixels between images.

    In a grid with a chain in each row, the last columns are the states that are closest to samples.

    Args:
        path: PNG file of a grid.
        tile: pixels of a side of one image.
    """
    pixels = opened(path)
    side = 2 + SIDE * (tile + 2)
    if min(pixels.shape[:2]) < side:
        raise UserError(f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels: a strip needs {side} x {side}")
    return pixels[2 : side - 2, -(side - 2) : -2]


def tile_size(path: Path) -> int:
    """Return the pixels of a side of one image of a grid, from the first grey line below the images."""
    pixels = opened(path, "L").astype(int)
    lines = [y for y in range(2, len(pixels)) if (abs(pixels[y] - 128) <= 1).all()]
    if not lines:
        raise UserError(f"{path} is no grid of samples: it has no line of grey pixels between the images")
    return lines[0] - 2


def record(run: Path, name: str, metric: str, label: str) -> None:
    """Write the two results files of a run.

    Raises:
        UserError: if the run has no pictures of samples or no checkpoint, or no values of the metric by epoch.
    """
    if not run.is_dir():
        raise UserError(f"there is no folder {run}: give the folder of a run, such as runs/ddpm/2026-01-31_12-00-00")
    grids = {int(re.sub(r"\D", "", path.stem)): path for path in sorted((run / "samples").glob("epoch_*.png"))}
    if not grids:
        raise UserError(f"{run / 'samples'} has no pictures epoch_000.png, ...: give the folder of a run with samples")
    unit, _ = read_curve(run, metric)
    if unit != "epochs":
        raise UserError(f"{run / 'metrics.csv'} has {metric} by {unit}, and the picture needs a metric by epoch")
    curve = [(row["epoch"], row[metric]) for row in read_rows(run / "metrics.csv") if row.get(metric)]
    kept = np.unique(np.linspace(0, len(grids) - 1, min(COLUMNS, len(grids))).round().astype(int))
    epochs = [sorted(grids)[k] for k in kept]
    tile = tile_size(grids[epochs[0]])
    strip = np.concatenate([corner(grids[epoch], tile) for epoch in epochs], 1)
    made = read_training_checkpoint(best_of(run))["record"]
    first, *_ = [*made["earlier"], made]  # a run that resumed ends like the first command without the interruption
    about = {
        "command": f"{first['command']}, then python docs/make/training_pictures.py RUN {name} {metric} '{label}'",
        "hardware": made["hardware"],
        "seed": made["config"]["seed"],
        "data": made["data"],
        "label": label,
        "epochs of the images": " ".join(map(str, epochs)),
    }
    TRAINING.mkdir(exist_ok=True)
    write_results(TRAINING / f"{name}.csv", about, ("epoch", metric), curve)
    with atomic_write(TRAINING / f"{name}.png") as file:
        Image.fromarray(strip).convert("L" if (strip == strip[..., :1]).all() else "RGB").save(
            file, "PNG", optimize=True
        )


def training(name: str) -> Figure:
    """Return the picture of a recorded run: the samples above, at the epochs of the curve below."""
    table, about = read_results(TRAINING / f"{name}.csv")
    epochs = [int(epoch) for epoch in about["epochs of the images"].split()]
    strip = opened(TRAINING / f"{name}.png")
    images = np.split(strip, len(epochs), 1)
    figure = canvas(3.7, 2, len(epochs), height_ratios=[1, 1.9])[0]
    grid = figure.axes[0].get_gridspec()
    for axes, image, epoch in zip(figure.axes[: len(epochs)], images, epochs, strict=True):
        axes.imshow(image)
        axes.set_axis_off()
        axes.set_title(
            f"epoch {epoch + 1}" if epoch == epochs[0] else f"{epoch + 1}", fontsize=9.5, loc="center", pad=4
        )
    for axes in figure.axes[len(epochs) :]:
        axes.remove()
    below = figure.add_subplot(grid[1, :])
    steps = [int(row[0]) + 1 for row in table.rows]
    values = [float(row[1]) for row in table.rows]
    below.plot(steps, values, color=BLUE, marker="o" if len(steps) < 20 else None)
    if min(values) > 0 and max(values) > FALL * min(values):
        below.set_yscale("log")
    for epoch in epochs:
        below.axvline(epoch + 1, color=GREY, linewidth=0.8, linestyle=":")
    below.set(xlabel="epoch", ylabel=about["label"])
    below.xaxis.get_major_locator().set_params(integer=True)
    return figure


def caption(name: str) -> str:
    """Return the caption of a recorded run."""
    _, about = read_results(TRAINING / f"{name}.csv")
    run = f"Samples of {name} over training on {about['data']}, and the {about['label']} by epoch"
    return f"{run}. Dotted lines mark the epochs shown."


PICTURES = {
    f"training-{path.stem}": Picture(partial(training, path.stem), caption(path.stem))
    for path in sorted(TRAINING.glob("*.csv"))
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, with samples/ and metrics.csv")
    parser.add_argument("name", metavar="NAME", help="name of the picture, which becomes training-NAME.png")
    parser.add_argument("metric", metavar="METRIC", help="a column of metrics.csv, such as val/loss")
    parser.add_argument("label", metavar="LABEL", help="what the axis says, with units, such as 'loss, nats'")
    given = parser.parse_args(arguments)
    if not re.fullmatch(r"[\w-]+", given.name):
        parser.error(f"NAME is {given.name!r}; it has only letters, digits, _ and -, such as ddpm")
    try:
        record(given.run, given.name, given.metric, given.label)
        FOLDER.mkdir(exist_ok=True)
        with styled():
            image = png(training(given.name))
        with atomic_write(FOLDER / f"training-{given.name}.png") as file:
            file.write(image)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    print(f"wrote docs/pictures/training-{given.name}.png; commit it with both files in docs/results/training")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped: run the command again")
