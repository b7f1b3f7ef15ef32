"""A table and a figure of the estimator measurements of a run."""

from typing import Any

from matplotlib.figure import Figure

QUANTITIES = ("variance", "data_variance", "total_variance", "snr")
MEASURED = (*QUANTITIES, "ms_per_draw", "estimator_draws")  # first parts of the names of logged measurements


def table(history: list[dict[str, float]]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and the rows of a table of all measurements.

    A row holds the step, the estimator, the parameter group, and the measured values.
    """
    rows = []
    for row in history:
        for key in row:
            if key.startswith("variance/"):
                name, group = key.split("/", 2)[1:]
                measured = [row.get(f"{quantity}/{name}/{group}") for quantity in QUANTITIES]
                cost, draws = row.get(f"ms_per_draw/{name}"), row.get("estimator_draws")
                rows.append([row["step"], name, group, *measured, cost, draws])
    return ["step", "estimator", "group", *QUANTITIES, "ms_per_draw", "draws"], rows


def measurements(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return one row for each step, {metric: text}. The names of the metrics are the logged names.

    :func:`table` makes one row for each step, estimator and parameter group. This function is its inverse.

    Args:
        rows: rows of the table as read from a file, {column: text}.
    """
    steps: dict[str, dict[str, str]] = {}
    for row in rows:
        logged = steps.setdefault(row["step"], {"step": row["step"], "estimator_draws": row.get("draws", "")})
        names = {q: f"{q}/{row['estimator']}/{row['group']}" for q in QUANTITIES}
        names["ms_per_draw"] = f"ms_per_draw/{row['estimator']}"
        logged |= {name: row[column] for column, name in names.items() if row.get(column)}
    return list(steps.values())


def plot(history: list[dict[str, float]]) -> Figure:
    """Plot variance and signal-to-noise ratio against steps.

    Each estimator has a colour, and each parameter group has a row. With a single estimator, all groups are in one
    row and each group has a colour. Dashed lines show the total variance if it was measured.
    """
    measured = {tuple(key.split("/", 2)[1:]) for row in history for key in row if key.startswith("variance/")}
    estimators = list(dict.fromkeys(name for name, _ in sorted(measured)))
    groups = sorted({group for _, group in measured}, key=lambda group: (group != "all", group))
    rows = [groups] if len(estimators) < 2 else [[group] for group in groups]
    figure = Figure(figsize=(11, 1 + 3 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False)
    for (left, right), shown in zip(panels, rows, strict=True):
        for axes, quantity, line in ((left, "variance", "-"), (left, "total_variance", "--"), (right, "snr", "-")):
            for colour, (estimator, group) in enumerate((e, g) for g in shown for e in estimators):
                key = f"{quantity}/{estimator}/{group}"
                points = [(row["step"], row[key]) for row in history if row.get(key, 0) > 0]
                if quantity == "total_variance" and not points:
                    continue
                axes.plot(
                    *zip(*points, strict=True) if points else ([], []),
                    color=f"C{colour}",
                    # Later lines are thinner, so lines that coincide stay visible.
                    linewidth=1.2 + 0.4 * (len(estimators) * len(shown) - 1 - colour),
                    linestyle=line,
                    marker="." if len(points) < 20 else None,
                    label=group if len(estimators) < 2 else estimator,
                )
            axes.set(xlabel="step", yscale="log")
            axes.grid(alpha=0.3)
        what = estimators[0] if len(estimators) == 1 else f"{shown[0]} parameters" if shown else ""
        left.set(ylabel="variance (trace of the covariance)", title=what)
        right.set(ylabel="signal-to-noise ratio", title=what)
    if estimators:
        if any(key.startswith("total_variance/") for row in history for key in row):
            panels[0][1].plot([], [], color="black", linestyle="--", label="total variance, with data variance")
        panels[0][1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure
