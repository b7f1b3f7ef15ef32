"""Tests of grey values and real numbers: initial scales, draws, and the way from images to states and back."""

import math

import pytest
import torch
from torch.testing import assert_close

from zoo.functional.gibbs import burned_in_states, restart_noise
from zoo.functional.likelihoods import INITIAL_VARIANCE, LIKELIHOODS
from zoo.functional.visible import BINARY, Gaussian
from zoo.rbm import RBM
from zoo.score import Score

CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("name", "log_scale", "variance"), [
    ("gaussian", math.log(0.01), 0.01),
    ("gaussian_dequantised", math.log(0.01), 0.01),
    ("discretised_logistic", math.log(0.05), (math.pi * 0.05) ** 2 / 3),
])  # fmt: skip
def test_draws_have_the_mean_and_the_variance_of_the_likelihood(name, log_scale, variance):
    """Means and variances of 40,000 draws are exact within 5 standard errors (false alarm once in 1e6).

    Rounding to grey values adds a variance of 1 / (12 255^2). The kurtosis of a logistic is 4.2.
    """
    kind, n = LIKELIHOODS[name], 40_000
    likelihood = kind.of(torch.full((n, 1, 1, 1), 0.5), torch.tensor(log_scale), 0.0)
    drawn = likelihood.draw(kind.noise(n, 1, 1, 1, generator=seeded(), device=CPU))
    assert abs(drawn.mean() - 0.5) < 5 * (variance / n) ** 0.5 + 1e-4
    assert abs(drawn.var() / variance - 1) < 5 * (3.2 / n) ** 0.5 + 1e-3


@pytest.mark.parametrize("name", ["gaussian", "gaussian_dequantised", "discretised_logistic"])
def test_every_learned_scale_begins_at_the_same_variance(name):
    kind = LIKELIHOODS[name]
    scale = math.exp(kind.initial)
    variance = (math.pi * scale) ** 2 / 3 if name == "discretised_logistic" else scale
    assert variance == pytest.approx(INITIAL_VARIANCE) == 0.05


def test_states_of_images_without_noise_are_the_images_again():
    """A grey value k is the middle of its interval, y = (k + 1/2) / 256."""
    units = Gaussian(torch.ones(256), torch.full((256,), 0.3), torch.full((256,), 0.2))
    x = torch.arange(256.0) / 255
    v = units.grey(x)
    assert_close(v, ((torch.arange(256.0) + 0.5) / 256 - 0.3) / 0.2)
    assert_close(units.pixels(v), x, rtol=0, atol=1e-6)


def test_random_states_surround_the_data():
    """Twice the deviation of standardised pixels. Mean and variance are exact within 5 standard errors."""
    units = Gaussian(torch.ones(4), torch.full((4,), 0.3), torch.full((4,), 0.2))
    v = units.random(10_000, 4, generator=seeded(), device=CPU)
    assert v.mean().abs() < 5 * 2 / 200 and abs(v.var() / 4 - 1) < 5 * (2 / 40_000) ** 0.5


def test_chains_restart_from_random_states_of_their_units():
    """Two in ten chains restart. 2,000 states have the spread of :meth:`random` within 5 standard errors."""
    how = {"generator": seeded(), "device": CPU}
    grey = restart_noise(10_000, 0.2, 4, visible=Gaussian(torch.ones(4), torch.zeros(4), torch.ones(4)), **how)["coins"]
    binary = restart_noise(10_000, 0.2, 4, visible=BINARY, **how)["coins"]
    assert grey.shape == binary.shape == (2000, 4)
    assert abs(grey.var() / 4 - 1) < 5 * (2 / 8000) ** 0.5
    assert set(binary.unique().tolist()) == {0, 1} and abs(binary.mean() - 0.5) < 5 * 0.5 / 8000**0.5


def test_burned_in_chains_of_gaussian_units_have_the_stationary_law():
    """50 independent pairs of units, each with P(h = 1) = sigmoid(c + W^2 / 2). 5,000 states, within 4.5 errors."""
    model = RBM(50, [50], "gaussian", centred=False)
    with torch.no_grad():
        model.W.copy_(2 * torch.eye(50))
        model.c.fill_(-4)
        h = burned_in_states(model.machine)
    p = 1 / (1 + math.exp(2))
    assert h.shape == (100, 50) and abs(h.mean() - p) < 4.5 * (p * (1 - p) / 5000) ** 0.5


def test_the_default_step_of_langevin_chains_averages_over_labels():
    """The score of class y is -(1 + 2 y) x. The step is 0.14 / E|s|^2 with the mean over both classes."""

    class Linear(Score):
        def forward(self, x, sigma=None, y=None):
            return -(1 + 2 * y)[:, None] * x

    model = Linear(shape=[20], hidden=[4], num_sigmas=0, objective="explicit", num_classes=2)
    assert model._default_step_size(1, False, 1.0) == pytest.approx(0.14 / 5, rel=0.1)
