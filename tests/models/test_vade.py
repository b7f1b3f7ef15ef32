"""Tests of VaDE against Bayes' rule, the exact mixture and the VAE."""

import logging
import math
import re
import signal

import lightning as L
import numpy as np
import pytest
import torch
from helpers import TINY, assert_same, assert_same_run, checkpoint, run, stop
from processes import rows, together
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal, kl_divergence
from torch.func import grad
from torch.testing import assert_close

from zoo.datamodules import Images
from zoo.estimators import gradient_moments, score_function
from zoo.evaluation.protocol import evaluate
from zoo.functional import importance
from zoo.functional.clusters import ClusterTable, clustering_scores
from zoo.functional.deformation import deform
from zoo.functional.densities import binarise, log_bernoulli, reparameterise
from zoo.functional.latents import Gaussian
from zoo.functional.mixture import (
    Mixture,
    cost_at_a_fixed_draw,
    fit_mixture,
    invariance,
    kl_components,
    kl_terms,
    log_gmm,
    log_importance_weight,
    log_p_z_given_c,
    log_responsibilities,
    mean_field_negative_elbo,
    negative_elbo,
)
from zoo.functional.noise import chunk_generator
from zoo.vade import VaDE

K, D, P = 3, 2, 5


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def mixture(generator):
    return Mixture(normal(generator, K).log_softmax(0), normal(generator, K, D), 0.5 * normal(generator, K, D))


def reference(mixture):
    """Return the same prior as a torch distribution."""
    components = Independent(Normal(mixture.mu_c, (mixture.logvar_c / 2).exp()), 1)
    return MixtureSameFamily(Categorical(logits=mixture.log_pi), components)


@pytest.fixture
def toy(generator):
    """Return binary x (B, P), an encoder and a Bernoulli decoder, each with one nonlinear layer."""
    x = torch.bernoulli(torch.full((4, P), 0.5, dtype=torch.float64), generator=generator)
    W, V, U = normal(generator, P, D), normal(generator, P, D), normal(generator, D, P)

    def encode(x):
        return (x @ W).tanh(), (x @ V).tanh() - 1

    def log_px(x, z):
        return log_bernoulli(x, 2 * (z @ U).tanh())

    return x, encode, log_px


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.equation("vade", "p(c) p(z | c)")
@pytest.mark.equation("vade", "p(x | z)")
@pytest.mark.equation("vade", "q(z | x)")
@pytest.mark.equation("vade", "p(c | z)")
def test_the_densities_of_the_model_are_those_of_torch_at_its_parameters(likelihood, generator):
    """torch.distributions gives the prior, the likelihood, the posterior and Bayes' rule."""
    torch.manual_seed(0)
    model = VaDE(num_clusters=K, latent_dim=D, hidden=[8], likelihood=likelihood, variance_floor=0.01)
    with torch.no_grad():
        for parameter in (model.pi_logits, model.mu_c, model.logvar_c):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        z, x = torch.randn(5, D, generator=generator), torch.rand(5, 1, 28, 28, generator=generator).round()
        weights = model.pi_logits.exp() / model.pi_logits.exp().sum()
        components = Normal(model.mu_c, (model.logvar_c / 2).exp())
        joint = weights * components.log_prob(z[:, None]).sum(-1).exp()  # p(c) p(z | c), (5, K)
        assert_close((model.mixture.log_pi + log_p_z_given_c(z, model.mixture)).exp(), joint)
        assert_close(log_gmm(z, model.mixture), joint.sum(-1).log())
        assert_close(model.responsibilities(z), joint / joint.sum(-1, keepdim=True))
        out = model.decoder(z).flatten(1)
        gaussian = likelihood == "gaussian"
        px = Normal(out, (model.log_variance.exp() + 0.01).sqrt()) if gaussian else Bernoulli(logits=out)
        assert_close(model.log_px(x, z), px.log_prob(x.flatten(1)).sum(-1))
        mu, logvar = model.encoder(x).chunk(2, -1)
        q, twin = model.encode(x), Normal(mu, (logvar / 2).exp())
        assert_close(q.log_probs(z), twin.log_prob(z))
        assert_close(q.kls(), kl_divergence(twin, Normal(0.0, 1.0)))


@pytest.mark.equation("vade", "p(c | z)")
def test_densities_are_those_of_torch_distributions(mixture, generator):
    z, mu, logvar = (2 * normal(generator, 7, D) for _ in range(3))
    prior = reference(mixture)
    assert_close(log_gmm(z, mixture), prior.log_prob(z))
    assert_close(log_p_z_given_c(z, mixture), prior.component_distribution.log_prob(z[:, None]))
    joint = prior.mixture_distribution.logits + prior.component_distribution.log_prob(z[:, None])
    assert_close(log_responsibilities(z, mixture).exp(), (joint - prior.log_prob(z)[:, None]).exp())  # Bayes' rule
    q = Independent(Normal(mu[:, None], (logvar[:, None] / 2).exp()), 1)
    assert_close(kl_components(mu, logvar, mixture), kl_divergence(q, prior.component_distribution.expand((7, K))))


def test_responsibilities_are_finite_far_from_every_component(mixture):
    z = torch.full((1, D), 1e4, dtype=torch.float64, requires_grad=True)
    log_gamma = log_responsibilities(z, mixture)
    terms = kl_terms(z, torch.zeros(1, dtype=torch.float64), log_gamma, mixture)
    (terms["kl_z"] + terms["kl_c"]).sum().backward()
    assert log_gamma.isfinite().all() and z.grad.isfinite().all()
    assert_close(log_gamma.exp().sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.equation("vade", "five terms")
@pytest.mark.equation("vade", "marginal")
def test_five_terms_are_the_marginal_form_for_every_draw(toy, mixture, generator):
    """The bound of five terms and the log importance weight are log p(x|z) + log p_GMM(z) - log q(z|x) at every z."""
    x, encode, log_px = toy
    mu, logvar = encode(x)
    for _ in range(5):
        eps = 3 * normal(generator, len(x), D)
        terms = negative_elbo(x, eps, encode, log_px, mixture)
        z = mu + (logvar / 2).exp() * eps
        log_q = Normal(mu, (logvar / 2).exp()).log_prob(z).sum(-1)
        exact = log_px(x, z) + reference(mixture).log_prob(z) - log_q
        assert_close(-terms["loss"], exact)
        assert_close(log_importance_weight(x, eps, encode, log_px, mixture), exact)
        assert_close(terms["loss"], terms["nll"] + terms["kl_z"] + terms["kl_c"])
        assert (terms["kl_c"] >= 0).all()


@pytest.mark.equation("vade", "five terms")
def test_another_gamma_costs_its_divergence_from_bayes_rule(mixture, generator):
    """For any gamma, the bound of five terms is the marginal form minus KL(gamma || p(c|z)) ([HW2 P7], corrected)."""
    z, log_q = 2 * normal(generator, 6, D), normal(generator, 6)
    posterior = log_responsibilities(z, mixture)
    for log_gamma in (posterior, normal(generator, 6, K).log_softmax(-1), mixture.log_pi.expand(6, K)):
        terms = kl_terms(z, log_q, log_gamma, mixture)
        deficit = kl_divergence(Categorical(logits=log_gamma), Categorical(logits=posterior))
        assert_close(terms["kl_z"] + terms["kl_c"], log_q - reference(mixture).log_prob(z) + deficit)
        if log_gamma is posterior:
            assert_close(deficit, torch.zeros_like(deficit))
        else:
            assert deficit.min() > 1e-3


def quadrature(x, objective):
    """Return the expectation of a loss over two-dimensional eps ~ N(0, I) by Gauss-Hermite quadrature, (B,)."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
    weights = weights / weights.sum()
    total = torch.zeros(len(x), dtype=torch.float64)
    for i, a in enumerate(nodes):
        eps = torch.stack([a.expand(60), nodes], -1)  # (60, 2)
        loss = objective(x.repeat_interleave(60, 0), eps.repeat(len(x), 1)).view(len(x), 60)
        total = total + weights[i] * (loss * weights).sum(-1)
    return total


@pytest.mark.equation("vade", "mean field")
def test_the_mean_field_lies_below_the_exact_bound(toy, mixture, generator):
    """The test computes expectations over eps by quadrature, for several gamma. At K = 1 the bounds are equal."""
    x, encode, log_px = toy

    def exact(mixture):
        return quadrature(x, lambda x, eps: negative_elbo(x, eps, encode, log_px, mixture)["loss"])

    def mean_field(mixture, log_gamma):
        repeated = log_gamma.repeat_interleave(60, 0)
        return quadrature(x, lambda x, eps: mean_field_negative_elbo(x, eps, encode, log_px, mixture, repeated)["loss"])

    at_the_mean = log_responsibilities(encode(x)[0], mixture)
    best = (mixture.log_pi - kl_components(*encode(x), mixture)).log_softmax(-1)  # the gamma with the largest bound
    gaps = [mean_field(mixture, g) - exact(mixture) for g in (best, at_the_mean, mixture.log_pi.expand(4, K))]
    assert (gaps[0] > 1e-3).all() and (gaps[0] < gaps[1]).all() and (gaps[0] < gaps[2]).all()
    one = Mixture(torch.zeros(1, dtype=torch.float64), mixture.mu_c[:1], mixture.logvar_c[:1])
    assert_close(mean_field(one, torch.zeros(4, 1, dtype=torch.float64)), exact(one))


@pytest.mark.equation("vade", "five terms")
@pytest.mark.equation("vade", "mean field")
def test_the_five_terms_and_the_mean_field_agree_in_expectation_at_the_same_gamma(toy, mixture, generator):
    """The test compares the expectation of each term by quadrature, for a gamma that does not depend on z."""
    x, encode, log_px = toy
    log_gamma = normal(generator, len(x), K).log_softmax(-1).repeat_interleave(60, 0)

    def five_terms(x, eps):
        mu, logvar = encode(x)
        z = reparameterise(mu, logvar, eps)
        return kl_terms(z, Normal(mu, (logvar / 2).exp()).log_prob(z).sum(-1), log_gamma, mixture)

    for term in ("kl_z", "kl_c"):
        closed = mean_field_negative_elbo(x, torch.zeros(4, D), encode, log_px, mixture, log_gamma[::60])[term]
        assert_close(quadrature(x, lambda x, eps: five_terms(x, eps)[term]), closed)  # noqa: B023


def test_one_standard_component_is_the_vae(toy, generator):
    x, encode, log_px = toy
    zeros = torch.zeros(1, D, dtype=torch.float64)
    standard = Mixture(zeros[:, 0], zeros, zeros)
    eps = normal(generator, len(x), D)
    ours = mean_field_negative_elbo(x, eps, encode, log_px, standard, torch.zeros(4, 1, dtype=torch.float64))
    q = Gaussian(*encode(x))
    assert_close(ours["kl_z"], q.kls().sum(-1))
    assert_close(ours["loss"], -log_px(x, q.draw(eps)) + q.kls().sum(-1))
    weight = importance.log_importance_weight(x, q.draw(eps), q, log_px)
    assert_close(-negative_elbo(x, eps, encode, log_px, standard)["loss"], weight)


def test_gradients_by_score_function_agree_in_expectation(toy, mixture):
    """Quadrature compares the gradients of the encoder, the decoder and the mixture exactly."""
    x, encode, log_px = toy
    shift, logvar_shift, theta = (torch.zeros(D, dtype=torch.float64, requires_grad=True) for _ in range(3))
    leaves = Mixture(*(t.clone().requires_grad_() for t in mixture))

    def shifted(x):
        mu, logvar = encode(x)
        return mu + shift, logvar + logvar_shift

    def gradients(objective):
        value = quadrature(x, lambda x, eps: objective(x, eps, shifted, lambda x, z: log_px(x, z + theta), leaves))
        return torch.autograd.grad(value.mean(), (shift, logvar_shift, theta, *leaves))

    pathwise = gradients(lambda *args: negative_elbo(*args)["loss"])
    assert min(g.abs().max().item() for g in pathwise) > 0.01
    assert_close(gradients(lambda *args: score_function(*cost_at_a_fixed_draw(*args))), pathwise)


def test_deformations_are_smooth_and_near_the_identity(generator):
    x = torch.rand(3, 1, 28, 28, generator=generator)
    affine, bumps = torch.randn(3, 2, 3, generator=generator), torch.randn(3, 2, 4, 4, generator=generator)
    assert torch.equal(deform(x, affine, bumps, 0.0), x)
    assert_close(deform(x, affine, bumps, 1e-7), x, rtol=0, atol=1e-4)
    shift = torch.zeros(3, 2, 3)
    shift[:, 0, 2] = 2 / 28  # one pixel to the left, in a range of 2
    moved = deform(x, shift, torch.zeros(3, 2, 4, 4), 1.0)
    assert_close(moved[..., :-1], x[..., 1:], rtol=0, atol=1e-4)
    assert deform(x, affine, bumps, 0.3).min() >= 0 and deform(x, affine, bumps, 0.3).max() <= 1


def test_even_bumps_move_an_image_by_two_thirds_of_the_strength(generator):
    """At strength 1, equal bumps of 3/28 move all points by 2/3 x 3/28 = 1/14. This is one pixel of 28 over [-1, 1]."""
    x = torch.rand(2, 1, 28, 28, generator=generator)
    bumps = torch.zeros(2, 2, 4, 4)
    bumps[0, 0], bumps[1, 1] = 3 / 28, 6 / 28  # one pixel to the left; two pixels up
    moved = deform(x, torch.zeros(2, 2, 3), bumps, 1.0)
    assert_close(moved[0, :, :, :-1], x[0, :, :, 1:], rtol=0, atol=1e-4)
    assert_close(moved[1, :, :-2], x[1, :, 2:], rtol=0, atol=1e-4)


@pytest.mark.equation("vade", "mean field")
def test_gamma_is_held_fixed_in_training(generator):
    """The gradient treats gamma = p(c | z = mu(x)) as a constant. gamma is computed from the original image."""
    torch.manual_seed(0)
    model = VaDE(num_clusters=3, hidden=[8], latent_dim=2, deformation=0.2)
    noise = model.noise([torch.zeros(4, 1, 28, 28)], generator=generator)
    x = torch.rand(4, 1, 28, 28, generator=generator).round()
    log_gamma = log_responsibilities(model.encode(x).mu, model.mixture)
    parameters = list(model.parameters())

    def gradients(log_gamma):
        given = (noise["eps"], model.encode_deformed(noise), model.log_px, model.mixture, log_gamma)
        loss = mean_field_negative_elbo(x, *given)["loss"].sum()
        return torch.autograd.grad(loss, parameters, retain_graph=True)

    training = torch.autograd.grad(model.mean_field(x, noise)["loss"].sum(), parameters)
    assert_close(training, gradients(log_gamma.detach()))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(training, gradients(log_gamma), strict=True))


def test_pretraining_minimises_minus_the_likelihood_at_the_mean(generator):
    """The loss compares reconstructions of deformed images with the originals. The mixture is not used."""
    model = VaDE(hidden=[8], latent_dim=2, deformation=0.2)
    batch = [torch.rand(3, 1, 28, 28, generator=generator), torch.zeros(3)]
    noise = model.noise(batch, generator=chunk_generator(0, 1))
    x = (noise["u"] < batch[0]).float()
    mu = model.encode(deform(x, noise["affine"], noise["bumps"], 0.2)).mu
    loss = model.pretraining_loss(batch, generator=chunk_generator(0, 1))
    assert_close(loss, -log_bernoulli(x.flatten(1), model.decoder(mu).flatten(1)).mean())
    loss.backward()
    assert model.mu_c.grad.abs().sum() == 0 and model.encoder[1][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", ["kmeans", "em"])
def test_fit_mixture_finds_well_separated_clusters(method, generator):
    """Three Gaussians are at least 10 standard deviations apart. The tolerance is 4.5 standard errors."""
    n = 4000
    true = Mixture(torch.tensor([0.5, 0.3, 0.2]).log(), 10 * torch.eye(3)[:, :2], torch.zeros(3, 2))
    c = torch.multinomial(true.log_pi.exp(), n, replacement=True, generator=generator)
    z = true.mu_c[c] + torch.randn(n, 2, generator=generator)
    fitted = fit_mixture(z, z, 3, restarts=2, seed=0, method=method)
    order = fitted.log_pi.argsort(descending=True)
    found = Mixture(*(t[order] for t in fitted))
    assert (found.log_pi.exp() - true.log_pi.exp()).abs().max() < 4.5 * 0.5 / n**0.5
    assert (found.mu_c - true.mu_c).abs().max() < 4.5 / (0.2 * n) ** 0.5
    assert (found.logvar_c).abs().max() < 4.5 * (2 / (0.2 * n)) ** 0.5
    assert_same(list(fit_mixture(z, z, 3, 2, 0, method)), list(fitted))


def test_fit_mixture_takes_the_clusters_that_deformation_keeps(generator):
    """The points are near the corners of a rectangle, which is wider than high.

    The clusters with the smallest k-means loss are left and right. The deformation mirrors half of the points, so it
    mixes left and right. It keeps top and bottom apart, so ``fit_mixture`` chooses these clusters.
    """
    z = torch.tensor([1.2, 1.0]) * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).repeat(100, 1)
    z = z + 0.01 * torch.randn(400, 2, generator=generator)
    mirrored = torch.tensor([-1.0, 1.0]) * z
    mirrored[::2] = z[::2]
    left, right = fit_mixture(z, mirrored, 2, restarts=30, seed=0).mu_c
    assert_close((left - right).abs(), torch.tensor([0.0, 2.0]), rtol=0, atol=0.02)


def test_invariance_is_the_mutual_information_of_clusters(generator):
    """Four clusters are far apart and equally likely.

    The value is log 4 if the deformation keeps all clusters, and 0 if it mixes all clusters. If the deformation mixes
    only two clusters, the value is 1.5 log 2.
    """
    mixture = Mixture(torch.zeros(4).log_softmax(0), 20 * torch.eye(4), torch.zeros(4, 4))
    c = torch.arange(400) % 4
    z = mixture.mu_c[c] + torch.randn(400, 4, generator=generator)
    assert_close(invariance(z, z.roll(4, 0), mixture), math.log(4))
    assert abs(invariance(z, mixture.mu_c[(c + torch.arange(400) // 4) % 4], mixture)) < 1e-4
    swapped = mixture.mu_c[torch.where(c < 2, (c + torch.arange(400) // 4) % 2, c)]
    assert_close(invariance(z, swapped, mixture), 1.5 * math.log(2))


def tiny(**arguments):
    torch.manual_seed(0)
    return VaDE(**{"num_clusters": K, "latent_dim": 4, "hidden": [16], **arguments})


def test_every_parameter_learns_and_every_use_has_its_shape(generator):
    model = tiny()
    batch = [torch.rand(5, 1, 28, 28, generator=generator), torch.zeros(5, dtype=torch.long)]
    terms = model.loss(batch, generator=generator)
    assert_close(terms["loss"], terms["nll"] + terms["kl_z"] + terms["kl_c"])
    terms["loss"].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name
    x = batch[0]
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (5, 4)
    gamma = model.responsibilities(mu)
    assert_close(gamma.sum(-1), torch.ones(5))
    assert torch.equal(model.cluster(x), gamma.argmax(-1))
    assert model.reconstruct(x).shape == model.decode(mu).shape == (5, 1, 28, 28)


def test_terms_are_sums_over_dimensions():
    """With zero weights and one component N(0, I), every pixel costs log 2 and q is the prior."""
    model = tiny(num_clusters=1)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    batch = [torch.rand(3, 1, 28, 28), torch.zeros(3)]
    for terms in (model.loss(batch), model.bound(batch)):
        assert_close(terms["nll"], torch.tensor(784 * math.log(2)))
        assert_close(terms["loss"], terms["nll"], rtol=1e-5, atol=0)
        assert terms["kl_c"] == 0


def test_pretraining_gives_every_parameter_a_gradient_and_the_mixture_a_zero_one(generator):
    model = tiny()
    batch = [torch.rand(5, 1, 28, 28, generator=generator), torch.zeros(5)]
    model.pretraining_loss(batch, generator=generator).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert (p.grad.abs().sum() > 0) == name.startswith(("encoder", "decoder")), name


def test_samples_come_from_the_clusters_asked_for(generator):
    """The components are narrow and far apart, so an image shows its cluster."""
    model = tiny(latent_dim=2, hidden=[2])
    with torch.no_grad():
        model.mu_c.copy_(torch.tensor([[-5.0, 0.0], [0.0, 5.0], [5.0, 0.0]]))
        model.logvar_c.fill_(-6)
        model.pi_logits.copy_(torch.tensor([0.1, 0.2, 0.7]).log())
    asked = [2, 0, 1, 1, 0]
    images = model.sample(5, clusters=asked, generator=generator)
    assert images.shape == (5, 1, 28, 28) and images.min() >= 0 and images.max() <= 1
    nearest = lambda x: torch.cdist(x.flatten(1), model.decode(model.mu_c).flatten(1)).argmin(-1)  # noqa: E731
    assert nearest(images).tolist() == asked
    again = model.sample(5, clusters=torch.tensor(asked), generator=torch.Generator().manual_seed(0))
    assert torch.equal(images, again)
    assert nearest(model.sample(4, clusters=1, generator=generator)).tolist() == [1] * 4
    n = 3000
    share = nearest(model.sample(n, generator=generator)).bincount(minlength=3) / n
    # For the three fractions together, 4.5 standard errors give a false alarm once in 50,000 runs.
    assert (share - torch.tensor([0.1, 0.2, 0.7])).abs().max() < 4.5 * (0.25 / n) ** 0.5
    assert model.rows() == ("clusters", [0, 1, 2])


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ([0, 3], "between 0 and 2, got 3"),
        ([-1, 0], "between 0 and 2, got -1"),
        ([0], "one integer for each of the 2 images, or one for all; got 1"),
        ([0.5, 1], "integers, got [0.5, 1]"),
        (3, "between 0 and 2, got 3"),
        ("one", "integers, got 'one'"),
        (torch.tensor([0.0, 1.0]), "integers, got tensor"),
    ],
)
def test_bad_clusters_are_named(clusters, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny().sample(2, clusters=clusters)


def test_log_likelihood_closes_the_gap_and_draws_from_the_generator():
    """The test draws the noise in the order of the method: first for binarisation, then eps for each of two samples."""
    model = tiny()
    x, generator = torch.rand(1, 1, 28, 28), torch.Generator().manual_seed(1)
    ours = model.log_likelihood(x, num_samples=2, generator=torch.Generator().manual_seed(1))
    binary = binarise(x, torch.rand(x.shape, generator=generator))
    with torch.no_grad():
        weights = [
            log_importance_weight(
                binary, torch.randn(1, 4, generator=generator), model.encode, model.log_px, model.mixture
            )
            for _ in range(2)
        ]
    assert_close(ours, torch.stack(weights).logsumexp(0) - math.log(2))


@pytest.mark.equation("vade", "marginal")
def test_importance_weights_have_mean_p_of_x(toy, mixture, generator):
    """A sum over a grid of z gives p(x). For four images, 4.3 standard errors give a false alarm once in 10,000."""
    x, encode, log_px = toy
    n, side = 20_000, torch.linspace(-12, 12, 300, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    cell = (side[1] - side[0]) ** 2
    prior = reference(mixture).log_prob(grid)
    p_x = torch.stack([(log_px(row, grid) + prior).exp().sum() * cell for row in x])
    wide = lambda x: (encode(x)[0], encode(x)[1] + 4)  # noqa: E731  # a wide q keeps the weights similar
    eps = normal(generator, n * len(x), D)
    weights = log_importance_weight(x.repeat(n, 1), eps, wide, log_px, mixture).exp().view(n, len(x))
    error = weights.std(0) / n**0.5
    assert (error < 0.03 * p_x).all()
    assert ((weights.mean(0) - p_x).abs() < 4.3 * error).all()


def test_estimators_see_the_same_decoder_and_the_first_is_what_trains(generator):
    model = tiny()
    batch = model.probe_batch([torch.rand(6, 1, 28, 28, generator=generator), torch.zeros(6)], generator=generator)
    assert set(batch[0].unique().tolist()) == {0.0, 1.0}
    estimators = model.gradient_estimators()
    assert list(estimators) == ["mean_field", "pathwise", "score_function"]
    means = {name: gradient_moments(e, batch, range(3))[0].mean for name, e in estimators.items()}
    for name in means["pathwise"]:  # each draw is equal, because the estimators use the same noise
        if name.startswith("decoder"):
            assert_close(means["pathwise"][name], means["mean_field"][name])
        if not name.startswith("encoder"):
            assert_close(means["pathwise"][name], means["score_function"][name], rtol=1e-4, atol=1e-6)
    e = estimators["mean_field"]
    g = grad(e.surrogate)({k: p.detach() for k, p in e.params.items()}, batch, e.noise(batch, chunk_generator(9, 0)))
    model.loss(batch, generator=chunk_generator(9, 0))["loss"].backward()
    for name, p in model.named_parameters():
        assert_close(g[name], p.grad, rtol=1e-4, atol=1e-5)


def test_clustering_scores():
    """The scores equal scikit-learn's scores and values computed by hand."""
    table = torch.tensor([[0, 5, 1], [4, 0, 0], [0, 1, 3]])
    cluster = [0] * 6 + [1] * 4 + [2] * 4
    label = [1] * 5 + [2] + [0] * 4 + [1] + [2] * 3
    scores = clustering_scores(table)
    assert_close(scores["accuracy"], 12 / 14)
    assert_close(scores["nmi"], float(normalized_mutual_info_score(label, cluster)))
    assert_close(scores["ari"], float(adjusted_rand_score(label, cluster)))
    assert clustering_scores(torch.diag(torch.tensor([3, 1, 2]))[[2, 0, 1]]) == {"accuracy": 1, "nmi": 1, "ari": 1}
    more_clusters_than_labels = torch.tensor([[2, 0], [3, 0], [0, 4]])
    assert_close(clustering_scores(more_clusters_than_labels)["accuracy"], 7 / 9)  # each label has at most one cluster
    with pytest.raises(ValueError, match="no examples"):
        clustering_scores(torch.zeros(2, 2, dtype=torch.long))
    batches = ClusterTable(3, 3)
    for start in range(0, 14, 4):  # the last batch is smaller
        batches.update(torch.tensor(cluster[start : start + 4]), torch.tensor(label[start : start + 4]))
    assert batches.compute() == scores and batches.table.tolist() == table.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clusters": 0}, "num_clusters must be an integer of at least 1, got 0"),
        ({"latent_dim": 2.5}, "latent_dim must be an integer of at least 1, got 2.5"),
        ({"hidden": 5}, r"such as [300, 300, 600], got 5"),
        ({"pretrain_epochs": -1}, "pretrain_epochs must be an integer of at least 0, got -1"),
        ({"initial_mixture": "gmm"}, "kmeans or em, got 'gmm'"),
        ({"restarts": 0}, "restarts must be an integer of at least 1, got 0"),
        ({"deformation": -0.1}, "deformation must be a number of at least 0, got -0.1"),
        ({"lr": "abc"}, "lr must be a positive number, got 'abc'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        VaDE(**arguments)


# Runs with 11 batches per epoch. The first epoch trains the autoencoder.

SHORT = [*TINY["vade"], "trainer.max_epochs=3", "callbacks=none", "trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run(folder, *SHORT), folder


def test_the_mixture_is_fitted_once_between_the_phases(tmp_path, uninterrupted, caplog):
    metrics, folder = uninterrupted
    logged = rows(folder)
    phase = ["".join(k[0] for k in ("reconstruction", "loss") if r[f"train/{k}"]) for r in logged]
    assert [p for p in phase if p] == ["r"] * 11 + ["l"] * 22
    state = checkpoint(folder)
    assert state["state_dict"]["initialised"]
    assert state["optimizer_states"][0]["state"][0]["step"] == 22  # Adam restarted
    assert metrics["val/loss"] == pytest.approx(metrics["val/nll"] + metrics["val/kl_z"] + metrics["val/kl_c"])
    assert 0.1 < metrics["test/accuracy"] <= 1 and metrics["test/nmi"] >= 0

    with caplog.at_level(logging.INFO):
        run(tmp_path, *SHORT, "trainer.max_epochs=2", "test=false")
    assert sum("Mixture of 10 Gaussians fitted to 1,408 latents" in r.message for r in caplog.records) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(tmp_path, *SHORT, "trainer.max_epochs=3", f"ckpt={tmp_path / 'checkpoints' / 'last.ckpt'}", "test=false")
    assert "Mixture" not in caplog.text


@pytest.mark.parametrize(
    ("at", "left"),
    [
        (5, "interrupted"),  # in the middle of the autoencoder's epoch
        (10, "last"),  # in the last batch of that epoch, so the resumed run fits the mixture
        (11, "interrupted"),  # in the first batch after the mixture was fitted
    ],
)
def test_a_run_interrupted_around_the_fit_resumes_exactly(at, left, tmp_path, uninterrupted):
    with pytest.raises(SystemExit):
        run(tmp_path, *SHORT, *stop(at, signal.SIGTERM))
    path = tmp_path / "checkpoints" / f"{left}.ckpt"
    assert bool(checkpoint(tmp_path, left)["state_dict"]["initialised"]) == (at > 10)
    metrics, folder = uninterrupted
    resumed = run(tmp_path, *SHORT, f"ckpt={path}")
    if at >= 10:  # the resumed run does not repeat the epoch that logs this metric
        metrics = {k: v for k, v in metrics.items() if k != "train/reconstruction"}
    assert_same_run(resumed, tmp_path, (metrics, folder))


def test_each_phase_has_half_a_cosine_and_the_fit_gives_q_a_variance(tmp_path):
    """The phases have three and six steps.

    After the fit, the variance of q is 1/20 of the mean variance of the components.
    """
    rates, variances = [], []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            if len(rates) == 4:
                with torch.no_grad():
                    variances.extend([model.encode(batch[0]).logvar.exp(), model.logvar_c.exp().mean() / 20])

    model = VaDE(num_clusters=3, hidden=[8], latent_dim=2, pretrain_epochs=1, restarts=1, lr=0.01)
    with torch.no_grad():
        model.encoder[-1][-1].weight.mul_(20)  # spread the latents, so that the components have different variances
    L.Trainer(max_epochs=3, callbacks=[Watch()], logger=False, enable_checkpointing=False, accelerator="cpu",
              enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0
              ).fit(model, Images("digits", digits_repeat=1, batch_size=479))  # fmt: skip
    half = lambda share: 0.01 * (1 + math.cos(math.pi * share)) / 2  # noqa: E731
    assert_close(rates, [half(k / 3) for k in range(3)] + [half(k / 6) for k in range(6)])
    found, expected = variances
    assert_close(found, expected.expand_as(found))
    assert (expected.log() - model.logvar_c.mean() + math.log(20)).abs() > 0.01  # the mean of the logarithms differs


def test_a_run_without_a_mixture_is_said_to_be_one(tmp_path, caplog):
    run(tmp_path, *SHORT, "trainer.max_epochs=1", "trainer.limit_train_batches=1", "test=false")
    assert "ends before the mixture is fitted: trainer.max_epochs is 1" in caplog.text
    assert not checkpoint(tmp_path)["state_dict"]["initialised"]


def test_the_metrics_of_the_run_are_those_of_the_reloaded_model(uninterrupted):
    import zoo
    from zoo.datamodules import Images

    metrics, folder = uninterrupted
    data = Images("digits")
    again = evaluate(zoo.load(folder), data)
    for key, value in again.items():
        assert_close(value, metrics[key])
    x, y = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    table = torch.zeros(10, 10, dtype=torch.long)
    for cluster, label in zip(zoo.load(folder).cluster(x).tolist(), y.tolist(), strict=True):
        table[cluster, label] += 1
    assert_close(again["test/accuracy"], clustering_scores(table)["accuracy"])


def said_in_a_run_of_two(folder):
    """Train on two processes, and return what the fit of the mixture says on this process."""
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("zoo.functional.mixture").addHandler(handler)
    logging.getLogger("zoo.functional.mixture").setLevel(logging.INFO)
    keep = ["+callbacks.keep._target_=helpers.KeepGradients", f"+callbacks.keep.folder={folder}"]
    run(folder, *SHORT, *keep, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=2")
    return said


def test_two_processes_fit_one_mixture(tmp_path):
    """After training, both processes have the same parameters. Only the first says that the mixture is fitted."""
    first, second = together(2, said_in_a_run_of_two, tmp_path)
    assert [s.startswith("Mixture of 10 Gaussians fitted to 1,408 latents") for s in first] == [True] and not second
    assert_same(*(dict(torch.load(tmp_path / f"steps{rank}.pt", weights_only=True)["after"]) for rank in (0, 1)))
    # The scores use the images of both processes. The accuracy on 180 test images is a multiple of 1 / 180.
    accuracy = float(rows(tmp_path)[-1]["test/accuracy"])
    assert accuracy * 180 == pytest.approx(round(accuracy * 180), abs=1e-4)


def test_earlier_calls_still_work(generator):
    model, seeded = VaDE(hidden=[4], latent_dim=2), lambda: torch.Generator().manual_seed(7)
    batch = [torch.rand(3, 1, 28, 28, generator=generator), torch.zeros(3)]
    assert isinstance(model.encode(batch[0]), Gaussian)
    for name in ("noise", "loss", "bound", "pretraining_loss", "probe_batch"):
        with pytest.warns(DeprecationWarning, match=f"give generator= of VaDE.{name} by name"):
            old = getattr(model, name)(batch, seeded())
        assert_same(old, getattr(model, name)(batch, generator=seeded()))
    with pytest.warns(DeprecationWarning, match="give num_samples= of VaDE.log_likelihood by name"):
        old = model.log_likelihood(batch[0], 2, generator=seeded())
    assert torch.equal(old, model.log_likelihood(batch[0], num_samples=2, generator=seeded()))
