"""Tables of results, and the files that hold measurements which no card has, such as the speed of a training step.

A results file is a CSV file. Lines at its beginning that start with ``# `` say how its rows were measured:

    # command: python tests/benchmarks/rbm_training.py 1
    # seed: 0
    # hardware: 1 thread of an AMD EPYC
    implementation,precision,images/s
    `train.py`,float32,15200

The command and the hardware are required. Cells are shown as they are. Integers get separators of thousands.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo.checks.errors import UserError
from zoo.training.files import atomic_write

REQUIRED = ("command", "hardware")
OF_CARDS = {"model", "hyper_parameters", "metrics"}  # entries that every card has and tables need


class Table(NamedTuple):
    """A table of text: the names of its columns, and its rows with one cell for each column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def in_markdown(table: Table) -> str:
    """Return the table in Markdown, without a line break at the end. A table without rows is a sentence."""
    if not table.rows:
        return "There are no such numbers yet."
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def in_csv(table: Table) -> str:
    """Return the table in CSV, with a line break at the end of each row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    return text.getvalue()


def without_empty_columns(table: Table) -> Table:
    """Return the table without the columns in which no row has a value."""
    kept = [i for i in range(len(table.columns)) if any(row[i] for row in table.rows)]
    return Table([table.columns[i] for i in kept], [[row[i] for i in kept] for row in table.rows])


def text_of(path: Path) -> str:
    """Return the text of a file.

    Raises:
        UserError: if the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): restore the file") from error


def card_at(path: Path) -> dict[str, Any]:
    """Return the card of a checkpoint, from its file.

    Raises:
        UserError: if the file is no card.
    """
    try:
        card = json.loads(text_of(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no card of a checkpoint: it is not JSON ({error}). Restore the file") from error
    if missing := OF_CARDS - set(card if isinstance(card, dict) else ()):
        raise UserError(f"{path} is no card of a checkpoint: it has no {', '.join(sorted(missing))}. Restore the file")
    for key in ("hyper_parameters", "metrics"):
        if not isinstance(card[key], dict):
            raise UserError(f"{path} is no card of a checkpoint: its {key} have no names. Restore the file")
    for name, value in card["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{path} has {value!r} as the metric {name}, which must be a number: restore the file")
    return card


def read_results(path: Path) -> tuple[Table, dict[str, str]]:
    """Return the table of a results file, and what the lines at its beginning say about it.

    Raises:
        UserError: if there is no such file, if it is not UTF-8, or if a required line or the header is missing. Also if
            a row has another number of cells than the header.
    """
    if not path.is_file():
        raise UserError(f"the results file {path} is missing: restore it, or remove the table from the page")
    about, lines = {}, text_of(path).splitlines()
    while lines and lines[0].startswith("# "):
        key, _, value = lines.pop(0).removeprefix("# ").partition(": ")
        about[key] = value
    if missing := [key for key in REQUIRED if not about.get(key)]:
        raise UserError(f"{path} does not say its {' and its '.join(missing)}: add a line '# {missing[0]}: ...' on top")
    try:
        header, *rows = csv.reader(lines or [""])
    except csv.Error as error:
        raise UserError(f"{path} is damaged ({error}): restore the file") from error
    if not header:
        raise UserError(f"{path} has no table: add a line with the names of the columns, and rows")
    if wrong := [row for row in rows if len(row) != len(header)]:
        raise UserError(f"{path} has {len(header)} columns, but a row has {len(wrong[0])} cells: {','.join(wrong[0])}")
    return Table(header, rows), about


def write_results(path: Path, about: Mapping[str, object], columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a results file.

    Args:
        path: the file. Its name without ``.csv`` is the name of the table.
        about: how the rows were measured: ``command`` and ``hardware``, and for example ``seed``.
        columns: names of the columns.
        rows: cells, which are converted with ``str``.
    """
    head = "".join(f"# {key}: {value}\n" for key, value in about.items())
    with atomic_write(path) as file:
        file.write((head + in_csv(Table(columns, [[str(cell) for cell in row] for row in rows]))).encode())


def significant(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, such as 15200, 0.045 or 1.5e7."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -5 <= exponent < 7:
        return f"{round(value, digits - 1 - exponent):.{max(0, digits - 1 - exponent)}f}"
    return f"{value:.{digits - 1}e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def with_separators(table: Table) -> Table:
    """Return the table with separators of thousands in its integers, such as 1,230."""
    return Table(table.columns, [[_separated(cell) for cell in row] for row in table.rows])


def _separated(cell: str) -> str:
    return f"{int(cell):,}" if re.fullmatch(r"-?\d{4,}", cell) else cell
