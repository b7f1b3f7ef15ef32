"""Tests of variance and signal-to-noise ratio against closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.testing import assert_close

from zoo.ddpm import DDPM
from zoo.estimators import ControlVariate, GradientEstimator, GradientMoments, by_name, call_with, gradient_moments
from zoo.functional.latents import Bernoulli, Categorical, Gaussian
from zoo.functional.noise import chunk_generator
from zoo.score import Score
from zoo.vae import VAE

A, B, THETA = 2.0, 3.0, 0.5
MU = A * THETA + B


def noise(batch, generator):
    return {"eps": torch.randn((), generator=generator, dtype=torch.float64)}


def pathwise(params, batch, noise):
    return (A * params["theta"] + B + noise["eps"]) ** 2


def score_function(params, batch, noise):
    mu = A * params["theta"] + B
    z = (mu + noise["eps"]).detach()
    return z**2 * -0.5 * (z - mu) ** 2


def estimator(surrogate):
    return GradientEstimator("x", {"theta": torch.tensor(THETA, dtype=torch.float64)}, noise, surrogate)


@pytest.mark.parametrize(
    ("surrogate", "variance", "kurtosis"),
    [
        (pathwise, 4 * A**2, 3.0),
        (score_function, A**2 * (MU**4 + 14 * MU**2 + 15), 13.0),  # kurtosis over 2e7 draws: 12.8
    ],
)
def test_the_example_of_the_lecture_notes(surrogate, variance, kurtosis, generator):
    """The example of [Xu18a] and [Xu18b]: z ~ N(mu, 1), mu = a theta + b, f = z^2, a = 2, b = 3.

    The gradient by theta has the mean 2 a mu and a known variance V. The tolerance is 4.5 standard errors of n draws.
    The standard errors are sqrt(V / n) for the mean, and V sqrt((kurtosis - 1) / n) for the variance. A correct
    estimator fails once in 70,000 tests.
    """
    n = 200_000
    e = estimator(surrogate)
    stacked = {"eps": torch.randn(n, generator=generator, dtype=torch.float64)}
    g = vmap(grad(e.surrogate), in_dims=(None, None, 0))(e.params, None, stacked)["theta"]
    error = (variance / n) ** 0.5
    assert 4.5 * error < 0.05 * 2 * A * MU
    assert abs(g.mean() - 2 * A * MU) < 4.5 * error
    assert abs(g.var() / variance - 1) < 4.5 * ((kurtosis - 1) / n) ** 0.5 < 0.05


@pytest.mark.parametrize("surrogate", [pathwise, score_function])
def test_the_loop_over_draws_measures_what_stacked_noise_gives(surrogate):
    e = estimator(surrogate)
    moments, seconds = gradient_moments(e, None, range(100), seed=5)
    draws = [e.noise(None, chunk_generator(5, k))["eps"] for k in range(100)]
    g = vmap(grad(e.surrogate), in_dims=(None, None, 0))(e.params, None, {"eps": torch.stack(draws)})["theta"]
    assert seconds > 0
    assert_close(moments.mean["theta"], g.mean())
    measured = moments.statistics()["all"]
    assert_close(measured["variance"], g.var().item())
    assert_close(measured["snr"], ((g.mean() ** 2 - g.var() / 100) / g.var()).sqrt().item())


def test_moments_are_those_of_the_stacked_draws(generator):
    draws = [
        {"a.w": torch.randn(3, 4, generator=generator), "b": torch.randn(2, generator=generator)} for _ in range(9)
    ]
    moments = GradientMoments()
    for draw in draws:
        moments.update(draw)
    for group, names in {"all": ["a.w", "b"], "a": ["a.w"], "b": ["b"]}.items():
        g = torch.stack([torch.cat([d[n].flatten() for n in names]) for d in draws]).double()
        variance = g.var(0).sum().item()
        signal = g.mean(0).square().sum().item() - variance / 9
        assert_close(moments.statistics()[group]["variance"], variance)
        assert_close(moments.statistics()[group]["snr"], (max(0.0, signal) / variance) ** 0.5)


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["encoder.w", "encoder.b", "decoder.w"], ["all", "encoder", "decoder"]),
        (["net.down.0.w", "net.down.1.w", "net.up.0.w"], ["all", "down", "up"]),
        (["theta"], ["all", "theta"]),
    ],
)
def test_groups_are_the_first_level_that_differs(names, groups, generator):
    moments = GradientMoments()
    for _ in range(2):
        moments.update({name: torch.randn(2, generator=generator) for name in names})
    assert list(moments.statistics()) == groups


def test_moments_survive_a_large_mean(generator):
    """The draws have mean 1e8 and standard deviation 1. A difference of sums of squares would lose the variance."""
    moments = GradientMoments()
    values = torch.randn(1000, generator=generator, dtype=torch.float64)
    for v in values:
        moments.update({"x": 1e8 + v})
    assert_close(moments.statistics()["all"]["variance"], values.var().item(), rtol=1e-6, atol=0)


def test_the_ratio_does_not_floor_at_one_over_sqrt_n(generator):
    """For pure noise, the ratio without the bias correction is about 1 / sqrt(n). The corrected ratio is near 0."""
    moments = GradientMoments()
    for _ in range(256):
        moments.update({"x": torch.randn(1000, generator=generator)})
    # Noise alone reaches a ratio of 0.03 only if the signal is five standard deviations above 0.
    assert moments.statistics()["all"]["snr"] < 0.03 < 256**-0.5


def test_a_noiseless_gradient_has_an_infinite_ratio_and_one_draw_no_variance():
    moments = GradientMoments()
    moments.update({"x": torch.ones(2)})
    with pytest.raises(ValueError, match="at least two draws, got 1"):
        moments.statistics()
    moments.update({"x": torch.ones(2)})
    assert moments.statistics()["all"] == {"variance": 0.0, "signal": 2.0, "snr": float("inf")}


@pytest.mark.parametrize(
    "model", [lambda: VAE(latent_dim=3, hidden=[16]), lambda: DDPM(steps=50, widths=[16]), lambda: Score(widths=[16])]
)
def test_the_estimator_that_trains_is_the_gradient_of_the_loss(model, generator):
    """With equal noise, the first estimator of a model equals the gradient of ``backward`` in training."""
    torch.manual_seed(0)
    model = model()
    with torch.no_grad():  # some layers start at zero, which would hide errors
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = [torch.rand(6, 1, 28, 28, generator=generator), torch.zeros(6)]
    e = next(iter(model.gradient_estimators().values()))
    params = {name: p.detach() for name, p in e.params.items()}
    g = grad(e.surrogate)(params, batch, e.noise(batch, torch.Generator().manual_seed(9)))
    model.loss(batch, generator=torch.Generator().manual_seed(9))["loss"].backward()
    for name, p in model.named_parameters():
        assert_close(g[name], p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", [Gaussian, Bernoulli, Categorical])
def test_a_sampled_divergence_by_hand(family, generator):
    """The gradients of one fixed draw equal their formulas.

    The score function has the gradient (f + beta log(q / p)) grad log q. The pathwise gradient is the total derivative
    of f + beta log(q / p) with respect to the parameters.
    """
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    shapes = {Gaussian: [(2, 3)] * 2, Bernoulli: [(2, 3)], Categorical: [(2, 3, 4)]}[family]
    parameters = [normal(*shape).requires_grad_() for shape in shapes]
    q, beta = family(*parameters), 1.7
    f = lambda z: z.tanh().flatten(2).square().sum(-1) + 2  # noqa: E731
    noise = {"z": normal(5, *shapes[0]) if family is Gaussian else torch.rand(5, *shapes[0], generator=generator)}
    by_parameters = lambda t: torch.autograd.grad(t.sum(), parameters)  # noqa: E731

    value = by_name.surrogate("score_function+sampled_kl", f, q, noise, beta)
    z = q.draw(noise["z"]).detach()
    cost = (f(z) + beta * (q.log_probs(z).sum(-1) - q.log_prior(z))).detach()
    assert_close(value.detach(), cost)
    assert_close(by_parameters(value), by_parameters(cost * q.log_probs(z).sum(-1)))

    if family is Gaussian:
        value = by_name.surrogate("pathwise+sampled_kl", f, q, noise, beta)
        z, sigma = q.draw(noise["z"]).detach(), (parameters[1] / 2).exp().detach()
        slope = 2 * z.tanh() * (1 - z.tanh() ** 2) + beta * z  # log q = -(eps^2 + logvar) / 2 + constant
        by_logvar = slope * sigma * noise["z"] / 2 - beta / 2
        assert_close(by_parameters(value), (slope.sum(0), by_logvar.sum(0)))


@pytest.mark.parametrize("family", [Bernoulli, Categorical])
def test_a_control_variate_is_its_formula(family, generator):
    """The control variate is c(s) = eta f(sigma_tau(s)) + r(sigma_tau(s)). The test computes the network r by hand."""
    torch.manual_seed(0)
    shape = (4,) if family is Bernoulli else (2, 3)
    control = ControlVariate(0.7, math.prod(shape))
    control.eta.data.fill_(0.6)
    s = torch.randn(2, 3, *shape, generator=generator)
    soft = (s / 0.7).sigmoid() if family is Bernoulli else (s / 0.7).softmax(-1)
    f = lambda z: z.flatten(2).cumsum(-1).square().sum(-1)  # noqa: E731
    first, _, second = control.r
    r = torch.tanh(soft.flatten(2) @ first.weight.T + first.bias) @ second.weight.T + second.bias
    q = family(torch.zeros(3, *shape))
    assert_close(control(f, q, s), 0.6 * f(soft) + r.squeeze(-1))
    assert_close(ControlVariate(0.7)(f, q, s), f(soft))


def test_draws_are_keyed_by_seed_and_number():
    e = estimator(pathwise)
    whole = gradient_moments(e, None, range(4), seed=3)[0].mean["theta"]
    parts = [gradient_moments(e, None, [k], seed=3)[0].mean["theta"] for k in range(4)]
    assert_close(whole, torch.stack(parts).mean(0))
    assert len({p.item() for p in parts}) == 4
    assert gradient_moments(e, None, range(4), seed=4)[0].mean["theta"] != whole


def test_call_with_replaces_parameters_for_one_call():
    layer = nn.Linear(2, 1, bias=False)
    before = layer.weight.clone()
    params = {"weight": torch.tensor([[2.0, 3.0]], requires_grad=True)}
    out = call_with(layer, params, lambda x: layer(x).sum(), torch.tensor([[1.0, 10.0]]))
    assert out == 32
    assert_close(torch.autograd.grad(out, params["weight"])[0], torch.tensor([[1.0, 10.0]]))
    assert torch.equal(layer.weight, before) and layer.weight.grad is None
