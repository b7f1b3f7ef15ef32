"""Count long sentences, and words that have a plainer alternative, in all text that people read.

    python tests/prose.py                     # the files with findings, and the totals
    python tests/prose.py zoo/vae.py --list   # each finding with its line

The script reads docstrings, comments and messages of Python files, comments of YAML files, Markdown files, and the
cells of notebooks. It skips indented lines of docstrings, which are equations or code. Numbers, ``a``, ``I`` and
strings of at least two letters count as words. Symbols do not count as words.
"""

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LONGEST = 25  # largest number of words in a sentence

# Patterns of words that make a reader stop, and what to write instead.
REPLACED = [
    (r"whole numbers?", "integer"),
    (r"(?:an?|the|which|what|same|equal|larger|smaller|this|that) shares?\b(?! (?:a|the|one|its)\b)", "fraction, part"),
    (r"shares of", "fractions, parts"),
    (r"bent\b|bend(?:s|ing)?\b", "augmented, deformed"),
    (r"scatters?(?! (?:plot|add|diagram|of points))(?:ed|ing)?", "variance, varies"),
    (r"moments of (?:the|its) way|(?:on|of) (?:the|its|their) way", "intermediate states"),
    (r"judg(?:e|es|ed|ing)\b", "evaluate, score, classifier"),
    (r"two players|of (?:two )?players|player's|one player|each player|other player", "adversarial model, network"),
    (r"anew|afresh", "again, recompute"),
    (r"no numbers?(?! of)(?=$|[,;.:)]| (?:is|are|end|ends|that|or|and))", "NaN"),
    (r"manieth", "every n-th"),
    (r"likewise", "repeat the value"),
    (r"had (?:no|a) part", "were not used"),
    (r"mend(?:s|ed|ing)?", "fixed"),
    (r"nobody|anybody", "no one"),
    (r"beside\b", "next to, besides"),
    (r"whatsoever|whichever|hitherto|thereof|whereof|thereby|therein|hence|albeit|lest|amid|upon|thus", "a plain word"),
    (r"what (?:is|are|was|were|it|they|has|have|of|a|an|the|this|that)?[^.;:?]{0,40} of it\b", "name the thing"),
    (r"dear(?:er|est|ly)?\b", "expensive, slow"),
    (r"goes? on|going on|went on|gone on", "continues"),
    (r"to be had", "available"),
    (r"as (?:\w+ )?(?:and \w+ )?(?:have|has) (?:it|them)", "as in"),
    (r"comes? of|came of", "follows from"),
    (r"for which there is no|of which there (?:is|are)", "plain order"),
    (r"so (?:many|much) as|as many as there", "plain count"),
    (r"of (?:one's|its|their|his) own\b", "its own"),
    (r"but for\b", "except"),
    (r"save for|apart from", "except"),
    (r"at bottom|by and by|at hand|in hand|in view", "plain words"),
    (r"seeds? (?:00\d|note|example)|seeds' example", "a key of docs/references.md"),
]
# Words that cannot begin a sentence.
BEGINNINGS = r"(?:Of|Beside|Beyond|And so|So that|Nor|Neither|Such|Likewise|Whatever|Whoever|Wherever)\b"
PRIVATE = [(re.compile(rf"(?<![\w-])(?:{pattern})", re.IGNORECASE), plain) for pattern, plain in REPLACED]
ABBREVIATED = re.compile(r"\b(et al|e\.g|i\.e|eqs?|secs?|ch|figs?|cf|vs|s\.e|pp?|approx|App|St|No|resp|Alg)\.(?=\s)")


class Text(NamedTuple):
    line: int
    text: str


class Finding(NamedTuple):
    path: Path
    line: int
    what: str
    sentence: str


def sources(root: Path = ROOT) -> list[Path]:
    """Return the Python, YAML and Markdown files and the notebooks that git does not ignore, without symbolic links."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.yaml", "*.yml", "*.md", "*.ipynb"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return sorted(
        {root / name for name in listed if name and not (root / name).is_symlink() and (root / name).exists()}
    )


def texts(path: Path) -> list[Text]:
    """Return the paragraphs of a file, each with the line on which it begins. For a notebook, the line is the cell.

    Messages in the files of the tests are left out, because people see them only when a test fails.
    """
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return list(markdown(source))
    if path.suffix == ".ipynb":
        return list(notebook(json.loads(source)))
    if path.suffix in (".yaml", ".yml"):
        return comments([found for n, line in enumerate(source.split("\n"), 1) if (found := yaml_comment(n, line))])
    return list(python(source, messages=ROOT / "tests" not in path.parents))


class Comment(NamedTuple):
    line: int
    column: int
    text: str
    alone: bool  # whether nothing else is on the line of the comment


def yaml_comment(n: int, line: str) -> Comment | None:
    """Return the comment on a line, or None if the line has no comment."""
    found = re.search(r"(?:^|\s)#(.*)", line)
    return Comment(n, found.start(1), found.group(1), not line[: found.start()].strip()) if found else None


def markdown(source: str) -> Iterator[Text]:
    """Yield paragraphs, headings, list items, cells of tables and captions of pictures, without code."""
    without_code = re.sub(r"^```.*?^```", lambda code: "\n" * code.group().count("\n"), source, flags=re.M | re.S)
    block: list[Text] = []
    for n, line in enumerate(without_code.split("\n"), 1):
        line = line.strip()
        begins = re.match(r"[-*+] |\d+\. |#+ |!\[|\|", line)
        if block and (begins or not line or block[0].text.startswith(("#", "!["))):
            yield joined(block)
            block = []
        if line.startswith("|"):
            yield from (Text(n, cell.strip()) for cell in line.strip("|").split("|"))
        elif line:
            block.append(Text(n, line))
    if block:
        yield joined(block)


def notebook(content: dict) -> Iterator[Text]:
    """Yield the texts of all cells. One word replaces each formula. The lines count cells, from 1."""
    for number, cell in enumerate(content["cells"], 1):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            formula = r"\$\$.*?\$\$|\$[^$]+\$"
            found = markdown(re.sub(formula, lambda m: "formula" + "\n" * m.group().count("\n"), source, flags=re.S))
        else:
            found = python(source, messages=True)
        yield from (Text(number, text.text) for text in found)


def joined(block: list[Text]) -> Text:
    """Return the lines of a paragraph or list item as one text, without the bullet or number of the item."""
    text = re.sub(r"^([-*+]|\d+\.|#+) ", "", " ".join(line.text for line in block))
    return Text(block[0].line, text)


def python(source: str, messages: bool) -> Iterator[Text]:
    """Yield docstrings and comments. If ``messages`` is true, also yield strings of at least four words."""
    tree = ast.parse(source)
    parts: set[ast.AST] = set()  # strings that are not messages: docstrings and pieces of f-strings
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            constant = node.body[0].value
            parts.add(constant)
            yield from docstring(constant.value, constant.lineno)
        elif isinstance(node, ast.JoinedStr):
            parts |= set(ast.walk(node)) - {node}
    for node in ast.walk(tree) if messages else ():
        if isinstance(node, ast.Constant | ast.JoinedStr) and node not in parts:
            text = said(node)
            if len(words(text)) >= 4 and not re.search(r"\w\.\w+\(|^\s*<|\\", text):
                yield from (Text(node.lineno, line.strip()) for line in text.split("\n"))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = [
        Comment(*t.start, t.string[1:], not t.line[: t.start[1]].strip()) for t in tokens if t.type == tokenize.COMMENT
    ]
    yield from comments([c for c in found if not re.match(r"!| (noqa|type:|fmt:|pragma)", c.text)])


def said(node: ast.expr) -> str:
    """Return a string as it is printed. One word replaces each value of an f-string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "value" for part in node.values)
    return node.value if isinstance(node.value, str) else ""


def comments(found: list[Comment]) -> list[Text]:
    """Return the comments as texts. Whole-line comments on adjacent lines are one text."""
    texts: list[Text] = []
    last = None
    for comment in found:
        text = comment.text.strip()
        follows = last and comment.alone and last.alone and comment[:2] == (last.line + 1, last.column)
        if text and follows and texts:
            texts[-1] = Text(texts[-1].line, f"{texts[-1].text} {text}")
        elif text:
            texts.append(Text(comment.line, text))
        last = comment if text else None
    return texts


def docstring(text: str, begin: int) -> Iterator[Text]:
    """Yield paragraphs, list items, and entries of Args, Returns and Raises. Other indented lines are code."""
    first, *rest = text.split("\n")
    base = min((len(line) - len(line.lstrip()) for line in rest if line.strip()), default=0)
    block: list[Text] = []
    entries = False  # inside Args, Returns or Raises
    for n, line in enumerate([first.strip(), *(line[base:] for line in rest)], begin):
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        heading = re.fullmatch(r"(Args|Returns|Raises|Yields|Attributes|Examples?):", stripped)
        if stripped and not indent:
            entries = bool(heading) and not stripped.startswith("Example")
        code = not entries and (indent >= 4 or (indent >= 2 and re.search(r"\S {2,}\S", stripped)))
        begins = heading or re.match(r"[-*] |\d+\. ", stripped) or (entries and indent == 4)
        if block and (begins or code or not stripped):
            yield joined(block)
            block = []
        if entries and indent == 4:  # the name of the argument does not belong to the sentence
            stripped = re.sub(r"^`{0,2}\*{0,2}[\w., *`]+(\([^)]*\))?`{0,2}:\s", "", stripped)
        if stripped and not heading and not code:
            block.append(Text(n, stripped))
    if block:
        yield joined(block)


def words(sentence: str) -> list[str]:
    """Return the words of a sentence, without symbols of equations."""
    return re.findall(r"[A-Za-z][\w'/.-]*[A-Za-z]|\b[aAI]\b|\d[\d,.]*", plain(sentence))


def plain(text: str) -> str:
    """Return text with one word for each piece of code, role, address or link."""
    text = re.sub(r":\w+:`[^`]*`", "code", text)
    text = re.sub(r"``[^`]+``|`[^`]+`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"https?://\S+", "address", text)


def sentences(text: str) -> list[str]:
    """Split a paragraph at full stops, question marks and exclamation marks."""
    protected = ABBREVIATED.sub(r"\1\0", plain(text))
    return [part.replace("\0", ".").strip() for part in re.split(r"(?<=[.!?])[\"')]*\s+", protected) if part.strip()]


def findings(path: Path, read: list[Text] | None = None) -> tuple[int, list[Finding]]:
    """Return the number of sentences in a file, and the findings."""
    count, wrong = 0, []
    for line, text in texts(path) if read is None else read:
        for sentence in sentences(text):
            count += 1
            number = len(words(sentence))
            if number > LONGEST:
                wrong.append(Finding(path, line, f"{number} words", sentence))
            for pattern, instead in PRIVATE:
                for match in pattern.finditer(sentence):
                    wrong.append(Finding(path, line, f"{match.group()!r}: {instead}", sentence))
            if match := re.match(BEGINNINGS, sentence):
                wrong.append(Finding(path, line, f"begins with {match.group()!r}", sentence))
    return count, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders; all tracked files by default")
    parser.add_argument("--list", action="store_true", help="print each finding with its line")
    args = parser.parse_args()
    chosen = [path.resolve() for path in args.paths]
    total, long, private = 0, 0, 0
    for path in sources():
        if chosen and not any(path == p or p in path.parents for p in chosen):
            continue
        count, wrong = findings(path)
        lengthy = sum(finding.what.endswith(" words") for finding in wrong)
        total, long, private = total + count, long + lengthy, private + len(wrong) - lengthy
        if wrong:
            print(f"{path.relative_to(ROOT)}: {count} sentences, {lengthy} long, {len(wrong) - lengthy} private")
        for finding in wrong if args.list else []:
            print(f"  {finding.line}: {finding.what}: {finding.sentence}")
    print(f"{total:,} sentences; {long:,} over {LONGEST} words; {private:,} words to replace")
    sys.exit(bool(long or private))


if __name__ == "__main__":
    main()
