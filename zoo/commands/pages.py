"""Tables in the pages of the documentation, which ``zoo report`` writes and checks.

A table of a page stands between two comments, which are invisible in the finished page:

    <!-- zoo report NAME -->
    ...
    <!-- end -->

The text between them comes from the cards in zoo/weights, or from the results file docs/results/NAME.csv.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import zoo
from zoo.checks.errors import UserError
from zoo.checks.names import did_you_mean
from zoo.evaluation import reproducibility
from zoo.evaluation.results import Table, card_at, in_markdown, read_results, text_of, with_separators
from zoo.training.files import atomic_write

BEGIN, END = re.compile(r"^<!-- zoo report (\S+) -->$"), "<!-- end -->"
WIDE = "reproducibility"  # the name of the table with all columns, which is for CSV and too wide for a page
CARDS = "cards in zoo/weights"
COLUMNS_OF_SEEDS = {"metric", "n", "seeds", "mean", "sd", "min", "max"}


class Documentation:
    """The pages, the results files and the cards of a checkout.

    Args:
        folder: the folder with ``README.md``, ``docs`` and ``zoo/weights``. None is the checkout of this package. An
            installed package has its cards, and no pages and no results files.

    Raises:
        UserError: if the folder has neither cards nor results files.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = zoo.WEIGHTS.parent.parent if folder is None else folder
        self.weights = zoo.WEIGHTS if folder is None else folder / "zoo" / "weights"
        self.results = self.folder / "docs" / "results"
        if not self.weights.is_dir() and not self.results.is_dir():
            raise UserError(
                f"{self.folder} is no checkout: --folder takes a folder with README.md, docs and zoo/weights"
            )

    @cached_property
    def cards(self) -> dict[str, dict[str, Any]]:
        """The cards of the checkpoints, by name."""
        files = sorted(self.weights.glob("*.json"), key=lambda file: file.stem)
        return {file.stem: card_at(file) for file in files}

    @cached_property
    def seeds(self) -> dict[str, dict[str, dict[str, str]]]:
        """The results over seeds of each checkpoint: {checkpoint: {metric: row of the file}}."""
        found = {}
        for file in sorted((self.results / "seeds").glob("*.csv"), key=lambda file: file.stem):
            table, _ = read_results(file)
            if missing := COLUMNS_OF_SEEDS - set(table.columns):
                raise UserError(f"{file} has no column {', '.join(sorted(missing))}: write it with zoo report --runs")
            rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            found[file.stem] = {row["metric"]: row for row in rows}
        return found

    @property
    def pages(self) -> list[Path]:
        """The pages that can have tables."""
        pages = [self.folder / "README.md", *sorted((self.folder / "docs").glob("*.md"))]
        return [page for page in pages if page.is_file()]

    @cached_property
    def sources(self) -> dict[str, str]:
        """The source of each table, by the name of the table."""
        files = sorted(self.results.glob("*.csv"))
        found = dict.fromkeys(reproducibility.names(self.cards), CARDS)
        if "seeds" in found:
            found["seeds"] = self._short(self.results / "seeds")
        return {
            **found,
            **{name: f"zoo/weights/{name}.json" for name in self.cards},
            **{file.stem: self._short(file) for file in files},
        }

    def table(self, name: str) -> Table:
        """Return a table by its name.

        Raises:
            UserError: if no source has the table, or if its results file is not valid.
        """
        if name == WIDE:
            return reproducibility.reproducibility(self.cards, self.seeds)
        if name not in (known := self.sources):
            raise UserError(
                f"the table {name} has no source: there is neither zoo/weights/{name}.json nor docs/results/{name}.csv."
                f" Restore one, or name another table.{did_you_mean(name, [*known, WIDE])}"
            )
        if name == "seeds" and not self.seeds:
            raise UserError("the table seeds has no source: docs/results/seeds has no CSV files")
        if name in reproducibility.names(self.cards):
            return reproducibility.table_of(name, self.cards, self.seeds)
        return with_separators(read_results(self.results / f"{name}.csv")[0])

    def shown(self) -> dict[str, str]:
        """Return the page of each table, by the name of the table."""
        return {name: self._short(page) for page in self.pages for name in _names(text_of(page))}

    def problems(self) -> list[str]:
        """Return a line for each table that differs from its source, has no source, or is on no page."""
        self._check_pages()
        found = []
        for page in self.pages:
            found += [f"{self._short(page)}: {problem}" for problem in self._problems(text_of(page))]
        shown = self.shown()
        for name, source in self.sources.items():
            if name not in shown:
                found.append(f"the table {name} ({source}) is on no page: add '<!-- zoo report {name} -->' and '{END}'")
        return list(dict.fromkeys(found))  # several tables of a page can have one source

    def _check_pages(self) -> None:
        if not (self.folder / "docs" / "results.md").is_file():
            raise UserError(
                f"{self.folder} has no docs/results.md: an installed zoo has no pages, so give --folder CHECKOUT"
            )

    def _problems(self, text: str) -> Iterator[str]:
        """Yield what is wrong in a page."""
        for name, written in _parts(text):
            if name is None:
                continue
            if written is None:
                yield f"the table {name} does not end: add a line '{END}' below it"
                continue
            try:
                expected = _body(self.table(name))
            except UserError as error:
                yield str(error)
                continue
            if written != expected:
                yield f"the table {name} differs from {self.sources[name]}{_difference(written, expected)}"

    def write(self) -> list[str]:
        """Write all tables into the pages. Return the pages that changed.

        Raises:
            UserError: if a table has no source, or does not end. No page changes then.
        """
        self._check_pages()
        texts = {page: text_of(page) for page in self.pages}
        new = {}
        for page, text in texts.items():
            pieces = []
            for name, written in _parts(text):
                if name is None:
                    pieces.append(str(written))
                elif written is None:
                    raise UserError(f"{self._short(page)}: the table {name} does not end: add a line '{END}' below it")
                else:
                    try:
                        body = _body(self.table(name))
                    except UserError as error:
                        raise UserError(f"{self._short(page)}: {error}") from error
                    pieces.append(f"<!-- zoo report {name} -->\n{body}{END}\n")
            new[page] = "".join(pieces)
        changed = [page for page in new if new[page] != texts[page]]
        for page in changed:
            with atomic_write(page) as file:
                file.write(new[page].encode())
        return [self._short(page) for page in changed]

    def _short(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _body(table: Table) -> str:
    return f"\n{in_markdown(table)}\n\n"


def _names(text: str) -> list[str]:
    return [name for name, _ in _parts(text) if name is not None]


def _parts(text: str) -> Iterator[tuple[str | None, str | None]]:
    """Yield the parts of a page in their order.

    A part is (None, text) for text outside tables, (name, text) for a table, and (name, None) for a table without end.
    """
    outside: list[str] = []
    lines = text.splitlines(keepends=True)
    while lines:
        line = lines.pop(0)
        begin = BEGIN.match(line.rstrip("\n"))
        if begin is None:
            outside.append(line)
            continue
        yield None, "".join(outside)
        outside = []
        end = next((i for i, inner in enumerate(lines) if inner.rstrip("\n") == END or BEGIN.match(inner)), len(lines))
        if end == len(lines) or BEGIN.match(lines[end]):
            yield begin.group(1), None
            continue
        yield begin.group(1), "".join(lines[:end])
        del lines[: end + 1]
    yield None, "".join(outside)


def _difference(written: str, expected: str) -> str:
    """Return the first line of a table that differs, as it is and as it should be."""
    is_now, should = written.split("\n"), expected.split("\n")
    for i in range(max(len(is_now), len(should))):
        a, b = (lines[i] if i < len(lines) else "" for lines in (is_now, should))
        if a != b:
            return f": it has '{a}', and the source gives '{b}'. Write it with zoo report --write"
    return ""
