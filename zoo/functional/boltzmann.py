"""The restricted Boltzmann machine: energy, conditional distributions and free energy.

    E(v, h)      = - b'v - c'h - v'W h,         p(v, h) = exp(-E(v, h)) / Z                      [Liao22]
    F(v)         = - log sum_h exp(-E(v, h)) = - b'v - sum_j softplus( c_j + (v'W)_j )
    p(h_j=1 | v) = sigmoid( c_j + (v'W)_j ),    p(v_i=1 | h) = sigmoid( b_i + (W h)_i )

The visible units v (..., V) and the hidden units h (..., H) are binary. W is (V, H), b is (V,), and c is (H,).
A prime is the transpose. Energies and logarithms are in nats. [Liao22] writes x for v, a for b, and b for c.
zoo/functional/visible.py has the units and Gaussian visible units, which add a term r(v) to E and to F.

zoo/functional/gibbs.py runs Gibbs chains between the two layers. zoo/functional/partition.py computes log Z.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.functional.visible import BINARY, Gaussian, Visible, below


class Weights(NamedTuple):
    """The parameters W (V, H), b (V,) and c (H,) of the energy."""

    W: Tensor
    b: Tensor
    c: Tensor

    def to(self, dtype: torch.dtype) -> "Weights":
        return Weights(*(t.to(dtype) for t in self))


def energy(v: Tensor, h: Tensor, weights: Weights, visible: Visible = BINARY) -> Tensor:
    """Return E(v, h) = r(v) - b'v - c'h - v'W h, (...) nats, for v (..., V) and h (..., H)."""
    W, b, c = weights
    return visible.energy(v) - (v * b).sum(-1) - (h * c).sum(-1) - (v @ W * h).sum(-1)


def hidden_logits(v: Tensor, weights: Weights) -> Tensor:
    """Return the log odds c_j + (v'W)_j of h_j = 1 given v, (..., H), for v (..., V)."""
    return v @ weights.W + weights.c


def visible_logits(h: Tensor, weights: Weights) -> Tensor:
    """Return the parameters eta_i = b_i + (W h)_i of p(v_i | h), (..., V), for h (..., H).

    They are the log odds of v_i = 1 if the units are binary.
    """
    return h @ weights.W.T + weights.b


def free_energy(v: Tensor, weights: Weights, logits: Tensor | None = None, visible: Visible = BINARY) -> Tensor:
    """Return F(v) = r(v) - b'v - sum_j softplus( c_j + (v'W)_j ), (...) nats.

    Args:
        v: (..., V).
        weights: the parameters of the energy.
        logits: :func:`hidden_logits` of v, or None to compute them here.
        visible: the kind of the visible units.
    """
    logits = hidden_logits(v, weights) if logits is None else logits
    return visible.energy(v) - (v * weights.b).sum(-1) - F.softplus(logits).sum(-1)


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """Return independent units: 1 with probability sigmoid(logits), 0 otherwise. ``u`` is uniform noise in [0, 1)."""
    return below(u, logits.sigmoid()).to(logits.dtype)


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
    """The parameters W (V, H), b (V,) and c (H,), in the plain or in the centred form, and the visible units.

    The form is centred if ``mu`` (V,) is not None:

        plain      E(v, h) = - b'v - c'h - v'W h
        centred    E(v, h) = - b'(v - mu) - c'(h - 1/2) - (v - mu)'W(h - 1/2)

    Both forms describe the same family of distributions. The methods return the same quantities in both forms.
    Gaussian visible units add r(v) to both energies.
    """

    W: Tensor
    b: Tensor
    c: Tensor
    mu: Tensor | None = None
    visible: Visible = BINARY

    @classmethod
    def of_means(cls, W: Tensor, b: Tensor, c: Tensor, mu: Tensor | None, visible: Gaussian) -> "Machine":
        """Return the machine with the means b + W h of v given h, the form of Cho, Ilin & Raiko 2011."""
        return cls(W / visible.variance[:, None], b / visible.variance, c, mu, visible)

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
        """Return the parameters eta of p(v | h), (..., V). In the centred form they are b + W(h - 1/2)."""
        return visible_logits(h if self.mu is None else h - 0.5, Weights(self.W, self.b, self.c))

    def free_energy_difference(
        self, v: Tensor, v_model: Tensor, others: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean F(v) - mean F(v_model), () nats, and p(h = 1 | .) of ``v_model`` (n, H) and ``others`` (m, H).

        The difference is differentiable in the learned parameters. The probabilities are not differentiable. One matrix
        product computes the difference and the probabilities.

        Args:
            v: data, (B, V).
            v_model: visible states of the model, (n, V).
            others: further visible states, which do not enter the difference, (m, V). None means no states.
        """
        n = len(v) + len(v_model)
        with torch.no_grad():
            x = torch.cat([v, v_model] if others is None else [v, v_model, others.to(v)])
            x = x if self.mu is None else x.sub_(self.mu)
            product = x @ self.W  # in 16 bits under autocast
            logits = product.add_(self.c) if product.dtype == self.c.dtype else product + self.c
            p = logits.sigmoid()
            half = p[:n] - 0.5
            sign = torch.cat([torch.full_like(t[:, 0], s / len(t)) for t, s in ((v, 1), (v_model, -1))])
            of_b = v_model.mean(0) - v.mean(0)  # gradient of the difference with respect to b
            value = (of_b * self.b).sum() - (sign * self._of_hidden(logits[:n], half)).sum()
            statistic = p[:n] if self.mu is None else half
        difference = _WithStatistics.apply(value, self.W, self.b, self.c, of_b, x[:n], statistic, sign, product.dtype)
        return difference + self.visible.energy_difference(v, v_model), p[len(v) : n], p[n:]

    def _of_hidden(self, a: Tensor, half: Tensor) -> Tensor:
        """Return the term of the hidden units in -F(v), up to a constant, (n,) nats.

        With p = sigmoid(a), softplus(a) = a / 2 + |a| / 2 - log max(p, 1 - p), and max(p, 1 - p) = 1/2 + |p - 1/2|.
        F.softplus would take longer than all other operations on the hidden units together.

        Args:
            a: log odds of the hidden units, (n, H).
            half: p - 1/2, (n, H).
        """
        likely = half.abs().add_(0.5)
        # Take one logarithm for the product of 100 factors. Each is at least 1/2, so float32 can hold the product.
        products = torch.stack([part.prod(-1) for part in likely.split(100, -1)], -1)
        found = a.abs().sum(-1) / 2 - products.log().sum(-1)
        return found if self.mu is not None else found + a.sum(-1) / 2


class _WithStatistics(torch.autograd.Function):
    """Return ``value``, the sum of sign_i F(v_i), with the gradient of F in closed form.

    Autograd would compute p(h = 1 | v) a second time, as the derivative of softplus.

    Args:
        value: sum of sign_i F(v_i), () nats.
        W, b, c: the learned parameters.
        of_b: gradient with respect to b, (V,).
        x: visible states v_i, in the centred form minus mu, (n, V).
        statistic: p(h = 1 | v_i), in the centred form minus 1/2, (n, H).
        sign: weights of F(v_i), (n,).
        dtype: precision of the matrix product.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(value, W, b, c, of_b, x, statistic, sign, dtype):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        *_, of_b, x, statistic, sign, ctx.dtype = inputs
        ctx.save_for_backward(of_b, x, statistic, sign)

    @staticmethod
    def backward(ctx, gradient):
        of_b, x, statistic, sign = ctx.saved_tensors
        signed = (-gradient * sign)[:, None] * statistic
        of_W = x.T.to(ctx.dtype) @ signed.to(ctx.dtype)
        return None, of_W.to(x.dtype), gradient * of_b, signed.sum(0), None, None, None, None, None
