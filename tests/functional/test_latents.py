"""Tests of the posterior families against torch.distributions, and of the distribution of perturbed logits."""

import math

import pytest
import torch
from scipy.stats import kstest
from torch.distributions import Bernoulli, Independent, Normal, OneHotCategorical, kl_divergence
from torch.testing import assert_close

from zoo.functional import latents


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def families(generator):
    """Return a tuple for each family: our posterior, torch's posterior and torch's prior, each of shape (3, 2)."""
    mu, logvar = normal(generator, 3, 2), normal(generator, 3, 2)
    logits, many = normal(generator, 3, 2), normal(generator, 3, 2, 5)
    return [
        (latents.Gaussian(mu, logvar), Normal(mu, (logvar / 2).exp()), Normal(0 * mu, 1)),
        (latents.Bernoulli(logits), Bernoulli(logits=logits), Bernoulli(logits=0 * logits)),
        (latents.Categorical(many), OneHotCategorical(logits=many), OneHotCategorical(logits=0 * many)),
    ]


@pytest.mark.parametrize("i", range(3))
def test_densities_and_divergences(i, generator):
    q, twin, prior = families(generator)[i]
    z = twin.sample((7,))
    assert_close(q.log_probs(z), twin.log_prob(z))
    assert_close(q.log_prior(z), Independent(prior, 1).log_prob(z))
    assert_close(q.kls(), kl_divergence(twin, prior))
    assert q.kls().shape == (3, 2)
    assert (q.log_probs(q.mode()) >= q.log_probs(z) - 1e-12).all()


@pytest.mark.parametrize("i", range(3))
def test_score_squares_are_those_of_autograd(i, generator):
    q, _, _ = families(generator)[i]
    params = [t.clone().requires_grad_() for t in q]
    q = type(q)(*params)
    z = q.draw(q.noise(3, 2, *q[0].shape[2:], generator=None, device=torch.device("cpu")).double()).detach()
    scores = torch.autograd.grad(q.log_probs(z).sum(), params)
    square = sum(s.square() if i < 2 else s.square().sum(-1) for s in scores)
    assert_close(q.score_square(z), square)
    if i > 0:
        assert_close(q.score(z), scores[0])


@pytest.mark.parametrize("i", range(3))
def test_draws_have_their_distribution(i, generator):
    """Means of n draws are right within 4.5 standard errors. 30 means give a false alarm once in 4,000 seeds."""
    q, twin, _ = families(generator)[i]
    n = 100_000
    noise = q.noise(n, 3, 2, *q[0].shape[2:], generator=generator, device=torch.device("cpu")).double()
    z = q.draw(noise)
    assert not z.requires_grad
    assert ((z.mean(0) - twin.mean).abs() < 4.5 * (twin.variance / n).sqrt()).all()
    assert_close(z.var(0), twin.variance, rtol=0.05, atol=0.003)


def test_reparameterisation_multiplies_by_sigma():
    q = latents.Gaussian(torch.tensor([1.0]), torch.tensor([math.log(4.0)]))
    assert_close(q.draw(torch.tensor([3.0])), torch.tensor([7.0]))  # 1 + 2 * 3, with sigma = 2 and not sigma^2 = 4


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_logits_perturbed_again_given_z(kind, generator):
    """The test draws z from u, and then perturbed logits s from v, given z.

    The logits s lead to the same z, and follow their marginal distribution. There is one Kolmogorov-Smirnov test for
    binary latents, and there are six for categorical latents. Each has a false-alarm rate of 1e-4.
    """
    n, draw = 20_000, lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)
    if kind == "bernoulli":
        q = latents.Bernoulli(torch.tensor([0.8], dtype=torch.float64).expand(n, 1))
        shape = (n, 1)
    else:
        logits = torch.tensor([[0.5, -1.0, 1.5, 0.0, -2.0]], dtype=torch.float64)
        q = latents.Categorical(logits.expand(n, 1, 5))
        shape = (n, 1, 5)
    z = q.draw(draw(*shape))
    again = q.perturb_given(z, draw(*shape))
    assert torch.equal(q.harden(again), z)
    if kind == "bernoulli":
        assert kstest(again[:, 0].numpy(), "logistic", args=(0.8,)).pvalue > 1e-4
    else:
        for c, location in enumerate(logits.log_softmax(-1)[0]):
            assert kstest(again[:, 0, c].numpy(), "gumbel_r", args=(location.item(),)).pvalue > 1e-4
        # The gap between the two largest values tests the joint distribution.
        fresh = logits.log_softmax(-1)[0] + latents.gumbel(draw(n, 5))
        gap = lambda s: s.topk(2, -1).values.diff(dim=-1)[:, 0].neg().numpy()  # noqa: E731
        assert kstest(gap(again[:, 0]), gap(fresh)).pvalue > 1e-4


@pytest.mark.parametrize("q", [latents.Bernoulli(torch.tensor([[40.0, -40.0]])), latents.Bernoulli(torch.zeros(1, 2))])
def test_extreme_noise_and_logits_stay_finite(q):
    for u in (torch.zeros(1, 2), torch.full((1, 2), 1 - 2**-24)):
        logits = q.logits.clone().requires_grad_()
        live = latents.Bernoulli(logits)
        z = live.draw(u)
        out = live.soften(live.perturb(u), 0.1) + live.soften(live.perturb_given(z, u), 0.1) + live.log_probs(z)
        out.sum().backward()
        assert out.isfinite().all() and logits.grad.isfinite().all()


def test_one_category_certain_stays_finite():
    logits = torch.tensor([[[60.0, 0.0, -60.0]]], requires_grad=True)
    q = latents.Categorical(logits)
    for u in (torch.zeros(1, 1, 3), torch.full((1, 1, 3), 1 - 2**-24)):
        z = q.draw(u)
        out = q.soften(q.perturb(u), 0.1) + q.soften(q.perturb_given(z, u), 0.1)
        (out.sum() + q.log_probs(z).sum() + q.kls().sum()).backward()
        assert out.isfinite().all() and logits.grad.isfinite().all()


def test_temperature_by_hand():
    """The tempered softmax is softmax((l + G) / tau) with a separate G for each class."""
    logits, u = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.3, 0.6]]])
    q = latents.Categorical(logits)
    s = logits.log_softmax(-1) - (-u.log()).log()
    assert_close(q.soften(q.perturb(u), 0.5), (s / 0.5).softmax(-1))
    assert_close(latents.logistic(torch.tensor(0.75)), torch.tensor(math.log(3.0)))
    bits = latents.Bernoulli(torch.tensor([[0.3]]))
    assert_close(
        bits.soften(bits.perturb(torch.tensor([[0.75]])), 0.5), (2 * (torch.tensor([[0.3]]) + math.log(3))).sigmoid()
    )
    assert_close(
        latents.logistic(torch.tensor(1e-5)), torch.tensor(1e-5 / (1 - 1e-5)).log()
    )  # extreme noise is not clamped
    assert_close(latents.gumbel(torch.tensor(1e-5)), torch.tensor(-math.log(-math.log(1e-5))))


def test_a_temperature_in_a_tensor_gives_the_same_bits(generator):
    """Training steps hold the temperature in a tensor, which can change without a new CUDA graph."""
    for kind in (latents.Bernoulli, latents.Categorical):
        for dtype in (torch.float32, torch.float64):
            s = torch.randn(3, 4, 5, generator=generator, dtype=dtype, requires_grad=True)
            tau = torch.ones((), dtype=dtype)
            for number in (0.3, 0.47, 1.7):
                soft, same = kind(s).soften(s, tau.fill_(number)), kind(s).soften(s, number)
                gradients = [torch.autograd.grad(x.square().sum(), s)[0] for x in (soft, same)]
                assert torch.equal(soft, same) and torch.equal(*gradients)
