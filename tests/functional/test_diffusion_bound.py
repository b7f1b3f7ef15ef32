"""Tests of the variational bound: exact likelihoods of Gaussian data, and a comparison of its two forms."""

import math

import numpy as np
import pytest
import torch
from helpers import exact_x0
from scipy.stats import norm
from torch.testing import assert_close

from zoo.functional.diffusion import at, cosine_betas, linear_betas, make_chain, q_sample
from zoo.functional.diffusion_bound import (
    denoising_term,
    joint_chain,
    joint_draw,
    log_discretised_normal,
    prior_kl,
    reverse_variance,
    single_chain,
    single_draw,
    terms,
    trajectory,
)

F64 = torch.float64
FALSE_ALARM = 4.5  # standard errors, exceeded once in 150,000 seeds


def log_p_of_the_chain(x0, x0_factor, chain, variance):
    """Return log p(x_0), (B,), for x0, (B, D). With x0_hat = x0_factor[t] x_t, every x_t is Gaussian."""
    sigma2, v = reverse_variance(chain, variance), torch.ones((), dtype=F64)
    for t in reversed(range(len(chain.betas))):
        beta, abar_prev, rest = chain.betas[t], chain.abar_prev[t], chain.one_minus_abar[t]
        a = abar_prev.sqrt() * beta / rest * x0_factor[t] + (1 - beta).sqrt() * (1 - abar_prev) / rest
        v = a**2 * v + sigma2[t]
    return -0.5 * (x0.square() / v + (2 * math.pi * v).log()).sum(1)


def linear_model(factor):
    return lambda xt, t: at(factor, t, xt) * xt


def exact_factor(chain, s2=1.0):
    return chain.abar.sqrt() * s2 / (chain.abar * s2 + chain.one_minus_abar)


@pytest.mark.parametrize("betas", [linear_betas(40), cosine_betas(40)], ids=["linear", "cosine"])
def test_the_bound_is_the_likelihood_on_every_trajectory_of_normal_data(betas, generator):
    """For N(0, I) data, the exact prediction and variance beta_t give the exact reverse chain.

    With a continuous decoder, p(x_{0:T}) = q(x_{1:T} | x_0) N(x_0; 0, I). Under p and q, x_T is N(0, I).
    """
    chain = make_chain(betas)
    x0 = 3 * torch.randn(20, 3, generator=generator, dtype=F64)
    eps = torch.randn(20, 40, 3, generator=generator, dtype=F64)
    bound = joint_chain(x0, eps, exact_x0(chain, 1.0), chain, "beta", discrete=False)
    log_p = -0.5 * (x0.square() + math.log(2 * math.pi)).sum(1)
    assert_close(-bound, log_p)
    # The joint form is exact on every trajectory. The single form varies between trajectories.
    single = single_chain(x0, eps, exact_x0(chain, 1.0), chain, "beta", discrete=False)
    assert (-single - log_p).abs().mean() > 0.1


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("form", ["single_chain", "joint_chain", "single_draw", "joint_draw"])
def test_every_form_has_the_same_expectation(form, variance, generator):
    """The chain has a wrong linear prediction. Its bound is an expectation of a quadratic function of Gaussians.

    The test computes the bound as the sum of all L_t, by quadrature over x_t ~ q(x_t | x_0) in each dimension.
    """
    T = 12
    chain = make_chain(cosine_betas(T))
    factor = 0.8 * exact_factor(chain, 0.5)
    model = linear_model(factor)
    x0 = torch.tensor([[0.7, -0.2]], dtype=F64)
    exact = prior_kl(x0, chain)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(6))
    weights = weights / weights.sum()
    for t in range(T):
        tt = torch.full((6,), t)
        for d in range(2):
            x = x0[:, d : d + 1].expand(6, 1)
            xt = q_sample(x, tt, nodes[:, None], chain)
            exact = exact + (weights * denoising_term(x, xt, tt, model(xt, tt), chain, variance, False)).sum()

    n = 1_000_000 if form == "joint_draw" else 200_000
    many = x0.expand(n, 2)
    settings = (model, chain, variance, False)
    if form.endswith("chain"):
        eps = torch.randn(n, T, 2, generator=generator, dtype=F64)
        draws = (single_chain if form == "single_chain" else joint_chain)(many, eps, *settings)
    else:
        t = torch.randint(T, (n,), generator=generator)
        shape = (n, 2) if form == "single_draw" else (n, 5, 2)
        eps = torch.randn(*shape, generator=generator, dtype=F64)
        draws = (single_draw if form == "single_draw" else joint_draw)(many, t, eps, *settings)
    error = draws.std() / n**0.5
    assert FALSE_ALARM * error < 0.05 * exact.abs()  # a sample mean that is wrong by 5 % fails the next line
    assert abs(draws.mean() - exact) < FALSE_ALARM * error
    # The result is a bound on the exact likelihood of this chain.
    assert exact > -log_p_of_the_chain(x0, factor, chain, variance)


@pytest.mark.equation("ddpm", "-log p(x_0)")
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_terms_bound_the_exact_likelihood_of_one_pixel(variance):
    """The image is one pixel, T is 3, and x0_hat = tanh(x_t) is not linear.

    The exact log p(x_0) comes from sums over a fine grid of x_1, x_2 and x_3. The probabilities of the 256 grey values
    sum to one. The expected terms come from quadrature. Their sum equals the joint form, also computed on the grid, and
    is at least -log p(x_0).
    """
    chain = make_chain(torch.tensor([0.3, 0.4, 0.5], dtype=F64))
    beta, abar = chain.betas.numpy(), np.cumprod(1 - chain.betas.numpy())
    before = np.array([1.0, *abar[:-1]])
    posterior = beta * (1 - before) / (1 - abar)
    sd = np.sqrt(beta if variance == "beta" else np.array([posterior[1], *posterior[1:]]))
    grid = np.linspace(-7, 7, 701)
    step = grid[1] - grid[0]

    def mean(t, xt):
        """Return the mean of p(x_{t-1} | x_t): eq. 7 with x_0 = tanh(x_t)."""
        share = np.sqrt(1 - beta[t]) * (1 - before[t]) * xt
        return (np.sqrt(before[t]) * beta[t] * np.tanh(xt) + share) / (1 - abar[t])

    back = {t: norm.logpdf(grid[None], mean(t, grid)[:, None], sd[t]) for t in (1, 2)}  # rows x_t, columns x_{t-1}
    there = {t: norm.logpdf(grid[None], np.sqrt(1 - beta[t]) * grid[:, None], np.sqrt(beta[t])) for t in (1, 2)}
    p = norm.pdf(grid) * step
    for t in (2, 1):
        p = p @ np.exp(back[t]) * step  # the masses of x_2, then of x_1
    grey = np.arange(256) / 127.5 - 1
    edges = np.concatenate([[-np.inf], (grey[1:] + grey[:-1]) / 2, [np.inf]])
    mass = np.diff(norm.cdf((edges[None] - mean(0, grid)[:, None]) / sd[0]), axis=1)  # rows x_1, columns grey values
    assert_close((p @ mass).sum(), 1.0, rtol=1e-9, atol=0)

    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    for k in (0, 100, 131, 255):
        eps = torch.from_numpy(nodes)[:, None]
        x0 = torch.full((100, 1), grey[k], dtype=F64)
        found = terms(x0, lambda eps=eps: eps, lambda xt, t: xt.tanh(), chain, variance).numpy()
        bound = (found @ (weights / weights.sum())).sum()
        q = [norm.pdf(grid, np.sqrt(a) * grey[k], np.sqrt(1 - a)) * step for a in abar]  # masses of x_1, x_2, x_3
        joint = -(q[0] * np.log(np.maximum(mass[:, k], 1e-300))).sum() - (q[2] * norm.logpdf(grid)).sum()
        joint += (q[0] * norm.logpdf(grid, np.sqrt(1 - beta[0]) * grey[k], np.sqrt(beta[0]))).sum()
        for t in (1, 2):
            pairs = q[t - 1][:, None] * np.exp(there[t]) * step  # rows x_{t-1}, columns x_t
            joint += (pairs * (there[t] - back[t].T)).sum()
        assert_close(bound, joint, rtol=1e-5, atol=0)
        assert bound > -np.log(p @ mass[:, k]) + 0.01


@pytest.mark.parametrize("t", [0, 1, 2, 3])
def test_the_joint_draw_by_hand(t, generator):
    """The chain has one dimension, x0_hat = x_t and abar_T = 0.81.

    x_T is far from pure noise. A step number that is wrong by one therefore changes the prior term.
    """
    chain = make_chain(torch.full((4,), 0.05, dtype=F64))
    x0, eps = 0.7, torch.randn(5, generator=generator, dtype=F64).tolist()
    log_n = lambda x, mu, var: -0.5 * ((x - mu) ** 2 / var + math.log(2 * math.pi * var))  # noqa: E731
    step = lambda x, e: 0.95**0.5 * x + 0.05**0.5 * e  # noqa: E731
    jump = lambda steps, e: 0.95 ** (steps / 2) * x0 + (1 - 0.95**steps) ** 0.5 * e  # noqa: E731
    before = x0 if t < 2 else jump(t - 1, eps[0])
    previous = x0 if t < 1 else step(before, eps[1])
    xt = step(previous, eps[2])
    rest_before, rest = 1 - 0.95**t, 1 - 0.95 ** (t + 1)
    mu = (0.95 ** (t / 2) * 0.05 + 0.95**0.5 * rest_before) / rest * xt
    term = -log_n(previous, mu, 0.05) + (log_n(previous, 0.95**0.5 * before, 0.05) if t else 0)
    x_before_last = jump(3, eps[3])
    x_last = step(x_before_last, eps[4])
    prior = log_n(x_last, 0.95**0.5 * x_before_last, 0.05) - log_n(x_last, 0, 1)
    many = (torch.tensor([[x0]], dtype=F64), torch.tensor([t]), torch.tensor(eps, dtype=F64).view(1, 5, 1))
    assert_close(joint_draw(*many, lambda xt, t: xt, chain, "beta", False).item(), 4 * term + prior)


@pytest.mark.parametrize("t", [1, 10, 29])
def test_one_step_at_a_time_the_single_form_varies_less(t, generator):
    """At each t > 0 the two forms have equal expected gradients, and the single form has less variance (Rao-Blackwell).

    The gradient is with respect to a factor of the prediction. The means agree within 4.5 standard errors. The variance
    of the joint form is larger by more than 5 %.
    """
    chain, n = make_chain(linear_betas(30)), 100_000
    x0 = torch.tensor([[0.7, -0.2, 1.1, -1.6]], dtype=F64).expand(n, 4)
    steps, base, found = torch.full((n,), t), exact_factor(chain, 0.5), []
    for function, shape in ((single_draw, (n, 4)), (joint_draw, (n, 5, 4))):
        scale = torch.ones(n, 1, dtype=F64, requires_grad=True)
        eps = torch.randn(*shape, generator=generator, dtype=F64)
        model = lambda xt, t, scale=scale: scale * at(base, t, xt) * xt  # noqa: E731
        value = function(x0, steps, eps, model, chain, "beta", False).sum()
        found.append(torch.autograd.grad(value, scale)[0])
    single, joint = found
    assert abs(single.mean() - joint.mean()) < FALSE_ALARM * ((single.var() + joint.var()) / n) ** 0.5
    assert joint.var() > 1.05 * single.var()


def test_trajectories_have_the_marginals_of_q_sample(generator):
    """The one-step kernels give the mean and variance of x_t at three steps, within 4.5 standard errors."""
    chain, n = make_chain(linear_betas(25)), 100_000
    x0 = torch.full((n, 1), 1.5, dtype=F64)
    path = trajectory(x0, torch.randn(n, 25, 1, generator=generator, dtype=F64), chain)
    assert len(path) == 25
    for t in (0, 10, 24):
        variance = chain.one_minus_abar[t]
        assert abs(path[t].mean() - 1.5 * chain.abar[t].sqrt()) < FALSE_ALARM * (variance / n) ** 0.5
        assert_close(path[t].var(), variance, rtol=FALSE_ALARM * (2 / n) ** 0.5, atol=0)


@pytest.mark.parametrize("sigma", [0.003, 0.05, 1.0])
def test_the_discretised_normal_is_a_distribution_over_256_grey_values(sigma):
    grey = torch.arange(256, dtype=F64) / 127.5 - 1
    for mu in (-1.0, -0.37, 0.999):
        variance = torch.full((256, 1), sigma**2, dtype=F64)
        log_mass = log_discretised_normal(grey[:, None], torch.full((256, 1), mu, dtype=F64), variance)
        assert_close(log_mass.logsumexp(0).item(), 0.0, rtol=0, atol=1e-9)
        # The difference of two values of norm.cdf has a rounding error near 1e-16. ``atol`` allows this error.
        for k in (0, 40, 80, 254, 255):
            upper = 1.0 if k == 255 else norm.cdf((grey[k].item() + 1 / 255 - mu) / sigma)
            lower = 0.0 if k == 0 else norm.cdf((grey[k].item() - 1 / 255 - mu) / sigma)
            assert_close(log_mass[k].exp().item(), upper - lower, rtol=1e-6, atol=1e-14)


def test_the_discretised_normal_keeps_its_digits_far_out_and_its_gradient():
    """In float32, 100 standard deviations from the mean, the log mass and its gradient are finite.

    The log mass of a bin is close to log Phi at one edge of the bin. This edge is the one nearest to the mean.
    """
    x, sigma = torch.tensor([[-1.0], [-1 + 20 / 127.5], [0.2 / 127.5], [1.0]]), 0.02
    mu = torch.tensor([[1.0], [1.0], [0.0], [-1.0]], requires_grad=True)
    log_mass = log_discretised_normal(x, mu, torch.full_like(x, sigma**2))
    (slope,) = torch.autograd.grad(log_mass.sum(), mu)
    assert log_mass.isfinite().all() and slope.isfinite().all() and log_mass.max() <= 0
    edge = (x[1] + 1 / 255 - 1) / sigma  # the edge nearest to the mean, in standard deviations
    assert_close(log_mass[1], torch.special.log_ndtr(edge)[0], rtol=1e-3, atol=0)


def test_terms_of_images_are_finite_with_their_gradient(generator):
    """The batch contains every t. The computation is in float32. The prediction x0_hat = -x0 is far from the image."""
    chain = make_chain(cosine_betas(60)).to(torch.float32)
    t = torch.arange(60)
    x0 = torch.randint(256, (60, 1, 4, 4), generator=generator) / 127.5 - 1
    xt = q_sample(x0, t, torch.randn(x0.shape, generator=generator), chain)
    for variance in ("posterior", "beta"):
        x0_hat = (-x0).clone().requires_grad_()
        terms = denoising_term(x0, xt, t, x0_hat, chain, variance, discrete=True)
        (slope,) = torch.autograd.grad(terms.sum(), x0_hat)
        assert terms.isfinite().all() and slope.isfinite().all() and terms.min() > 0
        if variance == "posterior":  # with x0_hat = x0 the terms are zero except at t = 0
            assert_close(denoising_term(x0, xt, t, x0, chain, variance, True)[1:], torch.zeros(59), rtol=0, atol=1e-4)
