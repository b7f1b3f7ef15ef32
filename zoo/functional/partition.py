"""log Z of a restricted Boltzmann machine: enumerated, or estimated by annealed importance sampling.

    Z = sum_{v, h} exp( -E(v, h) ) = sum_v exp( -F(v) ),        E, F as in zoo/functional/boltzmann.py

It is enumerated where one of the layers has at most 20 units, and with it the gradient of log Z and exact draws of p;
it is estimated anywhere (Salakhutdinov & Murray, "On the Quantitative Analysis of Deep Belief Networks", 2008). W is
(V, H), b (V,), c (H,), u uniform in [0, 1), logarithms are in nats.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.values import check_whole
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

ENUMERABLE = 20  # units: a million states
AT_ONCE = 16  # units up to which log Z is enumerated without being asked: seconds, where a million states are minutes
BLOCK = 4096  # states at a time
Partitions = dict[str, LogPartition]  # estimates of one log Z by name
OF_SANITY_CHECK = 10  # temperatures before training, where the estimate is thrown away
PIXELS_FLIPPED = 10  # of each image, for its pseudo-likelihood while a model is validated


# By enumeration.


def check_enumerable(V: int, H: int) -> None:
    """Refuse to learn by enumeration where both layers have more than 20 units.

    Raises:
        UserError: naming their sizes.
    """
    if min(V, H) > ENUMERABLE:
        raise UserError(
            f"learning=exact enumerates the smaller layer, which may have at most {ENUMERABLE} units; got "
            f"num_visible={V} and num_hidden={H}"
        )


def states(n: int, device: torch.device) -> Iterator[Tensor]:
    """All 2^n binary vectors in order, a block at a time, (at most 4096, n)."""
    bits = torch.arange(n, device=device)
    for block in torch.arange(2**n, device=device).split(BLOCK):
        yield (block.unsqueeze(-1) >> bits & 1).float()


def smaller_layer_first(weights: Weights) -> Weights:
    """The same machine with its layers exchanged where the hidden one is the smaller; their roles are symmetric.

    Raises:
        UserError: where both have more than 20 units.
    """
    V, H = weights.W.shape
    if min(V, H) > ENUMERABLE:
        raise UserError(
            f"of {V} visible and {H} hidden units neither layer can be enumerated: one of them may have at most "
            f"{ENUMERABLE}; annealed importance sampling has no such limit"
        )
    return weights if V <= H else Weights(weights.W.T, weights.c, weights.b)


def log_masses(weights: Weights) -> Tensor:
    """-F of every state of the smaller layer, in the order of :func:`states`: (2^n,) nats, float64."""
    first = smaller_layer_first(weights)
    return torch.cat(
        [in_float64(-free_energy(s.to(first.b.dtype), first)) for s in states(len(first.b), first.b.device)]
    )


def exact_log_partition(weights: Weights) -> Tensor:
    """log Z by enumeration of the smaller layer; () nats, float64.

    Raises:
        UserError: where both layers have more than 20 units.
    """
    return log_masses(weights).logsumexp(0)


def exact_statistics(weights: Weights) -> tuple[Tensor, Weights]:
    """log Z and its gradient, E[v h'], E[v] and E[h] under the model, by enumeration of the smaller layer."""
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
    """- mean log p(v) of binary ``v``, (B, V), by enumeration, with its gradient by ``weights``; () nats."""
    with torch.autocast(v.device.type, enabled=False):
        log_Z, statistics = exact_statistics(Weights(*(t.detach() for t in weights)))
        linear = torch.stack([(t * s).sum() for t, s in zip(weights, statistics, strict=True)]).sum()
        # log Z, with the gradient of what is linear in the weights.
        return free_energy(v, weights).mean() + (log_Z.to(v) + (linear - linear.detach()))


@torch.no_grad()
def exact_draw(u: Tensor, u_other: Tensor, weights: Weights) -> Tensor:
    """Independent draws of p(v), by inverting the distribution function of the enumerated layer; (n, V).

    Args:
        u: uniform, (n,).
        u_other: uniform, (n, V): draws v given h where it is h that is enumerated.
    """
    first = smaller_layer_first(weights)
    masses = log_masses(weights).softmax(0).cumsum(0)
    index = torch.searchsorted(masses, in_float64(u) * masses[-1], right=True).clamp(max=len(masses) - 1).to(u.device)
    bits = torch.arange(len(first.b), device=u.device)
    s = (index.unsqueeze(-1) >> bits & 1).to(first.b.dtype)
    return s if first is weights else draw(visible_logits(s, weights), u_other)


# By annealed importance sampling.


def temperatures(n: int) -> Tensor:
    """n + 1 inverse temperatures from 0 to 1, spaced as in Salakhutdinov & Murray 2008, sec. 5; float64.

    Of every 29 steps one goes to 0.5, eight to 0.9 and twenty to 1 (theirs: 500, 4,000 and 10,000).
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
    """log Z by annealed importance sampling from the base-rate model; Salakhutdinov & Murray 2008, sec. 4.1.

        f_beta(v) = exp( (1 - beta) base'v + beta b'v ) prod_j ( 1 + exp( beta (c_j + (v'W)_j) ) )

    f_0 is a product of Bernoulli(sigmoid(base)) times 2^H, so that log Z_0 = H log 2 + sum_i softplus(base_i).

    Args:
        base: log odds of the pixels of the base-rate model, (V,); the paper's are of the data. Its H hidden units
            have no weight.
        chains: at least 2.
        steps: inverse temperatures after 0, at least 1.
        progress: show a bar.

    Returns:
        the estimate with its interval of three standard errors.
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


# Either, and what is measured with it.


def exact(weights: Weights) -> Weights:
    """The weights in float64, on the CPU where their device has none."""
    return Weights(*map(in_float64, weights))


def quick(weights: Weights) -> bool:
    """Whether log Z is enumerated without being asked: one layer has at most 16 units."""
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
    """log Z in nats: ``exact`` where a layer has at most 16 units, else by annealed importance sampling, twice.

    Chains begin at the mean image (``base_rate``), as Salakhutdinov & Murray do, and at fair coins (``coins``). The
    mean of the weights is Z for either, and falls short of it where no chain finds what holds most of the mass: the
    larger estimate is the nearer one. Where ``coins`` is far above ``base_rate``, the model has put its mass where no
    data are, and a likelihood from the mean image alone would be an illusion. Persistent chains that never restart, all
    of them near the data, let mass gather there, unseen by them and by annealed importance sampling from the mean
    image: after 300 epochs of MNIST without restarts, log Z was 1,043 from there, and 1,091 from fair coins.

    Args:
        mu: the mean image, (V,), within (0, 1).
        chains: for each beginning, at least 2.
        steps: inverse temperatures after 0, at least 1.
        progress: show a bar.

    Raises:
        UserError: for other ``steps``, where they are needed.
    """
    if quick(weights):
        return {"exact": LogPartition(*[float(exact_log_partition(exact(weights)))] * 3)}
    check_whole("steps", steps)
    weights, mu = weights.to(torch.float32), mu.float()
    return {
        name: ais_log_partition(weights, base, chains, steps, generator=generator, progress=progress)
        for name, base in (("base_rate", mu.logit()), ("coins", torch.zeros_like(mu)))
    }


def validation_terms(
    v: Tensor, machine: Machine, partitions: Partitions, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """What is logged of binary ``v``, (B, V), in validation and test: means over the images, () each.

    Returns:
        loss                    -log p(v) = F(v) + log Z, nats
        pseudo_likelihood       sum_i log p(v_i | all other pixels), nats, estimated from ten pixels of each image
                                (a standard error of about 1.3 nats on 10,000 images)
        reconstruction_error    |v - p(v = 1 | h)|^2, h drawn given v, squared pixels
        log_partition           the largest of ``partitions``, nats; _low, _high: its three standard errors;
                                _base_rate, _coins: each of the two
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
