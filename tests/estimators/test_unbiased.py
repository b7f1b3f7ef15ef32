"""Tests of gradient estimators for discrete latents against enumeration.

The model has four binary latents, or one latent with five categories. The batch has two examples. The cost is not
linear in z. The gradient is with respect to parameters of q and parameters of the cost.

The mean of n draws must agree with the exact gradient in each coordinate, within 4.5 standard errors. Each test checks
that n is large enough: the norm of the vector of tolerances is below 5 % of the norm of the gradient. The gradient has
27 coordinates for binary latents and 33 for a categorical latent. A correct estimator fails less than once in 4,000
tests.
"""

import itertools
import math

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close

from zoo.estimators import (
    ControlVariate,
    gumbel_softmax,
    leave_one_out,
    local_expectation,
    multi_sample_baseline,
    optimal_baseline,
    relax,
    relax_variance,
    score_function,
    straight_through,
    with_gradient,
)
from zoo.functional.latents import Bernoulli, Categorical

N = 100_000
X = torch.tensor([[0.5, -1.0, 1.0], [-0.3, 0.8, 1.0]], dtype=torch.float64)  # (B, 3)


class Toy:
    """Model with a posterior q(z | x) with logits W x, and the cost f(z) = 3 |tanh(A z + c) - x|^2 + 1."""

    def __init__(self, kind):
        self.kind, self.shape = kind, {"bernoulli": (4,), "categorical": (1, 5)}[kind]
        g = torch.Generator().manual_seed(4)
        width = math.prod(self.shape)
        normal = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)  # noqa: E731
        self.params = {"W": 0.7 * normal(width, 3), "A": normal(3, width), "c": 0.3 * normal(3)}
        if kind == "bernoulli":
            self.states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)
        else:
            self.states = torch.eye(5, dtype=torch.float64)[:, None]

    def q(self, params):
        logits = X @ params["W"].T
        return Bernoulli(logits) if self.kind == "bernoulli" else Categorical(logits[:, None])

    def f(self, params, fixed=False):
        A, c = (params[k].detach() if fixed else params[k] for k in ("A", "c"))

        def cost(z):
            z = z if self.kind == "bernoulli" else z.flatten(-2)
            return 3 * ((z @ A.T + c).tanh() - X).square().sum(-1) + 1

        return cost

    def exact(self, params):
        """Return the batch mean of sum_z q(z | x) f(z)."""
        z = self.states[:, None].expand(-1, 2, *self.shape)
        return (self.q(params).log_probs(z).sum(-1).exp() * self.f(params)(z)).sum(0).mean()

    def noise(self, n, k):
        g = torch.Generator().manual_seed(7)
        return torch.rand(n, k, 2, *self.shape, generator=g, dtype=torch.float64)


def plain(toy, p, u, baseline=None):
    z = toy.q(p).draw(u)
    cost = toy.f(p)(z)
    return score_function(cost, toy.q(p).log_probs(z).sum(-1), 0.0 if baseline is None else baseline(cost))


def optimal(toy, p, u):
    q, (z, held_out) = toy.q(p), toy.q(p).draw(u).split([1, 3])
    beta = optimal_baseline(toy.f(p)(held_out).detach(), q.score_square(held_out).detach())
    cost = toy.f(p)(z)
    return with_gradient(cost, ((cost[..., None] - beta).detach() * q.log_probs(z)).sum(-1))


def rebar(toy, p, u, eta=0.8, tau=0.6):
    q = toy.q(p)
    control = lambda s: eta * toy.f(p, fixed=True)(q.soften(s, tau))  # noqa: E731
    return relax(toy.f(p), control, q, u[:1], u[1:])


def relax_with_a_network(toy, p, u):
    q, f = toy.q(p), toy.f(p, fixed=True)
    return relax(toy.f(p), lambda s: functional_call(NETWORK[toy.kind], HELD[toy.kind], (f, q, s)), q, u[:1], u[1:])


def network(features):
    c, g = ControlVariate(0.7, features).double(), torch.Generator().manual_seed(0)
    for weight in c.r.parameters():
        torch.nn.init.uniform_(weight, -1.0, 1.0, generator=g)
    return c


NETWORK = {"bernoulli": network(4), "categorical": network(5)}
HELD = {kind: {k: v.detach() for k, v in c.named_parameters()} for kind, c in NETWORK.items()}

UNBIASED = {
    "score_function": (1, plain),
    "constant": (1, lambda toy, p, u: plain(toy, p, u, lambda cost: 8.0)),
    "of x": (1, lambda toy, p, u: plain(toy, p, u, lambda cost: 6 + X.sum(-1))),
    "loo": (3, lambda toy, p, u: plain(toy, p, u, leave_one_out)),
    "optimal": (4, optimal),
    "rebar": (2, rebar),
    "relax": (2, relax_with_a_network),
}


def gradients(toy, estimator, k, n=N):
    """Return n draws of the gradient, (n, coordinates), and the exact gradient, (coordinates,)."""
    surrogate = lambda p, u: estimator(toy, p, u).mean()  # noqa: E731
    draws = vmap(grad(surrogate), in_dims=(None, 0), chunk_size=20_000)(toy.params, toy.noise(n, k))
    exact = grad(toy.exact)(toy.params)
    names = sorted(toy.params)
    return torch.cat([draws[name].flatten(1) for name in names], 1), torch.cat(
        [exact[name].flatten() for name in names]
    )


def agrees(draws, exact) -> bool:
    assert draws.isfinite().all()
    error = draws.std(0) / len(draws) ** 0.5
    assert 4.5 * error.norm() < 0.05 * exact.norm(), "too few draws to tell"
    return bool(((draws.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all())


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased(name, kind):
    k, estimator = UNBIASED[name]
    assert agrees(*gradients(Toy(kind), estimator, k))


def test_rao_blackwell_is_unbiased_and_varies_less():
    toy = Toy("bernoulli")
    blackwell = lambda toy, p, u: local_expectation(toy.f(p), toy.q(p).logits, toy.q(p).draw(u))  # noqa: E731
    draws, exact = gradients(toy, blackwell, 1)
    assert agrees(draws, exact)
    reinforce, _ = gradients(toy, plain, 1)
    assert draws.var(0).sum() < 0.5 * reinforce.var(0).sum()


FAULTS = {
    "a baseline that sees its own draw": (2, lambda toy, p, u: plain(toy, p, u, lambda cost: cost.mean(0))),
    "the score term does not subtract the control variate": (
        2,
        lambda toy, p, u: with_gradient(
            plain(toy, p, u[:1]),
            0.5 * toy.f(p, fixed=True)(toy.q(p).soften(toy.q(p).perturb_given(toy.q(p).draw(u[:1]), u[1:]), 0.6)),
        ),
    ),
    "one noise for the draw and the conditional draw": (
        1,
        lambda toy, p, u: relax(toy.f(p), lambda s: toy.f(p, fixed=True)(toy.q(p).soften(s, 0.6)), toy.q(p), u, u),
    ),
    "a relaxed draw as the baseline, without a correction": (
        2,
        lambda toy, p, u: with_gradient(
            score_function(
                toy.f(p)(toy.q(p).draw(u[:1])),
                toy.q(p).log_probs(toy.q(p).draw(u[:1])).sum(-1),
                toy.f(p, fixed=True)(toy.q(p).soften(toy.q(p).perturb(u[:1]), 0.6)),
            ),
            toy.f(p, fixed=True)(toy.q(p).soften(toy.q(p).perturb(u[1:]), 0.6)) * 0.0,
        ),
    ),
    "gumbel_softmax taken for unbiased": (1, lambda toy, p, u: gumbel_softmax(toy.f(p), toy.q(p), u, 0.7)),
    "straight_through taken for unbiased": (1, lambda toy, p, u: straight_through(toy.f(p), toy.q(p), u, 0.7)),
}


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_fail(fault, kind):
    k, estimator = FAULTS[fault]
    assert not agrees(*gradients(Toy(kind), estimator, k))


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_as_the_temperature_falls_bias_falls_and_variance_grows(kind):
    """The test measures Gumbel-softmax at temperatures 2, 1, 1/2 and 1/4.

    From each temperature to the next, the bias falls by more than 4.5 standard errors, and the variance grows by more
    than 20 %.
    """
    toy, bias, variance, error = Toy(kind), [], [], []
    for tau in (2.0, 1.0, 0.5, 0.25):
        draws, exact = gradients(toy, lambda toy, p, u, tau=tau: gumbel_softmax(toy.f(p), toy.q(p), u, tau), 1)
        w = slice(-toy.params["W"].numel(), None)  # q's parameters
        bias.append((draws.mean(0) - exact)[w].norm().item())
        variance.append(draws.var(0)[w].sum().item())
        error.append((variance[-1] / N) ** 0.5)
    for i in range(3):
        assert bias[i] - bias[i + 1] > 4.5 * (error[i] + error[i + 1])
        assert variance[i + 1] > 1.2 * variance[i]


def test_straight_through_is_hard_forward_and_soft_backward():
    toy = Toy("categorical")
    p, u = toy.params, toy.noise(1, 1)[0]
    assert_close(straight_through(toy.f(p), toy.q(p), u, 0.5), toy.f(p)(toy.q(p).draw(u)))
    linear = lambda z: (z * torch.arange(5.0, dtype=torch.float64)).sum((-2, -1))  # noqa: E731
    g = [
        grad(lambda W, e=e: e(linear, toy.q({"W": W}), u, 0.5).sum())(p["W"])
        for e in (straight_through, gumbel_softmax)
    ]
    assert_close(*g)  # for a linear cost, both estimators have the same gradient
    assert g[0].abs().sum() > 0


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_values_are_costs_whatever_the_gradient(kind):
    toy = Toy(kind)
    for k, estimator in UNBIASED.values():
        u = toy.noise(1, k)[0]
        value = estimator(toy, toy.params, u)
        assert_close(value, toy.f(toy.params)(toy.q(toy.params).draw(u[: len(value)])))


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_relax_variance_is_the_mean_square_of_the_gradient_by_the_logits(kind):
    """The value agrees with autograd for each draw. The derivative by eta agrees with a central difference."""
    toy = Toy(kind)
    p, (u, v) = toy.params, toy.noise(2, 6)
    logits = toy.q(p).logits.expand_as(u).clone()

    def control(q, eta, fixed):
        return lambda s: eta * toy.f(p, fixed)(q.soften(s, 0.6))

    def square(eta):
        def surrogate(logits):
            q = type(toy.q(p))(logits)
            return relax(toy.f(p), control(q, eta, True), q, u, v).sum()

        return grad(surrogate)(logits).square().flatten(2).sum(-1)

    eta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    ours = relax_variance(toy.f(p), control(toy.q(p), eta, True), toy.q(p), u, v)
    assert_close(ours, square(0.8))
    (by_eta,) = torch.autograd.grad(ours.sum(), eta)
    assert_close(by_eta, (square(0.8 + 1e-6) - square(0.8 - 1e-6)).sum() / 2e-6, rtol=1e-6, atol=1e-6)


def test_the_optimal_baseline_minimises_the_variance():
    """beta* minimises the second moment on the draws from which the test computes beta* [Liao22, Control Variate]."""
    toy = Toy("bernoulli")
    q, z = toy.q(toy.params), toy.q(toy.params).draw(toy.noise(1, 5000)[0])
    cost, score = toy.f(toy.params)(z), q.score(z)
    beta = optimal_baseline(cost, q.score_square(z))
    second_moment = lambda b: ((cost[..., None] - b) * score).square().mean(0)  # noqa: E731
    for other in (beta + 0.1, beta - 0.1, torch.zeros(()), cost.mean()):
        assert (second_moment(beta) < second_moment(other)).all()
    # With beta*, the second moment is E[g^2] (1 - rho^2), where rho is the uncentred correlation of g and the score.
    g = cost[..., None] * score
    rho = (g * score).mean(0) / (g.square().mean(0) * score.square().mean(0)).sqrt()
    assert_close(second_moment(beta), g.square().mean(0) * (1 - rho**2))


def test_baselines_by_hand():
    cost = torch.tensor([[1.0], [2.0], [6.0]])
    assert_close(leave_one_out(cost), torch.tensor([[4.0], [3.5], [1.5]]))
    log_w = torch.tensor([[0.1], [0.2], [0.4]]).log()
    mean = lambda a, b: (a * b) ** 0.5  # noqa: E731
    expected = [
        (mean(0.2, 0.4) + 0.2 + 0.4) / 3,
        (0.1 + mean(0.1, 0.4) + 0.4) / 3,
        (0.1 + 0.2 + mean(0.1, 0.2)) / 3,
    ]
    assert_close(multi_sample_baseline(log_w), torch.tensor(expected).log()[:, None])
    for one in (leave_one_out, multi_sample_baseline):
        with pytest.raises(ValueError, match="at least 2, got 1"):
            one(torch.ones(1, 3))
