"""Objectives of score matching, per example and without their constants. zoo/score.py has their equations.

A field that minimises the expected objective is a score, the gradient of a log density. Explicit: Hyvärinen 2005.
Denoising: Vincent 2011. Sliced: Song, Garg, Shi & Ermon 2019, arXiv:1905.07088.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ScoreFunction = Callable[[Tensor], Tensor]  # (B, ...) -> (B, ...)


def directional(score: ScoreFunction, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return s(x), (B, ...), and v' (grad s(x)) v, (B,), for ``x`` and ``v`` (B, ...)."""
    s, pull = torch.func.vjp(score, x)[:2]
    return s, (pull(v)[0] * v).flatten(1).sum(1)


def explicit_loss(x: Tensor, score: ScoreFunction) -> Tensor:
    """Return tr(grad s(x)) + 1/2 || s(x) ||^2, (B,), for points (B, D). The exact trace takes D backward passes."""
    trace = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for unit in torch.eye(x[0].numel(), dtype=x.dtype, device=x.device):
        s, slope = directional(score, x, unit.view(x.shape[1:]).expand_as(x))
        trace = trace + slope
    return trace + s.flatten(1).square().sum(1) / 2


def sliced_loss(x: Tensor, v: Tensor, score: ScoreFunction, variance_reduced: bool = True) -> Tensor:
    """Return the mean over M directions of v' grad s(x) v + 1/2 (v' s(x))^2, (B,).

    Args:
        x: Points or images, (B, ...).
        v: Directions with covariance I, (B, M, ...).
        score: Function x -> s(x).
        variance_reduced: Whether to replace (v' s(x))^2 by || s(x) ||^2, which usually lowers the variance.
    """
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for direction in v.unbind(1):
        s, slope = directional(score, x, direction)
        along = (direction * s).flatten(1).sum(1)
        # J_reduced if variance_reduced is true, else J_sliced
        total = total + slope + (s.flatten(1).square().sum(1) if variance_reduced else along**2) / 2
    return total / v.shape[1]


def denoising_loss(x: Tensor, sigma: Tensor, eps: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Return 1/2 || s(x + sigma eps) + eps / sigma ||^2, (B,).

    Args:
        x: Points or images, (B, ...).
        sigma: Noise levels, (B,), positive.
        eps: Standard normal noise, (B, ...).
        score: Function x -> s(x, sigma), at the noise level of each example.
    """
    column = sigma.view(-1, *[1] * (x.ndim - 1))
    return (score(x + column * eps) + eps / column).flatten(1).square().sum(1) / 2
