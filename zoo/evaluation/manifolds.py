"""Precision, recall, density and coverage of a set of fake features (nearest-neighbour estimates of manifolds).

The manifold of a set is the union of balls around its vectors. The ball of a vector x has as radius r_k(x) the distance
from x to its k-th nearest neighbour among the other vectors of the set. With N real vectors x and M fake vectors y:

    precision    fraction of the y that lie in the ball of some x
    recall       fraction of the x that lie in the ball of some y
    density      sum over the y of the number of balls of x that contain y, divided by k M
    coverage     fraction of the x whose ball contains some y

Precision and recall are those of Kynkäänniemi et al. 2019 (arXiv:1904.06991), with k = 3. Density and coverage are
those of Naeem et al. 2020 (arXiv:2002.09797), with k = 5. Precision and density measure quality. Recall and coverage
measure variety. Density and coverage use balls of real vectors only, so fake outliers do not change their balls.
Density can exceed 1. If both distributions are equal, the expected density is 1, and the expected coverage is

    1 - (N - 1) ... (N - k) / ((N + M - 1) ... (N + M - k))

All four depend on N and M. Compare only results from equal numbers of vectors. Balls are closed, so an exact copy of a
vector at the radius counts. The code of Naeem et al. has open balls; only copies make a difference.

The errors are jackknife standard errors over the vectors of both sets. Without one vector x, the ball of x is missing,
and the balls of vectors with x among their k nearest neighbours grow to the (k + 1)-th neighbour. So one pass over the
distances gives all N + M values of the jackknife. Two other methods are not valid. The bootstrap repeats vectors, and a
repeated vector is its own nearest neighbour. The variance over subsets is too small if single outliers with large balls
decide the result. On average, the jackknife does not underestimate the variance. In trials on Gaussians, the errors
were 1.1 to 2 times the standard deviation over repeated draws.

Distances are computed in float64, in blocks of 500 columns.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.values import check_integer
from zoo.evaluation.estimates import Estimate, jackknife_variance
from zoo.functional.precision import in_float64

ROUNDING = 1e-12  # bound on the rounding error of a squared distance, relative to the largest squared norm
PRECISION_NEIGHBOURS = 3  # k of precision and recall (Kynkäänniemi et al. 2019)
DENSITY_NEIGHBOURS = 5  # k of density and coverage (Naeem et al. 2020)
VECTORS_AT_ONCE = 500  # vectors whose distances to all others are in memory at once


def precision_recall(real: Tensor, fake: Tensor, k: int = PRECISION_NEIGHBOURS) -> tuple[Estimate, Estimate]:
    """Return precision and recall of fake vectors (M, F) with respect to real vectors (N, F).

    The error of precision is NaN if there are only k + 1 real vectors. The error of recall is NaN if there are only
    k + 1 fake vectors.

    Args:
        real: features of real images, (N, F), with N above k.
        fake: features of fake images, (M, F), with M above k.
        k: number of the nearest neighbour that sets the radius of a ball.

    Raises:
        UserError: if k is below 1, a set has k or fewer vectors, or the sets have different numbers of features.
    """
    _check(real, fake, k, least_fake=k + 1)
    real, fake = _centred(real, fake)
    return _covered_points(balls(real, fake, k)), _covered_points(balls(fake, real, k))


def density_coverage(real: Tensor, fake: Tensor, k: int = DENSITY_NEIGHBOURS) -> tuple[Estimate, Estimate]:
    """Return density and coverage of fake vectors (M, F) with respect to real vectors (N, F).

    The errors are NaN if there are only k + 1 real vectors or one fake vector.

    Args:
        real: features of real images, (N, F), with N above k.
        fake: features of fake images, (M, F), with M at least 1.
        k: number of the nearest neighbour that sets the radius of a ball.

    Raises:
        UserError: if k is below 1, there are k or fewer real vectors or no fake vectors, or the sets have different
            numbers of features.
    """
    _check(real, fake, k, least_fake=1)
    found = balls(*_centred(real, fake), k)
    return _density(found), _covered_balls(found)


def _check(real: Tensor, fake: Tensor, k: int, least_fake: int) -> None:
    check_integer("k", k)
    for name, vectors, least in (("real", real, k + 1), ("fake", fake, least_fake)):
        if len(vectors) < least:
            raise UserError(f"the number of {name} images must be at least {least} for k = {k}, got {len(vectors)}")
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"both sets need the same number of features, got {real.shape[1]} and {fake.shape[1]}")


def _centred(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets in float64, minus the mean of the real vectors. Small numbers have small rounding errors."""
    real, fake = in_float64(real), in_float64(fake)
    centre = real.mean(0)
    return real - centre, fake - centre


class Balls(NamedTuple):
    """What the balls around N centres contain of M points.

    Attributes:
        around: number of balls that contain each point, (M,).
        inside: number of points in each ball, (N,).
        nearest: index of the point that is nearest to each centre, (N,).
        neighbours: indices of the k nearest other centres of each centre, (N, k).
        grown: number of points in each ball with the radius of the (k + 1)-th neighbour, (N,).
        covered_without: number of points in any ball without each of the centres, (N,).
    """

    around: Tensor
    inside: Tensor
    nearest: Tensor
    neighbours: Tensor
    grown: Tensor
    covered_without: Tensor


def balls(centres: Tensor, points: Tensor, k: int) -> Balls:
    """Return what closed balls contain. The radius is the distance to the k-th nearest other centre.

    Args:
        centres: vectors, (N, F), float64.
        points: vectors, (M, F), float64.
        k: number of the nearest neighbour.
    """
    slack = ROUNDING * max(_squared_norms(centres).max().item(), _squared_norms(points).max().item())
    squared, neighbours = _nearest(centres, k + 1)
    radius, grown_radius = (squared[:, i, None] + slack for i in (k - 1, k))
    around, (inside, grown, covered_without, nearest) = [], torch.zeros_like(neighbours[:, 0]).repeat(4, 1)
    least = torch.full_like(squared[:, 0], math.inf)
    for begin in range(0, len(points), VECTORS_AT_ONCE):
        squares = _squared_distances(centres, points[begin : begin + VECTORS_AT_ONCE])
        contains, contains_grown = squares <= radius, squares <= grown_radius
        around.append(contains.sum(0))
        inside += contains.sum(1)
        grown += contains_grown.sum(1)
        # Without a centre, other balls cover a point, or balls that grow.
        others = around[-1] - contains.float() + _sum_of_grown(contains_grown.float(), neighbours[:, :k])
        covered_without += (others > 0).sum(1)
        closest = squares.min(1)
        nearest = torch.where(closest.values < least, closest.indices + begin, nearest)
        least = torch.minimum(least, closest.values)
    return Balls(torch.cat(around), inside, nearest, neighbours[:, :k], grown, covered_without)


def _nearest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the squared distances to the k nearest other vectors of ``x``, (N, F), and their indices, (N, k).

    Both increase with the distance. Without enough other vectors, the last distance is infinite.
    """
    squared, indices = [], []
    for begin in range(0, len(x), VECTORS_AT_ONCE):
        part = x[begin : begin + VECTORS_AT_ONCE]
        squares = _squared_distances(part, x)
        squares[:, begin : begin + len(part)].fill_diagonal_(math.inf)  # a vector is not its own neighbour
        found = squares.topk(k, dim=1, largest=False)
        squared.append(found.values)
        indices.append(found.indices)
    return torch.cat(squared), torch.cat(indices)


def _squared_norms(x: Tensor) -> Tensor:
    return x.square().sum(1)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared Euclidean distances of all pairs, (N, M)."""
    return torch.addmm(_squared_norms(a)[:, None] + _squared_norms(b), a, b.T, alpha=-2)


def _sum_of_grown(values: Tensor, neighbours: Tensor) -> Tensor:
    """Return, for each centre i, the sum of ``values`` over the balls that grow without i, in the shape of ``values``.

    Args:
        values: values of balls, (N, ...), float.
        neighbours: indices of the k nearest other centres of each centre, (N, k).
    """
    sums = torch.zeros_like(values)
    for column in neighbours.T:
        sums.index_add_(0, column, values)
    return sums


def _covered_points(found: Balls) -> Estimate:
    """Return the fraction of points in any ball: precision if the centres are real, and recall if they are fake."""
    covered, total = in_float64(found.around > 0), len(found.around)
    without_points = (covered.sum() - covered) / (total - 1)
    return _estimate(covered.mean(), in_float64(found.covered_without) / total, without_points, found)


def _density(found: Balls) -> Estimate:
    (inside, grown, around), k = map(in_float64, (found.inside, found.grown, found.around)), found.neighbours.shape[1]
    pairs, total = inside.sum(), len(around)
    without_centres = (pairs - inside + _sum_of_grown(grown - inside, found.neighbours)) / (k * total)
    return _estimate(pairs / (k * total), without_centres, (pairs - around) / (k * (total - 1)), found)


def _covered_balls(found: Balls) -> Estimate:
    """Return the coverage: the fraction of balls with any point."""
    hit, hit_grown, total = in_float64(found.inside > 0), in_float64(found.grown > 0), len(found.inside)
    without_centres = (hit.sum() - hit + _sum_of_grown(hit_grown - hit, found.neighbours)) / (total - 1)
    only = found.nearest[found.inside == 1].bincount(minlength=len(found.around))  # balls that hold only this point
    return _estimate(hit.mean(), without_centres, (hit.sum() - only) / total, found)


def _estimate(value: Tensor, without_centres: Tensor, without_points: Tensor, found: Balls) -> Estimate:
    """Return an estimate with its error, from the values without each of the centres, (N,), and points, (M,)."""
    centres, k = found.neighbours.shape
    if centres < k + 2:  # without a centre, too few are left
        return Estimate(float(value), math.nan)
    return Estimate(float(value), math.sqrt(jackknife_variance(without_centres) + jackknife_variance(without_points)))
