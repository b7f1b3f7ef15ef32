"""Averages over pairs of examples of two sets, with jackknife standard errors.

The energy distance and the squared maximum mean discrepancy (MMD) have the same form. With a function d of two
examples, X and X' from the first distribution, and Y and Y' from the second, both independent, they are

    2 E d(X, Y) - E d(X, X') - E d(Y, Y')

where d is the Euclidean distance, or minus a kernel. The estimates are U-statistics: they average over all pairs of two
different examples. They are unbiased, and can therefore be negative. The pairs are computed in blocks of 500 rows.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.evaluation.estimates import Estimate, jackknife_variance
from zoo.functional.precision import in_float64

ROWS_AT_ONCE = 500  # examples whose pairs with all others are in memory at once

PairFunction = Callable[[Tensor, Tensor], Tensor]  # (N, D), (M, D) -> (N, M)


def sums_between(a: Tensor, b: Tensor, function: PairFunction = torch.cdist) -> tuple[Tensor, Tensor]:
    """Return the sum of ``function`` over each row of ``a`` and all rows of ``b``, and the reverse, float64, CPU.

    Args:
        a: vectors, (N, D).
        b: vectors, (M, D).
        function: symmetric function of pairs, by default the Euclidean distance.
    """
    rows, columns = [], torch.zeros(len(b), dtype=torch.float64)
    for part in a.split(ROWS_AT_ONCE):
        values = in_float64(function(part, b))
        rows.append(values.sum(1).cpu())
        columns += values.sum(0).cpu()
    return torch.cat(rows), columns


def sums_within(a: Tensor, function: PairFunction = torch.cdist) -> Tensor:
    """Return the sum of ``function`` over each row of ``a``, (N, D), and the other rows, (N,), float64, on the CPU."""
    sums = torch.zeros(len(a), dtype=torch.float64)
    for begin in range(0, len(a), ROWS_AT_ONCE):
        part = a[begin : begin + ROWS_AT_ONCE]
        end = begin + len(part)
        values = in_float64(function(part, a[begin:]))  # pairs with earlier rows are counted already
        values[:, : len(part)].fill_diagonal_(0)  # a row is no pair with itself
        sums[begin:end] += values.sum(1).cpu()
        sums[end:] += values[:, len(part) :].sum(0).cpu()
    return sums


def two_sample_estimate(between: tuple[Tensor, Tensor], within_a: Tensor, within_b: Tensor) -> Estimate:
    """Return the estimate of 2 E d(X, Y) - E d(X, X') - E d(Y, Y') from sums over pairs.

    The error is the jackknife standard error over the examples of both sets. It is NaN if a set has fewer than three
    examples.

    Args:
        between: result of :func:`sums_between` for sets of N and M examples, (N,) and (M,).
        within_a: result of :func:`sums_within` for the first set, (N,), with N at least 2.
        within_b: result of :func:`sums_within` for the second set, (M,), with M at least 2.
    """
    n, m = len(within_a), len(within_b)
    total = between[0].sum()
    value = 2 * total / (n * m) - within_a.sum() / (n * (n - 1)) - within_b.sum() / (m * (m - 1))
    without_a = _without_each(between[0], within_a, m)
    without_b = _without_each(between[1], within_b, n)
    return Estimate(float(value), math.sqrt(jackknife_variance(without_a) + jackknife_variance(without_b)))


def _without_each(between: Tensor, within: Tensor, others: int) -> Tensor:
    """Return the estimate without each of the examples of one set, (N,), up to a constant.

    The constant is the term of the other set.

    Args:
        between: sum over the pairs of each example with the other set, (N,).
        within: sum over the pairs of each example with its own set, (N,).
        others: number of examples in the other set.
    """
    n = len(between)
    if n < 3:
        return between.new_full((n,), math.nan)
    return 2 * (between.sum() - between) / ((n - 1) * others) - (within.sum() - 2 * within) / ((n - 1) * (n - 2))
