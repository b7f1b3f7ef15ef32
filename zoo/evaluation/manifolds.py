"""Precision, recall, density and coverage of a set of fake features (nearest-neighbour estimates of manifolds).

The manifold of a set is the union of balls around its vectors. The ball of a vector x has as radius r_k(x) the distance
from x to its k-th nearest neighbour among the other vectors of the set. With N real vectors x and M fake vectors y:

    precision    fraction of the y that lie in the ball of some x
    recall       fraction of the x that lie in the ball of some y
    density      sum over the y of the number of balls of x that contain y, divided by k M
    coverage     fraction of the x whose ball contains some y

Precision and recall are those of Kynkaanniemi et al. 2019 (arXiv:1904.06991), with k = 3. Density and coverage are
those of Naeem et al. 2020 (arXiv:2002.09797), with k = 5. Precision and density measure quality. Recall and coverage measure
variety. Density and coverage use balls of real vectors only, so fake outliers do not change their balls. Density can
exceed 1. If both distributions are equal, the expected density is 1, and the expected coverage is

    1 - (N - 1) ... (N - k) / ((N + M - 1) ... (N + M - k))

All four depend on N and M. Compare only results from equal numbers of vectors. Balls are closed, so an exact copy of a
vector at the radius counts. The code of Naeem et al. has open balls; only copies make a difference.

Distances are computed in float64, in blocks of 500 rows.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.values import check_integer
from zoo.evaluation.estimates import Estimate
from zoo.evaluation.pairs import ROWS_AT_ONCE
from zoo.functional.noise import chunk_generator
from zoo.functional.precision import in_float64

ROUNDING = 1e-12  # bound on the rounding error of a squared distance, relative to the largest squared norm
PARTS = 10  # parts of both sets, for standard errors
SHUFFLES = 5  # random divisions into parts
LEAST_IN_PART = 4  # smallest number of vectors in a part, as a multiple of k


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[Estimate, Estimate]:
    """Return precision and recall of fake vectors (M, F) with respect to real vectors (N, F).

    The errors are those of :func:`standard_errors`.

    Args:
        real: features of real images, (N, F), with N above k.
        fake: features of fake images, (M, F), with M above k.
        k: number of the nearest neighbour that sets the radius of a ball.

    Raises:
        UserError: if k is below 1, a set has k or fewer vectors, or the sets have different numbers of features.
    """
    _check(real, fake, k, least_fake=k + 1)
    return _with_errors(_precision_recall, real, fake, k)


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[Estimate, Estimate]:
    """Return density and coverage of fake vectors (M, F) with respect to real vectors (N, F).

    The errors are those of :func:`standard_errors`.

    Args:
        real: features of real images, (N, F), with N above k.
        fake: features of fake images, (M, F), with M at least 1.
        k: number of the nearest neighbour that sets the radius of a ball.

    Raises:
        UserError: if k is below 1, there are k or fewer real vectors or no fake vectors, or the sets have different
            numbers of features.
    """
    _check(real, fake, k, least_fake=1)
    return _with_errors(_density_coverage, real, fake, k)


def _check(real: Tensor, fake: Tensor, k: int, least_fake: int) -> None:
    check_integer("k", k)
    for name, vectors, least in (("real", real, k + 1), ("fake", fake, least_fake)):
        if len(vectors) < least:
            raise UserError(f"the number of {name} images must be at least {least} for k = {k}, got {len(vectors)}")
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"both sets need the same number of features, got {real.shape[1]} and {fake.shape[1]}")


Statistic = Callable[[Tensor, Tensor, int], tuple[float, float]]


def _with_errors(statistic: Statistic, real: Tensor, fake: Tensor, k: int) -> tuple[Estimate, Estimate]:
    real, fake = in_float64(real), in_float64(fake)
    centre = real.mean(0)  # small numbers have small rounding errors
    real, fake = real - centre, fake - centre
    first, second = statistic(real, fake, k)
    errors = standard_errors(lambda a, b: statistic(a, b, k), real, fake, LEAST_IN_PART * k)
    return Estimate(first, errors[0]), Estimate(second, errors[1])


def _precision_recall(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    precision = balls(real, fake, k).around_points > 0
    recall = balls(fake, real, k).around_points > 0
    return in_float64(precision).mean().item(), in_float64(recall).mean().item()


def _density_coverage(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    found = balls(real, fake, k)
    density = in_float64(found.around_points).mean().item() / k
    return density, in_float64(found.points_in > 0).mean().item()


class Balls(NamedTuple):
    """Numbers of balls and points.

    Attributes:
        around_points: number of balls that contain each point, (M,).
        points_in: number of points in each ball, (N,).
    """

    around_points: Tensor
    points_in: Tensor


def balls(centres: Tensor, points: Tensor, k: int) -> Balls:
    """Return which points lie in the closed balls around centres, as counts.

    Args:
        centres: vectors, (N, F), float64. The radius is the distance to the k-th nearest other centre.
        points: vectors, (M, F), float64.
        k: number of the nearest neighbour.
    """
    slack = ROUNDING * max(_squared_norms(centres).max().item(), _squared_norms(points).max().item())
    radii = _squared_radii(centres, k) + slack
    around, inside = torch.zeros(len(points), dtype=torch.long, device=points.device), []
    for part, radius in zip(centres.split(ROWS_AT_ONCE), radii.split(ROWS_AT_ONCE), strict=True):
        contains = _squared_distances(part, points) <= radius[:, None]
        around += contains.sum(0)
        inside.append(contains.sum(1))
    return Balls(around, torch.cat(inside))


def _squared_radii(x: Tensor, k: int) -> Tensor:
    """Return the squared distance from each vector of ``x``, (N, F), to its k-th nearest other vector, (N,)."""
    radii = []
    for begin in range(0, len(x), ROWS_AT_ONCE):
        part = x[begin : begin + ROWS_AT_ONCE]
        squares = _squared_distances(part, x)
        squares[:, begin : begin + len(part)].fill_diagonal_(math.inf)  # a vector is not its own neighbour
        radii.append(squares.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)


def _squared_norms(x: Tensor) -> Tensor:
    return x.square().sum(1)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared Euclidean distances of all pairs, (N, M)."""
    return torch.addmm(_squared_norms(a)[:, None] + _squared_norms(b), a, b.T, alpha=-2)


def standard_errors(
    statistic: Callable[[Tensor, Tensor], tuple[float, ...]], real: Tensor, fake: Tensor, least: int, seed: int = 0
) -> list[float]:
    """Return the standard error of each value of a statistic of two sets, from disjoint parts of both sets.

    Both sets are divided at random into ten parts. Each pair of parts gives the statistic of a tenth of the data. The
    variance over the parts, divided by ten, estimates the variance of the statistic of all data. It is averaged over
    five divisions. The estimate assumes that the variance is inversely proportional to the number of vectors. The mean
    over the parts has another bias than the statistic of all data and is not used.

    The bootstrap is not valid here. It repeats vectors, and a repeated vector is its own nearest neighbour.

    Args:
        statistic: function of real vectors and fake vectors.
        real: vectors, (N, F).
        fake: vectors, (M, F).
        least: smallest number of vectors in a part. Small sets have fewer than ten parts. The errors are NaN if there
            is no second part.
        seed: seed of the divisions.
    """
    parts = min(PARTS, min(len(real), len(fake)) // least)
    if parts < 2:
        return [math.nan] * len(statistic(real, fake))
    variances = []
    for shuffle in range(SHUFFLES):
        generator = chunk_generator(seed, shuffle)
        real_parts, fake_parts = (
            x[torch.randperm(len(x), generator=generator).to(x.device)].tensor_split(parts) for x in (real, fake)
        )
        values = [statistic(a, b) for a, b in zip(real_parts, fake_parts, strict=True)]
        variances.append(torch.tensor(values, dtype=torch.float64).var(0) / parts)
    return torch.stack(variances).mean(0).sqrt().tolist()
