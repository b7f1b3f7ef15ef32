"""Estimates with their standard errors."""

import math
from typing import NamedTuple

from torch import Tensor

from zoo.functional.precision import in_float64


class Estimate(NamedTuple):
    """An estimate and its standard error. The error is NaN if there are too few examples for it."""

    value: float
    error: float


def fraction(hits: Tensor) -> Estimate:
    """Return the fraction of true values in ``hits``, (N,), and its binomial standard error."""
    p = in_float64(hits).mean().item()
    return Estimate(p, binomial_error(p, len(hits)))


def binomial_error(p: float, n: int) -> float:
    """Return the standard error of a fraction ``p`` of ``n`` independent examples."""
    return math.sqrt(p * (1 - p) / n)


def jackknife_variance(without: Tensor) -> float:
    """Return the jackknife variance of a statistic over the examples of one set.

    On average, the jackknife does not underestimate the variance (Efron & Stein 1981). For a statistic of several
    independent sets, the variance is the sum over the sets.

    Args:
        without: statistic without each of the examples, (N,). A constant can be left out.
    """
    n = len(without)
    return float((n - 1) / n * (without - without.mean()).square().sum())


def with_errors(estimates: dict[str, Estimate]) -> dict[str, float]:
    """Return ``<name>`` and ``<name>_error`` for each estimate. An error that is NaN is left out."""
    metrics: dict[str, float] = {}
    for name, (value, error) in estimates.items():
        metrics |= {name: value} if math.isnan(error) else {name: value, f"{name}_error": error}
    return metrics
