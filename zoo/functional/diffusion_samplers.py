"""Samplers of a Gaussian diffusion: ancestral sampling, DDIM both ways, and the intermediate states of a sample.

No network is known here: samplers take a function (x_t, t) -> x0_hat, so that a test can hand them the exact one. Each
yields t, x_{t-1} and x0_hat, step by step from t = T-1 to 0, where x_{t-1} is the sample. Equations without a name are
those of Ho, Jain & Abbeel 2020, arXiv:2006.11239; t counts from 0, as in zoo/functional/diffusion.py.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.old_forms import old_form
from zoo.checks.values import check_choice, check_whole
from zoo.functional.diffusion import Chain, X0Model, posterior_mean, predicted_eps, q_sample
from zoo.functional.noise import randn
from zoo.functional.precision import in_float64
from zoo.functional.progress import tracked


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
    if num_steps is None:
        if eta:
            raise UserError(f"eta is DDIM's; the whole chain (num_steps=null) has its own noise, got eta={eta!r}")
        return ancestral_steps(x0_model, x, chain, variance, generator=generator, correct=correct), len(chain.betas)
    total = len(ddim_subset(len(chain.betas), num_steps))  # which refuses other numbers
    return ddim_steps(x0_model, x, chain, num_steps, eta, generator=generator, correct=correct), total


def shown(steps: Iterator[tuple[int, Tensor, Tensor]], total: int, number: int | None, show: str) -> Tensor:
    """A sampler's result, (B, ...), or ``number`` of its states, (B, number, ...).

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
    _, x, _ = deque(tracked(steps, name, total=total), maxlen=1)[0]
    return x


def frames(steps: Iterator[tuple[int, Tensor, Tensor]], total: int, shown: int) -> tuple[Tensor, Tensor]:
    """``shown`` evenly spread states of a sampler, the last its result: x_{t-1} and x0_hat, (B, shown, ...) each."""
    keep = set(torch.linspace(0, total - 1, shown, dtype=torch.float64).round().long().tolist())
    seen = [(x, x0) for k, (_, x, x0) in enumerate(steps) if k in keep]
    return torch.stack([x for x, _ in seen], 1), torch.stack([x0 for _, x0 in seen], 1)


def slerp(a: Tensor, b: Tensor, between: Tensor) -> Tensor:
    """Points on the great arc from ``a`` to ``b``, (B, ...) each: (B, F, ...) for F shares ``between`` 0 and 1.

    sin((1 - s) phi) / sin(phi) a + sin(s phi) / sin(phi) b with phi the angle between them: noise of the same length
    as a draw, where the straight line's middle is shorter by sqrt(2). Song et al. 2021, appendix D.5.
    """
    flat_a, flat_b = in_float64(a.flatten(1)), in_float64(b.flatten(1))
    phi = torch.acos(((flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1))).clamp(-1, 1))[:, None]
    s = between.cpu().double().to(flat_a.device)
    straight = phi.abs() < 1e-6
    wa = torch.where(straight, 1 - s, ((1 - s) * phi).sin() / phi.sin().clamp(min=1e-12)).to(a)
    wb = torch.where(straight, s, (s * phi).sin() / phi.sin().clamp(min=1e-12)).to(a)
    shape = (len(a), len(s), *[1] * (a.ndim - 1))
    return wa.view(shape) * a[:, None] + wb.view(shape) * b[:, None]
