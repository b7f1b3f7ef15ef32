"""Samplers of a Gaussian diffusion: ancestral sampling, DDIM, DDIM encoding, and intermediate states.

A sampler takes a function (x_t, t) -> x0_hat, usually a network. At each step, with t from T-1 down to 0, the sampler
yields t, x_{t-1} and x0_hat. At t = 0, x_{t-1} is the sample. The step index t counts from 0, as in
zoo/functional/diffusion.py. Equations, algorithms and sections without a name are from Ho, Jain & Abbeel 2020,
arXiv:2006.11239.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.old_forms import old_form
from zoo.checks.values import check_choice, check_integer
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
    """Yield t, x_{t-1} and x0_hat at each step of the reverse chain, algorithm 2.

    The chain begins with noise ``x`` at t = T-1. The last step, t = 0, adds no noise.

    Args:
        x0_model: (x_t, t) -> x0_hat. x_t and x0_hat are (B, ...). t is (B,), in 0 .. T-1.
        x: standard normal, (B, ...).
        chain: the constants of the forward process.
        variance: variance of the steps, ``posterior`` (posterior variance) or ``beta`` (beta_t); sec. 3.2.
        generator: source of the noise. None selects PyTorch's default generator.
        clip: whether to clip x0_hat to [-1, 1]. Without clipping, the mean of x_{t-1} is exactly eq. 11.
        correct: function (x_{t-1}, t-1) -> corrected x_{t-1}. It runs after each step except the last.
    """
    sigma2 = chain.posterior_variance if variance == "posterior" else chain.betas
    for i in reversed(range(len(chain.betas))):
        t = torch.full((len(x),), i, device=x.device)
        x0 = _clipped(x0_model(x, t), clip)
        x = posterior_mean(x0, x, t, chain)
        if i > 0:
            x = x + sigma2[i].sqrt() * randn(*x.shape, generator=generator, device=x.device).to(x.dtype)  # x_{t-1}
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
    """Yield t, the next x and x0_hat at each step of DDIM; Song, Meng & Ermon 2021 (arXiv:2010.02502), eq. 12.

    DDIM runs on ``num_steps`` evenly spaced steps of the chain. With ``eta`` = 0 it is deterministic given ``x``. With
    ``eta`` = 1 and all T steps it equals :func:`ancestral_steps` with the posterior variance.

    Args:
        x0_model, x, chain, generator, clip, correct: as for :func:`ancestral_steps`.
        num_steps: number of steps, from 1 to T.
        eta: standard deviation of the added noise, from 0 to 1, in units of the posterior standard deviation.

    Raises:
        UserError: if ``num_steps`` or ``eta`` is outside its range.
    """
    taus = ddim_subset(len(chain.betas), num_steps)
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 0 <= eta <= 1:
        raise UserError(f"eta must be a number between 0 and 1, got {eta!r}")
    for i, i_prev in zip(reversed(taus), [*reversed(taus[:-1]), None], strict=True):
        a, rest = chain.abar[i], chain.one_minus_abar[i]
        a_prev, rest_prev = (1.0, 0 * a) if i_prev is None else (chain.abar[i_prev], chain.one_minus_abar[i_prev])
        t = torch.full((len(x),), i, device=x.device)
        x0 = _clipped(x0_model(x, t), clip)
        eps = predicted_eps(x0, x, t, chain)  # the noise that turns x0, after any clipping, into x_t
        sigma = eta * (rest_prev / rest * (1 - a / a_prev)).sqrt()  # eq. 16
        x = a_prev**0.5 * x0 + (rest_prev - sigma**2).clamp(min=0).sqrt() * eps
        if i_prev is not None:
            if eta > 0:
                x = x + sigma * randn(*x.shape, generator=generator, device=x.device).to(x.dtype)
            x = x if correct is None else correct(x, i_prev)
        yield i, x, x0


def ddim_subset(T: int, num_steps: int) -> list[int]:
    """Return the ``num_steps`` steps of DDIM in increasing order, evenly spaced in 0 .. T-1.

    The steps always include T-1. If there are at least two steps, they also include 0.

    Raises:
        UserError: if ``num_steps`` is not an integer from 1 to T.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or not 1 <= num_steps <= T:
        raise UserError(f"num_steps must be an integer between 1 and the model's {T} steps, got {num_steps!r}")
    return torch.linspace(T - 1, 0, num_steps, dtype=torch.float64).round().long().flip(0).tolist()


@torch.no_grad()
def ddim_encode(x0_model: X0Model, x0: Tensor, chain: Chain, num_steps: int = 50) -> Tensor:
    """Return the noise x_T (B, ...) that deterministic DDIM maps to ``x0``; Song et al. 2021, eq. 14.

    The result is exact up to the discretisation error of the steps. The function runs the DDIM update with increasing
    t. The update from t to t_next uses the prediction at t. The prediction is not clipped, because clipping cannot be
    inverted.

    Args:
        x0_model: (x_t, t) -> x0_hat.
        x0: images in [-1, 1], (B, ...).
        chain: the constants of the forward process.
        num_steps: number of steps, from 1 to T.
    """
    taus = ddim_subset(len(chain.betas), num_steps)
    steps = [torch.full((len(x0),), i, device=x0.device) for i in taus]
    # At the lowest step, x_t is unknown but close to the image. The network therefore receives the image.
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
    """Return a sampler and its number of steps.

    Args:
        x0_model, x, chain, variance, generator, correct: as for :func:`ancestral_steps`.
        num_steps: number of DDIM steps. None selects :func:`ancestral_steps` on the whole chain.
        eta: as for :func:`ddim_steps`. It must be 0 for the whole chain.

    Raises:
        UserError: if ``num_steps`` or ``eta`` is outside its range.
    """
    if num_steps is None:
        if eta:
            raise UserError(
                f"eta must be 0 for the whole chain (num_steps=null), got {eta!r}; set num_steps to sample with DDIM"
            )
        return ancestral_steps(x0_model, x, chain, variance, generator=generator, correct=correct), len(chain.betas)
    total = len(ddim_subset(len(chain.betas), num_steps))  # raises UserError here and not in the first step
    return ddim_steps(x0_model, x, chain, num_steps, eta, generator=generator, correct=correct), total


def shown(steps: Iterator[tuple[int, Tensor, Tensor]], total: int, number: int | None, show: str) -> Tensor:
    """Return the result of a sampler, (B, ...), or ``number`` of its intermediate states, (B, number, ...).

    Args:
        steps: the sampler.
        total: number of steps of the sampler.
        number: number of evenly spaced states to return, from 2 to ``total``. None returns only the result.
        show: the states to return, ``xt`` (noisy images) or ``x0`` (predictions x0_hat). ``x0`` needs a ``number``.

    Raises:
        UserError: if ``show`` or ``number`` has a value that is not allowed.
    """
    check_choice("show", show, ("xt", "x0"))
    if number is None:
        if show != "xt":
            raise UserError(f"show={show} needs a number of frames, got frames=null; set one, for example frames=12")
        return last(steps, total, "sampling")
    check_integer("frames", number, least=2)
    if number > total:
        raise UserError(f"frames must be at most {total}, the number of sampling steps, got {number}")
    xt, x0 = frames(steps, total, number)
    return xt if show == "xt" else x0


def last(steps: Iterator[tuple[int, Tensor, Tensor]], total: int, name: str) -> Tensor:
    """Return the sample of a sampler. Show the progress if sampling takes more than a few seconds."""
    _, x, _ = deque(tracked(steps, name, total=total), maxlen=1)[0]
    return x


def frames(steps: Iterator[tuple[int, Tensor, Tensor]], total: int, shown: int) -> tuple[Tensor, Tensor]:
    """Return ``shown`` evenly spaced states of a sampler, x_{t-1} and x0_hat, (B, shown, ...) each.

    The last state is the sample.
    """
    keep = set(torch.linspace(0, total - 1, shown, dtype=torch.float64).round().long().tolist())
    seen = [(x, x0) for k, (_, x, x0) in enumerate(steps) if k in keep]
    return torch.stack([x for x, _ in seen], 1), torch.stack([x0 for _, x0 in seen], 1)


def slerp(a: Tensor, b: Tensor, between: Tensor) -> Tensor:
    """Return points on the great arc from ``a`` to ``b``, (B, F, ...); Song et al. 2021, appendix D.5.

        sin((1 - s) phi) / sin(phi) a + sin(s phi) / sin(phi) b,   phi the angle between a and b

    If ``a`` and ``b`` have equal norms, all points have this norm. On a straight line between two draws of noise, the
    norm of the midpoint is smaller by a factor of about sqrt(2).

    Args:
        a, b: noise, (B, ...) each.
        between: the F positions s on the arc, from 0 at ``a`` to 1 at ``b``.
    """
    flat_a, flat_b = in_float64(a.flatten(1)), in_float64(b.flatten(1))
    phi = torch.acos(((flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1))).clamp(-1, 1))[:, None]
    s = between.cpu().double().to(flat_a.device)
    straight = phi.abs() < 1e-6
    wa = torch.where(straight, 1 - s, ((1 - s) * phi).sin() / phi.sin().clamp(min=1e-12)).to(a)
    wb = torch.where(straight, s, (s * phi).sin() / phi.sin().clamp(min=1e-12)).to(a)
    shape = (len(a), len(s), *[1] * (a.ndim - 1))
    return wa.view(shape) * a[:, None] + wb.view(shape) * b[:, None]
