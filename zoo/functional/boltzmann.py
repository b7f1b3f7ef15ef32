"""The restricted Boltzmann machine: energy, conditional distributions and free energy.

    E(v, h)      = - b'v - c'h - v'W h,         p(v, h) = exp(-E(v, h)) / Z                      [Liao22]
    F(v)         = - log sum_h exp(-E(v, h)) = - b'v - sum_j softplus( c_j + (v'W)_j )
    p(h_j=1 | v) = sigmoid( c_j + (v'W)_j ),    p(v_i=1 | h) = sigmoid( b_i + (W h)_i )

The visible units v (..., V) and the hidden units h (..., H) are binary. W is (V, H), b is (V,), and c is (H,).
A prime is the transpose. Energies and logarithms are in nats. [Liao22] writes x for v, a for b, and b for c.

zoo/functional/gibbs.py runs Gibbs chains between the two layers. zoo/functional/partition.py computes log Z.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights(NamedTuple):
    """The parameters W (V, H), b (V,) and c (H,) of the energy."""

    W: Tensor
    b: Tensor
    c: Tensor

    def to(self, dtype: torch.dtype) -> "Weights":
        return Weights(*(t.to(dtype) for t in self))


def energy(v: Tensor, h: Tensor, weights: Weights) -> Tensor:
    """Return E(v, h) = - b'v - c'h - v'W h, (...) nats, for v (..., V) and h (..., H)."""
    W, b, c = weights
    return -(v * b).sum(-1) - (h * c).sum(-1) - (v @ W * h).sum(-1)


def hidden_logits(v: Tensor, weights: Weights) -> Tensor:
    """Return the log odds c_j + (v'W)_j of h_j = 1 given v, (..., H), for v (..., V)."""
    return v @ weights.W + weights.c


def visible_logits(h: Tensor, weights: Weights) -> Tensor:
    """Return the log odds b_i + (W h)_i of v_i = 1 given h, (..., V), for h (..., H)."""
    return h @ weights.W.T + weights.b


def free_energy(v: Tensor, weights: Weights, logits: Tensor | None = None) -> Tensor:
    """Return F(v) = - b'v - sum_j softplus( c_j + (v'W)_j ), (...) nats.

    Args:
        v: (..., V).
        weights: the parameters of the energy.
        logits: :func:`hidden_logits` of v, or None to compute them here.
    """
    logits = hidden_logits(v, weights) if logits is None else logits
    return -(v * weights.b).sum(-1) - F.softplus(logits).sum(-1)


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """Return independent units: 1 with probability sigmoid(logits), 0 otherwise. ``u`` is uniform noise in [0, 1)."""
    return (u < logits.sigmoid()).to(logits.dtype)


def pseudo_log_likelihood(v: Tensor, weights: Weights, pixels: Tensor | None = None) -> Tensor:
    """Return the pseudo-log-likelihood sum_i log p(v_i | other units of v), (B,) nats; Besag 1975.

        log p(v_i | other units of v) = log sigmoid( F(v with v_i flipped) - F(v) )

    Args:
        v: binary, (B, V).
        weights: the parameters of the energy.
        pixels: indices of m units of each example, (B, m), or None for all units. V times the mean over these units
            estimates the sum.
    """
    pixels = torch.arange(v.shape[-1], device=v.device).expand(len(v), -1) if pixels is None else pixels
    logits = hidden_logits(v, weights)
    change = 1 - 2 * v.gather(-1, pixels)  # (B, m)
    flipped = logits.unsqueeze(1) + change.unsqueeze(-1) * weights.W[pixels]  # (B, m, H)
    rise = F.softplus(logits).sum(-1, keepdim=True) - F.softplus(flipped).sum(-1) - change * weights.b[pixels]
    return v.shape[-1] * F.logsigmoid(rise).mean(-1)


# The learned parameters.


class Machine(NamedTuple):
    """The learned parameters W (V, H), b (V,) and c (H,), in the plain or in the centred form.

    The form is centred if ``mu`` (V,) is not None:

        plain      E(v, h) = - b'v - c'h - v'W h
        centred    E(v, h) = - b'(v - mu) - c'(h - 1/2) - (v - mu)'W(h - 1/2)

    Both forms describe the same family of distributions. The methods return the same quantities in both forms.
    """

    W: Tensor
    b: Tensor
    c: Tensor
    mu: Tensor | None = None

    def weights(self) -> Weights:
        """Return W, b and c of the plain form."""
        if self.mu is None:
            return Weights(self.W, self.b, self.c)
        with torch.autocast(self.W.device.type, enabled=False):  # in 16 bits, sums of hundreds of terms are inexact
            return Weights(self.W, self.b - self.W.sum(1) / 2, self.c - self.W.T @ self.mu)

    def hidden_logits(self, v: Tensor) -> Tensor:
        """Return the log odds of h_j = 1 given v, (..., H). In the centred form they are c + (v - mu)'W."""
        return hidden_logits(v if self.mu is None else v - self.mu, Weights(self.W, self.b, self.c))

    def visible_logits(self, h: Tensor) -> Tensor:
        """Return the log odds of v_i = 1 given h, (..., V). In the centred form they are b + W(h - 1/2)."""
        return visible_logits(h if self.mu is None else h - 0.5, Weights(self.W, self.b, self.c))

    def free_energy_difference(self, v: Tensor, v_model: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean F(v) - mean F(v_model), () nats, and the log odds of h given v_model, (n, H).

        The difference is differentiable in the learned parameters. If a_j are the log odds of h_j, the centred form has

            F(v) = - b'v - sum_j ( softplus(a_j) - a_j / 2 ) + constant

        The constant cancels in the difference. One matrix product handles both batches. This halves the size of the
        autograd graph.

        Args:
            v: data, (B, V).
            v_model: visible states of the model, (n, V).
        """
        logits = self.hidden_logits(torch.cat([v, v_model]))
        of_hidden = F.softplus(logits).sum(-1)
        if self.mu is not None:
            of_hidden = of_hidden - logits.sum(-1) / 2
        sign = torch.cat([torch.full_like(x[:, 0], s / len(x)) for x, s in ((v, 1), (v_model, -1))])
        difference = -((v.mean(0) - v_model.mean(0)) * self.b).sum() - (sign * of_hidden).sum()
        return difference, logits[len(v) :]
