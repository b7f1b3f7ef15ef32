"""Pixels as models take them: numbers from 0 to 1."""

from torch import Tensor

from zoo.checks.errors import UserError


def check_pixels(x: Tensor) -> None:
    """Refuse pixels that are no numbers in [0, 1].

    Raises:
        UserError: naming one.
    """
    wrong = ~((x >= 0) & (x <= 1))  # also where x is not a number
    if wrong.any():
        raise UserError(f"pixels must be numbers from 0 to 1, got {x[wrong][0].item():g} ({int(wrong.sum())} such)")
