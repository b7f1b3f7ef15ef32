"""Checks of hyperparameters and settings. Each error names the key, the value and the allowed values."""

import math
from collections.abc import Callable, Sequence

from zoo.checks.errors import UserError


def check_integer(key: str, value: object, least: int = 1) -> None:
    """Raise UserError unless ``value`` is an integer >= ``least``. Booleans are rejected."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key} must be an integer of at least {least}, got {value!r}")


def check_positive(key: str, value: object) -> None:
    """Raise UserError unless ``value`` is a positive, finite number. Booleans are rejected."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{key} must be a positive number, got {value!r}")


def check_not_negative(key: str, value: object) -> None:
    """Raise UserError unless ``value`` is a finite number >= 0. Booleans are rejected."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{key} must be a number of at least 0, got {value!r}")


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Raise UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{key} must be {', '.join(choices[:-1])} or {choices[-1]}, got {value!r}")


def check_flag(key: str, value: object) -> None:
    """Raise UserError unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{key} must be true or false, got {value!r}")


def check_widths(key: str, value: object, example: Sequence[int]) -> None:
    """Raise UserError unless ``value`` is a list of integers >= 1, one for each layer, such as ``example``."""
    whole = isinstance(value, list | tuple) and all(type(n) is int and n >= 1 for n in value)
    if not whole or not value:
        raise UserError(f"{key} must be a list of integers of at least 1, such as {list(example)}, got {value!r}")


def check_image_shape(key: str, value: object) -> None:
    """Raise UserError unless ``value`` is a list (C, H, W): the channels, the height and the width of an image."""
    whole = isinstance(value, list | tuple) and len(value) == 3 and all(type(n) is int and n >= 1 for n in value)
    if not whole:
        raise UserError(
            f"{key} must be the channels, the height and the width of an image, such as [3, 32, 32], got {value!r}"
        )


def check_schedule(key: str, schedule: object, check_value: Callable[[str, object], None]) -> None:
    """Check a schedule: one value for all epochs, or a list of [epoch, value] that begins at epoch 0.

    Args:
        key: name of the setting in error messages.
        schedule: the schedule.
        check_value: function that is called as ``check_value(key, value)`` for each value. It raises UserError if the
            value is not allowed.

    Raises:
        UserError: if the schedule has neither form, or contains a value that is not allowed.
    """
    if not isinstance(schedule, list | tuple):
        return check_value(key, schedule)
    pairs = all(isinstance(p, list | tuple) and len(p) == 2 and type(p[0]) is int for p in schedule)
    epochs = [p[0] for p in schedule] if pairs else []
    if not epochs or epochs[0] != 0 or epochs != sorted(set(epochs)):
        raise UserError(
            f"{key} must be one value, or a list of [epoch, value] with epochs that rise from 0, such as "
            f"[[0, 1], [20, 5]]; got {schedule!r}"
        )
    for _, value in schedule:
        check_value(key, value)
    return None


def check_fraction(key: str, value: object) -> None:
    """Raise UserError unless ``value`` is a number with 0 <= ``value`` < 1."""
    check_not_negative(key, value)
    if isinstance(value, int | float) and value >= 1:
        raise UserError(f"{key} must be below 1, got {value!r}")
