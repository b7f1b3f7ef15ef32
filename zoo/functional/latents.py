"""What a posterior q(z | x) can be: Gaussian, Bernoulli or categorical, D independent latents each.

Each is its parameters, a draw as a function of noise, a density, and its divergence from the prior of the same family:
N(0, I), Bernoulli(1/2), or the uniform distribution over K categories. Latents of K categories are one-hot vectors.

Discrete latents come from continuous ones by a threshold: with u uniform,

    Bernoulli      z = 1[s > 0],                s = l + log u - log(1 - u)           logistic noise
    categorical    z = one-hot(argmax_k s_k),   s_k = l_k + G_k,  G = -log(-log u)   Gumbel-max, seeds 000 and 001

with l the logits; and a temperature softens the threshold to sigmoid(s / tau) or softmax(s / tau) (Maddison et al.
2017; Jang et al. 2017). Seeds 000 and 001 print the tempered softmax otherwise: each class has a G_k of its own, and
the whole of l_k + G_k is divided by tau, inside the exponent. Given z, s can be drawn again (Tucker et al. 2017,
appendix C; Grathwohl et al. 2018, appendix B): that is ``perturb_given``.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.functional.densities import kl_standard_normal, log_bernoulli, log_normal, reparameterise
from zoo.functional.noise import rand, randn

TINY = 1e-7  # uniform noise is kept this far from 0 and 1, where its logarithms are infinite


def logistic(u: Tensor) -> Tensor:
    """Logistic noise from uniform noise: log u - log(1 - u)."""
    u = u.clamp(TINY, 1 - TINY)
    return u.log() - (-u).log1p()


def gumbel(u: Tensor) -> Tensor:
    """Gumbel noise from uniform noise: -log(-log u)."""
    return -(-u.clamp(TINY, 1 - TINY).log()).log()


class Gaussian(NamedTuple):
    """N(mu, diag exp(logvar)), (..., D) each."""

    mu: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, out: Tensor, shape: tuple[int, ...]) -> "Gaussian":
        """From what a network says, (..., 2 D): mu, then logvar. ``shape`` is (D,)."""
        return cls(*out.chunk(2, dim=-1))

    @staticmethod
    def noise(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Standard normal eps."""
        return randn(*shape, generator=generator, device=device)

    @staticmethod
    def draw_prior(eps: Tensor) -> Tensor:
        """A draw of N(0, I)."""
        return eps

    def draw(self, eps: Tensor) -> Tensor:
        """z = mu + sigma eps: differentiable in both."""
        return reparameterise(self.mu, self.logvar, eps)

    def log_probs(self, z: Tensor) -> Tensor:
        """log q(z_d), nats, (..., D)."""
        return log_normal(z[..., None], self.mu[..., None], self.logvar[..., None])

    def score_square(self, z: Tensor) -> Tensor:
        """The square of the gradient of log q(z_d) by mu_d and logvar_d, (..., D)."""
        eps = (z - self.mu) * (-self.logvar / 2).exp()
        return eps.square() * (-self.logvar).exp() + (eps.square() - 1).square() / 4

    def log_prior(self, z: Tensor) -> Tensor:
        """log N(z | 0, I), nats, (...)."""
        return log_normal(z, torch.zeros_like(z), torch.zeros_like(z))

    def kls(self) -> Tensor:
        """KL(q(z_d) || N(0, 1)), nats, (..., D)."""
        return kl_standard_normal(self.mu[..., None], self.logvar[..., None])

    def mode(self) -> Tensor:
        """The most probable z."""
        return self.mu


class Bernoulli(NamedTuple):
    """Independent z_d in {0, 1} with log odds ``logits``, (..., D)."""

    logits: Tensor

    @classmethod
    def of(cls, out: Tensor, shape: tuple[int, ...]) -> "Bernoulli":
        """From what a network says, (..., D): logits. ``shape`` is (D,)."""
        return cls(out.unflatten(-1, shape))

    @staticmethod
    def noise(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Uniform u in [0, 1)."""
        return rand(*shape, generator=generator, device=device)

    @staticmethod
    def draw_prior(u: Tensor) -> Tensor:
        """A draw of Bernoulli(1/2)."""
        return Bernoulli(torch.zeros_like(u)).draw(u)

    def perturb(self, u: Tensor) -> Tensor:
        """The perturbed logits s = l + logistic noise; z = 1 where they are positive."""
        return self.logits + logistic(u)

    def harden(self, s: Tensor) -> Tensor:
        """z = 1[s > 0]."""
        return (s > 0).to(s.dtype)

    def soften(self, s: Tensor, tau: Tensor | float) -> Tensor:
        """sigmoid(s / tau)."""
        return (s / tau).sigmoid()

    def perturb_given(self, z: Tensor, v: Tensor) -> Tensor:
        """s given z, from uniform noise v: the part of u's interval that leads to z, differentiable in the logits."""
        off = (-self.logits).sigmoid()  # P(z = 0): u <= off
        u = torch.where(z > 0, off + v * (1 - off), v * off)
        return self.logits + logistic(u)

    def draw(self, u: Tensor) -> Tensor:
        """z in {0, 1}, without a gradient."""
        return self.harden(self.perturb(u)).detach()

    def log_probs(self, z: Tensor) -> Tensor:
        """log q(z_d), nats, (..., D)."""
        return log_bernoulli(z[..., None], self.logits[..., None])

    def score(self, z: Tensor) -> Tensor:
        """The derivative of log q(z) by the logits, (..., D)."""
        return z - self.logits.sigmoid()

    def score_square(self, z: Tensor) -> Tensor:
        """The square of that, (..., D)."""
        return self.score(z).square()

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) = -D log 2, nats."""
        return torch.full_like(z[..., 0], -z.shape[-1] * math.log(2))

    def kls(self) -> Tensor:
        """KL(q(z_d) || Bernoulli(1/2)) = log 2 - H(q(z_d)), nats, (..., D)."""
        entropy = F.softplus(self.logits) - self.logits * self.logits.sigmoid()
        return math.log(2) - entropy

    def mode(self) -> Tensor:
        """The most probable z."""
        return self.harden(self.logits)


class Categorical(NamedTuple):
    """Independent one-hot z_d of K categories with unnormalised log probabilities ``logits``, (..., D, K)."""

    logits: Tensor

    @classmethod
    def of(cls, out: Tensor, shape: tuple[int, ...]) -> "Categorical":
        """From what a network says, (..., D K): logits. ``shape`` is (D, K)."""
        return cls(out.unflatten(-1, shape))

    @staticmethod
    def noise(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Uniform u in [0, 1)."""
        return rand(*shape, generator=generator, device=device)

    @staticmethod
    def draw_prior(u: Tensor) -> Tensor:
        """A draw of the uniform distribution."""
        return Categorical(torch.zeros_like(u)).draw(u)

    def perturb(self, u: Tensor) -> Tensor:
        """The perturbed logits s = l + Gumbel noise; z is where they are largest."""
        return self.logits.log_softmax(-1) + gumbel(u)

    def harden(self, s: Tensor) -> Tensor:
        """z = one-hot(argmax_k s_k)."""
        return (s.argmax(-1, keepdim=True) == torch.arange(s.shape[-1], device=s.device)).to(s.dtype)

    def soften(self, s: Tensor, tau: Tensor | float) -> Tensor:
        """softmax(s / tau)."""
        return (s / tau).softmax(-1)

    def perturb_given(self, z: Tensor, v: Tensor) -> Tensor:
        """s given z, from uniform noise v: the largest is Gumbel(0), the others are Gumbels cut off below it."""
        log_p = self.logits.log_softmax(-1)
        largest = (gumbel(v) * z).sum(-1, keepdim=True)
        others = -torch.logaddexp(-gumbel(v) - log_p, -largest)
        return torch.where(z > 0, largest, others)

    def draw(self, u: Tensor) -> Tensor:
        """One-hot z, without a gradient."""
        return self.harden(self.perturb(u)).detach()

    def log_probs(self, z: Tensor) -> Tensor:
        """log q(z_d), nats, (..., D)."""
        return (z * self.logits.log_softmax(-1)).sum(-1)

    def score(self, z: Tensor) -> Tensor:
        """The derivative of log q(z) by the logits, (..., D, K)."""
        return z - self.logits.softmax(-1)

    def score_square(self, z: Tensor) -> Tensor:
        """Its square, summed over the categories, (..., D)."""
        return self.score(z).square().sum(-1)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) = -D log K, nats."""
        D, K = z.shape[-2:]
        return torch.full_like(z[..., 0, 0], -D * math.log(K))

    def kls(self) -> Tensor:
        """KL(q(z_d) || uniform) = log K - H(q(z_d)), nats, (..., D)."""
        log_p = self.logits.log_softmax(-1)
        return (log_p.exp() * (log_p + math.log(log_p.shape[-1]))).sum(-1)

    def mode(self) -> Tensor:
        """The most probable z."""
        return self.harden(self.logits)


def log_ratio(z: Tensor, q) -> Tensor:
    """log q(z) - log p(z), one draw of KL(q || p); z (k, B, ...) to (k, B) nats."""
    return q.log_probs(z).sum(-1) - q.log_prior(z)


LATENTS = {"gaussian": Gaussian, "bernoulli": Bernoulli, "categorical": Categorical}
