"""Estimators of grad E_q[f(z)] by the names that users write, for any posterior of :mod:`zoo.functional.latents`.

``+sampled_kl`` adds log q(z) - log p(z) to the cost, in place of its expectation in closed form.
"""

from collections.abc import Callable

from torch import Tensor

from zoo.checks.errors import UserError
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
from zoo.functional.latents import log_ratio

SCORE_FUNCTION = (
    "score_function+nvil",
    "score_function+loo",
    "score_function+moving_average",
    "score_function+optimal",
    "score_function+sampled_kl",
    "score_function",
)
PATHWISE = ("pathwise", "pathwise+antithetic", "pathwise+sampled_kl")
TEMPERED = ("gumbel_softmax", "straight_through")  # at a temperature that is given
RELAXED = (*TEMPERED, "rebar", "relax")
MULTI_SAMPLE = ("score_function+loo", "score_function")

# What can train each family of latents, by objective; the first is what ``auto`` means.
ESTIMATORS = {
    ("elbo", "gaussian"): (*PATHWISE, *SCORE_FUNCTION),
    ("elbo", "bernoulli"): (*SCORE_FUNCTION, *RELAXED, "score_function+rao_blackwell"),
    ("elbo", "categorical"): (*SCORE_FUNCTION, *RELAXED),
    ("iwae", "gaussian"): ("pathwise", *MULTI_SAMPLE),
    ("iwae", "bernoulli"): MULTI_SAMPLE,
    ("iwae", "categorical"): MULTI_SAMPLE,
}
LEARNED = ("score_function+nvil", "score_function+moving_average", "relax")  # of use only to the model they trained
MOST_FLIPS = 32  # latents up to which the Rao-Blackwellised estimator, one decoding for each, is measured
SEVERAL = ("+optimal", "+rao_blackwell")  # decodings in one draw, a batch in themselves
HELD_OUT = 8  # draws from which the optimal baseline is estimated


def chosen(objective: str, latent: str, estimator: str, num_samples: int) -> str:
    """The name of the estimator that ``estimator``, which may be ``auto``, stands for.

    Raises:
        UserError: if the objective has no such estimator for these latents, or it needs more draws of z.
    """
    if objective == "wake_sleep":
        if estimator != "auto":
            raise UserError(f"objective=wake_sleep has gradients of its own: leave out estimator={estimator}")
        return objective
    names = ESTIMATORS[objective, latent]
    if estimator not in ("auto", *names):
        raise UserError(
            f"estimator must be one of auto, {', '.join(names)} for latent={latent} and objective={objective}, "
            f"got {estimator!r}"
        )
    name = names[0] if estimator == "auto" else estimator
    if objective == "iwae" and num_samples == 1 and name.endswith("+loo"):
        raise UserError(
            "the leave-one-out baseline needs num_samples of at least 2, got 1; or take estimator=score_function"
        )
    return name


def measurable(objective: str, latent: str, latent_dim: int, num_samples: int) -> list[str]:
    """Names of the estimators that can be measured on a model, whichever of them trained it.

    An estimator is left out if it needs a learned part, more than 32 decodings of an example, or more draws of z than
    ``num_samples``. For ``wake_sleep`` these are the ELBO's.
    """
    objective = "elbo" if objective == "wake_sleep" else objective
    left_out = {*LEARNED}
    if latent_dim > MOST_FLIPS:
        left_out.add("score_function+rao_blackwell")
    if objective == "iwae" and num_samples == 1:
        left_out.add("score_function+loo")
    return [name for name in ESTIMATORS[objective, latent] if name not in left_out]


def draw_noise(name: str, draw: Callable[[int], Tensor], k: int) -> Noise:
    """All that one estimate with ``k`` latents of each example draws; ``draw(n)`` is noise for n of them, (n, B, ...).

    ``z`` makes the latents: for the antithetic variant that of half of them, k rounded up to an even number; at least
    two for the leave-one-out baseline. ``v`` perturbs the logits again given z; ``held_out`` is the optimal baseline's.
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
        name: one of the ELBO's ``ESTIMATORS``.
        f: z -> cost, (k, B, ...) to (k, B).
        q: B posteriors.
        noise: as :func:`draw_noise` makes it.
        beta: weight of the sampled divergence.
        tau: temperature of ``gumbel_softmax`` and ``straight_through``.
        baseline: of ``+nvil`` and ``+moving_average``, broadcastable to (k, B).
        control: perturbed logits -> (k, B), the control variate of ``rebar`` and ``relax``.
    """
    if name.startswith("pathwise"):
        z = q.draw(antithetic(noise["z"]) if name == "pathwise+antithetic" else noise["z"])
        return f(z) + beta * log_ratio(z, q) if name == "pathwise+sampled_kl" else f(z)
    if name == "gumbel_softmax":
        return gumbel_softmax(f, q, noise["z"], tau)
    if name == "straight_through":
        return straight_through(f, q, noise["z"], tau)
    if name in ("rebar", "relax"):
        assert control is not None  # they have no other
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
