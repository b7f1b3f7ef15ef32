"""Log densities and KL divergences in closed form.

The results are in nats. The functions sum over the last axis, which holds the dimensions of one example, and keep the
batch axes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def reparameterise(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """Return z = mu + sigma eps, a draw of N(mu, diag exp(logvar)), (..., D).

    The draw is differentiable in ``mu`` and ``logvar``. Kingma & Welling 2014, sec. 2.4. [Xu18a] writes x
    for the noise eps, and prints z = mu + x sigma^2. The correct form is z = mu + x sigma.

    Args:
        mu: means, (..., D).
        logvar: log variances log sigma^2, (..., D).
        eps: standard normal noise, (..., D).
    """
    return mu + (logvar / 2).exp() * eps


def binarise(x: Tensor, u: Tensor) -> Tensor:
    """Return pixels that are 1 with probability ``x`` and otherwise 0. ``u`` is uniform noise in [0, 1).

    Pixels with the value 0 or 1 do not change.
    """
    return (u < x).to(x.dtype)


def at_least_float32(t: Tensor) -> Tensor:
    """Return ``t``, converted to float32 if its precision is lower.

    In mixed precision, layers return 16 bits. Densities need float32.
    """
    return t.to(torch.promote_types(t.dtype, torch.float32))


def log_normal(x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Return the log density of a Gaussian with diagonal covariance, (...) nats.

        log N(x | mu, diag exp(logvar)) = -1/2 sum_d [ log 2 pi + logvar_d + (x_d - mu_d)^2 / exp(logvar_d) ]

    The lecture notes print this density with errors. [Xu18b] and [Xu18a] omit the factor 1/2 in the exponent. [Liao22]
    has the square root of prod_d sigma_d in the normaliser. The correct normaliser contains prod_d sigma_d itself.

    Args:
        x: points, (..., D).
        mu: means, broadcastable to ``x``.
        logvar: log variances log sigma^2, broadcastable to ``x``.
    """
    return -0.5 * (math.log(2 * math.pi) + logvar + (x - mu).square() * (-logvar).exp()).sum(-1)


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return the KL divergence from a Gaussian with diagonal covariance to N(0, I), (...) nats.

        KL( N(mu, diag exp(logvar)) || N(0, I) ) = 1/2 sum_d [ sigma_d^2 + mu_d^2 - 1 - log sigma_d^2 ]

    See Kingma & Welling 2014, appendix B. One equation of [Xu18b] prints the factor 1/2 twice. The correct form has
    this factor once.

    Args:
        mu: means, (..., D).
        logvar: log variances log sigma^2, (..., D).
    """
    # expm1 keeps digits that exp(logvar) - 1 would lose if logvar is close to 0.
    return 0.5 * (logvar.expm1() - logvar + mu.square()).sum(-1)


def kl_normal(mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor) -> Tensor:
    """Return the KL divergence between two Gaussians with diagonal covariance, (...) nats.

        KL( N(mu_q, diag exp(logvar_q)) || N(mu_p, diag exp(logvar_p)) )
            = 1/2 sum_d [ r_d - 1 - log r_d + (mu_q,d - mu_p,d)^2 / sigma_p,d^2 ],   r_d = sigma_q,d^2 / sigma_p,d^2

    At mu_p = logvar_p = 0 it equals :func:`kl_standard_normal`.

    Args:
        mu_q: means of q, (..., D).
        logvar_q: log variances of q, (..., D).
        mu_p: means of p, broadcastable to ``mu_q``.
        logvar_p: log variances of p, broadcastable to ``logvar_q``.
    """
    log_ratio = logvar_q - logvar_p
    return 0.5 * (log_ratio.expm1() - log_ratio + (mu_q - mu_p).square() * (-logvar_p).exp()).sum(-1)


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Return log prod_d Bernoulli(x_d | sigmoid(logits_d)), (...) nats.

    Args:
        x: 0 or 1, (..., D).
        logits: log odds of x_d = 1, broadcastable to ``x``.
    """
    # x log sigma(l) + (1 - x) log sigma(-l) = x l - softplus(l), which is finite for every l.
    # The PyTorch function computes this in one pass over memory.
    logits, x = torch.broadcast_tensors(logits, x)
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def grey_values(x: Tensor) -> Tensor:
    """Return the grey value 0, ..., 255 of each pixel ``x`` in [0, 1], as floating-point numbers.

    A pixel k / 255 has the grey value k. Grey value k has the interval [k / 256, (k + 1) / 256).
    """
    return (256 * x).floor().clamp(0, 255)


def log_discretised_logistic(x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Return the log probability of pixels with 256 grey values under a discretised logistic, (...) nats.

        P(k) = F(k + 1/2) - F(k - 1/2),   F(k) = sigmoid( (k / 255 - location) / scale ),   k = 0, ..., 255

    The edge values have the tails: F(-1/2) is replaced by 0, and F(255 + 1/2) by 1. The probabilities therefore sum
    to 1. See Kingma et al. 2016, arXiv:1606.04934; Salimans et al. 2017, arXiv:1701.05517, eq. 2.

    Args:
        x: pixels k / 255, (..., D).
        location: broadcastable to ``x``, in units of ``x``.
        log_scale: broadcastable to ``x``.
    """
    inverse, half = (-log_scale).exp(), 0.5 / 255
    below, above = (x - half - location) * inverse, (x + half - location) * inverse
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which never subtracts two close numbers.
    inside = (-(-2 * half * inverse).expm1()).log()
    lowest, highest = x < half, x > 1 - half
    terms = torch.where(highest, 0.0, F.logsigmoid(above)) + torch.where(lowest, 0.0, F.logsigmoid(-below))
    return (terms + torch.where(lowest | highest, 0.0, inside)).sum(-1)
