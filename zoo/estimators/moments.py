"""How much a gradient estimator scatters.

A gradient that is an expectation over noise, g = E[ grad_params surrogate(params, batch, noise) ], is estimated by one
draw of the noise. With C the covariance of that draw, its figures of merit are

    tr C               the total variance, summed over parameters
    SNR = |g| / sqrt(tr C)

and from n draws with mean g_n,  E |g_n|^2 = |g|^2 + tr C / n,  so that |g|^2 is estimated by |g_n|^2 - tr C / n: the
ratio without that correction never falls below about 1 / sqrt(n), however small the true one is.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from zoo.checks.calls import called_by_the_model
from zoo.checks.errors import UserError
from zoo.functional.noise import chunk_generator
from zoo.functional.precision import float64_device

Params = dict[str, Tensor]
Noise = dict[str, Tensor]

CHUNK = 8  # draws that are batched, where they are; always the same ones together, so that their bits are the same
MOST_AT_ONCE = 2**22  # numbers in the gradients of a chunk: larger networks are as fast one draw at a time
SLICE = 2**17  # numbers of a gradient that are in float64 at once, beside their mean: half a megabyte stays in caches


@dataclass(frozen=True)
class GradientEstimator:
    """One way to estimate one gradient.

    Attributes:
        name: as users write it, ``pathwise``, ``score_function``.
        params: what it differentiates, by name; of one player only.
        noise: ``noise(batch, generator)`` draws everything that is random, at once.
        surrogate: ``surrogate(params, batch, noise)``, a scalar whose gradient with respect to ``params`` is that draw
            of the estimator. It depends on its arguments alone and changes no buffer.
        batched: whether several draws of a small network may go through torch.func.vmap together. False for what makes
            so much of one draw that this is slower; a surrogate that vmap cannot take needs not say so.
    """

    name: str
    params: Params
    noise: Callable[[Any, torch.Generator | None], Noise]
    surrogate: Callable[[Params, Any, Noise], Tensor]
    batched: bool = True

    @classmethod
    def of(
        cls,
        module: nn.Module,
        name: str,
        params: Params,
        noise: Callable[..., Noise],
        loss: Callable[[Any, Noise], Tensor],
        batched: bool = True,
    ) -> "GradientEstimator":
        """The gradient of ``loss(batch, noise)``, a scalar that ``module`` computes, by ``params``.

        Args:
            module: whose parameters ``params`` are, or some of them; the others are held fixed.
            noise: ``noise(batch, generator=...)``.
        """

        def surrogate(params: Params, batch: Any, noise: Noise) -> Tensor:
            return call_with(module, params, loss, batch, noise)

        def draw(batch: Any, generator: torch.Generator | None) -> Noise:
            return noise(batch, generator=generator)

        return cls(name, params, draw, surrogate, batched)


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
    with called_by_the_model():  # torch.func.vmap has no values to look at
        return functional_call(_Method(module, function), {f"module.{k}": v for k, v in state.items()}, args)


@dataclass
class GradientMoments:
    """Running moments of gradient draws, accumulated in float64: one mean vector, one scalar per parameter.

    ``update`` is Welford's recursion, so that no large numbers are subtracted. In memory it is the mean, in float64: on
    the device of the gradient, or on the CPU where that device has no float64.
    """

    n: int = 0
    mean: Params = field(default_factory=dict)
    squared_deviation: dict[str, float] = field(default_factory=dict)  # sum over draws of |g - mean|^2

    def update(self, gradient: Params) -> None:
        """Take in one draw."""
        self.n += 1
        for name, g in gradient.items():
            g = g.to(where := float64_device(g.device))
            if name not in self.mean:
                self.mean[name] = torch.zeros(g.shape, dtype=torch.float64, device=where)
            mean = self.mean[name]
            added = torch.zeros((), dtype=torch.float64, device=where)
            for part, mean_part in zip(g.detach().reshape(-1).split(SLICE), mean.view(-1).split(SLICE), strict=True):
                before = part - mean_part  # in float64, as mean is
                mean_part.add_(before, alpha=1 / self.n)
                added += before.dot(before)  # (g - mean before)'(g - mean after) = |g - mean before|^2 (n - 1) / n
            deviation = added.item() * (self.n - 1) / self.n
            self.squared_deviation[name] = self.squared_deviation.get(name, 0.0) + deviation

    def merge(self, total: Callable[[Tensor], Tensor], like: Params) -> None:
        """Take in the moments of the other processes, exactly, in place; every process then has those of all draws.

        mean = sum_i n_i mean_i / n, and the squared deviations about it are sum_i [ M_i + n_i |mean_i - mean|^2 ].

        Args:
            total: the sum of a tensor over processes, on each of them.
            like: the parameters, for a process that has made no draw.
        """
        device = float64_device(next(iter(like.values())).device)
        n = int(total(torch.tensor(self.n, device=device)))
        for name, p in like.items():
            mean = self.mean.pop(name, None)
            if mean is None:  # in the memory order of the others', whatever that of p is
                mean = torch.zeros(p.shape, dtype=torch.float64, device=device)
            merged = total(mean * self.n).div_(n)
            apart = mean.sub_(merged).view(-1)
            about = self.n * apart.dot(apart) + self.squared_deviation.get(name, 0.0)
            self.mean[name] = merged
            self.squared_deviation[name] = float(total(about))
        self.n = n

    def statistics(self) -> dict[str, dict[str, float]]:
        """Variance and signal-to-noise ratio, for ``all`` parameters and for each group.

        A group is a module at the first level where parameters differ: ``encoder.0.weight`` is in ``encoder``, and
        ``net.down.0.weight`` in ``down`` if everything is in ``net``; of numbered modules in ``net.0``, ``net.1``, ...

        Returns:
            ``{group: {"variance": tr C, "signal": max(0, |g_n|^2 - tr C / n), "snr": sqrt(signal / variance)}}``; the
            ratio is infinite for a gradient without noise and 0 where noise hides the signal.

        Raises:
            UserError: for fewer than two draws, which have no variance.
        """
        if self.n < 2:
            raise UserError(f"a variance needs at least two draws, got {self.n}")
        groups: dict[str, list[str]] = {"all": list(self.mean)}
        level = 0
        while len({tuple(name.split(".")[: level + 1]) for name in self.mean}) == 1 and len(self.mean) > 1:
            level += 1
        for name in self.mean:
            parts = name.split(".")
            group = parts[level] if level == 0 or not parts[level].isdigit() else ".".join(parts[level - 1 : level + 1])
            groups.setdefault(group, []).append(name)
        result = {}
        for group, names in groups.items():
            variance = sum(self.squared_deviation[name] for name in names) / (self.n - 1)
            signal = max(0.0, sum(self.mean[name].square().sum().item() for name in names) - variance / self.n)
            ratio = signal / variance if variance > 0 else float("inf") if signal > 0 else 0.0
            result[group] = {"variance": variance, "signal": signal, "snr": ratio**0.5}
        return result


def chunk_size(estimator: GradientEstimator) -> int:
    """How many draws are made together: ``CHUNK`` of a small network, one of others.

    Those together are draws 0 to CHUNK - 1, then the next CHUNK, and so on, so that processes can take whole chunks in
    turns and each draw has the same bits whoever makes it.
    """
    numel = sum(p.numel() for p in estimator.params.values())
    return CHUNK if estimator.batched and numel * CHUNK <= MOST_AT_ONCE else 1


def gradients(estimator: GradientEstimator, batch: Any, draws: Iterable[int], seed: int = 0) -> Iterator[Params]:
    """One gradient for each number in ``draws``; draw k has its own generator, keyed by (seed, k).

    The draws of a chunk go through torch.func.vmap together, unless the surrogate holds what vmap cannot take, such as
    batch normalisation: then one after the other, with the same result but for rounding.
    """
    params = {k: v.detach() for k, v in estimator.params.items()}
    gradient, size = grad(estimator.surrogate), chunk_size(estimator)
    together = vmap(gradient, in_dims=(None, None, 0)) if size > 1 else None
    for _, group in groupby(draws, key=lambda k: k // size):
        noises = [estimator.noise(batch, chunk_generator(seed, k)) for k in group]
        if together is not None and len(noises) > 1 and noises[0]:
            try:
                found = together(params, batch, {k: torch.stack([noise[k] for noise in noises]) for k in noises[0]})
            except RuntimeError:  # what is wrong with the surrogate itself, the loop below says
                together = None
            else:
                yield from ({name: g[i] for name, g in found.items()} for i in range(len(noises)))
                del found, noises  # before the next ones are made
                continue
        for noise in noises:
            yield gradient(params, batch, noise)


def gradient_moments(
    estimator: GradientEstimator, batch: Any, draws: Iterable[int], seed: int = 0
) -> tuple[GradientMoments, float]:
    """Moments of the draws numbered ``draws``.

    Two estimators whose noise has the same shape see the same noise (common random numbers), and a draw is the same
    whoever makes it.

    Returns:
        the moments, and the seconds spent per draw (0 for no draws).
    """
    moments = GradientMoments()
    start = clock()
    for g in gradients(estimator, batch, draws, seed):
        moments.update(g)
        del g  # before the next one is made
    return moments, (clock() - start) / max(1, moments.n)


class Split(NamedTuple):
    """The variance of a stochastic gradient, in squared units of the gradient, for one group of parameters.

    total = E_batch[ tr Cov(g | batch) ]  +  tr Cov_batch( E[g | batch] )
             Monte-Carlo noise, ``variance``   noise of the data, ``data_variance``
    """

    variance: float
    data_variance: float
    snr: float


def split_variance(per_batch: Iterable[GradientMoments]) -> dict[str, Split]:
    """Tell the noise of the data from that of the draws (law of total variance).

    From B batches with K draws each: the first term is the mean of their variances; the second the variance of their
    means, less the 1 / K of the first that is in it, and at least 0. Both are unbiased but for that, and so is |g|^2
    in ``snr``.

    Args:
        per_batch: moments of the draws of each batch, of at least two batches and with equal numbers of draws. Each is
            let go before the next is asked for.

    Returns:
        for ``all`` parameters and each group; ``snr`` is |g| of the mean over batches over sqrt(variance).

    Raises:
        UserError: for fewer than two batches, or fewer than two draws of one.
    """
    between, within = GradientMoments(), []
    for moments in per_batch:
        within.append({group: values["variance"] for group, values in moments.statistics().items()})
        draws = moments.n
        between.update(moments.mean)
    if between.n < 2:
        raise UserError(f"the noise of the data needs at least two batches, got {between.n}")
    result = {}
    for group, values in between.statistics().items():
        variance = sum(w[group] for w in within) / len(within)
        ratio = values["signal"] / variance if variance > 0 else math.inf if values["signal"] > 0 else 0.0
        result[group] = Split(variance, max(0.0, values["variance"] - variance / draws), ratio**0.5)
    return result


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
        UserError: if they differentiate different parameters.
    """
    reference = estimators[0]
    for e in estimators:
        if set(e.params) != set(reference.params):
            raise UserError(f"{e.name} and {reference.name} differentiate different parameters")
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
