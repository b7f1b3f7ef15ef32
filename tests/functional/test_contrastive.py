"""Tests of noise-contrastive objectives against enumeration, with a vocabulary of a few words."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from zoo.functional.contrastive import (
    HeldOut,
    NoiseDistribution,
    importance_sampled_loss,
    nce_loss,
    noise_loss,
    softmax_loss,
)

torch.manual_seed(0)
V = 7


@pytest.fixture
def world(generator):
    """Return scores s of V words in one context, and the distributions p of the text and q of the noise."""
    s = torch.randn(V, generator=generator, dtype=torch.float64)
    p = torch.rand(V, generator=generator, dtype=torch.float64) + 0.1
    q = torch.rand(V, generator=generator, dtype=torch.float64) + 0.1
    return s, p / p.sum(), q / q.sum()


def expected_nce(s, p, q, k, log_kq):
    """Return the expectation of the NCE loss over a word w ~ p and k noise words ~ q, by enumeration.

    The k noise words are identically distributed. Their part is k times the expectation for one noise word.
    """
    data = nce_loss(s, s[:, None][:, :0], log_kq, s[:, None][:, :0])
    noise = nce_loss(s, s[:, None], log_kq, log_kq[:, None]) - data
    return (p * data).sum() + k * (q * noise).sum()


def gradient(f, s):
    s = s.clone().requires_grad_()
    return torch.autograd.grad(f(s), s)[0]


@pytest.mark.equation("skipgram", "nce")
@pytest.mark.parametrize("k", [1, 5, 100])
def test_the_expected_gradient_of_nce_is_its_closed_form_and_zero_at_log_p(world, k):
    """The gradient with respect to the scores is k q / (e^s + k q) (e^s - p)."""
    s, p, q = world
    log_kq = (k * q).log()
    found = gradient(lambda s: expected_nce(s, p, q, k, log_kq), s)
    assert_close(found, k * q / (s.exp() + k * q) * (s.exp() - p))
    assert_close(gradient(lambda s: expected_nce(s, p, q, k, log_kq), p.log()), torch.zeros(V, dtype=torch.float64))
    # Scores shifted by 0.5 have Z = e^0.5. For these scores NCE has a gradient. The gradient of the likelihood is 0.
    shifted = gradient(lambda s: expected_nce(s, p, q, k, log_kq), p.log() + 0.5)
    assert (shifted > 0.01 * p).all()
    likelihood = gradient(lambda s: (p * softmax_loss(s, s.expand(V, V))).sum(), p.log() + 0.5)
    assert_close(likelihood, torch.zeros(V, dtype=torch.float64))


def test_the_gradient_of_nce_tends_to_that_of_the_likelihood_of_normalised_scores(world):
    """As k grows, the gradient with respect to s tends to e^s - p, even if s is not normalised (Mnih & Teh 2012)."""
    s, p, q = world
    normalised = s.log_softmax(0)
    likelihood = gradient(lambda s: (p * softmax_loss(s, s.expand(V, V))).sum(), normalised)
    assert_close(likelihood, normalised.exp() - p)
    gaps = [
        (gradient(lambda s, k=k: expected_nce(s, p, q, k, (k * q).log()), normalised) - likelihood).norm()
        for k in (1, 10, 100, 1000)
    ]
    assert all(later < 0.2 * earlier for earlier, later in pairwise(gaps[1:]))
    limit = gradient(lambda s: expected_nce(s, p, q, 10**6, (10**6 * q).log()), s)
    assert_close(limit, s.exp() - p, rtol=1e-4, atol=1e-5)


@pytest.mark.equation("skipgram", "negative_sampling")
def test_with_k_of_v_and_uniform_noise_nce_is_negative_sampling(world, generator):
    """[Xu18b]: with k = V and uniform q, k q(w) = 1."""
    s = world[0]
    uniform = NoiseDistribution.of(torch.ones(V))
    noise = torch.randint(V, (V, V), generator=generator)
    log_kq = uniform.log_q.double() + math.log(V)
    ours = nce_loss(s, s[noise], log_kq, log_kq[noise])
    sampling = -(s.sigmoid().log()) - (-s[noise]).sigmoid().log().sum(-1)
    assert_close(ours, sampling, rtol=1e-6, atol=1e-6)


@pytest.mark.equation("skipgram", "nce")
def test_three_words_by_hand():
    """All scores are s = log 2. The word of the text has q = 1/4, and the k = 2 noise words have q = 1/4 and 1/2.

    Then e^s = 2, and k q is 1/2, 1/2 and 1.
    """
    s = torch.tensor(math.log(2), dtype=torch.float64)
    log_kq = torch.tensor([0.5, 1.0], dtype=torch.float64).log()
    loss = nce_loss(s, torch.stack([s, s]), log_kq[0], log_kq)
    # The word of the text contributes 2 / (2 + 1/2) = 4/5. The noise words contribute (1/2) / (5/2) = 1/5 and 1/3.
    assert_close(loss, -torch.log(torch.tensor(4 / 5 * 1 / 5 * 1 / 3, dtype=torch.float64)))


def test_shared_noise_words_count_for_k(world, generator):
    s, _, q = world
    noise = torch.randint(V, (V, 5), generator=generator)
    log_kq = (5 * q).log()
    one_by_one = nce_loss(s, s[noise], log_kq, log_kq[noise])
    twice = torch.cat([noise, noise], 1)
    assert_close(nce_loss(s, s[twice], log_kq, log_kq[twice], each=0.5), one_by_one)


@pytest.mark.parametrize("objective", ["nce", "negative_sampling"])
def test_noise_words_that_stand_for_k_count_for_so_much_each(objective, generator):
    """With seven noise words for k = 3, the loss is -log sigma(d) - 3/7 sum log sigma(-d').

    d belongs to the word of the text, and d' to a noise word. Both are s - log(k q) in NCE, and s in negative sampling.
    """
    s, s_noise, log_q, log_q_noise = (torch.randn(shape, generator=generator) for shape in (2, (2, 7), 2, (2, 7)))
    shift = 1.0 if objective == "nce" else 0.0
    d, d_noise = s - shift * (log_q + math.log(3)), s_noise - shift * (log_q_noise + math.log(3))
    expected = -d.sigmoid().log() - 3 / 7 * (-d_noise).sigmoid().log().sum(-1)
    assert_close(noise_loss(objective, s, s_noise, log_q, log_q_noise, 3), expected)


@pytest.mark.equation("skipgram", "importance_sampling")
@pytest.mark.equation("skipgram", "softmax")
def test_importance_sampling_is_exact_where_its_weights_are_equal(world, generator):
    """If q is the model's distribution, every weight is Z. The loss of each draw is the negative log-likelihood."""
    s = world[0]
    log_q = s.log_softmax(0)
    noise = torch.randint(V, (V, 3), generator=generator)
    exact = softmax_loss(s, s.expand(V, V))
    assert_close(importance_sampled_loss(s, s[noise], log_q[noise]), exact, rtol=1e-6, atol=1e-6)
    assert_close(exact, -s.log_softmax(0))


def test_importance_sampling_is_biased_as_one_over_k(world):
    """The expected gradient is enumerated over all draws of k words. Its error times k tends to a constant."""
    s, _, q = world
    exact = gradient(lambda s: s.logsumexp(0), s)

    def error(k):
        draws = torch.cartesian_prod(*[torch.arange(V)] * k).view(-1, k)
        loss = lambda s: (q[draws].prod(1) * importance_sampled_loss(s[0] * 0, s[draws], q.log()[draws])).sum()  # noqa: E731
        return float((gradient(loss, s) - exact).norm())

    scaled = [k * error(k) for k in (1, 2, 3, 4, 5, 6)]
    steps = [b - a for a, b in pairwise(scaled)]
    assert all(0 < b < 0.7 * a for a, b in pairwise(steps)) and steps[-1] < 0.03 * scaled[-1]


@pytest.mark.parametrize("weights", [[1.0], [1, 1, 1], [5, 1, 1, 1], [1e6, 1, 3, 1e-3], list(range(1, 200))])
def test_the_alias_table_holds_q_exactly(weights):
    """V q_i is the sum of ``share[i]`` and of 1 - ``share[j]`` over all columns j with alias i."""
    noise = NoiseDistribution.of(torch.tensor(weights))
    held = noise.share.double().clone()
    held.index_add_(0, noise.alias, 1 - noise.share.double())
    q = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    assert_close(held / len(q), q, rtol=1e-5, atol=1e-7 / len(q))
    assert_close(noise.log_q.double(), q.log(), rtol=1e-6, atol=1e-6)


def test_draws_are_from_q(generator):
    """The chi-squared test has 49 degrees of freedom. False alarms occur once in 100,000 seeds."""
    q = 1 / torch.arange(1, 51).double()
    q /= q.sum()
    n = 200_000
    counts = torch.bincount(NoiseDistribution.of(q).draw(n // 10, 10, generator=generator).flatten(), minlength=50)
    chi_squared = ((counts - n * q) ** 2 / (n * q)).sum()
    assert chi_squared < 104.0


def test_held_out_text_is_measured_by_pair_and_by_centre(generator):
    """The result does not depend on the split into batches. The sums are not in the state_dict. A reset clears them."""
    log_p, log_Z = -torch.rand(50, generator=generator), torch.randn(20, generator=generator)
    held_out = HeldOut().double().half()
    assert held_out.sums.dtype == torch.float64 and not held_out.state_dict() and not list(held_out.buffers())
    for _ in range(2):
        for part in ((log_p[:7], log_Z[:0]), (log_p[7:], log_Z[:3]), (log_p[:0], log_Z[3:])):
            held_out.update(*part)
        nll = -log_p.double().mean().item()
        found = held_out.compute()
        assert list(found) == ["nll", "perplexity", "log_Z", "log_Z_sd"]
        expected = [nll, math.exp(nll), log_Z.double().mean().item(), log_Z.double().std(correction=0).item()]
        assert_close(list(found.values()), expected, rtol=1e-6, atol=1e-9)
        held_out.reset()
    held_out.update(torch.tensor([-1e6]), torch.zeros(1))
    assert held_out.compute() == {"nll": 1e6, "perplexity": math.inf, "log_Z": 0.0, "log_Z_sd": 0.0}
