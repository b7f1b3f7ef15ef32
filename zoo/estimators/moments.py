"""Variance, signal-to-noise ratio and time of gradient estimators.

The gradient is an expectation over noise, g = E[ grad_params surrogate(params, batch, noise) ]. One draw of the noise
gives one estimate of g. Let C be the covariance matrix of one such estimate. This file measures

    tr C                      total variance, summed over parameters
    SNR = |g| / sqrt(tr C)    signal-to-noise ratio

The mean g_n of n draws satisfies

    E |g_n|^2 = |g|^2 + tr C / n

The estimate of |g|^2 is therefore |g_n|^2 - tr C / n. Without this correction, the measured ratio never falls below
about 1 / sqrt(n), even if the true ratio is much smaller.
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

CHUNK = 8  # number of draws that are computed together; draw k is always in chunk k // CHUNK
# Largest number of values in the gradients of a chunk. On a CPU, larger networks gain nothing from chunks. On other
# devices, the number limits the memory: 2^28 values are 1 GB.
MAX_CHUNK_VALUES_CPU, MAX_CHUNK_VALUES = 2**22, 2**28
SLICE = 2**17  # values of a gradient that a CPU converts to float64 together; 1 MB stays in its caches


@dataclass(frozen=True)
class GradientEstimator:
    """Estimator of one gradient: its parameters, its noise, and its surrogate.

    Attributes:
        name: name that users write, such as ``pathwise`` or ``score_function``.
        params: parameters with respect to which the gradient is computed, {name: tensor}. In an adversarial model, they
            belong to one network.
        noise: ``noise(batch, generator)`` draws all random numbers of one estimate.
        surrogate: ``surrogate(params, batch, noise)`` returns a scalar. Its gradient with respect to ``params`` is one
            draw of the estimator. The function depends only on its arguments and changes no buffer.
        batched: whether torch.func.vmap can compute several draws together. False is faster if a single draw already
            uses a large batch. If it is True but vmap cannot transform the surrogate, :func:`gradients` uses a loop.
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
        """Return an estimator of the gradient of ``loss(batch, noise)`` with respect to ``params``.

        Args:
            module: module that owns the parameters. Parameters that are not in ``params`` are held fixed.
            name: name that users write.
            params: all or some parameters of ``module``, {name: tensor}.
            noise: ``noise(batch, generator=...)`` draws all random numbers of one estimate, except those of dropout.
            loss: ``loss(batch, noise)`` returns a scalar that ``module`` computes.
            batched: the attribute ``batched`` of the estimator.
        """

        has_dropout = any(isinstance(part, nn.Dropout) for part in module.modules())

        def surrogate(params: Params, batch: Any, noise: Noise) -> Tensor:
            if not has_dropout:
                return call_with(module, params, loss, batch, noise)
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                torch.manual_seed(int(noise["dropout"]))
                return call_with(module, params, loss, batch, noise)

        def draw(batch: Any, generator: torch.Generator | None) -> Noise:
            drawn = noise(batch, generator=generator)
            if has_dropout:  # dropout draws from torch's global generators, which the surrogate seeds with this number
                where = "cpu" if generator is None else generator.device
                drawn["dropout"] = torch.randint(2**31, (), generator=generator, device=where).cpu()
            return drawn

        return cls(name, params, draw, surrogate, batched and not has_dropout)


class _Method(nn.Module):
    """Module whose ``forward`` calls a function of another module, because functional_call only calls ``forward``."""

    def __init__(self, module: nn.Module, function: Callable):
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *args):
        return self.function(*args)


def call_with(module: nn.Module, params: Params, function: Callable, *args):
    """Return ``function(*args)`` with ``params`` in place of the parameters of ``module``.

    The result is differentiable in ``params``. The call uses copies of the buffers, so it does not change the BatchNorm
    statistics of ``module``.
    """
    state = {k: b.clone() for k, b in module.named_buffers()} | params
    with called_by_the_model():  # turns off checks of arguments, which cannot read values inside vmap
        return functional_call(_Method(module, function), {f"module.{k}": v for k, v in state.items()}, args)


@dataclass
class GradientMoments:
    """Running mean and variance of gradient draws, accumulated in float64.

    For every parameter tensor, the object holds the mean gradient and one sum of squared deviations. ``update`` uses
    Welford's recursion. It avoids the difference of two large numbers. The mean is on the device of the gradient, or
    on the CPU if that device has no float64.
    """

    n: int = 0
    mean: Params = field(default_factory=dict)
    squared_deviation: Params = field(default_factory=dict)  # scalars, sum over draws of |g - mean|^2

    def update(self, gradient: Params) -> None:
        """Add one draw. No value is read from the device."""
        self.n += 1
        for name, g in gradient.items():
            g = g.detach().to(where := float64_device(g.device))
            if name not in self.mean:
                self.mean[name] = torch.zeros(g.shape, dtype=torch.float64, device=where)
                self.squared_deviation[name] = torch.zeros((), dtype=torch.float64, device=where)
            slices = SLICE if where.type == "cpu" else max(1, g.numel())
            added = torch.zeros((), dtype=torch.float64, device=where)
            for part, mean in zip(g.reshape(-1).split(slices), self.mean[name].view(-1).split(slices), strict=True):
                before = part - mean  # in float64, as mean is
                mean.add_(before, alpha=1 / self.n)
                added += before.dot(before)  # (g - mean before)'(g - mean after) = |g - mean before|^2 (n - 1) / n
            self.squared_deviation[name] += added * (self.n - 1) / self.n

    def merge(self, total: Callable[[Tensor], Tensor], like: Params) -> None:
        """Merge the moments of all processes in place. Every process then holds the moments of all draws.

        Process i contributes n_i draws, their mean mean_i, and their sum of squared deviations M_i:

            mean               = sum_i n_i mean_i / n
            squared deviation  = sum_i [ M_i + n_i |mean_i - mean|^2 ]

        Args:
            total: function that returns the sum of a tensor over all processes, on every process.
            like: the parameters. A process without draws takes the shapes of the means from them.
        """
        device = float64_device(next(iter(like.values())).device)
        n = int(total(torch.tensor(self.n, device=device)))
        for name, p in like.items():
            mean = self.mean.pop(name, None)
            if mean is None:  # torch.zeros is contiguous, like the means of the other processes
                mean = torch.zeros(p.shape, dtype=torch.float64, device=device)
            merged = total(mean * self.n).div_(n)
            apart = mean.sub_(merged).view(-1)
            about = self.n * apart.dot(apart) + self.squared_deviation.get(name, 0.0)
            self.mean[name] = merged
            self.squared_deviation[name] = total(about)
        self.n = n

    def statistics(self) -> dict[str, dict[str, float]]:
        """Return variance and signal-to-noise ratio, for ``all`` parameters and for each group of parameters.

        A group is one module, at the first level where the names of the parameters differ. For example,
        ``encoder.0.weight`` is in the group ``encoder``. If all names begin with ``net``, ``net.down.0.weight`` is in
        the group ``down``. A numbered module keeps the name of its parent: ``net.0``, ``net.1``, ...

        Returns:
            ``{group: {"variance": tr C, "signal": max(0, |g_n|^2 - tr C / n), "snr": sqrt(signal / variance)}}``.
            ``snr`` is infinite for a gradient without noise, and 0 if the estimate of the signal is 0.

        Raises:
            UserError: for fewer than two draws.
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
        norms = [mean.square().sum() for mean in self.mean.values()]
        # Stack both kinds of sums, so that the CPU waits for the device once.
        read = torch.stack([*norms, *(self.squared_deviation[name] for name in self.mean)]).tolist()
        squared = dict(zip(self.mean, read, strict=False))
        deviation = dict(zip(self.mean, read[len(norms) :], strict=True))
        result = {}
        for group, names in groups.items():
            variance = sum(deviation[name] for name in names) / (self.n - 1)
            signal = max(0.0, sum(squared[name] for name in names) - variance / self.n)
            ratio = signal / variance if variance > 0 else float("inf") if signal > 0 else 0.0
            result[group] = {"variance": variance, "signal": signal, "snr": ratio**0.5}
        return result


def chunk_size(estimator: GradientEstimator) -> int:
    """Return the number of draws that are computed together: ``CHUNK`` or 1.

    The number is 1 for a large network, and for an estimator whose ``batched`` is False. A network of more than 520,000
    parameters is large on a CPU. On other devices, networks of up to 33 million parameters are not large.

    The first chunk holds draws 0 to CHUNK - 1, and the next chunk holds the next CHUNK draws. If every process computes
    whole chunks, draw k has the same bits on every process.
    """
    numel = sum(p.numel() for p in estimator.params.values())
    most = MAX_CHUNK_VALUES_CPU if on_cpu(estimator) else MAX_CHUNK_VALUES
    return CHUNK if estimator.batched and numel * CHUNK <= most else 1


def on_cpu(estimator: GradientEstimator) -> bool:
    """Return whether the parameters of ``estimator`` are on the CPU."""
    return all(p.device.type == "cpu" for p in estimator.params.values())


def gradients(estimator: GradientEstimator, batch: Any, draws: Iterable[int], seed: int = 0) -> Iterator[Params]:
    """Yield one gradient for each number in ``draws``. Draw k has its own generator, seeded by (seed, k).

    torch.func.vmap computes the draws of a chunk together. If vmap cannot transform the surrogate, for example because
    of BatchNorm, a loop computes the draws one by one. The two results differ only by rounding.
    """
    params = {k: v.detach() for k, v in estimator.params.items()}
    gradient, size = grad(estimator.surrogate), chunk_size(estimator)
    together = vmap(gradient, in_dims=(None, None, 0)) if size > 1 else None
    for _, group in groupby(draws, key=lambda k: k // size):
        noises = [estimator.noise(batch, chunk_generator(seed, k)) for k in group]
        if together is not None and len(noises) > 1 and noises[0]:
            try:
                found = together(params, batch, {k: torch.stack([noise[k] for noise in noises]) for k in noises[0]})
            except RuntimeError:
                # vmap cannot transform the surrogate, or the surrogate has a bug. The loop below then raises its error.
                together = None
            else:
                yield from ({name: g[i] for name, g in found.items()} for i in range(len(noises)))
                del found, noises  # frees memory before the next chunk
                continue
        for noise in noises:
            yield gradient(params, batch, noise)


def gradient_moments(
    estimator: GradientEstimator, batch: Any, draws: Iterable[int], seed: int = 0
) -> tuple[GradientMoments, float]:
    """Return the moments of the draws numbered ``draws``, and the mean time of a draw in seconds (0 for no draws).

    Two estimators receive the same noise if their noise has the same shapes (common random numbers). Draw k is the same
    on every process.
    """
    moments = GradientMoments()
    start = clock()
    for g in gradients(estimator, batch, draws, seed):
        moments.update(g)
        del g  # frees memory before the next draw
    return moments, (clock() - start) / max(1, moments.n)


class Split(NamedTuple):
    """The two parts of the variance of a stochastic gradient, for one group of parameters.

        total variance = E_batch[ tr Cov(g | batch) ]  +  tr Cov_batch( E[g | batch] )

    Attributes:
        variance: first term, the Monte-Carlo variance within a batch, in squared units of the gradient.
        data_variance: second term, the variance between batches, in squared units of the gradient.
        snr: |g| / sqrt(variance), with g the mean gradient over batches.
    """

    variance: float
    data_variance: float
    snr: float


class SplitVariance:
    """Split the variance into the part from the draws and the part from the data (law of total variance).

    The input is B batches with K draws each. The first term of :class:`Split` is the mean of the variances within the
    batches. The variance of the batch means is the second term plus 1 / K of the first term. The second term is
    therefore estimated by the variance of the batch means minus 1 / K of the first term. A negative estimate is
    replaced by 0. Without this replacement, the estimates of both terms and of |g|^2 are unbiased.
    """

    def __init__(self) -> None:
        self._between, self._draws = GradientMoments(), 0
        self._within: list[dict[str, float]] = []  # variance of each group, for each batch

    def update(self, moments: GradientMoments) -> None:
        """Add the draws of one batch. All batches have equal numbers of draws, at least two."""
        self._within.append({group: values["variance"] for group, values in moments.statistics().items()})
        self._draws = moments.n
        self._between.update(moments.mean)

    def result(self) -> dict[str, Split]:
        """Return {group: Split}, for ``all`` parameters and for each group.

        Raises:
            UserError: for fewer than two batches.
        """
        if self._between.n < 2:
            raise UserError(f"the variance between batches needs at least two batches, got {self._between.n}")
        result = {}
        for group, values in self._between.statistics().items():
            variance = sum(w[group] for w in self._within) / len(self._within)
            ratio = values["signal"] / variance if variance > 0 else math.inf if values["signal"] > 0 else 0.0
            result[group] = Split(variance, max(0.0, values["variance"] - variance / self._draws), ratio**0.5)
        return result


def split_variance(per_batch: Iterable[GradientMoments]) -> dict[str, Split]:
    """Return the result of :class:`SplitVariance` for the moments of at least two batches.

    If ``per_batch`` is a generator, only one batch of moments is in memory at a time.

    Raises:
        UserError: for fewer than two batches, or fewer than two draws in a batch.
    """
    split = SplitVariance()
    for moments in per_batch:
        split.update(moments)
    return split.result()


def clock() -> float:
    """Return a time in seconds, after the GPU has finished all queued work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Comparison:
    """Measurements of one estimator, also in comparison with a reference estimator.

    Attributes:
        moments: moments of the gradient.
        difference: moments of the difference between this gradient and the gradient of the reference in the same draw.
        seconds: mean time per draw, in seconds.
    """

    moments: GradientMoments = field(default_factory=GradientMoments)
    difference: GradientMoments = field(default_factory=GradientMoments)
    seconds: float = 0.0


def compare(
    estimators: list[GradientEstimator], batch: Any, draws: Iterable[int], seed: int = 0
) -> dict[str, Comparison]:
    """Compare estimators of one gradient under common random numbers [Liao22, Variance Reduction].

    In draw k, two estimators receive the same noise if their noise has the same shapes. Variation that both share then
    cancels in their difference. If the reference is unbiased, the mean difference is the bias of the other estimator.

    Args:
        estimators: estimators to compare. The first is the reference.
        batch: batch on which the gradients are computed.
        draws: numbers of the draws. Wrap them in tqdm to see progress.
        seed: seed of the noise.

    Returns:
        {name of the estimator: Comparison}.

    Raises:
        UserError: if the estimators differentiate different parameters.
    """
    reference = estimators[0]
    for e in estimators:
        if set(e.params) != set(reference.params):
            raise UserError(
                f"{e.name} and {reference.name} differentiate different parameters; compare estimators of one gradient"
            )
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
