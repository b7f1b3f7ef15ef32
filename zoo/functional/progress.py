"""What is shown of work that takes more than a few seconds: a bar on a terminal, lines in a file."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm.auto import tqdm

log = logging.getLogger(__name__)

Step = TypeVar("Step")


def has_bars(stream=None) -> bool:
    """Whether bars can be drawn on ``stream``, a terminal or a notebook; standard error if None."""
    stream = sys.stderr if stream is None else stream
    return "ipykernel" in sys.modules or (stream is not None and stream.isatty())


class Lines:
    """When the next line about the same work is due: soon, then every ``every`` seconds or each hundredth of the time.

    Args:
        first: seconds before the first line.
        every: seconds between later lines, at least.
        clock: seconds that never go back.
    """

    def __init__(self, first: float = 5, every: float = 30, clock: Callable[[], float] | None = None):
        self._every, self._clock = every, clock or time.monotonic
        self._began = self._clock()
        self._next = self._began + first

    def due(self) -> bool:
        """Whether a line is due now. If it is, the next one is due some time later."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + max(self._every, 0.01 * (now - self._began))
        return True

    def seconds(self) -> float:
        """Seconds since the work began."""
        return self._clock() - self._began


def duration(seconds: float) -> str:
    """Seconds in words, such as ``1 second``, ``40 seconds``, ``3 minutes`` or ``2 hours 5 minutes``."""
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
    """``1 second``, ``2 seconds``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def tracked(
    steps: Iterable[Step], what: str, unit: str = "step", *, total: int | None = None, show: bool = True
) -> Iterator[Step]:
    """Yield ``steps``, and show how far they are if they take more than a few seconds.

    Args:
        what: the work, for people.
        unit: what a step is, in the singular.
        total: number of steps; ``len(steps)`` if None, where there is such a thing.
        show: whether anything is shown.
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
