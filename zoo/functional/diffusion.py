"""The Gaussian diffusion of DDPM: its schedules, its kernels in closed form, what a network may predict, its samplers.

No network is known here: samplers take a function (x_t, t) -> x0_hat, so that a test can hand them the exact one.

    q(x_t | x_{t-1})      = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)                               eq. 2, seed 004, 14.1
    q(x_t | x_0)          = N(sqrt(abar_t) x_0, (1 - abar_t) I),  abar_t = prod_s (1 - beta_s)  eq. 4, seed 14.11
    q(x_{t-1} | x_t, x_0) = N( [sqrt(abar_{t-1}) beta_t x_0 + sqrt(1 - beta_t) (1 - abar_{t-1}) x_t] / (1 - abar_t),
                               beta_t (1 - abar_{t-1}) / (1 - abar_t) I )                      eq. 7, seed 14.45

Equations without a name are those of Ho, Jain & Abbeel 2020, arXiv:2006.11239. Everywhere t is an index, 0 .. T-1,
where 0 is one step of noise (the paper's t = 1), x_{t-1} at t = 0 is x_0 itself, and images are in [-1, 1].
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from zoo.checks.errors import UserError
from zoo.checks.old_forms import old_form
from zoo.checks.values import check_choice, check_whole
from zoo.functional.noise import rand, randn

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
    if timesteps == "importance" and p is not None:
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
    offset = torch.arange(B, device=u.device, dtype=torch.float64) / B
    return ((u.double() + offset) % 1 * steps).long().clamp(max=steps - 1)


def importance(history: Tensor, count: Tensor) -> Tensor:
    """p_t proportional to sqrt(E[L_t^2]), from the last losses of each step; (T,), float64, with sum 1.

    Nichol & Dhariwal 2021, sec. 3.3: uniform until every step has a full history. A thousandth of it stays uniform, so
    that no weight 1 / (T p_t) exceeds 1000.

    Args:
        history: the last losses of each step, (T, H).
        count: how many there have been, (T,).
    """
    T, H = history.shape
    if int(count.min()) < H:
        return torch.full((T,), 1 / T, dtype=torch.float64, device=history.device)
    p = history.double().square().mean(1).sqrt()
    return 0.999 * p / p.sum() + 0.001 / T


def remember(history: Tensor, count: Tensor, t: Tensor, losses: Tensor) -> None:
    """Take losses in, in place, each as the newest of its step; of several of one step the last.

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


# Samplers: each yields t, x_{t-1} and x0_hat, step by step from t = T-1 to 0, where x_{t-1} is the sample.


def _clipped(x0: Tensor, clip: bool) -> Tensor:
    return x0.clamp(-1, 1) if clip else x0


@old_form
@torch.no_grad()
def ancestral_steps(
    x0_model: X0Model,
    x: Tensor,
    chain: Chain,
    variance: str = "posterior",
    *,
    generator: torch.Generator | None = None,
    clip: bool = True,
    correct: Callable[[Tensor, int], Tensor] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Algorithm 2: the reverse chain from noise ``x`` at t = T-1 down to t = 0, where no noise is added.

    Args:
        x0_model: (x_t, t) -> x0_hat, both (B, ...); t is (B,), 0 .. T-1.
        x: standard normal, (B, ...).
        variance: ``posterior``, or ``beta`` for beta_t; sec. 3.2.
        clip: keep x0_hat in [-1, 1]; without it the mean is eq. 11 exactly.
        correct: (x_{t-1}, t-1) -> x_{t-1}, a corrector that is run after each step but the last.
    """
    sigma2 = chain.posterior_variance if variance == "posterior" else chain.betas
    for i in reversed(range(len(chain.betas))):
        t = torch.full((len(x),), i, device=x.device)
        x0 = _clipped(x0_model(x, t), clip)
        x = posterior_mean(x0, x, t, chain)
        if i > 0:
            x = x + sigma2[i].sqrt() * randn(*x.shape, generator=generator, device=x.device).to(x.dtype)
            x = x if correct is None else correct(x, i - 1)
        yield i, x, x0


@old_form
@torch.no_grad()
def ddim_steps(
    x0_model: X0Model,
    x: Tensor,
    chain: Chain,
    num_steps: int = 50,
    eta: float = 0.0,
    *,
    generator: torch.Generator | None = None,
    clip: bool = True,
    correct: Callable[[Tensor, int], Tensor] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """DDIM, eq. 12 of Song, Meng & Ermon 2021 (arXiv:2010.02502), on ``num_steps`` evenly spread steps of the chain.

    ``eta`` = 0 is deterministic given ``x``; ``eta`` = 1 with all T steps is :func:`ancestral_steps`.

    Args:
        x0_model, x, chain, clip, correct: as for :func:`ancestral_steps`.
        num_steps: 1 to T.
        eta: noise put back in, 0 to 1, in units of the posterior's standard deviation.

    Raises:
        UserError: for ``num_steps`` or ``eta`` outside these.
    """
    taus = ddim_subset(len(chain.betas), num_steps)
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 0 <= eta <= 1:
        raise UserError(f"eta must be a number between 0 and 1, got {eta!r}")
    for i, i_prev in zip(reversed(taus), [*reversed(taus[:-1]), None], strict=True):
        a, rest = chain.abar[i], chain.one_minus_abar[i]
        a_prev, rest_prev = (1.0, 0 * a) if i_prev is None else (chain.abar[i_prev], chain.one_minus_abar[i_prev])
        t = torch.full((len(x),), i, device=x.device)
        x0 = _clipped(x0_model(x, t), clip)
        eps = predicted_eps(x0, x, t, chain)  # the noise that goes with x0, also where clipping changed it
        sigma = eta * (rest_prev / rest * (1 - a / a_prev)).sqrt()  # eq. 16
        x = a_prev**0.5 * x0 + (rest_prev - sigma**2).clamp(min=0).sqrt() * eps
        if i_prev is not None:
            if eta > 0:
                x = x + sigma * randn(*x.shape, generator=generator, device=x.device).to(x.dtype)
            x = x if correct is None else correct(x, i_prev)
        yield i, x, x0


def ddim_subset(T: int, num_steps: int) -> list[int]:
    """The steps DDIM runs, rising: ``num_steps`` of 0 .. T-1, evenly spread, the first and the last included.

    Raises:
        UserError: for ``num_steps`` that is no whole number from 1 to T.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or not 1 <= num_steps <= T:
        raise UserError(f"num_steps must be a whole number between 1 and the model's {T} steps, got {num_steps!r}")
    return torch.linspace(T - 1, 0, num_steps, dtype=torch.float64).round().long().flip(0).tolist()


@torch.no_grad()
def ddim_encode(x0_model: X0Model, x0: Tensor, chain: Chain, num_steps: int = 50) -> Tensor:
    """The noise x_T that deterministic DDIM turns into ``x0``, up to the error of its steps; Song et al., eq. 14.

    The same update run upwards, with the prediction at the step below: unclipped, since clipping cannot be undone.
    """
    taus = ddim_subset(len(chain.betas), num_steps)
    steps = [torch.full((len(x0),), i, device=x0.device) for i in taus]
    # At the bottom the image stands in for x_t: of its noise, a hundredth or so, nothing is known.
    x = q_sample(x0, steps[0], predicted_eps(x0_model(x0, steps[0]), x0, steps[0], chain), chain)
    for t, t_next in pairwise(steps):
        x0_hat = x0_model(x, t)
        x = q_sample(x0_hat, t_next, predicted_eps(x0_hat, x, t, chain), chain)
    return x


def sampler(
    x0_model: X0Model,
    x: Tensor,
    chain: Chain,
    num_steps: int | None,
    eta: float,
    variance: str,
    *,
    generator: torch.Generator | None = None,
    correct: Callable[[Tensor, int], Tensor] | None = None,
) -> tuple[Iterator[tuple[int, Tensor, Tensor]], int]:
    """The steps of DDIM, or where ``num_steps`` is None of the whole chain, and how many there are.

    Args:
        x0_model, x, chain, variance, correct: as for :func:`ancestral_steps`.
        num_steps, eta: as for :func:`ddim_steps`.

    Raises:
        UserError: for values outside these; for ``eta`` of the whole chain, which has noise of its own.
    """
    how = {"generator": generator, "correct": correct}
    if num_steps is None:
        if eta:
            raise UserError(f"eta is DDIM's; the whole chain (num_steps=null) has its own noise, got eta={eta!r}")
        return ancestral_steps(x0_model, x, chain, variance, **how), len(chain.betas)
    total = len(ddim_subset(len(chain.betas), num_steps))  # which refuses other numbers
    return ddim_steps(x0_model, x, chain, num_steps, eta, **how), total


def shown(steps: Iterator[tuple[int, Tensor, Tensor]], total: int, number: int | None, show: str) -> Tensor:
    """What is shown of a sampler's way: its end, (B, ...), or ``number`` of its states, (B, number, ...).

    Args:
        show: ``xt``, the noisy images, or ``x0``, what the network takes them for.

    Raises:
        UserError: for another ``show``, or ``x0`` of the end; for fewer than two states, or more than there are.
    """
    check_choice("show", show, ("xt", "x0"))
    if number is None:
        if show != "xt":
            raise UserError(f"show={show} is of the way to a sample: say how many moments of it, frames=12")
        return last(steps, total, "sampling")
    check_whole("frames", number, least=2)
    if number > total:
        raise UserError(f"there are {total} steps to show, fewer than {number} frames")
    xt, x0 = frames(steps, total, number)
    return xt if show == "xt" else x0


def last(steps: Iterator[tuple[int, Tensor, Tensor]], total: int, name: str) -> Tensor:
    """Run a sampler to its end, with a bar where it takes long, and return x_0."""
    bar = tqdm(steps, total=total, desc=name, unit="step", delay=3, leave=False, disable=None)
    _, x, _ = deque(bar, maxlen=1)[0]
    return x


def frames(steps: Iterator[tuple[int, Tensor, Tensor]], total: int, shown: int) -> tuple[Tensor, Tensor]:
    """``shown`` moments on a sampler's way, spread evenly, the last its end: x_{t-1}, x0_hat, (B, shown, ...) each."""
    keep = set(torch.linspace(0, total - 1, shown, dtype=torch.float64).round().long().tolist())
    seen = [(x, x0) for k, (_, x, x0) in enumerate(steps) if k in keep]
    return torch.stack([x for x, _ in seen], 1), torch.stack([x0 for _, x0 in seen], 1)


def slerp(a: Tensor, b: Tensor, between: Tensor) -> Tensor:
    """Points on the great arc from ``a`` to ``b``, (B, ...) each: (B, F, ...) for F shares ``between`` 0 and 1.

    sin((1 - s) phi) / sin(phi) a + sin(s phi) / sin(phi) b with phi the angle between them: noise of the same length
    as a draw, where the straight line's middle is shorter by sqrt(2). Song et al. 2021, appendix D.5.
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    phi = torch.acos(((flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1))).clamp(-1, 1))[:, None]
    s = between.double().to(a.device)
    straight = phi.abs() < 1e-6
    wa = torch.where(straight, 1 - s, ((1 - s) * phi).sin() / phi.sin().clamp(min=1e-12)).to(a.dtype)
    wb = torch.where(straight, s, (s * phi).sin() / phi.sin().clamp(min=1e-12)).to(a.dtype)
    shape = (len(a), len(s), *[1] * (a.ndim - 1))
    return wa.view(shape) * a[:, None] + wb.view(shape) * b[:, None]
