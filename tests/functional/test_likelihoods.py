"""Tests of the likelihoods of images: probabilities of 256 grey values by enumeration, densities, draws and bounds."""

import math
from decimal import Decimal, getcontext

import pytest
import torch
from torch.distributions import Normal
from torch.func import grad, vmap
from torch.testing import assert_close

from zoo.functional.densities import grey_values, log_discretised_logistic
from zoo.functional.likelihoods import (
    DequantisedGaussian,
    DiscretisedLogistic,
    Gaussian,
    bits_per_dimension,
)

K = torch.arange(256.0) / 255
K64 = torch.arange(256, dtype=torch.float64) / 255


def exact_log_probability(k, location, log_scale):
    """Return log P(k) with 60 decimal digits, from the definition as a difference of two sigmoids."""
    getcontext().prec = 60
    scale = Decimal(log_scale).exp()

    def distribution(edge):  # sigmoid((edge - location) / scale)
        return 1 / (1 + (-(edge - Decimal(location)) / scale).exp())

    below = 0 if k == 0 else distribution((Decimal(k) - Decimal("0.5")) / 255)
    above = 1 if k == 255 else distribution((Decimal(k) + Decimal("0.5")) / 255)
    return float((above - below).ln())


def each(location, log_scale, pixels=K):
    """Return log P(k) of every grey value, (256,)."""
    tensors = (torch.tensor(float(a), dtype=pixels.dtype) for a in (location, log_scale))
    return log_discretised_logistic(pixels[:, None], *tensors)


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 2.0])
@pytest.mark.parametrize("location", [-0.5, 0.0, 0.3, 0.997, 4.0])
def test_a_discretised_logistic_is_a_distribution_over_256_grey_values(location, log_scale):
    """The probabilities sum to 1, also far in the tails, where each of them is tiny in float32."""
    assert_close(each(location, log_scale).exp().sum(), torch.tensor(1.0), rtol=0, atol=2e-4)
    assert_close(each(location, log_scale, K64).exp().sum().item(), 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("log_scale", [-9.0, -5.0, -1.5, 1.5])
@pytest.mark.parametrize("location", [-2.0, 0.25, 0.5, 1.5])
def test_a_discretised_logistic_equals_its_definition(location, log_scale):
    """The reference computes with 60 digits. In float32, pixels have a rounding error of 6e-8 / scale."""
    for k in (0, 1, 64, 127, 254, 255):
        exact = exact_log_probability(k, location, log_scale)
        found = each(location, log_scale, K64)[k].item()
        assert abs(found - exact) <= 1e-9 * max(1.0, abs(exact)), (k, found, exact)
        single = each(location, log_scale)[k].item()
        assert abs(single - exact) <= 2e-6 * max(1.0, abs(exact)) + 3e-7 / math.exp(log_scale), (k, single, exact)


def test_gradients_of_far_pixels_are_finite_and_point_to_the_pixel():
    """A difference of two sigmoids would be 0 here, with an infinite logarithm and a gradient that is NaN."""
    for k in (0, 100, 255):
        for location in (-50.0, 50.0):
            a = torch.tensor([location], requires_grad=True)
            s = torch.tensor(-6.0, requires_grad=True)
            value = log_discretised_logistic(K[k : k + 1], a, s)
            by_location, by_scale = torch.autograd.grad(value, (a, s))
            assert value.isfinite() and by_location.isfinite().all() and by_scale.isfinite()
            inside = 0 < k < 255
            toward = 1 if k / 255 > location else -1
            if inside or (k == 0) == (location > 0):  # an edge value also takes the whole tail
                assert by_location.item() * toward > 1 and by_scale > 1
            else:
                assert abs(by_location.item()) < 1e-6 and value.item() > -1e-6


def test_gradients_of_the_logistic_are_those_of_its_definition(generator):
    """The test compares with the difference of sigmoids in float64, at scales where the difference is accurate."""
    x = K64[torch.randint(256, (4, 20), generator=generator)]
    location = torch.rand(4, 20, generator=generator, dtype=torch.float64).requires_grad_()
    log_scale = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    below = torch.where(x == 0, 0.0, ((x - 0.5 / 255 - location) / log_scale.exp()).sigmoid())
    above = torch.where(x == 1, 1.0, ((x + 0.5 / 255 - location) / log_scale.exp()).sigmoid())
    theirs = (above - below).log().sum(-1)
    ours = log_discretised_logistic(x, location, log_scale)
    assert_close(ours, theirs)
    inputs = (location, log_scale)
    for a, b in zip(torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(theirs.sum(), inputs), strict=True):
        assert_close(a, b)
    batched = vmap(grad(lambda a: log_discretised_logistic(x[0], a, log_scale.detach())))(location.detach())
    assert batched.isfinite().all()


def test_pixels_of_256_grey_values_keep_their_value():
    assert torch.equal(grey_values(K), torch.arange(256.0))
    assert torch.equal(DiscretisedLogistic.observe(K, torch.rand(256)), torch.arange(256.0) / 255)
    for u in (torch.zeros(256), torch.full((256,), 1 - 2**-16)):
        y = DequantisedGaussian.observe(K, u)
        assert torch.equal(grey_values(y), torch.arange(256.0)) and y.max() <= 1
    inner = torch.full((256,), 0.5)
    assert_close(DequantisedGaussian.observe(K, inner), (torch.arange(256.0) + 0.5) / 256)


def test_draws_of_a_discretised_logistic_have_its_probabilities():
    """Evenly spaced noise gives the fraction P(k) of grey value k, up to one of the 100,000 draws."""
    n = 100_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for location, log_scale in ((0.02, -3.5), (0.4, -4.5), (1.1, -2.0)):
        scale = torch.tensor(log_scale, dtype=torch.float64)
        drawn = DiscretisedLogistic(torch.full((n,), location, dtype=torch.float64), scale).draw(u)
        found = (255 * drawn).round().long().bincount(minlength=256) / n
        assert_close(found, each(location, log_scale, K64).exp(), rtol=0, atol=1.5 / n, check_dtype=False)


def test_the_dequantised_density_bounds_the_probability_of_a_grey_image(generator):
    """P(k) is the integral of the density over the cube of k. Jensen's inequality bounds its logarithm.

    For one pixel, both are integrals over u, computed on 20,001 points. At a large variance, the density is nearly
    constant over the cube, so the bound is tight.
    """
    u = (torch.arange(20_001, dtype=torch.float64) + 0.5) / 20_001
    for mu, variance, gap in ((0.3, 1e-4, 1.0), (0.31, 1e-2, 1e-3), (0.5, 1.0, 1e-5)):
        likelihood = DequantisedGaussian(
            torch.full((len(u), 1, 1, 1), mu).double(), torch.tensor(variance).double().log()
        )
        for k in (70, 80):
            x = torch.full((len(u), 1, 1, 1), k / 255, dtype=torch.float64)
            log_p = likelihood.log_prob(likelihood.observe(x, u.view(-1, 1, 1, 1)))
            exact = Normal(mu, variance**0.5)
            edges = exact.cdf(torch.tensor([k / 256, (k + 1) / 256], dtype=torch.float64))
            assert_close(log_p.exp().mean(), edges[1] - edges[0], rtol=1e-6, atol=0)
            assert 0 <= (edges[1] - edges[0]).log() - log_p.mean() < gap


def test_the_density_of_a_dequantised_image_by_hand():
    mu, logvar = torch.rand(2, 3, 4, 5), torch.tensor(-2.0)
    y = torch.rand(2, 3, 4, 5)
    expected = Normal(mu, math.exp(-1.0)).log_prob(y).sum((1, 2, 3)) - 60 * math.log(256)
    assert_close(DequantisedGaussian(mu, logvar).log_prob(y), expected)
    assert_close(Gaussian(mu, logvar).log_prob(y), expected + 60 * math.log(256))
    assert_close(DequantisedGaussian.of(mu, logvar, 0.5).logvar, logvar)  # the floor is that of the plain Gaussian
    assert_close(DequantisedGaussian((K * 255 + 0.5) / 256, logvar).mean(), K)


def test_bits_per_dimension_count_all_channels():
    assert_close(bits_per_dimension(torch.tensor(3 * 8 * 8 * math.log(256)), (3, 8, 8)), torch.tensor(8.0))
