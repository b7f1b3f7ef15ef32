"""What changes over a run by a rule: learning rates, momenta, numbers of steps."""

import math

Schedule = float | list[list[float]]


def half_cosine(step: float, total: float, warmup: int = 0) -> float:
    """The share of a learning rate at optimiser step ``step``: 1/2 (1 + cos(pi step / total)), 0 from ``total`` on.

    A function, and not torch's CosineAnnealingLR, whose length comes back from a checkpoint: a finished run that is
    extended would climb the cosine again.

    Args:
        step: counted from 0.
        total: steps of the run; infinite for one without end, whose rate stays.
        warmup: steps over which the rate rises linearly, the first of them at 1 / warmup.
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def at_epoch(schedule: Schedule, epoch: int) -> float:
    """The value of a schedule at an epoch, counted from 0: a number, or ``[[0, a], [10, b]]``: a, and b from 10 on."""
    if not isinstance(schedule, list | tuple):
        return schedule
    return [value for first, value in schedule if first <= epoch][-1]
