"""Densities and divergences in closed form, one formula each.

Every function keeps the batch: it sums over the dimensions of one example and never over examples, and returns nats.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def reparameterise(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z = mu + sigma eps, a draw of N(mu, diag exp(logvar)) that is differentiable in both; (..., D).

    Kingma & Welling 2014, sec. 2.4; seed 001 writes sigma^2 for sigma.
    """
    return mu + (logvar / 2).exp() * eps


def binarise(x: Tensor, u: Tensor) -> Tensor:
    """Pixels that are 1 with probability ``x``, from uniform noise ``u`` in [0, 1); binary ones stay as they are."""
    return (u < x).to(x.dtype)


def at_least_float32(t: Tensor) -> Tensor:
    """Under mixed precision the layers are of the lower one; densities are not."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def log_normal(x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(x | mu, diag exp(logvar)) = -1/2 sum_d [ log 2 pi + logvar_d + (x_d - mu_d)^2 / exp(logvar_d) ].

    The factor 1/2 in the exponent is missing where seeds 000 and 001 write this density, and the normaliser of seed 003
    has the root of the product of the sigma_d in place of the product.

    Args:
        x: (..., D).
        mu: means, broadcastable to ``x``.
        logvar: log variances, broadcastable to ``x``.

    Returns:
        (...): nats, summed over the last axis.
    """
    return -0.5 * (math.log(2 * math.pi) + logvar + (x - mu).square() * (-logvar).exp()).sum(-1)


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL( N(mu, diag exp(logvar)) || N(0, I) ) = 1/2 sum_d [ sigma_d^2 + mu_d^2 - 1 - log sigma_d^2 ].

    Kingma & Welling 2014, appendix B (seed 000 prints it once with the halves doubled).

    Args:
        mu: (..., D).
        logvar: log variances log sigma^2, (..., D).

    Returns:
        (...): nats, summed over the last axis.
    """
    # expm1 keeps the digits that exp(logvar) - 1 loses where the posterior is close to the prior.
    return 0.5 * (logvar.expm1() - logvar + mu.square()).sum(-1)


def kl_normal(mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor) -> Tensor:
    """KL( N(mu_q, diag exp(logvar_q)) || N(mu_p, diag exp(logvar_p)) ), both with diagonal covariance.

        1/2 sum_d [ r_d - 1 - log r_d + (mu_q,d - mu_p,d)^2 / sigma_p,d^2 ],   r_d = sigma_q,d^2 / sigma_p,d^2

    :func:`kl_standard_normal` is its value at mu_p = logvar_p = 0.

    Args:
        mu_q: (..., D).
        logvar_q: log variances, (..., D).
        mu_p: broadcastable to ``mu_q``.
        logvar_p: log variances, broadcastable to ``logvar_q``.

    Returns:
        (...): nats, summed over the last axis.
    """
    log_ratio = logvar_q - logvar_p
    return 0.5 * (log_ratio.expm1() - log_ratio + (mu_q - mu_p).square() * (-logvar_p).exp()).sum(-1)


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """log prod_d Bernoulli(x_d | sigmoid(logits_d)).

    Args:
        x: binary, 0 or 1, (..., D).
        logits: log odds of x_d = 1, broadcastable to ``x``.

    Returns:
        (...): nats, summed over the last axis.
    """
    # x log sigma(l) + (1 - x) log sigma(-l) = x l - softplus(l), finite for every l, and here in one pass over memory.
    logits, x = torch.broadcast_tensors(logits, x)
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
