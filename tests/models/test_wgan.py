"""Tests of WGAN: gradient penalties in closed form, and known distances."""

import re

import pytest
import torch
from helpers import TINY, checkpoint, run, tiers
from scipy.stats import wasserstein_distance
from torch import nn
from torch.func import grad
from torch.testing import assert_close

from zoo.datamodules.toy import Line, ring
from zoo.functional.noise import chunk_generator
from zoo.nets.layers import mlp
from zoo.wgan import WGAN, gradient_norms, gradient_penalty, interpolate, wasserstein_estimate


def small(**kwargs):
    torch.manual_seed(0)
    return WGAN(**{"width": 4, "z_dim": 3, **kwargs})


def images(n=6):
    return [torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.zeros(n, dtype=torch.long)]


@pytest.mark.equation("wgan", "penalty")
@pytest.mark.parametrize("slope", [0.4, 3.0])
def test_a_linear_critics_penalty_in_closed_form(slope, generator):
    """f(x) = w'x has the gradient w everywhere, so the penalty is ( |w| - 1 )^2, also for slopes below 1."""
    w = torch.randn(1, 5, 7, generator=generator, dtype=torch.float64)
    w = slope * w / w.norm()
    x = torch.randn(6, 1, 5, 7, generator=generator, dtype=torch.float64)
    norms = gradient_norms(lambda x: (x * w).sum((-3, -2, -1)), x)
    assert_close(norms, w.norm().expand(6))
    assert_close(gradient_penalty(norms), torch.full((6,), (slope - 1) ** 2, dtype=torch.float64))


@pytest.mark.equation("wgan", "penalty")
def test_the_norm_is_of_each_image_by_itself(generator):
    """f(x) = |x|^2 / 2 has the gradient x, so the norm of each image is |x| over all its pixels."""
    x = torch.randn(6, 1, 5, 7, generator=generator, dtype=torch.float64)
    norms = gradient_norms(lambda x: x.square().sum((-3, -2, -1)) / 2, x)
    assert_close(norms, x.flatten(1).norm(dim=1))
    assert not torch.allclose(norms.mean(), x.norm(2, dim=1).mean())  # a common mistake: the norm over one axis only


def test_the_penalty_is_differentiable_in_the_critic(generator):
    """d/ds ( |s w| - 1 )^2 = 2 ( s |w| - 1 ) |w|."""
    w = torch.randn(4, generator=generator, dtype=torch.float64)
    s = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    gradient_penalty(gradient_norms(lambda x: s * x @ w, x)).mean().backward()
    assert_close(s.grad, 2 * (s.detach() * w.norm() - 1) * w.norm())


@pytest.mark.equation("wgan", "x_hat")
def test_interpolates_lie_between(generator):
    real, fake = torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2)
    u = torch.tensor([0.0, 0.25, 1.0, 0.5])
    assert_close(interpolate(real, fake, u)[:, 0, 0, 0], 1 - u)


@pytest.mark.equation("wgan", "W(p, q)")
def test_the_best_critic_of_points_on_a_line_estimates_their_distance(generator):
    """In one dimension the best critic has the slope sign(F_q - F_p), with distribution functions F of the points.

    Its estimate is the distance that SciPy computes. A critic with three times the slope estimates three times the
    distance. Random critics with slopes of at most 1 estimate less.
    """
    p, q = (s + m * torch.randn(60, generator=generator, dtype=torch.float64) for s, m in ((0.5, 1.0), (-0.2, 2.0)))
    distance = wasserstein_distance(p.numpy(), q.numpy())
    x = torch.cat([p, q]).sort().values
    gap = x.diff()
    F_p, F_q = ((points <= x[:-1, None]).double().mean(1) for points in (p, q))

    def estimate(slope):
        f = torch.cat([torch.zeros(1, dtype=torch.float64), (slope * gap).cumsum(0)])  # values at x
        return wasserstein_estimate(f[torch.searchsorted(x, p)], f[torch.searchsorted(x, q)])

    assert_close(estimate((F_q - F_p).sign()).item(), distance)
    assert_close(estimate(3 * (F_q - F_p).sign()).item() / 3, distance)
    for _ in range(5):
        assert estimate(2 * torch.rand(119, generator=generator, dtype=torch.float64) - 1).abs() < distance


@pytest.mark.equation("wgan", "critic_loss")
@pytest.mark.equation("wgan", "generator_loss")
@pytest.mark.parametrize("lipschitz", ["gradient_penalty", "clip"])
def test_the_losses_of_a_linear_critic_in_closed_form(lipschitz, generator):
    """The critic is f(x) = 3 x_1 + 4 x_2 with the slope 5, and G(z) = z. The penalty is (5 - 1)^2, and lambda is 10."""
    model = small(lipschitz=lipschitz, network="mlp", shape=[2], hidden=[4], z_dim=2)
    model.generator, model.critic = nn.Identity(), nn.Linear(2, 1)
    model.critic.weight.data = torch.tensor([[3.0, 4.0]])
    x, noise = torch.randn(6, 2, generator=generator), {"z": torch.randn(6, 2, generator=generator), "u": torch.rand(6)}
    f_x, f_z = (t @ torch.tensor([3.0, 4.0]) + model.critic.bias for t in (x, noise["z"]))
    terms = model.critic_terms(x, noise)
    assert_close(terms["wasserstein"], f_x.mean() - f_z.mean())
    assert_close(terms["loss"], f_z.mean() - f_x.mean() + (160 if lipschitz == "gradient_penalty" else 0))
    assert_close(model.generator_terms(noise)["loss"], -f_z.mean())


@pytest.mark.equation("wgan", "critic_loss")
@pytest.mark.equation("wgan", "x_hat")
def test_the_penalty_is_measured_between_data_and_samples(generator):
    """The critic is f(x) = |x|^2 / 2 with the gradient x, and G(z) = z. The penalty is the mean of (|x_hat| - 1)^2."""
    model = small(network="mlp", shape=[2], hidden=[4], z_dim=2, gp_weight=3.0)
    model.generator, model.critic.forward = nn.Identity(), lambda x: x.square().sum(1, keepdim=True) / 2
    x, z, u = (torch.randn(6, 2, generator=generator) for _ in range(3))
    u = u[:, 0].sigmoid()
    terms = model.critic_terms(x, {"z": z, "u": u})
    norms = (u[:, None] * x + (1 - u[:, None]) * z).norm(dim=1)
    assert_close(terms["penalty"], (norms - 1).square().mean())
    assert_close(terms["lipschitz"], norms.max())
    assert_close(terms["loss"], (z.square().sum(1) - x.square().sum(1)).mean() / 2 + 3 * (norms - 1).square().mean())


@pytest.mark.equation("wgan", "clip")
def test_clipping_projects_every_parameter_of_the_critic():
    model = small(lipschitz="clip", clip_value=0.02)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert (
        max(p.max() for p in model.critic.parameters()) > 0.02 > -0.02 > min(p.min() for p in model.critic.parameters())
    )
    model.clip()
    for name, p in model.named_parameters():
        expected = before[name].clip(-0.02, 0.02) if name.startswith("critic.") else before[name]
        assert torch.equal(p, expected), name


def train_critic(theta, gp_weight, generator, steps=400, paired=True):
    """Train a critic on two parallel lines with the loss of WGAN.critic_terms. Return its estimate of the distance.

    The estimate is computed on 20,000 new pairs of points.
    """
    torch.manual_seed(0)
    critic = mlp([2, 64, 1], lambda: nn.LeakyReLU(0.2))
    f = lambda x: critic(x).squeeze(-1)  # noqa: E731
    optimiser = torch.optim.Adam(critic.parameters(), lr=1e-2, betas=(0.0, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        real, fake = (
            Line(0.0).sample(256, generator=generator)[0].float(),
            Line(theta).sample(256, generator=generator)[0].float(),
        )
        if paired:  # at equal height, all interpolations are horizontal, and the best slope has a closed form
            real[:, 1] = fake[:, 1]
        norms = gradient_norms(f, interpolate(real, fake, torch.rand(256, generator=generator)))
        loss = -wasserstein_estimate(f(real), f(fake)) + gp_weight * gradient_penalty(norms).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    real, fake = (
        Line(0.0).sample(20_000, generator=generator)[0].float(),
        Line(theta).sample(20_000, generator=generator)[0].float(),
    )
    fake[:, 1] = real[:, 1]
    with torch.no_grad():
        return wasserstein_estimate(f(real), f(fake)).item()


@pytest.mark.equation("wgan", "W(p, q)")
@pytest.mark.parametrize("theta", tiers([0.25, 0.5, 0.75], [0.5]))
def test_the_estimate_is_the_distance_of_parallel_lines(theta, generator):
    """The estimate is within 5 % of theta. Its bias is theta^2 / (2 lambda), with lambda = 10.

    The first check draws the two points of a pair separately, as in training. The closed form of the bias holds for
    pairs of equal height.
    """
    assert abs(train_critic(theta, 10.0, generator, paired=False) - theta) < 0.05 * theta
    estimate = train_critic(theta, 10.0, generator)
    assert abs(estimate - theta) < 0.05 * theta
    assert_close(estimate - theta, theta**2 / 20, rtol=0.15, atol=0)


def test_the_penaltys_bias_grows_as_its_weight_falls(generator):
    """With lambda = 1 and theta = 0.5, the bias theta^2 / (2 lambda) is 0.125, a quarter of the distance."""
    assert_close(train_critic(0.5, 1.0, generator) - 0.5, 0.125, rtol=0.05, atol=0)


@pytest.mark.parametrize("theta", [0.25, 0.75])
def test_the_best_slope_under_the_penalty(theta):
    """s theta - lambda (s - 1)^2 is largest at s = 1 + theta / (2 lambda), so the bias is not a training error."""
    s = torch.linspace(0.5, 2, 150_001, dtype=torch.float64)
    best = s[(s * theta - 10 * (s - 1) ** 2).argmax()].item()
    assert_close(best, 1 + theta / 20, rtol=1e-5, atol=0)
    assert_close(best * theta - theta, theta**2 / 20, rtol=1e-3, atol=0)


def test_under_clipping_the_estimate_is_only_proportional(generator):
    """A linear critic with |w| <= c estimates c theta, which is proportional to the distance theta."""
    c, w = 0.01, torch.tensor([-0.01, 0.01])
    estimates = []
    for theta in (0.25, 0.75):
        real, fake = (
            Line(0.0).sample(1000, generator=generator)[0].float(),
            Line(theta).sample(1000, generator=generator)[0].float(),
        )
        fake[:, 1] = real[:, 1]
        estimates.append(wasserstein_estimate(real @ w, fake @ w).item())
    assert_close(estimates, [c * 0.25, c * 0.75], rtol=1e-4, atol=0)


def test_no_critic_estimates_more_than_its_lipschitz_constant_times_the_distance(generator):
    """The ring and the ring shifted by d have the distance |d|. A critic estimates at most its slope times |d|."""
    torch.manual_seed(0)
    x = ring().sample(4000, generator=generator)[0].float()
    shift = torch.tensor([0.3, -0.1])
    for _ in range(5):
        critic = mlp([2, 32, 1], nn.Tanh)
        f = lambda x: critic(x).squeeze(-1)  # noqa: B023, E731
        between = interpolate(x, x + shift, torch.rand(4000, generator=generator))
        steepest = gradient_norms(f, between).max()
        assert wasserstein_estimate(f(x), f(x + shift)).abs() <= 1.02 * steepest * shift.norm()


@pytest.mark.equation("wgan", "clip")
def test_a_clipped_critics_weights_stay_in_the_box(tmp_path):
    run(tmp_path, *TINY["wgan"], "callbacks=none", "model.lipschitz=clip", "trainer.max_epochs=1", "test=false")
    state = checkpoint(tmp_path)["state_dict"]
    weights = {k: v for k, v in state.items() if "running_" not in k and "num_batches" not in k}
    critic = torch.cat([v.flatten() for k, v in weights.items() if k.startswith("critic.")])
    assert critic.abs().max() <= 0.01 and critic.abs().max() > 0.0099
    generator = torch.cat([v.flatten() for k, v in state.items() if k.startswith("generator.") and "weight" in k])
    assert generator.abs().max() > 0.01


def test_the_critic_steps_every_batch_and_the_generator_every_n_critic_th(tmp_path):
    run(tmp_path, *TINY["wgan"], "callbacks=none", "trainer.max_epochs=2", "test=false", "model.n_critic=5")
    last = checkpoint(tmp_path)
    assert last["global_step"] == 22
    critic, generator = (state["state"][0]["step"].item() for state in last["optimizer_states"])
    assert (critic, generator) == (22, 4)


def test_an_estimators_draw_is_the_gradient_of_a_step():
    for lipschitz in ("gradient_penalty", "clip"):
        model, batch = small(lipschitz=lipschitz).train(), images()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        for name, e in model.gradient_estimators().items():
            noise = e.noise(batch, chunk_generator(0, 3))
            drawn = grad(e.surrogate)({k: v.detach() for k, v in e.params.items()}, batch, noise)
            assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
            model.zero_grad(set_to_none=True)
            terms = model.critic_terms(batch[0], noise) if name == "critic" else model.generator_terms(noise)
            terms["loss"].backward()
            model.load_state_dict(before)
            for k, p in e.params.items():
                assert_close(drawn[k], torch.zeros_like(p) if p.grad is None else p.grad, rtol=1e-4, atol=1e-6)


def test_the_logged_terms_of_the_critic():
    model, batch = small(), images(64)
    noise = model.noise(batch, generator=chunk_generator(0, 0))
    terms = model.critic_terms(batch[0], noise)
    assert_close(terms["loss"], -terms["wasserstein"] + 10 * terms["penalty"])
    fake = model.generator(noise["z"])
    real = 2 * batch[0] - 1
    x = interpolate(real, fake, noise["u"]).detach().requires_grad_()
    (g,) = torch.autograd.grad(model.critic(x).sum(), x)
    assert_close(terms["lipschitz"], g.flatten(1).norm(dim=1).max())
    assert_close(terms["penalty"], ((g.flatten(1).norm(dim=1) - 1) ** 2).mean())
    clipped = small(lipschitz="clip").eval()
    assert set(clipped.critic_terms(batch[0], noise)) == {"loss", "wasserstein"}
    assert set(clipped.critic_terms(batch[0], noise, measure=True)) == {"loss", "wasserstein", "penalty", "lipschitz"}


def test_the_generator_maximises_the_critics_score():
    model = small()
    noise = model.noise(images(), generator=chunk_generator(0, 0))
    assert_close(model.generator_terms(noise)["loss"], -model.f(model.generator(noise["z"])).mean())


def test_u_is_uniform():
    """The mean and the variance of u are right within 4.5 standard errors."""
    u = small().noise([torch.zeros(20_000, 1)], generator=chunk_generator(0, 0))["u"]
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 4.5 / (12 * 20_000) ** 0.5
    assert abs(u.var() - 1 / 12) < 4.5 * (1 / 180 / 20_000) ** 0.5


def test_a_generator_may_be_given_by_position_as_in_an_earlier_version():
    model, batch = small(), images()
    for method in ("noise", "critic_loss", "generator_loss"):
        call = getattr(model, method)
        with pytest.warns(DeprecationWarning, match=f"give generator= of WGAN.{method} by name"):
            found = call(batch, chunk_generator(0, 0))
        assert_close(found, call(batch, generator=chunk_generator(0, 0)))


def test_optimisers_are_those_of_the_papers():
    for optimiser in small(lr=2e-4, beta1=0.3).configure_optimizers():
        assert type(optimiser) is torch.optim.Adam
        assert optimiser.param_groups[0]["betas"] == (0.3, 0.9) and optimiser.param_groups[0]["lr"] == 2e-4
    assert all(type(o) is torch.optim.RMSprop for o in small(lipschitz="clip").configure_optimizers())


def test_validation_measures_a_clipped_critic_too(tmp_path):
    metrics = run(tmp_path, *TINY["wgan"], "callbacks=none", "model.lipschitz=clip", "trainer.max_epochs=1")
    assert metrics["test/lipschitz"] > 0 and metrics["test/penalty"] > 0


def test_a_critic_has_no_batch_normalisation():
    """Without BatchNorm, the score of an image does not depend on the other images."""
    model, (x, _) = small().train(), images()
    assert_close(model.f(x)[:1], model.f(x[:1]), rtol=1e-4, atol=1e-6)
    assert not any("BatchNorm" in type(m).__name__ for m in model.critic.modules())


def test_points_are_samples(generator):
    model = small(network="mlp", shape=[2], hidden=[8])
    assert model.sample(5, generator=generator).shape == (5, 2)
    assert model.critic_loss([torch.randn(4, 2), torch.zeros(4)])["loss"].isfinite()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lipschitz": "spectral"}, "lipschitz must be gradient_penalty or clip, got 'spectral'"),
        ({"network": "sequence"}, "network must be conv or mlp, got 'sequence'"),
        ({"n_critic": 0}, "n_critic must be an integer of at least 1, got 0"),
        ({"gp_weight": 0}, "gp_weight must be a positive number, got 0"),
        ({"clip_value": -0.01}, "clip_value must be a positive number"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        WGAN(**arguments)
