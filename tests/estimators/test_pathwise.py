"""Tests of pathwise gradients of the families in [Liao22], against closed-form derivatives of expectations."""

import pytest
import torch
from torch import distributions as D
from torch.func import grad, vmap
from torch.testing import assert_close

from zoo.estimators import antithetic, rsample

# Each entry has a distribution with parameters a and b, a statistic f, and E[f] as a function of a and b.
FAMILIES = {
    "Laplace": (lambda a, b: D.Laplace(a, b), lambda z: z**2, lambda a, b: a**2 + 2 * b**2),
    "StudentT": (lambda a, b: D.StudentT(8.0, a, b), lambda z: z**2, lambda a, b: a**2 + b**2 * 8 / 6),
    "LogNormal": (lambda a, b: D.LogNormal(a, b), lambda z: z, lambda a, b: (a + b**2 / 2).exp()),
    "Gamma": (lambda a, b: D.Gamma(a, b), lambda z: z**2, lambda a, b: a * (a + 1) / b**2),
    "Beta": (lambda a, b: D.Beta(a, b), lambda z: z, lambda a, b: a / (a + b)),
    "Dirichlet": (
        lambda a, b: D.Dirichlet(torch.stack([a, b, a + b])),
        lambda z: z[..., 0] * z[..., 1],
        lambda a, b: a * b / ((2 * a + 2 * b) * (2 * a + 2 * b + 1)),
    ),
    "Chi2": (lambda a, b: D.Chi2(a + b), lambda z: z**2, lambda a, b: (a + b) * (a + b + 2)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    """The derivatives with respect to a and b agree within 4.5 standard errors.

    The standard errors come from 100 batches, so they have 99 degrees of freedom. Correct estimators of all seven
    families together fail once in 3,800 seeds.
    """
    q, f, mean = FAMILIES[family]
    params = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.3, 0.6)]
    exact = torch.stack(torch.autograd.grad(mean(*params), params))
    draws = []
    for seed in range(100):
        z = rsample(q(*params), (4000,), seed)
        draws.append(torch.stack(torch.autograd.grad(f(z).mean(), params)))
    draws = torch.stack(draws)
    error = draws.std(0) / 10
    assert draws.isfinite().all()
    assert 4.5 * error.norm() < 0.05 * exact.norm()
    assert ((draws.mean(0) - exact).abs() < 4.5 * error).all()


def test_rsample_is_keyed_by_its_seed_and_touches_nothing():
    q = D.Gamma(torch.tensor(2.0), torch.tensor(1.0))
    before = torch.get_rng_state()
    assert torch.equal(rsample(q, (5,), 3), rsample(q, (5,), 3))
    assert not torch.equal(rsample(q, (5,), 3), rsample(q, (5,), 4))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="Poisson has no re-parameterisation; use the score function"):
        rsample(D.Poisson(torch.tensor(1.0)), (), 0)


def test_antithetic_pairs_integrate_what_is_odd(generator):
    """For f = z^2 and for f linear in z, the gradient of an antithetic pair has no variance."""
    eps = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    for f in (lambda z: 3 * z, torch.square):
        loss = lambda mu, e, f=f: f(mu + antithetic(e)).mean()  # noqa: E731
        g = vmap(grad(loss), in_dims=(None, 0))(torch.tensor(1.7, dtype=torch.float64), eps)
        assert_close(g, g[:1].expand(50))
    assert torch.equal(antithetic(eps), torch.cat([eps, -eps]))


def test_common_random_numbers_sharpen_a_difference(generator):
    """The variance of (1.1 + eps)^2 - (1 + eps')^2 depends on the noise.

    The variance is 4 (0.1)^2 with common noise eps = eps', and 4 (1 + 1.21) + 4 with independent noise.
    """
    eps, other = torch.randn(2, 100_000, generator=generator, dtype=torch.float64)
    common = (1.1 + eps) ** 2 - (1 + eps) ** 2
    independent = (1.1 + eps) ** 2 - (1 + other) ** 2
    # The relative standard errors of these variances are below 1 %, and the tolerance is 10 %.
    assert_close(common.var().item(), 0.04, rtol=0.1, atol=0)
    assert_close(independent.var().item(), 4 * (1 + 1.21) + 4, rtol=0.1, atol=0)
