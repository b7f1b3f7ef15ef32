"""``zoo compare``: a table and a figure that compare gradient estimators.

The estimators of a trained model are measured on one batch. ``compare toy`` measures estimators on the example of
[Xu18a] and [Xu18b], z ~ N(a theta + b, 1) and f(z) = z^2. The table of ``compare toy`` also shows the exact mean and
variance.
"""

import math
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, vmap

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.estimators import Comparison, compare, optimal_baseline, score_function
from zoo.evaluation.results import significant
from zoo.functional.noise import chunk_generator
from zoo.functional.progress import tracked

SEVERAL = ("+antithetic", "+loo", "+optimal")
SEVERAL_DRAWS_NOTE = (
    "one draw uses several z: eps and -eps for antithetic, two or more for loo, and eight additional z for optimal"
)


class Row(NamedTuple):
    """Measurements of one estimator, for one group of parameters.

    Attributes:
        estimator: name of the estimator.
        group: name of the group of parameters.
        variance: trace of the covariance matrix of one draw.
        snr: signal-to-noise ratio.
        milliseconds: mean time of a draw.
        difference: norm of the mean difference from the first estimator, divided by |g| of the first estimator. The
            squared norm is corrected for the bias from noise.
        noise: standard error of ``difference``: sqrt(tr C / n) divided by |g| of the first estimator, with C the
            covariance of the difference. If ``difference`` is near ``noise``, the true difference may be zero.

    ``difference`` and ``noise`` are NaN if the estimate of |g| of the first estimator is 0.
    """

    estimator: str
    group: str
    variance: float
    snr: float
    milliseconds: float
    difference: float
    noise: float


def compare_model(
    model, batch: Any, names: list[str] | None, draws: int, seed: int = 0, progress: bool = False
) -> list[Row]:
    """Measure gradient estimators of ``model`` on ``batch`` with ``draws`` draws each.

    Args:
        model: model with ``gradient_estimators``.
        batch: batch on the device of the model.
        names: names of the estimators, without repetition. None measures all estimators of the model.
        draws: number of draws, at least 2.
        seed: seed of the noise.
        progress: show a progress bar.

    Raises:
        UserError: for a model without estimators, an unknown or repeated name, or fewer than two draws.
    """
    kind = type(model).__name__
    if not isinstance(model, capabilities.GradientEstimators):
        raise UserError(f"{kind} has no method gradient_estimators(); choose a model with estimators")
    known = model.gradient_estimators()
    if unknown := [name for name in names or [] if name not in known]:
        raise UserError(f"{kind} has no gradient estimator {', '.join(unknown)}; it has {', '.join(known)}")
    if names is not None and len(set(names)) < len(names):
        raise UserError(f"name each estimator once, got {', '.join(names)}")
    if draws < 2:
        raise UserError(f"a variance needs at least two draws, got {draws}")
    if isinstance(model, capabilities.ProbeBatch):
        batch = model.probe_batch(batch, generator=chunk_generator(seed, -1))
    chosen = [known[name] for name in names or known]
    # In an adversarial model, only estimators for the same network can be compared.
    players: dict[frozenset[str], list] = {}
    for estimator in chosen:
        players.setdefault(frozenset(estimator.params), []).append(estimator)
    measured = []
    for of_one in players.values():
        compare(of_one, batch, [0])  # warm-up: the first call of an estimator is slower
        numbers = tracked(range(draws), "gradients", "draw", show=progress)
        of = "" if len(players) == 1 else " " + ", ".join(dict.fromkeys(k.split(".")[0] for k in of_one[0].params))
        found = rows(compare(of_one, batch, numbers, seed))
        measured += [row._replace(group=row.group + of) if row.group == "all" else row for row in found]
    return measured


def rows(comparisons: dict[str, Comparison]) -> list[Row]:
    """Return one row for each estimator and group of parameters."""
    result = []
    reference = next(iter(comparisons.values())).moments.statistics()
    for name, c in comparisons.items():
        difference = c.difference.statistics()
        for group, values in c.moments.statistics().items():
            size = reference[group]["signal"] ** 0.5 or math.nan
            differs = difference[group]["signal"] ** 0.5 / size
            noise = (difference[group]["variance"] / c.moments.n) ** 0.5 / size
            result.append(Row(name, group, values["variance"], values["snr"], 1000 * c.seconds, differs, noise))
    return result


def table(rows: list[Row]) -> str:
    """Return the rows as text, with a separate table for each group of parameters."""
    width = max(len(row.estimator) for row in rows)
    head = f"{'estimator':{width}}    variance         SNR  ms per draw  variance x ms  differs from the first"
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        lines += ["", f"{group} parameters", head]
        for i, row in enumerate(r for r in rows if r.group == group):
            differs = f"{row.difference:8.2%} (noise {row.noise:.2%})"
            if math.isnan(row.noise):
                differs = "    unknown: the signal of the first estimator is below its noise"
            differs = "" if i == 0 else differs
            lines.append(
                f"{row.estimator:{width}}  {row.variance:10.4g}  {row.snr:10.4g}  {row.milliseconds:11.3g}  "
                f"{row.variance * row.milliseconds:13.4g}  {differs}".rstrip()
            )
    if several := [name for name in dict.fromkeys(row.estimator for row in rows) if name.endswith(SEVERAL)]:
        lines += ["", f"{', '.join(several)}: {SEVERAL_DRAWS_NOTE}"]
    return "\n".join(lines[1:])


COLUMNS = ("estimator", "variance", "signal-to-noise", "ms per draw", "variance x ms")


def cells(rows: list[Row]) -> list[list[str]]:
    """Return the cells of a results file with the columns ``COLUMNS``, for all parameters of each estimator."""
    found = []
    for row in (row for row in rows if row.group.split()[0] == "all"):
        snr = significant(row.snr, 2) if row.snr > 0 else "below noise"
        cost = significant(row.variance * row.milliseconds)
        found.append([f"`{row.estimator}`", significant(row.variance), snr, significant(row.milliseconds), cost])
    return found


def figure(rows: list[Row]) -> Figure:
    """Plot the variance of the mean of n draws against n (left), and variance times time as bars (right)."""
    groups = list(dict.fromkeys(row.group for row in rows))
    picture = Figure(figsize=(11, 3.6 * len(groups)), layout="constrained")
    for (left, right), group in zip(picture.subplots(len(groups), 2, squeeze=False), groups, strict=True):
        mine = [row for row in rows if row.group == group and row.variance > 0]
        n = torch.logspace(0, 4, 50)
        for i, row in enumerate(mine):
            left.plot(n, row.variance / n, color=f"C{i}", label=row.estimator)
            right.barh(i, row.variance * row.milliseconds, color=f"C{i}")
        if mine and mine[0].estimator == rows[0].estimator and mine[0].snr > 0:
            signal = mine[0].variance * mine[0].snr ** 2
            left.axhline(signal, color="black", linestyle=":", label="|gradient|² of the first estimator")
        left.set(xscale="log", yscale="log", xlabel="draws in the mean", ylabel="variance", title=f"{group} parameters")
        right.set(xscale="log", xlabel="variance x milliseconds per draw", title="cost of a given accuracy")
        right.set_yticks(range(len(mine)), [row.estimator for row in mine])
        right.invert_yaxis()
        if mine:
            left.legend(fontsize="small")
        left.grid(alpha=0.3)
        right.grid(alpha=0.3, axis="x")
    return picture


# The example of [Xu18a] and [Xu18b].

A, B, THETA = 2.0, 3.0, 0.5
HELD_OUT = 10_000


class Toy(NamedTuple):
    """Draws of one estimator of d/dtheta E[z^2], (n,), with the exact mean and the exact variance."""

    name: str
    gradients: Tensor
    mean: float
    variance: float


def toy(draws: int = 100_000, seed: int = 0) -> list[Toy]:
    """Measure four gradient estimators on the example of [Xu18a] and [Xu18b].

    The example has z ~ N(mu, 1), mu = a theta + b, and f(z) = z^2, with a = 2, b = 3 and theta = 1/2. The gradient of
    E[f(z)] with respect to theta is 2 a mu. The variance of one draw is

        pathwise                   4 a^2
        pathwise, antithetic pair  0                              because f is quadratic
        score function             a^2 (mu^4 + 14 mu^2 + 15)
        score function, beta*      a^2 (8 mu^2 + 6)               (1 - rho^2) times the line above [Liao22]

    Here rho is the correlation of f(z) s and s, and s = z - mu is the score. The optimal baseline beta* = mu^2 + 3 is
    estimated from 10,000 other draws.

    Args:
        draws: draws of each estimator, at least 2.
        seed: seed of the noise.

    Raises:
        UserError: for fewer than two draws.
    """
    if draws < 2:
        raise UserError(f"a variance needs at least two draws, got {draws}")
    mu = A * THETA + B
    normal = lambda number, *shape: torch.randn(  # noqa: E731
        *shape, generator=chunk_generator(seed, number), dtype=torch.float64
    )
    held_out = normal(1, HELD_OUT)
    beta = optimal_baseline((mu + held_out).square()[:, None], held_out.square()[:, None, None]).squeeze()
    mean_at = lambda theta: A * theta + B  # noqa: E731

    def pathwise(theta, eps):
        return (mean_at(theta) + eps).square()

    def antithetic(theta, eps):
        return (pathwise(theta, eps) + pathwise(theta, -eps)) / 2

    def reinforce(theta, eps, baseline=0.0):
        z = (mean_at(theta) + eps).detach()
        return score_function(z.square(), -0.5 * (z - mean_at(theta)).square(), baseline)

    def regressed(theta, eps):
        return reinforce(theta, eps, beta)

    exact = {
        "pathwise": (pathwise, 4 * A**2),
        "pathwise+antithetic": (antithetic, 0.0),
        "score_function": (reinforce, A**2 * (mu**4 + 14 * mu**2 + 15)),
        "score_function+optimal": (regressed, A**2 * (8 * mu**2 + 6)),
    }
    theta, eps = torch.tensor(THETA, dtype=torch.float64), normal(0, draws)  # the same noise for all
    return [
        Toy(name, vmap(grad(estimator), in_dims=(None, 0))(theta, eps), 2 * A * mu, variance)
        for name, (estimator, variance) in exact.items()
    ]


def toy_table(results: list[Toy]) -> str:
    """Return a table of the measured and the exact values."""
    n = len(results[0].gradients)
    lines = [f"d/dtheta E[z^2], z ~ N({A:g} theta + {B:g}, 1) at theta = {THETA:g}; {n:,} draws"]
    lines.append(f"{'estimator':24}      mean     exact  standard error    variance       exact")
    for t in results:
        g = t.gradients
        error = (t.variance / n) ** 0.5
        lines.append(f"{t.name:24}{g.mean():10.4f}{t.mean:10.4f}{error:16.4f}{g.var():12.2f}{t.variance:12.2f}")
    return "\n".join(lines)


def toy_figure(results: list[Toy]) -> Figure:
    """Plot histograms of the draws, and the error of the mean against the number of draws."""
    picture = Figure(figsize=(11, 4), layout="constrained")
    left, right = picture.subplots(1, 2)
    low, high = torch.cat([t.gradients for t in results]).quantile(torch.tensor([0.005, 0.995], dtype=torch.float64))
    bins = torch.linspace(low, high, 120)
    n = [2**i for i in range(len(results[0].gradients).bit_length() - 3)]  # at least eight means for each size
    for i, t in enumerate(results):
        if t.variance == 0:
            continue
        left.hist(t.gradients, bins=bins, density=True, histtype="step", color=f"C{i}", label=t.name)
        means = [t.gradients[: len(t.gradients) // k * k].view(-1, k).mean(1) for k in n]
        right.plot(n, [(m - t.mean).square().mean() ** 0.5 for m in means], ".", color=f"C{i}", label=t.name)
        right.plot(n, [(t.variance / k) ** 0.5 for k in n], color=f"C{i}", linestyle="--")
    left.axvline(results[0].mean, color="black", linestyle=":", label="the gradient, 2 a mu")
    left.set(xlabel="one draw of the gradient", ylabel="density", yscale="log")
    right.set(xscale="log", yscale="log", xlabel="draws in the mean", ylabel="error of the mean (dashed: exact)")
    for axes in (left, right):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    return picture
