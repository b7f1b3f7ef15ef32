"""Quote paths, overrides and commands, so that users can paste them into a shell."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path


def zoo_command() -> list[str]:
    """Return the words that call the zoo: ``zoo``, or ``python -m zoo`` if the user typed that.

    If this program is another one and there is no command ``zoo``, return ``python -m zoo``.
    """
    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.absolute().parent.name == "zoo":
        return ["python", "-m", "zoo"]
    return ["zoo"] if started.stem == "zoo" or shutil.which("zoo") else ["python", "-m", "zoo"]


def resume_command(run: str | Path, *overrides: str) -> str:
    """Return the command that resumes the run of a folder or of a checkpoint file."""
    return pasted(*zoo_command(), "resume", Path(run), *overrides)


def training_command() -> list[str | Path]:
    """Return the words that start a training, as the user typed them in this program.

    They are ``python train.py`` with the path of train.py, ``python -m zoo train`` or ``zoo train``. Programs that are
    not part of the zoo get ``zoo train``.
    """
    started = Path(sys.argv[0]).absolute()
    if started.name == "train.py":
        return ["python", started]
    if started.name == "__main__.py" and started.parent.name == "zoo":
        return ["python", "-m", "zoo", "train"]
    return ["zoo", "train"]


def short(path: str | Path) -> str:
    """Return ``path``, relative to the working folder if it is inside.

    A path that begins with ``-``, ``=`` or ``~`` gets ``./`` in front. Without ``./``, it could be read as an option,
    as the name of a program (in zsh) or as the home folder.
    """
    path = Path(path)
    text = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return f"./{text}" if text.startswith(("-", "=", "~")) else text


def without_password(text: str) -> str:
    """Return ``text`` with ``***`` in place of the password of an address such as ``mysql://user:password@host``."""
    return re.sub(r"(://[^/@\s:]*:)[^/\s]+@", r"\1***@", text)


def shareable(text: str) -> str:
    """Return ``text`` for records that others read: without passwords, and with ``~`` in place of the home folder."""
    home = os.path.expanduser("~")
    text = without_password(text)
    return text if home in ("~", "/") else re.sub(rf"(?<![\w/.~-]){re.escape(home)}(?=/)", "~", text)


def pasted(*words: str | Path) -> str:
    """Return the words of a command, quoted for sh, bash and zsh. Paths are shortened with :func:`short`."""
    return shlex.join(short(word) if isinstance(word, Path) else word for word in words)


def override(key: str, value: str | Path) -> str:
    """Return ``key=value`` with the quotes that Hydra needs. Apply :func:`pasted` to the result for a shell."""
    text = short(value) if isinstance(value, Path) else value
    if re.fullmatch(r"[\w./-]*[/.][\w./-]*", text, re.ASCII) and not re.fullmatch(r"[\d.e+-]+", text):
        return f"{key}={text}"
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # Hydra would read ${...} as an interpolation
    return f"{key}={quoted(literal)}"


def quoted(text: str) -> str:
    """Return ``text`` in double quotes, escaped for Hydra's grammar."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.double).with_quotes()
