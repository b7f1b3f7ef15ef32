"""Tests of known distributions. Densities integrate to one, scores are gradients, and samples follow the density."""

import itertools
import math
from functools import cache

import pytest
import torch
from helpers import tiers
from scipy.integrate import dblquad, quad
from sklearn.datasets import make_moons, make_swiss_roll
from torch.testing import assert_close

from zoo.datamodules import DataError, Toy
from zoo.datamodules.toy import (
    DISTRIBUTIONS,
    BlurredCurves,
    Line,
    MarkovChain,
    Mixture,
    mixture,
    moons,
    ring,
    swiss_roll,
)

PLANES = {"mixture": mixture(), "ring": ring(), "moons": moons(), "swiss_roll": swiss_roll()}


STEP = 0.05
SIDE = torch.arange(-7, 7, STEP, dtype=torch.float64)


@cache
def on_grid(name):
    """Return the points of a grid, and the log density at each point. The step is at most half of each sigma."""
    grid = torch.cartesian_prod(SIDE, SIDE)
    return grid, PLANES[name].log_density(grid)


@pytest.mark.parametrize("name", tiers(PLANES, ("mixture", "ring", "moons")))
def test_a_density_integrates_to_one(name):
    """The step of the grid is at most half of sigma, so the sum equals the integral up to rounding."""
    total = on_grid(name)[1].exp().sum() * STEP**2
    assert_close(total.item(), 1.0, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", PLANES)
def test_a_score_is_the_gradient_of_the_log_density(name, generator):
    x, _ = PLANES[name].sample(50, generator=generator)
    x = torch.cat([x, x + torch.randn(50, 2, generator=generator, dtype=torch.float64)]).requires_grad_()
    (gradient,) = torch.autograd.grad(PLANES[name].log_density(x).sum(), x)
    assert_close(PLANES[name].score(x.detach()), gradient)


def test_the_ring_is_the_mixture_it_is_said_to_be():
    distribution = ring()
    angles = [2 * math.pi * k / 8 for k in range(8)]
    for x in [(2.0, 0.0), (0.3, -1.2), (1.5, 1.4)]:
        each = [
            math.exp(-((x[0] - 2 * math.cos(a)) ** 2 + (x[1] - 2 * math.sin(a)) ** 2) / (2 * 0.1**2)) for a in angles
        ]
        expected = math.log(sum(each) / 8 / (2 * math.pi * 0.1**2))
        assert_close(distribution.log_density(torch.tensor(x)).item(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", PLANES)
def test_a_blurred_density_is_the_convolution(name):
    """The convolution is a sum over a grid. The step is at most half of both standard deviations."""
    grid, log_density = on_grid(name)
    for x in torch.tensor([[0.3, -1.2], [1.5, 1.4], [0.0, 0.0]], dtype=torch.float64):
        kernel = Mixture(x[None], torch.ones(1), 0.3).log_density(grid)
        convolved = (log_density + kernel).exp().sum() * STEP**2
        assert_close(PLANES[name].blurred(0.3).log_density(x).exp(), convolved, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "x"), [("moons", (0.9, 0.3)), ("moons", (0.0, 1.05)), ("swiss_roll", (-1.0, 0.2))])
def test_a_blurred_curve_is_the_integral_along_it(name, x):
    """The density equals the adaptive quadrature of N(x | curve(t), sigma^2 I) over t, averaged over the curves."""
    curves = PLANES[name].curves

    def normal(t, curve):
        point = curve(torch.tensor([t], dtype=torch.float64))[0]
        square = (x[0] - point[0].item()) ** 2 + (x[1] - point[1].item()) ** 2
        return math.exp(-square / (2 * 0.1**2)) / (2 * math.pi * 0.1**2)

    expected = sum(quad(normal, 0, 1, args=(c,), epsabs=1e-13, limit=500)[0] for c in curves) / len(curves)
    assert_close(
        PLANES[name].log_density(torch.tensor(x, dtype=torch.float64)).exp().item(), expected, rtol=1e-8, atol=0
    )


def test_curves_are_those_of_scikit_learn():
    """Points that scikit-learn draws without noise lie on our curves. Its swiss roll is first divided by 7."""
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    moons_there, which = make_moons(50, noise=None)
    for k in (0, 1):
        there = torch.from_numpy(moons_there[which == k])
        assert torch.cdist(there, PLANES["moons"].curves[k](t)).min(1).values.max() < 1e-3
    roll = torch.from_numpy(make_swiss_roll(50, noise=0.0, random_state=0)[0][:, [0, 2]]) / 7
    assert torch.cdist(roll, PLANES["swiss_roll"].curves[0](t)).min(1).values.max() < 5e-3


def test_more_nodes_change_nothing(generator):
    for blurred in (moons(), swiss_roll()):
        x, _ = blurred.sample(50, generator=generator)
        finer = BlurredCurves(blurred.curves, blurred.sigma, nodes=800)
        assert_close(blurred.log_density(x), finer.log_density(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", tiers(PLANES, ("mixture", "moons")))
def test_samples_have_the_density(name):
    """The mean log density of samples equals the integral of p log p on a grid, within 4.5 standard errors.

    Each comparison fails once in 1.5e5 seeds.
    """
    x, _ = PLANES[name].sample(20_000, generator=torch.Generator().manual_seed(1))
    grid, log_p = on_grid(name)
    expected = (log_p.exp() * log_p).nan_to_num().sum() * STEP**2
    measured = PLANES[name].log_density(x)
    assert (measured.mean() - expected).abs() < 4.5 * measured.std() / len(x) ** 0.5
    # Each quarter of the plane has the expected number of samples.
    centres = grid + STEP / 2
    density = PLANES[name].log_density(centres).exp()
    for sign in [(1, 1), (-1, 1), (1, -1), (-1, -1)]:
        inside = lambda points, s=sign: (points[..., 0] * s[0] > 0) & (points[..., 1] * s[1] > 0)  # noqa: E731
        share = (density * inside(centres)).sum() * STEP**2
        error = (share * (1 - share) / len(x)).sqrt()
        assert (inside(x).double().mean() - share).abs() < 4.5 * error + 1e-9, sign


def test_parallel_lines(generator):
    x, _ = Line(0.25).sample(1000, generator=generator)
    assert (x[:, 0] == 0.25).all()
    assert 0 <= x[:, 1].min() < 0.01 and 0.99 < x[:, 1].max() <= 1


def test_a_markov_chain_is_enumerated(generator):
    chain = MarkovChain()
    v = chain.everything()
    assert v.shape == (5**5, 5, 5) and len(v.flatten(1).unique(dim=0)) == 5**5
    p = chain.log_probability(v).exp()
    assert_close(p.sum().item(), 1.0)
    assert_close(chain.P.sum(1), torch.ones(5, dtype=torch.float64))
    # Compute the probability of the sequence 2, 3, 3, 0, 1 by hand.
    hand = (1 / 3) / (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) * 0.6 * 0.2 * (0.2 / 3) * 0.6
    one = torch.eye(5)[torch.tensor([2, 3, 3, 0, 1])]
    assert_close(chain.log_probability(one).exp().item(), hand)
    assert chain.kl(lambda v: chain.log_probability(v)) == 0
    uniform = -5 * math.log(5)
    assert_close(chain.kl(lambda v: torch.full((len(v),), uniform)), float((p * p.log()).sum()) - uniform)
    # Chi-squared test of the first two symbols, with 24 degrees of freedom. It fails once in 1e5.
    x, first = chain.sample(20_000, generator=generator)
    pairs = (x[:, 0].argmax(-1) * 5 + x[:, 1].argmax(-1)).bincount(minlength=25)
    expected = 20_000 * (chain.pi[:, None] * chain.P).flatten()
    assert ((pairs - expected).square() / expected).sum() < 67.6
    assert torch.equal(first, x[:, 0].argmax(-1))
    # Chi-squared test of the last symbol, given the symbol before it.
    counts = torch.zeros(5, 5, dtype=torch.float64)
    counts.index_put_(
        (x[:, 3].argmax(-1), x[:, 4].argmax(-1)), torch.ones(20_000, dtype=torch.float64), accumulate=True
    )
    expected = counts.sum(1, keepdim=True) * chain.P
    assert ((counts - expected).square() / expected).sum() < 61.0  # 20 degrees of freedom, fails at most once in 5e6


def test_the_module_draws_the_same_points_every_time():
    one, two = Toy("ring"), Toy("ring", seed=3)
    for data in (one, two):
        data.setup()
    assert [len(one.splits[k].images) for k in ("train", "val", "test")] == [50_000, 5_000, 10_000]
    assert torch.equal(one.splits["train"].images, two.splits["train"].images)
    assert not torch.equal(one.splits["val"].images, one.splits["test"].images[:5000])
    a, b = (next(iter(data.train_dataloader())) for data in (one, two))
    assert a[0].shape == (256, 2) and a[0].dtype == torch.float32
    assert not torch.equal(a[0], b[0])
    with pytest.raises(
        ValueError, match="name is 'rings', but must be one of mixture, ring, moons, swiss_roll, line, markov_chain"
    ):
        Toy("rings")
    with pytest.raises(ValueError, match="theta is 'a', but must be a finite number"):
        Toy("line", theta="a")
    with pytest.raises(ValueError, match="batch_size is 0, but must be an integer from 1 to 50,000"):
        Toy("ring", batch_size=0)
    with pytest.raises(DataError, match="data.name is moons, but was ring"):
        Toy("moons").load_state_dict(Toy("ring").state_dict())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_no_split_is_drawn_as_another_one(name):
    """Examples at the same position in two splits differ. For the Markov chain, one pair in 200 is equal by chance."""
    data = Toy(name)
    data.setup()
    images = [data.splits[k].images[:5000] for k in ("train", "val", "test")]
    for a, b in itertools.combinations(images, 2):
        assert (a == b).flatten(1).all(1).double().mean() < (0.02 if name == "markov_chain" else 0.001)


@pytest.mark.parametrize("key", ["name", "theta", "batch_size", "seed"])
def test_a_run_resumes_with_every_setting_that_decides_its_points(key):
    data = Toy("line")
    data.load_state_dict(data.state_dict())
    with pytest.raises(DataError, match=f"data.{key} is {data.hparams[key]}, but was another"):
        data.load_state_dict(data.state_dict() | {key: "another"})


def test_a_mixture_of_one_component_is_a_gaussian():
    mixture = Mixture(torch.tensor([[1.0, -1.0]]), torch.ones(1), 2.0)
    mass, _ = dblquad(lambda y, x: mixture.log_density(torch.tensor([x, y])).exp().item(), 0, 2, -2, 0, epsabs=1e-6)
    inside = math.erf(1 / (2 * math.sqrt(2)))  # probability of |x - 1| < 1 for sigma 2
    assert_close(mass, inside**2, rtol=1e-5, atol=0)
