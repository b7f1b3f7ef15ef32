"""Tests of precision, recall, density and coverage, against loops over all pairs, enumerations and closed forms."""

import math
from itertools import combinations

import pytest
import torch
from torch.testing import assert_close

from zoo.checks.errors import UserError
from zoo.evaluation import manifolds
from zoo.evaluation.manifolds import density_coverage, precision_recall


def radius(x, i, k):
    """Return the distance from ``x[i]`` to its k-th nearest neighbour among the other points."""
    return sorted(math.dist(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1]


def inside(point, x, k):
    """Return the number of closed balls around the points ``x`` that contain ``point``."""
    return sum(math.dist(point, x[i]) <= radius(x, i, k) for i in range(len(x)))


def loops(real, fake, k):
    """Return precision, recall, density and coverage, by loops over the definitions."""
    real, fake = real.tolist(), fake.tolist()
    precision = sum(inside(y, real, k) > 0 for y in fake) / len(fake)
    recall = sum(inside(x, fake, k) > 0 for x in real) / len(real)
    density = sum(inside(y, real, k) for y in fake) / (k * len(fake))
    covered = [any(math.dist(x, y) <= radius(real, i, k) for y in fake) for i, x in enumerate(real)]
    return precision, recall, density, sum(covered) / len(real)


def all_four(real, fake, k):
    return [found.value for found in (*precision_recall(real, fake, k), *density_coverage(real, fake, k))]


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("vectors_at_once", [4, 500])
def test_all_four_are_their_definitions(k, vectors_at_once, generator, monkeypatch):
    """The sets have different sizes, spreads and centres. Precision and recall differ, as do density and coverage."""
    monkeypatch.setattr(manifolds, "VECTORS_AT_ONCE", vectors_at_once)
    real = torch.randn(23, 3, generator=generator, dtype=torch.float64) + 7
    fake = 0.8 * torch.randn(17, 3, generator=generator, dtype=torch.float64) + 8.5
    expected = loops(real, fake, k)
    assert expected[0] != expected[1] and expected[2] != expected[3]
    assert_close(all_four(real, fake, k), list(expected), rtol=0, atol=1e-12)


def test_a_point_at_the_radius_is_inside_the_ball():
    """The coordinates are small integers, so distances are often equal to radii."""
    real = torch.tensor([[0.0, 0], [0, 1], [1, 1], [5, 5], [5, 6], [6, 6], [9, 0]])
    fake = torch.tensor([[1.0, 0], [5, 4], [8, 0], [3, 3], [9, 0], [20, 20]])
    for k in (1, 2, 3):
        assert_close(all_four(real, fake, k), list(loops(real, fake, k)), rtol=0, atol=1e-12)


def test_roles_of_real_and_fake(generator):
    """Precision of swapped sets is recall. Density and coverage use balls of real points only."""
    real, fake = (torch.randn(n, 3, generator=generator) + shift for n, shift in ((20, 0.0), (30, 1.0)))
    precision, recall, density, coverage = all_four(real, fake, 3)
    swapped = all_four(fake, real, 3)
    assert swapped[:2] == [recall, precision] and precision != recall
    assert density not in swapped and coverage not in swapped


@pytest.mark.parametrize("copies", [1, 7])
def test_equal_sets(copies, generator):
    """Each ball holds its centre and k neighbours, which gives density (k + 1) / k.

    A point with more than k copies has radius 0.
    """
    x = torch.randn(20, 40, generator=generator).repeat(copies, 1)
    k = 5
    assert_close(all_four(x, x, k), [1.0, 1.0, (k + 1 if copies == 1 else copies) / k, 1.0])


def test_sets_without_a_point_in_common():
    x = torch.arange(10.0)[:, None]
    assert all_four(x, x + 1000, 3) == [0.0, 0.0, 0.0, 0.0]


def test_one_mode_of_two(generator):
    """The fake points copy one of two distant modes. They are precise, and half of the real points are not reached."""
    k = 3
    one = torch.randn(15, 4, generator=generator)
    both = torch.cat([one, one + 1000])
    assert_close(all_four(both, one, k), [1.0, 0.5, (k + 1) / k, 0.5])
    # With swapped roles, half of the fake points are far from all real points.
    assert_close(all_four(one, both, k), [0.5, 1.0, (k + 1) / k / 2, 1.0])


@pytest.mark.parametrize(("n", "m", "k"), [(3, 4, 1), (4, 3, 2), (5, 4, 3)])
def test_expected_density_and_coverage_of_equal_distributions(n, m, k, generator):
    """The mean over all divisions of fixed points into real and fake points is exact.

    Under equal distributions, all divisions are equally probable. Expected coverage is that of Naeem et al. 2020.
    """
    points = torch.randn(n + m, 2, generator=generator, dtype=torch.float64)
    values = []
    for chosen in combinations(range(n + m), n):
        is_real = torch.zeros(n + m, dtype=torch.bool)
        is_real[list(chosen)] = True
        values.append([found.value for found in density_coverage(points[is_real], points[~is_real], k)])
    density, coverage = torch.tensor(values, dtype=torch.float64).mean(0).tolist()
    assert_close(density, 1.0)
    assert_close(coverage, 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1)))


def test_features_far_from_zero_keep_their_precision(generator):
    """The squared norms are 1e13 times as large as the squared distances."""
    real, fake = (torch.randn(30, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    assert_close(all_four(real + 3e6, fake + 3e6, 3), list(loops(real, fake, 3)), rtol=0, atol=1e-12)


def without(x, i):
    return torch.cat([x[:i], x[i + 1 :]])


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_errors_are_those_of_the_jackknife(k, scale, generator, monkeypatch):
    """The metrics are computed again without each of the vectors. One pair of vectors is equal."""
    monkeypatch.setattr(manifolds, "VECTORS_AT_ONCE", 4)
    real = torch.randn(13, 2, generator=generator, dtype=torch.float64)
    fake = scale * torch.randn(11, 2, generator=generator, dtype=torch.float64) + 0.7
    fake[0] = real[0]
    variances = torch.zeros(4, dtype=torch.float64)
    for n, sets in ((13, lambda i: (without(real, i), fake)), (11, lambda i: (real, without(fake, i)))):
        values = torch.tensor([loops(*sets(i), k) for i in range(n)], dtype=torch.float64)
        variances += (n - 1) * values.var(0, correction=0)
    errors = [found.error for found in (*precision_recall(real, fake, k), *density_coverage(real, fake, k))]
    assert_close(torch.tensor(errors, dtype=torch.float64), variances.sqrt(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_errors_are_not_below_the_spread_over_repeated_draws(shift, generator):
    """The root mean square of 100 errors is 0.8 to 2.4 times the standard deviation over the same 100 pairs of sets.

    In expectation, the ratio is at least 1 (Efron & Stein 1981). The standard deviation of 100 values has a relative
    error of 7 %. The lower limit fails once in 500 for a ratio of 1, and less often for the larger ratios found here.
    """
    draw = lambda n, shift: torch.randn(n, 3, generator=generator, dtype=torch.float64) + shift  # noqa: E731
    pairs = [(draw(100, 0.0), draw(80, shift)) for _ in range(100)]
    found = torch.tensor([(*precision_recall(*pair), *density_coverage(*pair)) for pair in pairs], dtype=torch.float64)
    ratio = found[..., 1].square().mean(0).sqrt() / found[..., 0].std(0)
    assert ((ratio > 0.8) & (ratio < 2.4)).all(), ratio


def test_small_sets(generator):
    """The balls of k + 1 vectors have no errors, and neither has one fake vector. Smaller sets are refused."""
    x = torch.randn(6, 3, generator=generator)
    for found in (*precision_recall(x[:4], x[:5]), *density_coverage(x, x[:1])):
        assert 0 <= found.value <= 6 / 5 and (math.isnan(found.error) or found.error >= 0)
    for sets, nan in (((x[:4], x), [True, False]), ((x, x[:4]), [False, True])):
        assert [math.isnan(found.error) for found in precision_recall(*sets)] == nan
    more = torch.randn(9, 3, generator=generator)
    for sets in ((x, more), (more, x[:1])):  # k + 1 real vectors, and one fake vector
        assert all(math.isnan(found.error) for found in density_coverage(*sets))
    with pytest.raises(UserError, match="the number of real images must be at least 4 for k = 3, got 3"):
        precision_recall(x[:3], x)
    with pytest.raises(UserError, match="the number of fake images must be at least 4 for k = 3, got 3"):
        precision_recall(x, x[:3])
    with pytest.raises(UserError, match="the number of real images must be at least 6 for k = 5, got 5"):
        density_coverage(x[:5], x)
    with pytest.raises(UserError, match="k must be an integer of at least 1, got 0"):
        density_coverage(x, x, 0)
    with pytest.raises(UserError, match="the same number of features, got 3 and 2"):
        precision_recall(x, x[:, :2])
