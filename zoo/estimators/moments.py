"""How much a gradient estimator scatters.

A gradient that is an expectation over noise, g = E[ grad_params surrogate(params, batch, noise) ], is estimated by one
draw of the noise. With C the covariance of that draw, its figures of merit are

    tr C               the total variance, summed over parameters
    SNR = |g| / sqrt(tr C)

and from n draws with mean g_n,  E |g_n|^2 = |g|^2 + tr C / n,  so that |g|^2 is estimated by |g_n|^2 - tr C / n: the
ratio without that correction never falls below about 1 / sqrt(n), however small the true one is.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from zoo.sampling import chunk_generator

Params = dict[str, Tensor]
Noise = dict[str, Tensor]


@dataclass(frozen=True)
class GradientEstimator:
    """One way to estimate one gradient.

    Attributes:
        name: as users write it, ``pathwise``, ``score_function``.
        params: what it differentiates, by name; of one player only.
        noise: ``noise(batch, generator)`` draws everything that is random, at once.
        surrogate: ``surrogate(params, batch, noise)``, a scalar whose gradient with respect to ``params`` is that draw
            of the estimator. It depends on its arguments alone and changes no buffer.
    """

    name: str
    params: Params
    noise: Callable[[Any, torch.Generator | None], Noise]
    surrogate: Callable[[Params, Any, Noise], Tensor]


class _Method(nn.Module):
    """A module whose forward is a function of another module: functional_call reaches modules by forward alone."""

    def __init__(self, module: nn.Module, function: Callable):
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *args):
        return self.function(*args)


def call_with(module: nn.Module, params: Params, function: Callable, *args):
    """``function(*args)`` as if the parameters of ``module`` were ``params``, which stay differentiable.

    Buffers are copies: what batch normalisation writes to its running statistics is lost.
    """
    state = {k: b.clone() for k, b in module.named_buffers()} | params
    return functional_call(_Method(module, function), {f"module.{k}": v for k, v in state.items()}, args)


@dataclass
class GradientMoments:
    """Running moments of gradient draws, accumulated in float64: one mean vector, one scalar per parameter.

    ``update`` is Welford's recursion, so that no large numbers are subtracted.
    """

    n: int = 0
    mean: Params = field(default_factory=dict)
    squared_deviation: dict[str, float] = field(default_factory=dict)  # sum over draws of |g - mean|^2

    def update(self, gradient: Params) -> None:
        """Take in one draw."""
        self.n += 1
        for name, g in gradient.items():
            g = g.detach().double()
            before = g - self.mean.setdefault(name, torch.zeros_like(g))
            self.mean[name].add_(before, alpha=1 / self.n)
            added = (before * (g - self.mean[name])).sum().item()
            self.squared_deviation[name] = self.squared_deviation.get(name, 0.0) + added

    def statistics(self) -> dict[str, dict[str, float]]:
        """Variance and signal-to-noise ratio, for ``all`` parameters and for each group.

        A group is a module at the first level where parameters differ: ``encoder.0.weight`` is in ``encoder``, and
        ``net.down.0.weight`` in ``down`` if everything is in ``net``.

        Returns:
            ``{group: {"variance": tr C, "signal": max(0, |g_n|^2 - tr C / n), "snr": sqrt(signal / variance)}}``; the
            ratio is infinite for a gradient without noise and 0 where noise hides the signal.

        Raises:
            ValueError: for fewer than two draws, which have no variance.
        """
        if self.n < 2:
            raise ValueError(f"a variance needs at least two draws, got {self.n}")
        groups: dict[str, list[str]] = {"all": list(self.mean)}
        level = 0
        while len({tuple(name.split(".")[: level + 1]) for name in self.mean}) == 1 and len(self.mean) > 1:
            level += 1
        for name in self.mean:
            groups.setdefault(name.split(".")[level], []).append(name)
        result = {}
        for group, names in groups.items():
            variance = sum(self.squared_deviation[name] for name in names) / (self.n - 1)
            signal = max(0.0, sum(self.mean[name].square().sum().item() for name in names) - variance / self.n)
            ratio = signal / variance if variance > 0 else float("inf") if signal > 0 else 0.0
            result[group] = {"variance": variance, "signal": signal, "snr": ratio**0.5}
        return result


def gradient_moments(
    estimator: GradientEstimator, batch: Any, draws: Iterable[int], seed: int = 0
) -> tuple[GradientMoments, float]:
    """Moments of the draws numbered ``draws``; draw k has its own generator, keyed by (seed, k).

    Two estimators whose noise has the same shape therefore see the same noise (common random numbers), and a draw is
    the same whoever makes it.

    Returns:
        the moments, and the seconds spent per draw (0 for no draws).
    """
    moments, params = GradientMoments(), {k: v.detach() for k, v in estimator.params.items()}
    gradient = grad(estimator.surrogate)
    start = clock()
    for k in draws:
        moments.update(gradient(params, batch, estimator.noise(batch, chunk_generator(seed, k))))
    return moments, (clock() - start) / max(1, moments.n)


def clock() -> float:
    """Seconds, once what a GPU has been asked to do is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Comparison:
    """What the draws of one estimator gave beside those of a reference.

    Attributes:
        moments: of its gradient.
        difference: of its gradient less the reference's, draw by draw.
        seconds: spent per draw.
    """

    moments: GradientMoments = field(default_factory=GradientMoments)
    difference: GradientMoments = field(default_factory=GradientMoments)
    seconds: float = 0.0


def compare(
    estimators: list[GradientEstimator], batch: Any, draws: Iterable[int], seed: int = 0
) -> dict[str, Comparison]:
    """Estimators of one gradient side by side under common random numbers (003, variance reduction).

    Draw k has the same noise in all of them, as far as its shape is the same, so that the part of the scatter that two
    estimators share cancels in their difference: its mean is the bias of one if the other has none.

    Args:
        estimators: the first is the reference.
        draws: numbers of the draws; wrap them in tqdm to see progress.

    Raises:
        ValueError: if they differentiate different parameters.
    """
    reference = estimators[0]
    for e in estimators:
        if set(e.params) != set(reference.params):
            raise ValueError(f"{e.name} and {reference.name} differentiate different parameters")
    params = {name: p.detach() for name, p in reference.params.items()}
    gradient = {e.name: grad(e.surrogate) for e in estimators}
    result = {e.name: Comparison() for e in estimators}
    for n, k in enumerate(draws):
        for e in estimators:
            start = clock()
            g = gradient[e.name](params, batch, e.noise(batch, chunk_generator(seed, k)))
            result[e.name].seconds += (clock() - start - result[e.name].seconds) / (n + 1)
            if e is reference:
                first = g
            result[e.name].moments.update(g)
            result[e.name].difference.update({name: g[name] - first[name] for name in params})
    return result
