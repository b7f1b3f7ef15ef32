"""Picture of results over seeds: a point for each run, their mean with its interval, and the published value."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from zoo.checks.errors import UserError
from zoo.evaluation.runs import interval
from zoo.functional.progress import counted
from zoo.sampling.pictures import save_figure


def seeds_figure(
    values: dict[str, list[float]], unit: str | None = None, published: dict[str, float] | None = None
) -> Figure:
    """Plot the results of several seeds in one row for each label. The first label is at the top.

    A row shows one point for each seed, the mean and its interval next to them, and a line at the published value.

    Args:
        values: {label: one result for each seed}.
        unit: name of the horizontal axis of all rows, such as ``accuracy, %``. None gives each row its own axis, for
            results in different units.
        published: {label: published value}. Labels that are missing here have no line.

    Raises:
        UserError: if there is no label, if a result is missing or not finite, or if ``published`` has another label.
    """
    published = published or {}
    _check(values, published)
    panels = [{label: results} for label, results in values.items()] if unit is None else [values]
    picture = Figure(figsize=(7, 0.9 + 0.4 * len(panels) + 0.6 * len(values)), layout="constrained")
    for axes, panel in zip(picture.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for row, (label, results) in enumerate(panel.items()):
            spread = [row + 0.16 * ((i % 5) - 2) / 2 for i in range(len(results))]  # equal results stay visible
            axes.plot(results, spread, "o", color="C0", alpha=0.6, markersize=5)
            axes.plot(math.fsum(results) / len(results), row + 0.3, "D", color="C1", markersize=5)
            if (around := interval(results)) is not None:
                axes.plot(around, [row + 0.3] * 2, "|-", color="C1", linewidth=1.5, markersize=9)
            if label in published:
                axes.plot([published[label]] * 2, [row - 0.4, row + 0.45], color="black", linestyle="--", linewidth=1)
        axes.set(ylim=(len(panel) - 0.45, -0.5))
        axes.set_yticks(
            range(len(panel)), [f"{label}\n{counted(len(results), 'seed')}" for label, results in panel.items()]
        )
        axes.grid(axis="x", alpha=0.3)
    if unit is not None:
        axes.set_xlabel(unit)
    axes.plot([], [], "o", color="C0", alpha=0.6, markersize=5, label="one seed")
    axes.plot([], [], "D", color="C1", markersize=5, label="mean")
    axes.plot([], [], "|-", color="C1", label="95 % interval of the mean")
    if published:
        axes.plot([], [], color="black", linestyle="--", linewidth=1, label="published")
    picture.legend(loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    return picture


def draw_seeds(
    values: dict[str, list[float]],
    path: str | Path,
    unit: str | None = None,
    published: dict[str, float] | None = None,
) -> None:
    """Write the picture of :func:`seeds_figure` to the PNG file ``path``."""
    save_figure(seeds_figure(values, unit, published), Path(path))


def _check(values: dict[str, list[float]], published: dict[str, float]) -> None:
    if not values:
        raise UserError("a picture of seeds needs at least one label with results")
    for label, results in values.items():
        if not results or not all(map(math.isfinite, results)):
            raise UserError(f"{label} must have finite results, one for each seed; got {results}")
    if unknown := set(published) - set(values):
        raise UserError(f"published values must belong to {', '.join(values)}; got {', '.join(sorted(unknown))}")
