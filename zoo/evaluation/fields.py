"""Comparison of a learned score with the true score of a density in the plane, as numbers and as a figure."""

from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from zoo.functional.noise import chunk_generator

BULK = 0.99  # fraction of draws where the scores are compared; around the other draws there are too few data


class Field(NamedTuple):
    """Distances of a score model from its target density q.

    Attributes:
        fisher_divergence: 1/2 E || s - grad log q ||^2 in the bulk of q [DSL eq. 14.53].
        log_density_gap: mean of log q over samples of the model minus mean of log q over draws of q, nats. It
            includes the error of the sampler.
        error: standard error of ``log_density_gap``, nats.
    """

    fisher_divergence: float
    log_density_gap: float
    error: float


def target(model, distribution):
    """Return the density whose score the model estimates.

    A model of zoo/score.py with noise levels estimates the score of the data density blurred by its smallest noise
    level. A model without noise levels estimates the score of the data density.
    """
    return distribution.blurred(float(model.sigmas[-1])) if len(model.sigmas) else distribution


@torch.no_grad()
def learned_score(model, x: Tensor) -> Tensor:
    """Return s(x) at the smallest noise level, (B, 2), float64, on the CPU."""
    x = x.to(model.device, torch.float32)
    sigma = model.sigmas[-1].expand(len(x)) if len(model.sigmas) else None
    return model(x, sigma).cpu().double()


def measure_field(model, distribution, n: int = 10_000, samples: int = 5_000) -> Field:
    """Return the distances of a model's score and samples from its target density.

    Args:
        model: model of zoo/score.py for points in the plane, in eval mode.
        distribution: density with ``log_density``, ``score``, ``sample`` and ``blurred``, as in zoo/datamodules/toy.py.
        n: number of draws of the target density. The bulk is the 99 % of these draws with the highest density.
        samples: number of samples of the model. They are drawn without labels and without the final denoising step.
    """
    q = target(model, distribution)
    x, _ = q.sample(n, generator=chunk_generator(1, 0))
    log_q = q.log_density(x)
    bulk = x[log_q >= log_q.quantile(1 - BULK)]
    gap = learned_score(model, bulk) - q.score(bulk)
    labels = {} if model.hparams.num_classes is None else {"y": "dropped"}
    drawn = q.log_density(model.sample(samples, generator=chunk_generator(0, 0), denoise=False, **labels).cpu())
    error = (drawn.var() / samples + log_q.var() / n) ** 0.5
    return Field(float(gap.square().sum(1).mean() / 2), float(drawn.mean() - log_q.mean()), float(error))


def figure(model, distribution, arrows: int = 24) -> Figure:
    """Plot the learned score in red, the true score in black, and contours of the density."""
    q = target(model, distribution)
    x, _ = q.sample(2_000, generator=chunk_generator(1, 0))
    half = 1.15 * float(x.abs().max())
    side = torch.linspace(-half, half, 120, dtype=torch.float64)
    plane = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    coarse = torch.linspace(-half, half, arrows, dtype=torch.float64)
    at = torch.stack(torch.meshgrid(coarse, coarse, indexing="xy"), -1).flatten(0, 1)
    fig = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    axes = fig.subplots()
    log_q = q.log_density(plane)
    levels = [float(log_q.max()) - d for d in (12, 8, 5, 3, 2, 1, 0.3)]
    axes.contour(side.numpy(), side.numpy(), log_q.numpy(), levels=levels, linewidths=0.6, colors="0.7")
    at = at[q.log_density(at) > levels[0]]
    longest = 2 * half / arrows  # the arrows of 90 % of the scores are shorter than this
    scale = float(q.score(x).norm(dim=1).quantile(0.9)) / longest
    for name, field, colour, width in (
        ("true", q.score(at), "black", 0.006),
        ("learned", learned_score(model, at), "red", 0.0025),
    ):
        arrows_at = {"angles": "xy", "scale_units": "xy", "scale": scale}
        axes.quiver(*at.T.numpy(), *field.T.numpy(), color=colour, width=width, label=name, **arrows_at)
    axes.set(aspect="equal", title="score: learned over true")
    axes.legend(loc="upper right")
    return fig
