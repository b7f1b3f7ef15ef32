"""Readable answers to values that do not fit: each check names the key, the value and what is allowed."""

import math
from collections.abc import Callable, Sequence

from zoo.checks.errors import UserError


def check_whole(key: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key} must be a whole number of at least {least}, got {value!r}")


def check_positive(key: str, value: object) -> None:
    """Refuse what is no positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{key} must be a positive number, got {value!r}")


def check_not_negative(key: str, value: object) -> None:
    """Refuse what is no finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{key} must be a number of at least 0, got {value!r}")


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is none of ``choices``."""
    if value not in choices:
        raise UserError(f"{key} must be {', '.join(choices[:-1])} or {choices[-1]}, got {value!r}")


def check_flag(key: str, value: object) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise UserError(f"{key} must be true or false, got {value!r}")


def check_widths(key: str, value: object, example: Sequence[int]) -> None:
    """Refuse what is no list of whole numbers of at least 1, one per layer."""
    whole = isinstance(value, list | tuple) and all(type(n) is int and n >= 1 for n in value)
    if not whole or not value:
        raise UserError(f"{key} must be a list of whole numbers of at least 1, such as {list(example)}, got {value!r}")


def check_schedule(key: str, schedule: object, check_value: Callable[[str, object], None]) -> None:
    """Refuse what is neither a value that ``check_value(key, value)`` lets pass nor a list of [epoch, value] from 0 on.

    Raises:
        UserError: saying what is allowed.
    """
    if not isinstance(schedule, list | tuple):
        return check_value(key, schedule)
    pairs = all(isinstance(p, list | tuple) and len(p) == 2 and type(p[0]) is int for p in schedule)
    epochs = [p[0] for p in schedule] if pairs else []
    if not epochs or epochs[0] != 0 or epochs != sorted(set(epochs)):
        raise UserError(
            f"{key} must be one value, or a list of [epoch, value] with rising epochs from 0 on, such as "
            f"[[0, 1], [20, 5]]; got {schedule!r}"
        )
    for _, value in schedule:
        check_value(key, value)
    return None


def check_share(key: str, value: object) -> None:
    """Refuse what is no number of at least 0 and below 1."""
    check_not_negative(key, value)
    if isinstance(value, int | float) and value >= 1:
        raise UserError(f"{key} must be below 1, got {value!r}")
