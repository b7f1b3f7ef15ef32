"""The restricted Boltzmann machine itself: its energy, its conditionals, its free energy.

    E(v, h)      = - b'v - c'h - v'W h,         p(v, h) = exp(-E(v, h)) / Z                      seed 003
    F(v)         = - log sum_h exp(-E(v, h)) = - b'v - sum_j softplus( c_j + (v'W)_j )
    p(h_j=1 | v) = sigmoid( c_j + (v'W)_j ),    p(v_i=1 | h) = sigmoid( b_i + (W h)_i )

v (..., V) and h (..., H) are binary, W is (V, H), b (V,), c (H,), u uniform in [0, 1). Energies and logarithms are in
nats. Seed 003 writes x for v, and a, b for the biases. Gibbs chains between the two layers are in
zoo/functional/gibbs.py, log Z is in zoo/functional/partition.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights(NamedTuple):
    """W (V, H), b (V,), c (H,) of the energy."""

    W: Tensor
    b: Tensor
    c: Tensor

    def to(self, dtype: torch.dtype) -> "Weights":
        return Weights(*(t.to(dtype) for t in self))


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


# What is learnt.


class Machine(NamedTuple):
    """W (V, H), b (V,), c (H,) as they are learnt: of the energy above or, where ``mu`` (V,) is given, centred.

        E(v, h) = - b'(v - mu) - c'(h - 1/2) - (v - mu)'W(h - 1/2)

    Both forms are the same family; what a machine returns is the same in either.
    """

    W: Tensor
    b: Tensor
    c: Tensor
    mu: Tensor | None = None

    def weights(self) -> Weights:
        """W, b and c of E = - b'v - c'h - v'W h."""
        if self.mu is None:
            return Weights(self.W, self.b, self.c)
        with torch.autocast(self.W.device.type, enabled=False):  # hundreds of terms, of which 16 bits lose too much
            return Weights(self.W, self.b - self.W.sum(1) / 2, self.c - self.W.T @ self.mu)

    def hidden_logits(self, v: Tensor) -> Tensor:
        """log odds of h_j = 1 given v, (..., V) to (..., H): c + (v - mu)'W in the centred form."""
        return hidden_logits(v if self.mu is None else v - self.mu, Weights(self.W, self.b, self.c))

    def visible_logits(self, h: Tensor) -> Tensor:
        """log odds of v_i = 1 given h, (..., H) to (..., V): b + W(h - 1/2) in the centred form."""
        return visible_logits(h if self.mu is None else h - 0.5, Weights(self.W, self.b, self.c))

    def free_energy_difference(self, v: Tensor, v_model: Tensor) -> tuple[Tensor, Tensor]:
        """mean F(v) - mean F(v'), as a function of what is learnt; () nats. And log odds of h given v', (n, H).

        In the centred form F(v) = - b'v - sum_j ( softplus(a_j) - a_j / 2 ) + a constant, which the difference loses; a
        are the log odds of h. Both batches go through one product, so that autograd has half the nodes to walk.

        Args:
            v: (B, V).
            v_model: v', (n, V).
        """
        logits = self.hidden_logits(torch.cat([v, v_model]))
        of_hidden = F.softplus(logits).sum(-1)
        if self.mu is not None:
            of_hidden = of_hidden - logits.sum(-1) / 2
        sign = torch.cat([torch.full_like(x[:, 0], s / len(x)) for x, s in ((v, 1), (v_model, -1))])
        difference = -((v.mean(0) - v_model.mean(0)) * self.b).sum() - (sign * of_hidden).sum()
        return difference, logits[len(v) :]
