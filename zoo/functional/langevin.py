"""Langevin dynamics: samplers that need only the score grad log p(x) of a density p.

    x' = x + (e / 2) score(x) + sqrt(e) z,   z ~ N(0, I),   e the step size       [DSL 14.6.2]

The stationary density of the chain tends to p as e goes to 0. At a finite e it differs from p. For p = N(0, s^2) it has
the variance s^2 / (1 - e / (4 s^2)), which is larger than s^2. With a Metropolis-Hastings test at every step, the
stationary density is p at any e [DSL 7.3.1].

An annealed chain samples from p convolved with N(0, sigma^2 I), for a decreasing sequence of sigma. It can reach modes
that a chain on p alone does not reach. With few steps at each level, the noise in x is larger than sigma. One cause is
that each step adds too much noise. The other is that noise of the previous level remains. Consistent annealed sampling
(Jolicoeur-Martineau et al. 2020, arXiv:2009.05475) adds less. If the data are a single point, the noise in x is then
sigma after every step:

    x' = x + (e / 2) score(x, sigma) + beta sigma z,   beta^2 = 1 - ((1 - e / (2 sigma^2)) tau / sigma)^2

Here tau is the noise in x before the step. It is the previous level in the first step at a level, and sigma in later
steps. The paper takes one step at each level, with the score at tau and a step size in units of tau^2.

Symbols: x is (B, ...), the score maps (B, ...) to (B, ...), and sigmas go from large to small.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.old_forms import old_form
from zoo.checks.values import check_integer, check_positive
from zoo.functional.noise import rand, randn
from zoo.functional.progress import tracked

Score = Callable[[Tensor], Tensor]  # (B, ...) -> (B, ...)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


@old_form
@torch.no_grad()
def langevin_sample(
    score: Score,
    x: Tensor,
    steps: int,
    step_size: float | None = None,
    snr: float | None = None,
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Return the states of Langevin chains after ``steps`` steps from ``x``, (B, ...).

    With ``snr`` the step is the corrector of Song et al. 2021 (arXiv:2011.13456), algorithms 4 and 5, without the
    factor alpha_t of algorithm 5. The epsilon of the paper is e / 2.

    Args:
        score: x -> grad log p(x), (B, ...) to (B, ...).
        x: initial states, (B, ...).
        steps: number of steps, 0 or more.
        step_size: the step size e. Set either ``step_size`` or ``snr``.
        snr: signal-to-noise ratio r, which sets e = 4 (r |z| / |score|)^2. The norms are averaged over the batch.
        generator: source of the noise. None selects PyTorch's default generator.
        progress: whether to show a progress bar.

    Raises:
        UserError: if both or neither of ``step_size`` and ``snr`` are set.
    """
    if (step_size is None) == (snr is None):
        raise UserError(f"set one of the two, step_size or snr, got step_size={step_size!r} and snr={snr!r}")
    for _ in tracked(range(steps), "Langevin", show=progress):
        s, z = score(x), randn(*x.shape, generator=generator, device=x.device).to(x.dtype)
        e: Tensor | float
        if snr is not None:
            e = 4 * (snr * _norm(z).mean() / _norm(s).mean()) ** 2
        elif step_size is not None:
            e = step_size
        x = x + e / 2 * s + e**0.5 * z  # x'
    return x


@old_form
@torch.no_grad()
def metropolis_langevin_sample(
    score: Score,
    x: Tensor,
    steps: int,
    step_size: float,
    log_density: Callable[[Tensor], Tensor] | None = None,
    nodes: int = 4,
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> tuple[Tensor, float]:
    """Return the states of Metropolis-adjusted Langevin chains, (B, ...), and the fraction of accepted steps.

    See [DSL 7.3.1]; Roberts & Tweedie 1996. Each step proposes x' ~ q(x' | x) = N(x + (e / 2) score(x), e I). The chain
    moves to x' with the probability

        min(1, p(x') q(x | x') / (p(x) q(x' | x)))

    If it does not move, it stays at x. This rule leaves p invariant at any e. Without ``log_density``, the function
    computes log p(x') - log p(x) as the integral of the score along the line from x to x' by Gauss-Legendre quadrature.
    The quadrature is exact if the score along the line is a polynomial of degree at most 2 ``nodes`` - 1.

    Args:
        score, x, steps, generator, progress: as for :func:`langevin_sample`.
        step_size: the step size e.
        log_density: function that maps x (B, ...) to log p(x) + constant (B,). None if it is unknown.
        nodes: number of quadrature nodes. Each node takes one evaluation of the score per step.
    """
    nodes_and_weights = list(zip(*np.polynomial.legendre.leggauss(nodes), strict=True))
    e, taken = step_size, 0.0

    def log_ratio(x: Tensor, proposal: Tensor) -> Tensor:
        if log_density is not None:
            return log_density(proposal) - log_density(x)
        move = proposal - x
        slopes = [(score(x + (u + 1) / 2 * move) * move).flatten(1).sum(1) * w / 2 for u, w in nodes_and_weights]
        return torch.stack(slopes).sum(0)

    s = score(x)
    for _ in tracked(range(steps), "Langevin", show=progress):
        z = randn(*x.shape, generator=generator, device=x.device).to(x.dtype)
        u = rand(len(x), generator=generator, device=x.device).to(x.dtype)
        proposal = x + e / 2 * s + e**0.5 * z
        s_proposal = score(proposal)
        back = (x - proposal - e / 2 * s_proposal).flatten(1).square().sum(1) / (2 * e)
        log_accept = log_ratio(x, proposal) - back + z.flatten(1).square().sum(1) / 2
        accept = u.log() < log_accept
        taken += int(accept.sum()) / max(1, len(accept))
        column = accept.view(-1, *[1] * (x.ndim - 1))
        x, s = torch.where(column, proposal, x), torch.where(column, s_proposal, s)
    return x, taken / max(1, steps)


@old_form
def langevin_steps(
    score: Score,
    x: Tensor,
    steps: int,
    step_size: float,
    adjusted: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, float]]:
    """Yield x after each Langevin step, and the fraction of chains that accepted the step.

    If ``adjusted`` is true, :func:`metropolis_langevin_sample` makes the steps. If not, :func:`langevin_sample` makes
    them, and the fraction is 1.
    """
    for _ in range(steps):
        if adjusted:
            x, taken = metropolis_langevin_sample(score, x, 1, step_size, generator=generator)
        else:
            x, taken = langevin_sample(score, x, 1, step_size, generator=generator), 1.0
        yield x, taken


def frame_numbers(frames: int | None, total: int) -> list[int]:
    """Return the numbers of ``frames`` evenly spaced states among ``total``, or the last number for None.

    Raises:
        UserError: if ``frames`` is not an integer from 2 to ``total``.
    """
    if frames is None:
        return [total - 1]
    check_integer("frames", frames, least=2)
    if frames > total:
        raise UserError(f"frames must be at most {total}, the number of states of a chain, got {frames}")
    return torch.linspace(0, total - 1, frames, dtype=torch.float64).round().long().tolist()


def noise_levels(sigma_max: float, sigma_min: float, num_sigmas: int) -> Tensor:
    """Return sigma_1 > ... > sigma_L in geometric progression, (L,), float64; Song & Ermon 2019, sec. 4.1.

    Args:
        sigma_max: the largest level. It is not used for fewer than two levels.
        sigma_min: the smallest level, and the only level if L is 1.
        num_sigmas: number of levels L, at least 0.

    Raises:
        UserError: if a value is not allowed.
    """
    check_positive("sigma_max", sigma_max)
    check_positive("sigma_min", sigma_min)
    check_integer("num_sigmas", num_sigmas, least=0)
    if sigma_min >= sigma_max and num_sigmas > 1:
        raise UserError(f"sigma_min must be below sigma_max, got {sigma_min} and {sigma_max}")
    largest = sigma_max if num_sigmas > 1 else sigma_min
    return torch.logspace(math.log10(largest), math.log10(sigma_min), num_sigmas, dtype=torch.float64)


def largest_ratio(sigmas: Tensor) -> float:
    """Return the largest ratio of two successive levels of ``sigmas``, (L,), or 1 for fewer than two levels."""
    sigmas = sigmas.cpu().double()
    return float((sigmas[:-1] / sigmas[1:]).max()) if len(sigmas) > 1 else 1.0


def best_step_size(ratio: float, steps: int, *, consistent: bool = False) -> float:
    """Return the step size of annealed Langevin dynamics that brings the variance of chains closest to the correct one.

    The step size is in units of sigma^2. The sigma of the previous level was ``ratio`` times as large.

    Without ``consistent``, this is technique 4 of Song & Ermon 2020 (arXiv:2006.09011). The data are a single point,
    and p at the level is N(point, sigma^2). In units of sigma^2, the chains begin with variance ratio^2. After T steps
    their variance is

        (1 - e/2)^(2 T) ratio^2 + (1 - (1 - e/2)^(2 T)) / (1 - e/4)

    The correct variance is 1. The result is the e in (0, 2] with the variance closest to 1.

    With ``consistent``, the variance is correct for a single point at every allowed e. For the data N(0, s^2) with s
    much larger than sigma, the variance of consistent chains changes at a level by

        T (-e + 1 - (1 - e/2)^2) - (1 - e/2)^2 (ratio^2 - 1)

    in units of sigma^2. The correct change is 1 - ratio^2. The result is the e at which the two are equal:

        e = 4 (ratio^2 - 1) / (T + ratio^2 - 1)

    It is limited to the range from 2 - 2 / ratio to 2. With a smaller e, the noise of the previous level would be above
    sigma after a step. With e = 2, a step replaces all noise in x. With many steps at a level, e stays at its lower
    limit, and the variance of wide data is too small by up to e / 4. The paper has another rule for e.

    Args:
        ratio: the sigma of the previous level divided by sigma, above 1.
        steps: number of steps T at each level.
        consistent: whether the steps are those of consistent annealed sampling.
    """
    if consistent:
        gap = ratio**2 - 1
        return min(2.0, max(4 * gap / (steps + gap), 2 - 2 / ratio))
    e = torch.linspace(0.001, 2, 2000, dtype=torch.float64)
    kept = (1 - e / 2) ** (2 * steps)
    return float(e[(kept * ratio**2 + (1 - kept) / (1 - e / 4) - 1).abs().argmin()])


def stable_step_size(score: Score, x: Tensor) -> float:
    """Return 0.14 D / E|score(x)|^2, a step size for states like ``x``, (B, ...) with D dimensions.

    If x is isotropic Gaussian and the score is that of x, this is 0.14 times its variance.
    """
    return 0.14 * x[0].numel() / max(1e-6, float(score(x).flatten(1).square().sum(1).mean()))


@old_form
@torch.no_grad()
def annealed_langevin_steps(
    score: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    steps: int,
    step_size: float,
    denoise: bool = True,
    adjusted: bool = False,
    *,
    consistent: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, float]]:
    """Yield x after each noise level of annealed Langevin dynamics, and the fraction of accepted steps at the level.

    See Song & Ermon 2019, algorithm 1.

    Args:
        score: function of x and sigma (B,) that returns the score of p convolved with N(0, sigma^2 I).
        x: initial states, (B, ...), such as noise of standard deviation sigma_1.
        sigmas: noise levels, large to small, (L,).
        steps: number of steps at each level.
        step_size: e / sigma^2, equal at all levels. In the paper it is epsilon / sigma_L^2.
        denoise: whether to end with x + sigma_L^2 score(x, sigma_L), as in Song & Ermon 2020. This is the posterior
            mean of the noise-free point given x.
        adjusted: whether to add a Metropolis-Hastings test, as in :func:`metropolis_langevin_sample`.
        consistent: whether to keep the noise at sigma by consistent annealed sampling. Initially, the noise is sigma_1.
        generator: source of the noise. None selects PyTorch's default generator.

    Raises:
        UserError: if both ``adjusted`` and ``consistent`` are true, or if ``consistent`` needs a larger ``step_size``.
    """
    if adjusted and consistent:
        raise UserError("set adjusted or consistent, not both: the Metropolis-Hastings test needs the noise sqrt(e) z")
    kept, levels = 1 - step_size / 2, sigmas.tolist()
    taus = [levels[0], *levels[:-1]] if levels else []  # the noise in x at the beginning of each level
    # The tolerance is for rounding. The step that it allows adds no noise.
    if consistent and abs(kept) * (ratio := largest_ratio(sigmas)) > 1 + 1e-6:
        least, most = math.ceil(1e4 * (2 - 2 / ratio)) / 1e4, math.floor(1e4 * (2 + 2 / ratio)) / 1e4
        raise UserError(
            f"step_size is {step_size:.4g}, but consistent sampling at these levels needs a value from {least} to "
            f"{most}: change step_size, or set consistent=false"
        )
    for i, (sigma, tau) in enumerate(zip(levels, taus, strict=True)):
        at_level = partial(score, sigma=torch.full((len(x),), sigma, dtype=x.dtype, device=x.device))
        e, taken = step_size * sigma**2, 1.0
        if adjusted:
            x, taken = metropolis_langevin_sample(at_level, x, steps, e, generator=generator)
        elif consistent:
            for _ in range(steps):
                beta = max(0.0, 1 - (kept * tau / sigma) ** 2) ** 0.5
                z = randn(*x.shape, generator=generator, device=x.device).to(x.dtype)
                x = x + e / 2 * at_level(x) + beta * sigma * z
                tau = sigma
        else:
            x = langevin_sample(at_level, x, steps, e, generator=generator)
        if denoise and i == len(sigmas) - 1:
            x = x + sigma**2 * at_level(x)
        yield x, taken
