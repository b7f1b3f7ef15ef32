"""``zoo curves``: plot one metric of several runs against epochs, steps or another metric.

The values come from metrics.csv and estimator_variance.csv in each run folder.
"""

import math
from pathlib import Path

from matplotlib.figure import Figure

from zoo.checks.errors import UserError
from zoo.estimators.figures import measurements
from zoo.training.tables import number, read_rows


def read_curve(run: Path, metric: str) -> tuple[str, list[tuple[int, float]]]:
    """Return the unit of the metric's axis, ``epochs`` or ``steps``, and the sorted points (position, value).

    Raises:
        UserError: for a folder without metrics.csv, a metric that is not in the tables, or values that are not numbers.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        raise UserError(f"there is no {path}: give run folders, such as runs/vae/2026-11-21_10-00-00")
    rows = read_rows(path) + measurements(read_rows(run / "estimator_variance.csv"))
    per_epoch = all(row.get("epoch") for row in rows if row.get(metric))
    points = {}
    for row in rows:
        if row.get(metric) and metric not in ("epoch", "step"):
            # The position is the number of finished epochs. Training and validation log the index of their epoch,
            # which is one less. A test runs after the last epoch, and logs the number of finished epochs.
            place = int(number(row, "epoch" if per_epoch else "step", path))
            points[place + (per_epoch and not metric.startswith("test/"))] = number(row, metric, path)
    if not points:
        known = sorted({key for row in rows for key, value in row.items() if value} - {"epoch", "step"})
        raise UserError(f"{path} has no values of {metric}; it has {', '.join(known) or 'none at all'}")
    return ("epochs" if per_epoch else "steps"), sorted(points.items())


def read_pairs(run: Path, x: str, y: str) -> list[tuple[float, float]]:
    """Return pairs of values of two metrics, at the epochs or steps where both were logged, in order.

    Raises:
        UserError: if :func:`read_curve` raises UserError, if only one of the metrics is logged by epoch, or if there
            are fewer than three pairs.
    """
    (unit_x, of_x), (unit_y, of_y) = read_curve(run, x), read_curve(run, y)
    if unit_x != unit_y:
        raise UserError(f"{x} is logged by {unit_x} and {y} by {unit_y}; choose two metrics with the same unit")
    places = dict(of_y)
    pairs = [(value, places[place]) for place, value in of_x if place in places]
    if len(pairs) < 3:
        raise UserError(f"{run} has {x} and {y} together {len(pairs)} times; a correlation needs at least three")
    return pairs


def correlation(pairs: list[tuple[float, float]]) -> str:
    """Return a text with Pearson's correlation and Spearman's rank correlation.

    Both are not defined if a metric is constant, or infinite or NaN in a pair.
    """
    from scipy.stats import pearsonr, spearmanr

    x, y = zip(*pairs, strict=True)
    if not all(len(set(values)) > 1 and all(map(math.isfinite, values)) for values in (x, y)):
        return f"correlation not defined (constant or infinite values, {len(pairs)} points)"
    pearson, spearman = pearsonr(x, y).statistic, spearmanr(x, y).statistic
    return f"correlation {pearson:.2f} (rank correlation {spearman:.2f}, {len(pairs)} points)"


def scatter(runs: dict[str, list[tuple[float, float]]], x: str, y: str) -> Figure:
    """Plot one metric against another. Each epoch or step is a point, and lines connect consecutive points."""
    picture = Figure(figsize=(7, 4.5), layout="constrained")
    axes = picture.subplots()
    for name, pairs in runs.items():
        axes.plot(*zip(*pairs, strict=True), marker=".", linewidth=0.7, label=f"{name}: {correlation(pairs)}")
    axes.set(xlabel=x, ylabel=y)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return picture


def figure(curves: dict[str, list[tuple[int, float]]], metric: str, unit: str = "epochs") -> Figure:
    """Plot one line for each run, with its last value in the legend."""
    picture = Figure(figsize=(7, 4.5), layout="constrained")
    axes = picture.subplots()
    for name, points in curves.items():
        axes.plot(
            *zip(*points, strict=True), marker="." if len(points) < 60 else None, label=f"{name}: {points[-1][1]:.2f}"
        )
    axes.set(xlabel=unit, ylabel=metric)
    values = sorted(v for points in curves.values() for _, v in points if math.isfinite(v))
    if len(values) > 8:  # values of the first epochs are far from the others and would compress the plot
        low, high = values[len(values) // 8], values[-1 - len(values) // 8]
        margin, edge = 0.5 * (high - low), 0.05 * (high - low)
        axes.set_ylim(max(values[0] - edge, low - margin), min(values[-1] + edge, high + margin))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return picture
