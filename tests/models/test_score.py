"""Tests of score matching against known scores, and of the Score module.

The known scores belong to Gaussian data and to a mixture of Gaussians.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import assert_same
from torch.testing import assert_close

from zoo.checks.errors import UserError
from zoo.datamodules.toy import mixture, moons
from zoo.functional.langevin import annealed_langevin_steps, best_step_size
from zoo.functional.score_matching import denoising_loss, directional, explicit_loss, sliced_loss
from zoo.score import Score

F64 = torch.float64


@pytest.fixture
def field():
    """Return a smooth vector field in three dimensions and its exact divergence."""
    A = torch.tensor([[0.3, -1.0, 0.2], [0.5, 0.1, 0.0], [0.0, 0.7, -0.9]], dtype=F64)
    return (lambda x: torch.sin(x @ A.T) + x**2), (lambda x: (torch.cos(x @ A.T) * A.diag()).sum(1) + 2 * x.sum(1))


@pytest.mark.equation("score", "J(s)")
def test_the_explicit_trace_is_the_divergence(field, generator):
    s, divergence = field
    x = torch.randn(5, 3, generator=generator, dtype=F64)
    assert_close(explicit_loss(x, s), divergence(x) + s(x).square().sum(1) / 2)


@pytest.mark.equation("score", "J_sliced")
@pytest.mark.equation("score", "J_reduced")
@pytest.mark.parametrize("directions", ["rademacher", "normal", "axes"])
@pytest.mark.parametrize("reduced", [True, False])
def test_the_sliced_objective_is_unbiased(directions, reduced, field, generator):
    """The mean over random directions v with covariance I is the explicit objective, within 4.5 standard errors.

    If v is each of the three axes times sqrt(3), the mean is exact.
    """
    s, _ = field
    x = torch.randn(2, 3, generator=generator, dtype=F64)
    if directions == "axes":
        v = 3**0.5 * torch.eye(3, dtype=F64).expand(2, 3, 3)
        assert_close(sliced_loss(x, v, s, reduced), explicit_loss(x, s))
        return
    n = 200_000
    v = torch.randn(n, 1, 3, generator=generator, dtype=F64)
    v = v if directions == "normal" else v.sign()
    for point in x:
        losses = sliced_loss(point.expand(n, 3), v, s, reduced)
        error = losses.std() / n**0.5
        expected = explicit_loss(point[None], s)
        assert abs(losses.mean() - expected) < 4.5 * error
        assert 4.5 * error < 0.15 * max(1.0, abs(expected.item()))


def test_one_direction_is_the_mean_over_all_of_them(field, generator):
    s, _ = field
    x = torch.randn(4, 3, generator=generator, dtype=F64)
    v = torch.randn(4, 6, 3, generator=generator, dtype=F64)
    each = torch.stack([sliced_loss(x, v[:, k : k + 1], s) for k in range(6)]).mean(0)
    assert_close(sliced_loss(x, v, s), each)


def test_the_reduced_form_varies_less(generator):
    """For the score of N(0, I), v' grad s v is the same for all Rademacher v, so the reduced form does not vary."""
    x = torch.randn(1, 8, generator=generator, dtype=F64).expand(1000, 8)
    v = torch.randint(2, (1000, 1, 8), generator=generator).double() * 2 - 1
    assert sliced_loss(x, v, lambda x: -x, True).std() < 1e-12
    assert sliced_loss(x, v, lambda x: -x, False).std() > 0.1


def test_directional_is_the_quadratic_form(generator):
    A = torch.randn(4, 4, generator=generator, dtype=F64)
    x, v = torch.randn(2, 3, 4, generator=generator, dtype=F64)
    s, slope = directional(lambda x: x @ A.T, x, v)
    assert_close(s, x @ A.T)
    assert_close(slope, torch.einsum("bi,ij,bj->b", v, A, v))


# Among linear fields s(x) = -x M, the minimiser is M = C^-1, where C is the second moment of the data. The
# minimiser is the score of N(0, C). On finite data, this is exact for the empirical C and both objectives.


@pytest.mark.equation("score", "J(s)")
@pytest.mark.equation("score", "J_sliced")
@pytest.mark.equation("score", "J_reduced")
@pytest.mark.parametrize("objective", ["explicit", "sliced", "reduced"])
def test_the_minimiser_on_gaussian_data(objective, generator):
    """At the closed-form minimiser the gradient is zero, and the loss is larger on both sides.

    For the sliced objective, v is each of the three axes times sqrt(3). Means of quadratic forms are then exact.
    """
    L = torch.tensor([[1.0, 0, 0], [0.5, 0.8, 0], [-0.3, 0.2, 1.4]], dtype=F64)
    x = torch.randn(500, 3, generator=generator, dtype=F64) @ L.T
    C = x.T @ x / len(x)
    v = 3**0.5 * torch.eye(3, dtype=F64).expand(500, 3, 3)

    def loss(M):
        s = lambda x: -x @ M  # noqa: E731
        return (explicit_loss(x, s) if objective == "explicit" else sliced_loss(x, v, s, objective == "reduced")).mean()

    M = torch.linalg.inv(C).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(M), M)
    assert_close(gradient, torch.zeros(3, 3, dtype=F64), rtol=0, atol=1e-9)
    for direction in torch.eye(9, dtype=F64).view(9, 3, 3):
        assert min(loss(M + 0.1 * direction), loss(M - 0.1 * direction)) > loss(M)


def bumps(x):
    """Return the values of 25 Gaussian bumps at x, (B, 25). They cover the region where the mixture has mass."""
    side = torch.linspace(-3, 3, 5, dtype=F64)
    return torch.exp(-(x[:, None] - torch.cartesian_prod(side, side)).square().sum(2) / 2)


@pytest.mark.equation("score", "J(s)")
@pytest.mark.equation("score", "J_sigma")
@pytest.mark.parametrize("objective", ["explicit", "sliced", "denoising"])
def test_the_target_on_a_mixture(objective):
    """For fields s(x) = W' phi(x), the gradient at W = 0 shows the score f that an objective learns.

    The objective is 1/2 E|s|^2 - E[s . f] + const, so the gradient is -E[phi f']. The quadratic part is the same for
    every f. For explicit and sliced matching, f is the score of p. For denoising, it is the score of p convolved with
    N(0, sigma^2 I). Expectations over x are sums over a fine grid, and expectations over noise are Gauss-Hermite sums.
    """
    p, sigma = mixture(), 0.5
    side = torch.arange(-5, 5, 0.125, dtype=F64)
    grid = torch.cartesian_prod(side, side)
    weight = lambda density: density.log_density(grid).exp() * 0.125**2  # noqa: E731
    keep = weight(p) > 1e-9
    x, w = grid[keep], weight(p)[keep]
    nodes, mass = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(7))
    noise = list(zip(torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(mass, mass).prod(1), strict=True))
    total = sum(m for _, m in noise)

    def loss(W):
        s = lambda x: bumps(x) @ W  # noqa: E731
        if objective == "explicit":
            return (w * explicit_loss(x, s)).sum()
        if objective == "sliced":
            return (w * sliced_loss(x, 2**0.5 * torch.eye(2, dtype=F64).expand(len(x), 2, 2), s)).sum()
        level = torch.full((len(x),), sigma, dtype=F64)
        return sum(m / total * (w * denoising_loss(x, level, eps.expand_as(x), s)).sum() for eps, m in noise)

    ours = torch.func.grad(loss)(torch.zeros(25, 2, dtype=F64))
    true, blurred = (-bumps(grid).T @ (weight(q)[:, None] * q.score(grid)) for q in (p, p.blurred(sigma)))
    assert_close(ours, blurred if objective == "denoising" else true, rtol=1e-4, atol=1e-6)
    assert (true - blurred).abs().max() > 0.01


@pytest.mark.equation("score", "J(s)")
@pytest.mark.equation("score", "J_sliced")
@pytest.mark.equation("score", "J_reduced")
@pytest.mark.equation("score", "J_sigma")
@pytest.mark.parametrize("objective", ["explicit", "sliced", "reduced", "denoising"])
def test_the_objective_is_the_fisher_divergence_minus_a_constant(objective):
    """The objective and the divergence differ by a constant that does not depend on s, for two fields s.

    The constant is 1/2 E|score|^2, minus D / (2 sigma^2) for denoising. p is a mixture. Expectations over x are sums
    over a fine grid, and expectations over noise are Gauss-Hermite sums. For sliced, v is each axis times sqrt(2).
    """
    p, sigma = mixture(), 0.5
    q = p.blurred(sigma) if objective == "denoising" else p
    side = torch.arange(-6, 6, 0.1, dtype=F64)
    x = torch.cartesian_prod(side, side)
    weight, w = (density.log_density(x).exp() * 0.1**2 for density in (q, p))
    constant = (weight * q.score(x).square().sum(1)).sum() / 2 - (1 / sigma**2 if objective == "denoising" else 0)
    nodes, mass = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(9))
    noise = list(zip(torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(mass, mass).prod(1), strict=True))
    axes = 2**0.5 * torch.eye(2, dtype=F64).expand(len(x), 2, 2)
    for turn in (0.3, 1.1):
        s = lambda x, turn=turn: torch.sin(turn * x.flip(1) + 0.5) - 0.7 * turn * x  # noqa: E731
        if objective == "explicit":
            found = (w * explicit_loss(x, s)).sum()
        elif objective == "denoising":
            level = torch.full((len(x),), sigma, dtype=F64)
            found = (
                sum(m * (w * denoising_loss(x, level, eps.expand_as(x), s)).sum() for eps, m in noise) / mass.sum() ** 2
            )
        else:
            found = (w * sliced_loss(x, axes, s, objective == "reduced")).sum()
        divergence = (weight * (s(x) - q.score(x)).square().sum(1)).sum() / 2
        assert_close(found + constant, divergence, rtol=1e-6, atol=0)


def test_the_denoising_loss_is_written_out(generator):
    x, eps = torch.randn(2, 5, 3, generator=generator, dtype=F64)
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 10.0], dtype=F64)
    ours = denoising_loss(x, sigma, eps, lambda x: -x)
    for k in range(5):
        gap = -(x[k] + sigma[k] * eps[k]) + eps[k] / sigma[k]
        assert_close(ours[k], gap.square().sum() / 2)


# The module.


@pytest.fixture
def points():
    torch.manual_seed(0)
    return Score(shape=[2], hidden=[16, 16], num_sigmas=4, sigma_max=4.0, sigma_min=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": [28, 28]}, r"shape must be \[C, H, W\] for images or \[D\] for points, got \[28, 28\]"),
        ({"shape": [0]}, r"shape must be a list of integers of at least 1, such as .*, got \[0\]"),
        ({"objective": "implicit"}, "objective must be denoising, sliced or explicit, got 'implicit'"),
        (
            {"objective": "explicit"},
            "has 784 dimensions, and objective=explicit allows at most 32: use sliced or denoising",
        ),
        ({"num_sigmas": 0}, "num_sigmas must be at least 1 for objective=denoising, got 0"),
        ({"num_sigmas": -1}, "num_sigmas must be an integer of at least 0, got -1"),
        ({"sigma_min": 20}, "sigma_min must be below sigma_max, got 20 and 10.0"),
        ({"sigma_max": math.inf}, "sigma_max must be a positive number, got inf"),
        ({"weights": "none"}, "weights must be edm or ncsn, got 'none'"),
        ({"projections": 0}, "projections must be an integer of at least 1, got 0"),
        ({"variance_reduced": 1}, "variance_reduced must be true or false, got 1"),
        ({"hidden": [0], "shape": [2]}, "hidden must be a list of integers"),
        ({"hidden": 128}, "hidden must be a list of integers .*, got 128"),
        ({"shape": 28}, "shape must be a list of integers .*, got 28"),
        ({"shape": None}, "shape must be a list of integers .*, got None"),
        ({"shape": [2], "widths": "junk"}, "widths must be a list of integers .*, got 'junk'"),
        ({"blocks": None}, "blocks must be an integer of at least 1, got None"),
        ({"widths": [8] * 6}, "patch=2 and 6 widths need a side of more than 32 pixels"),
        ({"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"label_dropout": 1}, "label_dropout must be below 1, got 1"),
        ({"lr": "fast"}, "lr must be a positive number, got 'fast'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Score(**arguments)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"step_size": -1}, "step_size must be a positive number, got -1"),
        ({"denoise": "yes"}, "denoise must be true or false, got 'yes'"),
        ({"frames": 1}, "frames must be an integer of at least 2, got 1"),
        ({"frames": 9}, "frames must be at most 4, the number of states of a chain, got 9"),
        ({"frames": 2, "steps": "x"}, "steps must be an integer of at least 1, got 'x'"),
        ({"y": 3}, "trained without labels"),
        ({"guidance": 1.0}, "trained without labels .* no guidance"),
        ({"guidance": -1}, "guidance must be a number of at least 0, got -1"),
    ],
)
def test_bad_conditions_are_named(points, conditions, message, monkeypatch):
    monkeypatch.setattr(points, "forward", None)  # an invalid condition raises before the network is called
    with pytest.raises(ValueError, match=message):
        points.sample(1, **conditions)


def test_a_chain_without_levels_has_as_many_states_as_steps():
    model = Score(shape=[2], hidden=[4], num_sigmas=1)
    assert model.sample(3, steps=4, frames=4).shape == (3, 4, 2)
    with pytest.raises(ValueError, match="frames must be at most 4, the number of states of a chain, got 5"):
        model.sample(3, steps=4, frames=5)


def test_the_first_score_is_that_of_normal_data(points, generator):
    """A new network outputs zero, so s(x, sigma) = -x / (1 + sigma^2), for points and for images."""
    x, sigma = torch.randn(4, 2, generator=generator), points.sigmas
    assert_close(points(x, sigma), -x / (1 + sigma[:, None] ** 2))
    images = Score(widths=[8], num_sigmas=4, sigma_max=4.0, sigma_min=0.5)
    x = torch.randn(4, 1, 28, 28, generator=generator)
    assert_close(images(x, sigma), -x / (1 + sigma.view(4, 1, 1, 1) ** 2))
    assert (Score(shape=[2], objective="sliced", num_sigmas=0)(x[:, 0, 0, :2]) == 0).all()


@pytest.mark.equation("score", "L(s)")
def test_the_target_of_the_network_has_variance_one_at_every_level(points, generator):
    """The network's target has variance 1 at every level, and the weighted loss is half its squared error.

    The model is s = net / (sigma scale) - x / scale^2, with scale^2 = 1 + sigma^2. For x = x_0 + sigma eps with
    x_0 ~ N(0, I), the target of ``net`` is

        sigma scale (-eps / sigma + x / scale^2) = (sigma x_0 - eps) / scale
    """
    x0, eps = (torch.randn(4, 2, generator=generator) for _ in range(2))
    sigma = points.sigmas[:, None]
    scale = (1 + sigma**2).sqrt()
    shown = []

    def net(x, t, y=None):
        shown.append((x, t))
        return torch.full_like(x, 0.3)

    points.net.forward = net
    x = x0 + sigma * eps
    assert_close(points(x, points.sigmas), 0.3 / (sigma * scale) - x / scale**2)
    assert_close(shown[0][0], x / scale)
    low, high = points.sigmas[-1].log(), points.sigmas[0].log()
    assert_close(shown[0][1], (points.sigmas.log() - low) / (high - low) * 1000)
    losses = points.losses([x0], {"level": torch.arange(4), "eps": eps})
    target = (sigma * x0 - eps) / scale
    assert_close(losses, (0.3 - target).square().mean(1) / 2)


def test_a_single_level_at_the_largest_one_or_above_has_the_time_zero():
    for level in (10.0, 20.0):
        model, shown = Score(shape=[2], hidden=[4], num_sigmas=1, sigma_min=level), []
        model.net.forward = lambda x, t, y=None, shown=shown: shown.append(t) or torch.zeros_like(x)
        assert model(torch.ones(3, 2), model.sigmas.expand(3)).isfinite().all()
        assert_close(shown[0], torch.zeros(3), rtol=0, atol=1e-3)


@pytest.mark.equation("score", "L(s)")
@pytest.mark.parametrize("weights", ["edm", "ncsn"])
def test_the_weights_of_the_levels(weights, generator):
    """For a new network on N(0, I) data, losses at noise level sigma have the mean w / (2 sigma^2 (1 + sigma^2)).

    w is the weight of this level.
    """
    model = Score(shape=[2], hidden=[8], num_sigmas=3, sigma_max=4.0, sigma_min=0.5, weights=weights)
    n = 100_000
    batch = [torch.randn(n, 2, generator=generator)]
    noise = model.noise(batch, generator=generator)
    losses = model.losses(batch, noise)
    for level, sigma in enumerate(model.sigmas.tolist()):
        at_level = losses[noise["level"] == level]
        w = sigma**2 * (1 + sigma**2) if weights == "edm" else sigma**2
        error = at_level.std() / len(at_level) ** 0.5
        expected = w / (2 * sigma**2 * (1 + sigma**2))
        assert 4.5 * error < 0.05 * expected
        assert abs(at_level.mean() - expected) < 4.5 * error
        assert abs(len(at_level) - n / 3) < 4.5 * (n * 2 / 9) ** 0.5


@pytest.mark.equation("score", "L(s)")
@pytest.mark.parametrize("weights", ["edm", "ncsn"])
@pytest.mark.parametrize("objective", ["denoising", "sliced", "explicit"])
@pytest.mark.parametrize("shape", [[2], [1, 4, 4]])
def test_the_weighted_losses_of_a_new_network_in_closed_form(shape, objective, weights, generator):
    """A new network has s(x, sigma) = -x / (1 + sigma^2), and images are scaled to [-1, 1].

    The divergence of s is -D / (1 + sigma^2), also along each direction of +1 and -1.
    """
    given = {"sigma_max": 4.0, "sigma_min": 0.5, "num_sigmas": 3, "weights": weights, "widths": [8], "hidden": [8]}
    model, D = Score(shape=shape, objective=objective, **given), math.prod(shape)
    batch = torch.rand(6, *shape, generator=generator)
    noise = model.noise([batch], generator=generator) | {"level": torch.arange(3).repeat(2)}
    sigma = model.sigmas.repeat(2)
    w = sigma**2 * (1 + sigma**2) if weights == "edm" else sigma**2
    x0, eps, sigma = (2 * batch - 1 if len(shape) == 3 else batch).flatten(1), noise["eps"].flatten(1), sigma[:, None]
    s = -(x0 + sigma * eps) / (1 + sigma**2)
    expected = (s + eps / sigma if objective == "denoising" else s).square().sum(1) / 2
    if objective != "denoising":
        expected = expected - D / (1 + sigma[:, 0] ** 2)
    assert_close(model.losses([batch], noise), w * expected / D, rtol=1e-4, atol=1e-5)


@pytest.mark.equation("score", "L(s)")
@pytest.mark.parametrize("objective", ["sliced", "explicit"])
def test_objectives_on_a_ladder_have_one_gradient(objective, generator):
    """All objectives learn the score of the convolved density. Their expected gradients agree with denoising matching.

    The test compares the gradient by the output bias, over 400 draws of a batch of 500, within 4.5 standard errors.
    """
    torch.manual_seed(1)
    model = Score(shape=[2], objective=objective, hidden=[8], num_sigmas=2, sigma_max=1.0, sigma_min=0.7)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    x, _ = mixture().sample(500, generator=generator)
    batch, name = [x.float()], "net.layers.2.bias"
    params = {k: p.detach() for k, p in model.named_parameters()}

    def draws(objective):
        e = lambda p, noise: torch.func.functional_call(  # noqa: E731
            _Losses(model, objective), {f"model.{k}": v for k, v in {**params, name: p}.items()}, (batch, noise)
        )
        gradient = torch.func.grad(e)
        return torch.stack(
            [gradient(params[name], model.noise(batch, generator=generator, objective=objective)) for _ in range(400)]
        )

    ours, reference = draws(objective).double(), draws("denoising").double()
    error = ((ours.var(0) + reference.var(0)) / 400).sqrt()
    assert ((ours.mean(0) - reference.mean(0)).abs() < 4.5 * error).all()
    assert 4.5 * error.norm() < 0.2 * reference.mean(0).norm()


class _Losses(torch.nn.Module):
    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch, noise):
        return self.model.losses(batch, noise, self.objective).mean()


@pytest.mark.parametrize("images", [False, True])
def test_sliced_matching_trains_every_parameter(images, generator):
    shape = [1, 28, 28] if images else [2]
    model = Score(shape=shape, objective="sliced", widths=[8], hidden=[8], num_sigmas=2, projections=2)
    batch = [torch.rand(8, *shape, generator=generator)]
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        model.loss(batch, generator=generator)["loss"].backward()
        optimiser.step()
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_estimators_by_objective():
    names = lambda **kw: list(Score(hidden=[8], widths=[8], **kw).gradient_estimators())  # noqa: E731
    assert names() == ["denoising"]
    assert names(objective="sliced") == ["sliced_reduced", "sliced"]
    assert names(objective="sliced", shape=[2]) == ["sliced_reduced", "sliced", "explicit"]
    assert names(objective="explicit", shape=[2]) == ["sliced_reduced", "sliced", "explicit"]


def test_annealing_by_the_exact_score_draws_the_mixture(points):
    """With the exact score as the network, samples have the mean log density of the data, within 0.05 nats."""
    p = mixture()
    points.forward = lambda x, sigma, **labels: p.blurred(sigma[0].item()).score(x).float()
    x = points.sample(5000, steps=100, step_size=0.1, generator=torch.Generator().manual_seed(0), denoise=False)
    exact, _ = p.blurred(0.5).sample(5000, generator=torch.Generator().manual_seed(1))
    gap = p.blurred(0.5).log_density(x).mean() - p.blurred(0.5).log_density(exact).mean()
    assert abs(gap) < 0.05  # the standard error is 0.02, and the step size causes a bias of 0.01
    _, taken = points.chains(100, steps=20, adjusted=True, generator=torch.Generator().manual_seed(0))
    assert len(taken) == 4 and all(0.5 < share < 1 for share in taken)


def test_samples_are_the_annealed_chain(points):
    """The chain starts at N(0, 1 + sigma_1^2). For images, the ratio of successive levels sets the step size.

    Images are drawn by consistent annealed sampling, unless the Metropolis-Hastings test or the caller excludes it.
    """
    images = Score(widths=[8], num_sigmas=4, sigma_max=4.0, sigma_min=0.5)
    plain = best_step_size(2.0, 5)
    for model, steps, e, asked, consistent in (
        (points, 100, 0.05, {}, False),
        (points, 3, best_step_size(2.0, 3, consistent=True), {"consistent": True, "steps": 3}, True),
        (images, 2, best_step_size(2.0, 2, consistent=True), {}, True),
        (images, 5, plain, {"consistent": False, "steps": 5}, False),
        (images, 5, plain, {"adjusted": True, "steps": 5}, False),
    ):
        adjusted = "adjusted" in asked
        ours, _ = model.chains(3, **asked, generator=torch.Generator().manual_seed(4))
        generator = torch.Generator().manual_seed(4)
        x = 17**0.5 * torch.randn(3, *model.hparams.shape, generator=generator)
        how = {"adjusted": adjusted, "consistent": consistent, "generator": generator}
        with torch.no_grad():
            *_, (x, _) = annealed_langevin_steps(model, x, torch.tensor([4, 2, 1, 0.5]), steps, e, **how)
        assert_close(ours[-1], x)


@pytest.mark.parametrize("levels", [(10, 0.05, 64), (4, 0.05, 10), (1.01, 1.0, 232), (14, 1, 2)])
@pytest.mark.parametrize("steps", [1, 2, 5, 100])
def test_the_default_consistent_step_is_allowed_for_levels_in_float32(levels, steps):
    """With many steps, the default is the smallest allowed step size. Rounded ratios of levels differ."""
    high, low, n = levels
    model = Score(shape=[2], hidden=[4], sigma_max=high, sigma_min=low, num_sigmas=n)
    model.forward = lambda x, sigma, **labels: -x / (1 + sigma[:, None] ** 2)
    generator = torch.Generator().manual_seed(0)
    assert model.sample(1, steps=steps, consistent=True, generator=generator).isfinite().all()


def test_consistent_sampling_needs_levels_and_excludes_the_metropolis_test(points):
    one = Score(shape=[2], hidden=[8], num_sigmas=1)
    with pytest.raises(UserError, match="two noise levels or more, and this model has 1"):
        one.sample(2, consistent=True)
    with pytest.raises(UserError, match="adjusted or consistent"):
        points.sample(2, consistent=True, adjusted=True)
    with pytest.raises(UserError, match="consistent"):
        points.sample(2, consistent="yes")


@pytest.mark.parametrize("num_sigmas", [0, 1, 3])
@pytest.mark.parametrize("shape", [[2], [1, 28, 28]])
def test_samples_depend_on_the_seed_alone(num_sigmas, shape):
    model = Score(shape=shape, objective="sliced", hidden=[8], widths=[8], num_sigmas=num_sigmas)
    draw = partial(model.sample, 3, steps=4)
    a, b, c = (draw(generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert a.shape == (3, *shape) and torch.equal(a, b) and not torch.equal(a, c)
    if shape != [2]:
        assert a.min() >= 0 and a.max() <= 1
    if num_sigmas != 1:
        way = draw(generator=torch.Generator().manual_seed(0), frames=2)
        assert way.shape == (3, 2, *shape) and torch.equal(way[:, -1], a)


@pytest.mark.slow
def test_a_step_that_suits_the_data_is_found(points):
    """The default step size suits data of different variance, with the exact score and without noise levels.

    The mixture is sampled well. The components of the moons have 36 times less variance. With the step size for the
    mixture, chains on the moons would diverge. A thousand steps bring the chains near the moons, but do not cover the
    moons evenly. A step size that is too large raises an error.
    """
    model = Score(shape=[2], hidden=[8], objective="explicit", num_sigmas=0)
    for p, nats in ((moons(), 1.0), (mixture(), 0.2)):
        model.forward = lambda x, sigma=None, p=p, **labels: p.score(x).float()
        x = model.sample(500, generator=torch.Generator().manual_seed(0))
        exact, _ = p.sample(5000, generator=torch.Generator().manual_seed(1))
        assert abs(p.log_density(x).mean() - p.log_density(exact).mean()) < nats
    model.forward = lambda x, sigma=None, **labels: 3 * x
    with pytest.raises(ValueError, match="NaN or infinite with step_size=50 and guidance=0.0: use smaller values"):
        model.sample(2, step_size=50.0, steps=400)


def test_one_level_is_sampled_as_none():
    """The model has one noise level, 0.2, and the exact score of the mixture plus this noise.

    The mean log density of samples is right within 0.1 nats.

    With ``denoise``, each sample moves at the end by 0.2^2 times the score.
    """
    model, q = Score(shape=[2], hidden=[8], num_sigmas=1, sigma_min=0.2), mixture().blurred(0.2)
    model.forward = lambda x, sigma, **labels: q.score(x).float()
    x, y = (model.sample(3000, generator=torch.Generator().manual_seed(0), denoise=d) for d in (False, True))
    exact, _ = q.sample(3000, generator=torch.Generator().manual_seed(1))
    assert abs(q.log_density(x).mean() - q.log_density(exact).mean()) < 0.1
    assert_close(y, x + 0.04 * q.score(x).float())
    with pytest.raises(ValueError, match="give sigma"):
        Score(shape=[2], hidden=[8])(x)


def test_levels_stay_out_of_checkpoints(points):
    assert all(name.startswith("net.") for name in points.state_dict())


def test_earlier_calls_still_work():
    model, batch, seeded = Score(shape=[2], hidden=[4]), [torch.rand(3, 2)], lambda: torch.Generator().manual_seed(7)
    for name in ("noise", "loss"):
        with pytest.warns(DeprecationWarning, match=f"give generator= of Score.{name} by name"):
            old = getattr(model, name)(batch, seeded())
        assert_same(old, getattr(model, name)(batch, generator=seeded()))
    with pytest.warns(DeprecationWarning, match="give steps=, step_size= of Score.chains by name"):
        old = model.chains(2, 3, 0.01, generator=seeded())
    assert_same(old, model.chains(2, steps=3, step_size=0.01, generator=seeded()))
