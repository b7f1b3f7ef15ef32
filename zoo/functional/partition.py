"""The log partition function log Z of a restricted Boltzmann machine, exact or estimated.

    Z = sum_{v, h} exp( -E(v, h) ) = sum_v exp( -F(v) ),        E, F as in zoo/functional/boltzmann.py

Enumeration is possible if one layer has at most 20 units. It gives log Z, the gradient of log Z, and exact draws of
p(v). Annealed importance sampling estimates log Z for layers of any size (Salakhutdinov & Murray, "On the Quantitative
Analysis of Deep Belief Networks", 2008). W is (V, H), b is (V,), and c is (H,). Logarithms are in nats.
"""

import math
from collections.abc import Iterator

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

ENUMERABLE = 20  # largest number of units of a layer to enumerate; its million states take minutes
AT_ONCE = 16  # largest number of units of a layer that log_partitions enumerates; its 65,536 states take seconds
BLOCK = 4096  # states in one batch of the enumeration
Partitions = dict[str, LogPartition]  # estimates of one log Z by name
SANITY_CHECK_TEMPERATURES = 10  # few temperatures, because the sanity check before training discards the estimate
PIXELS_FLIPPED = 10  # pixels of each image from which validation estimates the pseudo-likelihood


# Enumeration.


def check_enumerable(V: int, H: int) -> None:
    """Check that the visible layer (V units) or the hidden layer (H units) is small enough to enumerate in training.

    Raises:
        UserError: if both layers have more than 20 units.
    """
    if min(V, H) > ENUMERABLE:
        raise UserError(
            f"learning=exact needs a layer of at most {ENUMERABLE} units, got num_visible={V} and num_hidden={H}; "
            "choose a smaller layer or learning=pcd"
        )


def states(n: int, device: torch.device) -> Iterator[Tensor]:
    """Yield all 2^n binary vectors in order, in blocks of shape (at most 4096, n)."""
    bits = torch.arange(n, device=device)
    for block in torch.arange(2**n, device=device).split(BLOCK):
        yield (block.unsqueeze(-1) >> bits & 1).float()


def smaller_layer_first(weights: Weights) -> Weights:
    """Return ``weights``, with visible and hidden layer exchanged if the hidden layer is smaller.

    Both layers have the same role in the energy.

    Raises:
        UserError: if both layers have more than 20 units.
    """
    V, H = weights.W.shape
    if min(V, H) > ENUMERABLE:
        raise UserError(
            f"enumeration needs a layer of at most {ENUMERABLE} units, got {V} visible and {H} hidden units; use "
            "annealed importance sampling"
        )
    return weights if V <= H else Weights(weights.W.T, weights.c, weights.b)


def log_masses(weights: Weights) -> Tensor:
    """Return -F of every state of the smaller layer, in the order of :func:`states`, (2^n,) nats, float64."""
    first = smaller_layer_first(weights)
    return torch.cat(
        [in_float64(-free_energy(s.to(first.b.dtype), first)) for s in states(len(first.b), first.b.device)]
    )


def exact_log_partition(weights: Weights) -> Tensor:
    """Return log Z by enumeration of the smaller layer, () nats, float64.

    Raises:
        UserError: if both layers have more than 20 units.
    """
    return log_masses(weights).logsumexp(0)


def exact_statistics(weights: Weights) -> tuple[Tensor, Weights]:
    """Return log Z and its gradient, by enumeration of the smaller layer.

    The gradients with respect to W, b and c are E[v h'], E[v] and E[h] under the model.
    """
    first, log_mass = smaller_layer_first(weights), log_masses(weights)
    log_Z = log_mass.logsumexp(0)
    W, b, c = (torch.zeros_like(t) for t in first)
    for s, part in zip(states(len(b), b.device), (log_mass - log_Z).exp().split(BLOCK), strict=True):
        s, part = s.to(b.dtype), part.to(b)
        weighted = part.unsqueeze(-1) * s
        other = hidden_logits(s, first).sigmoid()
        W += weighted.T @ other
        b += weighted.sum(0)
        c += part @ other
    return log_Z, Weights(W, b, c) if first is weights else Weights(W.T, c, b)


def exact_loss(v: Tensor, weights: Weights) -> Tensor:
    """Return - mean log p(v) of binary ``v`` (B, V) by enumeration, () nats, differentiable in ``weights``."""
    with torch.autocast(v.device.type, enabled=False):
        log_Z, statistics = exact_statistics(Weights(*(t.detach() for t in weights)))
        linear = torch.stack([(t * s).sum() for t, s in zip(weights, statistics, strict=True)]).sum()
        # The second term has the value of log Z and the gradient of `linear`, which is E[v h'], E[v] and E[h].
        return free_energy(v, weights).mean() + (log_Z.to(v) + (linear - linear.detach()))


@torch.no_grad()
def exact_draw(u: Tensor, u_other: Tensor, weights: Weights) -> Tensor:
    """Return independent draws of p(v), (n, V).

    The function draws the smaller layer by the inverse of its cumulative distribution function. If this is the hidden
    layer, the function then draws v given h.

    Args:
        u: uniform noise that draws the smaller layer, (n,).
        u_other: uniform noise that draws v given h, (n, V).
        weights: the parameters of the energy.
    """
    first = smaller_layer_first(weights)
    masses = log_masses(weights).softmax(0).cumsum(0)
    index = torch.searchsorted(masses, in_float64(u) * masses[-1], right=True).clamp(max=len(masses) - 1).to(u.device)
    bits = torch.arange(len(first.b), device=u.device)
    s = (index.unsqueeze(-1) >> bits & 1).to(first.b.dtype)
    return s if first is weights else draw(visible_logits(s, weights), u_other)


# Annealed importance sampling.


def temperatures(n: int) -> Tensor:
    """Return n + 1 inverse temperatures from 0 to 1, (n + 1,), float64.

    The spacing follows Salakhutdinov & Murray 2008, sec. 5. In the paper, 500 steps lead from 0 to 0.5, 4,000 from 0.5
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
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> LogPartition:
    """Return log Z by annealed importance sampling from the base-rate model, with an interval of 3 standard errors.

    See Salakhutdinov & Murray 2008, sec. 4.1. The unnormalised density at the inverse temperature beta is

        f_beta(v) = exp( (1 - beta) base'v + beta b'v ) prod_j ( 1 + exp( beta (c_j + (v'W)_j) ) )

    f_0 is the unnormalised density of independent Bernoulli(sigmoid(base_i)) pixels, times 2^H. Therefore
    log Z_0 = H log 2 + sum_i softplus(base_i).

    Args:
        weights: the parameters of the energy.
        base: log odds of the pixels in the base-rate model, (V,). The paper uses the log odds of the pixels in the
            data. The H hidden units of the base-rate model have weight zero.
        chains: number of chains, at least 2.
        steps: number of inverse temperatures after 0, at least 1.
        generator: source of the noise. None selects PyTorch's default generator.
        progress: whether to show a progress bar.
    """
    W, b, c = weights
    u = lambda n: rand(chains, n, generator=generator, device=W.device)  # noqa: E731

    def anneal(v: Tensor, beta: float, next_beta: float) -> tuple[Tensor, Tensor]:
        logits = hidden_logits(v, weights)
        change = F.softplus(next_beta * logits).sum(-1) - F.softplus(beta * logits).sum(-1)
        change = change + (next_beta - beta) * (v * (b - base)).sum(-1)
        h = draw(next_beta * logits, u(len(c)))
        return change, draw((1 - next_beta) * base + next_beta * visible_logits(h, weights), u(len(b)))

    v = draw(base.expand(chains, -1), u(len(b)))
    log_w = annealed_importance_sampling(v, anneal, temperatures(steps), progress)
    log_Z0 = len(c) * math.log(2) + F.softplus(in_float64(base)).sum()
    return log_mean(log_w + log_Z0)


# Both methods, and the metrics that use log Z.


def exact(weights: Weights) -> Weights:
    """Return the weights in float64, on the CPU if their device has no float64."""
    return Weights(*map(in_float64, weights))


def quick(weights: Weights) -> bool:
    """Return whether a layer has at most 16 units. If so, :func:`log_partitions` enumerates the layer."""
    return min(weights.W.shape) <= AT_ONCE


@torch.no_grad()
def log_partitions(
    weights: Weights,
    mu: Tensor,
    chains: int,
    steps: int,
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Partitions:
    """Return estimates of log Z by name, in nats.

    If a layer has at most 16 units, the only entry is ``exact``, by enumeration. For larger layers, annealed importance
    sampling runs from two base-rate models. The pixels of ``base_rate`` have the probabilities of the mean image, as in
    Salakhutdinov & Murray 2008. The pixels of ``coins`` have probability 1/2.

    For both base-rate models, the mean weight is an unbiased estimate of Z. If no chain finds the modes with most of
    the mass, the estimate is too low. The larger estimate is therefore usually closer to log Z. If ``coins`` is far
    above ``base_rate``, the machine has mass where there are no data. A likelihood from ``base_rate`` alone is then far
    too high.

    Training with persistent chains that never restart can give this mass to the machine. The chains stay near the data
    and do not visit the mass. The chains from ``base_rate`` also miss the mass. After 300 epochs on MNIST without
    restarts, log Z was 1,043 with ``base_rate`` and 1,091 with ``coins``.

    Args:
        weights: the parameters of the energy.
        mu: the mean image, (V,), with values in (0, 1).
        chains: number of chains from each base-rate model, at least 2.
        steps: number of inverse temperatures after 0, an integer >= 1.
        generator: source of the noise. None selects PyTorch's default generator.
        progress: whether to show a progress bar.

    Raises:
        UserError: if ``steps`` is not an integer >= 1 and annealed importance sampling is needed.
    """
    if quick(weights):
        return {"exact": LogPartition(*[float(exact_log_partition(exact(weights)))] * 3)}
    check_integer("steps", steps)
    weights, mu = weights.to(torch.float32), mu.float()
    return {
        name: ais_log_partition(weights, base, chains, steps, generator=generator, progress=progress)
        for name, base in (("base_rate", mu.logit()), ("coins", torch.zeros_like(mu)))
    }


def validation_terms(
    v: Tensor, machine: Machine, partitions: Partitions, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return the validation and test metrics of binary ``v`` (B, V), means over the images, () each.

    Returns:
        loss                       -log p(v) = F(v) + log Z, nats
        pseudo_likelihood          sum_i log p(v_i | all other pixels), nats, estimated from ten pixels of each image;
                                   the standard error is about 1.3 nats on 10,000 images
        reconstruction_error       |v - p(v = 1 | h)|^2 with h drawn given v, summed over pixels; white is 1
        log_partition              the largest of ``partitions``, nats
        log_partition_low          lower end of the interval of three standard errors, nats
        log_partition_high         upper end of this interval, nats
        log_partition_base_rate    the estimate of ``base_rate``, nats, if there are two estimates
        log_partition_coins        the estimate of ``coins``, nats, if there are two estimates
    """
    weights = machine.weights()
    logits = hidden_logits(v, weights)
    h = draw(logits, rand(*logits.shape, generator=generator, device=v.device))
    pixels = (rand(len(v), PIXELS_FLIPPED, generator=generator, device=v.device) * v.shape[-1]).long()
    largest = max(partitions.values())
    estimates = {"log_partition": largest.estimate}
    estimates |= {"log_partition_low": largest.low, "log_partition_high": largest.high}
    if len(partitions) > 1:
        estimates |= {f"log_partition_{k}": z.estimate for k, z in partitions.items()}
    return {
        "loss": free_energy(v, weights, logits).mean() + largest.estimate,
        "pseudo_likelihood": pseudo_log_likelihood(v, weights, pixels).mean(),
        "reconstruction_error": (v - machine.visible_logits(h).sigmoid()).square().sum(-1).mean(),
    } | {k: torch.tensor(value, device=v.device) for k, value in estimates.items()}
