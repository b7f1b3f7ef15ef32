"""Tests of GAN: optimal and constant discriminators, and steps that change only one network."""

import math
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, checkpoint, run
from scipy.stats import multivariate_normal
from torch import nn
from torch.func import grad
from torch.testing import assert_close

import zoo
from zoo import hub
from zoo.__main__ import main
from zoo.checks.capabilities import EXACT
from zoo.datamodules import Toy
from zoo.datamodules.toy import Line, MarkovChain, Mixture
from zoo.estimators import GradientMoments, gradient_moments
from zoo.evaluation.distances import SampleDistanceMetric
from zoo.functional.noise import chunk_generator
from zoo.gan import GAN, generator_objective, jensen_shannon, value_function
from zoo.hub import exporting
from zoo.infogan import InfoGAN
from zoo.nets.adversarial import centre, uncentre
from zoo.nets.layers import mlp
from zoo.sampling.chunks import sample_chunks
from zoo.training.adversarial import generate, recompute_batch_norm
from zoo.training.trainer import make_trainer
from zoo.wgan import WGAN


def small(**kwargs):
    torch.manual_seed(0)
    return GAN(**{"width": 4, "z_dim": 3, **kwargs})


def images(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 1, 28, 28, generator=generator), torch.zeros(n, dtype=torch.long)]


@pytest.mark.equation("gan", "V(G, D)")
@pytest.mark.equation("gan", "non_saturating")
@pytest.mark.equation("gan", "minimax")
@pytest.mark.equation("gan", "kl")
def test_the_formulas_are_those_of_probabilities(generator):
    real, fake = (3 * torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(2))
    D_real, D_fake = real.sigmoid(), fake.sigmoid()
    value = D_real.log().mean() + (1 - D_fake).log().mean()
    assert_close(value_function(real, fake), value)
    assert_close(jensen_shannon(value), (value + math.log(4)) / 2)
    assert_close(generator_objective(fake, "non_saturating"), -D_fake.log().mean())
    assert_close(generator_objective(fake, "minimax"), (1 - D_fake).log().mean())
    assert_close(generator_objective(fake, "kl"), -(D_fake.log() - (1 - D_fake).log()).mean())


def test_logits_of_any_size_are_finite():
    losses = [lambda t, k=k: generator_objective(t, k) for k in ("non_saturating", "minimax", "kl")]
    for value in (-1e4, -200.0, 0.0, 200.0, 1e4):
        logits = torch.tensor([value], requires_grad=True)
        for f in [lambda t: value_function(t, t), *losses]:
            (g,) = torch.autograd.grad(f(logits), logits)
            assert f(logits).isfinite() and g.isfinite()
    # For a confident discriminator, the minimax loss has almost no gradient. The non-saturating loss has a gradient.
    sure = torch.tensor([-30.0])
    assert grad(lambda t: generator_objective(t, "minimax"))(sure).abs() < 1e-12
    assert_close(grad(lambda t: generator_objective(t, "non_saturating"))(sure), torch.tensor([-1.0]))


@pytest.mark.equation("gan", "V(G, D)")
def test_a_discriminator_constant_at_one_half_has_loss_two_log_two():
    model = small()
    nn.init.zeros_(model.discriminator[-1].weight)
    nn.init.zeros_(model.discriminator[-1].bias)
    terms = model.discriminator_loss(images())
    assert_close(terms["loss"].item(), 2 * math.log(2))
    assert_close(terms["js"].item(), 0.0, atol=1e-7, rtol=0)
    assert terms["D_x"] == terms["D_G_z"] == 0.5
    for kind, expected in {"non_saturating": math.log(2), "minimax": -math.log(2), "kl": 0.0}.items():
        assert_close(model.generator_terms(model.noise(images()), kind)["loss"].item(), expected)


@pytest.mark.equation("gan", "V(G, D)")
@pytest.mark.parametrize("kind", ["non_saturating", "minimax", "kl"])
def test_the_terms_use_what_the_networks_see(kind):
    model, (x, labels) = small(generator_loss=kind, network="mlp", hidden=[16]).eval(), images()
    model.discriminator[-1].weight.data.mul_(10)
    noise = model.noise([x], generator=chunk_generator(0, 0))
    fake = model.generator(noise["z"])
    assert fake.abs().max() <= 1
    D_real, D_fake = (model.discriminator(t).squeeze(-1).sigmoid() for t in (2 * x - 1, fake))
    terms = model.discriminator_terms(x, noise)
    assert_close(terms["D_x"], D_real.mean())
    assert_close(terms["D_G_z"], D_fake.mean())
    assert_close(terms["value"], D_real.log().mean() + (1 - D_fake).log().mean())
    assert not torch.isclose(D_real.mean(), D_fake.mean(), rtol=1e-4)
    expected = {"non_saturating": -D_fake.log(), "minimax": (1 - D_fake).log(), "kl": (1 - D_fake).log() - D_fake.log()}
    drawn = model.generator_loss([x, labels], generator=chunk_generator(0, 0))["loss"]
    assert_close(drawn, expected[kind].mean())
    z = model.z(3, generator=chunk_generator(0, 5))
    assert_close(model.sample(3, generator=chunk_generator(0, 5)), model.generator(z) / 2 + 0.5)
    assert_close(uncentre(centre(x, [1, 28, 28]), [1, 28, 28]), x)


def test_optimisers_are_as_asked_for():
    discriminator, generator = small(lr_discriminator=3e-4, lr_generator=7e-4, beta1=0.2).configure_optimizers()
    assert discriminator.param_groups[0]["lr"] == 3e-4 and generator.param_groups[0]["lr"] == 7e-4
    assert discriminator.param_groups[0]["betas"] == generator.param_groups[0]["betas"] == (0.2, 0.999)


def test_convolutions_begin_small():
    model = GAN()
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)):
        # The sample standard deviation of n normal numbers has the relative standard error 1 / sqrt(2 n).
        n = conv.weight.numel()
        assert abs(conv.weight.std().item() / 0.02 - 1) < 4.5 / (2 * n) ** 0.5


def test_validation_recomputes_the_statistics_from_samples():
    """The first BatchNorm of the generator has the mean of the first layer over all samples."""
    model = small()
    first, bn = model.generator.hidden[:2]
    before = bn.running_mean.clone()
    model.eval().on_validation_epoch_start()
    assert not torch.equal(bn.running_mean, before)
    with torch.no_grad():
        z = [model.z(250, generator=chunk_generator(0, i)) for i in range(20)]
        expected = torch.stack([first(each).mean(0) for each in z]).mean(0)
    assert_close(bn.running_mean, expected, rtol=1e-3, atol=1e-5)
    assert bn.num_batches_tracked == 20


@pytest.mark.equation("gan", "D*(x)")
@pytest.mark.equation("gan", "C(G)")
def test_the_optimal_discriminator_of_points_that_can_be_counted():
    """Data and samples are four points with known counts, so means over them are exact expectations.

    At the logit log p_data - log p_G of each point, the gradient of the loss is zero. All other logits have a larger
    loss. ``js`` is then the divergence, and V = C(G) = -log 4 + 2 JS.
    """
    counts = torch.tensor([[1, 2, 3, 4], [5, 1, 3, 1]])
    p, q = counts.double() / 10
    x, samples = (torch.arange(4.0).repeat_interleave(n)[:, None] for n in counts)
    model, noise = small(network="mlp", shape=[1], hidden=[4]), {"z": torch.zeros(10, 3)}
    model.G = lambda z, y=None: samples

    def terms(logit):
        model.logits = lambda x, y=None: logit[x[:, 0].long()]
        return model.discriminator_terms(x, noise)

    best = (p / q).log()
    assert_close(best.sigmoid(), p / (p + q))
    loss = lambda logit: terms(logit)["loss"]  # noqa: E731
    assert_close(grad(loss)(best), torch.zeros(4, dtype=torch.float64))
    for step in torch.eye(4, dtype=torch.float64):
        assert min(loss(best + 0.1 * step), loss(best - 0.1 * step)) > loss(best)
    js = 0.5 * ((p * (2 * p / (p + q)).log()).sum() + (q * (2 * q / (p + q)).log()).sum())
    found = terms(best)
    assert_close(found["js"], js)
    assert_close(found["value"], -math.log(4) + 2 * js)
    assert_close(found["D_x"], (p * p / (p + q)).sum())
    assert_close(found["D_G_z"], (q * p / (p + q)).sum())


def gaussian(mean):
    return Mixture(torch.tensor([mean]), torch.ones(1), 1.0)


@pytest.mark.equation("gan", "V(G, D)")
@pytest.mark.equation("gan", "C(G)")
def test_the_optimal_discriminator_and_its_value_on_two_gaussians(generator):
    """For p = N((1, 0), I) and q = N(-(1, 0), I), the optimal logit is 2 x_1, and V is -log 4 + 2 JS."""
    p, q = gaussian([1.0, 0.0]), gaussian([-1.0, 0.0])
    side = torch.arange(-9, 9, 0.05, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    log_p, log_q = p.log_density(grid), q.log_density(grid)
    assert_close(log_p, torch.from_numpy(multivariate_normal([1, 0]).logpdf(grid.numpy())))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    js = 0.5 * ((log_p.exp() * (log_p - log_m)).sum() + (log_q.exp() * (log_q - log_m)).sum()) * 0.05**2
    # V(G, D*) = E_p log sigmoid(2 x_1) + E_q log sigmoid(-2 x_1), as sums over the grid.
    logit = 2 * grid[:, 0]
    value = ((log_p.exp() * F.logsigmoid(logit)).sum() + (log_q.exp() * F.logsigmoid(-logit)).sum()) * 0.05**2
    assert_close(jensen_shannon(value), js)
    # A network that maximises V learns p / (p + q).
    torch.manual_seed(0)
    D = mlp([2, 64, 64, 1], nn.Tanh).double()
    optimiser = torch.optim.Adam(D.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 800)
    for _ in range(800):
        real, fake = (d.sample(512, generator=generator)[0] for d in (p, q))
        loss = -value_function(D(real).squeeze(-1), D(fake).squeeze(-1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    x, _ = p.sample(4000, generator=generator)
    error = (D(x).squeeze(-1).sigmoid() - (2 * x[:, 0]).sigmoid()).abs()
    assert error.mean() < 0.02  # the exact probability is between 0.1 and 1 at 98 % of these points
    real, fake = (d.sample(20_000, generator=generator)[0] for d in (p, q))
    with torch.no_grad():
        learned = jensen_shannon(value_function(D(real).squeeze(-1), D(fake).squeeze(-1)))
    assert abs(learned - js) < 0.01  # js is 0.34; three standard errors of ``learned`` are 0.008


@pytest.mark.parametrize("theta", [0.25, 0.75])
def test_parallel_lines_are_log_two_apart_whatever_their_distance(theta, generator):
    """For every theta > 0, JS = log 2 [DSL 13.3.2]. A trained discriminator gives at least 0.98 log 2."""
    torch.manual_seed(0)
    D = nn.Linear(2, 1)
    optimiser = torch.optim.Adam(D.parameters(), lr=1.0)
    for _ in range(400):
        real, fake = (
            Line(0.0).sample(256, generator=generator)[0].float(),
            Line(theta).sample(256, generator=generator)[0].float(),
        )
        value = value_function(D(real).squeeze(-1), D(fake).squeeze(-1))
        optimiser.zero_grad()
        (-value).backward()
        optimiser.step()
    assert 0.98 * math.log(2) < jensen_shannon(value).item() < math.log(2)


ADVERSARIAL = {
    "conv": lambda: GAN(width=4, z_dim=3),
    "mlp": lambda: GAN(network="mlp", hidden=[8], z_dim=3),
    "sequence": lambda: GAN(network="sequence", shape=[4, 3], width=8, hidden=[8]),
    "wgan": lambda: WGAN(width=4, z_dim=3),
    "wgan-clip": lambda: WGAN(lipschitz="clip", width=4, z_dim=3),
    "infogan": lambda: InfoGAN(width=4, z_dim=3, features=8),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_each_networks_step_changes_its_own_weights_and_leaves_the_others_bit_identical(name):
    """The generator's gradient passes through the discriminator, but only the generator takes a step."""
    torch.manual_seed(0)
    model = ADVERSARIAL[name]()
    given = torch.Generator().manual_seed(0)
    x = MarkovChain(3, 4).sample(6, generator=given)[0].float() if name == "sequence" else images()[0]
    batch, opponent = [x, torch.zeros(6)], getattr(model, "critic_loss", None) or model.discriminator_loss
    generator_names = ("generator.", "code.")
    for i, loss in enumerate((opponent, model.generator_loss)):
        model.zero_grad(set_to_none=True)
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        loss(batch)["loss"].backward()
        model.configure_optimizers()[i].step()
        for k, p in model.named_parameters():
            mine = k.startswith(generator_names) == (i == 1)
            if not mine:
                assert torch.equal(p, before[k]), k
            elif p.grad is not None and p.grad.abs().sum() > 0:
                assert p.grad.isfinite().all() and not torch.equal(p, before[k]), k
        moved = [k for k, p in model.named_parameters() if not torch.equal(p, before[k])]
        assert len(moved) >= 2  # a critic's last bias has no gradient, and BatchNorm cancels other biases


def test_without_a_step_the_generator_stays_as_it_was(tmp_path):
    """The generator takes a step after every ``discriminator_steps`` batches.

    Runs with the values 100 and 99 have only 11 and 22 batches. In both, the generator keeps its initial weights.
    """
    states = {}
    for k, epochs in ((100, 1), (99, 2), (1, 1)):
        overrides = ["callbacks=none", "test=false", f"model.discriminator_steps={k}", f"trainer.max_epochs={epochs}"]
        run(tmp_path / str(k), *TINY["gan"], *overrides)
        states[k] = {n: w for n, w in checkpoint(tmp_path / str(k))["state_dict"].items() if n.endswith("weight")}
    for name in states[1]:
        still = name.startswith("generator.")
        assert torch.equal(states[100][name], states[99][name]) == still, name
        assert not torch.equal(states[100][name], states[1][name]), name


def test_the_generator_takes_every_kth_batch(tmp_path):
    run(tmp_path, *TINY["gan"], "callbacks=none", "trainer.max_epochs=2", "test=false", "model.discriminator_steps=4")
    last = checkpoint(tmp_path)
    batches = 2 * 11
    assert last["global_step"] == batches  # global_step counts batches, not the steps of both optimisers
    d, g = (state["state"][0]["step"].item() for state in last["optimizer_states"])
    assert (d, g) == (batches, batches // 4)


def test_max_steps_are_batches(tmp_path):
    run(
        tmp_path,
        *TINY["gan"],
        "callbacks=none",
        "~callbacks.best",
        "+trainer.max_steps=7",
        "trainer.max_epochs=-1",
        "test=false",
    )
    assert checkpoint(tmp_path)["global_step"] == 7


def test_sampling_leaves_batch_norm_and_mode_alone():
    model = small().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    a = model.sample(5, generator=chunk_generator(0, 0))
    assert model.training and all(m.training for m in model.generator.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    b = model.eval().sample(5, generator=chunk_generator(0, 0))
    assert torch.equal(a, b) and not any(m.training for m in model.modules())
    assert a.shape == (5, 1, 28, 28) and a.min() >= 0 and a.max() <= 1
    # With running statistics, an image does not depend on the other images of its batch.
    z = torch.randn(4, 3, generator=chunk_generator(0, 1))
    assert_close(generate(model.generator, z)[:1], generate(model.generator, z[:1]))


def test_statistics_are_recomputed_and_old_ones_are_forgotten():
    """The recomputed statistics agree with N(3, 2^2) within 4.5 standard errors, even after a batch of other data.

    The mode and the momentum of the layers are restored.
    """
    norm = nn.BatchNorm1d(1, momentum=0.1)
    norm(torch.full((10, 1), 100.0) + torch.randn(10, 1, generator=chunk_generator(0, 0)))
    norm.eval()
    batch = lambda i: norm(3 + 2 * torch.randn(500, 1, generator=chunk_generator(1, i)))  # noqa: E731
    recompute_batch_norm(norm, batch, batches=20)
    assert abs(norm.running_mean.item() - 3) < 4.5 * 2 / 10_000**0.5
    assert abs(norm.running_var.item() - 4) < 4.5 * 4 * (2 / 10_000) ** 0.5
    assert not norm.training and norm.momentum == 0.1
    seen = []
    recompute_batch_norm(nn.Linear(1, 1), seen.append)
    assert seen == []  # there are no statistics to recompute


def test_estimators_change_no_statistics_and_no_gradient():
    model = small().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    estimators = model.gradient_estimators()
    assert list(estimators) == ["non_saturating", "minimax", "kl", "discriminator"]
    for e in estimators.values():
        gradient_moments(e, images(), range(2))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.parameters())


def test_an_estimators_draw_is_the_gradient_of_a_step():
    model = small().train()
    batch = images()
    for name, e in model.gradient_estimators().items():
        noise = e.noise(batch, chunk_generator(0, 3))
        drawn = grad(e.surrogate)({k: v.detach() for k, v in e.params.items()}, batch, noise)
        model.zero_grad(set_to_none=True)
        terms = (
            model.discriminator_terms(batch[0], noise)
            if name == "discriminator"
            else model.generator_terms(noise, name)
        )
        terms["loss"].backward()
        for k, p in e.params.items():
            assert_close(drawn[k], p.grad, rtol=1e-4, atol=1e-7, msg=f"{name} {k}")


@pytest.mark.equation("gan", "kl")
def test_at_the_optimal_discriminator_the_kl_loss_minimises_the_reverse_divergence(generator):
    """With p = N(0, 1) and G(z) = theta + z, d/dtheta E[-l(G(z))] = theta = d/dtheta KL(p_G || p).

    l is the logit of the optimal discriminator at theta = 0.7, and does not change in the derivative. Its own
    derivative with respect to theta has expectation zero. The test takes 10,000 draws and allows 4.5 standard errors.
    """
    theta = torch.tensor(0.7, dtype=torch.float64)
    logit = lambda x: -(x.square()) / 2 + (x - theta).square() / 2  # noqa: E731

    moments = GradientMoments()
    for _ in range(50):
        z = torch.randn(200, generator=generator, dtype=torch.float64)
        moments.update({"theta": grad(lambda t, z=z: generator_objective(logit(t + z), "kl"))(theta)})
    error = (moments.statistics()["all"]["variance"] / 50) ** 0.5
    assert abs(moments.mean["theta"] - 0.7) < 4.5 * error + 1e-9


# Sequences.


def test_the_probability_of_sequences_is_that_of_what_is_drawn():
    """The probabilities of all sequences sum to one, and 20,000 samples agree with them.

    The test is chi-squared with 26 degrees of freedom, and fails once in 1e5 seeds.
    """
    model = small(network="sequence", shape=[3, 3], width=8, hidden=[8])
    with torch.no_grad():
        for p in model.generator.parameters():
            p.mul_(3)
    v = MarkovChain(3, 3).everything()
    p = model.log_likelihood(v).double().exp()
    assert_close(p.sum().item(), 1.0, rtol=1e-5, atol=0)
    x = model.sample(20_000, generator=chunk_generator(0, 0))
    assert x.shape == (20_000, 3, 3) and torch.equal(x.sum(-1), torch.ones(20_000, 3))
    place = torch.tensor([9.0, 3.0, 1.0])
    counts = (x.argmax(-1).float() @ place).long().bincount(minlength=27)
    expected = 20_000 * p
    assert ((counts - expected).square() / expected).sum() < 69.0
    # A loop over the symbols of one sequence gives the same log probability.
    h, prev, log_p = torch.zeros(1, 8), torch.zeros(1, 3), 0.0
    for t in range(3):
        h = model.generator.cell(prev, h)
        log_p += model.generator.head(h).log_softmax(-1)[0, v[5, t].argmax()].item()
        prev = v[5:6, t]
    assert_close(model.log_likelihood(v[5:6]).item(), log_p)


def test_what_the_discriminator_sees_of_a_sequence():
    u = torch.rand(4, 3, 3, generator=chunk_generator(0, 0))
    hard = small(network="sequence", shape=[3, 3]).G(u)
    assert set(hard.detach().flatten().tolist()) <= {0.0, 1.0} and hard.requires_grad
    soft = small(network="sequence", shape=[3, 3], relaxation="gumbel_softmax").G(u)
    assert ((soft > 0) & (soft < 1)).all()
    assert_close(soft.sum(-1), torch.ones(4, 3))
    cool = small(network="sequence", shape=[3, 3], relaxation="gumbel_softmax", temperature=0.5)
    logits, v = torch.randn(4, 3, generator=chunk_generator(0, 1)), torch.rand(4, 3, generator=chunk_generator(0, 2))
    gumbels = -(-v.log()).log()
    assert_close(cool._relaxed(logits, v), ((logits.log_softmax(-1) + gumbels) / 0.5).softmax(-1))


def test_images_have_no_likelihood():
    assert small().log_likelihood_by is None
    assert small(network="sequence", shape=[3, 3]).log_likelihood_by == EXACT
    with pytest.raises(ValueError, match="a GAN has no likelihood with network=conv; only network=sequence has one"):
        small().log_likelihood(images()[0])


def test_a_generator_may_be_given_by_position_as_in_an_earlier_version():
    model, batch = small(), images()
    for method in ("z", "noise", "discriminator_loss", "generator_loss"):
        first = 3 if method == "z" else batch
        call = getattr(model, method)
        with pytest.warns(DeprecationWarning, match=f"give generator= of GAN.{method} by name"):
            found = call(first, chunk_generator(0, 0))
        assert_close(found, call(first, generator=chunk_generator(0, 0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator_loss": "saturating"}, "generator_loss must be non_saturating, minimax or kl, got 'saturating'"),
        ({"network": "mpl"}, "network must be conv, mlp or sequence, got 'mpl'"),
        (
            {"shape": [2]},
            "network=conv makes images (C, H, W); for examples of shape [2] set model.network=mlp",
        ),
        ({"discriminator_steps": 0}, "discriminator_steps must be an integer of at least 1, got 0"),
        ({"z_dim": 0}, "z_dim must be an integer of at least 1, got 0"),
        ({"hidden": 3}, "hidden must be a list of integers"),
        ({"lr_generator": -1.0}, "lr_generator must be a positive number"),
        ({"beta1": 1.0}, "beta1 must be below 1"),
        ({"temperature": 0}, "temperature must be a positive number"),
        ({"relaxation": "none"}, "relaxation must be straight_through or gumbel_softmax"),
        ({"network": "sequence", "shape": [2]}, "shape must be [length, symbols] with at least 2 symbols"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GAN(**arguments)


def test_data_of_another_shape_are_refused(tmp_path):
    message = "GAN takes examples of shape [1, 28, 28], but examples of ring have shape [2]: set model.shape=[2]"
    with pytest.raises(ValueError, match=re.escape(message)):
        run(tmp_path, "model=gan", "model.shape=[1,28,28]", "data=ring")


def test_sequences_want_their_generator(tmp_path):
    with pytest.raises(ValueError, match="markov_chain has one-hot sequences, which WGAN with these options cannot"):
        run(tmp_path, "model=wgan", "model.network=mlp", "model.shape=[5,5]", "data=markov_chain")


def test_what_is_published_is_measured_on_the_data_of_the_run(tmp_path, monkeypatch, capsys):
    """The published distance is measured on the data of the run, here a line at theta = 5.

    Data that do not fit the model raise an error of one line.
    """
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    small = ["model=gan", "data=line", "data.theta=5", "model.network=mlp", "model.shape=[2]", "model.hidden=[4]"]
    run(tmp_path / "run", *small, "debug=fast", "callbacks.sample_distance.n=20", "test=false")
    exporting.export(tmp_path / "run", "line")
    distance = hub.read_card("line")["metrics"]["energy_distance"]
    data = Toy("line", 5.0)
    data.setup()
    assert_close(distance, SampleDistanceMetric(data, "test")(None, sample_chunks(zoo.load("line"), 10_000, 0)[:5000]))
    monkeypatch.setattr(sys, "argv", ["zoo", "evaluate", "line", "--data", "digits"])
    with pytest.raises(SystemExit, match=r"GAN takes examples of shape \[2\], and the examples of digits have"):
        main()


@pytest.mark.parametrize(("key", "value"), [("gradient_clip_val", 1.0), ("accumulate_grad_batches", 2)])
def test_what_two_optimisers_cannot_do_is_refused_at_once(key, value):
    with pytest.raises(ValueError, match=f"trainer.{key} must be .* for adversarial models, got {value}"):
        make_trainer(two_players=True, **{key: value})
    assert make_trainer(**{key: value}).world_size == 1


def test_several_processes_get_the_strategy_that_adversarial_models_need():
    for strategy in ("auto", "ddp"):
        trainer = make_trainer(two_players=True, accelerator="cpu", devices=2, strategy=strategy)
        assert trainer.strategy._ddp_kwargs["find_unused_parameters"] is True
        assert not make_trainer(accelerator="cpu", devices=2, strategy=strategy).strategy._ddp_kwargs
    alone = make_trainer(two_players=True, accelerator="cpu", devices=1)
    assert type(alone.strategy).__name__ == "SingleDeviceStrategy"
