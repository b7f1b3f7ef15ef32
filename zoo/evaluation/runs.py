"""Metrics of several runs that differ in nothing except the seed: mean, spread, and an interval of the mean.

The interval is that of Student's t at 95 %. It assumes that the results of the seeds are independent and normal.
"""

import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo.checks.errors import UserError
from zoo.checks.names import did_you_mean
from zoo.evaluation.estimates import standard_error_of_mean
from zoo.evaluation.results import Table, card_at, text_of
from zoo.evaluation.units import decimals, error_name, plain_name, unit_of
from zoo.training.tables import number, read_rows

LEVEL = 0.95
# Settings that do not change what a run learns.
IRRELEVANT = {"seed", "ckpt", "run_dir", "command", "working_folder", "enable_progress_bar"}
IRRELEVANT_GROUPS = {"logger"}
COLUMNS = ("metric", "n", "seeds", "mean", "sd", "min", "max", "low", "high", "values")


class Run(NamedTuple):
    """A run: its folder or card, its settings by name, such as ``model.lr``, and the last value of each metric.

    ``card`` is the card of an exported run, and None for a run folder.
    """

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, float]
    card: dict[str, Any] | None = None

    @property
    def seed(self) -> Any:
        return self.settings.get("seed")


class Spread(NamedTuple):
    """A metric over seeds.

    Attributes:
        metric: name of the metric.
        seeds: seed of each run.
        values: value of each run.
        mean: mean of the values.
        sd: standard deviation of the values over seeds, with n - 1 in the denominator. None for one run.
        low: lower end of the interval of the mean. None for one run.
        high: upper end of the interval of the mean. None for one run.
    """

    metric: str
    seeds: Sequence[Any]
    values: Sequence[float]
    mean: float
    sd: float | None
    low: float | None
    high: float | None


def spread(metric: str, seeds: Sequence[Any], values: Sequence[float]) -> Spread:
    """Return the mean of the values, their standard deviation, and the 95 % interval of the mean (Student's t)."""
    mean, error, n = math.fsum(values) / len(values), standard_error_of_mean(values), len(values)
    low, high = interval(values) or (None, None)
    return Spread(metric, seeds, values, mean, None if error is None else error * math.sqrt(n), low, high)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean over seeds, from Student's t. None for fewer than two values."""
    error = standard_error_of_mean(values)
    if error is None:
        return None
    from scipy.stats import t

    mean, half = math.fsum(values) / len(values), float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def read_run(folder: Path) -> Run:
    """Return the settings and the metrics of a run folder.

    Raises:
        UserError: if its config.yaml or metrics.csv is damaged.
    """
    import yaml

    try:
        config = yaml.safe_load(text_of(folder / "config.yaml"))
    except yaml.YAMLError as error:
        raise UserError(f"{folder / 'config.yaml'} is not YAML: restore the file, or leave out this run") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.yaml'} holds no settings: restore the file, or leave out this run")
    settings = _flat(config, str(folder))
    metrics: dict[str, float] = {}
    for row in read_rows(folder / "metrics.csv"):
        logged = [name for name, value in row.items() if value and name not in ("epoch", "step")]
        metrics |= {name: number(row, name, folder / "metrics.csv") for name in logged}
    return Run(folder, settings, metrics)


def read_card_of_run(file: Path) -> Run:
    """Return the settings and the metrics on the card of an exported run. Standard errors are no metrics.

    The settings are those of the card and of the command. The epochs of a card end at the best checkpoint, so they
    are a result and no setting.
    """
    card = card_at(file)
    model = {"_target_": card["model"], **card["hyper_parameters"]}
    command = card.get("command")
    try:
        settings = overrides(command) if isinstance(command, str) else None
    except ValueError:  # a quotation mark is missing
        settings = None
    if settings is None:
        raise UserError(f"{file} does not record the command of its run, got {command!r}: restore the file")
    settings |= _flat({"model": model, **{key: card.get(key) for key in ("seed", "data", "train_on")}}, "")
    errors = {error_name(name) for name in card["metrics"]}  # test/reconstruction_error is a metric of RBMs
    metrics = {name: value for name, value in card["metrics"].items() if name not in errors}
    return Run(file, settings, metrics, card)


def overrides(command: str) -> dict[str, str]:
    """Return the settings in the words of a command, such as ``trainer.max_epochs=3`` and ``~callbacks.ema``."""
    words = [word.lstrip("+") for word in shlex.split(command)]
    named = [word.partition("=") for word in words if "=" in word or word.startswith("~")]
    return {name: value for name, _, value in named}


def _flat(node: Any, folder: str, place: str = "") -> dict[str, Any]:
    """Return nested settings as a dict from dotted names. The path of the run folder becomes ``RUN``."""
    if isinstance(node, dict) and node:
        own = str(node.get("run_dir", folder))
        parts = [_flat(value, own, f"{place}.{key}" if place else str(key)) for key, value in node.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {place: node.replace(folder, "RUN") if isinstance(node, str) and folder else node}


def find_runs(patterns: Iterable[str], alike: bool = True) -> list[Run]:
    """Return the runs in the folders that match the patterns, such as ``runs/vade/*``, sorted by seed.

    Args:
        patterns: patterns of run folders, or of the cards of exported runs (``.json``). Others are left out.
        alike: whether the runs may differ in their seeds only.

    Raises:
        UserError: if no run folder matches a pattern, or if the runs may not differ and :func:`check_alike` raises it.
    """
    folders = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        try:
            found = [path] if path.exists() else Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))
            found = sorted(found)
        except ValueError as error:
            raise UserError(f"{pattern!r} is no pattern of run folders: write for example 'runs/vade/*'") from error
        inner = [each for each in found if each.suffix == ".json" or (each / "config.yaml").is_file()]
        if not inner:
            raise UserError(
                f"no run folder matches {pattern!r}: give folders with a config.yaml, such as 'runs/vade/*'"
            )
        folders += [folder for folder in inner if folder not in folders]
    runs = [read_card_of_run(path) if path.suffix == ".json" else read_run(path) for path in folders]
    for run in runs:
        if not isinstance(run.seed, int | None):
            raise UserError(f"{run.folder} has the seed {run.seed!r}, which is no integer: restore the file")
    if alike:
        check_alike(runs)
    return sorted(runs, key=lambda run: (str(type(run.seed)), run.seed))


def check_alike(runs: Sequence[Run]) -> None:
    """Check that runs differ in their seeds and in no other setting.

    Raises:
        UserError: if two runs have different models or settings, or the same seed.
    """
    first = runs[0]
    for other in runs[1:]:
        models = [run.settings.get("model._target_") for run in (first, other)]
        if models[0] != models[1]:
            raise UserError(
                f"{first.folder} trained {models[0]}, and {other.folder} trained {models[1]}: give runs of one model"
            )
        for name in sorted({*first.settings, *other.settings}):
            if name.split(".")[-1] in IRRELEVANT or name.split(".")[0] in IRRELEVANT_GROUPS:
                continue
            if first.settings.get(name) != other.settings.get(name):
                values = [repr(run.settings.get(name, "nothing")) for run in (first, other)]
                raise UserError(
                    f"{first.folder} has {name}={values[0]}, and {other.folder} has {name}={values[1]}: give runs that "
                    "differ in nothing except the seed"
                )
    seen: dict[Any, Run] = {}
    for run in runs:
        if run.seed in seen:
            raise UserError(
                f"{seen[run.seed].folder} and {run.folder} both have seed {run.seed}: leave out one of them"
            )
        seen[run.seed] = run


def over_seeds(runs: Sequence[Run], metrics: Sequence[str] = ()) -> list[Spread]:
    """Return the spread of each metric over the runs.

    Args:
        runs: runs that :func:`find_runs` returns.
        metrics: names of the metrics. By default, all metrics of the test of run folders, and all metrics of cards.

    Raises:
        UserError: if a run has no test metrics, or lacks a metric that is named or that another run has.
    """
    names = list(metrics)
    if not names:
        for run in runs:
            if run.card is None and not any(name.startswith("test/") for name in run.metrics):
                raise UserError(
                    f"{run.folder} has no test metrics: it was stopped or had test=false. Resume it, leave it out, or "
                    "choose another metric with --metric"
                )
        names = [name for run in runs for name in run.metrics if run.card is not None or name.startswith("test/")]
        names = list(dict.fromkeys(names))
    for run in runs:
        for name in names:
            if name not in run.metrics:
                known = f"it has {', '.join(sorted(run.metrics)) or 'no metrics'}"
                raise UserError(f"{run.folder} has no metric {name}; {known}.{did_you_mean(name, run.metrics)}")
    seeds = [run.seed for run in runs]
    return [spread(name, seeds, [run.metrics[name] for run in runs]) for name in names]


def as_rows(spreads: Sequence[Spread]) -> Table:
    """Return all columns with unrounded numbers, for CSV and results files."""
    return Table(COLUMNS, [[_text(cell) for cell in _cells(s)] for s in spreads])


def _cells(s: Spread) -> list[Any]:
    seeds, values = " ".join(map(str, s.seeds)), " ".join(map(repr, s.values))
    return [s.metric, len(s.values), seeds, s.mean, s.sd, min(s.values), max(s.values), s.low, s.high, values]


def _text(cell: Any) -> str:
    return "" if cell is None else repr(cell) if isinstance(cell, float) else str(cell)


def as_table(spreads: Sequence[Spread]) -> Table:
    """Return the table for people. The numbers have two significant digits of the standard deviation."""
    columns = ["metric", "n", "mean", "standard deviation", "smallest", "largest", "95 % interval of the mean"]
    rows = []
    for s in spreads:
        digits = decimals(s.sd) if s.sd and math.isfinite(s.sd) else 4
        mean, low, high, smallest, largest, sd = (
            "" if value is None else f"{value:.{digits}f}"
            for value in (s.mean, s.low, s.high, min(s.values), max(s.values), s.sd)
        )
        interval = f"{low} to {high}" if low else ""
        rows.append([f"`{s.metric}`", str(len(s.values)), mean, sd, smallest, largest, interval])
    return Table(columns, rows)


def with_units(spreads: Sequence[Spread], names: Iterable[str]) -> Iterator[tuple[str, list[float]]]:
    """Yield the name of each metric with its unit, and its values in this unit. Fractions are in per cent.

    ``names`` are the names of all metrics of the runs, which decide whether a loss is in nats.
    """
    known = set(map(plain_name, names))
    for s in spreads:
        unit = unit_of(plain_name(s.metric), known)
        factor = 100 if unit == "%" else 1
        yield f"{s.metric}, {unit}" if unit else s.metric, [factor * value for value in s.values]


def points(runs: Sequence[Run], metrics: Sequence[str]) -> Table:
    """Return the points of learning curves: a row for each epoch or step, and a column for each run and metric.

    Raises:
        UserError: if a run lacks a metric, or if some metrics are logged by epoch and others by step.
    """
    from zoo.evaluation.curves import read_curve

    curves: dict[str, dict[int, float]] = {}
    units: dict[str, str] = {}
    names = [run.folder.name for run in runs]
    for run in runs:
        for metric in metrics:
            unit, found = read_curve(run.folder, metric)
            units.setdefault(unit.removesuffix("s"), metric)
            folder = run.folder.name if names.count(run.folder.name) == 1 else run.folder
            name = " ".join([f"`{folder}`"] * (len(runs) > 1) + [f"`{metric}`"] * (len(metrics) > 1))
            curves[name or f"`{metric}`"] = dict(found)
    if len(units) > 1:
        (a, first), (b, second) = units.items()
        raise UserError(f"{first} is logged by {a} and {second} by {b}: choose metrics with the same unit")
    places = sorted({place for curve in curves.values() for place in curve})
    rows = [[str(p), *(f"{curve[p]:.6g}" if p in curve else "" for curve in curves.values())] for p in places]
    return Table([*units, *curves], rows)
