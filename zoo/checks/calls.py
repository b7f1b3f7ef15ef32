"""Whether a model is called from outside or by itself, and whether values may be read back from its device."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class _Calls(threading.local):
    """Of one thread: whether a public method is running, and whether that is a step of training."""

    within = False
    in_step = False


_calls = _Calls()


def from_outside() -> bool:
    """Whether no public method of a model is running that has checked its arguments."""
    return not _calls.within


def reads_values(x: Tensor) -> bool:
    """Whether the values of ``x`` may be looked at: always on the CPU, and elsewhere outside training steps."""
    return x.device.type == "cpu" or not _calls.in_step


@contextmanager
def called_by_the_model(in_step: bool = True) -> Iterator[None]:
    """Within this, public methods check no arguments; in a step, no value is read back from a device either."""
    before = _calls.within, _calls.in_step
    _calls.within, _calls.in_step = True, in_step
    try:
        yield
    finally:
        _calls.within, _calls.in_step = before
