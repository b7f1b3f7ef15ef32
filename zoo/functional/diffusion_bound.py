"""The variational bound of a diffusion, -log p(x_0) <= L, in the two forms of [DSL ch. 14].

The single form draws one x_t for each term. It is eq. 5 of Ho, Jain & Abbeel 2020 and [DSL eq. 14.41]:

    L = L_T + sum_{t=2}^{T} L_{t-1} + L_0
        L_T     = KL( q(x_T | x_0) || N(0, I) )
        L_{t-1} = E_q KL( q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t) )
        L_0     = E_q[ -log p(x_0 | x_1) ]

The joint form draws adjacent states together. It is [DSL eq. 14.28]:

    L = E_q[ -log p(x_0 | x_1) + log q(x_T | x_{T-1}) / p(x_T)
             + sum_{t=1}^{T-1} log q(x_t | x_{t-1}) / p(x_t | x_{t+1}) ]

Equations and sections without a name are from Ho, Jain & Abbeel 2020. The equations above count t from 1. The functions
below take an index t from 0 to T-1, as in zoo/functional/diffusion.py. The x_t of a function is the x_{t+1} of the
equations. The x_{t-1} of a function is the x_t of the equations. The names L_t, x_0, x_1 and x_T keep their meaning.
x_0 is the image, x_1 is the image after one step of noise, and x_T is the end of the chain.

The two forms agree in expectation. The single form integrates out x_{t-1} given x_t and x_0. At one step t, the
gradient of the single form therefore has lower variance than the gradient of the joint form (Rao-Blackwell). On a whole
trajectory, the joint form can have lower variance than the single form. The reason is that, at the optimum, random
parts of the joint terms cancel along the chain. For N(0, I) data and variance beta_t, they cancel completely.
[DSL eq. 14.29-14.30] is not a third form. It treats x_t and x_{t+1} as independent given x_{t-1}, which they are not.

The model is p(x_{t-1} | x_t) = N(posterior mean at x0_hat, sigma_t^2 I). Its variance sigma_t^2 is beta_t or the
posterior variance. The posterior variance is 0 at index 0. At index 0, the model therefore uses the posterior variance
of index 1. With beta_t, it uses beta_0 at index 0. At index 0, the authors' code uses the posterior variance of index 1
for both choices of sigma_t^2.

All results are in nats per example, summed over dimensions.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.functional.densities import kl_normal, kl_standard_normal, log_normal
from zoo.functional.diffusion import Chain, X0Model, at, posterior_mean, q_sample

LEVELS = 255  # grey values are k / 127.5 - 1, k = 0 .. 255


def reverse_variance(chain: Chain, variance: str) -> Tensor:
    """Return sigma_t^2 of p(x_{t-1} | x_t), (T,). ``variance`` is ``posterior`` or ``beta``."""
    if variance == "beta":
        return chain.betas
    return torch.cat([chain.posterior_variance[1:2], chain.posterior_variance[1:]])


def prior_kl(x0: Tensor, chain: Chain) -> Tensor:
    """Return the exact L_T, (B,)."""
    x0 = x0.flatten(1)
    return kl_standard_normal(chain.abar[-1].sqrt() * x0, chain.one_minus_abar[-1].log().expand_as(x0))


def log_normal_t(x: Tensor, mu: Tensor, variance: Tensor) -> Tensor:
    """Return log N(x | mu, diag variance), (B,). ``mu`` and ``variance`` have the shape of ``x``."""
    return log_normal(x.flatten(1), mu.flatten(1), variance.flatten(1).log())


def log_discretised_normal(x: Tensor, mu: Tensor, variance: Tensor) -> Tensor:
    """Return the log probability of images of 256 grey values under a discretised N(mu, variance I), (B,).

    See sec. 3.3, eq. 13. The probability of a pixel x is the mass of the bin [x - 1/255, x + 1/255]. The bin of -1
    extends to minus infinity, and the bin of 1 extends to infinity. The masses of all bins sum to 1.

    Args:
        x: grey values k / 127.5 - 1, (B, ...).
        mu: means, broadcastable to ``x``.
        variance: variances, broadcastable to ``x``.
    """
    sigma = variance.sqrt()
    upper = torch.where(x > 1 - 0.5 / LEVELS, math.inf, (x + 1 / LEVELS - mu) / sigma)
    lower = torch.where(x < -1 + 0.5 / LEVELS, -math.inf, (x - 1 / LEVELS - mu) / sigma)
    # The difference of log Phi is accurate only below the mean. Bins above the mean are therefore reflected.
    flip = upper + lower > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return (log_upper + torch.log(-torch.expm1(log_lower - log_upper))).flatten(1).sum(1)


def denoising_term(
    x0: Tensor, xt: Tensor, t: Tensor, x0_hat: Tensor, chain: Chain, variance: str, discrete: bool
) -> Tensor:
    """Return L_t at x_t, (B,): the exact KL divergence for t > 0, and -log p(x_0 | x_1) for t = 0.

    Args:
        x0: images, (B, ...).
        xt: a draw of q(x_t | x_0), (B, ...).
        t: step indices from 0 to T-1, (B,).
        x0_hat: the network's prediction of x_0 at x_t and t, (B, ...).
        chain: the constants of the forward process.
        variance: sigma_t^2 of the model, ``posterior`` or ``beta``.
        discrete: True if p(x_0 | x_1) is the discretised Gaussian of images, False if it is a Gaussian.
    """
    mu_p, var_p = posterior_mean(x0_hat, xt, t, chain), at(reverse_variance(chain, variance), t, xt)
    # At t = 0 the divergence would be infinite. The clamp therefore replaces var_q at t = 0 by var_q at t = 1. The last
    # line does not use the divergence at t = 0.
    var_q = at(chain.posterior_variance, t.clamp(min=1), xt)
    mu_q = posterior_mean(x0, xt, t, chain)
    zero = torch.zeros_like(x0).flatten(1)
    kl = kl_normal(mu_q.flatten(1), var_q.log().flatten(1) + zero, mu_p.flatten(1), var_p.log().flatten(1) + zero)
    log_decoder = log_discretised_normal if discrete else log_normal_t
    return torch.where(t == 0, -log_decoder(x0, mu_p, var_p + torch.zeros_like(x0)), kl)


def terms(x0: Tensor, draw: Callable[[], Tensor], x0_model: X0Model, chain: Chain, variance: str) -> Tensor:
    """Return L_0, ..., L_{T-1} and L_T of images of 256 grey values, (T + 1, B) nats.

    Each L_t is evaluated at one independent draw of x_t.

    Args:
        x0: grey values k / 127.5 - 1, (B, ...).
        draw: () -> new standard normal noise in the shape of ``x0``.
        x0_model: (x_t, t) -> x0_hat.
        chain: the constants of the forward process.
        variance: sigma_t^2 of the model, ``posterior`` or ``beta``.
    """
    found = []
    for i in range(len(chain.betas)):
        t = torch.full((len(x0),), i, device=x0.device)
        xt = q_sample(x0, t, draw(), chain)
        found.append(denoising_term(x0, xt, t, x0_model(xt, t), chain, variance, discrete=True))
    return torch.stack([*found, prior_kl(x0, chain)])


def single_draw(
    x0: Tensor, t: Tensor, eps: Tensor, x0_model: X0Model, chain: Chain, variance: str, discrete: bool
) -> Tensor:
    """Return L_T + T L_t at random steps ``t``, (B,). Its expectation is L in the single form, [DSL eq. 14.41].

    Args:
        x0: images, (B, ...).
        t: steps, uniform on 0 .. T-1, (B,).
        eps: standard normal, in the shape of ``x0``.
        x0_model: (x_t, t) -> x0_hat.
        chain, variance, discrete: as for :func:`denoising_term`.
    """
    xt = q_sample(x0, t, eps, chain)
    term = denoising_term(x0, xt, t, x0_model(xt, t), chain, variance, discrete)
    return prior_kl(x0, chain) + len(chain.betas) * term


def _step_forward(x: Tensor, t: Tensor, eps: Tensor, chain: Chain) -> Tensor:
    """Return x_t ~ q(x_t | x_{t-1}), where ``x`` is x_{t-1}."""
    beta = at(chain.betas, t, x)
    return (1 - beta).sqrt() * x + beta.sqrt() * eps


def _log_q_step(x: Tensor, x_prev: Tensor, t: Tensor, chain: Chain) -> Tensor:
    """Return log q(x_t | x_{t-1}), (B,), where ``x`` is x_t and ``x_prev`` is x_{t-1}."""
    beta = at(chain.betas, t, x) + torch.zeros_like(x)
    return log_normal_t(x, (1 - beta).sqrt() * x_prev, beta)


def _reverse_nll(x_prev, xt, t: Tensor, x0_model: X0Model, chain: Chain, variance: str, discrete: bool) -> Tensor:
    """Return -log p(x_{t-1} | x_t), (B,). At t = 0 this is -log p(x_0 | x_1)."""
    mu = posterior_mean(x0_model(xt, t), xt, t, chain)
    var = at(reverse_variance(chain, variance), t, xt) + torch.zeros_like(xt)
    nll = -log_normal_t(x_prev, mu, var)
    if discrete and bool((t == 0).any()):
        nll = torch.where(t == 0, -log_discretised_normal(x_prev, mu, var), nll)
    return nll


def joint_draw(
    x0: Tensor, t: Tensor, eps: Tensor, x0_model: X0Model, chain: Chain, variance: str, discrete: bool
) -> Tensor:
    """Return T times the term of the joint form at ``t``, plus the prior term, (B,). The expectation is L.

    See [DSL eq. 14.28]. The term at t is -log p(x_{t-1} | x_t) + log q(x_{t-1} | x_{t-2}), where x_{t-2}, x_{t-1} and
    x_t are drawn jointly. At t = 0 it is -log p(x_0 | x_1). The prior term is log q(x_T | x_{T-1}) - log p(x_T).

    Args:
        x0: images, (B, ...).
        t: steps, uniform on 0 .. T-1, (B,).
        eps: standard normal, (B, 5, ...), for x_{t-2}, x_{t-1}, x_t, x_{T-1} and x_T.
        x0_model, chain, variance, discrete: as for :func:`single_draw`.
    """
    a, b, c, d, e = eps.unbind(1)
    column = t.view(-1, *[1] * (x0.ndim - 1))
    # x_{t-2} is x_0 at t = 1, and x_{t-1} is x_0 at t = 0.
    before = torch.where(column < 2, x0, q_sample(x0, (t - 2).clamp(min=0), a, chain))
    previous = torch.where(column < 1, x0, _step_forward(before, (t - 1).clamp(min=0), b, chain))
    xt = _step_forward(previous, t, c, chain)
    term = _reverse_nll(previous, xt, t, x0_model, chain, variance, discrete)
    log_q = _log_q_step(previous, before, (t - 1).clamp(min=0), chain)
    term = term + torch.where(t == 0, torch.zeros_like(log_q), log_q)

    T = torch.full_like(t, len(chain.betas) - 1)
    x_before = q_sample(x0, T - 1, d, chain)
    x_T = _step_forward(x_before, T, e, chain)
    prior = _log_q_step(x_T, x_before, T, chain) - log_normal_t(x_T, torch.zeros_like(x_T), torch.ones_like(x_T))
    return len(chain.betas) * term + prior


def trajectory(x0: Tensor, eps: Tensor, chain: Chain) -> list[Tensor]:
    """Return x_1, ..., x_T, drawn step by step from q(x_t | x_{t-1}) with standard normal ``eps`` (B, T, ...)."""
    x, found = x0, []
    for i, noise in enumerate(eps.unbind(1)):
        x = _step_forward(x, torch.full((len(x),), i, device=x.device), noise, chain)
        found.append(x)
    return found


def joint_chain(x0: Tensor, eps: Tensor, x0_model: X0Model, chain: Chain, variance: str, discrete: bool) -> Tensor:
    """Return log q(x_{1:T} | x_0) / p(x_{0:T}) on one trajectory, (B,).

    This is the joint form with all of its terms, [DSL eq. 14.28]. ``eps`` is standard normal, (B, T, ...).
    """
    total, x_prev = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device), x0
    for i, xt in enumerate(trajectory(x0, eps, chain)):
        t = torch.full((len(x0),), i, device=x0.device)
        total = total + _reverse_nll(x_prev, xt, t, x0_model, chain, variance, discrete)
        total = total + _log_q_step(xt, x_prev, t, chain)
        x_prev = xt
    return total - log_normal_t(x_prev, torch.zeros_like(x_prev), torch.ones_like(x_prev))


def single_chain(x0: Tensor, eps: Tensor, x0_model: X0Model, chain: Chain, variance: str, discrete: bool) -> Tensor:
    """Return L_T + sum_t L_t on one trajectory, (B,).

    This is the single form with all of its terms, [DSL eq. 14.41]. ``eps`` is standard normal, (B, T, ...).
    """
    total = prior_kl(x0, chain)
    for i, xt in enumerate(trajectory(x0, eps, chain)):
        t = torch.full((len(x0),), i, device=x0.device)
        total = total + denoising_term(x0, xt, t, x0_model(xt, t), chain, variance, discrete)
    return total


def drawn_forms(T: int) -> dict[str, tuple[Callable[..., Tensor], int, bool]]:
    """Return the forms of the bound as {name: (function, draws of noise per example, whether it draws a step t)}.

    The forms on whole chains of T steps are only returned if T is at most 100.
    """
    forms: dict[str, tuple[Callable[..., Tensor], int, bool]] = {
        "bound_single": (single_draw, 1, True),
        "bound_joint": (joint_draw, 5, True),
    }
    if T <= 100:
        forms |= {"bound_single_chain": (single_chain, T, False), "bound_joint_chain": (joint_chain, T, False)}
    return forms
