"""CSV files that grow while a run goes on, are never half there, and forget what came after a checkpoint."""

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from zoo.training.files import written_whole

Row = dict[str, str]


class Table:
    """A CSV file to which rows are added.

    A row is on the disk once :meth:`add` has returned. A row with the same ``key`` as the last one joins it, unless
    the two disagree in a column. A new column rewrites the file beside its place and moves it there. A file that is
    there already is continued; a last line that a killed process left unfinished is dropped.

    Args:
        path: the file; it is made with the first row.
        key: columns that name a row, such as ``("step",)``. Every row has them.
        order: sorts the columns; by default they stand in the order in which they were first seen.
    """

    def __init__(self, path: Path, key: tuple[str, ...] = ("step",), order: Callable[[str], Any] | None = None):
        self.path, self.key, self.order = path, key, order
        self.columns: list[str] = []
        self._last: Row = {}
        self._begin = 0  # where the last row begins, in bytes
        if path.is_file():
            self.keep(lambda row: True)

    def add(self, row: dict[str, Any]) -> None:
        """Write ``row``, its values as ``str`` has them."""
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
            # A joined row is never shorter than what it replaces, so that one write does it.
            self._begin = file.seek(self._begin) if joins else file.seek(0, io.SEEK_END)
            file.write(line)
        self._last = new

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Keep the rows that are ``wanted`` and the columns that these have values in."""
        if self.path.is_file():
            self.columns = []
            self._rewrite([row for row in read_rows(self.path) if wanted(row)])

    def _rewrite(self, rows: list[Row]) -> None:
        self.columns = list(dict.fromkeys([*self.columns, *(k for row in rows for k, v in row.items() if v)]))
        if self.order is not None:
            self.columns.sort(key=self.order)
        before = self._lines([dict(zip(self.columns, self.columns, strict=True)), *rows[:-1]])
        with written_whole(self.path) as file:
            file.write(before + self._lines(rows[-1:]))
        self._begin, self._last = len(before), rows[-1] if rows else {}

    def _lines(self, rows: Iterable[Row]) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue().encode()


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a CSV file with a header; none if there is no file."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode()
    whole = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(io.StringIO(whole, newline="")) if None not in row.values()]
