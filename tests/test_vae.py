"""The VAE against a model whose every density is known: x = W z + sigma n with a Gaussian z."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

from zoo.estimators import gradient_moments
from zoo.evaluation import importance_weighted_log_likelihood
from zoo.functional import log_normal
from zoo.latents import Gaussian
from zoo.vae import VAE, binarise, importance_weighted_bound, log_importance_weight

D, P, SIGMA = 2, 4, 0.7


@pytest.fixture
def linear(generator):
    """W with orthogonal columns, so that the posterior is diagonal; x; log p(x); the exact posterior; log p(x | z)."""
    q = torch.linalg.qr(torch.randn(P, D, generator=generator, dtype=torch.float64)).Q
    W = q * torch.tensor([1.5, 0.4], dtype=torch.float64)
    x = torch.randn(6, P, generator=generator, dtype=torch.float64)
    log_p = MultivariateNormal(
        torch.zeros(P, dtype=torch.float64), W @ W.T + SIGMA**2 * torch.eye(P, dtype=torch.float64)
    ).log_prob(x)
    precision = 1 + (W**2).sum(0) / SIGMA**2
    mu = x @ W / SIGMA**2 / precision

    def log_px(x, z):
        logvar = torch.full((P,), 2 * math.log(SIGMA), dtype=torch.float64)
        return log_normal(x, z @ W.T, logvar)

    return x, log_p, Gaussian(mu, -precision.log().expand_as(mu)), log_px


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_exact_posterior_weighs_every_draw_the_same(linear, generator):
    x, log_p, q, log_px = linear
    z = q.draw(3 * normal(generator, 5, len(x), D))  # any draw, not only likely ones
    log_w = log_importance_weight(x, z, q, log_px)
    assert_close(log_w, log_p.expand(5, -1))
    assert_close(importance_weighted_bound(log_w), log_p)


def test_the_elbo_is_log_p_minus_the_divergence_from_the_posterior(linear):
    """Exactly, in expectation over eps, which is quadratic: antithetic pairs along each axis integrate it."""
    x, log_p, posterior, log_px = linear
    wrong = Gaussian(posterior.mu + 0.3, posterior.logvar - 0.5)  # shifted and too narrow: the bound is not tight
    nodes = torch.cat([s * math.sqrt(D) * torch.eye(D, dtype=torch.float64) for s in (-1, 1)])[:, None]
    elbo = log_px(x, wrong.draw(nodes)).mean(0) - wrong.kls().sum(-1)
    of = lambda q: torch.distributions.Normal(q.mu, (q.logvar / 2).exp())  # noqa: E731
    assert_close(elbo, log_p - torch.distributions.kl_divergence(of(wrong), of(posterior)).sum(-1))


def test_importance_weighting_closes_the_gap(linear, generator):
    """With a wrong q the mean weight is p(x): 4.3 standard errors, a false alarm once in 10,000 (six images)."""
    x, log_p, posterior, log_px = linear
    q = Gaussian(posterior.mu + 0.2, posterior.logvar + 0.3)  # wider than the posterior: weights have a variance
    n = 20_000
    weights = (log_importance_weight(x, q.draw(normal(generator, n, len(x), D)), q, log_px) - log_p).exp()
    error = weights.std(0) / n**0.5
    assert error.max() < 0.01
    assert ((weights.mean(0) - 1).abs() < 4.3 * error).all()


def test_binarisation_is_a_bernoulli_draw_and_leaves_binary_pixels(generator):
    x = torch.full((200_000,), 0.3)
    mean = binarise(x, torch.rand(x.shape, generator=generator)).mean()
    assert abs(mean - 0.3) < 4.3 * (0.21 / 200_000) ** 0.5  # a false alarm once in 60,000
    binary = torch.tensor([0.0, 1.0])
    for u in (torch.zeros(2), torch.full((2,), 1 - 2**-24)):
        assert torch.equal(binarise(binary, u), binary)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize(("net", "hidden"), [("mlp", [20]), ("conv", [4])])
def test_every_option_trains_and_samples(likelihood, net, hidden, generator):
    torch.manual_seed(0)
    model = VAE(latent_dim=3, likelihood=likelihood, net=net, hidden=hidden)
    batch = [torch.rand(5, 1, 28, 28, generator=generator), torch.zeros(5)]
    terms = model.loss(batch, generator)
    assert_close(terms["loss"], terms["nll"] + terms["kl"])
    terms["loss"].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name
    images = model.sample(4, generator=generator)
    assert images.shape == (4, 1, 28, 28) and images.min() >= 0 and images.max() <= 1
    assert model.reconstruct(batch[0]).shape == (5, 1, 28, 28)
    assert model.log_likelihood(batch[0], 3, generator=generator).shape == (5,)


def test_log_likelihood_is_the_log_of_the_mean_weight():
    same = torch.tensor([-90.0, -500.0])
    for k in (1, 2, 7):
        assert_close(importance_weighted_log_likelihood(lambda: same, k), same)
    weights = iter(torch.tensor([[0.1], [0.2], [0.6]]).log())
    assert_close(importance_weighted_log_likelihood(lambda: next(weights), 3), torch.tensor([0.3]).log())
    with pytest.raises(ValueError, match="at least 1, got 0"):
        importance_weighted_log_likelihood(lambda: same, 0)


def test_the_models_log_likelihood_draws_its_noise_from_the_generator():
    """One image, two samples, by hand: the binarisation first, then one eps per sample."""
    torch.manual_seed(0)
    model = VAE(latent_dim=3, hidden=[16])
    x, generator = torch.rand(1, 1, 28, 28), torch.Generator().manual_seed(1)
    ours = model.log_likelihood(x, 2, generator=torch.Generator().manual_seed(1))
    binary = binarise(x, torch.rand(x.shape, generator=generator))
    with torch.no_grad():
        q = model.encode(binary)
        weights = [
            log_importance_weight(binary, q.draw(torch.randn(1, 3, generator=generator)), q, model.log_px)
            for _ in range(2)
        ]
    assert_close(ours, torch.stack(weights).logsumexp(0) - math.log(2))


def test_the_gaussian_likelihood_by_hand():
    """Zero weights: means 0 and variance 0.03 + 0.01 = 0.2^2, on pixels as they are."""
    model = VAE(latent_dim=2, likelihood="gaussian", hidden=[4], variance_floor=0.01)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.log_variance.fill_(math.log(0.03))
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(model.observe(x, torch.rand(2, 1, 28, 28)), x)
    assert_close(model.log_px(x, torch.zeros(2, 2)), Normal(0.0, 0.2).log_prob(x).sum((1, 2, 3)))


def test_terms_are_sums_over_dimensions():
    """Zero weights: every pixel costs log 2 and the posterior is the prior, so nll = 784 log 2 and kl = 0."""
    model = VAE(hidden=[4])
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    terms = model.loss([torch.rand(3, 1, 28, 28), torch.zeros(3)])
    assert_close(terms["nll"], torch.tensor(784 * math.log(2)))
    assert terms["kl"] == 0


def test_both_estimators_see_the_same_decoder_gradient(generator):
    torch.manual_seed(0)
    model = VAE(latent_dim=2, hidden=[8])
    batch = model.probe_batch([torch.rand(6, 1, 28, 28, generator=generator), torch.zeros(6)], generator)
    assert set(batch[0].unique().tolist()) == {0.0, 1.0}
    estimators = model.gradient_estimators()
    means = {name: gradient_moments(e, batch, range(3))[0].mean for name, e in estimators.items()}
    for name, p in model.named_parameters():
        if name.startswith("decoder"):  # common random numbers: equal draw by draw
            assert_close(means["pathwise"][name], means["score_function"][name])
        assert p.grad is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"likelihood": "poisson"}, "bernoulli or gaussian, got 'poisson'"),
        ({"net": "transformer"}, "mlp or conv"),
        ({"latent_dim": 0}, "at least 1, got 0"),
        ({"hidden": 5}, r"such as \[512, 512\], got 5"),
        ({"net": "conv", "hidden": [3, 4]}, r"got \[3, 4\]"),
        ({"lr": -1.0}, "lr must be a positive number, got -1.0"),
        ({"lr": "abc"}, "lr must be a positive number, got 'abc'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE(**arguments)
