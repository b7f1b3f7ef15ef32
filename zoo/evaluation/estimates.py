"""Estimates with their standard errors. This module does not import torch, so that ``zoo report`` starts fast."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Estimate(NamedTuple):
    """An estimate and its standard error. The error is NaN if there are too few examples for it."""

    value: float
    error: float


def fraction(hits: "Tensor") -> Estimate:
    """Return the fraction of true values in ``hits``, (N,), and its binomial standard error."""
    p = int(hits.sum()) / len(hits)
    return Estimate(p, binomial_error(p, len(hits)))


def binomial_error(p: float, n: float) -> float:
    """Return the standard error of a fraction ``p`` of ``n`` independent examples. It is 0 for a fraction of 0 or 1."""
    return math.sqrt(p * (1 - p) / n)


def standard_error_of_mean(values: Sequence[float], sizes: Sequence[int] | None = None) -> float | None:
    """Return the standard error of the mean of independent values, or None for fewer than two values.

        sqrt( K / (K - 1) sum_i w_i^2 (m_i - m)^2 )

    The values m_i have the weights w_i and the mean m. Equal weights give the standard deviation divided by sqrt(K).

    Args:
        values: K values, such as means over batches.
        sizes: numbers of examples in the batches. The weights are their fractions of all examples. None gives equal
            weights.
    """
    k = len(values)
    if k < 2:
        return None
    sizes = sizes or [1] * k
    weights = [size / sum(sizes) for size in sizes]
    mean = math.fsum(w * value for w, value in zip(weights, values, strict=True))
    squares = math.fsum((w * (value - mean)) ** 2 for w, value in zip(weights, values, strict=True))
    return math.sqrt(k / (k - 1) * squares)


def jackknife_variance(without: "Tensor") -> float:
    """Return the jackknife variance of a statistic over the examples of one set.

    On average, the jackknife does not underestimate the variance (Efron & Stein 1981). For a statistic of several
    independent sets, the variance is the sum over the sets.

    Args:
        without: statistic without each of the examples, (N,). A constant can be left out.

    Returns:
        The variance, or NaN for a single example.
    """
    n = len(without)
    if n < 2:
        return math.nan
    return float((n - 1) / n * (without - without.mean()).square().sum())


def with_errors(estimates: dict[str, Estimate]) -> dict[str, float]:
    """Return ``<name>`` and ``<name>_error`` for each estimate. An error that is NaN is left out."""
    metrics: dict[str, float] = {}
    for name, (value, error) in estimates.items():
        metrics |= {name: value} if math.isnan(error) else {name: value, f"{name}_error": error}
    return metrics
