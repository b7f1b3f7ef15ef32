"""The variance of a model's gradient estimators, measured while it trains."""

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
from zoo.checks.values import check_whole
from zoo.estimators import GradientEstimator, GradientMoments, chunk_size, gradient_moments, split_variance
from zoo.estimators.figures import plot, table
from zoo.functional.noise import chunk_generator
from zoo.functional.progress import tracked
from zoo.sampling.pictures import save_figure
from zoo.training.ranks import all_rows, shows_progress

log = logging.getLogger(__name__)

AUTO_SHARE = 0.05  # of the time of training that every_n_steps="auto" may take
AUTO_STEPS = 10  # it measures at multiples of so many batches
AUTO_DRAWS = (2, 4)  # the first measurements have so few draws, and after every so many twice as many


class EstimatorVariance(L.Callback):
    """Measure how much each gradient estimator scatters on one fixed batch, every so many steps.

    For each estimator in ``model.gradient_estimators()`` and each parameter group (``all``, ``encoder``, ...):

        variance/<estimator>/<group>     trace of the covariance of one draw, squared units of the gradient
        snr/<estimator>/<group>          |g| / sqrt(tr C), with the bias of |g|^2 taken out (zoo/estimators/moments.py)
        ms_per_draw/<estimator>          cost of one draw in milliseconds, mean over the processes

    Beside them stands ``estimator_draws``, the number of draws of the measurement.

    With several ``batches`` the variance is the mean over them, Monte-Carlo noise alone, and beside it stand

        data_variance/<estimator>/<group>    of the expected gradient between batches of ``batch_size`` examples
        total_variance/<estimator>/<group>   the sum of the two: what a step of training sees

    Draw k has its own noise, keyed by (seed, k), whichever process makes it and whichever estimator uses it. Draws of
    small networks are made in chunks (zoo.estimators.chunk_size); processes take the chunks in turns, and their
    moments are merged in float64, so that K draws give the same result however they were spread. In memory an
    estimator is one gradient and its mean in float64, beside what one draw needs, or of a small network (up to 520,000
    parameters) the eight draws of a chunk; with several batches one mean more.

    Training is not touched: parameters are only read, no gradient is accumulated, and no global random state is used.
    Gradients are those of the weights as they are trained, not averaged, and as they are stored: under mixed
    precision, float32. Where gradients are accumulated over batches, one draw is still of one batch.

    Args:
        folder: where ``estimator_variance.png`` goes at the end of the run.
        every_n_steps: batches between two measurements, the first before the first step; or the fraction of the run
            between them, such as 0.25; or ``auto``: as often as measuring takes less than 5 % of the time of training,
            never before the first step. The first four measurements then have 2 draws, the next four 4, and so on
            up to ``draws``, so that short runs have a line, too.
        draws: gradients per measurement and batch, over all processes; at least 2. With ``auto``, at most so many.
        batch_size: examples of a probe batch, of the first of the validation set.
        batches: probe batches; 1, or more to tell the noise of the data from that of the draws.
        compare: estimators to measure, by name; all of the model's if None.
        seed: of the noise and of the probe batch's binarisation.

    Raises:
        UserError: for values outside these; at set-up, for a model without ``gradient_estimators`` or without one of
            ``compare``, or a run without validation data or with too few.
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
        check_whole("draws", draws, least=2)
        if isinstance(every_n_steps, float):
            if not 0 < every_n_steps < 1:
                raise UserError(f"every_n_steps must be a whole number, or a share below 1, got {every_n_steps}")
        elif every_n_steps != "auto":
            if isinstance(every_n_steps, str):
                raise UserError(
                    f"every_n_steps must be a whole number, a share below 1, or auto, got {every_n_steps!r}"
                )
            check_whole("every_n_steps", every_n_steps)
        check_whole("batch_size", batch_size)
        check_whole("batches", batches)
        check_whole("seed", seed, least=0)
        names = compare if isinstance(compare, list | tuple) else []
        strings = {name for name in names if isinstance(name, str)}
        if compare is not None and (not names or len(strings) < len(names)):
            raise UserError(f"compare must be null or a list of estimators, each once, got {compare!r}")
        self.folder, self.every_n_steps, self.draws, self.batch_size = Path(folder), every_n_steps, draws, batch_size
        self.batches, self.compare, self.seed = batches, compare, seed
        self.probes: list[Any] = []
        self.history: list[dict[str, float]] = []  # one row per measurement, with "step"
        self._seconds, self._per_draw = 0.0, 0.0  # spent on all measurements; on a draw of each, in the latest
        self._started: float | None = None  # when this process's training began
        self._trained_before = 0.0
        self._first_step, self._next = 0, AUTO_STEPS  # of this process's training; the next that may be measured at

    def setup(self, trainer, pl_module, stage):
        name = type(pl_module).__name__
        if not isinstance(pl_module, capabilities.GradientEstimators):
            raise UserError(f"{name} has no method gradient_estimators(), so there is no variance to measure")
        known = pl_module.gradient_estimators()
        unknown = [e for e in self.compare or [] if e not in known]
        if unknown:
            raise UserError(f"{name} has no gradient estimator {', '.join(unknown)}; it has {', '.join(known)}")

    def on_train_start(self, trainer, pl_module):
        loader = trainer.val_dataloaders  # not there yet where the first validation is some epochs off
        source = trainer.fit_loop.epoch_loop.val_loop._data_source  # a loader, or the data module that has one
        if loader is None and source.is_defined() and trainer.limit_val_batches:
            loader = source.dataloader()
        if isinstance(loader, list | tuple):
            loader = next(iter(loader), None)
        if loader is None:
            raise UserError(
                "the probe batch of EstimatorVariance comes from validation data, and there are none: have some "
                "(trainer.limit_val_batches), or leave the callback out (~callbacks.estimator_variance)"
            )
        with isolate_rng():
            self.probes = list(probe_batches(loader, self.batch_size, self.batches, trainer, pl_module.device))
        if len(self.probes) < self.batches:
            raise UserError(
                f"the validation data are {len(self.probes)} whole batches of {self.batch_size}: they do not make "
                f"batches={self.batches} of EstimatorVariance"
            )
        if isinstance(pl_module, capabilities.ProbeBatch):
            # The first has one generator whatever their number.
            generators = [chunk_generator(self.seed, -1 - i) for i in range(len(self.probes))]
            self.probes = [
                pl_module.probe_batch(probe, generator=generator)
                for probe, generator in zip(self.probes, generators, strict=True)
            ]
        if isinstance(self.every_n_steps, float) and trainer.max_epochs in (None, -1):
            raise UserError(f"every_n_steps={self.every_n_steps} is a share of a run, and this one has no end")
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
        """How many draws to measure with before this step; 0 for none."""
        interval = self.every_n_steps
        if not isinstance(interval, str):
            if isinstance(interval, float):
                interval = max(1, int(interval * trainer.max_epochs * trainer.num_training_batches))
            return 0 if step % interval else self.draws
        if step < self._next:
            return 0
        draws, wait = self._affordable(pl_module, step)
        # Clocks differ, and all processes must measure or none.
        draws, wait = trainer.strategy.broadcast((draws, wait))
        self._next = step + max(1, round(wait / AUTO_STEPS)) * AUTO_STEPS
        return draws

    def _affordable(self, pl_module, step: int) -> tuple[int, int]:
        """How many draws can be afforded now, or 0; and the number of steps after which to ask again."""
        now = time.monotonic()
        trained = self._trained(now) - self._seconds
        here = self._trained(now) - self._trained_before
        per_step = max(1e-9, here / max(1, step - self._first_step + 1))
        fewest, repeated = AUTO_DRAWS
        draws = min(self.draws, fewest * 2 ** (len(self.history) // repeated))
        # Before the first measurement, a draw is taken for a step of training.
        per_draw = self._per_draw or per_step * self.batches * self._number_of_estimators(pl_module)
        missing = draws * per_draw + self._seconds - AUTO_SHARE * trained
        if missing > 0:
            return 0, math.ceil(missing / AUTO_SHARE / per_step)
        return draws, AUTO_STEPS

    def _trained(self, now: float) -> float:
        """Seconds of training, measurements among them, of this process and those it resumes."""
        # Tuners of Lightning take the state before training begins, and put it back.
        return self._trained_before + (0.0 if self._started is None else now - self._started)

    def _number_of_estimators(self, pl_module) -> int:
        return len(self.compare or pl_module.gradient_estimators())

    def _measure(self, trainer, name: str, estimator: GradientEstimator, draws: int) -> dict[str, float] | None:
        """The numbers of one estimator; None if a signal has come in, which all processes then know."""
        size = chunk_size(estimator)
        mine = [k for k in range(draws) if k // size % trainer.world_size == trainer.global_rank]
        stride = -(-draws // size) * size  # the draws of each batch begin with a whole chunk
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
                "Training was too short to measure its gradient estimators within 5 % of its time. "
                "callbacks.estimator_variance.every_n_steps=10 measures them whatever it takes"
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
    """A signal has come in while gradients are drawn."""


def interrupted(trainer) -> bool:
    """Whether this process has received a signal that ends the run after this batch."""
    return any(c.received is not None for c in trainer.callbacks if isinstance(c, ExactResume))


def until_interrupted(draws: Iterable[int], trainer) -> Iterator[int]:
    """``draws`` until a signal comes in, so that the run ends soon after Ctrl-C."""
    return takewhile(lambda _: not interrupted(trainer), draws)


def probe_batches(loader, size: int, count: int, trainer, device: torch.device) -> Iterator[list[torch.Tensor]]:
    """The first ``count`` batches of ``size`` examples, on every process, of a loader that processes share.

    A single one may have fewer examples, where the loader's own batch has.
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
    """The mean of what is not 0, a process that had no draw, over batches and processes."""
    made = torch.tensor([sum(s > 0 for s in seconds), sum(seconds)], device=trainer.strategy.root_device)
    count, total = trainer.strategy.reduce(made, reduce_op="sum").tolist()
    return total / max(1, count)
