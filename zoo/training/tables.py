"""CSV files that grow during a run. They stay valid if the run is killed, and a resumed run drops later rows."""

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from zoo.checks.errors import UserError
from zoo.training.files import atomic_write

Row = dict[str, str]


class Table:
    """A CSV file that grows row by row.

    A row is in the file when :meth:`add` returns. A row with the same ``key`` as the last row is merged with the last
    row. The two rows stay separate if both have a value in a column and the values differ. A new column rewrites the
    whole file atomically. Rows are appended to an existing file. If a killed process left the last line unfinished,
    this line is dropped.

    Args:
        path: the file. The first row creates it.
        key: columns that identify a row, such as ``("step",)``. Every row has values in these columns.
        order: sort key for the columns. By default columns have the order in which they first appear.
    """

    def __init__(self, path: Path, key: tuple[str, ...] = ("step",), order: Callable[[str], Any] | None = None):
        self.path, self.key, self.order = path, key, order
        self.columns: list[str] = []
        self._last: Row = {}
        self._begin = 0  # position of the last row in the file, in bytes
        if path.is_file():
            self.keep(lambda row: True)

    def add(self, row: dict[str, Any]) -> None:
        """Write ``row``. Its values are converted with ``str``."""
        new = {column: str(value) for column, value in row.items()}
        joins = bool(self._last) and all(new.get(k) == self._last.get(k) for k in self.key)
        joins = joins and all(self._last.get(k) in (None, "", v) for k, v in new.items())
        new = {**self._last, **new} if joins else new
        if not set(new) <= set(self.columns) or not self.path.is_file():
            rows = read_rows(self.path)
            self._rewrite([*(rows[:-1] if joins else rows), new])
            return
        line = self._lines([new])
        with self.path.open("r+b") as file:
            # A merged row is never shorter than the row that it replaces, so overwriting is enough.
            self._begin = file.seek(self._begin) if joins else file.seek(0, io.SEEK_END)
            file.write(line)
        self._last = new

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Keep only the rows for which ``wanted`` is true, and the columns in which these rows have values."""
        if self.path.is_file():
            self.columns = []
            self._rewrite([row for row in read_rows(self.path) if wanted(row)])

    def _rewrite(self, rows: list[Row]) -> None:
        self.columns = list(dict.fromkeys([*self.columns, *(k for row in rows for k, v in row.items() if v)]))
        if self.order is not None:
            self.columns.sort(key=self.order)
        before = self._lines([dict(zip(self.columns, self.columns, strict=True)), *rows[:-1]])
        with atomic_write(self.path) as file:
            file.write(before + self._lines(rows[-1:]))
        self._begin, self._last = len(before), rows[-1] if rows else {}

    def _lines(self, rows: Iterable[Row]) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue().encode()


def read_rows(path: Path) -> list[Row]:
    """Return the complete rows of a CSV file with a header, or an empty list if there is no file.

    Raises:
        UserError: if the file is not UTF-8, or if a row has more cells than the header.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): restore the file") from error
    whole = text[: text.rfind("\n") + 1]
    try:
        rows = list(csv.DictReader(io.StringIO(whole, newline="")))
    except csv.Error as error:
        raise UserError(f"{path} is damaged ({error}): restore the file") from error
    if wide := next((row for row in rows if None in row), None):
        cells = ",".join(wide.pop(None))
        raise UserError(f"{path} has a row with more cells than its header, which end in {cells}: restore the file")
    return [row for row in rows if None not in row.values()]


def number(row: Row, column: str, path: Path) -> float:
    """Return the number in a cell of the file ``path``.

    Raises:
        UserError: if the cell does not hold a number.
    """
    try:
        return float(row[column])
    except (KeyError, ValueError):
        value = repr(row[column]) if column in row else "no value"
        raise UserError(f"{path} has {value} in its column {column}, which holds numbers: restore the file") from None
