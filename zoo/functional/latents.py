"""Posterior families q(z | x) of D independent latents: Gaussian, Bernoulli and categorical.

An object of a family holds the parameters of q. Its methods draw z from noise, and compute the density of q and the
KL divergence from q to the prior. The prior is N(0, I), Bernoulli(1/2), or uniform over K categories. A latent of K
categories is a one-hot vector.

A draw of a discrete latent z is a function of continuous perturbed logits s. With logits l and u uniform in [0, 1):

    Bernoulli      z = 1[s > 0],                s = l + log u - log(1 - u)           logistic noise
    categorical    z = one-hot(argmax_k s_k),   s_k = l_k + G_k,  G = -log(-log u)   Gumbel-max, [Xu18b], [Xu18a]

A relaxed latent is sigmoid(s / tau) or softmax(s / tau) with a temperature tau (Maddison et al. 2017; Jang et al.
2017). [Xu18b] and [Xu18a] print the softmax with exp(l_k + G_k) / tau, where tau cancels. The correct form is
exp((l_k + G_k) / tau), normalised over k, with a separate G_k for each category.

``perturb_given`` draws s given z (Tucker et al. 2017, appendix C; Grathwohl et al. 2018, appendix B).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.functional.densities import kl_standard_normal, log_bernoulli, log_normal, reparameterise
from zoo.functional.noise import rand, randn

TINY = 1e-7  # uniform noise is clamped to [TINY, 1 - TINY], because its logarithms are infinite at 0 and 1


def logistic(u: Tensor) -> Tensor:
    """Return logistic noise log u - log(1 - u) from uniform noise ``u``."""
    u = u.clamp(TINY, 1 - TINY)
    return u.log() - (-u).log1p()


def gumbel(u: Tensor) -> Tensor:
    """Return Gumbel noise -log(-log u) from uniform noise ``u``."""
    return -(-u.clamp(TINY, 1 - TINY).log()).log()


def one_hot(k: Tensor, num_categories: int, dtype: torch.dtype) -> Tensor:
    """Return one-hot vectors (..., K) of categories ``k`` (...), integers from 0 to K - 1.

    ``torch.nn.functional.one_hot`` reads all values of ``k``, except on a GPU.
    """
    return (k[..., None] == torch.arange(num_categories, device=k.device)).to(dtype)


class Gaussian(NamedTuple):
    """The posterior N(mu, diag exp(logvar)); ``mu`` and ``logvar`` are (..., D)."""

    mu: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, out: Tensor, shape: tuple[int, ...]) -> "Gaussian":
        """Return the posterior of a network's output (..., 2 D), mu followed by logvar. ``shape`` is (D,)."""
        return cls(*out.chunk(2, dim=-1))

    @staticmethod
    def noise(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Return standard normal eps."""
        return randn(*shape, generator=generator, device=device)

    @staticmethod
    def draw_prior(eps: Tensor) -> Tensor:
        """Return a draw of the prior N(0, I)."""
        return eps

    def draw(self, eps: Tensor) -> Tensor:
        """Return z = mu + sigma eps, differentiable in mu and logvar."""
        return reparameterise(self.mu, self.logvar, eps)

    def log_probs(self, z: Tensor) -> Tensor:
        """Return log q(z_d), nats, (..., D)."""
        return log_normal(z[..., None], self.mu[..., None], self.logvar[..., None])

    def score_square(self, z: Tensor) -> Tensor:
        """Return the squared norm of the gradient of log q(z_d) with respect to (mu_d, logvar_d), (..., D)."""
        eps = (z - self.mu) * (-self.logvar / 2).exp()
        return eps.square() * (-self.logvar).exp() + (eps.square() - 1).square() / 4

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log N(z | 0, I), nats, (...)."""
        return log_normal(z, torch.zeros_like(z), torch.zeros_like(z))

    def kls(self) -> Tensor:
        """Return KL(q(z_d) || N(0, 1)), nats, (..., D)."""
        return kl_standard_normal(self.mu[..., None], self.logvar[..., None])

    def mode(self) -> Tensor:
        """Return the most probable z."""
        return self.mu


class Bernoulli(NamedTuple):
    """The posterior of independent z_d in {0, 1} with log odds ``logits``, (..., D)."""

    logits: Tensor

    @classmethod
    def of(cls, out: Tensor, shape: tuple[int, ...]) -> "Bernoulli":
        """Return the posterior of a network's output (..., D), the logits. ``shape`` is (D,)."""
        return cls(out.unflatten(-1, shape))

    @staticmethod
    def noise(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Return uniform u in [0, 1)."""
        return rand(*shape, generator=generator, device=device)

    @staticmethod
    def draw_prior(u: Tensor) -> Tensor:
        """Return a draw of the prior Bernoulli(1/2)."""
        return Bernoulli(torch.zeros_like(u)).draw(u)

    def perturb(self, u: Tensor) -> Tensor:
        """Return the perturbed logits s = l + logistic noise. z is 1 where s is positive."""
        return self.logits + logistic(u)

    def harden(self, s: Tensor) -> Tensor:
        """Return z = 1[s > 0]."""
        return (s > 0).to(s.dtype)

    def soften(self, s: Tensor, tau: Tensor | float) -> Tensor:
        """Return sigmoid(s / tau)."""
        return (s / tau).sigmoid()

    def perturb_given(self, z: Tensor, v: Tensor) -> Tensor:
        """Return a draw of s given z, from uniform noise ``v``, differentiable in the logits.

        ``v`` selects a value u from the part of [0, 1) in which u gives this z.
        """
        off = (-self.logits).sigmoid()  # P(z = 0), because z = 0 where u <= off
        u = torch.where(z > 0, off + v * (1 - off), v * off)
        return self.logits + logistic(u)

    def draw(self, u: Tensor) -> Tensor:
        """Return z in {0, 1}, without a gradient."""
        return self.harden(self.perturb(u)).detach()

    def log_probs(self, z: Tensor) -> Tensor:
        """Return log q(z_d), nats, (..., D)."""
        return log_bernoulli(z[..., None], self.logits[..., None])

    def score(self, z: Tensor) -> Tensor:
        """Return the score, the derivative of log q(z) with respect to the logits, (..., D)."""
        return z - self.logits.sigmoid()

    def score_square(self, z: Tensor) -> Tensor:
        """Return the square of the score, (..., D)."""
        return self.score(z).square()

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z) = -D log 2, nats, (...)."""
        return torch.full_like(z[..., 0], -z.shape[-1] * math.log(2))

    def kls(self) -> Tensor:
        """Return KL(q(z_d) || Bernoulli(1/2)) = log 2 - H(q(z_d)), nats, (..., D)."""
        entropy = F.softplus(self.logits) - self.logits * self.logits.sigmoid()
        return math.log(2) - entropy

    def mode(self) -> Tensor:
        """Return the most probable z."""
        return self.harden(self.logits)


class Categorical(NamedTuple):
    """The posterior of independent one-hot z_d over K categories.

    ``logits`` (..., D, K) are unnormalised log probabilities.
    """

    logits: Tensor

    @classmethod
    def of(cls, out: Tensor, shape: tuple[int, ...]) -> "Categorical":
        """Return the posterior of a network's output (..., D K), the logits. ``shape`` is (D, K)."""
        return cls(out.unflatten(-1, shape))

    @staticmethod
    def noise(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Return uniform u in [0, 1)."""
        return rand(*shape, generator=generator, device=device)

    @staticmethod
    def draw_prior(u: Tensor) -> Tensor:
        """Return a draw of the prior, the uniform distribution over the categories."""
        return Categorical(torch.zeros_like(u)).draw(u)

    def perturb(self, u: Tensor) -> Tensor:
        """Return the perturbed logits s = log_softmax(l) + Gumbel noise. z is one-hot at the largest s_k."""
        return self.logits.log_softmax(-1) + gumbel(u)

    def harden(self, s: Tensor) -> Tensor:
        """Return z = one-hot(argmax_k s_k)."""
        return one_hot(s.argmax(-1), s.shape[-1], s.dtype)

    def soften(self, s: Tensor, tau: Tensor | float) -> Tensor:
        """Return softmax(s / tau)."""
        return (s / tau).softmax(-1)

    def perturb_given(self, z: Tensor, v: Tensor) -> Tensor:
        """Return a draw of s given z, from uniform noise ``v``, differentiable in the logits.

        The s_k of the category in z is the largest and follows Gumbel(0). Each other s_k follows Gumbel(log p_k),
        truncated to lie below the largest.
        """
        log_p = self.logits.log_softmax(-1)
        largest = (gumbel(v) * z).sum(-1, keepdim=True)
        others = -torch.logaddexp(-gumbel(v) - log_p, -largest)
        return torch.where(z > 0, largest, others)

    def draw(self, u: Tensor) -> Tensor:
        """Return one-hot z, without a gradient."""
        return self.harden(self.perturb(u)).detach()

    def log_probs(self, z: Tensor) -> Tensor:
        """Return log q(z_d), nats, (..., D)."""
        return (z * self.logits.log_softmax(-1)).sum(-1)

    def score(self, z: Tensor) -> Tensor:
        """Return the score, the derivative of log q(z) with respect to the logits, (..., D, K)."""
        return z - self.logits.softmax(-1)

    def score_square(self, z: Tensor) -> Tensor:
        """Return the square of the score, summed over the categories, (..., D)."""
        return self.score(z).square().sum(-1)

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z) = -D log K, nats, (...)."""
        D, K = z.shape[-2:]
        return torch.full_like(z[..., 0, 0], -D * math.log(K))

    def kls(self) -> Tensor:
        """Return KL(q(z_d) || uniform) = log K - H(q(z_d)), nats, (..., D)."""
        log_p = self.logits.log_softmax(-1)
        return (log_p.exp() * (log_p + math.log(log_p.shape[-1]))).sum(-1)

    def mode(self) -> Tensor:
        """Return the most probable z."""
        return self.harden(self.logits)


def log_ratio(z: Tensor, q) -> Tensor:
    """Return log q(z) - log p(z), (k, B) nats, for draws z (k, B, ...) of q. Its mean over k estimates KL(q || p)."""
    return q.log_probs(z).sum(-1) - q.log_prior(z)


LATENTS = {"gaussian": Gaussian, "bernoulli": Bernoulli, "categorical": Categorical}
