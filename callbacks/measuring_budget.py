"""A budget of time for measurements: a fixed fraction of the time of training."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from zoo.estimators.moments import clock


class MeasuringBudget:
    """Count the seconds of training and of measurements, and compute when the next measurement may begin.

    Args:
        fraction: largest fraction of the training time that measurements take. The training time excludes measurements.
    """

    def __init__(self, fraction: float):
        self.fraction = fraction
        self.spent = 0.0  # seconds of all measurements of the run
        self._began: float | None = None  # monotonic time at which training in this process began, seconds
        self._earlier = 0.0  # seconds of training and measurements before this process resumed the run
        self._first_step = 0  # first step of this process

    def begin(self, step: int) -> None:
        """Begin to count the time. ``step`` is the first step of this process."""
        self._began, self._first_step = time.monotonic(), step

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Context whose time counts as time of a measurement."""
        before = clock()
        try:
            yield
        finally:
            self.spent += clock() - before

    def total(self) -> float:
        """Return the seconds of training and measurements, in this process and in earlier processes of the run."""
        # Lightning's tuners save and restore the state before training begins.
        return self._earlier + (0.0 if self._began is None else time.monotonic() - self._began)

    def seconds_per_step(self, step: int) -> float:
        """Return the mean seconds of a step of this process. ``step`` is the number of the current step."""
        return max(1e-9, (self.total() - self._earlier) / max(1, step - self._first_step))

    def steps_until(self, cost: float, step: int) -> int:
        """Return the number of steps until the budget has ``cost`` seconds for a measurement. 0 means now."""
        missing = cost + self.spent - self.fraction * (self.total() - self.spent)
        return math.ceil(missing / self.fraction / self.seconds_per_step(step)) if missing > 0 else 0

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.spent, "trained": self.total()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.spent, self._earlier = state.get("seconds", 0.0), state.get("trained", 0.0)
