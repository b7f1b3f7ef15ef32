"""The Gaussian diffusion of DDPM: its schedules, its kernels in closed form, and what a network may predict.

No network is known here. Its samplers are in zoo/functional/diffusion_samplers.py.

    q(x_t | x_{t-1})      = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)                               eq. 2, seed 004, 14.1
    q(x_t | x_0)          = N(sqrt(abar_t) x_0, (1 - abar_t) I),  abar_t = prod_s (1 - beta_s)  eq. 4, seed 14.11
    q(x_{t-1} | x_t, x_0) = N( [sqrt(abar_{t-1}) beta_t x_0 + sqrt(1 - beta_t) (1 - abar_{t-1}) x_t] / (1 - abar_t),
                               beta_t (1 - abar_{t-1}) / (1 - abar_t) I )                      eq. 7, seed 14.45

Equations without a name are those of Ho, Jain & Abbeel 2020, arXiv:2006.11239. Everywhere t is an index, 0 .. T-1,
where 0 is one step of noise (the paper's t = 1), x_{t-1} at t = 0 is x_0 itself, and images are in [-1, 1].
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.functional.noise import rand
from zoo.functional.precision import has_float64

PREDICTIONS = ("eps", "x0", "v")
VARIANCES = ("posterior", "beta")

X0Model = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, ...), t (B,)) -> x0_hat (B, ...)


class Chain(NamedTuple):
    """The forward process in numbers, (T,) each."""

    betas: Tensor
    abar: Tensor
    one_minus_abar: Tensor
    abar_prev: Tensor  # abar_{t-1}; 1 at t = 0
    posterior_variance: Tensor  # of q(x_{t-1} | x_t, x_0); 0 at t = 0

    def to(self, dtype: torch.dtype) -> "Chain":
        """The same in another precision; they are computed in float64."""
        return Chain(*(field.to(dtype) for field in self))


def make_chain(betas: Tensor) -> Chain:
    """All that follows from the variances ``betas``, (T,), T at least 2; in float64.

    Raises:
        UserError: for a beta_t that is not between 0 and 1, naming the step.
    """
    if len(betas) < 2:
        raise UserError(f"a diffusion has at least 2 steps, got {len(betas)}")
    betas = betas.double()
    outside = ~((betas > 0) & (betas < 1))
    if outside.any():
        t = int(outside.nonzero()[0])
        raise UserError(
            f"every beta_t must lie between 0 and 1, both excluded; with {len(betas)} steps beta_{t + 1} is "
            f"{betas[t].item():.6g}: take another schedule, or another number of steps"
        )
    log_abar = torch.log1p(-betas).cumsum(0)
    abar, one_minus_abar = log_abar.exp(), -torch.expm1(log_abar)  # 1 - abar would lose the digits of small t
    abar_prev = torch.cat([abar.new_ones(1), abar[:-1]])
    one_minus_abar_prev = torch.cat([abar.new_zeros(1), one_minus_abar[:-1]])
    return Chain(betas, abar, one_minus_abar, abar_prev, betas * one_minus_abar_prev / one_minus_abar)


def linear_betas(steps: int) -> Tensor:
    """Variances from 1e-4 to 0.02 at T = 1000, times 1000 / T elsewhere, sec. 4; (T,), float64.

    Of 20 steps or fewer the last one reaches 1, which :func:`make_chain` refuses.
    """
    return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)


def cosine_betas(steps: int) -> Tensor:
    """Variances for which abar_t = g(t) / g(0), g(t) = cos^2( (t / T + s) / (1 + s) pi / 2 ), s = 0.008; (T,), float64.

    Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17, with every beta_t at most 0.999 as they have it.
    """
    s = 0.008
    g = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - g[1:] / g[:-1]).clamp(max=0.999)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


def at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """``values`` (T,) at ``t`` (B,), shaped (B, 1, ...) to go with ``like`` (B, ...)."""
    return values[t].view(-1, *[1] * (like.ndim - 1))


def q_sample(x0: Tensor, t: Tensor, eps: Tensor, chain: Chain) -> Tensor:
    """Draw x_t ~ q(x_t | x_0), eq. 4, from the given standard normal ``eps`` (same shape as ``x0``)."""
    return at(chain.abar, t, x0).sqrt() * x0 + at(chain.one_minus_abar, t, x0).sqrt() * eps


def posterior_mean(x0: Tensor, xt: Tensor, t: Tensor, chain: Chain) -> Tensor:
    """The mean of q(x_{t-1} | x_t, x_0), eq. 7 and seed 14.45; x_0 itself at t = 0."""
    beta, abar_prev = at(chain.betas, t, xt), at(chain.abar_prev, t, xt)
    # (1 - abar_{t-1}) / (1 - abar_t), from the variance, in which it was computed without cancellation.
    ratio = at(chain.posterior_variance / chain.betas, t, xt)
    return abar_prev.sqrt() * beta / at(chain.one_minus_abar, t, xt) * x0 + (1 - beta).sqrt() * ratio * xt


# What the network predicts: each is an affine function of the others, given x_t.


def prediction_target(predict: str, x0: Tensor, t: Tensor, eps: Tensor, chain: Chain) -> Tensor:
    """What the network should say at x_t: ``eps``, ``x0`` or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0.

    v is that of Salimans & Ho 2022 (arXiv:2202.00512), appendix D.
    """
    if predict == "v":
        return at(chain.abar, t, x0).sqrt() * eps - at(chain.one_minus_abar, t, x0).sqrt() * x0
    return eps if predict == "eps" else x0


def predicted_x0(predict: str, output: Tensor, xt: Tensor, t: Tensor, chain: Chain) -> Tensor:
    """x0_hat by what the network says, (B, ...): eq. 15 for eps."""
    abar, rest = at(chain.abar, t, xt), at(chain.one_minus_abar, t, xt)
    if predict == "eps":
        return (xt - rest.sqrt() * output) / abar.sqrt()
    return abar.sqrt() * xt - rest.sqrt() * output if predict == "v" else output


def predicted_eps(x0: Tensor, xt: Tensor, t: Tensor, chain: Chain) -> Tensor:
    """The noise that makes x_t of x0: (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)."""
    return (xt - at(chain.abar, t, xt).sqrt() * x0) / at(chain.one_minus_abar, t, xt).sqrt()


def simple_loss(x0: Tensor, t: Tensor, eps: Tensor, chain: Chain, predict: str, network: Callable) -> Tensor:
    """|| target - network(x_t, t) ||^2 per example, averaged over dimensions; (B,). L_simple, eq. 14, for eps."""
    output = network(q_sample(x0, t, eps, chain), t)
    return (prediction_target(predict, x0, t, eps, chain) - output).square().flatten(1).mean(1)


# Which steps a batch is trained on.


TIMESTEPS = ("uniform", "stratified", "importance")


def uniform_steps(B: int, T: int, *, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Independent steps, each uniform on 0 .. T-1; (B,)."""
    where = device if generator is None else generator.device
    return torch.randint(T, (B,), generator=generator, device=where).to(device)


def draw_steps(
    timesteps: str, B: int, T: int, p: Tensor | None, *, generator: torch.Generator | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The steps t of a batch, by one of ``TIMESTEPS``, and their weights 1 / (T p_t); (B,) each.

    Args:
        p: the distribution of :func:`importance`, (T,), for ``importance``.
    """
    weight = torch.ones(B, device=device)
    if timesteps == "stratified":
        return stratified_steps(rand(1, generator=generator, device=device).expand(B), T), weight
    if timesteps == "importance":
        assert p is not None  # which only importance has
        p = p.to(device if generator is None else generator.device)
        t = torch.multinomial(p, B, replacement=True, generator=generator).to(device)
        return t, (1 / (T * p.to(device)[t])).to(weight.dtype)
    return uniform_steps(B, T, generator=generator, device=device), weight


def stratified_steps(u: Tensor, steps: int) -> Tensor:
    """t_i = floor( T frac(u + i / B) ): each uniform on 0 .. T-1, and together spread evenly; (B,).

    Kingma et al. 2021 (arXiv:2107.00630), appendix I.1.

    Args:
        u: B copies of one uniform number in [0, 1).
        steps: T.
    """
    B = len(u)
    dtype = torch.float64 if has_float64(u.device) else torch.float32  # of whose rounding steps are wide
    offset = torch.arange(B, device=u.device, dtype=dtype) / B
    return ((u.to(dtype) + offset) % 1 * steps).long().clamp(max=steps - 1)


def importance(history: Tensor, count: Tensor) -> Tensor:
    """p_t proportional to sqrt(E[L_t^2]), from the last losses of each step; (T,), with sum 1.

    Nichol & Dhariwal 2021, sec. 3.3: uniform until every step has a full history. A thousandth of it stays uniform, so
    that no weight 1 / (T p_t) exceeds 1000.

    Args:
        history: the last losses of each step, (T, H).
        count: how many there have been, (T,).
    """
    T, H = history.shape
    dtype = torch.float64 if has_float64(history.device) else torch.float32
    if int(count.min()) < H:
        return torch.full((T,), 1 / T, dtype=dtype, device=history.device)
    p = history.to(dtype).square().mean(1).sqrt()
    return 0.999 * p / p.sum() + 0.001 / T


def remember(history: Tensor, count: Tensor, t: Tensor, losses: Tensor) -> None:
    """Write losses into ``history`` in place. Where several belong to one step, the last of them counts.

    Args:
        history: the last losses of each step, the newest last, (T, H).
        count: how many there have been, (T,).
        t: (B,).
        losses: unweighted, (B,).
    """
    places = torch.arange(len(t), device=t.device)
    t, inverse = t.unique(return_inverse=True)
    newest = losses[torch.zeros_like(t).scatter_reduce(0, inverse, places, "amax")].float()
    history[t] = torch.cat([history[t, 1:], newest[:, None]], 1)
    count[t] += 1
