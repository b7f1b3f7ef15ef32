"""Tests of the Boltzmann machine against sums over the 128 states of 4 x 3 or 3 x 4 units."""

import math
from itertools import product

import pytest
import torch
from scipy.stats import chisquare
from torch.testing import assert_close

from zoo.functional.boltzmann import (
    Machine,
    Weights,
    below,
    draw,
    energy,
    free_energy,
    hidden_logits,
    pseudo_log_likelihood,
    visible_logits,
)
from zoo.functional.gibbs import gibbs, next_hidden, pick, restart_noise
from zoo.functional.importance import annealed_importance_sampling, log_mean
from zoo.functional.partition import (
    ais_log_partition,
    exact_draw,
    exact_log_partition,
    exact_statistics,
    states,
    temperatures,
)


def machine(V=4, H=3, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: scale * torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return Weights(normal(V, H), normal(V), normal(H))


def binary(n):
    return torch.tensor(list(product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def joint(weights):
    """Return E and p of every pair (v, h), (2^V, 2^H) each, and log Z.

    The energy is computed in loops. The states are in the order of :func:`binary`.
    """
    W, b, c = weights

    def by_hand(v, h):
        total = 0.0
        for i in range(len(b)):
            total -= b[i] * v[i]
            for j in range(len(c)):
                total -= v[i] * W[i, j] * h[j]
        for j in range(len(c)):
            total -= c[j] * h[j]
        return total

    E = torch.tensor([[by_hand(v, h) for h in binary(len(c))] for v in binary(len(b))], dtype=torch.float64)
    mass = (-E).exp()
    return E, mass / mass.sum(), float(mass.sum().log())


BOTH_SHAPES = pytest.mark.parametrize("shape", [(4, 3), (3, 4)])


@pytest.mark.equation("rbm", "E(v, h)")
@pytest.mark.equation("rbm", "F(v)")
@pytest.mark.equation("rbm", "p(h_j=1 | v)")
@BOTH_SHAPES
def test_energy_conditionals_and_marginals_are_those_of_the_enumeration(shape):
    weights = machine(*shape)
    V, H = shape
    v, h = binary(V), binary(H)
    E, p, log_Z = joint(weights)
    assert_close(energy(v[:, None], h[None], weights), E)
    assert_close((-free_energy(v, weights) - log_Z).exp(), p.sum(1))
    assert_close(free_energy(v, weights, hidden_logits(v, weights)), free_energy(v, weights))
    assert_close(hidden_logits(v, weights).sigmoid(), (p / p.sum(1, keepdim=True)) @ h)
    assert_close(visible_logits(h, weights).sigmoid(), (p / p.sum(0)).T @ v)
    assert_close(float(exact_log_partition(weights)), log_Z)


@BOTH_SHAPES
def test_exact_statistics_are_the_gradient_of_log_z(shape):
    weights = machine(*shape)
    _, p, log_Z = joint(weights)
    found, statistics, squares = exact_statistics(weights)
    assert torch.equal(squares, statistics.b)  # the units are 0 or 1
    v, h = binary(shape[0]), binary(shape[1])
    assert_close(float(found), log_Z)
    assert_close(statistics.W, torch.einsum("ab,ai,bj->ij", p, v, h))
    assert_close(statistics.b, p.sum(1) @ v)
    assert_close(statistics.c, p.sum(0) @ h)


def test_enumeration_goes_through_every_state_once_and_has_its_limit():
    everything = torch.cat(list(states(13, torch.device("cpu"))))
    assert everything.shape == (8192, 13) and len(everything.unique(dim=0)) == 8192
    with pytest.raises(ValueError, match="at most 20 units, got 30 visible and 21 hidden units"):
        exact_log_partition(machine(30, 21))
    # The states of 13 hidden units fill more than one block. With W = 0, log Z has a closed form.
    weights = Weights(torch.zeros(20, 13, dtype=torch.float64), *(t for t in machine(20, 13)[1:]))
    closed = torch.nn.functional.softplus(weights.b).sum() + torch.nn.functional.softplus(weights.c).sum()
    assert_close(exact_log_partition(weights), closed)
    assert_close(exact_statistics(weights)[1].b, weights.b.sigmoid())


@BOTH_SHAPES
def test_pseudo_likelihood_is_the_sum_of_the_conditionals(shape):
    weights = machine(*shape)
    V = shape[0]
    v, (_, p, _) = binary(V), joint(weights)
    p_v = {tuple(row.tolist()): float(mass) for row, mass in zip(v, p.sum(1), strict=True)}
    expected = torch.zeros(len(v), dtype=torch.float64)
    for n, row in enumerate(v):
        for i in range(V):
            other = row.clone()
            other[i] = 1 - other[i]
            mine, theirs = p_v[tuple(row.tolist())], p_v[tuple(other.tolist())]
            expected[n] += torch.tensor(mine / (mine + theirs), dtype=torch.float64).log()
    assert_close(pseudo_log_likelihood(v, weights), expected)
    one_each = torch.stack(
        [pseudo_log_likelihood(v, weights, torch.full((len(v), 1), i)) for i in range(V)]
    )  # row i is V times the term of pixel i
    assert_close(one_each.mean(0), expected)


def counts(v):
    place = 2 ** torch.arange(v.shape[1] - 1, -1, -1, dtype=v.dtype)
    return torch.bincount((v @ place).long(), minlength=2 ** v.shape[1])


def p_value(v, weights):
    p = joint(weights)[1].sum(1)
    return chisquare(counts(v).numpy(), (p * len(v)).numpy()).pvalue


@BOTH_SHAPES
def test_long_gibbs_chains_and_exact_draws_follow_p(shape, generator):
    """Chi-squared tests compare 20,000 independent draws with p over the 2^V states.

    Each test has a false-alarm rate of 1e-4. The tests reject chains of one step and draws from another model.
    """
    weights = machine(*shape, scale=0.7)
    V, H = shape
    n, k = 20_000, 50
    u = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)  # noqa: E731
    start = torch.zeros(n, H, dtype=torch.float64)
    plain = Machine(*weights)
    assert p_value(gibbs(start, u(k, n, V), u(k - 1, n, H), plain), weights) > 1e-4
    assert p_value(gibbs(start, u(1, n, V), u(0, n, H), plain), weights) < 1e-10  # one step is not enough
    assert p_value(exact_draw(u(n), u(n, V), weights), weights) > 1e-4
    assert p_value(exact_draw(u(n), u(n, V), machine(*shape, scale=0.7, seed=1)), weights) < 1e-10


def forced(p, outcome):
    """Return a uniform number that gives a unit of probability ``p`` the value ``outcome``."""
    return torch.where(outcome > 0, p / 2, (1 + p) / 2)


def paths(weights, k):
    """Return every path v, h, v', ... of k Gibbs steps from every v.

    ``draw``, the function under test, draws each path from uniform numbers that force its outcomes.

    Returns:
        The first v (n, V), the last v (n, V), and the probability of the path given the first v, (n,).
    """
    V, H = weights.W.shape
    v = binary(V)
    start = v
    probability = torch.ones(len(v), dtype=torch.float64)
    for _ in range(k):
        for units, logits_of in ((H, hidden_logits), (V, visible_logits)):
            outcome = binary(units).repeat(len(v), 1)
            start, v, probability = (t.repeat_interleave(2**units, 0) for t in (start, v, probability))
            p = logits_of(v, weights).sigmoid()
            v = draw(logits_of(v, weights), forced(p, outcome))
            assert torch.equal(v, outcome)
            probability = probability * torch.where(outcome > 0, p, 1 - p).prod(-1)
    return start, v, probability


@pytest.mark.parametrize("k", [1, 2])
def test_the_expected_cd_gradient_is_zero_where_the_data_are_the_models_own(k):
    """The test enumerates every path. If the data follow p, the gradient is zero. For other data it is not zero."""
    weights = Weights(*(t.requires_grad_() for t in machine()))
    with torch.no_grad():
        start, end, probability = paths(weights, k)
        p = joint(weights)[1].sum(1)
    assert_close(probability.sum(), torch.tensor(16.0, dtype=torch.float64))

    def gradient(data):
        of_start = data.repeat_interleave(len(start) // len(data))
        loss = (of_start * probability * (free_energy(start, weights) - free_energy(end, weights))).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    assert gradient(p).abs().max() < 1e-12
    assert gradient(torch.full((16,), 1 / 16, dtype=torch.float64)).abs().max() > 1e-2


# Persistent chains.


def test_a_chain_that_restarts_draws_h_given_a_random_visible_state_and_the_others_given_their_own(generator):
    """The test enumerates the 16 visible states and, for each of them, the 8 hidden states and both choices."""
    weights = machine()
    coins = binary(4)
    p_coins = hidden_logits(coins, weights).sigmoid()
    outcome = binary(3).repeat_interleave(16, 0).repeat(2, 1)  # chain i uses the visible state i modulo 16
    restart = torch.arange(256) < 128
    own = torch.rand(256, 3, generator=generator, dtype=torch.float64)
    p = torch.where(restart[:, None], p_coins.repeat(16, 1), own)
    noise = {"restart": restart, "u_h": forced(p, outcome)[None]}
    assert torch.equal(next_hidden(own, p_coins, noise), outcome)
    one = {"restart": restart, "u_h": forced(torch.where(restart[:, None], p_coins[5], own), outcome)[None]}
    assert torch.equal(next_hidden(own, p_coins[5:6], one), outcome)
    assert torch.equal(next_hidden(own, own[:0], {"u_h": forced(own, outcome)[None]}), outcome)


@pytest.mark.parametrize("probability", [0.001, 0.3])
def test_each_chain_restarts_with_the_given_probability_and_shapes_do_not_depend_on_chance(probability, generator):
    """The test counts the restarts of 100 chains in 2,000 updates, and the units that are 1 in the visible states.

    Each count is within 4.5 standard errors of its expectation. A false alarm occurs once in 70,000 seeds.
    """
    cpu, total, ones, m = torch.device("cpu"), 0, 0, math.ceil(100 * probability)
    for _ in range(2000):
        noise = restart_noise(100, probability, 7, generator=generator, device=cpu)
        assert noise["restart"].shape == (100,) and noise["coins"].shape == (m, 7)
        total, ones = total + int(noise["restart"].sum()), ones + int(noise["coins"].sum())
    n = 200_000
    assert abs(total - n * probability) < 4.5 * (n * probability * (1 - probability)) ** 0.5
    assert abs(ones - 1000 * m * 7) < 4.5 * (2000 * m * 7 / 4) ** 0.5


def test_noise_that_equals_a_probability_is_not_below_it():
    """A unit of probability 0 is never 1, and a unit of probability 1 always is. No zero has a sign."""
    u, p = torch.tensor([0.0, 0.5, 0.0, 0.5, 1 - 2**-24]), torch.tensor([0.0, 0.5, 2.0**-30, 0.5 + 2**-24, 1.0])
    assert below(u, p).tolist() == [0, 0, 1, 1, 1]
    assert not below(u, p - p).signbit().any()


def test_chains_that_never_restart_draw_no_random_numbers(generator):
    before = generator.get_state()
    assert restart_noise(100, 0.0, 7, generator=generator, device=torch.device("cpu")) == {}
    assert torch.equal(generator.get_state(), before)


def exact_free_energy(v, weights):
    """Return F(v) with the full precision of float64. ``F.softplus(a)`` is a for a > 20, with an error of 2e-9."""
    logits = hidden_logits(v, weights)
    return -(v @ weights.b) - torch.logaddexp(logits, torch.zeros_like(logits)).sum(-1)


@BOTH_SHAPES
@pytest.mark.parametrize("centred", [False, True])
def test_the_difference_of_free_energies_and_its_gradient_are_those_of_autograd(shape, centred, generator):
    """The further states change neither. Large log odds make many probabilities exactly 0 or 1."""
    for scale in (1.0, 100.0):
        W, b, c = (t.requires_grad_() for t in machine(*shape, scale=scale))
        v, v_model, others = ((torch.rand(n, len(b), generator=generator) < 0.5).to(W.dtype) for n in (6, 5, 3))
        mu = torch.rand(len(b), generator=generator, dtype=W.dtype) if centred else None
        learned = Machine(W, b, c, mu)
        found, p, p_others = learned.free_energy_difference(v, v_model, others)
        weights = learned.weights()
        expected = exact_free_energy(v, weights).mean() - exact_free_energy(v_model, weights).mean()
        exactly = {"rtol": 1e-12, "atol": 1e-12}
        assert_close(found, expected, **exactly)
        for x, of_x in ((v_model, p), (others, p_others)):
            assert_close(of_x, hidden_logits(x, weights).sigmoid().detach(), **exactly)
        for ours, theirs in zip(*(torch.autograd.grad(3 * t, (W, b, c)) for t in (found, expected)), strict=True):
            assert_close(ours, theirs, **exactly)


def test_the_difference_of_free_energies_is_exact_in_float32(generator):
    """The error is at most four rounding errors of the largest free energy. Log odds are of all sizes up to 1,000."""
    weights = machine(30, 250, scale=1.0)
    weights = Weights(weights.W * torch.logspace(-3, 2, 250, dtype=torch.float64), weights.b, weights.c)
    v, v_model = ((torch.rand(50, 30, generator=generator) < 0.5).double() for _ in range(2))
    expected = free_energy(v, weights).mean() - free_energy(v_model, weights).mean()
    found = Machine(*weights.to(torch.float32)).free_energy_difference(v.float(), v_model.float())[0]
    largest = torch.cat([free_energy(v, weights), free_energy(v_model, weights)]).abs().max()
    assert abs(float(found) - float(expected)) < 4 * torch.finfo(torch.float32).eps * float(largest)
    fair = Machine(*(torch.zeros_like(t) for t in weights.to(torch.float32)))  # 2^-250 is 0 in float32
    assert fair.free_energy_difference(v.float(), v_model.float())[0].abs() < 1e-4


# Annealed importance sampling.


def test_chains_begin_anywhere_among_the_rows(generator):
    """In 8,000 draws from 40 rows, the count of each row is within 4.5 standard errors of 200.

    The rows are drawn with replacement, in batches of eight. False alarms occur once in 3,700 seeds.
    """
    rows = torch.arange(40)[:, None].expand(40, 3)
    of_three = Machine(*(torch.zeros(shape) for shape in ((3, 2), 3, 2)))
    drawn = torch.cat([pick(rows, 8, of_three, generator=generator) for _ in range(1000)])
    assert drawn.shape == (8000, 3) and drawn.dtype == torch.float32
    counts = drawn[:, 0].long().bincount(minlength=40)
    assert (counts - 200).abs().max() < 4.5 * (200 * 39 / 40) ** 0.5


def test_temperatures_are_those_of_the_paper():
    betas = temperatures(14_500)
    assert len(betas) == 14_501 and (betas.diff() > 0).all()
    assert betas[[0, 500, 4500, 14_500]].tolist() == [0.0, 0.5, 0.9, 1.0]
    for n in (1, 2, 7, 29, 1000):
        betas = temperatures(n)
        assert len(betas) == n + 1 and betas[0] == 0 and betas[-1] == 1 and (betas.diff() > 0).all()


def test_log_mean_is_the_mean_with_three_standard_errors():
    w = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    found = log_mean(w.log() + 1000)  # exp(1000) overflows
    error = float(w.std()) / 2
    assert_close(found.estimate, 1000 + float(torch.tensor(3.0, dtype=torch.float64).log()))
    assert_close(found.high, 1000 + float(torch.tensor(3.0 + 3 * error, dtype=torch.float64).log()))
    # The lower end 3 - 3 * 1.08 is negative, so ``low`` is log(mean / 740).
    assert_close(found.low, found.estimate - float(torch.tensor(740.0).double().log()))
    narrow = log_mean(torch.tensor([1.0, 1.1, 0.9, 1.0]).log())
    assert narrow.low < narrow.estimate < narrow.high and narrow.estimate == pytest.approx(0.0, abs=1e-6)


def test_importance_weights_are_unbiased_for_gaussians(generator):
    """The densities f_beta(x) = exp(-x^2 (1 + 3 beta) / 2) have Z_1 / Z_0 = 1/2.

    The test uses 4 steps and 40,000 chains. The mean weight is within 4.3 standard errors of 1/2, with false alarms
    once in 6 x 10^4 seeds. A standard error is below 1 % of 1/2. ``faulty`` draws each state from N(0, 1). Its mean
    weight is more than ten standard errors away from 1/2.
    """
    n = 40_000
    normal = lambda: torch.randn(n, generator=generator, dtype=torch.float64)  # noqa: E731

    def anneal(x, beta, next_beta):
        # This autoregression leaves N(0, 1 / precision) invariant.
        moved = 0.5 * x + 0.75**0.5 * normal() / (1 + 3 * next_beta) ** 0.5
        return -(x**2) * 3 * (next_beta - beta) / 2, moved

    def faulty(x, beta, next_beta):
        return anneal(x, beta, next_beta)[0], normal()

    betas = torch.linspace(0, 1, 5, dtype=torch.float64)
    w = annealed_importance_sampling(normal(), anneal, betas).exp()
    error = float(w.std()) / n**0.5
    assert error < 0.005
    assert abs(float(w.mean()) - 0.5) < 4.3 * error
    assert abs(float(annealed_importance_sampling(normal(), faulty, betas).exp().mean()) - 0.5) > 10 * error


@BOTH_SHAPES
def test_annealed_importance_sampling_agrees_with_enumeration_however_few_the_steps(shape, generator):
    """The test uses 1 and 3 steps, 100,000 chains, and an interval of three standard errors.

    Each interval misses log Z once in 370 seeds. log Z of another model is outside the interval of 3 steps.
    """
    weights = Weights(*(t.float() for t in machine(*shape)))
    base = torch.linspace(-1, 1, shape[0])
    for steps in (1, 3):
        found = ais_log_partition(weights, base, 100_000, steps, generator=generator)
        assert found.high - found.low < 0.1
        assert found.low < float(exact_log_partition(weights)) < found.high
    other = Weights(weights.W, weights.b, weights.c + 0.3)
    assert not found.low < float(exact_log_partition(other)) < found.high
