"""Importance sampling: the importance-weighted bound on log p(x), and annealed importance sampling."""

import math
from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.checks.values import check_integer
from zoo.functional.latents import log_ratio
from zoo.functional.precision import float64_device, in_float64
from zoo.functional.progress import tracked

# Largest number of images times importance samples in one batch, if a batch has at most this number of images. A batch
# of this size fits into the cache of a CPU.
ROWS_AT_ONCE = 2000


def log_importance_weight(x: Tensor, z: Tensor, q, log_px: Callable) -> Tensor:
    """Return log w = log p(x | z) + log p(z) - log q(z | x), (k, B) nats. The weights satisfy E_q[w] = p(x).

    Args:
        x: data in the form that ``log_px`` takes, (B, ...).
        z: draws of q, (k, B, ...).
        q: the posteriors of the B examples, an object of a class of zoo.functional.latents.
        log_px: (x, z) -> log p(x | z), (k, B).
    """
    return log_px(x, z) - log_ratio(z, q)


def importance_weighted_bound(log_w: Tensor) -> Tensor:
    """Return the importance-weighted bound L_k = log( (1/k) sum_i w_i ), (B,) nats, from log weights (k, B).

    The expectation of the result is the bound of Burda et al. 2015, eq. 8.
    """
    return log_w.logsumexp(0) - math.log(len(log_w))  # L_k(x)


def importance_weighted_log_likelihood(log_weight: Callable[[int], Tensor], num_samples: int, images: int) -> Tensor:
    """Return log 1/K sum_k w_k over K = ``num_samples`` independent draws, (B,) nats; Burda et al. 2015, eq. 8.

    The expectation of the result is a lower bound of log p(x). More samples make the bound tighter. The function draws
    in small batches, so memory does not grow with K.

    Args:
        log_weight: function of n that returns log w = log p(x, z) - log q(z | x) of n new draws of z, (n, B) nats.
        num_samples: K, an integer >= 1.
        images: B, the number of images.

    Raises:
        UserError: if ``num_samples`` is not an integer >= 1.
    """
    check_integer("num_samples", num_samples)
    left, at_once = num_samples, max(1, ROWS_AT_ONCE // max(1, images))
    parts = []
    while left:
        log_w = log_weight(min(left, at_once))
        parts.append(in_float64(log_w).logsumexp(0))
        left -= min(left, at_once)
    return (reduce(torch.logaddexp, parts) - math.log(num_samples)).float().to(log_w.device)


class LogPartition(NamedTuple):
    """An estimate of log Z and its interval, in nats. If enumeration gave log Z, all three numbers are equal."""

    estimate: float
    low: float
    high: float


def annealed_importance_sampling(
    v: Tensor, anneal: Callable[[Tensor, float, float], tuple[Tensor, Tensor]], betas: Tensor, progress: bool = False
) -> Tensor:
    """Return the log weights of annealed importance sampling, (M,) nats, float64.

    See Neal 2001; Salakhutdinov & Murray 2008. f_0, ..., f_K are unnormalised densities at the inverse
    temperatures beta_0, ..., beta_K, and p_k is f_k / Z_k. A chain begins at an exact draw v_0 of p_0. T_k is a
    transition that leaves p_k invariant:

        w = prod_k f_k(v_{k-1}) / f_{k-1}(v_{k-1}),     v_k ~ T_k(. | v_{k-1})

    For any number of steps K, E[w] = Z_K / Z_0. More steps lower the variance of w.

    Args:
        v: exact draws of p_0, one for each chain, (M, ...).
        anneal: (v, beta_{k-1}, beta_k) -> log f_k(v) - log f_{k-1}(v), (M,), and the next v, (M, ...).
        betas: increasing inverse temperatures from 0 to 1, (K + 1,).
        progress: whether to show a progress bar.
    """
    log_w = torch.zeros(len(v), dtype=torch.float64, device=float64_device(v.device))
    steps = list(pairwise(betas.tolist()))
    for beta, next_beta in tracked(steps, "annealed importance sampling", "temperature", show=progress):
        increment, v = anneal(v, beta, next_beta)
        log_w += increment.to(log_w.device)
    return log_w


def log_mean(log_w: Tensor) -> LogPartition:
    """Return log of the mean weight, with the interval log( mean w +- 3 standard errors ), in nats.

    The interval of three standard errors is from Salakhutdinov & Murray 2008. ``low`` is at least
    log mean w - 6.6. The reason is Markov's inequality: with probability at least 1 - 1/740, the mean of the positive
    weights is at most 740 times its expectation.

    The mean is unbiased, but its logarithm is too low on average. If no chain finds an important mode, the interval is
    too narrow and too low. Check that the interval does not move when the number of temperatures increases.

    Args:
        log_w: log weights of independent chains, (M,) nats, M >= 2.
    """
    log_w = in_float64(log_w)
    largest = log_w.max()
    w = (log_w - largest).exp()
    mean, error = w.mean(), w.std() / len(w) ** 0.5
    logs = [mean.log(), torch.maximum(mean - 3 * error, mean / 740).log(), (mean + 3 * error).log()]
    return LogPartition(*(float(largest + x) for x in logs))
