"""The log partition function log Z of a restricted Boltzmann machine, exact or estimated.

    Z = sum_{v, h} exp( -E(v, h) ) = sum_v exp( -F(v) ),        E, F as in zoo/functional/boltzmann.py

Enumeration is possible if one binary layer has at most 20 units. It gives log Z, the gradient of log Z, and exact
draws of p(v). Annealed importance sampling estimates log Z for layers of any size (Salakhutdinov & Murray, "On the
Quantitative Analysis of Deep Belief Networks", 2008). W is (V, H), b is (V,), and c is (H,). Logarithms are in nats.
With Gaussian visible units (zoo/functional/visible.py), p(v) is a mixture of 2^H Gaussians (Melchior et al. 2017).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.values import check_integer
from zoo.functional.boltzmann import (
    Machine,
    Weights,
    draw,
    free_energy,
    hidden_logits,
    pseudo_log_likelihood,
    visible_logits,
)
from zoo.functional.importance import LogPartition, annealed_importance_sampling, log_mean
from zoo.functional.noise import rand
from zoo.functional.precision import in_float64
from zoo.functional.visible import BINARY, GREY_VALUES, Binary, Visible

ENUMERABLE = 20  # largest number of units of a layer to enumerate; its million states take minutes
AT_ONCE = 16  # largest number of units of a layer that log_partitions enumerates; its 65,536 states take seconds
BLOCK = 4096  # states in one batch of the enumeration
Partitions = dict[str, LogPartition]  # estimates of one log Z by name
PIXELS_FLIPPED = 10  # pixels of each image from which validation estimates the pseudo-likelihood


# Enumeration.


def check_enumerable(V: int, H: int, visible: Visible = BINARY, purpose: str = "enumeration") -> None:
    """Check that the visible layer (V units) or the hidden layer (H units) is small enough to enumerate.

    Raises:
        UserError: if both layers have more than 20 units. Gaussian visible units cannot be enumerated.
    """
    if _units_to_enumerate(V, H, visible) > ENUMERABLE:
        layer = "a layer" if isinstance(visible, Binary) else "a hidden layer"
        raise UserError(
            f"{purpose} needs {layer} of at most {ENUMERABLE} units, got {V} visible and {H} hidden units; choose a "
            "smaller layer, learning=pcd, or annealed importance sampling"
        )


def _units_to_enumerate(V: int, H: int, visible: Visible) -> int:
    return min(V, H) if isinstance(visible, Binary) else H


def states(n: int, device: torch.device) -> Iterator[Tensor]:
    """Yield all 2^n binary vectors in order, in blocks of shape (at most 4096, n)."""
    bits = torch.arange(n, device=device)
    for block in torch.arange(2**n, device=device).split(BLOCK):
        yield (block.unsqueeze(-1) >> bits & 1).float()


def enumerated_layer_first(weights: Weights, visible: Visible = BINARY) -> tuple[Weights, Visible]:
    """Return weights whose first layer is enumerated, and the units of the other layer.

    The first layer is the visible layer if it is binary and not larger than the hidden layer. If not, the layers are
    exchanged. Both layers have the same role in the energy.

    Raises:
        UserError: if both layers have more than 20 units. Gaussian visible units cannot be enumerated.
    """
    V, H = weights.W.shape
    check_enumerable(V, H, visible)
    if isinstance(visible, Binary) and V <= H:
        return weights, BINARY
    return Weights(weights.W.T, weights.c, weights.b), visible


def log_masses(weights: Weights, visible: Visible = BINARY) -> Tensor:
    """Return log of the sum or integral of exp(-E) over the other layer, for every state of the enumerated layer.

    The result is (2^n,) nats, float64, in the order of :func:`states`. For a visible layer, it is -F.
    """
    first, other = enumerated_layer_first(weights, visible)
    return torch.cat([in_float64(_log_mass(s.to(first.b), first, other)) for s in states(len(first.b), first.b.device)])


def _log_mass(s: Tensor, first: Weights, other: Visible) -> Tensor:
    return (s * first.b).sum(-1) + other.log_normaliser(hidden_logits(s, first))


def exact_log_partition(weights: Weights, visible: Visible = BINARY) -> Tensor:
    """Return log Z by enumeration of one layer, () nats, float64.

    With Gaussian visible units, log Z is a sum over the hidden states.

    Raises:
        UserError: if both layers have more than 20 units, or if the visible units are Gaussian and the hidden layer has
            more than 20 units.
    """
    return log_masses(weights, visible).logsumexp(0)


def exact_statistics(weights: Weights, visible: Visible = BINARY) -> tuple[Tensor, Weights, Tensor]:
    """Return log Z, the means of v h', v and h under the model, and the mean of v^2, by enumeration of one layer.

    The three means are the gradients of log Z with respect to W, b and c.
    """
    (first, other), log_mass = enumerated_layer_first(weights, visible), log_masses(weights, visible)
    log_Z = log_mass.logsumexp(0)
    W, b, c = (torch.zeros_like(t) for t in first)
    squares = torch.zeros_like(c)
    for s, part in zip(states(len(b), b.device), (log_mass - log_Z).exp().split(BLOCK), strict=True):
        s, part = s.to(b.dtype), part.to(b)
        weighted, eta = part.unsqueeze(-1) * s, hidden_logits(s, first)
        mean = other.mean(eta)
        W += weighted.T @ mean
        b += weighted.sum(0)
        c += part @ mean
        squares += part @ other.squares(eta)
    return (log_Z, Weights(W, b, c), b) if first is weights else (log_Z, Weights(W.T, c, b), squares)


def exact_loss(v: Tensor, weights: Weights, visible: Visible = BINARY) -> Tensor:
    """Return - mean log p(v) of ``v`` (B, V) by enumeration, () nats, differentiable in all parameters."""
    with torch.autocast(v.device.type, enabled=False):
        with torch.no_grad():
            log_Z, means, squares = exact_statistics(weights, visible)
        linear = torch.stack([(t * s).sum() for t, s in zip(weights, means, strict=True)]).sum()
        linear = linear - visible.mean_energy(squares)
        # The second term has the value of log Z and the gradient of `linear`.
        return free_energy(v, weights, visible=visible).mean() + (log_Z.to(v) + (linear - linear.detach()))


@torch.no_grad()
def exact_draw(u: Tensor, u_other: Tensor, weights: Weights, visible: Visible = BINARY) -> Tensor:
    """Return independent draws of p(v), (n, V).

    The function draws the enumerated layer by the inverse of its cumulative distribution function. If this is the
    hidden layer, the function then draws v given h.

    Args:
        u: uniform noise that draws the enumerated layer, (n,).
        u_other: noise that draws v given h, (n, V), uniform for binary units and standard normal for Gaussian units.
        weights: the parameters of the energy.
        visible: the kind of the visible units.
    """
    first, _ = enumerated_layer_first(weights, visible)
    masses = log_masses(weights, visible).softmax(0).cumsum(0)
    index = torch.searchsorted(masses, in_float64(u) * masses[-1], right=True).clamp(max=len(masses) - 1).to(u.device)
    bits = torch.arange(len(first.b), device=u.device)
    s = (index.unsqueeze(-1) >> bits & 1).to(first.b.dtype)
    return s if first is weights else visible.draw(visible_logits(s, weights), u_other)


# Annealed importance sampling.


def temperatures(n: int) -> Tensor:
    """Return n + 1 inverse temperatures from 0 to 1, (n + 1,), float64.

    The spacing follows Salakhutdinov & Murray 2008. In the paper, 500 steps lead from 0 to 0.5, 4,000 from 0.5
    to 0.9, and 10,000 from 0.9 to 1. Here these ranges take the same fractions of the n steps: 1/29, 8/29 and 20/29.
    """
    ends = torch.tensor([0.0, 1.0, 9.0, 29.0], dtype=torch.float64) / 29
    values = torch.tensor([0.0, 0.5, 0.9, 1.0], dtype=torch.float64)
    place = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    piece = torch.searchsorted(ends, place, right=True).clamp(max=3) - 1
    share = (place - ends[piece]) / (ends[piece + 1] - ends[piece])
    return values[piece].lerp(values[piece + 1], share).clamp(max=1.0)


def ais_log_partition(
    weights: Weights,
    base: Tensor,
    chains: int,
    steps: int,
    *,
    visible: Visible = BINARY,
    base_visible: Visible = BINARY,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> LogPartition:
    """Return log Z by annealed importance sampling from the base-rate model, with an interval of 3 standard errors.

    See Salakhutdinov & Murray 2008. The unnormalised density at the inverse temperature beta is

        f_beta(v) = exp( (1 - beta) (base'v - r_0(v)) + beta (b'v - r(v)) ) prod_j ( 1 + exp( beta (c_j + (v'W)_j) ) )

    f_0 is the unnormalised density of independent pixels, times 2^H. Therefore log Z_0 = H log 2 + A_0(base). Binary
    units have r = r_0 = 0. zoo/functional/visible.py defines r and A.

    Args:
        weights: the parameters of the energy.
        base: parameters of the pixels in the base-rate model, (V,), for example their log odds. The paper uses the log
            odds of the pixels in the data. The H hidden units of the base-rate model have weight zero.
        chains: number of chains, at least 2.
        steps: number of inverse temperatures after 0, at least 1.
        visible: the kind of the visible units.
        base_visible: the visible units of the base-rate model.
        generator: source of the noise. None selects PyTorch's default generator.
        progress: whether to show a progress bar.
    """
    W, b, c = weights
    drawn: dict[str, Any] = {"generator": generator, "device": W.device}
    noise = lambda: visible.noise(chains, len(b), **drawn)  # noqa: E731

    def anneal(v: Tensor, beta: float, next_beta: float) -> tuple[Tensor, Tensor]:
        logits = hidden_logits(v, weights)
        change = F.softplus(next_beta * logits).sum(-1) - F.softplus(beta * logits).sum(-1)
        change = change + (next_beta - beta) * ((v * (b - base)).sum(-1) + (base_visible.energy(v) - visible.energy(v)))
        h = draw(next_beta * logits, rand(chains, len(c), **drawn))
        eta = (1 - next_beta) * base + next_beta * visible_logits(h, weights)
        return change, visible.between(base_visible, next_beta).draw(eta, noise())

    v = base_visible.draw(base.expand(chains, -1), noise())
    log_w = annealed_importance_sampling(v, anneal, temperatures(steps), progress)
    log_Z0 = len(c) * math.log(2) + base_visible.exact().log_normaliser(in_float64(base))
    return log_mean(log_w + log_Z0)


# Both methods, and the metrics that use log Z.


def exact(weights: Weights) -> Weights:
    """Return the weights in float64, on the CPU if their device has no float64."""
    return Weights(*map(in_float64, weights))


def quick(weights: Weights, visible: Visible = BINARY) -> bool:
    """Return whether :func:`log_partitions` enumerates a layer, because it is binary and has at most 16 units."""
    V, H = weights.W.shape
    return _units_to_enumerate(V, H, visible) <= AT_ONCE


@torch.no_grad()
def log_partitions(
    weights: Weights,
    mu: Tensor,
    chains: int,
    steps: int,
    *,
    visible: Visible = BINARY,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Partitions:
    """Return estimates of log Z by name, in nats.

    If a binary layer has at most 16 units, the only entry is ``exact``, by enumeration. For larger layers, annealed
    importance sampling runs from two base-rate models. The pixels of ``base_rate`` have the probabilities of the mean
    image, as in Salakhutdinov & Murray 2008. The pixels of ``coins`` have probability 1/2. With Gaussian units, the
    pixels of ``base_rate`` have the means and variances of the data. ``broad`` takes the place of ``coins``. Its pixels
    have twice the standard deviations.

    For both base-rate models, the mean weight is an unbiased estimate of Z. If no chain finds the modes with most of
    the mass, the estimate is too low, and the larger estimate is closer to log Z. If both find all modes, the larger
    estimate is too high on average, by less than the larger standard error. If ``coins`` is far above ``base_rate``,
    the machine has mass where there are no data. A likelihood from ``base_rate`` alone is then far too high.

    Training with persistent chains that never restart can give this mass to the machine. The chains stay near the data
    and do not visit the mass. The chains from ``base_rate`` also miss the mass. After 300 epochs on MNIST without
    restarts, log Z was 1,043 with ``base_rate`` and 1,091 with ``coins``.

    Args:
        weights: the parameters of the energy.
        mu: the mean image, (V,), with values in (0, 1).
        chains: number of chains from each base-rate model, at least 2.
        steps: number of inverse temperatures after 0, an integer >= 1.
        visible: the kind of the visible units.
        generator: source of the noise. None selects PyTorch's default generator.
        progress: whether to show a progress bar.

    Raises:
        UserError: if ``steps`` is not an integer >= 1 and annealed importance sampling is needed.
    """
    if quick(weights, visible):
        return {"exact": LogPartition(*[float(exact_log_partition(exact(weights), visible.exact()))] * 3)}
    check_integer("steps", steps)
    weights, visible = weights.to(torch.float32), visible.to(torch.float32)
    how: dict[str, Any] = {"visible": visible, "generator": generator, "progress": progress}
    return {
        name: ais_log_partition(weights, base, chains, steps, base_visible=units, **how)
        for name, (base, units) in visible.base_rates(mu.float()).items()
    }


def validation_terms(
    v: Tensor, machine: Machine, partitions: Partitions, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return the validation and test metrics of states ``v`` (B, V), means over the images, () each.

    Returns:
        loss                       -log p(v) = F(v) + log Z, nats; for Gaussian units, the density of pixels in [0, 1]
        bits_per_dim               only for Gaussian units: bits for each of 256 grey values, an upper bound in
                                   expectation at the exact log Z (Theis, van den Oord & Bethge 2016)
        pseudo_likelihood          only for binary units: sum_i log p(v_i | all other pixels), nats, estimated from ten
                                   pixels of each image. The standard error is about 1.3 nats on 10,000 images.
        reconstruction_error       |v - E[v | h]|^2 in pixels, with h drawn given v, summed over pixels; white is 1
        log_partition              the largest of ``partitions``, nats
        log_partition_low          lower end of the interval of three standard errors, nats
        log_partition_high         upper end of this interval, nats
        log_partition_base_rate    the estimate of ``base_rate``, nats, if there are two estimates
        log_partition_coins        the estimate of ``coins``, nats, if there are two estimates of binary units
        log_partition_broad        the estimate of ``broad``, nats, if there are two estimates of Gaussian units
    """
    weights, visible = machine.weights(), machine.visible
    logits = hidden_logits(v, weights)
    h = draw(logits, rand(*logits.shape, generator=generator, device=v.device))
    largest = max(partitions.values())
    estimates = {"log_partition": largest.estimate}
    estimates |= {"log_partition_low": largest.low, "log_partition_high": largest.high}
    if len(partitions) > 1:
        estimates |= {f"log_partition_{k}": z.estimate for k, z in partitions.items()}
    terms = {"loss": free_energy(v, weights, logits, visible).mean() + (largest.estimate + visible.log_scale)}
    if isinstance(visible, Binary):
        pixels = (rand(len(v), PIXELS_FLIPPED, generator=generator, device=v.device) * v.shape[-1]).long()
        terms["pseudo_likelihood"] = pseudo_log_likelihood(v, weights, pixels).mean()
    else:
        terms["bits_per_dim"] = terms["loss"] / (v.shape[-1] * math.log(2)) + math.log2(GREY_VALUES)
    difference = visible.pixels(v) - visible.pixels(visible.mean(machine.visible_logits(h)))
    terms["reconstruction_error"] = difference.square().sum(-1).mean()
    return terms | {k: torch.tensor(value, device=v.device) for k, value in estimates.items()}
