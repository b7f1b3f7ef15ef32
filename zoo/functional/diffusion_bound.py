"""The variational bound of a diffusion, -log p(x_0) <= L, term by term and in both of the forms of seed 004, ch. 14.

    L = L_T + sum_{t > 0} L_t + L_0                                            eq. 5, seed 14.41: one random variable
        L_T = KL( q(x_T | x_0) || N(0, I) )
        L_t = E_q KL( q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t) )
        L_0 = E_q[ -log p(x_0 | x_1) ]
    L = E_q[ -log p(x_0 | x_1) + log q(x_T | x_{T-1}) / p(x_T)
             + sum_t log q(x_t | x_{t-1}) / p(x_t | x_{t+1}) ]                  seed 14.28: joint draws

Equations without a name are those of Ho, Jain & Abbeel 2020. The two agree in expectation. The gradient of the first
is that of the second with x_{t-1} integrated out given x_t and x_0: of one step t at a time it has the lower variance
(Rao-Blackwell). Summed
over a whole trajectory the order can turn round: at the optimum what the terms of the second scatter cancels along the
chain, all of it for N(0, I) data and variance beta_t. Seed 14.29-14.30 is no third form: it treats x_t and x_{t+1} as
independent given x_{t-1}.

p(x_{t-1} | x_t) = N(posterior mean at x0_hat, sigma_t^2 I) with sigma_t^2 = beta_t, or the posterior's variance, whose
value at t = 0, where it is 0, is that of t = 1 (as the authors' code has it, which takes it there for beta_t, too). All
in nats per example, summed over dimensions; t counts from 0, as in zoo/functional/diffusion.py.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.functional.densities import kl_normal, kl_standard_normal, log_normal
from zoo.functional.diffusion import Chain, X0Model, at, posterior_mean, q_sample

LEVELS = 255  # grey values are k / 127.5 - 1, k = 0 .. 255


def reverse_variance(chain: Chain, variance: str) -> Tensor:
    """sigma_t^2 of p(x_{t-1} | x_t), (T,)."""
    if variance == "beta":
        return chain.betas
    return torch.cat([chain.posterior_variance[1:2], chain.posterior_variance[1:]])


def prior_kl(x0: Tensor, chain: Chain) -> Tensor:
    """L_T, exactly; (B,)."""
    x0 = x0.flatten(1)
    return kl_standard_normal(chain.abar[-1].sqrt() * x0, chain.one_minus_abar[-1].log().expand_as(x0))


def log_normal_t(x: Tensor, mu: Tensor, variance: Tensor) -> Tensor:
    """log N(x | mu, variance I), the variance (B, 1, ...) one number per example; (B,)."""
    return log_normal(x.flatten(1), mu.flatten(1), variance.flatten(1).log())


def log_discretised_normal(x: Tensor, mu: Tensor, variance: Tensor) -> Tensor:
    """log of the mass of N(mu, variance I) on the bins of 256 grey values, sec. 3.3, eq. 13; (B,).

    The bin of x is [x - 1/255, x + 1/255]; those of -1 and 1 go on to infinity, so that the masses sum to 1.

    Args:
        x: grey values k / 127.5 - 1, (B, ...).
        mu, variance: broadcastable to ``x``.
    """
    sigma = variance.sqrt()
    upper = torch.where(x > 1 - 0.5 / LEVELS, math.inf, (x + 1 / LEVELS - mu) / sigma)
    lower = torch.where(x < -1 + 0.5 / LEVELS, -math.inf, (x - 1 / LEVELS - mu) / sigma)
    # On the side of the mean where both ends are negative: log Phi keeps its digits there, and loses them opposite.
    flip = upper + lower > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return (log_upper + torch.log(-torch.expm1(log_lower - log_upper))).flatten(1).sum(1)


def denoising_term(
    x0: Tensor, xt: Tensor, t: Tensor, x0_hat: Tensor, chain: Chain, variance: str, discrete: bool
) -> Tensor:
    """L_t at x_t: a divergence, exactly, for t > 0; -log p(x_0 | x_1) for t = 0; (B,).

    Args:
        x0: images, (B, ...).
        xt: a draw of q(x_t | x_0).
        t: (B,), 0 .. T-1.
        x0_hat: the network's, at x_t and t.
        variance: ``posterior`` or ``beta``.
        discrete: whether p(x_0 | x_1) is the discretised Gaussian of images, or a Gaussian.
    """
    mu_p, var_p = posterior_mean(x0_hat, xt, t, chain), at(reverse_variance(chain, variance), t, xt)
    # At t = 0 the divergence, which is infinite there, is computed at another variance and not used.
    var_q = at(chain.posterior_variance, t.clamp(min=1), xt)
    mu_q = posterior_mean(x0, xt, t, chain)
    zero = torch.zeros_like(x0).flatten(1)
    kl = kl_normal(mu_q.flatten(1), var_q.log().flatten(1) + zero, mu_p.flatten(1), var_p.log().flatten(1) + zero)
    log_decoder = log_discretised_normal if discrete else log_normal_t
    return torch.where(t == 0, -log_decoder(x0, mu_p, var_p + torch.zeros_like(x0)), kl)


def terms(x0: Tensor, draw: Callable[[], Tensor], x0_model: X0Model, chain: Chain, variance: str) -> Tensor:
    """L_0, ..., L_{T-1} and L_T of images of 256 grey values, each L_t at one draw of x_t of its own; nats, (T + 1, B).

    Args:
        x0: grey values k / 127.5 - 1, (B, ...).
        draw: standard normal noise of the shape of ``x0``, drawn at each call.
        x0_model: (x_t, t) -> x0_hat.
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
    """L_T + T L_t for a uniform ``t`` (B,) and one standard normal ``eps``: L in expectation, seed 14.41; (B,)."""
    xt = q_sample(x0, t, eps, chain)
    term = denoising_term(x0, xt, t, x0_model(xt, t), chain, variance, discrete)
    return prior_kl(x0, chain) + len(chain.betas) * term


def _step_forward(x: Tensor, t: Tensor, eps: Tensor, chain: Chain) -> Tensor:
    """x_t ~ q(x_t | x_{t-1}) from x_{t-1}."""
    beta = at(chain.betas, t, x)
    return (1 - beta).sqrt() * x + beta.sqrt() * eps


def _log_q_step(x: Tensor, x_prev: Tensor, t: Tensor, chain: Chain) -> Tensor:
    """log q(x_t | x_{t-1}), (B,)."""
    beta = at(chain.betas, t, x) + torch.zeros_like(x)
    return log_normal_t(x, (1 - beta).sqrt() * x_prev, beta)


def _reverse_nll(x_prev, xt, t: Tensor, x0_model: X0Model, chain: Chain, variance: str, discrete: bool) -> Tensor:
    """-log p(x_{t-1} | x_t), (B,); the decoder's at t = 0."""
    mu = posterior_mean(x0_model(xt, t), xt, t, chain)
    var = at(reverse_variance(chain, variance), t, xt) + torch.zeros_like(xt)
    nll = -log_normal_t(x_prev, mu, var)
    if discrete and bool((t == 0).any()):
        nll = torch.where(t == 0, -log_discretised_normal(x_prev, mu, var), nll)
    return nll


def joint_draw(
    x0: Tensor, t: Tensor, eps: Tensor, x0_model: X0Model, chain: Chain, variance: str, discrete: bool
) -> Tensor:
    """The term of seed 14.28 at a uniform ``t`` (B,), times T, and its prior term: L in expectation; (B,).

    The term is -log p(x_{t-1} | x_t) + log q(x_{t-1} | x_{t-2}), with x_{t-2}, x_{t-1}, x_t drawn jointly, and at t = 0
    -log p(x_0 | x_1) alone; the prior's is log q(x_T | x_{T-1}) - log p(x_T).

    Args:
        eps: standard normal, (B, 5, ...): for x_{t-2}, x_{t-1}, x_t, and for x_{T-1} and x_T.
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
    """x_1, ..., x_T by the one-step kernels, from standard normal ``eps`` (B, T, ...)."""
    x, found = x0, []
    for i, noise in enumerate(eps.unbind(1)):
        x = _step_forward(x, torch.full((len(x),), i, device=x.device), noise, chain)
        found.append(x)
    return found


def joint_chain(x0: Tensor, eps: Tensor, x0_model: X0Model, chain: Chain, variance: str, discrete: bool) -> Tensor:
    """log q(x_{1:T} | x_0) / p(x_{0:T}) on one trajectory, seed 14.28 whole; ``eps`` (B, T, ...); (B,)."""
    total, x_prev = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device), x0
    for i, xt in enumerate(trajectory(x0, eps, chain)):
        t = torch.full((len(x0),), i, device=x0.device)
        total = total + _reverse_nll(x_prev, xt, t, x0_model, chain, variance, discrete)
        total = total + _log_q_step(xt, x_prev, t, chain)
        x_prev = xt
    return total - log_normal_t(x_prev, torch.zeros_like(x_prev), torch.ones_like(x_prev))


def single_chain(x0: Tensor, eps: Tensor, x0_model: X0Model, chain: Chain, variance: str, discrete: bool) -> Tensor:
    """L_T + sum_t L_t on one trajectory, seed 14.41 whole; ``eps`` (B, T, ...); (B,)."""
    total = prior_kl(x0, chain)
    for i, xt in enumerate(trajectory(x0, eps, chain)):
        t = torch.full((len(x0),), i, device=x0.device)
        total = total + denoising_term(x0, xt, t, x0_model(xt, t), chain, variance, discrete)
    return total
