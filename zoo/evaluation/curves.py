"""``python -m zoo curves``: one metric of several runs against epochs or another metric, from their metrics.csv."""

import csv
from pathlib import Path

from matplotlib.figure import Figure

from zoo.checks.errors import UserError


def read_curve(run: Path, metric: str) -> tuple[str, list[tuple[int, float]]]:
    """``epochs`` or ``steps``, whichever the metric is logged by, and (how many of them, value) in order.

    Raises:
        UserError: for a folder without metrics.csv, or a metric it does not hold.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        raise UserError(f"there is no {path}: name run folders, such as runs/vae/2026-11-21_10-00-00")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    per_epoch = any(row.get(metric) and row.get("epoch") for row in rows)
    points = {}
    for row in rows:
        if row.get(metric) and metric not in ("epoch", "step"):
            # Epochs are counted from 0 while they last; a test comes after the last one.
            place = (
                int(float(row["epoch"])) + (not metric.startswith("test/")) if per_epoch else int(float(row["step"]))
            )
            points[place] = float(row[metric])
    if not points:
        known = sorted({key for row in rows for key, value in row.items() if value} - {"epoch", "step"})
        raise UserError(f"{path} has no values of {metric}; it has {', '.join(known) or 'none at all'}")
    return ("epochs" if per_epoch else "steps"), sorted(points.items())


def read_pairs(run: Path, x: str, y: str) -> list[tuple[float, float]]:
    """The values of two metrics wherever both were logged, in the order of epochs or steps.

    Raises:
        UserError: as :func:`read_curve`; where one is logged by epochs and one by steps; for fewer than three pairs.
    """
    (unit_x, of_x), (unit_y, of_y) = read_curve(run, x), read_curve(run, y)
    if unit_x != unit_y:
        raise UserError(f"{x} is logged by {unit_x} and {y} by {unit_y}, so that they have no pairs")
    places = dict(of_y)
    pairs = [(value, places[place]) for place, value in of_x if place in places]
    if len(pairs) < 3:
        raise UserError(f"{run} has {x} and {y} together {len(pairs)} times, and a correlation needs three")
    return pairs


def correlation(pairs: list[tuple[float, float]]) -> str:
    """Pearson's and Spearman's (rank) correlation in words."""
    from scipy.stats import pearsonr, spearmanr

    x, y = zip(*pairs, strict=True)
    return f"correlation {pearsonr(x, y).statistic:.2f}, of ranks {spearmanr(x, y).statistic:.2f}, over {len(pairs)}"


def scatter(runs: dict[str, list[tuple[float, float]]], x: str, y: str) -> Figure:
    """One metric against another, a point for each epoch and a line from each to the next."""
    picture = Figure(figsize=(7, 4.5), layout="constrained")
    axes = picture.subplots()
    for name, pairs in runs.items():
        axes.plot(*zip(*pairs, strict=True), marker=".", linewidth=0.7, label=f"{name}: {correlation(pairs)}")
    axes.set(xlabel=x, ylabel=y)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return picture


def figure(curves: dict[str, list[tuple[int, float]]], metric: str, unit: str = "epochs") -> Figure:
    """One line per run, the last value in the legend."""
    picture = Figure(figsize=(7, 4.5), layout="constrained")
    axes = picture.subplots()
    for name, points in curves.items():
        axes.plot(
            *zip(*points, strict=True), marker="." if len(points) < 60 else None, label=f"{name}: {points[-1][1]:.2f}"
        )
    axes.set(xlabel=unit, ylabel=metric)
    values = sorted(v for points in curves.values() for _, v in points)
    if len(values) > 8:  # the first epochs are far off and would flatten the rest
        low, high = values[len(values) // 8], values[-1 - len(values) // 8]
        margin, edge = 0.5 * (high - low), 0.05 * (high - low)
        axes.set_ylim(max(values[0] - edge, low - margin), min(values[-1] + edge, high + margin))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return picture
