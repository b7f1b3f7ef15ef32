"""The pathwise gradient estimator, also called the re-parameterisation trick.

The draw z is a differentiable function of noise eps, and the gradient is

    grad E[f(z(eps))] = E[grad f(z(eps))]

Sources: Kingma & Welling 2014; [Xu18a] and [Xu18b], "Re-parameterization trick"; [Liao22], "Reparameterization Trick".
[Liao22] lists families beyond the Gaussian: location-scale families (Laplace, Student's t), compositions (log-normal)
and implicit differentiation (Dirichlet). :class:`zoo.functional.latents.Gaussian` is the Gaussian case. The other
families come from torch.distributions, which differentiates gamma and Dirichlet draws implicitly.
"""

import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.checks.errors import UserError


def antithetic(eps: Tensor) -> Tensor:
    """Return the noise and its negative, (k, ...) to (2 k, ...).

    If the pathwise gradient is nearly linear in the noise, the errors of the two draws of a pair nearly cancel.
    """
    return torch.cat([eps, -eps])


def rsample(q: Distribution, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return a re-parameterised draw of a torch.distributions family, as a function of a seed.

    torch draws from its global generators. This function seeds the generators for the draw and restores their states
    afterwards.

    Args:
        q: a distribution with ``has_rsample``: Laplace, StudentT, LogNormal, Gamma, Dirichlet, ...
        shape: shape of the draws. The result has these axes first, and then the axes of ``q``.
        seed: seed of the draw. Equal seeds give equal draws.

    Returns:
        draws of ``q``, (*shape, ...), differentiable in the parameters of ``q``.

    Raises:
        UserError: for a family without a re-parameterisation, such as Bernoulli.
    """
    if not q.has_rsample:
        raise UserError(f"{type(q).__name__} has no re-parameterisation; use the score function or a relaxation")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return q.rsample(shape)
