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
    """Return the fraction of true values in ``hits``, (N,), and its binomial standard error, sqrt(p (1 - p) / N)."""
    p = in_float64(hits).mean().item()
    return Estimate(p, math.sqrt(p * (1 - p) / len(hits)))


def with_errors(estimates: dict[str, Estimate]) -> dict[str, float]:
    """Return ``<name>`` and ``<name>_error`` for each estimate. An error that is NaN is left out."""
    metrics: dict[str, float] = {}
    for name, (value, error) in estimates.items():
        metrics |= {name: value} if math.isnan(error) else {name: value, f"{name}_error": error}
    return metrics
