"""Schedules of learning rates, momenta and numbers of steps."""

import math

Schedule = float | list[list[float]]


def half_cosine(step: float, total: float, warmup: int = 0) -> float:
    """Return the factor of the learning rate at an optimiser step: 1/2 (1 + cos(pi step / total)).

    The factor is 0 from step ``total`` on.

    torch's CosineAnnealingLR restores its length from the checkpoint. If a finished run were extended, the learning
    rate would rise along the old cosine again. This function uses the new length of the run.

    Args:
        step: optimiser step, counted from 0.
        total: number of steps of the run. If it is infinite, the factor stays 1 after the warm-up.
        warmup: number of steps of a linear warm-up. The warm-up multiplies the factor by (step + 1) / warmup until this
            fraction is 1.
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def two_half_cosines(step: float, first: float, total: float) -> float:
    """Return the factor of the learning rate: half a cosine over ``first`` steps, then another over the other steps."""
    return half_cosine(step, first) if step < first else half_cosine(step - first, max(1, total - first))


def at_epoch(schedule: Schedule, epoch: int) -> float:
    """Return the value of a schedule at an epoch, counted from 0.

    A schedule is a number, or a list of [epoch, value]. For example, ``[[0, a], [10, b]]`` means a up to epoch 9,
    and b from epoch 10 on.
    """
    if not isinstance(schedule, list | tuple):
        return schedule
    return [value for first, value in schedule if first <= epoch][-1]
