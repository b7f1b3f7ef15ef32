"""The score-function gradient estimator, also called REINFORCE, and its baselines.

    grad E_q[f(z)] = E_q[ (f(z) - b) grad log q(z) ]

The baseline b reduces the variance. The estimator is unbiased for every b that does not depend on the draw z, because
E_q[grad log q(z)] = 0. In the notation of [Liao22, Control Variate], h = grad log q(z) and beta = b.

Sources: [Xu18a] and [Xu18b], "Score Function Estimator"; [Liao22], "Control Variate".

Shapes: k draws for each of B examples, (k, B). A baseline broadcasts to (k, B).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.checks.errors import UserError


def with_gradient(value: Tensor, gradient_of: Tensor) -> Tensor:
    """Return ``value``, with the gradient of ``gradient_of`` added to its gradient."""
    return value + (gradient_of - gradient_of.detach())


def score_function(cost: Tensor, log_q: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """Return the cost, (k, B), with the REINFORCE gradient: grad f at fixed z, plus (f(z) - b) grad log q(z).

    Args:
        cost: f(z), (k, B). The draws z have no gradient. f may depend on parameters, such as those of the decoder.
        log_q: log q(z) of the same draws, (k, B).
        baseline: b. The surrogate has no gradient with respect to b.
    """
    return with_gradient(cost, (cost - baseline).detach() * log_q)


def leave_one_out(cost: Tensor) -> Tensor:
    """Return the mean cost of the other draws, for each of k >= 2 draws, (k, B).

    Kool et al. 2019.

    Raises:
        UserError: for a single draw.
    """
    k = len(cost)
    if k < 2:
        raise UserError("the leave-one-out baseline needs num_samples of at least 2, got 1; set num_samples=2")
    return (cost.sum(0) - cost) / (k - 1)


def multi_sample_baseline(log_w: Tensor) -> Tensor:
    """Return the baseline of each of k >= 2 draws, (k, B) nats (VIMCO, Mnih & Rezende 2016).

    The baseline of draw j is the bound log 1/k sum_i w_i, with log w_j replaced by the mean of the other log weights.

    Args:
        log_w: log importance weights, (k, B).

    Raises:
        UserError: for a single draw.
    """
    k = len(log_w)
    filled = torch.where(torch.eye(k, dtype=torch.bool, device=log_w.device)[..., None], leave_one_out(log_w), log_w)
    return filled.logsumexp(1) - math.log(k)  # filled: (k, k, B); filled[j] has log w_j replaced


def multi_sample_surrogate(name: str, log_w: Tensor, bound: Tensor, log_q: Tensor) -> Tensor:
    """Return the importance-weighted bound, (B,) nats, with the score-function estimate of its gradient.

    The draws of z have no gradient.

    Args:
        name: ``score_function+loo``, which uses :func:`multi_sample_baseline`, or ``score_function``, which has no
            baseline.
        log_w: log importance weights, (k, B).
        bound: log 1/k sum_i w_i, (B,).
        log_q: log q(z | x) of the draws, (k, B).
    """
    baseline = multi_sample_baseline(log_w) if name.endswith("+loo") else torch.zeros_like(log_w)
    return with_gradient(bound, ((bound - baseline).detach() * log_q).sum(0))


def optimal_baseline(cost: Tensor, score_square: Tensor) -> Tensor:
    """Return the constant baseline with the lowest variance, for each latent, (B, D).

    Let s be the score of a latent, the gradient of log q(z_d). The baseline is the regression coefficient of [Liao22,
    Control Variate]:

        beta* = Cov(f s, s) / Var(s) = E[f s^2] / E[s^2]

    The draws that estimate the expectations must not be the draws that use the baseline. If the same draws are used for
    both, the estimator is biased.

    Args:
        cost: f(z) of m >= 1 held-out draws, (m, B).
        score_square: squared gradients of log q(z_d) at the same draws, (m, B, D).
    """
    # If all scores of a latent are 0, the small weight avoids 0 / 0, and the baseline is the mean cost.
    weight = score_square + 1e-8
    return ((cost[..., None] * weight).mean(0) / weight.mean(0)).detach()


def local_expectation(f: Callable[[Tensor], Tensor], logits: Tensor, z: Tensor) -> Tensor:
    """Return the cost f(z), (k, B), with the Rao-Blackwellised score-function gradient of Bernoulli latents.

    The latents are independent, and the expectation over each z_d is exact (Titsias & Lázaro-Gredilla 2015). Let l_d be
    the logit of z_d:

        grad_{l_d} E[f] = sigmoid'(l_d) E_{z without d}[ f(z_d = 1) - f(z_d = 0) ]

    The function evaluates f at D + 1 values of z for each draw.

    Args:
        f: z -> cost, (..., B, D) to (..., B).
        logits: logits of the latents, (B, D).
        z: k draws, (k, B, D), without gradient.
    """
    D = z.shape[-1]
    which = torch.eye(D, dtype=torch.bool, device=z.device)[:, None, None]  # (D, 1, 1, D)
    cost = f(z)  # (k, B)
    flipped = f(torch.where(which, 1 - z, z)).detach()  # (D, k, B)
    difference = ((flipped - cost.detach()).movedim(0, -1)) * (1 - 2 * z)  # f(z_d = 1) - f(z_d = 0), (k, B, D)
    return with_gradient(cost, (difference * logits.sigmoid()).sum(-1))
