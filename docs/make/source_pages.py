"""Pages of the site that show files of the repository, with an anchor ``#L12`` for line 12."""

from pathlib import Path

from links import relative
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename, guess_lexer
from pygments.util import ClassNotFound

from zoo.checks.errors import UserError

FOLDER = "source"


def place(path: str) -> str:
    """Return the page of a file, such as ``source/zoo/vae.py.md`` for ``zoo/vae.py``."""
    return f"{FOLDER}/{path}.md"


def page(root: Path, path: str, linked_by: dict[str, str]) -> str:
    """Return the Markdown page of a file of the repository.

    Args:
        root: the folder of the repository.
        path: the file, relative to ``root``.
        linked_by: the title of each page that links to the file, by its path in the site.

    Raises:
        UserError: if the file is not a text.
    """
    try:
        text = (root / path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file, so the site cannot show it. Link to another file.") from error
    back = "".join(f"    - [{title}]({relative(name, place(path))})\n" for name, title in linked_by.items())
    return (
        f"---\ntitle: {path}\nsearch:\n  exclude: true\nhide:\n  - navigation\n  - toc\n---\n\n# {path}\n\n"
        f'??? info "Pages that link to this file"\n\n{back}\n'
        f'<div class="highlight source"><pre><code>{lines(path, text)}</code></pre></div>\n'
    )


def lines(path: str, text: str) -> str:
    """Return the HTML of a text: one element for each line, with a link to itself and the coloured code."""
    try:
        lexer = get_lexer_for_filename(path, text)
    except ClassNotFound:
        lexer = guess_lexer(text)
    lexer.stripnl = lexer.ensurenl = False  # every line of the file stays, so that numbers agree
    coloured = highlight(text, lexer, HtmlFormatter(nowrap=True)).rstrip("\n").split("\n")
    return "\n".join(
        f'<span id="L{n}"><a href="#L{n}" data-line="{n}" tabindex="-1" aria-hidden="true"></a>{line}</span>'
        for n, line in enumerate(coloured, 1)
    )
