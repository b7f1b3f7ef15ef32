"""What the pages of estimators, callbacks and data share: links to lines of code, tables, and recipes.

A link to a file of the repository has the form ``repo:PATH#L12``, and a picture has the form ``picture:NAME``. The
builder of the site resolves both.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]


class NotFound(ValueError):
    """A page names a file, a function or a line that does not exist."""


# Lines of code.


@cache
def tree(path: str) -> ast.Module:
    """Return the syntax tree of a Python file. ``path`` is relative to the repository."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@cache
def lines(path: str) -> list[str]:
    """Return the lines of a text file. ``path`` is relative to the repository."""
    return (ROOT / path).read_text(encoding="utf-8").splitlines()


def definition(path: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    """Return the definition of a function, a class or a method, such as ``Gaussian.draw``.

    Raises:
        NotFound: if the file has no such definition.
    """
    node: ast.AST = tree(path)
    for part in name.split("."):
        found = [child for child in ast.iter_child_nodes(node) if name_of(child) == part]
        if not found:
            raise NotFound(f"{path} defines no {name}: correct the name, or write FILE::FUNCTION")
        node = found[-1]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return node


def name_of(node: ast.AST) -> str | None:
    """Return the name of a definition, or None for other nodes."""
    return node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else None


def place(spec: str) -> tuple[str, int]:
    """Return the file and the line of ``FILE::NAME`` or ``FILE::NAME | TEXT``.

    With a text, the line is the first one of the definition that contains the text. Without a text, it is the last
    ``return`` of a function in zoo/. For a class, or a function of the tests, it is the line of ``def`` or ``class``.

    Raises:
        NotFound: if there is no such file, definition or line.
    """
    where, _, text = spec.partition(" | ")
    path, _, name = where.partition("::")
    if not (ROOT / path).is_file():
        raise NotFound(f"{spec}: there is no file {path}")
    node = definition(path, name)
    if text:
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
            if text in lines(path)[number - 1]:
                return path, number
        raise NotFound(f"{spec}: no line of {name} contains {text!r}")
    if isinstance(node, ast.FunctionDef) and not path.startswith("tests/"):
        returns = [child.lineno for child in ast.walk(node) if isinstance(child, ast.Return)]
        return path, max(returns, default=node.lineno)
    return path, node.lineno


def link(spec: str) -> str:
    """Return a link to the place of ``spec``. Its text is the name of the function and of the file."""
    path, line = place(spec)
    name = spec.partition(" | ")[0].partition("::")[2]
    return f"[`{name}` in {path}](repo:{path}#L{line})"


def line_with_link(spec: str) -> str:
    """Return a link to the place of ``spec``, and the line of code there without its comment."""
    path, line = place(spec)
    return f"{link(spec)}, line {line}:\n  `{re.sub(r'  # .*', '', lines(path)[line - 1]).strip()}`"


# Text.


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown. Bars within cells are escaped."""
    clean = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *clean])


def sentence(text: str) -> str:
    """Return text on one line. Double backticks and roles of docstrings become code, and so do words in <brackets>."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.replace("``", "`"))
    return " ".join(re.sub(r"(?<!`)<\w+>(?:/\w+)?", r"`\g<0>`", text).split())


def command(words: str) -> str:
    """Return a block with a shell command."""
    return f"```bash\n{words}\n```"


# Docstrings in the style of Google.


class Docstring(NamedTuple):
    """A docstring: its first sentence, its paragraphs, and its arguments, {name: meaning}."""

    summary: str
    body: str
    arguments: dict[str, str]
    raises: str


def docstring(text: str) -> Docstring:
    """Return the parts of a docstring. The body has paragraphs, lists and indented blocks, in Markdown."""
    parts = re.split(r"^(Args|Raises|Returns|Attributes):\n", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    summary, _, rest = parts[0].strip().partition("\n\n")
    return Docstring(sentence(summary), body(rest), entries(sections.get("Args", "")), raised(sections))


def body(text: str) -> str:
    """Return paragraphs and lists as Markdown. Indented blocks become blocks of code."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    "):
            blocks.append("```text\n" + "\n".join(line[4:] for line in block.replace("``", "").split("\n")) + "\n```")
        elif block.startswith("- "):
            blocks.append("\n".join(f"- {sentence(item)}" for item in re.split(r"^- ", block, flags=re.M) if item))
        elif block:
            blocks.append(sentence(block))
    return "\n\n".join(blocks)


def entries(section: str) -> dict[str, str]:
    """Return the entries of a section such as ``Args``, {name: meaning}. ``a, b: text`` gives two entries."""
    found = {}
    for entry in re.split(r"^    (?=\S)", section, flags=re.MULTILINE):
        names, colon, meaning = entry.partition(":")
        for name in names.split(",") if colon else []:
            found[name.strip()] = sentence(meaning)
    return found


def raised(sections: dict[str, str]) -> str:
    """Return the text of the section ``Raises`` without the names of the errors."""
    return " ".join(entries(sections.get("Raises", "")).values())


# Recipes.


class Key(NamedTuple):
    """A key of a recipe, its value as it is written, and its comment."""

    name: str
    value: str
    comment: str


class Recipe(NamedTuple):
    """A recipe: its path, the comment at its beginning, and its keys. Nested keys have dots.

    A key with keys below it is among them only if it has a comment.
    """

    path: str
    about: str
    keys: list[Key]


def recipe(path: str) -> Recipe:
    """Return a recipe of configs/. ``path`` is relative to the repository.

    A comment belongs to the key on its line. Comments below it that begin in the same column continue it. They begin a
    new sentence, unless the line above ends with punctuation.
    """
    text = lines(path)
    about = []
    for line in text:
        if not line.startswith("#"):
            break
        about.append(line.removeprefix("#").strip())
    found = [(name, value, comment(text, line)) for name, value, line in written(yaml.compose("\n".join(text)), "")]
    keys = [Key(*key) for key in found if key[1] or key[2]]
    return Recipe(path, sentence(" ".join(line for line in about if not line.startswith("@"))), keys)


def written(node: yaml.Node, prefix: str) -> list[tuple[str, str, int]]:
    """Return the name, the value and the line of each key. A key with keys below it has the value ""."""
    assert isinstance(node, yaml.MappingNode)
    found = []
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            found += [(name, "", key.start_mark.line), *written(value, f"{name}.")]
        elif name != "defaults":
            start, end = value.start_mark, value.end_mark
            found.append((name, value.start_mark.buffer[start.pointer : end.pointer].strip(), key.start_mark.line))
    return found


def comment(text: list[str], number: int) -> str:
    """Return the comment on a line and on the lines of comment below it that begin in its column."""
    mark = re.search(r"\s#\s?(.*)", text[number])
    if mark is None:
        return ""
    column, said = mark.start() + 1, [mark.group(1)]
    for line in text[number + 1 :]:
        if line[:column].strip() or line[column : column + 1] != "#":
            break
        said.append(line[column + 1 :].strip())
    return sentence(re.sub(r"([^,.;:])\n", r"\1. ", "\n".join(said)))


def parts(path: str) -> list[str]:
    """Return the recipes of the same folder that a recipe includes by its list ``defaults``."""
    loaded = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return [name for name in loaded.get("defaults", []) if isinstance(name, str) and name != "_self_"]


def key_rows(keys: list[Key]) -> list[list[str]]:
    """Return rows of a table of keys: key, value and comment."""
    return [[f"`{key.name}`", f"`{key.value}`" if key.value else "", key.comment] for key in keys]
