"""Estimators of grad E_q[f(z)] by the names that users write, for any posterior of :mod:`zoo.functional.latents`.

With ``+sampled_kl``, the cost contains log q(z) - log p(z). With the other estimators, the cost contains only f(z), and
the caller adds the divergence KL(q || p) in closed form.
"""

from collections.abc import Callable

from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.values import check_positive
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
TEMPERED = ("gumbel_softmax", "straight_through")  # estimators whose temperature the user sets
RELAXED = (*TEMPERED, "rebar", "relax")
MULTI_SAMPLE = ("score_function+loo", "score_function")

# {(objective, family of latents): estimators that can train it}. ``auto`` selects the first estimator.
ESTIMATORS = {
    ("elbo", "gaussian"): (*PATHWISE, *SCORE_FUNCTION),
    ("elbo", "bernoulli"): (*SCORE_FUNCTION, *RELAXED, "score_function+rao_blackwell"),
    ("elbo", "categorical"): (*SCORE_FUNCTION, *RELAXED),
    ("iwae", "gaussian"): ("pathwise", *MULTI_SAMPLE),
    ("iwae", "bernoulli"): MULTI_SAMPLE,
    ("iwae", "categorical"): MULTI_SAMPLE,
}
# Estimators with a part that must be fitted in training. They are measured only on models that they have trained.
LEARNED = ("score_function+nvil", "score_function+moving_average", "relax")
# +rao_blackwell needs one decoding per latent. It is measured only for models with at most this number of latents.
MAX_RAO_BLACKWELL_LATENTS = 32
SEVERAL = ("+optimal", "+rao_blackwell")  # one draw of these estimators decodes many z
HELD_OUT = 8  # draws of z that estimate the optimal baseline


def chosen(objective: str, latent: str, estimator: str, num_samples: int) -> str:
    """Return the name of the estimator to use. ``auto`` becomes the first name in ``ESTIMATORS``.

    Raises:
        UserError: if the estimator cannot be used with the objective and the latents, or if ``+loo`` has only one
            draw of z with ``iwae``.
    """
    if objective == "wake_sleep":
        if estimator != "auto":
            raise UserError(f"objective=wake_sleep uses no estimator; leave out estimator={estimator}")
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
            "the leave-one-out baseline needs num_samples of at least 2, got 1; "
            "set num_samples=2 or estimator=score_function"
        )
    return name


def check_temperatures(estimator: str, temperature: float, temperature_end: float | None) -> None:
    """Check the temperature at the start of a run, and at its end if it changes.

    Raises:
        UserError: if a temperature is not positive, or if it changes and ``estimator`` is not in ``TEMPERED``.
    """
    check_positive("temperature", temperature)
    if temperature_end is None:
        return
    check_positive("temperature_end, where it is not null,", temperature_end)
    if estimator not in TEMPERED:
        raise UserError(f"temperature_end requires estimator={' or '.join(TEMPERED)}, got estimator={estimator}")


def measurable(objective: str, latent: str, latent_dim: int, num_samples: int) -> list[str]:
    """Return the names of the estimators that can be measured on any model with these settings.

    The list leaves out the estimators in ``LEARNED``. For more than 32 latents, it leaves out ``+rao_blackwell``. If
    the objective is ``iwae`` with one draw of z, the list leaves out ``+loo``. ``wake_sleep`` has the same list as
    ``elbo``.
    """
    objective = "elbo" if objective == "wake_sleep" else objective
    left_out = {*LEARNED}
    if latent_dim > MAX_RAO_BLACKWELL_LATENTS:
        left_out.add("score_function+rao_blackwell")
    if objective == "iwae" and num_samples == 1:
        left_out.add("score_function+loo")
    return [name for name in ESTIMATORS[objective, latent] if name not in left_out]


def draw_noise(name: str, draw: Callable[[int], Tensor], k: int) -> Noise:
    """Return all noise of one estimate with ``k`` draws of z for each example.

    Args:
        name: name of the estimator.
        draw: ``draw(n)`` returns the noise of n draws of z, (n, B, ...).
        k: number of draws of z. The leave-one-out baseline draws at least two z.

    Returns:
        ``z``, the noise that makes z. Antithetic pairs need the noise of only k / 2 draws, rounded up.
        REBAR and RELAX also need ``v``, the noise of the perturbed logits that are drawn given z.
        The optimal baseline also needs ``held_out``, the noise of the draws of z that estimate the baseline.
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
    tau: Tensor | float = 1.0,
    baseline: Tensor | float = 0.0,
    control: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the cost of k draws of z, (k, B), with a gradient that estimates grad E_q[f(z)].

    Args:
        name: an estimator in ``ESTIMATORS`` for the objective ``elbo``.
        f: z -> cost, (k, B, ...) to (k, B).
        q: B posteriors.
        noise: output of :func:`draw_noise`.
        beta: weight of log q(z) - log p(z) in ``+sampled_kl``.
        tau: temperature of ``gumbel_softmax`` and ``straight_through``.
        baseline: baseline of ``+nvil`` and ``+moving_average``, broadcastable to (k, B).
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
        assert control is not None
        return relax(f, control, q, noise["z"], noise["v"])
    z = q.draw(noise["z"]).detach()
    if name == "score_function+rao_blackwell":
        return local_expectation(f, q.logits, z)
    cost, log_q = f(z), q.log_probs(z)  # (k, B) and (k, B, D)
    if name == "score_function+sampled_kl":
        # q is detached here: the gradient of log q(z) at fixed z has mean zero and would only add variance.
        cost = cost + beta * log_ratio(z, type(q)(*(t.detach() for t in q)))
    elif name == "score_function+loo":
        baseline = leave_one_out(cost)
    elif name == "score_function+optimal":
        held_out = q.draw(noise["held_out"]).detach()
        best = optimal_baseline(f(held_out).detach(), q.score_square(held_out).detach())
        return with_gradient(cost, ((cost[..., None] - best).detach() * log_q).sum(-1))
    return score_function(cost, log_q.sum(-1), baseline)
