"""A measurement of gradient estimators at one set of parameters, which can be made in parts between training steps."""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from zoo.estimators import GradientEstimator, GradientMoments, SplitVariance, chunk_size, gradients
from zoo.estimators.moments import CHUNK, clock, on_cpu

Part = tuple[str, list[int]]  # name of an estimator, and the numbers of the draws that are made together


class Measurement:
    """Draws of several estimators on fixed batches, and the values that are computed from them.

    :meth:`advance` makes the draws of one batch in parts. On a CPU, a part is a chunk of draws, or one draw of an
    estimator without chunks. On a GPU, a part has up to eight draws of any estimator, because the CPU waits for the GPU
    after each part. All estimators advance together. A measurement that ends early therefore has similar numbers of
    draws for each. :meth:`end_batch` begins the next batch. The values do not depend on how often :meth:`advance` is
    called.

    Each estimator needs memory for one mean gradient in float64. With several batches, it needs two.

    Args:
        estimators: {name: estimator}.
        batches: the fixed batches.
        draws: gradients per estimator and batch, over all processes.
        most: largest ``draws`` of all measurements. It sets the numbers of the draws of each batch, which therefore do
            not depend on ``draws``.
        seed: seed of the noise.
        rank: rank of this process. The processes take the chunks in turns.
        world_size: number of processes.
        seconds_per_draw: {name: seconds of a draw} from earlier measurements. This measurement updates it.
        total: function that returns the sum of a tensor over all processes, on every process. None for one process.
    """

    def __init__(
        self,
        estimators: dict[str, GradientEstimator],
        batches: list[Any],
        draws: int,
        *,
        most: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        seconds_per_draw: dict[str, float] | None = None,
        total: Callable[[Tensor], Tensor] | None = None,
    ):
        self.estimators, self.batches, self.draws, self.seed = estimators, batches, draws, seed
        self.most, self.rank, self.world_size, self.total = max(most, draws), rank, world_size, total
        self.seconds_per_draw = {} if seconds_per_draw is None else seconds_per_draw
        self.made = dict.fromkeys(estimators, draws)  # draws per batch, over all processes; ``end_early`` lowers them
        self._seconds = {name: [0.0, 0.0] for name in estimators}  # number of draws of this process, and their seconds
        self._statistics: dict[str, dict[str, dict[str, float]]] = {}  # used with one batch
        self._split = {name: SplitVariance() for name in estimators}  # used with several batches
        self._batch = -1
        self._begin_batch()

    @property
    def done(self) -> bool:
        """Whether all draws of all batches are made."""
        return self._batch == len(self.batches)

    @property
    def batch_done(self) -> bool:
        """Whether this process has made its draws of the current batch."""
        return not self._parts

    def advance(
        self,
        seconds: float = math.inf,
        stop: Callable[[], bool] = lambda: False,
        tracked: Callable[[list[Part]], Iterable[Part]] = iter,
    ) -> None:
        """Make at least one part of the draws of the current batch.

        Args:
            seconds: time limit. After the first part, no part begins that is expected to exceed the limit.
            stop: function that returns whether to stop before the next part.
            tracked: function that yields the parts and shows the progress.
        """
        begun = now = clock()
        for n, (name, draws) in enumerate(tracked(list(self._parts))):
            late = n > 0 and now - begun + self._expected((name, draws), 0.0) > seconds
            if late or stop():
                break
            self._parts.popleft()
            estimator, moments = self.estimators[name], self._moments[name]
            first = self._batch * stride(estimator, self.most)
            for g in gradients(estimator, self.batches[self._batch], [first + k for k in draws], self.seed):
                moments.update(g)
                del g  # frees memory before the next draw
            before, now = now, clock()
            count = self._seconds[name]
            count[0], count[1] = count[0] + len(draws), count[1] + now - before
            # The fastest draw counts, because the first draw also compiles and imports.
            self.seconds_per_draw[name] = min(self.seconds_per_draw.get(name, math.inf), (now - before) / len(draws))

    def next_seconds(self, most: float, unknown: float) -> float:
        """Return the expected seconds of the next call of :meth:`advance` with the time limit ``most``.

        Args:
            most: time limit, seconds.
            unknown: assumed seconds of a draw of an estimator that was not measured yet.
        """
        parts = [self._expected(part, unknown) for part in self._parts]
        return max(parts[0], min(most, sum(parts))) if parts else 0.0

    def end_batch(self) -> None:
        """Merge the draws of the current batch over the processes, and begin the next batch.

        All processes must call this method, after each has made its draws.
        """
        for name, moments in self._moments.items():
            if self.total is not None:
                moments.merge(self.total, self.estimators[name].params)
            if len(self.batches) == 1:
                self._statistics[name] = moments.statistics()
            else:
                self._split[name].update(moments)
        self._begin_batch()

    def end_early(self) -> bool:
        """End the measurement with the draws made so far. Return whether they are enough for :meth:`values`.

        With one batch, every estimator needs two draws. With several batches, two batches must be complete. The draws
        of an incomplete batch are then dropped. All processes must call this method.
        """
        if len(self.batches) > 1:
            return self._batch >= 2
        total = self.total or (lambda value: value)
        device = next(iter(next(iter(self.estimators.values())).params.values())).device
        made = total(torch.tensor([m.n for m in self._moments.values()], device=device)).tolist()
        self.made = dict(zip(self.estimators, made, strict=True))
        if min(made) < 2:
            return False
        self.end_batch()
        return True

    def values(self) -> dict[str, float]:
        """Return {logged name: value}, with ``estimator_draws``. All processes must call this method."""
        row: dict[str, float] = {"estimator_draws": min(self.made.values())}
        for name in self.estimators:
            if len(self.batches) == 1:
                for group, values in self._statistics[name].items():
                    row[f"variance/{name}/{group}"] = values["variance"]
                    row[f"snr/{name}/{group}"] = values["snr"]
            else:
                for group, split in self._split[name].result().items():
                    row[f"variance/{name}/{group}"] = split.variance
                    row[f"data_variance/{name}/{group}"] = split.data_variance
                    row[f"total_variance/{name}/{group}"] = split.variance + split.data_variance
                    row[f"snr/{name}/{group}"] = split.snr
            row[f"ms_per_draw/{name}"] = 1000 * self._mean_seconds(name)
        return row

    def _begin_batch(self) -> None:
        self._batch += 1
        self._moments = {name: GradientMoments() for name in self.estimators}
        # Sort by the first draw, so that the estimators take turns.
        parts = () if self.done else self._parts_of_a_batch()
        self._parts: deque[Part] = deque(sorted(parts, key=lambda part: part[1][0]))

    def _parts_of_a_batch(self) -> Iterator[Part]:
        for name, estimator in self.estimators.items():
            size = chunk_size(estimator)
            at_once = size if on_cpu(estimator) else CHUNK
            mine = (k for k in range(self.draws) if k // size % self.world_size == self.rank)
            yield from ((name, list(part)) for _, part in groupby(mine, key=lambda k: k // at_once))

    def _expected(self, part: Part, unknown: float) -> float:
        name, draws = part
        return len(draws) * self.seconds_per_draw.get(name, unknown)

    def _mean_seconds(self, name: str) -> float:
        count = self._seconds[name]
        if self.total is not None:
            device = next(iter(self.estimators[name].params.values())).device
            count = self.total(torch.tensor(count, device=device)).tolist()
        return count[1] / max(1.0, count[0])


def stride(estimator: GradientEstimator, most: int) -> int:
    """Return the difference between the numbers of the first draws of two successive batches.

    It is at least ``most`` and a multiple of the chunk size, so that each batch begins with a new chunk.
    """
    size = chunk_size(estimator)
    return -(-most // size) * size


def frozen(model: Any) -> Any:
    """Return a copy of ``model`` that training does not change, for the estimators of one measurement.

    A copy of the parameters would not be enough. The estimators also read buffers and other tensors of the model,
    such as the persistent chains of an RBM. Some read the step of the run, for example for the temperature of a VAE.

    The copy of a compiled model is not compiled. Its values differ from those of the compiled model by rounding.

    Args:
        model: a LightningModule that is attached to a Trainer.
    """
    trainer = model._trainer
    copied = copy.deepcopy(model)  # LightningModule copies neither the Trainer nor compiled code
    copied.trainer = _AtStep(trainer) if trainer is not None else None
    return copied


class _AtStep:
    """A Trainer as it was at one step of the run."""

    def __init__(self, trainer):
        self._trainer, self.global_step, self.current_epoch = trainer, trainer.global_step, trainer.current_epoch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)
