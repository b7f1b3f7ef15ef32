"""Tests of the conditional VAE. Many tests use x = W z + V y + sigma n with n ~ N(0, I), where p(x | y) is known."""

import math

import pytest
import torch
from helpers import TINY, config, model_of
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from zoo.checks.errors import UserError
from zoo.checks.labels import as_labels
from zoo.commands.training import build
from zoo.cvae import CVAE, log_importance_weight, negative_elbo, score_function_surrogate
from zoo.datamodules import Images
from zoo.estimators import gradient_moments
from zoo.functional.densities import log_normal
from zoo.functional.latents import Gaussian
from zoo.sampling.chunks import check_conditions, sample_chunks
from zoo.sampling.pictures import picture
from zoo.vae import VAE

D, P, K, SIGMA = 2, 4, 3, 0.7
F64 = torch.float64


@pytest.fixture(params=["standard", "learned"])
def linear(request, generator):
    """Return x, y, log p(x | y), and the tuple (encode, log_px, prior) of functions.

    ``encode`` returns the exact posterior. It is diagonal, because the columns of W are orthogonal. The learned prior
    has a mean and a variance per label.
    """
    W = torch.linalg.qr(normal(generator, P, D)).Q * torch.tensor([1.5, 0.4], dtype=F64)
    V = normal(generator, K, P)
    y = torch.tensor([0, 1, 2, 2, 0, 1])
    x = normal(generator, len(y), P)
    mu_p, logvar_p = normal(generator, K, D), normal(generator, K, D)
    if request.param == "standard":
        mu_p, logvar_p = torch.zeros_like(mu_p), torch.zeros_like(logvar_p)
    covariance = W @ torch.diag_embed(logvar_p.exp()) @ W.T + SIGMA**2 * torch.eye(P, dtype=F64)
    log_p = MultivariateNormal(mu_p[y] @ W.T + V[y], covariance[y]).log_prob(x)

    def prior(y):
        return mu_p[y], logvar_p[y]

    def encode(x, y):
        precision = (-logvar_p[y]).exp() + (W**2).sum(0) / SIGMA**2
        mu = ((x - V[y]) @ W / SIGMA**2 + mu_p[y] * (-logvar_p[y]).exp()) / precision
        return mu, -precision.log()

    def log_px(x, z, y):
        return log_normal(x, z @ W.T + V[y], torch.full((P,), 2 * math.log(SIGMA), dtype=F64))

    return x, y, log_p, (encode, log_px, prior)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=F64)


def images(generator, n=5):
    return torch.rand(n, 1, 28, 28, generator=generator)


def test_the_exact_posterior_weighs_every_draw_the_same(linear, generator):
    x, y, log_p, model = linear
    for _ in range(5):
        eps = 3 * normal(generator, len(x), D)  # both likely and unlikely draws
        assert_close(log_importance_weight(x, y, eps, *model), log_p)
    other = log_importance_weight(x, (y + 1) % K, eps, *model)  # another label gives another value
    assert (other - log_p).abs().min() > 0.01


@pytest.mark.equation("cvae", "L(x, y)")
def test_the_bound_is_log_p_minus_the_divergence_from_the_posterior(linear):
    """The bound is quadratic in eps, so antithetic pairs along each axis give its expectation exactly."""
    x, y, log_p, (encode, log_px, prior) = linear

    def wrong_encode(x, y):  # the bound is loose, because this encoder is shifted and too narrow
        mu, logvar = encode(x, y)
        return mu + 0.3, logvar - 0.5

    nodes = [s * math.sqrt(D) * torch.eye(D, dtype=F64)[d] for d in range(D) for s in (-1, 1)]
    terms = [negative_elbo(x, y, node.expand(len(x), D), wrong_encode, log_px, prior) for node in nodes]
    elbo = -torch.stack([t["loss"] for t in terms]).mean(0)
    (mu, logvar), (mu_p, logvar_p) = encode(x, y), prior(y)
    wrong = Normal(mu + 0.3, (logvar / 2 - 0.25).exp())
    assert_close(elbo, log_p - kl_divergence(wrong, Normal(mu, (logvar / 2).exp())).sum(-1))
    assert_close(terms[0]["kl"], kl_divergence(wrong, Normal(mu_p, (logvar_p / 2).exp())).sum(-1))
    assert_close(terms[0]["loss"], terms[0]["nll"] + terms[0]["kl"])


def test_the_divergence_is_zero_where_the_posterior_is_the_prior(linear, generator):
    x, y, _, (_, log_px, prior) = linear
    terms = negative_elbo(x, y, normal(generator, len(x), D), lambda x, y: prior(y), log_px, prior)
    assert torch.equal(terms["kl"], torch.zeros(len(x), dtype=F64))


def test_score_function_and_pathwise_gradients_agree_in_expectation(linear, generator):
    """The gradients are with respect to shifts of mu and of logvar.

    The tolerance is 4.3 standard errors. It gives a false alarm once in 15,000 runs for both priors together.
    """
    x, y, _, (encode, log_px, prior) = linear
    n = 200_000
    x, y = x[:1].expand(n, P), y[:1].expand(n)
    eps = normal(generator, n, D)
    shift = torch.tensor([0.4, -0.3], dtype=F64).expand(n, 2).clone().requires_grad_()

    def shifted(x, y):
        mu, logvar = encode(x, y)
        return mu + shift[:, :1], logvar + shift[:, 1:]

    gradients = []
    for objective in (lambda *args: negative_elbo(*args)["loss"], score_function_surrogate):
        gradients.append(torch.autograd.grad(objective(x, y, eps, shifted, log_px, prior).sum(), shift)[0])
    pathwise, score = gradients
    difference = pathwise - score
    error = difference.std(0) / n**0.5
    assert (difference.mean(0).abs() < 4.3 * error).all()
    assert (4.3 * error < 0.05 * pathwise.mean(0).norm()).all()  # enough draws to detect a wrong gradient


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_without_the_labels_weights_it_is_the_vae(likelihood, generator):
    """With zero weights for the labels, a CVAE equals a VAE with the same other weights and noise, up to rounding."""
    vae = VAE(latent_dim=3, hidden=[20], likelihood=likelihood)
    model = CVAE(latent_dim=3, hidden=[20], likelihood=likelihood)
    with torch.no_grad():
        for ours, theirs in [(model.encoder, vae.encoder[1]), (model.decoder, vae.decoder[0])]:
            ours[0].weight.zero_()
            ours[0].weight[:, : theirs[0].weight.shape[1]] = theirs[0].weight  # the labels are the last inputs
            ours[0].bias.copy_(theirs[0].bias)
            ours[2].load_state_dict(theirs[2].state_dict())
    batch = [images(generator), torch.tensor([0, 9, 3, 3, 1])]
    seeded = lambda: torch.Generator().manual_seed(4)  # noqa: E731
    assert_close(model.loss(batch, generator=seeded()), vae.loss(batch, generator=seeded()))
    assert_close(model.sample(5, y=batch[1], generator=seeded()), vae.sample(5, generator=seeded()))
    ours = model.log_likelihood(batch[0], y=batch[1], num_samples=3, generator=seeded())
    assert_close(ours, vae.log_likelihood(batch[0], num_samples=3, generator=seeded()))


@pytest.mark.parametrize("prior", ["standard", "learned"])
def test_swapped_labels_swap_samples(prior, generator):
    torch.manual_seed(0)
    model = CVAE(latent_dim=3, hidden=[20], prior=prior)
    if prior == "learned":
        torch.nn.init.normal_(model.prior_table.weight)  # the initial table is zero for all labels
    draw = lambda labels: model.sample(2, y=labels, generator=torch.Generator().manual_seed(1))  # noqa: E731
    a, b = draw([3, 8]), draw([8, 3])
    three, eight = draw(3), draw(torch.tensor([8, 8], dtype=torch.uint8))
    assert_close(a, torch.stack([three[0], eight[1]]))
    assert_close(b, torch.stack([eight[0], three[1]]))
    assert (a - b).abs().amax((1, 2, 3)).min() > 1e-3


def test_labels_that_are_not_given_are_uniform_and_come_from_the_generator():
    """The logit of the first pixel is the label. Chi-squared (9 degrees of freedom) exceeds 39.3 once in 100,000."""
    model = CVAE(latent_dim=1, hidden=[1])
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.decoder[0].weight[0, 1:] = torch.arange(10.0)  # the hidden unit equals the label
        model.decoder[2].weight[0, 0] = 1.0  # the logit of the first pixel equals the hidden unit
    generator = torch.Generator().manual_seed(0)
    labels = model.sample(10_000, generator=generator)[:, 0, 0, 0].logit().round().long()
    counts = torch.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 39.3
    again = model.sample(10_000, generator=torch.Generator().manual_seed(0))[:, 0, 0, 0].logit().round().long()
    assert torch.equal(labels, again)


@pytest.mark.parametrize("prior", ["standard", "learned"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_every_option_trains_and_samples(prior, likelihood, generator):
    torch.manual_seed(0)
    model = CVAE(latent_dim=3, num_classes=4, prior=prior, likelihood=likelihood, hidden=[20])
    batch = [images(generator), torch.tensor([0, 1, 2, 3, 3])]
    terms = model.loss(batch, generator=generator)
    assert_close(terms["loss"], terms["nll"] + terms["kl"])
    terms["loss"].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name
    assert ("prior_table.weight" in dict(model.named_parameters())) == (prior == "learned")
    samples = model.sample(4, generator=generator)
    assert samples.shape == (4, 1, 28, 28) and samples.min() >= 0 and samples.max() <= 1
    assert model(*batch).shape == model.reconstruct(batch[0], y=batch[1]).shape == (5, 1, 28, 28)
    assert model.log_likelihood(batch[0], y=batch[1], num_samples=3, generator=generator).shape == (5,)


@pytest.mark.equation("cvae", "p(z | y)")
@pytest.mark.equation("cvae", "p(x | z, y)")
@pytest.mark.equation("cvae", "q(z | x, y)")
@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize("prior", ["standard", "learned"])
def test_the_models_prior_is_its_objectives(prior, net, generator):
    """The terms of the model equal terms computed with torch.distributions.

    The encoder receives the one-hot label behind the pixels, or as four constant channels.
    """
    torch.manual_seed(0)
    given = {"likelihood": "gaussian", "hidden": [8], "variance_floor": 0.01, "net": net}
    model = CVAE(latent_dim=3, num_classes=4, prior=prior, **given)
    if prior == "learned":
        torch.nn.init.normal_(model.prior_table.weight)
    x, y = images(generator), torch.tensor([0, 1, 2, 3, 3])
    eps = torch.randn(5, 3, generator=generator)
    with torch.no_grad():
        terms = negative_elbo(x, y, eps, model.encode, model.log_px, model.prior)
        label = torch.eye(4)[y]
        shown = [x.flatten(1), label] if net == "mlp" else [x, label[:, :, None, None].expand(5, 4, 28, 28)]
        mu, logvar = model.encoder(torch.cat(shown, 1)).chunk(2, -1)
        q = Normal(mu, (logvar / 2).exp())
        p = Normal(torch.zeros(5, 3), 1.0)
        if prior == "learned":
            table = model.prior_table.weight[y]
            p = Normal(table[:, :3], (table[:, 3:] / 2).exp())
        assert_close(terms["kl"], kl_divergence(q, p).sum(-1))
        mean = model.decoder(torch.cat([mu + q.stddev * eps, label], -1)).flatten(1)
        variance = model.log_variance.exp() + 0.01
        assert_close(terms["nll"], -Normal(mean, variance.sqrt()).log_prob(x.flatten(1)).sum(-1))
        assert_close(model.decode(mu + q.stddev * eps, y), mean.clamp(0, 1).view(5, 1, 28, 28))


def test_log_likelihood_approaches_log_p_of_a_model_without_latents(generator):
    """With zero weights, the decoder ignores z, and q = p(z). Every log weight is log p(x | y) = 784 log 1/2."""
    model = CVAE(latent_dim=2, hidden=[4])
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    value = model.log_likelihood(images(generator), y=3, num_samples=2, generator=generator)
    assert_close(value, torch.full((5,), -784 * math.log(2)))
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1, got 0"):
        model.log_likelihood(images(generator), y=3, num_samples=0)


def test_both_estimators_see_the_same_gradient_of_decoder_and_prior(generator):
    torch.manual_seed(0)
    model = CVAE(latent_dim=2, hidden=[8], prior="learned")
    torch.nn.init.normal_(model.prior_table.weight)
    batch = model.probe_batch([images(generator), torch.arange(5)], generator=generator)
    assert set(batch[0].unique().tolist()) == {0.0, 1.0}
    estimators = model.gradient_estimators()
    means = {name: gradient_moments(e, batch, range(3))[0].mean for name, e in estimators.items()}
    model.zero_grad()
    for name, p in model.named_parameters():
        if not name.startswith("encoder"):  # each draw is equal, because the estimators use the same noise
            assert_close(means["pathwise"][name], means["score_function"][name])
        assert p.grad is None


RULE = "y must be labels, integers from 0 to 9"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (10, f"{RULE}, got 10"),
        (-1, f"{RULE}, got -1"),
        (10**30, f"{RULE}, got {10**30}"),
        (3.0, f"{RULE}, got 3.0"),
        (True, f"{RULE}, got True"),
        ("3", f"{RULE}: one label for all, .*; got '3'"),
        ({"a": 1}, f"{RULE}: one label for all, .*; got {{'a': 1}}"),
        ([0, 1, 2, 10], f"{RULE}, got 10"),
        ([0, 1, 2.0, 3], f"{RULE}, got 2.0"),
        ([0, 1, True, 3], f"{RULE}, got True"),
        ([0, 1, "2", 3], f"{RULE}, got '2'"),
        ([0, 1], "one label for each of 4 images, or one for all; got 2"),
        ([], "one label for each of 4 images, or one for all; got 0"),
        (torch.tensor([0.0, 1, 2, 3]), f"{RULE}, got a tensor of torch.float32"),
        (torch.tensor([True, False, True, True]), f"{RULE}, got a tensor of torch.bool"),
        (torch.tensor([0, 1, 2, 11]), f"{RULE}, got 11"),
        (torch.tensor([0, 1, 2]), "one label for each of 4 images, or one for all; got 3"),
        (
            torch.zeros(4, 1, dtype=torch.long),
            r"one label for each of 4 images, or one for all; got \(4, 1\)",
        ),
        (torch.tensor(3), r"one label for each of 4 images, or one for all; got \(\)"),
    ],
)
def test_a_wrong_label_is_named_wherever_it_is_given(labels, message, generator):
    model = CVAE(latent_dim=2, hidden=[4])
    x, z = images(generator, 4), torch.zeros(4, 2)
    for use in (
        lambda: model.sample(4, y=labels),
        lambda: model.encode(x, labels),
        lambda: model.decode(z, labels),
        lambda: model.reconstruct(x, y=labels),
        lambda: model.log_likelihood(x, y=labels, num_samples=2),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    given = labels if isinstance(labels, list) else [labels]
    texts = any(isinstance(label, str | dict) for label in given)  # a batch may have captions in place of labels
    with pytest.raises(ValueError, match="CVAE needs labels" if texts else message):
        model.loss([x, labels])


def test_labels_come_out_as_they_went_in():
    cpu = torch.device("cpu")
    for labels in ([1, 0, 2], (1, 0, 2), torch.tensor([1, 0, 2]), torch.tensor([1, 0, 2], dtype=torch.uint8)):
        assert torch.equal(as_labels(labels, 3, 3, cpu), torch.tensor([1, 0, 2]))
    assert torch.equal(as_labels(2, 3, 3, cpu), torch.tensor([2, 2, 2]))
    assert as_labels([], 0, 3, cpu).dtype == torch.long


def test_a_data_module_of_more_classes_is_refused(tmp_path):
    cfg = config(tmp_path, *TINY["cvae"], "model.num_classes=5", "trainer=cpu", "logger=none", "debug=fast")
    trainer = build(cfg.trainer, callbacks=[], logger=[])
    with pytest.raises(ValueError, match="model.num_classes is 5, but digits has 10 classes"):
        trainer.fit(model_of(cfg), datamodule=Images("digits"))


def test_pictures_have_a_row_for_each_label():
    torch.manual_seed(0)
    model = CVAE(latent_dim=2, hidden=[8], num_classes=3).eval()
    n, conditions, columns = picture(model, 20, {})
    assert (n, columns) == (21, 7) and conditions["y"] == [0] * 7 + [1] * 7 + [2] * 7
    rows = sample_chunks(model, n, seed=0, **conditions)
    assert_close(rows[:7], sample_chunks(model, n, seed=0, y=0)[:7])
    assert_close(rows[14:], sample_chunks(model, n, seed=0, y=2)[14:])
    assert picture(model, 20, {"y": 1}).columns == 4  # with a given label, the picture has no rows per label


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": "flat"}, "prior must be standard or learned, got 'flat'"),
        ({"likelihood": "poisson"}, "gaussian_dequantised or discretised_logistic, got 'poisson'"),
        ({"latent_dim": 0}, "latent_dim must be an integer of at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"num_classes": True}, "num_classes must be an integer of at least 1, got True"),
        ({"num_classes": 2.0}, "num_classes must be an integer of at least 1, got 2.0"),
        ({"hidden": 5}, r"such as \[512, 512\], got 5"),
        ({"hidden": []}, r"such as \[512, 512\], got \[\]"),
        ({"lr": -1.0}, "lr must be a positive number, got -1.0"),
        ({"variance_floor": "abc"}, "variance_floor must be a positive number, got 'abc'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CVAE(**arguments)


def test_labels_are_asked_for_and_earlier_calls_still_work(generator):
    model, x, y = CVAE(hidden=[4]), images(generator)[:2], torch.tensor([3, 7])
    for call in (lambda: model.reconstruct(x), lambda: model.log_likelihood(x, num_samples=2)):
        with pytest.raises(UserError, match="give y, the labels of the 2 images"):
            call()
    assert isinstance(model.encode(x, y), Gaussian)
    seeded = lambda: torch.Generator().manual_seed(7)  # noqa: E731
    with pytest.warns(DeprecationWarning, match="labels= of CVAE.sample is y= now"):
        old = model.sample(2, labels=[3, 7], generator=seeded())
    assert torch.equal(old, model.sample(2, y=[3, 7], generator=seeded()))
    with pytest.warns(DeprecationWarning, match="give y= of CVAE.reconstruct by name"):
        assert torch.equal(model.reconstruct(x, y), model.reconstruct(x, y=y))
    with pytest.warns(DeprecationWarning, match="give y=, num_samples= of CVAE.log_likelihood by name"):
        old = model.log_likelihood(x, y, 2, generator=seeded())
    assert torch.equal(old, model.log_likelihood(x, y=y, num_samples=2, generator=seeded()))


def test_conditions_by_their_earlier_names_draw_the_same():
    model = CVAE(hidden=[4])
    assert check_conditions(model, {"labels": 7}) == {"y": 7}
    assert picture(model, 20, check_conditions(model, {"labels": 7})) == picture(model, 20, {"y": 7})
