"""Callback that measures the variance of a model's gradient estimators during training."""

import logging
import math
import time
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from zoo.callbacks.cadence import logged_step
from zoo.callbacks.exact_resume import ExactResume
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.pixels import as_batch
from zoo.checks.values import check_integer
from zoo.estimators import GradientEstimator, GradientMoments, chunk_size, gradient_moments, split_variance
from zoo.estimators.figures import plot, table
from zoo.functional.noise import chunk_generator
from zoo.functional.progress import tracked
from zoo.sampling.pictures import save_figure
from zoo.training.ranks import all_rows, shows_progress

log = logging.getLogger(__name__)

# These constants apply to every_n_steps="auto".
AUTO_FRACTION = 0.05  # largest fraction of the training time that measuring takes
AUTO_STEPS = 10  # the batches between two checks are a multiple of this number
AUTO_DRAWS = (2, 4)  # number of draws at first; number of measurements after which the number of draws doubles


class EstimatorVariance(L.Callback):
    """Measure the variance of each gradient estimator at intervals, on a fixed batch of validation data.

    The callback logs these values for each estimator in ``model.gradient_estimators()`` and each parameter group
    (``all``, ``encoder``, ...):

        variance/<estimator>/<group>     trace of the covariance of one draw, squared units of the gradient
        snr/<estimator>/<group>          |g| / sqrt(tr C), without the bias of |g|^2 (zoo/estimators/moments.py)
        ms_per_draw/<estimator>          cost of one draw in milliseconds, mean over the processes

    It also logs ``estimator_draws``, the number of draws of the measurement.

    If ``batches`` is above 1, ``variance`` is the mean over the batches. Two more values are then logged:

        data_variance/<estimator>/<group>    variance of the expected gradient between batches of ``batch_size``
        total_variance/<estimator>/<group>   the sum of both variances, as in the gradients of training steps

    The noise of draw k has the key (seed, k), on every process and for every estimator. For small networks, the draws
    of a chunk are computed together (zoo.estimators.chunk_size). The processes take the chunks in turns, and merge
    their moments in float64. The result of K draws therefore does not depend on the number of processes.

    Each estimator needs memory for one draw, one gradient, and the mean gradient in float64. Networks of at most
    520,000 parameters need memory for the eight draws of a chunk. If ``batches`` is above 1, each estimator also needs
    memory for a second mean gradient.

    The callback does not affect training. It only reads the parameters, accumulates no gradient, and uses no global
    random state. Gradients are computed at the trained weights, not at the averaged weights. Their precision is the
    precision of the stored weights, which is float32 under mixed precision. If training accumulates gradients over
    batches, a draw still uses one batch.

    Args:
        folder: folder of ``estimator_variance.png``, which is written at the end of the run.
        every_n_steps: training batches between measurements, or a fraction of the run such as 0.25, or ``auto``. With
            an integer or a fraction, the first measurement is before the first step. ``auto`` measures as often as
            possible in less than 5 % of the training time, and never before the first step. Its first four
            measurements have 2 draws. The number of draws then doubles after every four measurements, up to
            ``draws``. The first measurements are cheap, so short runs also have measurements.
        draws: gradients per estimator and batch, over all processes, at least 2. With ``auto``, ``draws`` is the
            largest number.
        batch_size: examples in a fixed batch. The fixed batches are the first examples of the validation set.
        batches: number of fixed batches. With more than one, ``data_variance`` is measured as well.
        compare: names of the estimators to measure, or None for all estimators of the model.
        seed: seed of the noise and of the binarisation of the fixed batches.

    Raises:
        UserError: if a value is not allowed. ``setup`` raises it if the model has no ``gradient_estimators``, or
            lacks an estimator that ``compare`` names. ``on_train_start`` raises it if there are too few validation
            data, or if ``every_n_steps`` is a fraction and ``max_epochs`` is None or -1.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int | float | str = "auto",
        draws: int = 16,
        batch_size: int = 64,
        batches: int = 1,
        compare: list[str] | None = None,
        seed: int = 0,
    ):
        check_integer("draws", draws, least=2)
        if isinstance(every_n_steps, float):
            if not 0 < every_n_steps < 1:
                raise UserError(
                    f"every_n_steps is {every_n_steps}, but must be an integer number of steps or a fraction of the "
                    "run between 0 and 1, both excluded"
                )
        elif every_n_steps != "auto":
            if isinstance(every_n_steps, str):
                raise UserError(
                    f"every_n_steps is {every_n_steps!r}, but must be an integer, a fraction below 1, or auto"
                )
            check_integer("every_n_steps", every_n_steps)
        check_integer("batch_size", batch_size)
        check_integer("batches", batches)
        check_integer("seed", seed, least=0)
        names = compare if isinstance(compare, list | tuple) else []
        strings = {name for name in names if isinstance(name, str)}
        if compare is not None and (not names or len(strings) < len(names)):
            raise UserError(f"compare is {compare!r}, but must be null or a list of estimators without repetitions")
        self.folder, self.every_n_steps, self.draws, self.batch_size = Path(folder), every_n_steps, draws, batch_size
        self.batches, self.compare, self.seed = batches, compare, seed
        self.probes: list[Any] = []
        self.history: list[dict[str, float]] = []  # one row per measurement, with "step"
        self._seconds = 0.0  # seconds spent on all measurements
        self._per_draw = 0.0  # seconds of one draw of all estimators on all fixed batches, when last measured
        self._started: float | None = None  # monotonic time at which training in this process began, seconds
        self._trained_before = 0.0  # seconds of training before this process resumed the run
        self._first_step, self._next = 0, AUTO_STEPS  # first step of this process; earliest step to measure at

    def setup(self, trainer, pl_module, stage):
        name = type(pl_module).__name__
        if not isinstance(pl_module, capabilities.GradientEstimators):
            raise UserError(
                f"{name} has no method gradient_estimators(), which EstimatorVariance needs: remove the callback "
                "(~callbacks.estimator_variance)"
            )
        known = pl_module.gradient_estimators()
        unknown = [e for e in self.compare or [] if e not in known]
        if unknown:
            raise UserError(f"{name} has no gradient estimator {', '.join(unknown)}; choose from {', '.join(known)}")

    def on_train_start(self, trainer, pl_module):
        loader = trainer.val_dataloaders  # None before the first validation
        source = trainer.fit_loop.epoch_loop.val_loop._data_source  # the loader or the data module
        if loader is None and source.is_defined() and trainer.limit_val_batches:
            loader = source.dataloader()
        if isinstance(loader, list | tuple):
            loader = next(iter(loader), None)
        if loader is None:
            raise UserError(
                "EstimatorVariance measures on validation data, and this run has none: set trainer.limit_val_batches "
                "above 0, or remove the callback (~callbacks.estimator_variance)"
            )
        with isolate_rng():
            self.probes = list(probe_batches(loader, self.batch_size, self.batches, trainer, pl_module.device))
        if len(self.probes) < self.batches:
            raise UserError(
                f"the validation data have {len(self.probes)} whole batches of {self.batch_size} examples, fewer than "
                f"batches={self.batches} of EstimatorVariance: lower batches or batch_size"
            )
        if isinstance(pl_module, capabilities.ProbeBatch):
            # One generator for each batch, so that the first batch is the same for any number of batches.
            generators = [chunk_generator(self.seed, -1 - i) for i in range(len(self.probes))]
            self.probes = [
                pl_module.probe_batch(probe, generator=generator)
                for probe, generator in zip(self.probes, generators, strict=True)
            ]
        if isinstance(self.every_n_steps, float) and trainer.max_epochs in (None, -1):
            raise UserError(
                f"every_n_steps={self.every_n_steps} is a fraction of the run, and this run has no end: set "
                "trainer.max_epochs, or every_n_steps to an integer"
            )
        self._started = time.monotonic()
        self._first_step = trainer.fit_loop.total_batch_idx + 1
        self._next = max(self._next, self._first_step)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.fit_loop.total_batch_idx
        draws = self._due(trainer, pl_module, step)
        if draws < 2:
            return
        start = time.monotonic()
        row: dict[str, float] = {"step": step, "estimator_draws": draws}
        with isolate_rng():
            for name, estimator in pl_module.gradient_estimators().items():
                if self.compare is not None and name not in self.compare:
                    continue
                measured = self._measure(trainer, name, estimator, draws)
                if measured is None:  # interrupted
                    return
                row |= measured
        spent = time.monotonic() - start
        self._seconds += spent
        self._per_draw = spent / draws
        self.history.append(row)
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step=logged_step(trainer))

    def _due(self, trainer, pl_module, step: int) -> int:
        """Return the number of draws of a measurement before this step, or 0 for no measurement."""
        interval = self.every_n_steps
        if not isinstance(interval, str):
            if isinstance(interval, float):
                interval = max(1, int(interval * trainer.max_epochs * trainer.num_training_batches))
            return 0 if step % interval else self.draws
        if step < self._next:
            return 0
        draws, wait = self._affordable(pl_module, step)
        # The clocks of the processes differ. Rank 0 decides, because all processes must measure together.
        draws, wait = trainer.strategy.broadcast((draws, wait))
        self._next = step + max(1, round(wait / AUTO_STEPS)) * AUTO_STEPS
        return draws

    def _affordable(self, pl_module, step: int) -> tuple[int, int]:
        """Return (draws, steps): the draws that the time limit allows now, or 0, and the steps until the next check."""
        now = time.monotonic()
        trained = self._trained(now) - self._seconds
        here = self._trained(now) - self._trained_before
        per_step = max(1e-9, here / max(1, step - self._first_step + 1))
        fewest, repeated = AUTO_DRAWS
        draws = min(self.draws, fewest * 2 ** (len(self.history) // repeated))
        # Before the first measurement, assume that a draw takes as long as a training step.
        per_draw = self._per_draw or per_step * self.batches * self._number_of_estimators(pl_module)
        missing = draws * per_draw + self._seconds - AUTO_FRACTION * trained
        if missing > 0:
            return 0, math.ceil(missing / AUTO_FRACTION / per_step)
        return draws, AUTO_STEPS

    def _trained(self, now: float) -> float:
        """Return the seconds of training and measurements, in this process and in earlier processes of the run."""
        # Lightning's tuners save and restore the state before training begins, when _started is None.
        return self._trained_before + (0.0 if self._started is None else now - self._started)

    def _number_of_estimators(self, pl_module) -> int:
        return len(self.compare or pl_module.gradient_estimators())

    def _measure(self, trainer, name: str, estimator: GradientEstimator, draws: int) -> dict[str, float] | None:
        """Return the measured values of one estimator, by name. Return None on all processes after a signal to stop."""
        size = chunk_size(estimator)
        mine = [k for k in range(draws) if k // size % trainer.world_size == trainer.global_rank]
        stride = -(-draws // size) * size  # the draws of each batch begin with a new chunk
        seconds = []

        def moments() -> Iterator[GradientMoments]:
            for i, probe in enumerate(self.probes):
                numbers = tracked(
                    [i * stride + k for k in mine], f"measuring {name}", "draw", show=shows_progress(trainer)
                )
                found, spent = gradient_moments(estimator, probe, until_interrupted(numbers, trainer), self.seed)
                if trainer.strategy.reduce_boolean_decision(interrupted(trainer), all=False):
                    raise Interrupted
                if trainer.world_size > 1:
                    found.merge(lambda t: trainer.strategy.reduce(t, reduce_op="sum"), estimator.params)
                seconds.append(spent)
                yield found

        row = {}
        try:
            if self.batches == 1:
                for group, values in next(moments()).statistics().items():
                    row[f"variance/{name}/{group}"] = values["variance"]
                    row[f"snr/{name}/{group}"] = values["snr"]
            else:
                for group, split in split_variance(moments()).items():
                    row[f"variance/{name}/{group}"] = split.variance
                    row[f"data_variance/{name}/{group}"] = split.data_variance
                    row[f"total_variance/{name}/{group}"] = split.variance + split.data_variance
                    row[f"snr/{name}/{group}"] = split.snr
        except Interrupted:
            return None
        return row | {f"ms_per_draw/{name}": 1000 * mean_over_processes(seconds, trainer)}

    def state_dict(self):
        state = {"history": self.history, "seconds": self._seconds, "trained": self._trained(time.monotonic())}
        return state | {"per_draw": self._per_draw, "next": self._next}

    def load_state_dict(self, state):
        self.history = state["history"]
        self._seconds, self._per_draw = state.get("seconds", 0.0), state.get("per_draw", 0.0)
        self._trained_before, self._next = state.get("trained", 0.0), state.get("next", AUTO_STEPS)

    def on_train_end(self, trainer, pl_module):
        if not trainer.is_global_zero:
            return
        if not self.history:
            log.info(
                "Gradient estimators were not measured, because the run was short. "
                "callbacks.estimator_variance.every_n_steps=10 measures them in any case"
            )
            return
        save_figure(plot(self.history), self.folder / "estimator_variance.png")
        columns, rows = table(self.history)
        for logger in trainer.loggers:
            if isinstance(logger, capabilities.LogsImages):
                logger.log_image("estimator_variance", [str(self.folder / "estimator_variance.png")])
            if isinstance(logger, capabilities.LogsTables):
                logger.log_table("estimator_variance_table", columns, rows)


class Interrupted(Exception):
    """Exception that ends a measurement after a signal."""


def interrupted(trainer) -> bool:
    """Return whether this process has received a signal that ends the run after this batch."""
    return any(c.received is not None for c in trainer.callbacks if isinstance(c, ExactResume))


def until_interrupted(draws: Iterable[int], trainer) -> Iterator[int]:
    """Yield from ``draws`` until a signal arrives, so that the run ends soon after Ctrl-C."""
    return takewhile(lambda _: not interrupted(trainer), draws)


def probe_batches(loader, size: int, count: int, trainer, device: torch.device) -> Iterator[list[torch.Tensor]]:
    """Yield the first ``count`` batches of ``size`` examples. Every process gets the same batches.

    If ``count`` is 1 and the first batch of the loader is smaller than ``size``, that batch is yielded.

    Args:
        loader: a loader that gives each process a part of every batch.
        size: examples per batch.
        count: number of batches.
        trainer: Lightning's trainer.
        device: device of the batches.
    """
    left, given = None, 0
    for batch in loader:
        whole = [all_rows(t.to(device), trainer) for t in as_batch(batch)]
        left = whole if left is None else [torch.cat(pair) for pair in zip(left, whole, strict=True)]
        while len(left[0]) >= size or count == 1:
            yield [t[:size] for t in left]
            left, given = [t[size:] for t in left], given + 1
            if given == count:
                return


def mean_over_processes(seconds: list[float], trainer) -> float:
    """Return the mean over batches and processes of the values above 0. A process without draws has 0."""
    made = torch.tensor([sum(s > 0 for s in seconds), sum(seconds)], device=trainer.strategy.root_device)
    count, total = trainer.strategy.reduce(made, reduce_op="sum").tolist()
    return total / max(1, count)
