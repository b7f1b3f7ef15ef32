"""Tests of GAN and WGAN with labels: optimal networks given the label in closed form, and labels of samples."""

import re
import sys

import pytest
import torch
from helpers import TINY, run
from torch import nn
from torch.distributions import Normal
from torch.func import grad
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo.__main__ import main
from zoo.checks.errors import UserError
from zoo.functional.noise import chunk_generator
from zoo.gan import GAN
from zoo.sampling.chunks import check_conditions, sample_chunks
from zoo.training.trainer import make_trainer
from zoo.wgan import WGAN, interpolate

MEANS = torch.tensor([1.0, -1.0, 0.0])  # data of class y are N(MEANS[y], 1), and samples are N(-MEANS[y], 1)


def toy(cls, **options):
    """Return a model of numbers with three classes. Its generator is fixed: G(z, y) = z - MEANS[y]."""
    torch.manual_seed(0)
    model = cls(network="mlp", shape=[1], z_dim=1, hidden=[32, 32], num_classes=3, **options)
    model.generator = nn.Linear(4, 1)
    nn.init.zeros_(model.generator.bias)
    model.generator.weight.data = torch.cat([torch.ones(1), -MEANS])[None]
    return model


def numbers(n, generator):
    y = torch.randint(3, (n,), generator=generator)
    return [torch.randn(n, 1, generator=generator) + MEANS[y][:, None], y]


def maximise(network, loss, generator, beta1):
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2, betas=(beta1, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for _ in range(300):
        optimiser.zero_grad()
        loss(numbers(256, generator), generator=generator)["loss"].backward()
        optimiser.step()
        schedule.step()


@pytest.mark.equation("gan", "D*(x)")
def test_the_optimal_discriminator_given_the_label(generator):
    """D(x, y) = p(x | y) / (p(x | y) + q(x | y)) has the logit 2 MEANS[y] x.

    Without labels, data and samples have equal distributions, and the divergence is 0.
    """
    model = toy(GAN)
    maximise(model.discriminator, model.discriminator_loss, generator, 0.5)
    x, y = numbers(6000, generator)
    with torch.no_grad():
        error = (model.logits(x, y).sigmoid() - (2 * MEANS[y] * x[:, 0]).sigmoid()).abs()
        js = model.discriminator_terms(x, model.noise([x], generator=generator), y)["js"]
    for label in range(3):
        assert error[y == label].mean() < 0.03
    # JS(N(1, 1) || N(-1, 1)) as a sum over a grid, for two of three labels. js has a standard error of about 0.01.
    grid = torch.arange(-9, 9, 0.01, dtype=torch.float64)
    p, q = (Normal(mean, 1.0).log_prob(grid) for mean in (1.0, -1.0))
    m = torch.logaddexp(p, q) - torch.tensor(2.0).log()
    exact = 0.5 * ((p.exp() * (p - m)).sum() + (q.exp() * (q - m)).sum()) * 0.01
    assert abs(js - 2 / 3 * exact) < 0.045


def optimum_under_the_penalty(mean, gp_weight):
    """Return the estimate of the best critic for p = N(mean, 1), q = N(-mean, 1).

    In one dimension, f'(x) maximises f' (F_q - F_p) - lambda (f' - 1)^2 r at each x. F are distribution functions, and
    r is the density of x_hat. The best f' is 1 + (F_q - F_p) / (2 lambda r).
    """
    x, step = torch.linspace(-10, 10, 4001, dtype=torch.float64), 20 / 4000
    gap = Normal(-mean, 1.0).cdf(x) - Normal(mean, 1.0).cdf(x)
    u = (torch.arange(200, dtype=torch.float64)[:, None] + 0.5) / 200
    r = Normal((2 * u - 1) * mean, (u**2 + (1 - u) ** 2).sqrt()).log_prob(x).exp().mean(0)
    return ((gap + gap**2 / (2 * gp_weight * r)).sum() * step).item()


@pytest.mark.equation("wgan", "critic_loss")
def test_the_optimal_critic_given_the_label(generator):
    """The critic's estimate for each label is the closed form within 5 %. The slope has the sign of MEANS[y].

    Without labels, the estimate would be 0 for all labels.
    """
    model = toy(WGAN, gp_weight=0.8)
    maximise(model.critic, model.critic_loss, generator, 0.0)
    x, y = numbers(20_000, generator)
    noise = {"z": x - MEANS[y][:, None], "u": torch.rand(len(x), generator=generator)}  # G(z, y) = x - 2 MEANS[y]
    expected = optimum_under_the_penalty(1.0, 0.8)
    for label, value in ((0, expected), (1, expected), (2, 0.0)):
        of = y == label
        terms = model.critic_terms(x[of], {k: v[of] for k, v in noise.items()}, y=y[of])
        assert_close(terms["wasserstein"].item(), value, rtol=0.05, atol=1e-4)


SHAPES = {"conv": {"width": 2, "shape": [3, 12, 15]}, "mlp": {"network": "mlp", "hidden": [8], "shape": [3, 4, 5]}}
LABELLED = {
    f"{cls.__name__} {name}": lambda cls=cls, options=options: cls(z_dim=3, num_classes=4, **options)
    for cls in (GAN, WGAN)
    for name, options in SHAPES.items()
}
LABELLED["WGAN clip"] = lambda: WGAN("clip", width=2, z_dim=3, num_classes=4)


def labelled(name):
    """Return the model ``LABELLED[name]``, in which labels have large weights, and a batch."""
    torch.manual_seed(0)
    model = LABELLED[name]()
    opponent = model.critic if isinstance(model, WGAN) else model.discriminator
    nn.init.normal_(opponent.label_vectors.weight)
    given = torch.Generator().manual_seed(0)
    return model, [torch.rand(6, *model.hparams.shape, generator=given), torch.tensor([0, 1, 2, 3, 0, 1])]


def losses(model):
    return [model.critic_loss if isinstance(model, WGAN) else model.discriminator_loss, model.generator_loss]


@pytest.mark.parametrize("name", LABELLED)
def test_labels_change_the_losses_and_all_weights_of_labels_get_gradients(name):
    model, (x, y) = labelled(name)
    for loss in losses(model):
        model.eval().zero_grad()
        found = loss([x, y], generator=chunk_generator(0, 0))["loss"]
        found.backward()
        other = loss([x, (y + 1) % 4], generator=chunk_generator(0, 0))["loss"]
        assert not torch.isclose(found, other, rtol=1e-4)
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    first = next(m for m in model.generator.modules() if isinstance(m, nn.Linear))
    assert (first.weight.grad[:, 3:].abs().sum(0) > 0).all()  # the inputs are z and four labels
    vectors = next(m for m in model.modules() if isinstance(m, nn.Embedding))
    assert (vectors.weight.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", LABELLED)
def test_data_and_samples_have_the_labels_of_the_batch(name):
    model, (x, y) = labelled(name)
    model.eval()
    noise = model.noise([x], generator=chunk_generator(0, 0))
    fake = model.generator(torch.cat([noise["z"], torch.eye(4)[y]], 1))
    score = model.f if isinstance(model, WGAN) else model.logits
    opponent = model.critic if isinstance(model, WGAN) else model.discriminator
    phi = opponent.features(2 * x - 1)
    assert_close(score(2 * x - 1, y), opponent.head(phi)[:, 0] + (phi * opponent.label_vectors.weight[y]).sum(1))
    real_scores, fake_scores = score(2 * x - 1, y), score(fake, y)
    against, own = (loss([x, y], generator=chunk_generator(0, 0)) for loss in losses(model))
    if isinstance(model, WGAN):
        assert_close(against["wasserstein"], real_scores.mean() - fake_scores.mean())
        assert_close(own["loss"], -fake_scores.mean())
    else:
        value = real_scores.sigmoid().log().mean() + (1 - fake_scores.sigmoid()).log().mean()
        assert_close(against["value"], value)
        assert_close(own["loss"], -fake_scores.sigmoid().log().mean())


@pytest.mark.parametrize("name", ["WGAN conv", "WGAN mlp"])
def test_the_penalty_with_labels_is_that_of_autograd(name):
    model, (x, y) = labelled(name)
    noise = model.eval().noise([x], generator=chunk_generator(0, 0))
    terms = model.critic_terms(x, noise, y=y)
    between = interpolate(2 * x - 1, model.G(noise["z"], y).detach(), noise["u"]).detach().requires_grad_()
    (g,) = torch.autograd.grad(model.critic(between, y).sum(), between)
    assert_close(terms["penalty"], (g.flatten(1).norm(dim=1) - 1).square().mean())
    assert_close(terms["lipschitz"], g.flatten(1).norm(dim=1).max())
    assert_close(terms["loss"], -terms["wasserstein"] + 10 * terms["penalty"])
    (other,) = torch.autograd.grad(model.critic(between, y.roll(1)).sum(), between)
    assert not torch.allclose(other, g, rtol=1e-3)


@pytest.mark.parametrize("name", LABELLED)
def test_an_estimators_draw_is_the_gradient_of_a_step_with_labels(name):
    model, batch = labelled(name)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for estimator in model.gradient_estimators().values():
        noise = estimator.noise(batch, chunk_generator(0, 0))
        drawn = grad(estimator.surrogate)({k: v.detach() for k, v in estimator.params.items()}, batch, noise)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        model.zero_grad()
        if estimator.name in ("discriminator", "critic"):
            terms = losses(model)[0](batch, generator=chunk_generator(0, 0))
        else:
            kind = {} if isinstance(model, WGAN) else {"kind": estimator.name}
            terms = model.generator_terms(noise, y=batch[1], **kind)
        terms["loss"].backward()
        model.load_state_dict(before)
        for k, p in estimator.params.items():
            assert_close(drawn[k], torch.zeros_like(p) if p.grad is None else p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cls", [GAN, WGAN])
def test_given_labels_label_the_samples_and_leave_the_noise_alone(cls):
    model = toy(cls)
    draw = lambda **given: model.sample(3, generator=chunk_generator(0, 0), **given)  # noqa: E731
    z = draw(y=2)  # MEANS[2] is 0
    assert_close(draw(y=0), z - 1)
    for y in ([0, 1, 2], torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2], dtype=torch.uint8)):
        assert_close(draw(y=y), z - MEANS[:, None])
    assert model.rows() == ("y", [0, 1, 2]) and cls().rows() is None
    with pytest.warns(DeprecationWarning, match=f"labels= of {cls.__name__}.sample is y= now"):
        assert_close(draw(labels=1), z + 1)
    assert check_conditions(model, {"labels": 1}) == {"y": 1}
    assert_close(sample_chunks(model, 3, 0, y=[2, 0, 1]), sample_chunks(model, 3, 0, y=2) - MEANS[[2, 0, 1], None])


@pytest.mark.parametrize("cls", [GAN, WGAN])
def test_labels_that_are_not_given_are_uniform(cls):
    """The counts pass a chi-squared test with 3 degrees of freedom (false alarm once in 1e5)."""
    model = cls(network="mlp", shape=[1], z_dim=1, num_classes=4)
    model.generator = nn.Linear(5, 1)
    nn.init.zeros_(model.generator.bias)
    model.generator.weight.data = torch.tensor([[0.0, 0.0, 1.0, 2.0, 3.0]])  # each sample is its label
    labels = model.sample(20_000, generator=chunk_generator(0, 0)).long()[:, 0]
    counts = labels.bincount(minlength=4)
    assert ((counts - 5000) ** 2 / 5000).sum() < 25.9 and len(counts) == 4


@pytest.mark.parametrize("cls", [GAN, WGAN])
def test_wrong_and_missing_labels_are_named(cls, generator):
    model, plain = toy(cls), cls(network="mlp", shape=[1])
    x, y = numbers(4, generator)
    score = model.f if cls is WGAN else model.logits
    rule = "y must be labels, integers from 0 to 2"
    for call, message in (
        (lambda: model.sample(4, y=3), rule),
        (lambda: model.sample(4, y=[0, 1]), "one label for each of 4 images"),
        (lambda: model.sample(4, y="dropped"), rule),
        (lambda: score(x, y + 3), rule),
        (lambda: score(x), "y is missing, and this model needs labels"),
        (lambda: model.generator_loss([x, y.float()]), rule),
        (lambda: model.generator_loss([x]), "the batch has only x"),
        (lambda: losses(model)[0]([x]), "the batch has only x"),
        (lambda: plain.sample(4, y=0), "this model was trained without labels"),
        (lambda: cls(num_classes=0), "num_classes must be an integer of at least 1, got 0"),
        (lambda: cls(num_classes="10"), "num_classes must be an integer"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            call()


def test_sequences_take_no_labels():
    with pytest.raises(UserError, match="network=sequence takes no labels, got num_classes=3"):
        GAN("sequence", [5, 3], num_classes=3)
    with pytest.raises(UserError, match="this model was trained without labels"):
        GAN("sequence", [5, 3]).sample(2, y=1)


@pytest.mark.parametrize("cls", [GAN, WGAN])
def test_data_without_labels_are_refused_at_the_start(cls, tmp_path):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = make_trainer(accelerator="cpu", max_epochs=1, two_players=True, num_sanity_val_steps=0, **quiet)
    loader = DataLoader(TensorDataset(torch.rand(8, 1, 28, 28)), batch_size=4)
    with pytest.raises(UserError, match="needs labels"):
        trainer.fit(cls(width=2, z_dim=3, num_classes=4), loader, loader)
    assert trainer.global_step == 0
    name = cls.__name__.lower()
    with pytest.raises(UserError, match="auto needs data with labels, and line has no labels"):
        run(tmp_path, f"model={name}", "model.network=mlp", "model.num_classes=auto", "data=line")


@pytest.mark.parametrize("name", ["gan", pytest.param("wgan", marks=pytest.mark.slow)])
def test_a_run_with_labels_trains_and_the_command_line_draws_them(name, tmp_path, monkeypatch, capsys):
    run(tmp_path, *TINY[name], "model.num_classes=auto", "debug=fast", "callbacks.sample_distance.n=20")
    model = zoo.load(tmp_path)
    assert model.hparams.num_classes == 10
    monkeypatch.chdir(tmp_path)
    for condition in ("labels=7", "y=7"):
        monkeypatch.setattr(sys, "argv", ["zoo", "sample", str(tmp_path), "-n", "4", "-c", condition])
        main()
    monkeypatch.setattr(sys, "argv", ["zoo", "sample", str(tmp_path), "-n", "4", "-c", "y=10"])
    with pytest.raises(SystemExit, match="y must be labels, integers from 0 to 9"):
        main()
