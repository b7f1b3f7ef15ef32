"""Tables of the numbers of pretrained checkpoints: ours next to the papers', and how each was obtained.

All numbers come from the cards of the checkpoints, except those of several seeds. They come from files of
``zoo report --runs``, one for each checkpoint.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import zoo
from zoo.evaluation.published import METRICS, OF_SAMPLES, PUBLISHED, Card, Metric, Number, numbers_of, rounded_error
from zoo.evaluation.results import Table, without_empty_columns
from zoo.evaluation.units import decimals

Cards = Mapping[str, Card]
Seeds = Mapping[str, Mapping[str, Mapping[str, str]]]  # {checkpoint: {metric: row of the file}}


class Row(NamedTuple):
    """A published metric of a checkpoint: the number, the number of the paper, and the number before."""

    checkpoint: str
    card: Card
    number: Number
    before: Number | None

    @property
    def metric(self) -> Metric:
        return self.number.metric

    @property
    def label(self) -> str:
        return self.metric.label + (f", `{self.number.settings}`" if self.number.settings else "")

    @property
    def published(self) -> str:
        paper = PUBLISHED.get(self.checkpoint, {}).get(self.number.key)
        return f"{paper.value:.{paper.digits}f}" if paper else ""

    @property
    def paper(self) -> str:
        paper = PUBLISHED.get(self.checkpoint, {}).get(self.number.key)
        return paper.paper if paper else ""


def rows_of(cards: Cards) -> list[Row]:
    """Return a row for each metric of each card that the tables show."""
    rows = []
    for name, card in cards.items():
        before = {(number.key, number.metric.label): number for number in _before(card)}
        rows += [Row(name, card, n, before.get((n.key, n.metric.label))) for n in numbers_of(card)]
    return rows


def _before(card: Card) -> list[Number]:
    """Return the metrics that the checkpoint had before its last training.

    A metric of another number of samples has another label, and is not compared.
    """
    earlier = card.get("previous") or []
    if not earlier:
        return []
    return numbers_of({"model": card["model"], "data": card["data"], "samples": card.get("samples"), **earlier[-1]})


def checkpoint_table(name: str, cards: Cards) -> Table:
    """Return the numbers of one checkpoint."""
    rows = [[r.label, r.number.text, r.number.error_text, r.published] for r in rows_of({name: cards[name]})]
    return without_empty_columns(Table(["metric", "ours", "standard error", "published"], rows))


def numbers(cards: Cards, seeds: Seeds) -> Table:
    """Return the numbers of all checkpoints, with standard errors and the numbers of the papers."""
    rows = [
        [f"`{r.checkpoint}`", r.label, r.number.text, r.number.error_text, r.published]
        for r in rows_of(cards)
        if not r.metric.detail
    ]
    return Table(["checkpoint", "metric", "ours", "standard error", "published"], rows)


def protocols(cards: Cards, seeds: Seeds) -> Table:
    """Return how each number is measured, and the paper of its published number."""
    rows = [
        (f"`{r.checkpoint}`", r.metric.label, r.metric.protocol, r.paper) for r in rows_of(cards) if not r.metric.detail
    ]
    return Table(["checkpoint", "metric", "protocol", "paper"], list(dict.fromkeys(rows)))  # once for all settings


def before(cards: Cards, seeds: Seeds) -> Table:
    """Return the numbers of checkpoints that were trained again, old and new. Brackets hold standard errors."""
    rows = [
        [f"`{r.checkpoint}`", r.label, _bracketed(r.before), _bracketed(r.number), r.published]
        for r in rows_of(cards)
        if r.before is not None and not r.metric.detail
    ]
    return Table(["checkpoint", "metric", "before", "now", "published"], rows)


def _bracketed(number: Number) -> str:
    return number.text + (f" ({number.error_text})" if number.error_text else "")


def conditions(cards: Cards, seeds: Seeds) -> Table:
    """Return the seed, the epochs, the seconds of training and the hardware of each checkpoint."""
    rows = [
        [f"`{name}`", str(card["seed"]), str(card["epochs"]), f"{card['seconds']:,.0f}", card["hardware"]]
        for name, card in cards.items()
    ]
    return Table(["checkpoint", "seed", "epochs", "seconds", "hardware"], rows)


def commands(cards: Cards, seeds: Seeds) -> Table:
    """Return the commands that trained each checkpoint. A run that was resumed has several."""
    rows = [
        [f"`{name}`", f"`{part['command']}`"]
        for name, card in cards.items()
        for part in (*card.get("earlier", []), card)
    ]
    return Table(["checkpoint", "command"], rows)


def several_seeds(cards: Cards, seeds: Seeds) -> Table:
    """Return the mean and the range over seeds. Brackets hold the standard deviation over seeds."""
    rows = []
    for name, of_checkpoint in seeds.items():
        for key, row in of_checkpoint.items():
            metric = _metric(cards, name, key)
            mean, low, high = (_in_unit(metric, row[column]) for column in ("mean", "min", "max"))
            sd = abs(metric.factor) * float(row["sd"] or 0)  # an empty cell of early results, or one seed
            digits, sd_text = (decimals(sd), f" ({rounded_error(sd)})") if 0 < sd < math.inf else (metric.digits, "")
            ends = sorted(value for value in (low, high) if value is not None)
            rows.append(
                [
                    f"`{name}`",
                    metric.label,
                    ", ".join(row["seeds"].split()) or row["n"],
                    "" if mean is None else f"{mean:.{digits}f}{sd_text}",
                    " to ".join(f"{end:.{digits}f}" for end in ends),
                ]
            )
    return Table(["checkpoint", "metric", "seeds", "mean", "range"], rows)


def _in_unit(metric: Metric, text: str) -> float | None:
    return metric.shown(float(text)) if text else None


def _metric(cards: Cards, checkpoint: str, key: str) -> Metric:
    """Return the metric of a checkpoint that has ``key``, or a metric with the key as its label."""
    of_card = numbers_of(cards[checkpoint]) if checkpoint in cards else []
    return next((number.metric for number in of_card if number.key == key), Metric(key, f"`{key}`", "", digits=4))


def models(cards: Cards, seeds: Seeds) -> Table:
    """Return the table of the README: the paper, the file and one number of each model."""
    rows = []
    for name in sorted(zoo.list_models(), key=lambda name: [*METRICS, name].index(name)):
        known, found = METRICS.get(name), numbers_of(cards[name]) if name in cards else []
        metrics = (*known.metrics, *OF_SAMPLES) if known else OF_SAMPLES
        number = f"[{found[0].text}](docs/results.md#{name})" if found else ""
        label = found[0].metric.label if found else metrics[0].label if known else ""
        rows.append([f"`{name}`", known.paper if known else "", f"[zoo/{name}.py](zoo/{name}.py)", number, label])
    return Table(["model", "paper", "file", "number", "metric"], rows)


# The tables of all checkpoints, by name.
TABLES = {
    "models": models,
    "numbers": numbers,
    "seeds": several_seeds,
    "before": before,
    "protocols": protocols,
    "conditions": conditions,
    "commands": commands,
}
WIDE = (
    *("checkpoint", "model", "data", "metric", "settings", "ours", "standard_error", "seeds", "mean", "sd"),
    *("smallest", "largest", "published", "paper", "before", "before_standard_error", "protocol", "command"),
    *("seed", "epochs", "seconds", "hardware", "commit"),
)


def reproducibility(cards: Cards, seeds: Seeds) -> Table:
    """Return all columns of the tables above in one table, with unrounded numbers in the unit of the metric."""
    rows = []
    for r in rows_of(cards):
        over = seeds.get(r.checkpoint, {}).get(r.number.key, {})
        ends = [_in_unit(r.metric, over.get(column, "")) for column in ("min", "max")]
        sd = abs(r.metric.factor) * float(over["sd"]) if over.get("sd") else None
        values: dict[str, Any] = {
            "checkpoint": r.checkpoint,
            "metric": r.metric.label,
            "settings": r.number.settings,
            "ours": r.number.value,
            "standard_error": r.number.error,
            "seeds": over.get("seeds"),
            "mean": _in_unit(r.metric, over.get("mean", "")),
            "sd": sd,
            "smallest": min(ends) if None not in ends else None,
            "largest": max(ends) if None not in ends else None,
            "published": r.published,
            "paper": r.paper,
            "before": r.before.value if r.before else None,
            "before_standard_error": r.before.error if r.before else None,
            "protocol": r.metric.protocol,
            **{key: r.card.get(key) for key in ("model", "data", "command", "seed", "epochs", "seconds", "hardware")},
            "commit": r.card.get("commit"),
        }
        rows.append(["" if values[column] is None else _text(values[column]) for column in WIDE])
    return Table(WIDE, rows)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def names(cards: Cards) -> Sequence[str]:
    """Return the names of the tables that cards give: those of all checkpoints, and one for each checkpoint."""
    return [*TABLES, *cards]


def table_of(name: str, cards: Cards, seeds: Seeds) -> Table:
    """Return the table with this name."""
    return TABLES[name](cards, seeds) if name in TABLES else checkpoint_table(name, cards)
