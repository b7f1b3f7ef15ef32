"""Training loop that takes several batches in one execution.

Lightning's loop calls hooks, loggers and progress bars around every batch. For small models, these calls take longer
than the step itself. An execution trains on up to K batches. It makes these calls only around its last batch, which
Lightning's loop takes. Settings, logs and checkpoints count batches or optimiser steps, never executions.

An execution ends with the next batch at which something is due. This can be a logged row, a validation, a picture, a
measurement, a checkpoint, or the end of an epoch or a run. Hooks of the model, schedules and weight averages run at
every batch. The batch hooks of a callback also run at every batch, with two exceptions. A ``CadencedCallback``
(zoo/checks/capabilities.py) says when its hooks next act. Some of Lightning's callbacks run at the end of an execution.

On the CPU, weights, checkpoints and logged rows are bitwise the same for every K, except for measured times. On CUDA,
K = 1 can differ from larger K by rounding, because steps for graphs use fused optimisers.

On CUDA, each step is the replay of a graph, where that is possible. See zoo/training/graphs.py.
"""

import math
import time
from collections import OrderedDict
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.optimization.manual import _ManualOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _is_max_limit_reached
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor

from zoo.checks.capabilities import StepCallback
from zoo.training.batch_hooks import TRANSFERS, cadence_of, lies_on, overrides, reason_against_plain_steps
from zoo.training.graphs import StepGraphs, graphs_of
from zoo.training.recorded_logs import RecordedLogs

SECONDS = 0.5  # seconds of an execution with ``auto``; a progress bar waits about this long for an update
MOST = 1024  # largest number of batches in an execution with ``auto``
GROWTH = 8  # largest ratio of the sizes of two successive executions with ``auto``


class Executions(_TrainingEpochLoop):
    """Epoch loop that takes up to ``size`` batches in one execution.

    Args:
        trainer: the Trainer. The loop replaces ``trainer.fit_loop.epoch_loop``.
        size: K, at least 1, or ``auto``. With ``auto``, an execution takes about half a second.
        graphs: whether steps on CUDA may be replays of graphs.
    """

    def __init__(self, trainer: L.Trainer, size: int | Literal["auto"] = "auto", graphs: bool = True):
        replaced = trainer.fit_loop.epoch_loop
        super().__init__(trainer, replaced.min_steps, replaced.max_steps)
        self.automatic_optimization = _Automatic(trainer)
        self.manual_optimization = _Manual(trainer)
        self.measured = size == "auto"  # whether the measured seconds per batch set the size
        self.size: int = 1 if size == "auto" else min(size, MOST)
        self.most = MOST if size == "auto" else self.size  # largest number of batches that an execution can have
        self.logs = RecordedLogs()
        self.graphs: StepGraphs | None = None
        self._may_capture = graphs
        self._optimisers: list[Any] | None = None  # the optimisers for which ``graphs`` was decided
        self._executions, self._number = 0, 1  # of this epoch; batches of the latest execution
        self._end_requested = False
        self._plain, self._takes_index, self._transfers, self._shows_outputs = False, True, True, True
        self.step_callbacks: list[Any] = []

    def end_early(self) -> None:
        """End the execution with the current batch. A signal handler calls this method.

        With several processes, the current execution does not end early, because the others do not know of the signal.
        """
        self._end_requested = True

    # One execution.

    def advance(self, data_fetcher) -> None:
        started, trainer = time.monotonic(), self.trainer
        module = trainer.lightning_module
        self._prepare()
        cadences = [(callback, cadence_of(callback, trainer)) for callback in trainer.callbacks]
        number = self._number_of_batches(data_fetcher, [n for _, n in cadences if n is not None])
        if number > 1:
            every = [callback for callback, n in cadences if n is None]
            with self.logs.recording(module):
                for _ in range(number - 1):
                    if self._one_batch(data_fetcher, every):
                        return
                    if not self._should_accumulate():
                        self._batches_that_stepped += 1
            self.logs.flush(module)
        super().advance(data_fetcher)
        queued = now = time.monotonic()
        if self.graphs is not None:
            self.graphs.wait_for_previous_execution()
            now = time.monotonic()
        if now - queued > 0.1 * (now - started):  # the device had still been busy with the execution before this one
            per_batch = (now - started) / self._number
        else:
            per_batch = (now - started) / number
        self._executions, self._number = self._executions + 1, number
        if self.measured:
            self._adapt(per_batch)

    def on_run_start(self, data_fetcher) -> None:
        super().on_run_start(data_fetcher)
        self._executions = 0  # with several processes, ``auto`` adapts most often at the beginning of an epoch

    def _adapt(self, per_batch: float) -> None:
        """Choose the size of the next executions from ``per_batch``, the seconds per batch of the last one."""
        if self.trainer.world_size > 1:
            # The processes agree only after 1, 2, 4, 8, ... executions, because the broadcast takes time.
            if self._executions & (self._executions - 1):
                return
            per_batch = self.trainer.strategy.broadcast(per_batch)
        wanted = SECONDS / max(per_batch, 1e-9)
        self.size = max(1, min(int(wanted), GROWTH * self.size, MOST))

    def _number_of_batches(self, data_fetcher, cadences: list[float]) -> int:
        """Return the number of batches until something is due, at most ``size``."""
        trainer, done = self.trainer, self.batch_progress.current.ready
        ended_early, self._end_requested = self._end_requested, False
        if (
            self.size == 1
            or (ended_early and trainer.world_size == 1)  # a signal may have reached only one of several processes
            or self.restarting
            or isinstance(data_fetcher, _DataLoaderIterDataFetcher)
            or not math.isfinite(trainer.num_training_batches)
            or not isinstance(trainer.profiler, PassThroughProfiler)
            or trainer._val_check_time_interval is not None
            # The first batch shows how many optimiser steps a batch has.
            or not (self.batch_progress.total.completed or trainer.lightning_module.automatic_optimization)
            or any(config.reduce_on_plateau and config.interval == "step" for config in trainer.lr_scheduler_configs)
        ):
            return 1
        left = [self.size, trainer.num_training_batches - done]
        if trainer.loggers and trainer.log_every_n_steps:
            left.append(trainer.log_every_n_steps - self._batches_that_stepped % trainer.log_every_n_steps)
        if trainer.enable_validation and math.isfinite(trainer.val_check_batch):
            seen = self.batch_progress.total.ready if trainer.check_val_every_n_epoch is None else done
            left.append(trainer.val_check_batch - seen % trainer.val_check_batch)
        if self.max_steps != -1:
            left.append((self.max_steps - self.global_step) // self._steps_per_batch())
        for callback in trainer.callbacks:
            if isinstance(callback, ModelCheckpoint) and (every := callback._every_n_train_steps) > 0:
                left.append((every - self.global_step % every) // self._steps_per_batch())
        return max(1, int(min([*left, *cadences])))

    def _steps_per_batch(self) -> int:
        """Return the mean number of optimiser steps per batch so far, rounded up, at least 1."""
        return max(1, math.ceil(self.global_step / max(1, self.batch_progress.total.completed)))

    def _over(self) -> bool:
        """Return whether the run was asked to stop, or has reached its largest number of steps."""
        trainer, alone = self.trainer, self.trainer.world_size == 1
        stopped = trainer.should_stop or (alone and (self._end_requested or trainer.received_sigterm))
        return stopped or _is_max_limit_reached(self.global_step, self.max_steps)

    def _one_batch(self, data_fetcher, every: list[L.Callback]) -> bool:
        """Train on one batch as Lightning's loop does, but call only the batch hooks of the callbacks ``every``.

        Returns:
            whether the execution ends early with this batch. All callbacks have then had ``on_train_batch_end``.

        Raises:
            StopIteration: if the hook ``on_train_batch_start`` of the module returns -1, which ends the epoch.
        """
        trainer, progress = self.trainer, self.batch_progress
        module = trainer.lightning_module
        batch, _, _ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = trainer.precision_plugin.convert_input(batch)
        if self._transfers or not lies_on(trainer.strategy.root_device, batch):
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        named = vars(module)  # nn.Module.__setattr__ would be slow
        named["_current_fx_name"] = "on_train_batch_start"
        for callback in every:
            callback.on_train_batch_start(trainer, module, batch, batch_idx)
        skipped = module.on_train_batch_start(batch, batch_idx) == -1
        if skipped:
            progress.increment_by(0, is_last_batch=True)
        else:
            progress.increment_started()
            outputs = self.step(batch, batch_idx)
            if self.graphs is not None and (every or self._shows_outputs):
                outputs = _copied(outputs)  # the next replay writes the tensors again, and a hook may keep them
        progress.increment_processed()
        self._step_schedules()
        if skipped:
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
            self.logs.flush(module)
            raise StopIteration
        over = self._end_of_batch(every, outputs, batch, batch_idx)
        if over:
            self.logs.flush(module)
            trainer._logger_connector.on_batch_end()
        progress.increment_completed()
        if over:
            trainer._logger_connector.update_train_step_metrics()
        return over

    def _end_of_batch(self, every: list[L.Callback], outputs, batch, batch_idx: int) -> bool:
        """Call the hooks at the end of a batch. Return whether the execution ends early with this batch."""
        trainer = self.trainer
        module, ended = trainer.lightning_module, self._over()
        if ended or every:
            self.logs.flush(module)
        vars(module)["_current_fx_name"] = "on_train_batch_end"
        called = trainer.callbacks if ended else every
        for callback in called:
            callback.on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        if over := self._over():  # a callback may have asked for the end
            for callback in [c for c in trainer.callbacks if c not in called]:
                callback.on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        module.on_train_batch_end(outputs, batch, batch_idx)
        vars(module)["_current_fx_name"] = None
        return over

    def _step_schedules(self) -> None:
        """Step the schedules of the learning rate, as Lightning does after a batch."""
        module = self.trainer.lightning_module
        if not module.automatic_optimization:
            return
        if self._plain and not overrides(module, "lr_scheduler_step", L.LightningModule):
            for config in self.trainer.lr_scheduler_configs:
                if config.interval == "step" and (self.batch_idx + 1) % config.frequency == 0:
                    self.scheduler_progress.increment_ready()
                    config.scheduler.step()
                    self.scheduler_progress.increment_completed()
        else:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)

    # One step.

    def step(self, batch, batch_idx: int) -> dict[str, Any]:
        """Take the step of one batch: loss, gradient, clipping, optimiser and weight averages.

        On CUDA, the step is the replay of a graph, where that is possible.

        Returns:
            the detached terms that ``training_step`` returned, in the form that ``on_train_batch_end`` receives. With
            a graph, the next replay overwrites these tensors.
        """
        if self.graphs is not None and self._plain:  # gradients may be accumulated from some epoch on
            return self.graphs.step(batch, batch_idx)
        return self.eager_step(batch, batch_idx)

    def eager_step(self, batch, batch_idx: int) -> dict[str, Any]:
        """Take the step of one batch without a graph."""
        trainer = self.trainer
        module = trainer.lightning_module
        if self._plain and module.automatic_optimization:
            outputs = self._plain_step(batch, batch_idx)
        else:
            arguments = self._build_kwargs(OrderedDict(), batch, batch_idx)
            if module.automatic_optimization:
                run = _AutomaticOptimization.run
                outputs = run(self.automatic_optimization, trainer.optimizers[0], batch_idx, arguments)
            else:
                outputs = _ManualOptimization.run(self.manual_optimization, arguments)
        for callback in self.step_callbacks:
            callback.after_step(trainer, module, outputs)
        return outputs

    def _plain_step(self, batch, batch_idx: int) -> dict[str, Any]:
        """Take a step as Lightning's automatic optimisation does, without the hooks that nothing overrides."""
        trainer, optimizer = self.trainer, self.trainer.optimizers[0]
        module, progress = trainer.lightning_module, self.automatic_optimization.optim_progress.optimizer
        progress.step.increment_ready()
        vars(module)["_current_fx_name"] = "training_step"
        arguments = (batch, batch_idx) if self._takes_index else (batch,)
        if type(trainer.precision_plugin) is Precision:  # the strategy would only enter a context that does nothing
            found = module.training_step(*arguments)
        else:
            found = trainer.strategy.training_step(*arguments)
        terms = {"loss": found} if isinstance(found, Tensor) else dict(found or {})
        loss = terms.get("loss")
        if loss is None and found is not None:
            ClosureResult.from_training_step_output(found)  # raises the error of Lightning
        progress.zero_grad.increment_ready()
        progress.zero_grad.increment_started()
        optimizer.zero_grad()
        progress.zero_grad.increment_completed()
        if loss is not None:
            loss.backward()
        module.on_before_optimizer_step(optimizer)
        module.configure_gradient_clipping(
            optimizer,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        )
        optimizer.step()
        progress.step.increment_completed()
        vars(module)["_current_fx_name"] = None
        return {k: v.detach() if isinstance(v, Tensor) else v for k, v in terms.items()}

    def _prepare(self) -> None:
        """Update what depends on callbacks, module and optimisers. A tuner may have changed them between executions."""
        trainer = self.trainer
        self.step_callbacks = [c for c in trainer.callbacks if isinstance(c, StepCallback)]
        self._plain = reason_against_plain_steps(self.trainer) is None
        module, data = trainer.lightning_module, trainer.datamodule
        self._shows_outputs = overrides(module, "on_train_batch_end", L.LightningModule)
        self._takes_index = "batch_idx" in self._build_kwargs(OrderedDict(), None, 0)
        self._transfers = any(overrides(module, hook, L.LightningModule) for hook in TRANSFERS)
        if data is not None:
            self._transfers |= any(overrides(data, hook, L.LightningDataModule) for hook in TRANSFERS)
        if self._optimisers is not trainer.optimizers:  # at the start, and after a tuner has made new optimisers
            self._optimisers, self.graphs = trainer.optimizers, None
            if trainer.strategy.root_device.type == "cuda":
                self.graphs = graphs_of(self, wanted=self._may_capture)
        if self.graphs is not None:
            self.graphs.check()


class _Automatic(_AutomaticOptimization):
    """Automatic optimisation in the last batch of an execution. Its step is the step of :class:`Executions`."""

    def run(self, optimizer, batch_idx, kwargs):
        return (
            _last_step(self.trainer, kwargs["batch"])
            if "batch" in kwargs
            else super().run(optimizer, batch_idx, kwargs)
        )


class _Manual(_ManualOptimization):
    """Manual optimisation in the last batch of an execution. Its step is the step of :class:`Executions`."""

    def run(self, kwargs):
        return _last_step(self.trainer, kwargs["batch"]) if "batch" in kwargs else super().run(kwargs)


def _last_step(trainer: L.Trainer, batch) -> dict[str, Any]:
    loop = trainer.fit_loop.epoch_loop
    outputs = loop.step(batch, loop.batch_idx)
    loop.logs.flush(trainer.lightning_module)
    return outputs if loop.graphs is None else _copied(outputs)


def _copied(outputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in outputs.items()}


def use_executions(trainer: L.Trainer, size: int | Literal["auto"], graphs: bool) -> None:
    """Make ``trainer`` take several batches in one execution.

    Args:
        trainer: a Trainer that has not trained yet.
        size: largest number of batches in an execution, or ``auto``. 1 keeps Lightning's loop, which has no graphs.
        graphs: whether steps on CUDA may be replays of graphs.
    """
    if size != 1:
        trainer.fit_loop.epoch_loop = Executions(trainer, size, graphs)


def takes_executions(trainer: Any) -> bool:
    """Return whether the trainer's loop is :class:`Executions`, which calls ``after_step`` at every step."""
    return isinstance(trainer.fit_loop.epoch_loop, Executions)
