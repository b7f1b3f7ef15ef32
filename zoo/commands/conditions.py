"""Conditions of samples, as users type them: ``-c y=3,guidance=0.5``."""

import json
import re

from zoo.checks.errors import UserError


def parse_conditions(text: str) -> dict[str, object]:
    """Return the text ``a=1,b=2`` as a dictionary."""
    found = [_condition(part) for part in re.split(r",(?=\w+=)", text)] if text else []
    if len(twice := [name for name, _ in found]) > len(set(twice)):
        raise UserError(f"each condition must be given once, got {text}")
    return dict(found)


def _condition(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"a condition must be written name=value, such as num_steps=100; got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        if value.isidentifier():
            return name, value
        raise UserError(f"a condition must be a number, a word, true, false, null or a list; got {text!r}") from None
