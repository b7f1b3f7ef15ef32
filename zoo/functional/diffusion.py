"""The Gaussian diffusion of DDPM: noise schedules, closed-form kernels and prediction targets.

    q(x_t | x_{t-1})      = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)                              eq. 2, [DSL eq. 14.1]
    q(x_t | x_0)          = N(sqrt(abar_t) x_0, (1 - abar_t) I),  abar_t = prod_{s <= t} (1 - beta_s)
                                                                                               eq. 4, [DSL eq. 14.11]
    q(x_{t-1} | x_t, x_0) = N( [sqrt(abar_{t-1}) beta_t x_0 + sqrt(1 - beta_t) (1 - abar_{t-1}) x_t] / (1 - abar_t),
                               beta_t (1 - abar_{t-1}) / (1 - abar_t) I )                      eq. 7, [DSL eq. 14.45]

Equations and sections without a name are from Ho, Jain & Abbeel 2020, arXiv:2006.11239. The equations count t
from 1. The functions take an index t from 0 to T-1, so their index 0 is t = 1 in the paper. At index 0, x_t is the
image after one step of noise, and x_{t-1} is the image x_0. Images are in [-1, 1].

The functions take networks as arguments. The samplers are in zoo/functional/diffusion_samplers.py.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.values import check_choice, check_integer
from zoo.functional.noise import rand
from zoo.functional.precision import has_float64

PREDICTIONS = ("eps", "x0", "v")
VARIANCES = ("posterior", "beta")

X0Model = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, ...), t (B,)) -> x0_hat (B, ...)


def check_diffusion(steps: object, schedule: object, predict: object, variance: object, timesteps: object) -> None:
    """Check the options of a diffusion: T, the schedule, the prediction, the reverse variance and the draws of t.

    Raises:
        UserError: if a value is not allowed.
    """
    check_integer("steps", steps, least=2)
    check_choice("schedule", schedule, tuple(SCHEDULES))
    check_choice("predict", predict, PREDICTIONS)
    check_choice("variance", variance, VARIANCES)
    check_choice("timesteps", timesteps, TIMESTEPS)


class Chain(NamedTuple):
    """The constants of the forward process, (T,) each."""

    betas: Tensor
    abar: Tensor
    one_minus_abar: Tensor
    abar_prev: Tensor  # abar_{t-1}; 1 at t = 0
    posterior_variance: Tensor  # variance of q(x_{t-1} | x_t, x_0); 0 at t = 0

    def to(self, dtype: torch.dtype) -> "Chain":
        """Return the constants in the precision ``dtype``."""
        return Chain(*(field.to(dtype) for field in self))


def make_chain(betas: Tensor) -> Chain:
    """Return the constants of the forward process in float64, from its variances ``betas`` (T,).

    Raises:
        UserError: if there are fewer than 2 steps, or a beta_t is not between 0 and 1.
    """
    if len(betas) < 2:
        raise UserError(f"a diffusion needs at least 2 steps, got {len(betas)}")
    betas = betas.double()
    outside = ~((betas > 0) & (betas < 1))
    if outside.any():
        t = int(outside.nonzero()[0])
        raise UserError(
            f"with {len(betas)} steps beta_{t + 1} is {betas[t].item():.6g}: every beta_t must lie between 0 and 1, "
            "both excluded; choose another schedule or another number of steps"
        )
    log_abar = torch.log1p(-betas).cumsum(0)
    abar, one_minus_abar = log_abar.exp(), -torch.expm1(log_abar)  # 1 - abar would lose digits at small t
    abar_prev = torch.cat([abar.new_ones(1), abar[:-1]])
    one_minus_abar_prev = torch.cat([abar.new_zeros(1), one_minus_abar[:-1]])
    return Chain(betas, abar, one_minus_abar, abar_prev, betas * one_minus_abar_prev / one_minus_abar)


def linear_betas(steps: int) -> Tensor:
    """Return the linear schedule of sec. 4, (T,), float64.

    At T = 1000 the variances rise from 1e-4 to 0.02. At other T they are multiplied by 1000 / T. With at most 20
    steps, the last variance is at least 1, and :func:`make_chain` raises an error.
    """
    return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)


def cosine_betas(steps: int) -> Tensor:
    """Return the cosine schedule, (T,), float64; Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17.

        abar_t = g(t) / g(0),   g(t) = cos^2( (t / T + s) / (1 + s) pi / 2 ),   s = 0.008

    As in the paper, every beta_t is at most 0.999.
    """
    s = 0.008
    g = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - g[1:] / g[:-1]).clamp(max=0.999)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


def at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Return ``values`` (T,) at the steps ``t`` (B,), in the shape (B, 1, ...) that broadcasts to ``like`` (B, ...)."""
    return values[t].view(-1, *[1] * (like.ndim - 1))


def q_sample(x0: Tensor, t: Tensor, eps: Tensor, chain: Chain) -> Tensor:
    """Return x_t ~ q(x_t | x_0), eq. 4, from standard normal ``eps`` in the shape of ``x0``."""
    return at(chain.abar, t, x0).sqrt() * x0 + at(chain.one_minus_abar, t, x0).sqrt() * eps


def posterior_mean(x0: Tensor, xt: Tensor, t: Tensor, chain: Chain) -> Tensor:
    """Return the mean of q(x_{t-1} | x_t, x_0), eq. 7, [DSL eq. 14.45]. At t = 0 it is x_0."""
    beta, abar_prev = at(chain.betas, t, xt), at(chain.abar_prev, t, xt)
    # The ratio is (1 - abar_{t-1}) / (1 - abar_t). This form loses no digits at small t.
    ratio = at(chain.posterior_variance / chain.betas, t, xt)
    return abar_prev.sqrt() * beta / at(chain.one_minus_abar, t, xt) * x0 + (1 - beta).sqrt() * ratio * xt


# Prediction targets. Given x_t, each target is an affine function of each other target.


def prediction_target(predict: str, x0: Tensor, t: Tensor, eps: Tensor, chain: Chain) -> Tensor:
    """Return the target of the network at x_t: eps, x_0, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0.

    v is from Salimans & Ho 2022 (arXiv:2202.00512), appendix D.

    Args:
        predict: one of ``PREDICTIONS``.
        x0: images, (B, ...).
        t: step indices, (B,).
        eps: the noise of x_t, (B, ...).
        chain: the constants of the forward process.
    """
    if predict == "v":
        return at(chain.abar, t, x0).sqrt() * eps - at(chain.one_minus_abar, t, x0).sqrt() * x0
    return eps if predict == "eps" else x0


def predicted_x0(predict: str, output: Tensor, xt: Tensor, t: Tensor, chain: Chain) -> Tensor:
    """Return x0_hat (B, ...), computed from the network's output at x_t. For ``eps`` this is eq. 15."""
    abar, rest = at(chain.abar, t, xt), at(chain.one_minus_abar, t, xt)
    if predict == "eps":
        return (xt - rest.sqrt() * output) / abar.sqrt()  # x0_hat; the next line has the forms for v and x0
    return abar.sqrt() * xt - rest.sqrt() * output if predict == "v" else output


def predicted_eps(x0: Tensor, xt: Tensor, t: Tensor, chain: Chain) -> Tensor:
    """Return the noise that turns x_0 into x_t: eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)."""
    return (xt - at(chain.abar, t, xt).sqrt() * x0) / at(chain.one_minus_abar, t, xt).sqrt()


def simple_loss(x0: Tensor, t: Tensor, eps: Tensor, chain: Chain, predict: str, network: Callable) -> Tensor:
    """Return (target - network(x_t, t))^2, (B,), averaged over the dimensions of each example.

    For ``eps`` this is L_simple, eq. 14, divided by the number of dimensions.
    """
    output = network(q_sample(x0, t, eps, chain), t)
    return (prediction_target(predict, x0, t, eps, chain) - output).square().flatten(1).mean(1)


# Draws of the steps t for training.


TIMESTEPS = ("uniform", "stratified", "importance")


def uniform_steps(B: int, T: int, *, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Return B independent steps, (B,), each uniform on 0 .. T-1."""
    where = device if generator is None else generator.device
    return torch.randint(T, (B,), generator=generator, device=where).to(device)


def draw_steps(
    timesteps: str, B: int, T: int, p: Tensor | None, *, generator: torch.Generator | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the steps t of a batch and their weights 1 / (T p_t), (B,) each.

    Args:
        timesteps: how to draw the steps, one of ``TIMESTEPS``.
        B: number of examples.
        T: number of steps of the diffusion.
        p: for ``importance`` the distribution of :func:`importance`, (T,). For other values of ``timesteps``, None.
        generator: source of the random numbers. None selects PyTorch's default generator.
        device: device of the results.
    """
    weight = torch.ones(B, device=device)
    if timesteps == "stratified":
        return stratified_steps(rand(1, generator=generator, device=device).expand(B), T), weight
    if timesteps == "importance":
        assert p is not None  # callers pass None only for other values of timesteps
        p = p.to(device if generator is None else generator.device)
        # torch.multinomial reads values from the device if it draws one number. Therefore draw at least two.
        t = torch.multinomial(p, max(2, B), replacement=True, generator=generator)[:B].to(device)
        return t, (1 / (T * p.to(device)[t])).to(weight.dtype)
    return uniform_steps(B, T, generator=generator, device=device), weight


def stratified_steps(u: Tensor, steps: int) -> Tensor:
    """Return t_i = floor( T frac(u + i / B) ), (B,); Kingma et al. 2021 (arXiv:2107.00630), appendix I.1.

    Each t_i is uniform on 0 .. T-1. The t_i of a batch are evenly spaced.

    Args:
        u: B copies of one uniform number in [0, 1).
        steps: T.
    """
    B = len(u)
    dtype = torch.float64 if has_float64(u.device) else torch.float32  # float32 errors are far below a step
    offset = torch.arange(B, device=u.device, dtype=dtype) / B
    return ((u.to(dtype) + offset) % 1 * steps).long().clamp(max=steps - 1)


def importance(history: Tensor, count: Tensor) -> Tensor:
    """Return probabilities p_t proportional to sqrt(E[L_t^2]), (T,); Nichol & Dhariwal 2021, sec. 3.3.

    L_t is the loss at step t. The last losses of each step estimate E[L_t^2]. Until every step has a full history, p is
    uniform. After that, p is a mixture with 0.001 of the uniform distribution, which limits 1 / (T p_t) to 1000.

    Args:
        history: the last losses of each step, (T, H).
        count: number of losses appended so far for each step, (T,).
    """
    T, H = history.shape
    dtype = torch.float64 if has_float64(history.device) else torch.float32
    uniform = torch.full((T,), 1 / T, dtype=dtype, device=history.device)
    p = history.to(dtype).square().mean(1).sqrt()
    return torch.where(count.min() < H, uniform, 0.999 * p / p.sum() + 0.001 / T)


def append_losses(history: Tensor, count: Tensor, t: Tensor, losses: Tensor) -> None:
    """Append losses to ``history`` and count them, in place. If a step has several losses, only the last is appended.

    Args:
        history: the last losses of each step, (T, H). The newest loss is in the last column.
        count: number of losses appended so far for each step, (T,).
        t: the steps of the losses, (B,).
        losses: unweighted losses, (B,).
    """
    # ``last`` is the index in the batch of the last loss of each step, (T,), or -1 without a loss. No shape depends on
    # the values of ``t``, because the CPU would then wait for the GPU.
    last = torch.full_like(count, -1).scatter_reduce(0, t, torch.arange(len(t), device=t.device), "amax")
    found, newest = last >= 0, losses[last.clamp(min=0)].float()
    appended = torch.cat([history[:, 1:], newest[:, None]], 1)
    history.copy_(torch.where(found[:, None], appended, history))
    count.add_(found)
