"""Pictures that explain an idea on a small problem: variance, bounds, annealed importance sampling, schedules."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from drawing import BLUE, GREEN, GREY, INK, ORANGE, RED, WIDTH, Picture, canvas, tiles
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from sklearn.datasets import load_digits
from torch import Tensor

import zoo
from zoo.estimators import figures, gradient_moments, gradients
from zoo.evaluation.results import significant
from zoo.functional import boltzmann, diffusion, diffusion_bound, partition
from zoo.functional.densities import log_normal
from zoo.functional.importance import (
    LogPartition,
    annealed_importance_sampling,
    importance_weighted_bound,
    log_importance_weight,
    log_mean,
)
from zoo.functional.latents import Gaussian
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.sampling.chunks import sample_chunks
from zoo.vae import VAE

CPU = torch.device("cpu")

# Two estimators of one gradient.


def small_vae(steps: int = 200, measure: Callable[[int, VAE], None] | None = None) -> tuple[VAE, list[Tensor]]:
    """Return a small VAE after ``steps`` training steps on digits of 8 x 8 pixels, and 16 of the digits, binarised.

    ``measure`` is called with the number of steps and the model before each step and after the last step.
    """
    images = torch.from_numpy(load_digits().images).float()[:, None] / 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VAE(shape=[1, 8, 8], latent_dim=2, hidden=[32])
    optimiser, generator = torch.optim.Adam(model.parameters(), lr=3e-3), chunk_generator(0, 0)
    for step in range(steps):
        if measure is not None:
            measure(step, model)
        at = slice(64 * step % 1728, 64 * step % 1728 + 64)
        optimiser.zero_grad()
        model.loss([images[at]], generator=generator)["loss"].mean().backward()
        optimiser.step()
    if measure is not None:
        measure(steps, model)
    return model, model.probe_batch([images[:16]], generator=chunk_generator(0, 1))


def variance_figure() -> Figure:
    """Draw the figure that a run writes, for a small VAE: variance and signal-to-noise ratio against steps."""
    _, batch = small_vae(0)
    history: list[dict[str, float]] = []

    def measure(step: int, model: VAE) -> None:
        if step not in (0, 10, 30, 60, 100, 150, 200):
            return
        row: dict[str, float] = {"step": step}
        for name, estimator in model.gradient_estimators().items():
            moments, _ = gradient_moments(estimator, batch, range(40))
            for group, values in moments.statistics().items():
                row |= {f"variance/{name}/{group}": values["variance"], f"snr/{name}/{group}": values["snr"]}
        history.append(row)

    small_vae(200, measure)
    figure = figures.plot(history)
    figure.set_size_inches(WIDTH, 6.4)
    for axes in figure.axes:
        axes.set_ylabel(axes.get_ylabel().partition(" (")[0])
        low, high = axes.get_ylim()
        if high < 100 * low:  # powers of ten alone would be one or two labels
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        else:
            axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


def draws(model: VAE, batch: list[Tensor], name: str, n: int) -> Tensor:
    """Return ``n`` draws of the gradient of the encoder by the estimator ``name``, (n, P), float64."""
    estimator = model.gradient_estimators()[name]
    of_encoder = lambda g: torch.cat([v.flatten() for k, v in g.items() if k.startswith("encoder")])  # noqa: E731
    return torch.stack([of_encoder(g) for g in gradients(estimator, batch, range(n))]).double()


def variance_explained() -> Figure:
    model, batch = small_vae()
    names, n = {"pathwise": BLUE, "score_function+loo": RED}, 2000
    found = {name: draws(model, batch, name, n) for name in names}
    gradient = found["pathwise"].mean(0)
    size = float(gradient.norm())
    figure = canvas(4.8, 2, 2, width_ratios=[1.5, 1])[0]
    upper, right, lower, unused = figure.axes
    unused.remove()
    right.set_subplotspec(right.get_gridspec()[:, 1])
    half = 2.8 * float((found["score_function+loo"] @ gradient / size).std())
    bins, sizes = torch.linspace(size - half, size + half, 80), torch.arange(8).exp2().int().tolist()
    for axes, (name, colour) in zip((upper, lower), names.items(), strict=True):
        trace = float(found[name].var(0).sum())
        snr = size / trace**0.5
        # One number for each draw: its component along the gradient.
        height = axes.hist(found[name] @ gradient / size, bins=bins, color=colour, alpha=0.75)[0].max()
        axes.axvline(size, color=INK, linestyle="--", linewidth=1.5)
        axes.set(title=name, yticks=[], xlim=(float(bins[0]), float(bins[-1])), ylim=(0, 1.65 * height))
        axes.spines["left"].set_visible(False)
        text = (
            f"trace of the covariance: {significant(trace, 2)}\n"
            f"SNR of one draw: {significant(snr, 2)}\n"
            f"draws for an SNR of 10: {(10 / snr) ** 2:,.0f}"
        )
        axes.text(0.985, 0.97, text, transform=axes.transAxes, ha="right", va="top", fontsize=9.5, linespacing=1.45)
        line = torch.tensor([1.0, 2000.0])
        right.plot(line, (trace / line).sqrt() / size, color=colour, linewidth=1.2)
        error = [float((m - gradient).square().sum(1).mean().sqrt() / size) for m in means(found[name], sizes)]
        right.plot(sizes, error, "o", color=colour, label=name)
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    upper.annotate("the gradient", (size, 0.9), (-6, 0), ha="right", va="center", fontsize=9.5, **place)
    lower.set_xlabel("component of one draw along the gradient")
    upper.tick_params(labelbottom=False)
    right.axhline(0.1, color=GREY, linewidth=1)
    right.text(1, 0.105, "SNR 10", fontsize=9.5, color=GREY, va="bottom")
    right.set(xscale="log", yscale="log", xlabel="draws in the mean", title="Error of the mean / |gradient|")
    right.legend(loc="upper right")
    return figure


def means(gradients: Tensor, sizes: list[int]) -> list[Tensor]:
    """Return, for each size k, the means of disjoint groups of k draws."""
    return [gradients[: len(gradients) // k * k].unflatten(0, (-1, k)).mean(1) for k in sizes]


# The importance-weighted bound.


def iwae_bound() -> Figure:
    """Draw L_k of a linear Gaussian model, p(z) = N(0, I), p(x | z) = N(A z, s^2 I), whose log p(x) is exact."""
    D, V, noise, repeats, most = 4, 8, 0.5, 400, 2048
    generator = chunk_generator(0, 0)
    A = torch.randn(V, D, generator=generator, dtype=torch.float64) / D**0.5
    A = A + A.mean(1, keepdim=True)  # the columns are correlated, so the latents are correlated given x
    x = A @ torch.randn(D, generator=generator, dtype=torch.float64) + noise * torch.randn(
        V, generator=generator, dtype=torch.float64
    )
    covariance = A @ A.T + noise**2 * torch.eye(V, dtype=torch.float64)
    exact = float(torch.distributions.MultivariateNormal(torch.zeros(V, dtype=torch.float64), covariance).log_prob(x))
    precision = torch.eye(D, dtype=torch.float64) + A.T @ A / noise**2
    mean = torch.linalg.solve(precision, A.T @ x) / noise**2
    variance = 1 / precision.diagonal()  # the best q with independent latents
    log_px = lambda x, z: log_normal(x, z @ A.T, torch.tensor(2 * math.log(noise), dtype=torch.float64).expand(V))  # noqa: E731
    figure, axes = canvas(3.7)
    sizes = [2**k for k in range(12)]
    cases = (
        ("the best q with independent latents", variance, BLUE),
        ("the same q with a third of its variance", variance / 3, RED),
    )
    for label, spread, colour in cases:
        q = Gaussian(mean.expand(repeats, D), spread.log().expand(repeats, D))
        z = q.draw(torch.randn(most, repeats, D, generator=generator, dtype=torch.float64))
        log_w = log_importance_weight(x.expand(repeats, V), z, q, log_px)
        # Disjoint groups of k weights give independent estimates of L_k.
        bounds = [
            torch.stack([importance_weighted_bound(g) for g in log_w.split(k)[: most // k]]).flatten() for k in sizes
        ]
        axes.plot(sizes, [float(b.mean()) for b in bounds], "o-", color=colour, label=label, markersize=4)
        low, high = ([float(b.quantile(p)) for b in ends_of(bounds)] for p in (0.1, 0.9))
        axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(exact, color=INK, linestyle="--", linewidth=1.5)
    axes.annotate("exact log p(x)", (1, exact), (0, 5), textcoords="offset points", va="bottom")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{k:,}" for k in sizes])
    axes.set(
        xlabel="k, importance samples in one bound", ylabel="nats", xlim=(0.93, 2200), ylim=(exact - 3.2, exact + 0.8)
    )
    axes.annotate("k = 1: the ELBO", (1, exact - 2.95), (6, 0), textcoords="offset points", fontsize=9.5, color=GREY)
    axes.legend(loc="lower right")
    return figure


def ends_of(bounds: list[Tensor]) -> list[Tensor]:
    """Return at most 100,000 values of each tensor, because torch.quantile takes no large tensors."""
    return [b[:100_000] for b in bounds]


# Annealed importance sampling.


def small_machine() -> boltzmann.Weights:
    """Return an RBM with 60 visible and 10 hidden units, which has several separate modes."""
    generator = chunk_generator(0, 0)
    W = 1.1 * torch.randn(60, 10, generator=generator, dtype=torch.float64)
    return boltzmann.Weights(W, -W.sum(1) / 2, torch.zeros(10, dtype=torch.float64) - W.sum(0) / 2)


def from_the_model(weights: boltzmann.Weights, chains: int, steps: int, generator: torch.Generator) -> LogPartition:
    """Return log Z by annealed importance sampling from exact draws of the model to independent fair coins.

    The weights satisfy E[w] = Z_0 / Z. The estimate log Z_0 - log mean w is therefore too high on average.
    """
    V, H = weights.W.shape
    uniform = lambda *shape: rand(*shape, generator=generator, device=CPU)  # noqa: E731

    def anneal(v: Tensor, beta: float, next_beta: float) -> tuple[Tensor, Tensor]:
        logits = boltzmann.hidden_logits(v, weights)
        change = torch.nn.functional.softplus(next_beta * logits) - torch.nn.functional.softplus(beta * logits)
        h = boltzmann.draw(next_beta * logits, uniform(chains, H))
        after = boltzmann.draw(next_beta * boltzmann.visible_logits(h, weights), uniform(chains, V))
        return change.sum(-1) + (next_beta - beta) * (v @ weights.b), after

    v = partition.exact_draw(uniform(chains), uniform(chains, V), weights)
    backwards = partition.temperatures(steps).flip(0)
    found, log_Z0 = log_mean(annealed_importance_sampling(v, anneal, backwards)), (V + H) * math.log(2)
    return LogPartition(log_Z0 - found.estimate, log_Z0 - found.high, log_Z0 - found.low)


@torch.no_grad()
def ais_two_sides() -> Figure:
    weights, chains, repeats, sizes = small_machine(), 50, 10, (3, 10, 30, 100, 300)
    exact = float(partition.exact_log_partition(weights))
    coins = torch.zeros(60, dtype=torch.float64)

    def from_coins(steps: int, generator: torch.Generator) -> LogPartition:
        return partition.ais_log_partition(weights, coins, chains, steps, generator=generator)

    def backwards(steps: int, generator: torch.Generator) -> LogPartition:
        return from_the_model(weights, chains, steps, generator)

    figure, axes = canvas(3.9)
    sides = (("forward, from fair coins", from_coins, BLUE, 0.96), ("reverse, from exact draws", backwards, RED, 1.04))
    for label, side, colour, shift in sides:
        runs = [[side(steps, chunk_generator(steps, k)) for k in range(repeats)] for steps in sizes]
        estimates = [[run.estimate - exact for run in row] for row in runs]
        axes.fill_between(
            sizes, *zip(*((min(r), max(r)) for r in estimates), strict=True), color=colour, alpha=0.15, linewidth=0
        )
        axes.plot(sizes, [sum(row) / repeats for row in estimates], color=colour)
        one = [row[0] for row in runs]
        error = [[r.estimate - r.low for r in one], [r.high - r.estimate for r in one]]
        at, middle = [shift * steps for steps in sizes], [r.estimate - exact for r in one]
        axes.errorbar(at, middle, error, fmt="o", color=colour, capsize=4, linewidth=1.5, label=label)
    axes.axhline(0, color=INK, linestyle="--", linewidth=1.5, label="enumerated log Z")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{steps:,}" for steps in sizes])
    axes.minorticks_off()
    axes.set(xlabel="temperatures", ylabel="estimate - log Z, nats")
    axes.legend(loc="lower right")
    return figure


# Diffusion.


def schedule() -> Figure:
    x0 = 2 * sample_chunks(zoo.load("gan"), 8, 0)[2:3] - 1
    figure, axes = canvas(4.5, 3, 1, height_ratios=[3.2, 1, 1], sharex=True)
    steps, shown = 1000, list(range(0, 1001, 100))
    kinds = (("linear", diffusion.linear_betas, BLUE), ("cosine", diffusion.cosine_betas, RED))
    for row, (name, betas, colour) in zip(axes[1:], kinds, strict=True):
        chain = diffusion.make_chain(betas(steps))
        axes[0].plot([0, *range(1, steps + 1)], [1, *chain.abar], color=colour, label=name)
        noisy = [x0] + [
            diffusion.q_sample(
                x0, torch.tensor([t - 1]), randn(*x0.shape, generator=chunk_generator(1, t), device=CPU), chain
            )
            for t in shown[1:]
        ]
        strip = tiles(torch.cat(noisy).float() / 2 + 0.5, len(shown), gap=2).numpy()
        row.imshow(strip, extent=(-48, 1048, 0, 1), aspect="auto", interpolation="nearest")
        row.grid(False)
        row.set_yticks([0.5], [name])
        row.tick_params(length=0)
        row.spines[:].set_visible(False)
        row.get_yticklabels()[0].set_color(colour)
    axes[0].set(
        ylabel=r"$\bar{\alpha}_t$", title=r"Fraction of the variance that is signal, $\bar{\alpha}_t$", xlim=(-48, 1048)
    )
    axes[0].legend(loc="upper right")
    axes[0].tick_params(labelbottom=False)
    axes[2].set_xticks(shown)
    axes[2].set_xlabel("t")
    return figure


@torch.no_grad()
def ddpm_loss() -> Figure:
    """Draw terms of the variational bound of ``ddpm`` for four of its samples, and their sum up to each step.

    The steps form blocks, short ones first. The middle step of a block stands for all steps of the block.
    """
    model, n = zoo.load("ddpm"), 4
    x0 = (255 * model.sample(n, generator=chunk_generator(0, 0))).round() / 127.5 - 1
    edges = sorted({round(1000 ** (k / 60)) for k in range(61)}) + [1001]
    size = torch.tensor([b - a for a, b in pairwise(edges)])
    t = torch.tensor(edges[:-1]) + (size - 1) // 2
    index, images, chain = (t - 1).repeat_interleave(n), x0.repeat(len(t), 1, 1, 1), model.chain
    xt = diffusion.q_sample(
        images, index, randn(*images.shape, generator=chunk_generator(0, 1), device=CPU), model.chain
    )
    x0_hat = torch.cat([model.x0_hat(*part) for part in zip(xt.split(32), index.split(32), strict=True)]).clamp(-1, 1)
    found = diffusion_bound.denoising_term(images, xt, index, x0_hat, chain, model.hparams.variance, True)
    terms = found.double().view(-1, n).mean(1)
    figure, (left, right) = canvas(3.2, 1, 2)
    left.plot(t, terms, "o-", color=BLUE, markersize=3, linewidth=1.2)
    left.set(yscale="log", xscale="log", xlabel="t", ylabel="nats", title="Terms of the bound, by step t")
    part = (size * terms).cumsum(0) / (size * terms).sum()
    ends = torch.tensor(edges[1:]) - 1
    right.plot(ends, 100 * part, color=GREEN)
    half = int((part < 0.5).sum())
    right.plot(ends[half], 100 * part[half], "o", color=ORANGE)
    text = f"{100 * float(part[half]):.0f} % of the bound:\nsteps 1 to {int(ends[half])}"
    right.annotate(text, (float(ends[half]), 100 * float(part[half])), (10, -6), textcoords="offset points", va="top")
    right.set(xscale="log", xlabel="t", ylabel="%", ylim=(0, 103), title="Part of the bound up to step t")
    return figure


PICTURES = {
    "variance-figure": Picture(
        variance_figure,
        "The variance figure of a small VAE. Left: the variance of the gradient estimators during training. Right: "
        "their signal-to-noise ratio. Each row is a group of parameters.",
    ),
    "variance-explained": Picture(
        variance_explained,
        "Two estimators of one gradient. Left: draws of each estimator around the same gradient (dashed). The text "
        "gives the trace of the covariance matrix, the signal-to-noise ratio, and the draws that a ratio of 10 needs. "
        "Right: the error of the mean falls with the square root of the number of draws for both.",
    ),
    "iwae-bound": Picture(
        iwae_bound,
        "The importance-weighted bound of a linear Gaussian model rises to the exact log p(x) as k grows, faster for "
        "the better q. Lines are means, and bands hold 80 % of the estimates.",
    ),
    "ais-two-sides": Picture(
        ais_two_sides,
        "Annealed importance sampling of a small RBM from both sides. With few temperatures, forward runs are too low "
        "and reverse runs too high, while their intervals of three standard errors (bars) can miss log Z. Bands are "
        "the range of ten runs.",
    ),
    "schedule": Picture(
        schedule,
        "The linear and the cosine schedule with 1,000 steps, and one image with the noise of every hundredth step. "
        "The linear schedule destroys the image earlier.",
    ),
    "ddpm-loss": Picture(
        ddpm_loss,
        "Terms of the variational bound of the pretrained ddpm for four of its samples, by step. Steps with little "
        "noise make up most of the bound.",
    ),
}
