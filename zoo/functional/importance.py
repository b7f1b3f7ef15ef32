"""Expectations by weighted draws: the importance-weighted bound of log p(x), and annealed importance sampling."""

import math
from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.checks.values import check_whole
from zoo.functional.latents import log_ratio
from zoo.functional.precision import float64_device, in_float64
from zoo.functional.progress import tracked

ROWS_AT_ONCE = 2000  # of images times importance samples: enough to keep a processor busy, few enough for its cache


def log_importance_weight(x: Tensor, z: Tensor, q, log_px: Callable) -> Tensor:
    """log w = log p(x | z) + log p(z) - log q(z | x) in nats, whose weights have E_q[w] = p(x).

    Args:
        x: data as the likelihood wants them, (B, ...).
        z: draws of q, (k, B, ...).
        q: one of zoo.functional.latents, of B examples.
        log_px: (x, z) -> log p(x | z), (k, B).

    Returns:
        (k, B).
    """
    return log_px(x, z) - log_ratio(z, q)


def importance_weighted_bound(log_w: Tensor) -> Tensor:
    """L_k = log 1/k sum_i w_i, one draw of Burda et al. 2015, eq. 8; log weights (k, B) to (B,) nats."""
    return log_w.logsumexp(0) - math.log(len(log_w))


def importance_weighted_log_likelihood(log_weight: Callable[[int], Tensor], num_samples: int, images: int) -> Tensor:
    """log 1/K sum_k w_k over ``num_samples`` independent draws, Burda et al. 2015, eq. 8.

    A lower bound of log p(x) in expectation, tighter with every sample; a few draws at a time, so that memory does not
    grow with their number.

    Args:
        log_weight: n -> n draws of log w = log p(x, z) - log q(z | x), (n, B) nats, anew at each call.
        num_samples: K, at least 1.
        images: B, from which follows how many draws are made at a time.

    Returns:
        (B,): nats.

    Raises:
        UserError: for ``num_samples`` that is no whole number of at least 1.
    """
    check_whole("num_samples", num_samples)
    left, at_once = num_samples, max(1, ROWS_AT_ONCE // max(1, images))
    parts = []
    while left:
        log_w = log_weight(min(left, at_once))
        parts.append(in_float64(log_w).logsumexp(0))
        left -= min(left, at_once)
    return (reduce(torch.logaddexp, parts) - math.log(num_samples)).float().to(log_w.device)


class LogPartition(NamedTuple):
    """log Z in nats with an interval; where it was enumerated, all of it is one number."""

    estimate: float
    low: float
    high: float


def annealed_importance_sampling(
    v: Tensor, anneal: Callable[[Tensor, float, float], tuple[Tensor, Tensor]], betas: Tensor, progress: bool = False
) -> Tensor:
    """log importance weights of annealed importance sampling; Neal 2001, Salakhutdinov & Murray 2008, sec. 4.

    A chain begins at an exact draw v_0 of p_0 and follows f_0 = f_{beta_0}, ..., f_K, unnormalised densities:

        w = prod_k f_k(v_{k-1}) / f_{k-1}(v_{k-1}),     v_k ~ T_k(. | v_{k-1}), which leaves p_k invariant

    so that E[w] = Z_K / Z_0, exactly, however few the steps are; their number decides the variance.

    Args:
        v: exact draws of p_0, one for each chain, (M, ...).
        anneal: (v, beta, next_beta) -> log f_next(v) - log f(v), (M,), and the next v, (M, ...).
        betas: from 0 to 1, rising, (K + 1,).
        progress: show a bar.

    Returns:
        (M,): log w in nats, float64.
    """
    log_w = torch.zeros(len(v), dtype=torch.float64, device=float64_device(v.device))
    steps = list(pairwise(betas.tolist()))
    for beta, next_beta in tracked(steps, "annealed importance sampling", "temperature", show=progress):
        increment, v = anneal(v, beta, next_beta)
        log_w += increment.to(log_w.device)
    return log_w


def log_mean(log_w: Tensor) -> LogPartition:
    """log E[w] from independent log weights, (M,), M at least 2, with the interval log( mean w +- 3 standard errors ).

    Three standard errors, as Salakhutdinov & Murray 2008, sec. 4.2, draw it. Where they reach further down, ``low`` is
    what Markov's inequality leaves, log mean w - 6.6: weights are positive, so that their mean exceeds 740 times its
    expectation once in 740 times at most. The mean is unbiased, its logarithm is low on average; an interval of few or
    unlucky chains, none of which found a mode, is too narrow and too low: see that more temperatures leave it where it
    is.
    """
    log_w = in_float64(log_w)
    largest = log_w.max()
    w = (log_w - largest).exp()
    mean, error = w.mean(), w.std() / len(w) ** 0.5
    logs = [mean.log(), torch.maximum(mean - 3 * error, mean / 740).log(), (mean + 3 * error).log()]
    return LogPartition(*(float(largest + x) for x in logs))
