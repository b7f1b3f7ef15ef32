"""Charts of the results files in ``docs/results``."""

import math
import re
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
from drawing import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, RESULTS, Picture, canvas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoo.evaluation.results import read_results, significant

Rows = list[dict[str, str]]

# Families of gradient estimators: the name of the results file after "estimators-", and a title.
FAMILIES = {
    "vae": "VAE: gradient of the ELBO",
    "binary": "VAE with binary latents, by the estimator of training",
    "rbm": "RBM: gradient of log p(v)",
    "gan": "GAN: losses of the generator",
    "diffusion": "DDPM: training loss, and the variational bound",
    "words": "Skip-gram: gradient of log p(w | c)",
}


def read(name: str) -> Rows:
    """Return the rows of the results file ``name``, {column: text}, without backticks."""
    table, _ = read_results(RESULTS / f"{name}.csv")
    return [dict(zip(table.columns, (cell.replace("`", "") for cell in row), strict=True)) for row in table.rows]


def number(text: str) -> float:
    """Return the number at the beginning of a cell, such as 1,718 or 4.6 %. Other cells are NaN."""
    found = re.match(r"-?[\d.]+(e-?\d+)?", text.replace(",", ""))
    return float(found[0]) if found else math.nan


def bars(
    axes: Axes, names: Iterable[str], values: Iterable[float], notes: Iterable[str], colour: str = BLUE, label: str = ""
) -> None:
    """Draw horizontal bars from the top, with a note to the right of each bar."""
    names, values = list(names), list(values)
    axes.barh(range(len(names)), values, color=colour, height=0.62)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
    for i, (value, note) in enumerate(zip(values, notes, strict=True)):
        axes.annotate(note, (value, i), (4, 0), textcoords="offset points", va="center", fontsize=9.5, color=INK)


def powers(axes: Axes, values: Iterable[float], room: float = 0.3) -> None:
    """Give the x axis a logarithmic scale from below the values to above them.

    ``room`` is the part of the axis to the right of the largest value.
    """
    logs = [math.log10(value) for value in values if value > 0]
    low, high = math.floor(min(logs) - 0.15), max(logs)
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10 ** (low + (high - low) / (1 - room)))
    axes.minorticks_off()


# Variances of gradient estimators.


class Measured(NamedTuple):
    """Cells of one estimator in a results file: its name, variance, signal-to-noise ratio and ms per draw."""

    name: str
    variance: str
    snr: str
    milliseconds: str

    @property
    def note(self) -> str:
        """The variance and the signal-to-noise ratio, as the file has them."""
        ratio = self.snr if self.snr[:1].isalpha() else f"SNR {self.snr}"
        return f"{thousands(self.variance)}   {ratio}"


def thousands(text: str) -> str:
    """Return a number with separators: 12,400 for 12400 and 40,000 for 4.0e4.

    Numbers below a thousand do not change, and neither do those from ten million on.
    """
    value = number(text)
    return f"{value:,.0f}" if 1000 <= value < 1e7 else text


def measured(family: str) -> list[Measured]:
    """Return the estimators of a family that have noise, by increasing variance."""
    rows = read(f"estimators-{family}")
    name = next(iter(rows[0]))
    cells = ("variance", "signal-to-noise", "ms per draw")
    found = [Measured(row[name].split(",")[0], *(row.get(cell, "") for cell in cells)) for row in rows]
    return sorted((row for row in found if number(row.variance) > 0), key=lambda row: number(row.variance))


def points(
    axes: Axes, names: list[str], values: list[float], notes: Iterable[str], colour: str = BLUE, room: float = 0.42
) -> None:
    """Draw values as points on a logarithmic scale from the top, with a note to the right of each point.

    ``room`` is the part of the axis to the right of the largest value.
    """
    powers(axes, values, room)
    axes.hlines(range(len(names)), axes.get_xlim()[0], values, color=PALE, linewidth=2, zorder=1)
    axes.plot(values, range(len(names)), "o", color=colour, zorder=3)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_ylim(len(names) - 0.4, -0.6)
    for i, (value, note) in enumerate(zip(values, notes, strict=True)):
        axes.annotate(note, (value, i), (7, 0), textcoords="offset points", va="center", fontsize=9.5)


def variance_panel(axes: Axes, family: str, room: float = 0.42) -> None:
    """Draw the variances of a family, each with its signal-to-noise ratio."""
    rows = measured(family)
    names = [row.name.replace("model.objective=", "") for row in rows]
    points(axes, names, [number(row.variance) for row in rows], [row.note for row in rows], room=room)


def variance() -> Figure:
    figure, panels = canvas(9.6, len(FAMILIES), 1, height_ratios=[len(measured(family)) + 1.6 for family in FAMILIES])
    for axes, (family, title) in zip(panels, FAMILIES.items(), strict=True):
        variance_panel(axes, family)
        axes.set_title(title)
    panels[-1].set_xlabel("variance of one draw: trace of the covariance matrix (own scale in each panel)")
    return figure


def variance_of(family: str) -> Figure:
    rows = measured(family)
    timed = all(row.milliseconds for row in rows)
    figure, panels = canvas(1.35 + 0.36 * len(rows), 1, 2 if timed else 1, squeeze=False)
    variance_panel(panels[0, 0], family, 0.5 if timed else 0.42)
    panels[0, 0].set(xlabel="variance of one draw", title="Variance" if timed else FAMILIES[family])
    if timed:
        cost = [number(row.variance) * number(row.milliseconds) for row in rows]
        notes = [thousands(significant(value, 2)) for value in cost]
        points(panels[0, 1], [""] * len(rows), cost, notes, GREEN, 0.25)
        panels[0, 1].set(xlabel="variance x milliseconds per draw", title="Cost of a given accuracy")
    return figure


# Adversarial models.


def adversarial_generator() -> Figure:
    rows = read("adversarial-generator")
    figure, axes = canvas(3.9)
    colours, labelled = {"0": RED, "256": BLUE, "512": GREEN}, set()
    runs: dict[tuple, list] = {}
    for row in rows:
        key = (row["generator_features"], row["lr_discriminator"], row["lr_generator"])
        runs.setdefault(key, []).append((number(row["epochs"]), number(row["classifier-FID"])))
    for (units, _, _), points in runs.items():
        if max(fid for _, fid in points) > 50:  # a run that diverged; the caption says so
            continue
        label = {"0": "no hidden layer"}.get(units, f"{units} hidden units") if units not in labelled else None
        labelled.add(units)
        axes.plot(*zip(*sorted(points), strict=True), "o-", color=colours[units], label=label)
    lowest = {
        units: min(number(r["classifier-FID"]) for r in rows if r["generator_features"] == units) for units in colours
    }
    axes.axhline(lowest["0"], color=RED, linewidth=1, linestyle=":")
    axes.text(20, lowest["0"] - 0.05, f"best without the layer: {lowest['0']:.2f}", color=RED, ha="right", va="top")
    axes.set(xlabel="epochs", ylabel="classifier-FID", xlim=(0, 21), ylim=(0, 7), xticks=range(0, 21, 4))
    axes.set_title("The GAN's generator needed a hidden layer")
    axes.legend(loc="upper right")
    return figure


def adversarial_clip() -> Figure:
    rows = read("adversarial-clip")
    figure, (left, right) = canvas(3.3, 1, 2)
    for colour, value in zip((RED, BLUE), ("0.01", "0.03"), strict=True):
        mine = [row for row in rows if row["clip_value"] == value]
        epochs = [number(row["epochs"]) for row in mine]
        left.plot(epochs, [number(row["classifier-FID"]) for row in mine], "o-", color=colour, label=f"clip to {value}")
        right.plot(epochs, [number(row["slope of the critic"]) for row in mine], "o-", color=colour)
    left.set(xlabel="epochs", ylabel="classifier-FID", ylim=(0, 13.5), title="Samples")
    right.set(xlabel="epochs", ylabel="slope of the critic", yscale="log", title="Slope of the critic")
    left.legend(loc="center right")
    return figure


def adversarial_steps() -> Figure:
    rows = [row for row in read("adversarial-steps") if row["precision"] == "bf16-mixed"]
    figure, axes = canvas(3.3)
    names, left = [row["network"].replace(" features=0", ", no hidden layer") for row in rows], np.zeros(len(rows))
    parts = {"discriminator step": BLUE, "generator step": ORANGE}
    for part, colour in parts.items():
        values = np.array([number(row[part]) for row in rows])
        axes.barh(range(len(rows)), values, left=left, color=colour, height=0.62, label=part)
        for i, (start, value) in enumerate(zip(left, values, strict=True)):
            axes.text(
                start + value / 2,
                i,
                f"{value:g}",
                ha="center",
                va="center",
                fontsize=9.5,
                color="white" if colour == BLUE else INK,
            )
        left += values
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlabel("CPU milliseconds per call, 64 images, bf16-mixed")
    axes.legend(loc="lower right")
    return figure


def ends(text: str) -> tuple[float, float]:
    """Return both ends of a range such as "0.91 to 0.95". A single number is both ends."""
    low, _, high = text.partition(" to ")
    return float(low), float(high or low)


def wgan_correlation() -> Figure:
    rows = read("wgan-correlation")
    figure, axes = canvas(2.2)
    for i, row in enumerate(rows):
        for shift, column, colour in ((-0.14, "correlation", BLUE), (0.14, "rank correlation", ORANGE)):
            low, high = ends(row[column])
            axes.plot([low, high], [i + shift] * 2, "o-", color=colour, label=column if i == 0 else None)
            axes.annotate(
                row[column],
                (low, i + shift),
                (-9, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=9.5,
            )
    axes.set_yticks(range(len(rows)), [f"{row['critic']},\n{row['epochs']} epochs" for row in rows])
    axes.set(xlim=(0.2, 1.02), ylim=(1.5, -0.5))
    axes.set_xlabel("correlation of the Wasserstein estimate with classifier-FID, range over three seeds")
    axes.grid(False, axis="y")
    axes.legend(loc="lower left")
    return figure


# Seeds.


def seeds(checkpoint: str, titles: dict[str, str]) -> Figure:
    """Draw each seed of a checkpoint, the mean, and the 95 % interval of the mean. ``titles`` name metrics."""
    rows = read(f"seeds/{checkpoint}")
    figure, panels = canvas(2.9, 1, len(rows))
    for axes, row in zip(panels, rows, strict=True):
        mean, low, high = (float(row[key]) for key in ("mean", "low", "high"))
        values = [float(value) for value in row["values"].split()]
        axes.errorbar([0.6], [mean], [[mean - low], [high - mean]], fmt="D", color=INK, capsize=4, markersize=5)
        axes.plot([0.2] * len(values), values, "o", color=BLUE, alpha=0.8)
        axes.set(xlim=(0, 0.9), xticks=[])
        axes.set_title(titles.get(row["metric"], row["metric"]), fontsize=10.5)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.tick_params(labelsize=9)
    panels[0].plot([], [], "o", color=BLUE, label="one seed")
    panels[0].plot([], [], "D", color=INK, markersize=5, label="mean, with its 95 % interval")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def score_objectives() -> Figure:
    rows = read("score-objectives")
    names = [row["objective"].replace(", ", ",\n", 1) for row in rows]
    figure, (left, right) = canvas(2.9, 1, 2, width_ratios=[1.25, 1])
    divergence = [number(row["Fisher divergence"]) for row in rows]
    gap = [number(row["log density gap, nats"]) for row in rows]
    bars(left, names, divergence, [f"{value:g}" for value in divergence], BLUE, "Fisher divergence")
    left.set_xlim(0, 1.3 * max(divergence))
    bars(right, [""] * len(rows), [-value for value in gap], [f"{value:g}" for value in gap], GREEN)
    right.set(xlabel="log density gap, nats", xlim=(0, -1.35 * min(gap)))
    right.set_xticks([0, 0.04, 0.08], ["0", "-0.04", "-0.08"])
    return figure


# Learning curves.


def curve(checkpoint: str, label: str, digits: int = 2) -> Figure:
    """Draw a metric of the run of a checkpoint against epochs. ``label`` names the metric and its unit."""
    rows = read(f"curves/{checkpoint}")
    epochs, values = ([float(row[column]) for row in rows] for column in rows[0])
    figure, axes = canvas(2.8)
    axes.plot(epochs, values, "o-", color=BLUE, markersize=3.5)
    side, va = (-6, "top") if values[-1] > values[0] else (6, "bottom")  # the side of the line that is free
    last = f"{values[-1]:.{digits}f}".replace("-", "\N{MINUS SIGN}")
    axes.annotate(last, (epochs[-1], values[-1]), (0, side), textcoords="offset points", ha="right", va=va)
    axes.set(xlabel="epochs", ylabel=label)
    return figure


# Speed.


def speed_steps() -> Figure:
    rows = read("speed-steps")
    figure, axes = canvas(4.1)
    columns = {"K = 1": (ORANGE, "s"), "K = auto": (BLUE, "o"), "K = auto, all callbacks": (GREEN, "^")}
    for column, (colour, marker) in columns.items():
        axes.plot([number(row[column]) for row in rows], range(len(rows)), marker, color=colour, label=column)
    axes.axvline(1, color=GREY, linewidth=1, zorder=1)
    axes.set_yticks(range(len(rows)), [row["model"].split(", batches")[0] for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0.55, 1.05), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel("speed of train.py, relative to a bare loop in PyTorch (1)")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def speed_against_others() -> Figure:
    """Draw images per second of the zoo and of other libraries, one panel for each comparison."""
    panels = (
        ("speed-rbm", "RBM: training", "implementation", "images/s", 1),
        ("speed-unet-training", "U-Net: training", "network", "training in a bare loop, images/s", 1),
        ("speed-images", "MNIST: loading", "loader", "images/s", 1),
    )
    tables = [read(panel[0]) for panel in panels]
    figure, axes = canvas(5.0, 3, 1, height_ratios=[len(table) + 1.5 for table in tables])
    for panel, rows, (_, title, name, column, _) in zip(axes, tables, panels, strict=True):
        names = [", ".join(filter(None, (row[name], row.get("precision")))) for row in rows]
        names = [
            text.replace("torchvision's MNIST with ToTensor in a DataLoader", "torchvision and DataLoader")
            for text in names
        ]
        names = ["U-Net of the zoo" if text == "ours" else text for text in names]
        values = [number(row[column]) for row in rows]
        bars(panel, names, values, [f"{value:,.0f}" for value in values])
        ours = [not any(word in text for word in ("bare", "scikit", "diffusers", "torchvision")) for text in names]
        for patch, own in zip(panel.patches, ours, strict=True):
            patch.set_color(BLUE if own else PALE)
        panel.set(title=title, xlim=(0, 1.2 * max(values)))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.xaxis.set_major_locator(MaxNLocator(5))
    axes[-1].set_xlabel("images per second")
    return figure


KINDS = {
    "Autoencoders": ("vae", "cvae", "vade"),
    "Adversarial": ("gan", "wgan", "infogan"),
    "Others": ("rbm", "ddpm", "score"),
}


def speed_shapes() -> Figure:
    rows = read("speed-shapes")
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure, panels = canvas(3.5, 1, len(KINDS), sharey=True)
    for axes, (title, names) in zip(panels, KINDS.items(), strict=True):
        for model in dict.fromkeys(row["model"] for row in rows):
            name, _, variant = model.partition(", ")
            if name not in names:
                continue
            mine = {row["shape"]: number(row["images/s"]) for row in rows if row["model"] == model}
            places = [k for k, shape in enumerate(shapes) if shape in mine]
            order = names.index(name)
            look = {"color": (BLUE, RED, GREEN)[order], "linestyle": "--" if variant else "-"}
            size = 2.6 - 0.8 * order  # later lines are thinner, so lines that coincide stay visible
            axes.plot(
                places, [mine[shapes[k]] for k in places], "o", label=model, linewidth=size, markersize=2 + size, **look
            )
        axes.set_xticks(range(len(shapes)), shapes, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
        axes.set(yscale="log", title=title)
        axes.legend(loc="lower left", fontsize=8.5, handlelength=2.4)
    panels[0].set(ylabel="images per second", ylim=(10, None))
    panels[1].set_xlabel("shape of an image: channels x height x width")
    return figure


PICTURES = {
    "variance": Picture(
        variance,
        "Variance of the gradient estimators of six families on logarithmic scales, lowest first. Numbers are the "
        "variance and the signal-to-noise ratio of one draw. Estimators without noise are not shown. Each panel has "
        "its own scale.",
    ),
    **{
        f"variance-{family}": Picture(
            partial(variance_of, family),
            f"Gradient estimators of {family}, lowest variance first, with the signal-to-noise ratio of a draw{cost}.",
        )
        for family, cost in {
            **dict.fromkeys(FAMILIES, ", and its variance times its milliseconds"),
            **dict.fromkeys(("binary", "words"), ""),
        }.items()
    },
    "adversarial-generator": Picture(
        adversarial_generator,
        "Classifier-FID of GANs against epochs, for several learning rates. No run without a hidden layer in the "
        "generator comes close to the runs with one. A run that diverged is not shown.",
    ),
    "adversarial-clip": Picture(
        adversarial_clip,
        "WGAN with clipped weights. Clipped to 0.01, the critic is almost flat and samples stay bad. Clipped to 0.03, "
        "the critic has a slope and samples are better.",
    ),
    "adversarial-steps": Picture(
        adversarial_steps, "Time of the steps of adversarial models, with and without a hidden layer of 256 units."
    ),
    "correlation-wgan": Picture(
        wgan_correlation,
        "How well the Wasserstein estimate of a critic follows classifier-FID during training: correlations for a "
        "critic with gradient penalty and with clipped weights.",
    ),
    "seeds-gan": Picture(
        partial(seeds, "gan", {"classifier_fid": "classifier-FID"}),
        "Each seed of gan, the mean, and the 95 % interval of the mean, for five metrics.",
    ),
    "seeds-vade": Picture(
        partial(seeds, "vade", {"all/accuracy": "accuracy, all images", "test/accuracy": "accuracy, test images"}),
        "The clustering accuracy of each seed of vade, the mean, and the 95 % interval of the mean.",
    ),
    "score-objectives": Picture(
        score_objectives,
        "Score matching objectives on a mixture of Gaussians. Left: the Fisher divergence from the score of the "
        "target. Right: the mean log density of samples minus that of draws of the target.",
    ),
    "curve-iwae": Picture(
        partial(curve, "iwae", "log p(x), nats"),
        "Log p(x) of validation images against epochs, for iwae, which begins from the weights of vae.",
    ),
    "curve-ddpm": Picture(
        partial(curve, "ddpm", "validation loss", 4),
        "Validation loss against epochs, for the last run of ddpm.",
    ),
    "curve-ddpm-fashion": Picture(
        partial(curve, "ddpm-fashion", "validation loss", 4),
        "Validation loss against epochs on Fashion-MNIST, for ddpm-fashion, which begins from the weights of ddpm.",
    ),
    "curve-vae-fashion": Picture(
        partial(curve, "vae-fashion", "log p(x), nats"),
        "Log p(x) of validation images of Fashion-MNIST against epochs, for vae-fashion.",
    ),
    "curve-wgan-fashion": Picture(
        partial(curve, "wgan-fashion", "classifier-FID"),
        "Classifier-FID of 5,000 samples and validation images of Fashion-MNIST against epochs, for wgan-fashion.",
    ),
    "speed-steps": Picture(
        speed_steps,
        "Speed of train.py relative to a bare loop, for K batches per execution of the loop, without callbacks and "
        "with all callbacks.",
    ),
    "speed": Picture(
        speed_against_others, "Images per second of the zoo (blue) and of other code for the same task (grey)."
    ),
    "speed-shapes": Picture(speed_shapes, "Training speed of the models by the shape of an image."),
}
