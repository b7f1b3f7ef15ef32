"""Names that users type: wildcards, and suggestions for misspelt names."""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers treat it as True; importing typing would slow down ``zoo list``
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    Patterns = str | Sequence[str]


def matching(names: Iterable[str], patterns: Patterns) -> list[str]:
    """Return the names that match a pattern, or at least one of several patterns. Their order stays.

    Args:
        names: the names.
        patterns: a pattern or a list of patterns. In a pattern, ``*`` stands for any text, ``?`` for one character, and
            ``[ab]`` for one of the characters. Upper and lower case differ.

    Raises:
        UserError: if a pattern is not a string.
    """
    from collections.abc import Iterable
    from fnmatch import fnmatchcase

    from zoo.checks.errors import UserError

    several = not isinstance(patterns, str) and isinstance(patterns, Iterable)
    given = list(patterns) if several else [patterns]
    if not all(isinstance(pattern, str) for pattern in given):
        raise UserError(f"a pattern must be a string such as 'wgan*', or a list of strings; got {patterns!r}")
    return [name for name in names if any(fnmatchcase(name, str(pattern)) for pattern in given)]


def matching_cards(folder: Path, patterns: Patterns, *, model: Patterns, data: Patterns) -> list[str]:
    """Return the names of the checkpoints in ``folder``, sorted, whose name, model and data match the patterns."""
    found = matching(sorted(card.stem for card in folder.glob("*.json")), patterns)
    if model == data == "*":
        return found  # without reading cards
    import json

    cards = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in found}
    return [name for name in found if matching([cards[name]["model"]], model) and matching([cards[name]["data"]], data)]


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """Return the sentence `` Did you mean NAME?``, with a space before it. Return "" if no known name is similar.

    Names with the same upper and lower case are preferred.
    """
    from difflib import get_close_matches

    known = list(known)
    in_lower_case = {name.lower(): name for name in known}
    close = get_close_matches(text, known, n=1)
    close = close or [in_lower_case[found] for found in get_close_matches(text.lower(), in_lower_case, n=1)]
    return f" Did you mean {close[0]}?" if close else ""
