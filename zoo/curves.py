"""``python -m zoo curves``: one metric of several runs against epochs, read from their metrics.csv."""

import csv
from pathlib import Path

from matplotlib.figure import Figure


def read_curve(run: Path, metric: str) -> list[tuple[int, float]]:
    """(epochs trained, value) of a run folder, in order.

    Raises:
        ValueError: for a folder without metrics.csv, or a metric it does not hold per epoch.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"there is no {path}: name run folders, such as runs/vae/2026-11-21_10-00-00")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    points = {int(float(row["epoch"])) + 1: float(row[metric]) for row in rows if row.get(metric) and row.get("epoch")}
    if not points:
        known = sorted(
            {key for row in rows if row.get("epoch") for key, value in row.items() if value} - {"epoch", "step"}
        )
        raise ValueError(f"{path} has no values of {metric}; it has {', '.join(known) or 'none at all'}")
    return sorted(points.items())


def figure(curves: dict[str, list[tuple[int, float]]], metric: str) -> Figure:
    """One line per run, the last value in the legend."""
    picture = Figure(figsize=(7, 4.5), layout="constrained")
    axes = picture.subplots()
    for name, points in curves.items():
        axes.plot(
            *zip(*points, strict=True), marker="." if len(points) < 60 else None, label=f"{name}: {points[-1][1]:.2f}"
        )
    axes.set(xlabel="epochs", ylabel=metric)
    values = sorted(v for points in curves.values() for _, v in points)
    if len(values) > 8:  # the first epochs are far off and would flatten the rest
        low, high = values[len(values) // 8], values[-1 - len(values) // 8]
        margin = 0.5 * (high - low)
        axes.set_ylim(max(values[0], low - margin), min(values[-1], high + margin))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return picture
