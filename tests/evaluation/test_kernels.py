"""Tests of the kernel distance, against loops, an enumeration and repeated draws."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from zoo.checks.errors import UserError
from zoo.evaluation import pairs
from zoo.evaluation.kernels import kid


def kernel(x, y):
    """Return the polynomial kernel of two lists of numbers."""
    return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3


@pytest.mark.parametrize("rows_at_once", [1, 4, 500])
def test_the_kernel_distance_is_the_mean_over_all_pairs(rows_at_once, generator, monkeypatch):
    monkeypatch.setattr(pairs, "ROWS_AT_ONCE", rows_at_once)
    real, fake = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (9, 7))
    a, b = real.tolist(), fake.tolist()
    within = lambda x: sum(kernel(u, v) for u, v in product(x, x) if u is not v) / (len(x) * (len(x) - 1))  # noqa: E731
    between = sum(kernel(u, v) for u, v in product(a, b)) / (len(a) * len(b))
    assert_close(kid(real, fake).value, within(a) + within(b) - 2 * between)
    assert_close(kid(fake, real), kid(real, fake))


def test_the_kernel_distance_is_unbiased():
    """The mean over all possible draws of three real and two fake values, by enumeration, is exact.

    The distance of two distributions p and q on three values is (p - q)' K (p - q).
    """
    values = torch.tensor([[-1.0, 0.5], [2.0, 1.0], [0.0, -3.0]], dtype=torch.float64)
    p, q = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], dtype=torch.float64)
    K = torch.tensor([[kernel(x, y) for y in values.tolist()] for x in values.tolist()], dtype=torch.float64)
    for fake in (q, p):
        mean = 0.0
        for drawn in product(range(3), repeat=5):
            probability = p[list(drawn[:3])].prod() * fake[list(drawn[3:])].prod()
            mean += float(probability) * kid(values[list(drawn[:3])], values[list(drawn[3:])]).value
        assert_close(mean, float((p - fake) @ K @ (p - fake)), rtol=1e-12, atol=1e-12)


def test_the_kernel_distance_of_gaussians_in_closed_form(generator):
    """x is N(0, 1) and y is N(1, 1) on a line. With E y = 1, E y^2 = 2 and E y^3 = 4, the distance is 3 + 3 + 16 = 22.

    The kernel is 1 + 3 x y + 3 x^2 y^2 + x^3 y^3, and each power adds the squared difference of two moments. The mean
    over 100 pairs of sets is within 4.5 standard errors (fails once in 1.5e5), which are less than a tenth of it.
    """
    draw = lambda shift: torch.randn(300, 1, generator=generator, dtype=torch.float64) + shift  # noqa: E731
    values = torch.tensor([kid(draw(0.0), draw(1.0)).value for _ in range(100)])
    error = float(values.std()) / 10
    assert error < 2.2 and abs(float(values.mean()) - 22) < 4.5 * error


@pytest.mark.parametrize(("shift", "least", "most"), [(0.0, 0.9, 1.8), (0.5, 0.8, 1.2)])
def test_the_error_is_the_spread_over_repeated_draws(shift, least, most, generator):
    """The root mean square of 300 errors is near the standard deviation over the same 300 pairs of sets.

    The standard deviation has a relative error of 4 %, so each limit fails less than once in 1,000. For equal
    distributions, the jackknife overestimates the deviation by up to the square root of two.
    """
    draw = lambda shift: torch.randn(60, 4, generator=generator, dtype=torch.float64) + shift  # noqa: E731
    found = torch.tensor([kid(draw(0.0), draw(shift)) for _ in range(300)], dtype=torch.float64)
    ratio = found[:, 1].square().mean().sqrt() / found[:, 0].std()
    assert least < ratio < most


def test_a_set_of_one_image_is_refused():
    x = torch.ones(3, 2)
    assert kid(x, x).value == 0.0
    with pytest.raises(UserError, match="the number of fake images must be an integer of at least 2, got 1"):
        kid(x, x[:1])
