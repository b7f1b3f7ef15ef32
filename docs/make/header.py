"""The header of a model's file, its docstring, as Markdown.

Headers are plain text. ``markdown`` turns lists and rows into lists and tables. It marks code, files, papers and keys
of references.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import equations

ROOT = equations.ROOT
SPECIAL = {"*": "&#42;", "_": "&#95;", "`": "&#96;", "[": "&#91;", "]": "&#93;", "$": "&#36;", "|": "&#124;"}
# What a line of a header can hold besides words, in the order in which it is looked for.
PIECES = re.compile(
    r"``(?P<literal>.+?)``"
    r"|(?P<paper>arXiv:\d{4}\.\d{4,5})"
    r"|(?P<key>\[(?:DSL|HW2|Xu18a|Xu18b|Liao22)[^\]]*\])"
    r"|(?P<file>\b(?:zoo|docs|callbacks|datamodules|configs|tests)/(?:[\w/.]*\w/?)?)"
    r"|(?P<metric>\b(?:train|val|test)/\w*)"
    r"|(?P<shape>\((?:[A-Z]\w*, ?)+(?:[A-Z0-9]\w*)?\))"
    r"|(?P<script>\b\w+\.py\b)"
    r"|(?P<setting>\b[a-z]\w*(?:\.\w+)*=[\w.+\[\]-]*[\w\]]|\b(?:model|data|trainer|callbacks)(?:\.\w+)+)"
    r"|(?P<word>\b[A-Za-z]\w*_(?:\w+|\{[^}]*\})(?:[\^+]\w+)*|\b[A-Za-z]\w*\^\w+)"
)
SENTENCE_END = re.compile(r"(?<=\.)(?<!\beq\.)(?<!\bsec\.)(?<!\bal\.)(?<!\bch\.) (?=\S)")


@dataclass
class Header:
    """The parts of a header.

    Attributes:
        name: what the first line calls the model, such as ``VAE``.
        sentence: the rest of the first paragraph.
        papers: the paragraph or list that names the papers.
        body: blocks of lines before the symbols: paragraphs, and rows of equations, which are indented.
    symbols, logged, differs: lines of these parts, without their first words.
    """

    name: str
    sentence: str
    papers: list[str]
    body: list[list[str]]
    symbols: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)


def read(model: str, root: Path = ROOT) -> Header:
    """Return the parts of the header of ``model``."""
    parts: dict[str, list[str]] = {"intro": []}
    name = "intro"
    for line in equations.docstring(model, root).splitlines():
        if start := re.match(r"(Symbols|Logged|Differs)\b", line):
            name = start[1]
            parts[name] = []
        parts[name].append(line)
    (title, *first), *blocks = _blocks(parts["intro"])
    called, _, sentence = " ".join([title, *first]).partition(": ")
    papers = next((b for b in blocks if b[0].startswith("Paper")), blocks[0])
    first_line = re.sub(r"^Papers?: ?", "", papers[0])
    return Header(
        called,
        sentence[0].upper() + sentence[1:],
        [first_line, *papers[1:]] if first_line else papers[1:],
        [block for block in blocks if block is not papers],
        _without_title(parts["Symbols"], "Symbols:"),
        parts["Logged"],
        parts["Differs"][1:],
    )


def _blocks(lines: Sequence[str]) -> list[list[str]]:
    """Return the blocks of lines that empty lines separate."""
    text = "\n".join(lines).strip("\n")
    return [block.splitlines() for block in re.split(r"\n{2,}", text)]


def _without_title(lines: list[str], title: str) -> list[str]:
    return [lines[0].removeprefix(title).removeprefix(" "), *lines[1:]]


def code(text: str) -> str:
    """Return ``text`` as code. A table cell may hold the result."""
    if "|" in text or "`" in text:
        return f"<code>{escaped(text)}</code>"
    return f"`{text}`"


def escaped(text: str) -> str:
    """Return plain text without characters that Markdown or HTML would read."""
    return "".join(SPECIAL.get(c, c) for c in html.escape(text, quote=False))


def inline(text: str, root: Path = ROOT) -> str:
    """Return a piece of a header in Markdown, with code in code spans, and links to files, papers and references."""
    found, end = [], 0
    for piece in PIECES.finditer(text):
        found += [escaped(text[end : piece.start()]), _piece(piece, root)]
        end = piece.end()
    return "".join([*found, escaped(text[end:])])


def _piece(piece: re.Match[str], root: Path) -> str:
    text = piece[0]
    if piece["literal"]:
        return code(piece["literal"])
    if piece["paper"]:
        return f"[{text}](https://arxiv.org/abs/{text.removeprefix('arXiv:')})"
    if piece["key"]:
        return f"[{escaped(text)}](../references.md)"
    if piece["file"]:
        if text.startswith("docs/") and text.endswith(".md"):
            return f"[{text.removeprefix('docs/')}](../{text.removeprefix('docs/')})"
        path = text if (root / text).is_file() else f"zoo/{text}"
        return f"[`{text}`](repo:{path})" if (root / path).is_file() else code(text)
    return code(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown. The cells are Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rows(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of rows ``    name   meaning``. Lines that are indented deeper continue a row."""
    found: list[tuple[str, str]] = []
    for line in lines:
        if re.match(r" {4}\S", line):
            name, _, meaning = line.strip().partition("  ")
            found.append((name, meaning.strip()))
        elif line.startswith("     ") and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}".strip())
    return found


def markdown(
    lines: Sequence[str],
    columns: tuple[str, str] = ("symbol", "meaning"),
    sentences: bool = False,
    root: Path = ROOT,
) -> str:
    """Return paragraphs, bullets and rows of a header in Markdown.

    Args:
        lines: lines of the header.
        columns: names of the columns of rows, which become a table.
        sentences: whether each sentence of a paragraph becomes a bullet.
        root: folder of the repository.
    """
    kinds: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("    "):
            kind = "rows"
        elif line.startswith("- "):
            kind = "bullets"
        elif not line:
            kind = "empty"
        elif kinds and kinds[-1][0] == "bullets" and line.startswith("  "):
            kind = "bullets"
        else:
            kind = "text"
        if kinds and kinds[-1][0] == kind:
            kinds[-1][1].append(line)
        else:
            kinds.append((kind, [line]))
    found = []
    for kind, part in kinds:
        if kind == "rows":
            cells = [(code(name), inline(meaning, root)) for name, meaning in rows(part)]
            found.append(table(columns, cells))
        elif kind == "bullets":
            items = re.split(r"\n(?=- )", "\n".join(part))
            found.append("\n".join("- " + inline(" ".join(item[2:].split()), root) for item in items))
        elif kind == "text":
            split = SENTENCE_END.split(" ".join(part)) if sentences else [" ".join(part)]
            found.append("\n".join(("- " if sentences else "") + inline(sentence, root) for sentence in split))
    return "\n\n".join(found)
