"""Progress of work that takes more than a few seconds: a bar on a terminal, log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm.auto import tqdm

log = logging.getLogger(__name__)

Step = TypeVar("Step")


def has_bars(stream=None) -> bool:
    """Return whether the program runs in a notebook, or ``stream`` is a terminal. Both can show progress bars.

    A terminal on which rich shows a bar has no place for another bar. If ``stream`` is None, it is standard error.
    """
    stream = sys.stderr if stream is None else stream
    return in_notebook() or (stream is not None and stream.isatty() and not held_by_rich(stream))


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook.

    A program that executes notebooks also imports ipykernel, but only the shell of a kernel has its settings.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def held_by_rich(stream: object) -> bool:
    """Return whether rich has replaced ``stream``, a standard stream, because it shows a bar on the terminal."""
    if "rich.file_proxy" not in sys.modules:
        return False
    from rich.file_proxy import FileProxy

    return isinstance(stream, FileProxy)


class Lines:
    """A timer for log lines about the progress of some work.

    The first line is due after ``first`` seconds. The interval between later lines is the larger of ``every``
    seconds and 1 % of the time since the work began.

    Args:
        first: seconds before the first line.
        every: smallest interval between later lines, in seconds.
        clock: monotonic clock in seconds. None selects ``time.monotonic``.
    """

    def __init__(self, first: float = 5, every: float = 30, clock: Callable[[], float] | None = None):
        self._every, self._clock = every, clock or time.monotonic
        self._began = self._clock()
        self._next = self._began + first

    def due(self) -> bool:
        """Return whether a line is due now. If so, schedule the next line."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + max(self._every, 0.01 * (now - self._began))
        return True

    def seconds(self) -> float:
        """Return the seconds since the work began."""
        return self._clock() - self._began


def duration(seconds: float) -> str:
    """Return a duration in words, such as ``1 second``, ``40 seconds``, ``3 minutes`` or ``2 hours 5 minutes``."""
    if seconds < 99.5:
        return counted(max(1, round(seconds)), "second")
    minutes = round(seconds / 60)
    if minutes < 100:
        return counted(minutes, "minute")
    if minutes < 48 * 60:
        rest = f" {counted(minutes % 60, 'minute')}" if minutes % 60 else ""
        return counted(minutes // 60, "hour") + rest
    return f"{counted(minutes // 1440, 'day')} {counted(minutes % 1440 // 60, 'hour')}"


def counted(n: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural, such as ``1 second`` or ``2 seconds``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def tracked(
    steps: Iterable[Step], what: str, unit: str = "step", *, total: int | None = None, show: bool = True
) -> Iterator[Step]:
    """Yield ``steps`` and show the progress if they take more than a few seconds.

    Args:
        steps: the steps of the work.
        what: name of the work in the bar or the log line.
        unit: name of a step, in the singular.
        total: number of steps. None uses ``len(steps)`` if ``steps`` has a length.
        show: whether to show the progress.
    """
    total = len(steps) if total is None and isinstance(steps, Sized) else total
    if not show:
        yield from steps
    elif has_bars():
        yield from tqdm(steps, desc=what, unit=f" {unit}s", total=total, delay=2, leave=False, dynamic_ncols=True)
    else:
        lines = Lines()
        for done, step in enumerate(steps):
            if done and lines.due():
                left = f" of {total:,}, about {duration(lines.seconds() / done * (total - done))} left" if total else ""
                log.info("%s: %s%s", what, f"{done:,}" if total else counted(done, unit), f"{left}")
            yield step
