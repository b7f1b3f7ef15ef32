"""Whether a model is called from outside or by itself, and whether values may be read back from its device."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_calls = threading.local()


def from_outside() -> bool:
    """Whether no public method of a model is running that has checked its arguments."""
    return not getattr(_calls, "within", False)


def reads_values(x: Tensor) -> bool:
    """Whether the values of ``x`` may be looked at: always on the CPU, and elsewhere outside training steps."""
    return x.device.type == "cpu" or not getattr(_calls, "in_step", False)


@contextmanager
def called_by_the_model(in_step: bool = True) -> Iterator[None]:
    """Within this, public methods check no arguments; in a step, no value is read back from a device either."""
    before = getattr(_calls, "within", False), getattr(_calls, "in_step", False)
    _calls.within, _calls.in_step = True, in_step
    try:
        yield
    finally:
        _calls.within, _calls.in_step = before
