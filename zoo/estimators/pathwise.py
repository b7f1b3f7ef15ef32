"""The pathwise estimator: z a differentiable function of noise, grad E[f(z(eps))] = E[grad f(z(eps))].

Seeds 000 and 001 ("re-parameterization trick"), 003 (learning in amortised variational inference); Kingma & Welling
2014. 003 lists the families it extends to, among them location and scale (Gaussian, Laplace, Student's t) and
compositions (log-normal, Dirichlet). The Gaussian one is :class:`zoo.functional.latents.Gaussian`; the others are
those of torch.distributions, which differentiates gamma draws, and with them Dirichlet ones, implicitly.
"""

import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.checks.errors import UserError


def antithetic(eps: Tensor) -> Tensor:
    """Noise and its mirror image, (k, ...) to (2 k, ...): draws whose errors cancel where f is nearly linear in z."""
    return torch.cat([eps, -eps])


def rsample(q: Distribution, shape: tuple[int, ...], seed: int) -> Tensor:
    """A re-parameterised draw of any torch.distributions family that has one, as a function of a seed.

    torch draws these from its global generators; here they are set for the draw, and put back.

    Args:
        q: a distribution with ``has_rsample``: Laplace, StudentT, LogNormal, Gamma, Dirichlet, ...
        shape: of the draws, before the shape of ``q``.
        seed: the same one gives the same draw.

    Returns:
        (*shape, ...): differentiable in the parameters of ``q``.

    Raises:
        UserError: for a family without a re-parameterisation, such as Bernoulli.
    """
    if not q.has_rsample:
        raise UserError(f"{type(q).__name__} has no re-parameterisation; use the score function or a relaxation")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return q.rsample(shape)
