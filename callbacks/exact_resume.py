"""Callback that stops a run on a signal. The resumed run has the same results as a run without the stop."""

import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch.utils.data import DataLoader

from zoo.training.checkpoint_files import clear_unfinished, keep_best
from zoo.training.executions import Executions
from zoo.training.processes import number
from zoo.training.shell import pasted, resume_command, short, zoo_command

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ExactResume(Checkpoint):
    """Save the random state of every process in checkpoints, and write a checkpoint on Ctrl-C and SIGTERM.

    After a signal, the run finishes the current batch and writes ``interrupted.ckpt``. Several processes first finish
    the current execution. The run prints how to resume it, and exits with the status of the signal (130 or
    143). ``last.ckpt`` keeps the state at the end of the last complete epoch. If the signal arrives during validation,
    the run stops at the end of the epoch. A second signal ends the process at once. A signal during the test also ends
    the process at once, because everything is already saved.

    This class is a checkpoint callback because Lightning runs checkpoint callbacks last, after EMA has updated its
    average.

    Each process draws its training noise from a different random stream. If a run resumes with another number of
    processes, each process begins a new random stream. The weights, the optimiser and the order of the data still
    resume exactly.

    A torch DataLoader without a state resumes exactly at the end of an epoch. Within an epoch, it starts again,
    with other random choices.

    Args:
        folder: the run folder. ``interrupted.ckpt`` is written to ``checkpoints/`` in it.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}
        self._states: list[dict[str, torch.Tensor]] | None = None
        self._loader_states: list[dict] = []
        self._loop: Any = None

    def on_fit_start(self, trainer, pl_module):
        if trainer.is_global_zero:
            clear_unfinished(self.folder / "checkpoints")

    # Random state.

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        state = {"cpu": torch.get_rng_state()}
        if pl_module.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        states = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, state)
        checkpoint["random_state"] = states

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        self._states = checkpoint.get("random_state")
        _within_its_epoch(checkpoint["loops"]["fit_loop"])
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                resumed = Path(trainer.ckpt_path or "")
                keep_best(checkpoint, callback, resumed, writes=trainer.is_global_zero)
        self._loader_states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])

    def on_train_start(self, trainer, pl_module):
        if trainer.fit_loop.restarting and self._loader_states:
            # Lightning restores the position of the loader only if it creates the loader after it restores the loops.
            # A learning rate schedule that asks for the number of steps creates the loader earlier. The epoch would
            # then start from its first batch. The next line therefore restores the position.
            trainer.train_dataloader.load_state_dict(self._loader_states[0])
        if self._states is not None and len(self._states) == trainer.world_size:
            state = self._states[trainer.global_rank]
            torch.set_rng_state(state["cpu"].cpu())
            if "cuda" in state and pl_module.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"].cpu(), pl_module.device)
            if isinstance(trainer.train_dataloader, DataLoader) and not self._loader_states:
                # A DataLoader draws a seed when it begins an epoch. Lightning has let it begin before the random
                # numbers were restored, so it begins again.
                iter(trainer.fit_loop._data_fetcher)
        elif trainer.global_rank > 0 or self._states is not None:
            # seed_everything gives every process the same random stream. With equal noise on all processes, more
            # processes would not reduce the variance of the gradient.
            torch.manual_seed(torch.initial_seed() + 7919 * (trainer.global_rank + trainer.global_step))
        self._handlers = {s: signal.signal(s, self._on_signal) for s in SIGNALS}
        self._loop = trainer.fit_loop.epoch_loop

    # Signals.

    def batches_until_due(self, trainer) -> float:
        return math.inf  # a signal ends the execution

    def _on_signal(self, signum, frame):
        if self.received is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.received = signum
        if isinstance(self._loop, Executions):
            self._loop.end_early()
        name = signal.Signals(signum).name
        log.warning("%s: the run finishes this batch and saves. Send the signal again to stop at once", name)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        # Write interrupted.ckpt only after an optimiser step, because a checkpoint does not hold accumulated gradients.
        # After the last batch of an epoch, do not write it, because Lightning first validates and writes last.ckpt.
        # Before a validation within an epoch, do not write it either, because the resumed run would not validate.
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        later = trainer.is_last_batch or _validates_next(trainer)
        if whole and not later and self._any_received(trainer):
            trainer.save_checkpoint(self.folder / "checkpoints" / "interrupted.ckpt", weights_only=False)
            # Lightning writes the metrics of a batch after all callbacks have run. _stop raises before that point, so
            # write the metrics now.
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            self._stop(trainer)

    def on_train_epoch_start(self, trainer, pl_module):
        if self._any_received(trainer):
            self._stop(trainer)

    def on_train_end(self, trainer, pl_module):
        if self._any_received(trainer):
            self._stop(trainer, trained=True)
        self._restore_handlers()  # before Lightning restores the handlers that it replaced

    def _any_received(self, trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)

    def _stop(self, trainer, trained: bool = False):
        if trainer.is_global_zero:
            if trained:
                self._say_without_test()
            else:
                log.warning("Interrupted. To resume from this point:\n    %s", self._how_to_resume(trainer))
        # The other processes exit with status 0. If one failed, Lightning would end rank 0 with SIGKILL.
        raise SystemExit(128 + (self.received or signal.SIGTERM) if trainer.is_global_zero else 0)

    def _of_zoo_train(self) -> bool:
        return (self.folder / "config.yaml").is_file()  # RunRecord writes it. Other programs need not use RunRecord

    def _how_to_resume(self, trainer) -> str:
        """Return the command that resumes the run, or the call of ``fit`` if another program than zoo train runs."""
        if self._of_zoo_train():
            return resume_command(self.folder)
        kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        paths = [Path(path) for c in kept for path in (c.last_model_path, c.best_model_path) if path]
        paths = [p for p in [self.folder / "checkpoints" / "interrupted.ckpt", *paths] if p.is_file()]
        if not paths:
            return "trainer.fit(...), from the beginning, because no checkpoint was written"
        newest = max(paths, key=lambda path: path.stat().st_mtime_ns)
        return f"trainer.fit(..., ckpt_path={short(newest)!r})"

    def _say_without_test(self):
        command = pasted(*zoo_command(), "evaluate", self.folder) if self._of_zoo_train() else "trainer.test(...)"
        log.warning("Interrupted after training, before the end of the test. To evaluate the model: %s", command)

    def on_test_start(self, trainer, pl_module):
        self._handlers = {s: signal.signal(s, self._on_signal_in_test) for s in SIGNALS}

    def _on_signal_in_test(self, signum, frame):
        if number() == 0:
            self._say_without_test()
        raise SystemExit(128 + signum)

    def on_test_end(self, trainer, pl_module):
        self._restore_handlers()

    def on_exception(self, trainer, pl_module, exception):
        self._restore_handlers()

    def _restore_handlers(self):
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}


def _validates_next(trainer) -> bool:
    """Return whether the run validates after this batch and could also stop after another batch of the epoch."""
    every = trainer.val_check_batch
    if trainer._val_check_time_interval is not None or trainer.accumulate_grad_batches % every == 0:
        return False
    return trainer.enable_validation and trainer.fit_loop.epoch_loop._should_check_val_fx(
        trainer.fit_loop._data_fetcher
    )


def _within_its_epoch(fit: dict[str, Any]) -> None:
    """Correct the epoch counters of a run that ``max_time`` or ``max_steps`` ended within an epoch.

    Lightning counts the unfinished epoch as processed. Without the correction, a resumed run would skip the rest of
    the epoch, or read it in the order of the next epoch.

    Args:
        fit: the state of the loops in a checkpoint. The function changes it.
    """
    epoch, batches = fit["epoch_progress"], fit["epoch_loop.batch_progress"]
    current = epoch["current"]
    broken_off = not batches["is_last_batch"] and batches["current"]["ready"] > 0
    if broken_off and current["processed"] == current["ready"] == current["completed"] + 1:
        current["processed"] -= 1
        epoch["total"]["processed"] -= 1
