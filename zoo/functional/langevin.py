"""Langevin dynamics: samples of a density from its score, grad log p(x), alone; seed 004, 14.6.2 and 7.3.

    x' = x + (e / 2) score(x) + sqrt(e) z,   z ~ N(0, I)                         seed 14.6.2, e the step size

Its stationary density is p as e goes to 0; at a finite step it is wider, of variance s^2 / (1 - e / (4 s^2)) for p =
N(0, s^2). Accepting a step with the probability of Metropolis and Hastings makes it p at every e. Annealed, the chain
follows p convolved with N(0, sigma^2 I) for falling sigma, so that it finds modes that a chain in p alone would never
reach.

Symbols: x (B, ...); score, the gradient of a log density, (B, ...) to (B, ...); e the step size; sigmas large to small.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.old_forms import old_form
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
    """Run ``steps`` Langevin steps from ``x``, (B, ...).

    Args:
        score: x -> grad log p(x), (B, ...) both.
        steps: 0 or more.
        step_size: e; or
        snr: r, for steps of e = 4 (r |z| / |score|)^2, norms averaged over the batch: the corrector of Song et al. 2021
            (arXiv:2011.13456), algorithms 4 and 5, whose epsilon is e / 2; the latter's factor alpha_t is left out.

    Returns:
        where the chains are, (B, ...).
    """
    if (step_size is None) == (snr is None):
        raise UserError("a Langevin step has a step_size or a signal-to-noise ratio snr, one of the two")
    for _ in tracked(range(steps), "Langevin", show=progress):
        s, z = score(x), randn(*x.shape, generator=generator, device=x.device).to(x.dtype)
        e: Tensor | float
        if snr is not None:
            e = 4 * (snr * _norm(z).mean() / _norm(s).mean()) ** 2
        elif step_size is not None:
            e = step_size
        x = x + e / 2 * s + e**0.5 * z
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
    """Langevin steps that are taken with probability min(1, p(x') q(x | x') / (p(x) q(x' | x))) and else not taken.

    Metropolis and Hastings with q(x' | x) = N(x + (e / 2) score(x), e I) (seed 004, 7.3.1; Roberts & Tweedie 1996): p
    is invariant at every e. Where only the score is known, log p(x') - log p(x) is its integral along the straight line
    between them, by Gauss-Legendre: exact for a score that is a polynomial of degree 2 nodes - 1 along it.

    Args:
        score, x, steps: as for :func:`langevin_sample`.
        step_size: e.
        log_density: x -> log p(x) up to a constant, (B, ...) to (B,), where it is known.
        nodes: of the quadrature, each an evaluation of the score for each step.

    Returns:
        where the chains are, and the share of steps taken.
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
    """:func:`langevin_sample`, or the adjusted one: yields x after each step, and the share of chains that took it."""
    for _ in range(steps):
        if adjusted:
            x, taken = metropolis_langevin_sample(score, x, 1, step_size, generator=generator)
        else:
            x, taken = langevin_sample(score, x, 1, step_size, generator=generator), 1.0
        yield x, taken


def noise_levels(largest: float, smallest: float, levels: int) -> Tensor:
    """sigma_1 > ... > sigma_L in geometric progression, (L,), float64; Song & Ermon 2019, sec. 4.1."""
    return torch.logspace(math.log10(largest), math.log10(smallest), levels, dtype=torch.float64)


def best_step_size(ratio: float, steps: int) -> float:
    """The step e / sigma^2 after whose ``steps`` the variance at a new level is the nearest to what it should be.

    At a level ``ratio`` times smaller than the last one, chains for a single point blurred by N(0, sigma^2) begin with
    variance ratio^2, in units of sigma^2, and end with

        (1 - e/2)^(2 T) ratio^2 + (1 - (1 - e/2)^(2 T)) / (1 - e/4),    T steps

    which is to be 1: Song & Ermon 2020 (arXiv:2006.09011), technique 4, in the step of the first equation above.
    """
    e = torch.linspace(0.001, 2, 2000, dtype=torch.float64)
    kept = (1 - e / 2) ** (2 * steps)
    return float(e[(kept * ratio**2 + (1 - kept) / (1 - e / 4) - 1).abs().argmin()])


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
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, float]]:
    """Langevin dynamics at each noise level in turn, Song & Ermon 2019, algorithm 1.

    Args:
        score: (x, sigma) -> the score of the density blurred by N(0, sigma^2 I); sigma is (B,).
        x: where chains begin, (B, ...); noise of standard deviation sigma_1.
        sigmas: (L,), large to small.
        steps: at each level.
        step_size: e / sigma^2, the same at all levels (the paper's epsilon / sigma_L^2).
        denoise: end with x + sigma_L^2 score(x, sigma_L), the mean of what was blurred, as Song & Ermon 2020 do.
        adjusted: accept steps by Metropolis and Hastings, from the integral of the score.

    Yields:
        x after each level, and the share of its steps that were taken.
    """
    for i, sigma in enumerate(sigmas.tolist()):
        at_level = partial(score, sigma=torch.full((len(x),), sigma, dtype=x.dtype, device=x.device))
        e, taken = step_size * sigma**2, 1.0
        if adjusted:
            x, taken = metropolis_langevin_sample(at_level, x, steps, e, generator=generator)
        else:
            x = langevin_sample(at_level, x, steps, e, generator=generator)
        if denoise and i == len(sigmas) - 1:
            x = x + sigma**2 * at_level(x)
        yield x, taken
