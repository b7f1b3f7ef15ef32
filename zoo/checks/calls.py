"""Decide whether a method checks its arguments, and whether a check may read the values of tensors."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor

Reads = Literal["everywhere", "cpu", "nowhere"]  # devices from which checks may read values


class _Calls(threading.local):
    """State of one thread."""

    within = False  # whether a public method is running
    reads: Reads = "everywhere"


_calls = _Calls()


def from_outside() -> bool:
    """Return whether the user made this call. While a public method runs, the model makes the calls."""
    return not _calls.within


def reads_values(x: Tensor) -> bool:
    """Return whether a check is allowed to read the values of ``x``. A read from a GPU makes the CPU wait.

    A training step never reads values, because they are checked before training. A loss reads values only on the CPU.
    """
    return _calls.reads == "everywhere" or (_calls.reads == "cpu" and x.device.type == "cpu")


@contextmanager
def called_by_the_model(reads: Reads = "nowhere") -> Iterator[None]:
    """Turn off argument checks of public methods within this context.

    Args:
        reads: devices from which the remaining checks read values: ``everywhere``, ``cpu`` or ``nowhere``.
    """
    before = _calls.within, _calls.reads
    _calls.within, _calls.reads = True, reads
    try:
        yield
    finally:
        _calls.within, _calls.reads = before
