"""Gradients of discrete latents by way of continuous ones.

With s the perturbed logits (zoo/functional/latents.py), H the threshold and z = H(s), sigma_tau the soft threshold at
temperature tau:

    gumbel_softmax     grad f(sigma_tau(s))                                  biased; Maddison et al., Jang et al. 2017
    straight_through   f at H(s), its derivative by z passed to sigma_tau(s) biased; Jang et al. 2017, sec. 2.2
    relax              [f(z) - c(s~)] grad log q(z) + grad c(s) - grad c(s~) unbiased; Grathwohl et al. 2018, eq. 8

with s~ drawn given z. REBAR (Tucker et al. 2017, eq. 7) is relax with c(s) = eta f(sigma_tau(s)); RELAX adds a learned
network to it. Whatever c is, the estimator is unbiased, so its parameters are free to minimise the variance.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.estimators.score_function import score_function, with_gradient


def gumbel_softmax(f: Callable[[Tensor], Tensor], q, u: Tensor, tau: Tensor | float) -> Tensor:
    """The cost of relaxed latents. Its value, too, is that of the relaxation.

    Args:
        f: z -> cost, (k, B, D) or (k, B, D, K) to (k, B).
        q: a Bernoulli or Categorical of zoo.functional.latents.
        u: uniform noise, (k, B, D) or (k, B, D, K).
        tau: temperature, positive: as it falls the bias falls and the variance grows.

    Returns:
        (k, B).
    """
    return f(q.soften(q.perturb(u), tau))


def straight_through(f: Callable[[Tensor], Tensor], q, u: Tensor, tau: Tensor | float) -> Tensor:
    """The cost of hard latents with the gradient of soft ones; arguments as in :func:`gumbel_softmax`."""
    s = q.perturb(u)
    return f(with_gradient(q.harden(s).detach(), q.soften(s, tau)))


def relax(f: Callable[[Tensor], Tensor], control: Callable[[Tensor], Tensor], q, u: Tensor, v: Tensor) -> Tensor:
    """The cost at hard latents, with the control variate's gradient.

    Args:
        f: z -> cost, (k, B, ...) to (k, B).
        control: c, s -> (k, B); holds fixed whatever else f depends on, which gets its gradient from f(z) alone.
        q: a Bernoulli or Categorical.
        u, v: uniform noise for s and for s~, the shape of the latents.

    Returns:
        (k, B): the cost at the hard latents.
    """
    s = q.perturb(u)
    z = q.harden(s).detach()
    cost, conditional = f(z), control(q.perturb_given(z, v))
    return with_gradient(score_function(cost, q.log_probs(z).sum(-1), baseline=conditional), control(s) - conditional)


def relax_variance(
    f: Callable[[Tensor], Tensor], control: Callable[[Tensor], Tensor], q, u: Tensor, v: Tensor
) -> Tensor:
    """What the parameters of the control variate minimise: E|g|^2 of the estimate g of the gradient by q's logits.

    Its mean does not depend on them, so this is the variance up to a constant (Grathwohl et al. 2018, sec. 3.3). Taken
    by the logits, not by the weights behind them.

    Returns:
        (k, B): differentiable in the parameters of ``control``, and in nothing else.
    """
    logits = q.logits.detach().expand_as(u).clone().requires_grad_()  # each draw's own, to have its gradient apart
    q = type(q)(logits)
    s = q.perturb(u)
    z = q.harden(s).detach()
    conditional = control(q.perturb_given(z, v))
    (through_control,) = torch.autograd.grad((control(s) - conditional).sum(), logits, create_graph=True)
    g = unsqueeze_to(f(z).detach() - conditional, z) * q.score(z).detach() + through_control
    return g.square().flatten(conditional.dim()).sum(-1)


def unsqueeze_to(t: Tensor, like: Tensor) -> Tensor:
    """``t`` with as many axes of length one at its end as ``like`` has more."""
    return t.reshape(t.shape + (1,) * (like.dim() - t.dim()))
