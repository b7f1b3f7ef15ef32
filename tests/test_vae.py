"""The VAE against a model whose every density is known: x = W z + sigma n with a Gaussian z."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from zoo.estimators import gradient_moments
from zoo.functional import log_normal
from zoo.vae import (
    VAE,
    binarise,
    log_importance_weight,
    negative_elbo,
    reparameterise,
    score_function_surrogate,
)

D, P, SIGMA = 2, 4, 0.7


@pytest.fixture
def linear(generator):
    """W with orthogonal columns, so that the posterior is diagonal; x; log p(x); the exact posterior's encoder."""
    q = torch.linalg.qr(torch.randn(P, D, generator=generator, dtype=torch.float64)).Q
    W = q * torch.tensor([1.5, 0.4], dtype=torch.float64)
    x = torch.randn(6, P, generator=generator, dtype=torch.float64)
    log_p = MultivariateNormal(
        torch.zeros(P, dtype=torch.float64), W @ W.T + SIGMA**2 * torch.eye(P, dtype=torch.float64)
    ).log_prob(x)
    precision = 1 + (W**2).sum(0) / SIGMA**2

    def encode(x):
        mu = x @ W / SIGMA**2 / precision
        return mu, -precision.log().expand_as(mu)

    def log_px(x, z):
        logvar = torch.full((P,), 2 * math.log(SIGMA), dtype=torch.float64)
        return log_normal(x, z @ W.T, logvar)

    return x, log_p, encode, log_px


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_exact_posterior_weighs_every_draw_the_same(linear, generator):
    x, log_p, encode, log_px = linear
    for _ in range(5):
        eps = 3 * normal(generator, len(x), D)  # any draw, not only likely ones
        assert_close(log_importance_weight(x, eps, encode, log_px), log_p)


def test_the_elbo_is_log_p_minus_the_divergence_from_the_posterior(linear, generator):
    """Exactly, in expectation over eps, which is quadratic: antithetic pairs along each axis integrate it."""
    x, log_p, encode, log_px = linear

    def wrong_encode(x):  # shifted and too narrow, so that the bound is not tight
        mu, logvar = encode(x)
        return mu + 0.3, logvar - 0.5

    nodes = [s * math.sqrt(D) * torch.eye(D, dtype=torch.float64)[d] for d in range(D) for s in (-1, 1)]
    terms = [negative_elbo(x, node.expand(len(x), D), wrong_encode, log_px) for node in nodes]
    elbo = -torch.stack([t["loss"] for t in terms]).mean(0)
    mu, logvar = encode(x)
    posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
    wrong = torch.distributions.Normal(mu + 0.3, (logvar / 2 - 0.25).exp())
    assert_close(elbo, log_p - torch.distributions.kl_divergence(wrong, posterior).sum(-1))
    assert_close(terms[0]["loss"], terms[0]["nll"] + terms[0]["kl"])


def test_importance_weighting_closes_the_gap(linear, generator):
    """With a wrong q the mean weight is p(x): 4.3 standard errors, a false alarm once in 10,000 (six images)."""
    x, log_p, encode, log_px = linear

    def wrong_encode(x):
        mu, logvar = encode(x)
        return mu + 0.2, logvar + 0.3  # wider than the posterior, so that weights have a variance

    n = 20_000
    weights = torch.stack(
        [(log_importance_weight(x, normal(generator, len(x), D), wrong_encode, log_px) - log_p).exp() for _ in range(n)]
    )
    error = weights.std(0) / n**0.5
    assert error.max() < 0.01
    assert ((weights.mean(0) - 1).abs() < 4.3 * error).all()


def test_score_function_and_pathwise_gradients_agree_in_expectation(linear, generator):
    """Both estimate the gradient of -ELBO in the encoder's mean; 4.5 standard errors, below 5 % of its norm."""
    x, _, encode, log_px = linear
    x, n = x[:1], 400_000
    shift = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    eps = normal(generator, n, D)

    def shifted(x):
        mu, logvar = encode(x)
        return (mu + shift).expand(n, D), logvar.expand(n, D)

    def gradients(per_example):
        mu = shift.detach().expand(n, D).clone().requires_grad_()
        m, logvar = encode(x)
        objective = per_example(x, eps, lambda _: (m + mu, logvar.expand(n, D)), log_px)
        return torch.autograd.grad(objective.sum(), mu)[0]

    pathwise = gradients(lambda *a: negative_elbo(*a)["loss"])
    score = gradients(score_function_surrogate)
    error = (pathwise.var(0) / n + score.var(0) / n).sqrt()
    assert 4.5 * error.norm() < 0.05 * pathwise.mean(0).norm()
    assert ((pathwise.mean(0) - score.mean(0)).abs() < 4.5 * error).all()
    assert score.var(0).sum() > 10 * pathwise.var(0).sum()  # the reason for the trick


def test_reparameterise():
    mu, logvar, eps = torch.tensor([1.0]), torch.tensor([math.log(4.0)]), torch.tensor([3.0])
    assert_close(reparameterise(mu, logvar, eps), torch.tensor([7.0]))  # sigma, not sigma^2: 1 + 2 * 3


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


def test_log_likelihood_rises_with_the_number_of_samples(generator):
    """E[L_k] grows with k (Burda et al. 2015, theorem 1); means over 400 images, 4.3 standard errors apart at least."""
    torch.manual_seed(0)
    model = VAE(latent_dim=8, hidden=[32])
    x = (torch.rand(400, 1, 28, 28, generator=generator) > 0.5).float()
    l1, l50 = (model.log_likelihood(x, k, generator=generator) for k in (1, 50))
    assert (l50 - l1).mean() > 4.3 * (l50 - l1).std() / 20
    # and L_1 estimates the ELBO
    elbo = -model.loss([x, x], generator)["loss"]
    assert abs(l1.mean() - elbo) < 4.3 * 2 * l1.std() / 20


def test_the_gaussian_likelihood_has_a_floor():
    model = VAE(likelihood="gaussian", hidden=[4], variance_floor=0.01)
    with torch.no_grad():
        model.log_variance.fill_(-1000.0)
    x, z = torch.zeros(1, 1, 28, 28), torch.zeros(1, 32)
    best = log_normal(torch.zeros(784), torch.zeros(784), torch.full((784,), math.log(0.01)))
    assert model.log_px(x, z) <= best


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
        ({"lr": -1.0}, "positive, got -1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE(**arguments)
