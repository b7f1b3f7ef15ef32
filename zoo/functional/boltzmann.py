"""The restricted Boltzmann machine itself: its energy, its conditionals, and everything about log Z.

    E(v, h)      = - b'v - c'h - v'W h,         p(v, h) = exp(-E(v, h)) / Z                      seed 003
    F(v)         = - log sum_h exp(-E(v, h)) = - b'v - sum_j softplus( c_j + (v'W)_j )
    p(h_j=1 | v) = sigmoid( c_j + (v'W)_j ),    p(v_i=1 | h) = sigmoid( b_i + (W h)_i )

v (..., V) and h (..., H) are binary, W is (V, H), b (V,), c (H,), u uniform in [0, 1). Energies and logarithms are in
nats. log Z is enumerated where one of the layers has at most 20 units, and estimated by annealed importance sampling
(Salakhutdinov & Murray, "On the Quantitative Analysis of Deep Belief Networks", 2008) anywhere. Seed 003 writes x for
v, and a, b for the biases.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.functional.importance import LogPartition, annealed_importance_sampling, log_mean
from zoo.functional.noise import rand

ENUMERABLE = 20  # units: a million states
BLOCK = 4096  # states at a time


class Weights(NamedTuple):
    """W (V, H), b (V,), c (H,) of the energy."""

    W: Tensor
    b: Tensor
    c: Tensor


# The model.


def energy(v: Tensor, h: Tensor, weights: Weights) -> Tensor:
    """E(v, h) = - b'v - c'h - v'W h; (..., V) and (..., H) to (...) nats."""
    W, b, c = weights
    return -(v * b).sum(-1) - (h * c).sum(-1) - (v @ W * h).sum(-1)


def hidden_logits(v: Tensor, weights: Weights) -> Tensor:
    """log odds of h_j = 1 given v, c_j + (v'W)_j; (..., V) to (..., H)."""
    return v @ weights.W + weights.c


def visible_logits(h: Tensor, weights: Weights) -> Tensor:
    """log odds of v_i = 1 given h, b_i + (W h)_i; (..., H) to (..., V)."""
    return h @ weights.W.T + weights.b


def free_energy(v: Tensor, weights: Weights, logits: Tensor | None = None) -> Tensor:
    """F(v) = - b'v - sum_j softplus( c_j + (v'W)_j ); (..., V) to (...) nats.

    Args:
        logits: :func:`hidden_logits` of v, where they are known already.
    """
    logits = hidden_logits(v, weights) if logits is None else logits
    return -(v * weights.b).sum(-1) - F.softplus(logits).sum(-1)


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """Independent units, 1 where ``u``, uniform in [0, 1), lies below sigmoid(logits), else 0."""
    return (u < logits.sigmoid()).to(logits.dtype)


def gibbs(h: Tensor, u_v: Tensor, u_h: Tensor, visible_logits: Callable, hidden_logits: Callable) -> Tensor:
    """v after v | h, h | v, ..., v | h: ``len(u_v)`` draws of v with one of h between each two; seed 004 sec. 7.2.

    Args:
        h: (n, H).
        u_v: uniform noise, (k, n, V).
        u_h: uniform noise, (k - 1, n, H).
        visible_logits: h -> log odds of v given h, (n, V).
        hidden_logits: v -> log odds of h given v, (n, H).

    Returns:
        (n, V).
    """
    v = draw(visible_logits(h), u_v[0])
    for i in range(1, len(u_v)):
        h = draw(hidden_logits(v), u_h[i - 1])
        v = draw(visible_logits(h), u_v[i])
    return v


def pseudo_log_likelihood(v: Tensor, weights: Weights, pixels: Tensor | None = None) -> Tensor:
    """sum_i log p(v_i | v without i), nats, of binary v, (B, V) to (B,); Besag 1975.

    log p(v_i | v without i) = log sigmoid( F(v with i flipped) - F(v) ).

    Args:
        pixels: numbers of pixels, (B, m): V times the mean over these estimates the sum. All pixels if None.
    """
    pixels = torch.arange(v.shape[-1], device=v.device).expand(len(v), -1) if pixels is None else pixels
    logits = hidden_logits(v, weights)
    change = 1 - 2 * v.gather(-1, pixels)  # (B, m)
    flipped = logits.unsqueeze(1) + change.unsqueeze(-1) * weights.W[pixels]  # (B, m, H)
    rise = F.softplus(logits).sum(-1, keepdim=True) - F.softplus(flipped).sum(-1) - change * weights.b[pixels]
    return v.shape[-1] * F.logsigmoid(rise).mean(-1)


# The partition function.


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
    return torch.cat([-free_energy(s.to(first.b.dtype), first).double() for s in states(len(first.b), first.b.device)])


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
        s = s.to(b.dtype)
        weighted = part.to(b.dtype).unsqueeze(-1) * s
        other = hidden_logits(s, first).sigmoid()
        W += weighted.T @ other
        b += weighted.sum(0)
        c += part.to(c.dtype) @ other
    return log_Z, Weights(W, b, c) if first is weights else Weights(W.T, c, b)


def exact_draw(u: Tensor, u_other: Tensor, weights: Weights) -> Tensor:
    """Independent draws of p(v), by inverting the distribution function of the enumerated layer; (n, V).

    Args:
        u: uniform, (n,).
        u_other: uniform, (n, V): draws v given h where it is h that is enumerated.
    """
    first = smaller_layer_first(weights)
    masses = log_masses(weights).softmax(0).cumsum(0)
    index = torch.searchsorted(masses, u.double() * masses[-1], right=True).clamp(max=len(masses) - 1)
    bits = torch.arange(len(first.b), device=u.device)
    s = (index.unsqueeze(-1) >> bits & 1).to(first.b.dtype)
    return s if first is weights else draw(visible_logits(s, weights), u_other)


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
    weights: Weights, base: Tensor, chains: int, steps: int, generator: torch.Generator | None, progress: bool = False
) -> LogPartition:
    """log Z by annealed importance sampling from the base-rate model; Salakhutdinov & Murray 2008, sec. 4.1.

        f_beta(v) = exp( (1 - beta) base'v + beta b'v ) prod_j ( 1 + exp( beta (c_j + (v'W)_j) ) )

    f_0 is a product of Bernoulli(sigmoid(base)) times 2^H, so that log Z_0 = H log 2 + sum_i softplus(base_i).

    Args:
        base: log odds of the pixels of the base-rate model, (V,).
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
    log_Z0 = len(c) * math.log(2) + F.softplus(base.double()).sum()
    return log_mean(log_w + log_Z0)
