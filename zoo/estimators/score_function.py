"""The score-function estimator, grad E_q[f(z)] = E_q[ (f(z) - b) grad log q(z) ], and what lowers its variance.

Seeds 000 and 001 ("score function estimator"); 003 (control variates, baselines). Any b that does not depend on the
draw leaves the estimator unbiased, since E_q[grad log q(z)] = 0; 003's control variate is h = grad log q(z), its beta
is b.

Shapes: k draws of B examples, (k, B); a baseline is anything that broadcasts to that.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.checks.errors import UserError


def with_gradient(value: Tensor, gradient_of: Tensor) -> Tensor:
    """Something equal to ``value`` whose gradient is that of ``value`` and of ``gradient_of`` together."""
    return value + (gradient_of - gradient_of.detach())


def score_function(cost: Tensor, log_q: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """REINFORCE: the gradient is that of the cost at fixed z, plus (cost - b) grad log q(z).

    Args:
        cost: f(z) for draws without gradient, (k, B); may depend on parameters otherwise.
        log_q: log q(z) of the same draws, (k, B).
        baseline: b, held fixed here.

    Returns:
        (k, B): the cost.
    """
    return with_gradient(cost, (cost - baseline).detach() * log_q)


def leave_one_out(cost: Tensor) -> Tensor:
    """For each of k >= 2 draws, the mean cost of the others (Mnih & Rezende 2016, sec. 2.2; Kool et al. 2019); (k, B).

    Raises:
        UserError: for a single draw.
    """
    k = len(cost)
    if k < 2:
        raise UserError("the leave-one-out baseline needs num_samples of at least 2, got 1")
    return (cost.sum(0) - cost) / (k - 1)


def multi_sample_baseline(log_w: Tensor) -> Tensor:
    """For each of k >= 2 draws, the bound log 1/k sum_i w_i with its own log w_j replaced by the mean of the others'.

    Mnih & Rezende 2016 (VIMCO), eq. 9-10.

    Args:
        log_w: log importance weights, (k, B).

    Returns:
        (k, B): nats.

    Raises:
        UserError: for a single draw.
    """
    k = len(log_w)
    filled = torch.where(torch.eye(k, dtype=torch.bool, device=log_w.device)[..., None], leave_one_out(log_w), log_w)
    return filled.logsumexp(1) - math.log(k)  # filled is (k left out, k, B)


def multi_sample_surrogate(name: str, log_w: Tensor, bound: Tensor, log_q: Tensor) -> Tensor:
    """The bound with the score function's estimate of its gradient, at draws of z that are held fixed; (B,) nats.

    Args:
        name: ``score_function+loo``, with the baseline above, or ``score_function``, without one.
        log_w: log importance weights, (k, B).
        bound: log 1/k sum_i w_i, (B,).
        log_q: log q(z | x) of the draws, (k, B).
    """
    baseline = multi_sample_baseline(log_w) if name.endswith("+loo") else torch.zeros_like(log_w)
    return with_gradient(bound, ((bound - baseline).detach() * log_q).sum(0))


def optimal_baseline(cost: Tensor, score_square: Tensor) -> Tensor:
    """003's regression coefficient beta* = Cov(f s, s) / Var(s) = E[f s^2] / E[s^2], for the score s of each latent.

    From draws other than those it is used on, earlier or held out, so that the estimator stays unbiased.

    Args:
        cost: f(z) of m >= 1 held-out draws, (m, B).
        score_square: squared gradients of log q(z_d) at the same draws, (m, B, D).

    Returns:
        (B, D): the constant that lowers the variance most, for each latent.
    """
    # Where a score vanishes there is no variance to lower; the small weight makes the baseline the mean cost there.
    weight = score_square + 1e-8
    return ((cost[..., None] * weight).mean(0) / weight.mean(0)).detach()


def local_expectation(f: Callable[[Tensor], Tensor], logits: Tensor, z: Tensor) -> Tensor:
    """Rao-Blackwellised score function of factorised Bernoulli latents: the expectation over each z_d is exact.

    grad_{l_d} E[f] = sigmoid'(l_d) E_{z without d}[ f(z_d = 1) - f(z_d = 0) ]; Titsias & Lazaro-Gredilla 2015. The cost
    is evaluated D + 1 times.

    Args:
        f: z -> cost, (..., B, D) to (..., B).
        logits: (B, D).
        z: k draws, (k, B, D), without gradient.

    Returns:
        (k, B): the cost f(z).
    """
    D = z.shape[-1]
    which = torch.eye(D, dtype=torch.bool, device=z.device)[:, None, None]  # (D, 1, 1, D)
    cost = f(z)  # (k, B)
    flipped = f(torch.where(which, 1 - z, z)).detach()  # (D, k, B)
    difference = ((flipped - cost.detach()).movedim(0, -1)) * (1 - 2 * z)  # f(z_d = 1) - f(z_d = 0), (k, B, D)
    return with_gradient(cost, (difference * logits.sigmoid()).sum(-1))
