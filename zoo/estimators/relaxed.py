"""Gradient estimators for discrete latents that use continuous relaxations.

Symbols (zoo/functional/latents.py): s are the perturbed logits. H is the threshold, or the argmax for categorical
latents, and z = H(s) are the discrete latents. sigma_tau is the soft threshold at temperature tau. s~ are perturbed
logits drawn given z. c is the control variate.

    gumbel_softmax     grad f(sigma_tau(s))                                   biased; Maddison et al., Jang et al. 2017
    straight_through   value f(H(s)), derivative in z passed to sigma_tau(s)  biased; Jang et al. 2017, sec. 2.2
    relax              [f(z) - c(s~)] grad log q(z) + grad c(s) - grad c(s~)  unbiased; Grathwohl et al. 2018, sec. 3.2

REBAR (Tucker et al. 2017) is ``relax`` with c(s) = eta f(sigma_tau(s)). RELAX adds a learned network to this c.
The estimator is unbiased for every c, so the parameters of c can be trained to minimise the variance.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.estimators.score_function import score_function, with_gradient


def gumbel_softmax(f: Callable[[Tensor], Tensor], q, u: Tensor, tau: Tensor | float) -> Tensor:
    """Return the cost of the relaxed latents, f(sigma_tau(s)), (k, B).

    Args:
        f: z -> cost, (k, B, D) or (k, B, D, K) to (k, B).
        q: a Bernoulli or Categorical of zoo.functional.latents.
        u: uniform noise, (k, B, D) or (k, B, D, K).
        tau: temperature, positive. A lower temperature has less bias and more variance.
    """
    return f(q.soften(q.perturb(u), tau))


def straight_through(f: Callable[[Tensor], Tensor], q, u: Tensor, tau: Tensor | float) -> Tensor:
    """Return the cost f(z) of the discrete latents, (k, B), with the gradient through the relaxed latents.

    This function has the same arguments as :func:`gumbel_softmax`.
    """
    s = q.perturb(u)
    return f(with_gradient(q.harden(s).detach(), q.soften(s, tau)))


def relax(f: Callable[[Tensor], Tensor], control: Callable[[Tensor], Tensor], q, u: Tensor, v: Tensor) -> Tensor:
    """Return the cost f(z) of the discrete latents, (k, B), with the gradient of REBAR or RELAX.

    Args:
        f: z -> cost, (k, B, ...) to (k, B).
        control: control variate c, s -> (k, B). It must be differentiable only in s. The parameters of f, such as the
            decoder's, then receive their gradient only from f(z).
        q: a Bernoulli or Categorical.
        u, v: uniform noise for s and for s~, in the shape of the latents.
    """
    s = q.perturb(u)
    z = q.harden(s).detach()
    cost, conditional = f(z), control(q.perturb_given(z, v))
    return with_gradient(score_function(cost, q.log_probs(z).sum(-1), baseline=conditional), control(s) - conditional)


def relax_variance(
    f: Callable[[Tensor], Tensor], control: Callable[[Tensor], Tensor], q, u: Tensor, v: Tensor
) -> Tensor:
    """Return |g|^2, (k, B), the loss of the control variate. g is the gradient estimate with respect to q's logits.

    The mean of g does not depend on the control variate. E|g|^2 is therefore the variance of g plus a constant
    (Grathwohl et al. 2018, sec. 3.1). g does not contain gradients with respect to the weights of the encoder.
    The result is differentiable only in the parameters of ``control``.
    """
    logits = q.logits.detach().expand_as(u).clone().requires_grad_()  # one copy per draw, for separate gradients
    q = type(q)(logits)
    s = q.perturb(u)
    z = q.harden(s).detach()
    conditional = control(q.perturb_given(z, v))
    (through_control,) = torch.autograd.grad((control(s) - conditional).sum(), logits, create_graph=True)
    g = unsqueeze_to(f(z).detach() - conditional, z) * q.score(z).detach() + through_control
    return g.square().flatten(conditional.dim()).sum(-1)


def unsqueeze_to(t: Tensor, like: Tensor) -> Tensor:
    """Return ``t`` with as many axes as ``like``. The additional axes are last and have length one."""
    return t.reshape(t.shape + (1,) * (like.dim() - t.dim()))
