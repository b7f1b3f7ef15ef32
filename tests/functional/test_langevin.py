"""Tests of Langevin dynamics against stationary densities in closed form."""

import csv
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from zoo.checks.errors import UserError
from zoo.datamodules.toy import Mixture, mixture
from zoo.functional.langevin import (
    annealed_langevin_steps,
    best_step_size,
    frame_numbers,
    langevin_sample,
    langevin_steps,
    metropolis_langevin_sample,
    noise_levels,
    stable_step_size,
)

ROOT = Path(__file__).resolve().parents[2]
F64 = torch.float64


def normal_score(s2):
    return lambda x: -x / s2


@pytest.mark.equation("score", "x'")
@pytest.mark.parametrize("e", [0.3, 1.5])
def test_the_stationary_variance_has_the_steps_error(e):
    """With step size e, the stationary variance is s^2 / (1 - e / (4 s^2)) for data of variance s^2.

    The variance of 200,000 independent chains agrees within 4.5 standard errors. False alarms occur once in 150,000
    seeds.
    """
    n, s2 = 200_000, 0.8
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = langevin_sample(normal_score(s2), x, 60, e, generator=torch.Generator().manual_seed(1))
    stationary = s2 / (1 - e / (4 * s2))
    assert stationary / s2 - 1 > 4.5 * (2 / n) ** 0.5  # the error is large enough to detect
    assert_close(x.var(), torch.tensor(stationary, dtype=F64), rtol=4.5 * (2 / n) ** 0.5, atol=0)


@pytest.mark.equation("score", "x'")
def test_the_dimensions_of_a_chain_have_separate_noise():
    """Two dimensions have the covariance matrix of z, the unit matrix, times the step size. The score is zero.

    The test takes one step of 50,000 chains and allows 4.5 standard errors.
    """
    n, e = 50_000, 0.3
    generator = torch.Generator().manual_seed(1)
    x = langevin_sample(torch.zeros_like, torch.zeros(n, 2, dtype=F64), 1, e, generator=generator)
    assert_close(torch.cov(x.T), e * torch.eye(2, dtype=F64), rtol=4.5 * (2 / n) ** 0.5, atol=4.5 * e / n**0.5)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("e", [0.3, 1.5])
def test_the_adjusted_chain_has_none(e, known):
    """With Metropolis acceptance, the stationary variance is s^2.

    Acceptance uses the exact density, or the integral of the score. The integral is exact for a linear score.
    """
    n, s2 = 200_000, 0.8
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 1, generator=generator, dtype=F64)
    log_density = (lambda x: -x.square().sum(1) / (2 * s2)) if known else None
    x, taken = metropolis_langevin_sample(normal_score(s2), x, 60, e, log_density, generator=generator)
    assert_close(x.var(), torch.tensor(s2, dtype=F64), rtol=4.5 * (2 / n) ** 0.5, atol=0)
    assert 0.5 < taken < 1


def test_the_acceptance_rate_is_that_of_its_formula():
    """For exact draws of p, the acceptance rate is the mean of min(1, ratio), computed from the densities."""
    n, s2, e = 200_000, 0.8, 1.0
    generator = torch.Generator().manual_seed(3)
    x = s2**0.5 * torch.randn(n, 1, generator=generator, dtype=F64)
    _, taken = metropolis_langevin_sample(normal_score(s2), x, 1, e, generator=torch.Generator().manual_seed(4))
    proposal = x * (1 - e / (2 * s2)) + e**0.5 * torch.randn(n, 1, generator=generator, dtype=F64)
    log_p = lambda x: -x.square() / (2 * s2)  # noqa: E731
    log_q = lambda to, at: -(to - at * (1 - e / (2 * s2))).square() / (2 * e)  # noqa: E731
    ratio = (log_p(proposal) - log_p(x) + log_q(x, proposal) - log_q(proposal, x)).exp().clamp(max=1)
    assert abs(taken - ratio.mean()) < 4.5 * (2 * 0.25 / n) ** 0.5


def test_the_integral_of_a_mixtures_score_is_its_density_ratio():
    """Two chains have equal noise. One accepts steps by the density, the other by quadrature of the score.

    More than 99 % of the final states are equal.
    """
    p, generator = mixture(), torch.Generator().manual_seed(5)
    x, _ = p.sample(2000, generator=generator)
    ends = []
    for log_density in (p.log_density, None):
        g = torch.Generator().manual_seed(6)
        ends.append(metropolis_langevin_sample(p.score, x, 30, 0.2, log_density, generator=g)[0])
    assert (ends[0] == ends[1]).all(1).double().mean() > 0.99


@pytest.mark.slow
def test_chains_in_a_mixture_reach_its_entropy():
    """Adjusted chains start far away and reach the mean log density of exact samples, within 4.5 standard errors."""
    p, generator = mixture(), torch.Generator().manual_seed(7)
    exact, _ = p.sample(20_000, generator=generator)
    x = 3 * torch.randn(20_000, 2, generator=generator, dtype=F64)
    x, _ = metropolis_langevin_sample(p.score, x, 400, 0.25, p.log_density, generator=generator)
    a, b = p.log_density(x), p.log_density(exact)
    assert abs(a.mean() - b.mean()) < 4.5 * (a.var() / 20_000 + b.var() / 20_000) ** 0.5


def test_annealing_finds_the_weights_that_a_plain_chain_does_not():
    """The density is p = 1/5 N((-5, -5), I) + 4/5 N((5, 5), I), as in Song & Ermon 2019, sec. 3.2.2.

    Half of the plain chains start on the side of (5, 5), and half end there. Annealed chains use the exact score of
    every noise level, and 4/5 of these chains end near (5, 5).
    """
    p = Mixture(torch.tensor([[-5.0, -5.0], [5.0, 5.0]]), torch.tensor([0.2, 0.8]), 1.0)
    n, generator = 4000, torch.Generator().manual_seed(8)
    start = 16 * torch.rand(n, 2, generator=generator, dtype=F64) - 8
    plain = langevin_sample(p.score, start, 500, 0.1, generator=generator)
    assert abs((plain.sum(1) > 0).double().mean() - 0.5) < 4.5 * (0.25 / n) ** 0.5  # 1/2, as at the start
    sigmas = noise_levels(20, 0.1, 40)
    score = lambda x, sigma: p.blurred(sigma[0].item()).score(x)  # noqa: E731
    x = 20 * torch.randn(n, 2, generator=generator, dtype=F64)
    *_, (x, taken) = annealed_langevin_steps(score, x, sigmas, 20, 0.2, generator=generator)
    assert taken == 1.0
    assert abs((x.sum(1) > 0).double().mean() - 0.8) < 0.04


def test_the_best_step_ends_nearest_to_the_variance_it_should_have():
    """After the last step of size e, the variance is as close to 1 as possible (technique 4 of Song & Ermon 2020).

    If x has variance v, x' = (1 - e/2) x + sqrt(e) z has variance (1 - e/2)^2 v + e.
    """
    for ratio, steps in [(1.09, 5), (1.5, 10), (2.0, 100)]:

        def after(e, ratio=ratio, steps=steps):
            v = ratio**2
            for _ in range(steps):
                v = (1 - e / 2) ** 2 * v + e
            return v

        e = best_step_size(ratio, steps)
        assert 0 < e < 2
        assert abs(after(e) - 1) <= min(abs(after(k / 100) - 1) for k in range(1, 200)) + 1e-6


def test_annealed_levels_are_langevin_at_their_own_step(generator):
    """The test computes two levels step by step, with the denoising step at the end."""
    score = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)  # noqa: E731
    x = torch.randn(3, 2, generator=generator, dtype=F64)
    ours = list(annealed_langevin_steps(score, x, torch.tensor([2.0, 0.5]), 3, 0.4, generator=generator.manual_seed(1)))
    generator.manual_seed(1)
    for (sigma, last), (at_level, _) in zip([(2.0, False), (0.5, True)], ours, strict=True):
        for _ in range(3):
            z = torch.randn(3, 2, generator=generator)
            x = x - 0.5 * 0.4 * sigma**2 * x / (1 + sigma**2) + (0.4**0.5 * sigma) * z
        if last:
            x = x - sigma**2 * x / (1 + sigma**2)
        assert_close(at_level, x)


def test_consistent_steps_have_the_noise_that_they_need(generator):
    """The test computes two levels step by step. For data at 0, the variance after each step is sigma^2."""
    score = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)  # noqa: E731
    x = torch.randn(3, 2, generator=generator, dtype=F64)
    how = {"consistent": True, "generator": generator.manual_seed(1)}
    ours = list(annealed_langevin_steps(score, x, torch.tensor([2.0, 1.5]), 2, 0.6, **how))
    generator.manual_seed(1)
    steps = iter([(2.0, 2.0), (2.0, 2.0), (2.0, 1.5), (1.5, 1.5)])  # (noise before the step, sigma)
    for at_level, _ in ours:
        for _ in range(2):
            tau, sigma = next(steps)
            z = torch.randn(3, 2, generator=generator)
            noise = (sigma**2 - (1 - 0.6 / 2) ** 2 * tau**2) ** 0.5
            x = x - 0.3 * sigma**2 * x / (1 + sigma**2) + noise * z
        if sigma == 1.5:
            x = x - sigma**2 * x / (1 + sigma**2)
        assert_close(at_level, x)


LEVELS = noise_levels(10, 0.05, 64)


def variance_of_chains(s: float, steps: int, consistent: bool) -> float:
    """Return the variance of annealed chains divided by its correct value s^2 + sigma^2, for the data N(0, s^2).

    The score is linear. The variance of x therefore follows v' = (1 - e / (2 (s^2 + sigma^2)))^2 v + noise^2.
    """
    c = best_step_size(float(LEVELS[0] / LEVELS[1]), steps, consistent=consistent)
    v, tau = s**2 + float(LEVELS[0]) ** 2, float(LEVELS[0])
    for sigma in LEVELS.tolist():
        for _ in range(steps):
            noise = sigma**2 - (1 - c / 2) ** 2 * tau**2 if consistent else c * sigma**2
            v, tau = (1 - c * sigma**2 / (2 * (s**2 + sigma**2))) ** 2 * v + noise, sigma
    return v / (s**2 + sigma**2)


@pytest.mark.parametrize("s", [1e-6, 0.02, 0.05, 0.1, 0.5, 1, 3])
def test_consistent_chains_have_the_variance_of_gaussian_data_and_plain_chains_do_not(s):
    """The levels are those of the score model. One consistent step at each level has less bias than 20 plain ones."""
    assert abs(variance_of_chains(s, 1, True) - 1) < 0.01
    assert abs(variance_of_chains(s, 2, True) - 1) < 0.007
    assert variance_of_chains(s, 5, False) > 1.12
    assert variance_of_chains(s, 20, False) > 1.03


def test_the_documented_errors_of_the_variance_are_the_computed_ones():
    widths = [1e-4, *torch.logspace(-3, 1, 41, dtype=F64).tolist()]
    lines = (ROOT / "docs" / "results" / "score-samplers.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert len(rows) >= 3
    for row in rows:
        steps, consistent = int(row["steps at each level"]), row["sampler"] == "consistent"
        largest = max(abs(variance_of_chains(s, steps, consistent) - 1) for s in widths)
        documented = row["largest error of the variance, %"]
        digits = len(documented.partition(".")[2])
        assert f"{100 * largest:.{digits}f}" == documented


def test_the_variance_of_simulated_chains_is_the_computed_one():
    """The relative error of a variance from n chains is (2 / n)^(1/2). False alarms: 1 in 10^5."""
    n, s = 50_000, 0.1
    score = lambda x, sigma: -x / (s**2 + sigma[:, None] ** 2)  # noqa: E731
    for consistent, steps in ((True, 1), (False, 2)):
        generator = torch.Generator().manual_seed(3)
        x = (s**2 + 100) ** 0.5 * torch.randn(n, 1, generator=generator, dtype=F64)
        size = best_step_size(float(LEVELS[0] / LEVELS[1]), steps, consistent=consistent)
        how = {"denoise": False, "consistent": consistent, "generator": generator}
        *_, (x, _) = annealed_langevin_steps(score, x, LEVELS, steps, size, **how)
        ratio = float(x.var()) / (s**2 + 0.05**2)
        assert abs(ratio / variance_of_chains(s, steps, consistent) - 1) < 4.5 * (2 / n) ** 0.5


@pytest.mark.parametrize("ratio", [1.01, 1.09, 1.4])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_consistent_step_follows_the_variance_of_wide_data(ratio, steps):
    """With s much larger than sigma, the variance changes by sigma^2 (1 - ratio^2) between two levels."""
    c, wide = best_step_size(ratio, steps, consistent=True), 1e6
    v = before = wide + ratio**2
    for n in range(steps):
        v = (1 - c / (2 * (wide + 1))) ** 2 * v + 1 - (1 - c / 2) ** 2 * (ratio**2 if n == 0 else 1)
    assert v - before == pytest.approx(1 - ratio**2, rel=1e-4)


def test_a_consistent_step_is_large_enough_for_the_distance_of_the_levels():
    """With many steps, the first step at a level adds no noise. Smaller steps, and the Metropolis test, are refused."""
    assert best_step_size(1.25, 100, consistent=True) == pytest.approx(2 - 2 / 1.25)
    assert best_step_size(14, 1, consistent=True) == 2  # (1 - e/2) is 0: the step replaces all noise
    score = lambda x, sigma: -x / sigma[:, None] ** 2  # noqa: E731
    sample = lambda size, **how: list(  # noqa: E731
        annealed_langevin_steps(score, torch.randn(4, 1), torch.tensor([1.25, 1.0]), 2, size, consistent=True, **how)
    )
    assert sample(2 - 2 / 1.25)[-1][0].isfinite().all() and sample(2 + 2 / 1.25)[-1][0].isfinite().all()
    for size in (0.39, 3.7):
        with pytest.raises(UserError, match=r"from 0\.4 to 3\.6: change"):
            sample(size)
    for size in (0.4 - 1e-4, 3.6 + 1e-4):
        with pytest.raises(UserError):
            sample(size)
    assert sample(0.4 - 1e-9)[-1][0].isfinite().all()  # rounding is allowed, and beta is then 0
    with pytest.raises(UserError, match="adjusted or consistent"):
        sample(1.0, adjusted=True)


def test_frames_are_evenly_spaced_with_both_ends():
    assert frame_numbers(None, 7) == [6] and frame_numbers(4, 9) == [0, 3, 5, 8]
    for wrong in (1, 10, 2.0):
        with pytest.raises(UserError):
            frame_numbers(wrong, 9)


def test_the_stable_step_is_that_of_the_mean_squared_score():
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # |x / 4|^2 = 1/8
    assert stable_step_size(lambda x: -x / 4, x) == pytest.approx(0.14 * 2 * 8)
    normal = 3 * torch.randn(50_000, 2, generator=torch.Generator().manual_seed(1))
    assert stable_step_size(lambda x: -x / 9, normal) == pytest.approx(0.14 * 9, rel=0.03)  # error 0.4 %


def test_noise_levels_are_geometric():
    sigmas = noise_levels(10, 0.01, 4)
    assert_close(sigmas, torch.tensor([10, 1, 0.1, 0.01], dtype=F64))
    assert len(noise_levels(1, 1, 0)) == 0


def test_a_correctors_step_is_by_its_signal_to_noise_ratio(generator):
    """The step size is e = 4 (r |z| / |s|)^2, with norms averaged over the batch. The drift is r times the noise."""
    x = torch.randn(50, 4, generator=generator, dtype=F64)
    out = langevin_sample(normal_score(2.0), x, 1, snr=0.2, generator=generator.manual_seed(3))
    z = torch.randn(50, 4, generator=generator.manual_seed(3))
    e = 4 * (0.2 * z.norm(dim=1).double().mean() / (x / 2).norm(dim=1).mean()) ** 2
    assert_close(out, x - e / 4 * x + e.sqrt() * z)
    assert_close((e / 4 * x).norm(dim=1).mean(), 0.2 * (e.sqrt() * z.double()).norm(dim=1).mean())
    for kw in ({}, {"snr": 0.1, "step_size": 0.1}):
        with pytest.raises(ValueError, match="one of the two"):
            langevin_sample(normal_score(1.0), x, 1, **kw)


def test_steps_one_by_one_are_the_chain(generator):
    x = torch.randn(5, 2, generator=generator, dtype=F64)
    *_, (a, taken) = langevin_steps(normal_score(1.0), x, 7, 0.2, generator=torch.Generator().manual_seed(1))
    b = langevin_sample(normal_score(1.0), x, 7, 0.2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(a, b) and taken == 1.0
    shares = [t for _, t in langevin_steps(normal_score(0.1), x, 50, 0.3, adjusted=True, generator=generator)]
    assert len(shares) == 50 and 0 < sum(shares) / 50 < 1 and math.isfinite(sum(shares))
