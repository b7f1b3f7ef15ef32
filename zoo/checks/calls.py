"""Decide whether a method checks its arguments, and whether a check may read values from a GPU."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class _Calls(threading.local):
    """State of one thread."""

    within = False  # whether a public method is running
    in_step = False  # whether this method is part of a training step or a loss


_calls = _Calls()


def from_outside() -> bool:
    """Return whether the user made this call. While a public method runs, the model makes the calls."""
    return not _calls.within


def reads_values(x: Tensor) -> bool:
    """Return whether a check is allowed to read the values of ``x``.

    A check always reads values on the CPU. It reads values on a GPU only outside training steps and losses.
    """
    return x.device.type == "cpu" or not _calls.in_step


@contextmanager
def called_by_the_model(in_step: bool = True) -> Iterator[None]:
    """Turn off argument checks of public methods within this context.

    Args:
        in_step: whether the context is a training step or a loss, in which no check reads values from a GPU.
    """
    before = _calls.within, _calls.in_step
    _calls.within, _calls.in_step = True, in_step
    try:
        yield
    finally:
        _calls.within, _calls.in_step = before
