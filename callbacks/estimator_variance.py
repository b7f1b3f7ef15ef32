"""The variance of a model's gradient estimators, measured while it trains."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.values import check_whole
from zoo.estimators import GradientEstimator, GradientMoments, chunk_size, gradient_moments, split_variance
from zoo.estimators.figures import plot, table
from zoo.functional.noise import chunk_generator
from zoo.sampling.pictures import save_figure
from zoo.training.ranks import all_rows

AUTO_EVERY = 50  # batches between two moments at which every_n_steps="auto" may measure
AUTO_SHARE = 0.05  # of the time of training that it may take


class EstimatorVariance(L.Callback):
    """Measure how much each gradient estimator scatters on one fixed batch, every so many steps.

    For each estimator in ``model.gradient_estimators()`` and each parameter group (``all``, ``encoder``, ...):

        variance/<estimator>/<group>     trace of the covariance of one draw, squared units of the gradient
        snr/<estimator>/<group>          |g| / sqrt(tr C), with the bias of |g|^2 taken out (zoo/estimators/moments.py)
        ms_per_draw/<estimator>          cost of one draw in milliseconds, mean over the processes

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
        every_n_steps: batches between two measurements; or the share of the run between them, such as 0.25; or
            ``auto``: at every 50th batch at which it will still have taken less than 5 % of the time. The first is
            before the first step, whatever it takes.
        draws: gradients per measurement and batch, over all processes; at least 2.
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
        self._seconds, self._last = 0.0, 0.0  # spent on all measurements and on the latest
        self._started, self._trained_before = 0.0, 0.0

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
        if loader is None and trainer.datamodule is not None and trainer.limit_val_batches:
            loader = trainer.datamodule.val_dataloader()
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
        self.interval = self.every_n_steps
        if self.interval == "auto":
            self.interval = AUTO_EVERY
        elif isinstance(self.interval, float):
            if trainer.max_epochs in (None, -1):
                raise UserError(f"every_n_steps={self.interval} is a share of a run, and this one has no end")
            self.interval = max(1, int(self.interval * trainer.max_epochs * trainer.num_training_batches))
        self._started = time.monotonic() - self._trained_before

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.fit_loop.total_batch_idx
        if step % self.interval or not self._affordable(trainer, step):
            return
        start = time.monotonic()
        row: dict[str, float] = {"step": step}
        with isolate_rng():
            for name, estimator in pl_module.gradient_estimators().items():
                if self.compare is None or name in self.compare:
                    row |= self._measure(trainer, name, estimator)
        self._last = time.monotonic() - start
        self._seconds += self._last
        self.history.append(row)
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step=step)

    def _affordable(self, trainer, step: int) -> bool:
        if self.every_n_steps != "auto" or step == 0:
            return True
        trained = time.monotonic() - self._started - self._seconds
        due = self._seconds + self._last <= AUTO_SHARE * trained  # with this one still no more than the share
        return trainer.strategy.broadcast(due)  # clocks differ, and all must measure or none

    def _measure(self, trainer, name: str, estimator: GradientEstimator) -> dict[str, float]:
        size = chunk_size(estimator)
        mine = [k for k in range(self.draws) if k // size % trainer.world_size == trainer.global_rank]
        stride = -(-self.draws // size) * size  # the draws of each batch begin with a whole chunk
        seconds = []

        def moments() -> Iterator[GradientMoments]:
            for i, probe in enumerate(self.probes):
                found, spent = gradient_moments(estimator, probe, [i * stride + k for k in mine], self.seed)
                if trainer.world_size > 1:
                    found.merge(lambda t: trainer.strategy.reduce(t, reduce_op="sum"), estimator.params)
                seconds.append(spent)
                yield found

        row = {}
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
        return row | {f"ms_per_draw/{name}": 1000 * mean_over_processes(seconds, trainer)}

    def state_dict(self):
        trained = time.monotonic() - self._started
        return {"history": self.history, "seconds": self._seconds, "last": self._last, "trained": trained}

    def load_state_dict(self, state):
        self.history = state["history"]
        self._seconds, self._last = state.get("seconds", 0.0), state.get("last", 0.0)
        self._trained_before = state.get("trained", 0.0)

    def on_train_end(self, trainer, pl_module):
        if not trainer.is_global_zero or not self.history:
            return
        save_figure(plot(self.history), self.folder / "estimator_variance.png")
        columns, rows = table(self.history)
        for logger in trainer.loggers:
            if isinstance(logger, capabilities.LogsImages):
                logger.log_image("estimator_variance", [str(self.folder / "estimator_variance.png")])
            if isinstance(logger, capabilities.LogsTables):
                logger.log_table("estimator_variance_table", columns, rows)


def probe_batches(loader, size: int, count: int, trainer, device: torch.device) -> Iterator[list[torch.Tensor]]:
    """The first ``count`` batches of ``size`` examples, on every process, of a loader that processes share.

    A single one may have fewer examples, where the loader's own batch has.
    """
    left, given = None, 0
    for batch in loader:
        whole = [all_rows(t.to(device), trainer) for t in batch]
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
