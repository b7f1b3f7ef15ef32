"""Callback that measures the variance of a model's gradient estimators during training."""

import logging
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from zoo.callbacks.cadence import logged_step
from zoo.callbacks.exact_resume import ExactResume
from zoo.callbacks.grids import log_picture
from zoo.callbacks.measurement import Measurement, frozen
from zoo.callbacks.measuring_budget import MeasuringBudget
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.pixels import as_batch
from zoo.checks.values import check_integer
from zoo.estimators import GradientEstimator, chunk_size
from zoo.estimators.figures import plot, table
from zoo.functional.noise import chunk_generator
from zoo.functional.progress import tracked
from zoo.sampling.pictures import save_figure
from zoo.training.ranks import all_rows, shows_progress

log = logging.getLogger(__name__)

# These constants apply to every_n_steps="auto".
AUTO_FRACTION = 0.05  # largest fraction of the training time that measuring takes
AUTO_STEPS = 10  # the batches between two checks for a new measurement are a multiple of this number
AUTO_DRAWS = (2, 4)  # least number of draws at first; number of measurements after which it doubles
# One measurement takes AUTO_FRACTION of this many seconds of training, or more for its least number of draws. A minute
# of training then has two measurements.
AUTO_TRAINING = 25.0
PAUSE = 0.25  # largest number of seconds that training waits for a part, unless one chunk of draws takes longer


class EstimatorVariance(L.Callback):
    """Measure the variance of each gradient estimator at intervals, on a fixed batch of validation data.

    The callback logs these values for each estimator in ``model.gradient_estimators()`` and each parameter group
    (``all``, ``encoder``, ...):

        variance/<estimator>/<group>     trace of the covariance of one draw, squared units of the gradient
        snr/<estimator>/<group>          |g| / sqrt(tr C), without the bias of |g|^2 (zoo/estimators/moments.py)
        ms_per_draw/<estimator>          cost of one draw in milliseconds, mean over the processes

    It also logs ``estimator_draws``, the number of draws of the measurement. The step of a measurement is the step of
    the measured weights.

    If ``batches`` is above 1, ``variance`` is the mean over the batches. Two more values are then logged:

        data_variance/<estimator>/<group>    variance of the expected gradient between batches of ``batch_size``
        total_variance/<estimator>/<group>   the sum of both variances, as in the gradients of training steps

    The noise of draw k has the key (seed, k), on every process and for every estimator. For small networks, the draws
    of a chunk are computed together (zoo.estimators.chunk_size). The processes take the chunks in turns, and merge
    their moments in float64. The result of K draws therefore does not depend on the number of processes.

    A measurement needs memory for one draw, one gradient, and the mean gradient in float64. Networks of at most 520,000
    parameters, on a GPU of at most 33 million, need memory for the eight draws of a chunk. If ``batches`` is above 1, a
    second mean gradient is in memory. ``auto`` needs memory for the mean gradients of all estimators at once, and for a
    copy of the model.

    The callback does not affect training. It only reads the parameters, accumulates no gradient, and uses no global
    random state. Gradients are computed at the trained weights, not at the averaged weights. Their precision is the
    precision of the stored weights, which is float32 under mixed precision. If training accumulates gradients over
    batches, a draw still uses one batch.

    With ``auto``, a measurement is made in parts of about 0.25 seconds between training steps. All parts use a copy of
    the model, made at the step of the measurement. The values are exactly those of a measurement without breaks. If the
    run ends within its first measurement, the callback makes the missing draws at the end of the run. A run of more
    than ten steps therefore has a figure, but a short one may measure for more than 5 % of its time. If the run ends
    within a later measurement, the draws made until then are used if each estimator has at least two. A signal drops
    the measurement, and a resumed run does not continue it.

    Args:
        folder: folder of ``estimator_variance.png``, which is written at the end of the run.
        every_n_steps: training batches between measurements, or a fraction of the run such as 0.25, or ``auto``. With
            an integer or a fraction, the first measurement is before the first step, and training waits for each.
            ``auto`` measures as often as possible in less than 5 % of the training time. Its first measurement has 2
            draws, at the weights after ten steps. Later measurements have as many draws as 1.25 seconds allow (5 % of
            25 seconds of training), and at least 2. This minimum doubles after every four measurements. The maximum is
            ``draws``.
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
        # The following values are for ``auto``.
        self._budget = MeasuringBudget(AUTO_FRACTION)
        self._seconds_per_draw: dict[str, float] = {}  # {name: seconds} of the estimators that were measured
        self._chunks: dict[str, int] = {}  # {name: draws per chunk} of the estimators to measure
        self._next = AUTO_STEPS  # earliest step at which a measurement can begin or continue
        self._running: Measurement | None = None
        self._running_at = (0, 0)  # the step of the running measurement, and the step under which it is logged

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
        self.begin(pl_module, trainer.fit_loop.total_batch_idx + 1)

    def begin(self, pl_module, step: int) -> None:
        """Begin to count the time of training. ``step`` is the first step of this process."""
        self._chunks = {name: chunk_size(e) for name, e in self._estimators(pl_module).items()}
        self._budget.begin(step)
        # A resumed run begins its first measurement at once, because that of the interrupted run was dropped.
        self._next = max(self._next if self.history else AUTO_STEPS, step)

    def batches_until_due(self, trainer) -> float:
        step = trainer.fit_loop.total_batch_idx + 1  # the next step
        interval = self._interval(trainer)
        return max(1, self._next - step + 1) if interval is None else -step % interval + 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.fit_loop.total_batch_idx
        interval = self._interval(trainer)
        if interval is None:
            if step >= self._next:
                self._spend(trainer, pl_module, step)
        elif step % interval == 0:
            self._measure(trainer, pl_module, step)

    def _interval(self, trainer) -> int | None:
        """Return the number of steps between measurements, or None for ``auto``."""
        every = self.every_n_steps
        if isinstance(every, float):
            return max(1, int(every * trainer.max_epochs * trainer.num_training_batches))
        return None if isinstance(every, str) else every

    def _estimators(self, pl_module) -> dict[str, GradientEstimator]:
        found = pl_module.gradient_estimators()
        return {name: e for name, e in found.items() if self.compare is None or name in self.compare}

    def _measurement(self, trainer, estimators: dict[str, GradientEstimator], draws: int) -> Measurement:
        return Measurement(
            estimators,
            self.probes,
            draws,
            most=self.draws,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            seconds_per_draw=self._seconds_per_draw,
            total=(lambda value: trainer.strategy.reduce(value, reduce_op="sum")) if trainer.world_size > 1 else None,
        )

    def _record(self, row: dict[str, float], trainer, step: int, logged: int) -> None:
        self.history.append({"step": step, **row})
        for logger in trainer.loggers:
            logger.log_metrics(row, step=logged)

    # A measurement without breaks.

    def _measure(self, trainer, pl_module, step: int) -> None:
        """Measure at the weights of this step, and record a row. A signal ends the measurement without a row."""
        row: dict[str, float] = {}
        with isolate_rng():
            for name, estimator in self._estimators(pl_module).items():  # one by one, for less memory
                measurement = self._measurement(trainer, {name: estimator}, self.draws)
                if not completed(measurement, trainer, name):
                    return
                row |= measurement.values()
        self._record(row, trainer, step, logged_step(trainer))

    # Measurements in parts, within a fraction of the training time.

    def _spend(self, trainer, pl_module, step: int) -> None:
        """Continue the running measurement or begin one, if the time allows it. Set the step of the next call.

        The first measurement begins in any case, without a draw, so that a short run can complete it at its end.
        """
        # The clocks of the processes differ. Rank 0 decides, because all processes must measure together.
        wait, draws = trainer.strategy.broadcast(self._plan(step))
        if wait == 0 or (self._running is None and not self.history):
            with self._budget.spending(), isolate_rng():
                if self._running is None:
                    self._running_at = step, logged_step(trainer)
                    self._running = self._measurement(trainer, self._estimators(frozen(pl_module)), draws)
                if wait == 0:
                    self._continue(trainer, self._running)
            wait, _ = trainer.strategy.broadcast(self._plan(step))
        self._next = step + max(1, wait)

    def _continue(self, trainer, running: Measurement) -> None:
        """Make a part of the running measurement. After the last part, record its values. A signal drops it."""
        running.advance(PAUSE, stop=lambda: interrupted(trainer))
        states = torch.tensor([running.batch_done, interrupted(trainer)], device=trainer.strategy.root_device)
        done, stopped = trainer.strategy.reduce(states.float(), reduce_op="sum").tolist()
        if stopped:
            self._running = None
        elif done == trainer.world_size:
            running.end_batch()
            if running.done:
                self._running = None
                self._record(running.values(), trainer, *self._running_at)

    def _plan(self, step: int) -> tuple[int, int]:
        """Return the number of steps until the next part of a measurement, and the draws of a new measurement.

        0 steps means that the part is made now.
        """
        per_step = self._budget.seconds_per_step(step)
        if self._running is not None:
            return self._budget.steps_until(self._running.next_seconds(PAUSE, unknown=per_step), step), 0
        draws = self._planned_draws()
        costs = {name: self._seconds_per_draw.get(name, per_step) for name in self._chunks}
        first = next(iter(costs))
        part = min(draws, self._chunks[first]) * costs[first]
        wait = self._budget.steps_until(max(part, min(PAUSE, draws * self.batches * sum(costs.values()))), step)
        return math.ceil(wait / AUTO_STEPS) * AUTO_STEPS, draws

    def _planned_draws(self) -> int:
        fewest, repeated = AUTO_DRAWS
        draws = fewest * 2 ** (len(self.history) // repeated)
        known = self._seconds_per_draw
        if self.history and all(name in known for name in self._chunks):
            seconds = self.batches * sum(known[name] for name in self._chunks)
            draws = max(draws, int(AUTO_FRACTION * AUTO_TRAINING / max(1e-9, seconds)))
        return min(self.draws, draws)

    def state_dict(self):
        return {
            "history": self.history,
            **self._budget.state_dict(),
            "per_draw": self._seconds_per_draw,
            "next": self._next,
        }

    def load_state_dict(self, state):
        self.history, self._running = state["history"], None
        self._budget.load_state_dict(state)
        per_draw = state.get("per_draw")  # checkpoints of an earlier version have one number here
        self._seconds_per_draw = per_draw if isinstance(per_draw, dict) else {}
        self._next = state.get("next", AUTO_STEPS)

    def on_train_end(self, trainer, pl_module):
        running, self._running = self._running, None
        if running is not None:
            with isolate_rng():
                first = not self.history and completed(running, trainer, "gradient estimators")
            stopped = trainer.strategy.reduce_boolean_decision(interrupted(trainer), all=False)
            if not stopped and (first or running.end_early()):
                self._record(running.values(), trainer, *self._running_at)
        if not trainer.is_global_zero:
            return
        if not self.history and not interrupted(trainer):
            log.info(
                "Gradient estimators were not measured, because the run was short. "
                "callbacks.estimator_variance.every_n_steps=10 measures them in any case"
            )
        if not self.history:
            return
        save_figure(plot(self.history), self.folder / "estimator_variance.png")
        log_picture(trainer, "estimator_variance", str(self.folder / "estimator_variance.png"))
        columns, rows = table(self.history)
        for logger in trainer.loggers:
            if isinstance(logger, capabilities.LogsTables):
                logger.log_table("estimator_variance_table", columns, rows, step=logged_step(trainer))


def completed(measurement: Measurement, trainer, what: str) -> bool:
    """Make all missing draws of ``measurement`` without breaks. Return False if a signal has stopped them.

    All processes must call this function.

    Args:
        measurement: the measurement.
        trainer: Lightning's trainer.
        what: name of what is measured, for the progress bar.
    """
    shown = partial(tracked, what=f"measuring {what}", unit="chunk", show=shows_progress(trainer))
    while not measurement.done:
        measurement.advance(stop=lambda: interrupted(trainer), tracked=shown)
        if trainer.strategy.reduce_boolean_decision(interrupted(trainer), all=False):
            return False
        measurement.end_batch()
    return True


def interrupted(trainer) -> bool:
    """Return whether this process has received a signal that ends the run after this batch."""
    return any(c.received is not None for c in trainer.callbacks if isinstance(c, ExactResume))


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
