"""``python -m zoo curves``: one metric of several runs against epochs, read from their metrics.csv."""

import csv
from pathlib import Path

from matplotlib.figure import Figure


def read_curve(run: Path, metric: str) -> tuple[str, list[tuple[int, float]]]:
    """``epochs`` or ``steps``, whichever the metric is logged by, and (how many of them, value) in order.

    Raises:
        ValueError: for a folder without metrics.csv, or a metric it does not hold.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"there is no {path}: name run folders, such as runs/vae/2026-11-21_10-00-00")
    with path.open() as file:
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
        raise ValueError(f"{path} has no values of {metric}; it has {', '.join(known) or 'none at all'}")
    return ("epochs" if per_epoch else "steps"), sorted(points.items())


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
