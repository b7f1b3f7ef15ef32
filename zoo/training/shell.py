"""What is printed so that it can be pasted into a shell: paths, overrides and whole commands."""

import re
import shlex
from pathlib import Path


def short(path: str | Path) -> str:
    """Return ``path`` relative to the working folder where it lies in it, so written that no command takes it for an
    option, nor zsh for the name of a program.
    """
    path = Path(path)
    text = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return f"./{text}" if text.startswith(("-", "=", "~")) else text


def pasted(*words: str | Path) -> str:
    """Return ``words``, of a command or one path alone, as sh, bash and zsh read them back; paths are shortened."""
    return shlex.join(short(word) if isinstance(word, Path) else word for word in words)


def override(key: str, value: str | Path) -> str:
    """Return ``key=value`` as Hydra reads it back, for any text or path; :func:`pasted` makes it a word of a shell."""
    text = short(value) if isinstance(value, Path) else value
    if re.fullmatch(r"[\w./-]*[/.][\w./-]*", text, re.ASCII) and not re.fullmatch(r"[\d.e+-]+", text):
        return f"{key}={text}"
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # ${...} would be an interpolation
    return f"{key}={quoted(literal)}"


def quoted(text: str) -> str:
    """Return ``text`` in quotes, as Hydra's grammar has them."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.double).with_quotes()
