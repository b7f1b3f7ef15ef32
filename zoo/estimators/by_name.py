"""Estimators of grad E_q[f(z)] by the names that users write, for any posterior of :mod:`zoo.functional.latents`.

``+sampled_kl`` adds log q(z) - log p(z) to the cost, in place of its expectation in closed form.
"""

from collections.abc import Callable

from torch import Tensor

from zoo.estimators.moments import Noise
from zoo.estimators.pathwise import antithetic
from zoo.estimators.relaxed import gumbel_softmax, relax, straight_through
from zoo.estimators.score_function import (
    leave_one_out,
    local_expectation,
    optimal_baseline,
    score_function,
    with_gradient,
)

SCORE_FUNCTION = (
    "score_function+nvil",
    "score_function+loo",
    "score_function+moving_average",
    "score_function+optimal",
    "score_function+sampled_kl",
    "score_function",
)
PATHWISE = ("pathwise", "pathwise+antithetic", "pathwise+sampled_kl")
RELAXED = ("gumbel_softmax", "straight_through", "rebar", "relax")

# What each family of latents has; the first is the usual choice.
ESTIMATORS = {
    "gaussian": (*PATHWISE, *SCORE_FUNCTION),
    "bernoulli": (*SCORE_FUNCTION, *RELAXED, "score_function+rao_blackwell"),
    "categorical": (*SCORE_FUNCTION, *RELAXED),
}
HELD_OUT = 8  # draws from which the optimal baseline is estimated


def draw_noise(name: str, draw: Callable[[int], Tensor], k: int) -> Noise:
    """All that one estimate with ``k`` latents of each example draws; ``draw(n)`` is noise for n of them, (n, B, ...).

    ``z`` makes the latents: for the antithetic variant that of half of them, k rounded up to an even number; at least
    two for the leave-one-out baseline. ``v`` makes scores anew given z, ``held_out`` the optimal baseline's draws.
    """
    if name == "pathwise+antithetic":
        k = (k + 1) // 2
    elif name == "score_function+loo":
        k = max(2, k)
    noise = {"z": draw(k)}
    if name in ("rebar", "relax"):
        noise["v"] = draw(k)
    elif name == "score_function+optimal":
        noise["held_out"] = draw(HELD_OUT)
    return noise


def log_ratio(z: Tensor, q) -> Tensor:
    """log q(z) - log p(z), one draw of KL(q || p); z (k, B, ...) to (k, B) nats."""
    return q.log_probs(z).sum(-1) - q.log_prior(z)


def surrogate(
    name: str,
    f: Callable[[Tensor], Tensor],
    q,
    noise: Noise,
    beta: float = 1.0,
    tau: float = 1.0,
    baseline: Tensor | float = 0.0,
    control: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The cost of draws of z, (k, B), with a gradient that estimates that of its expectation under q.

    Args:
        name: one of ``ESTIMATORS``.
        f: z -> cost, (k, B, ...) to (k, B).
        q: B posteriors.
        noise: as :func:`draw_noise` makes it.
        beta: weight of the sampled divergence.
        tau: temperature of ``gumbel_softmax`` and ``straight_through``.
        baseline: of ``+nvil`` and ``+moving_average``, broadcastable to (k, B).
        control: scores -> (k, B), the control variate of ``rebar`` and ``relax``.
    """
    if name.startswith("pathwise"):
        z = q.draw(antithetic(noise["z"]) if name == "pathwise+antithetic" else noise["z"])
        return f(z) + beta * log_ratio(z, q) if name == "pathwise+sampled_kl" else f(z)
    if name == "gumbel_softmax":
        return gumbel_softmax(f, q, noise["z"], tau)
    if name == "straight_through":
        return straight_through(f, q, noise["z"], tau)
    if name in ("rebar", "relax"):
        return relax(f, control, q, noise["z"], noise["v"])
    z = q.draw(noise["z"]).detach()
    if name == "score_function+rao_blackwell":
        return local_expectation(f, q.logits, z)
    cost, log_q = f(z), q.log_probs(z)  # (k, B) and (k, B, D)
    if name == "score_function+sampled_kl":
        # Held fixed in q: the gradient of log q itself has mean zero, and is left out.
        cost = cost + beta * log_ratio(z, type(q)(*(t.detach() for t in q)))
    elif name == "score_function+loo":
        baseline = leave_one_out(cost)
    elif name == "score_function+optimal":
        held_out = q.draw(noise["held_out"]).detach()
        best = optimal_baseline(f(held_out).detach(), q.score_square(held_out).detach())
        return with_gradient(cost, ((cost[..., None] - best).detach() * log_q).sum(-1))
    return score_function(cost, log_q.sum(-1), baseline)
