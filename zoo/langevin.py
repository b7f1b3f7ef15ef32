"""Langevin dynamics: samples of a density from its score, grad log p(x), alone; seed 004, 14.6.2 and 7.3.

    x' = x + (e / 2) score(x) + sqrt(e) z,   z ~ N(0, I)                         seed 14.6.2, e the step size

Its stationary density is p as e goes to 0; at a finite step it is wider, N(0, s^2 / (1 - e / (4 s^2))) for p = N(0, s^2).
Accepting a step with the probability of Metropolis and Hastings makes it p at every e.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from zoo.sampling import rand, randn

Score = Callable[[Tensor], Tensor]  # (B, ...) -> (B, ...)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


@torch.no_grad()
def langevin_sample(
    score: Score,
    x: Tensor,
    steps: int,
    step_size: float | None = None,
    snr: float | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Run ``steps`` Langevin steps from ``x``, (B, ...).

    Args:
        score: x -> grad log p(x), (B, ...) both.
        steps: 0 or more.
        step_size: e; or
        snr: r, for steps of e = 2 (r |z| / |score|)^2, means over the batch: the corrector of Song et al. 2021
            (arXiv:2011.13456), algorithm 5.

    Returns:
        where the chains are, (B, ...).
    """
    if (step_size is None) == (snr is None):
        raise ValueError("a Langevin step has a step_size or a signal-to-noise ratio snr, one of the two")
    for _ in tqdm(range(steps), desc="Langevin", unit="step", leave=False, disable=None if progress else True):
        s, z = score(x), randn(*x.shape, generator=generator, device=x.device).to(x.dtype)
        e = step_size if snr is None else 2 * (snr * _norm(z).mean() / _norm(s).mean()) ** 2
        x = x + e / 2 * s + e**0.5 * z
    return x
