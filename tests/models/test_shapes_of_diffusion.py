"""Tests of DDPM and the score model on images of other shapes: training, samples, and exact values for Gaussians.

The Gaussian data are images (3, 8, 8). The three channels of each pixel are one draw of N(MEAN, COVARIANCE).
Quadrature replaces the noise of a model, so its expectations are exact.
"""

import copy
import itertools
import math

import lightning as L
import numpy as np
import pytest
import torch
from helpers import assert_same, tiers
from scipy.stats import norm
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

import zoo.ddpm
from zoo.ddpm import DDPM
from zoo.functional.diffusion import SCHEDULES, make_chain
from zoo.functional.diffusion_bound import reverse_variance
from zoo.nets.unet import ResidualBlock, SelfAttention, UNet
from zoo.score import Score

F64 = torch.float64
SHAPES = [(3, 32, 32), (1, 32, 32), (3, 64, 64), (1, 28, 28), (3, 30, 37)]
MADE = {
    "ddpm": lambda **options: DDPM(steps=30, **options),
    "ddpm-labels": lambda **options: DDPM(steps=30, num_classes=3, **options),
    "score": lambda **options: Score(num_sigmas=5, **options),
    "score-labels": lambda **options: Score(num_sigmas=5, num_classes=3, **options),
}
FEW = {"ddpm": {"num_steps": 2}, "score": {"steps": 1}}
MEAN = torch.tensor([0.2, -0.1, 0.05], dtype=F64)
COVARIANCE = torch.tensor([[0.02, 0.009, -0.003], [0.009, 0.015, 0.001], [-0.003, 0.001, 0.01]], dtype=F64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(n, shape):
    """Return ``n`` smooth images in [0, 1] with labels 0, 1 and 2, which set the direction of the waves."""
    y = torch.arange(n) % 3
    phase = torch.rand(n, shape[0], 1, 1, generator=seeded(1)) * 6
    rows, columns = torch.linspace(0, 6, shape[1]).view(-1, 1), torch.linspace(0, 6, shape[2])
    angle = y.view(-1, 1, 1, 1)
    return [0.5 + 0.5 * torch.sin(phase + angle * rows + (2 - angle) * columns), y]


@pytest.mark.filterwarnings("ignore")  # Lightning advises to use more workers and a logger
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", tiers(MADE, ("ddpm", "score-labels")))
def test_a_model_of_any_shape_learns_samples_and_is_saved(name, shape, tmp_path):
    """Every weight gets a finite gradient. Samples have the shape, depend on the seed, and survive a checkpoint."""
    torch.manual_seed(0)
    model = MADE[name](shape=shape, widths=[16, 16, 16])
    trainer = L.Trainer(max_steps=2, barebones=True, accelerator="cpu")
    loader = DataLoader(list(zip(*batch_of(4, shape), strict=True)), batch_size=2)
    trainer.fit(model, loader, loader)
    model.loss(batch_of(2, shape))["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    few = FEW[name.removesuffix("-labels")]
    a, b = (model.sample(2, generator=seeded(seed), **few) for seed in (0, 1))
    assert a.shape == (2, *shape) and a.min() >= 0 and a.max() <= 1
    assert not torch.equal(a, b) and not torch.equal(a[0], a[1])
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = type(model).load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert_same(dict(again.hparams), dict(model.hparams))
    assert torch.equal(again.sample(2, generator=seeded(0), **few), a)


FIRST_TIER = [("ddpm", (3, 10, 13))]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(*case, marks=[] if case in FIRST_TIER else pytest.mark.slow, id=f"{case[0]}-{case[1]}")
        for case in [*FIRST_TIER, *itertools.product(("ddpm", "score-labels"), SHAPES)]
    ],
)
def test_the_loss_falls_over_two_hundred_steps(name, shape):
    torch.manual_seed(0)
    model = MADE[name](shape=shape, widths=[16, 16])
    held_out, generator = batch_of(30, shape), seeded(2)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    with torch.no_grad():
        before = model.loss(held_out, generator=seeded(3))["loss"]
    for _ in range(200):
        optimiser.zero_grad()
        model.loss([part[:6] for part in held_out], generator=generator)["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        after = model.loss(held_out, generator=seeded(3))["loss"]
    assert after < 0.95 * before


def test_every_method_of_a_ddpm_keeps_the_shape():
    torch.manual_seed(0)
    model = DDPM(steps=5, shape=[3, 7, 10], widths=[8, 8])
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    x = torch.randint(256, (2, 3, 7, 10), generator=seeded()) / 255
    z = model.encode(x)
    assert z.shape == x.shape == model.decode(z).shape
    assert model.interpolate(z, z.flip(0), between=4).shape == (2, 4, 3, 7, 10)
    assert model.sample(2, frames=3, show="x0").shape == (2, 3, 3, 7, 10)
    assert model.sample(2, corrector_steps=1).shape == x.shape
    assert model.bound_terms(x).shape == (6, 2) and model.log_likelihood(x).shape == (2,)
    assert model.blurred_score(x, torch.ones(2)).shape == x.shape
    with pytest.raises(ValueError, match=r"x must have the shape \(B, 3, 7, 10\); got \(2, 1, 28, 28\)"):
        model.encode(torch.zeros(2, 1, 28, 28))


def test_images_are_padded_in_the_middle_and_the_frame_is_cut_off():
    """A network on 32 x 40 images with zeros around the 30 x 37 images has the same output in the middle."""
    torch.manual_seed(0)
    net = UNet(3, [8, 8, 8], blocks=1, patch=2)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    x, t = torch.randn(2, 3, 30, 37, generator=seeded()), torch.tensor([3.0, 500.0])
    framed = nn.functional.pad(x, (1, 2, 1, 1))
    assert_close(net(x, t), net(framed, t)[..., 1:-1, 1:-2])


@pytest.mark.parametrize(
    ("sides", "widths", "lowest"),
    [((28, 28), [8, 8], (7, 7)), ((30, 37), [8] * 3, (4, 5)), ((32, 32), [8] * 3, (4, 4))],
)
def test_images_are_padded_no_further_than_to_the_next_multiple(sides, widths, lowest):
    net, seen = UNet(3, widths, blocks=1, patch=2), []
    net.middle[1].register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[2:])))
    net(torch.zeros(1, 3, *sides), torch.zeros(1))
    assert seen == [lowest]


def test_attention_and_dropout_are_where_the_options_say():
    net = UNet(3, [8, 16, 16], blocks=2, patch=1, attention=[1], dropout=0.25)
    sides = []
    for module in net.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda module, args, out: sides.append(tuple(args[0].shape[1:])))
    net(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    # Level 1 has 2 blocks downward and 3 blocks upward. The middle has attention at the lowest resolution.
    assert sides == [(16, 16, 16)] * 2 + [(16, 8, 8)] + [(16, 16, 16)] * 3
    blocks = [module for module in net.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 17 and all(block.dropout.p == 0.25 for block in blocks)
    block = blocks[0]
    nn.init.normal_(block.conv2.weight)  # a new block is the identity
    x, embedding = torch.randn(1, 8, 4, 4, generator=seeded()), torch.zeros(1, 32)
    assert not torch.equal(block(x, embedding), block(x, embedding))
    assert torch.equal(block.eval()(x, embedding), block(x, embedding))


# The exact denoiser and the exact score of the Gaussian data.


def over_channels(matrix, x):
    return torch.einsum("bij,bjhw->bihw", matrix.expand(len(x), 3, 3), x)


class ExactNetwork(nn.Module):
    """Predict ``predict`` from the exact posterior mean E[x_0 | x_t]."""

    def __init__(self, chain, predict):
        super().__init__()
        self.float64 = nn.Parameter(torch.zeros((), dtype=F64))  # the precision of the model's data
        self.chain, self.predict = chain, predict

    def gain(self, t):
        """Return A_t of x0_hat = m + A_t (x_t - sqrt(abar_t) m), (B, 3, 3)."""
        abar = self.chain.abar[t].view(-1, 1, 1)
        total = abar * COVARIANCE + (1 - abar) * torch.eye(3, dtype=F64)
        return abar.sqrt() * COVARIANCE @ torch.linalg.inv(total)

    def forward(self, xt, t, y=None):
        mean, abar = MEAN.view(3, 1, 1), self.chain.abar[t].view(-1, 1, 1, 1)
        x0 = mean + over_channels(self.gain(t), xt - abar.sqrt() * mean)
        eps = (xt - abar.sqrt() * x0) / (1 - abar).sqrt()
        return {"x0": x0, "eps": eps, "v": abar.sqrt() * eps - (1 - abar).sqrt() * x0}[self.predict]


def exact_terms(x, chain, variance):
    """Return L_0, ..., L_T of one image x (3, 8, 8) in [-1, 1] with the exact denoiser, (T + 1,) nats.

    Given x_0 = x, the error x - x0_hat = (I - sqrt(abar) A)(x - m) - sqrt(1 - abar) A eps is normal.
    """
    T, pixels = len(chain.betas), x[0].numel()
    network, centred = ExactNetwork(chain, "x0"), x - MEAN.view(3, 1, 1)
    found = []
    for t in range(T):
        abar, rest = chain.abar[t], 1 - chain.abar[t]
        A = network.gain(torch.tensor([t]))
        bias = over_channels(torch.eye(3, dtype=F64) - abar.sqrt() * A, centred[None])[0]
        var_p, var_q = reverse_variance(chain, variance)[t], chain.posterior_variance[t]
        if t == 0:
            found.append(exact_decoder_term(x, x - bias, rest * A[0].square().sum(1), var_p))
            continue
        squared_error = bias.square().sum() + pixels * rest * A.square().sum()
        c = chain.abar_prev[t].sqrt() * chain.betas[t] / rest
        variances = 3 * pixels * ((var_p / var_q).log() + var_q / var_p - 1) / 2
        found.append(variances + c**2 * squared_error / (2 * var_p))
    last, rest = chain.abar[-1], 1 - chain.abar[-1]
    return torch.stack([*found, (last * x.square() + rest - 1 - rest.log()).sum() / 2])


def exact_decoder_term(x, mu, spread, var_p):
    """Return E[-log P(x)], where P is a discretised N(mu', var_p) and mu' ~ N(mu, spread of the channel)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    sigma, total = float(var_p) ** 0.5, 0.0
    for c in range(3):
        for value, middle in zip(x[c].flatten().tolist(), mu[c].flatten().tolist(), strict=True):
            below = -abs(value - middle - float(spread[c]) ** 0.5 * nodes)  # the lower tail keeps its digits
            mass = norm.cdf((below + 1 / 255) / sigma) - norm.cdf((below - 1 / 255) / sigma)
            total -= float((weights * np.log(mass)).sum())
    return torch.tensor(total, dtype=F64)


@pytest.mark.parametrize(
    ("predict", "variance", "schedule"),
    [("eps", "posterior", "linear"), ("v", "beta", "cosine"), ("x0", "posterior", "cosine")],
)
def test_the_bound_of_gaussian_data_in_colour_is_exact(predict, variance, schedule, monkeypatch):
    """With the exact denoiser, the bound of one image agrees with its closed form to 1e-4 nats.

    The draws of noise are the nodes of a Gauss-Hermite rule over the three channels, equal at all pixels. Pixels are
    independent, so the weighted mean over the nodes is the expectation.
    """
    steps = 40
    model = DDPM(steps=steps, schedule=schedule, predict=predict, variance=variance, shape=[3, 8, 8], widths=[8])
    model = model.double()
    chain = make_chain(SCHEDULES[schedule](steps))
    model.net = ExactNetwork(chain, predict)
    noise = torch.randn(3, 64, generator=seeded(), dtype=F64)
    data = MEAN[:, None] + torch.linalg.cholesky(COVARIANCE) @ noise
    grey = ((data + 1) * 127.5).round().view(3, 8, 8)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(6))
    eps = torch.cartesian_prod(nodes, nodes, nodes)
    weights = torch.cartesian_prod(weights, weights, weights).prod(1)
    weights = weights / weights.sum()
    drawn = eps.view(-1, 3, 1, 1).expand(-1, 3, 8, 8)
    monkeypatch.setattr(zoo.ddpm, "randn", lambda *shape, generator, device: drawn)
    x = (grey / 255).expand(len(eps), 3, 8, 8)
    exact = exact_terms(grey / 127.5 - 1, chain, variance)
    assert_close(model.bound_terms(x) @ weights, exact, rtol=3e-7, atol=1e-5)  # the schedule is rounded to float32
    bound = -(model.log_likelihood(x).double() @ weights)
    assert abs(bound - exact.sum()) < 1e-4
    assert 3 < bound / (192 * math.log(2)) < 7  # bits per dimension; 8 bits are those of uniform grey values


class ExactScore(nn.Module):
    """The network F of a Score model whose score is exactly that of the Gaussian data with noise."""

    def __init__(self, model):
        super().__init__()
        self.float64 = nn.Parameter(torch.zeros((), dtype=F64))
        self.low = math.log(model.hparams.sigma_min)
        self.high = math.log(max(model.hparams.sigma_max, 2 * model.hparams.sigma_min))

    def forward(self, x, t, y=None):
        sigma = (t / 1000 * (self.high - self.low) + self.low).exp().view(-1, 1, 1, 1)
        scale = (1 + sigma**2).sqrt()
        total = COVARIANCE + sigma.view(-1, 1, 1) ** 2 * torch.eye(3, dtype=F64)
        score = -over_channels(torch.linalg.inv(total), x * scale - MEAN.view(3, 1, 1))
        return (score + x / scale) * sigma * scale


def exact_score_model(**options):
    model = Score(shape=[3, 8, 8], widths=[8], **options).double()
    model.sigmas = model.sigmas.double()
    model.net = ExactScore(model)
    return model


def test_the_least_denoising_loss_of_gaussian_data_in_colour_is_exact():
    """The least loss is w (D / sigma^2 - tr (C + sigma^2 I)^-1) / 2. Changed scores have a larger loss.

    The loss is quadratic in the data and the noise. The mean over the nodes +-sqrt(6) in each of six directions is the
    expectation of a quadratic function.
    """
    model = exact_score_model(num_sigmas=4)
    nodes = 6**0.5 * torch.cat([torch.eye(6, dtype=F64), -torch.eye(6, dtype=F64)])
    u, eps = (part.view(12, 3, 1, 1).expand(-1, 3, 8, 8) for part in nodes.split(3, 1))
    data = MEAN.view(3, 1, 1) + over_channels(torch.linalg.cholesky(COVARIANCE), u)
    for level, sigma in enumerate(model.sigmas.tolist()):
        noise = {"level": torch.full((12,), level), "eps": eps}
        inverse = torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(3, dtype=F64))
        least = sigma**2 * (1 + sigma**2) * (3 / sigma**2 - inverse.trace()) / 2 / 3  # per dimension
        found = model.losses([(data + 1) / 2], noise).mean()
        assert_close(found, least, rtol=1e-6, atol=0)  # the levels are rounded to float32
        changed = copy.deepcopy(model)
        changed.net.forward = lambda *args, exact=model.net: exact(*args) + 0.01
        assert changed.losses([(data + 1) / 2], noise).mean() > found + 1e-5


def test_langevin_chains_in_colour_have_their_stationary_law():
    """Chains on the exact score, at one noise level, have the covariance (A - e A^2 / 4)^-1, A = (C + sigma^2 I)^-1.

    Each of 12,800 pixels is an independent draw. For the nine entries of mean and covariance together, the test fails
    once in 16,000 seeds.
    """
    model, e, n = exact_score_model(num_sigmas=1, sigma_min=0.1), 0.02, 200
    states, _ = model.chains(n, steps=80, step_size=e, denoise=False, generator=seeded())
    x = states[-1].double().permute(0, 2, 3, 1).reshape(-1, 3)
    A = torch.linalg.inv(COVARIANCE + 0.01 * torch.eye(3, dtype=F64))
    law = torch.linalg.inv(A - e / 4 * A @ A)
    assert ((x.mean(0) - MEAN).abs() < 4.5 * (law.diag() / len(x)).sqrt()).all()
    error = ((law.diag().outer(law.diag()) + law**2) / len(x)).sqrt()
    assert ((x.T.cov() - law).abs() < 4.5 * error).all()
    assert (4.5 * error.diag() < 0.06 * law.diag()).all()
