"""The pretrained checkpoints as CSV or JSON, for ``zoo list --format csv``. All numbers are of the cards."""

import csv
import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import zoo
from zoo.evaluation.results import card_at

# Entries of a row that its card holds under the same name.
FROM_CARD = ("name", "model", "data", "train_on", "parameters", "sha256", "command", "commit", "seed", "epochs")
FROM_CARD += ("steps", "seconds", "hardware", "protocol")
# Numbers of a card that describe the protocol of a metric: importance samples, images of the bound, scored samples.
SIZES = ("log_likelihood/num_samples", "bound/images", "samples/n")


def row_of(name: str) -> dict[str, Any]:
    """Return what ``list --format json`` prints about a checkpoint."""
    card, weights = card_at(zoo.WEIGHTS / f"{name}.json"), zoo.WEIGHTS / f"{name}.safetensors"
    row = {key: card.get(key) for key in FROM_CARD}
    row["recipe"] = recipe_in(card["command"])
    row["bytes"] = weights.stat().st_size if weights.is_file() else None
    parts = {size: size.split("/") for size in SIZES}
    row["sizes"] = {size: card[part][key] for size, (part, key) in parts.items() if card.get(part)}
    whole = {f"whole_model/{key}": value for key, value in (card.get("whole_model") or {}).items()}
    row["metrics"] = card["metrics"] | whole  # an error of a metric is a metric whose name contains ``error``
    return row


def recipe_in(command: str) -> str | None:
    """Return the name of the experiment in a command of training, or of the model if it has no experiment."""
    given = dict(word.split("=", 1) for word in shlex.split(command) if "=" in word)
    return given.get("experiment", given.get("model"))


def print_rows(names: Sequence[str], form: str) -> None:
    """Print a row for each checkpoint. ``form`` is csv or json.

    The columns of csv are the entries of a row, the numbers of ``sizes``, and then the metrics of all checkpoints by
    name. A checkpoint without a metric has an empty field there.
    """
    rows = [row_of(name) for name in names]
    if form == "json":
        print(json.dumps(rows, indent=2))
        return
    metrics = sorted({metric for row in rows for metric in row["metrics"]})
    table = csv.DictWriter(sys.stdout, [*FROM_CARD, "recipe", "bytes", *SIZES, *metrics], lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow(row.pop("sizes") | row.pop("metrics") | row)
