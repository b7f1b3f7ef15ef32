"""Tests of closed forms against torch.distributions: values and gradients in float64."""

import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.testing import assert_close

from zoo.functional.densities import kl_normal, kl_standard_normal, log_bernoulli, log_normal

D = 5


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def assert_same_function(ours, theirs, *inputs):
    a, b = ours(*inputs), theirs(*inputs)
    assert_close(a, b)
    for g, h in zip(torch.autograd.grad(a.sum(), inputs), torch.autograd.grad(b.sum(), inputs), strict=True):
        assert g.isfinite().all()
        assert_close(g, h)


def test_log_normal(generator):
    x, mu, logvar = (draw(generator, 7, D) for _ in range(3))
    assert_same_function(
        log_normal, lambda x, mu, logvar: Independent(Normal(mu, (logvar / 2).exp()), 1).log_prob(x), x, mu, logvar
    )


def test_kl_standard_normal(generator):
    mu, logvar = draw(generator, 7, D), draw(generator, 7, D)

    def theirs(mu, logvar):
        return kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(torch.zeros_like(mu), 1.0)).sum(-1)

    assert_same_function(kl_standard_normal, theirs, mu, logvar)
    assert kl_standard_normal(torch.zeros(D), torch.zeros(D)) == 0


def test_kl_normal(generator):
    inputs = [draw(generator, 7, D) for _ in range(4)]

    def theirs(mu_q, logvar_q, mu_p, logvar_p):
        return kl_divergence(Normal(mu_q, (logvar_q / 2).exp()), Normal(mu_p, (logvar_p / 2).exp())).sum(-1)

    assert_same_function(kl_normal, theirs, *inputs)
    mu, logvar, *_ = inputs
    assert torch.equal(kl_normal(mu, logvar, mu, logvar), torch.zeros(7, dtype=torch.float64))
    zero = torch.zeros(D, dtype=torch.float64)
    assert_close(kl_normal(mu, logvar, zero, zero), kl_standard_normal(mu, logvar))


def test_kl_keeps_its_digits_near_the_prior():
    """At logvar = 1e-4 the divergence is logvar^2 / 4 = 2.5e-9.

    In float32, the rounding error of exp(logvar) - 1 - logvar is larger than this divergence.
    """
    logvar = torch.tensor([1e-4])
    assert_close(kl_standard_normal(torch.zeros(1), logvar), torch.tensor(2.5e-9), rtol=0.1, atol=0)


def test_log_bernoulli(generator):
    logits = draw(generator, 7, D)
    x = torch.bernoulli(torch.full((7, D), 0.5, dtype=torch.float64), generator=generator)
    assert_same_function(lambda a: log_bernoulli(x, a), lambda a: Bernoulli(logits=a).log_prob(x).sum(-1), logits)


def test_log_bernoulli_is_finite_for_certain_pixels():
    logits = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    value = log_bernoulli(torch.tensor([0.0, 1.0]), logits)
    assert value == 0
    value.backward()
    assert logits.grad.isfinite().all()
