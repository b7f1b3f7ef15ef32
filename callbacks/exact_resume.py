"""Runs that can be stopped at any time and go on as if they had not been."""

import logging
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from zoo.callbacks.run_record import run_command
from zoo.training.checkpoint_files import clear_unfinished, take_best_along
from zoo.training.processes import number
from zoo.training.shell import pasted

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ExactResume(Checkpoint):
    """Put the random state of every process into checkpoints, and turn Ctrl-C and SIGTERM into one of them.

    A signal lets the current batch finish, writes ``interrupted.ckpt``, in the middle of the epoch if need be, prints
    the command that resumes, and ends the process with the exit status that the signal would have given it (130 or
    143). ``last.ckpt`` is left at the epoch boundary. A signal during validation waits for the end of the epoch. A
    second signal ends the process at once, and so does one during the test, when all is saved.

    It belongs among the checkpoint callbacks, which Lightning runs last: after the averages of this step are made.

    Processes other than the first draw their training noise from streams of their own. If a run resumes on another
    number of processes, the random streams (not the weights, the optimiser or the data) begin anew.

    Args:
        folder: the run folder; ``interrupted.ckpt`` goes to ``checkpoints/`` in it.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}
        self._states: list[dict[str, torch.Tensor]] | None = None
        self._loader_states: list[dict] = []

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
                take_best_along(checkpoint, callback, resumed, writes=trainer.is_global_zero)
        self._loader_states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])

    def on_train_start(self, trainer, pl_module):
        if trainer.fit_loop.restarting and self._loader_states:
            # Lightning does so too, but not where a schedule asks for the number of steps: the loader is made before
            # the state of the loops is restored, and the epoch would begin anew.
            trainer.train_dataloader.load_state_dict(self._loader_states[0])
        if self._states is not None and len(self._states) == trainer.world_size:
            state = self._states[trainer.global_rank]
            torch.set_rng_state(state["cpu"].cpu())
            if "cuda" in state and pl_module.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"].cpu(), pl_module.device)
        elif trainer.global_rank > 0 or self._states is not None:
            # seed_everything gives every process the same stream: their noise would be the same, and the gradient's
            # variance would not fall with their number.
            torch.manual_seed(torch.initial_seed() + 7919 * (trainer.global_rank + trainer.global_step))
        self._handlers = {s: signal.signal(s, self._on_signal) for s in SIGNALS}

    # Signals.

    def _on_signal(self, signum, frame):
        if self.received is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.received = signum
        log.warning("%s: finishing this batch, then saving; again to stop at once", signal.Signals(signum).name)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        # An epoch's last batch goes on to validation and last.ckpt; a gradient half accumulated is in no checkpoint.
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if whole and not trainer.is_last_batch and self._any_received(trainer):
            path = self.folder / "checkpoints" / "interrupted.ckpt"
            trainer.save_checkpoint(path, weights_only=False)
            # What the batch logged is written by Lightning once all callbacks have seen it, which now it never does.
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            self._stop(trainer, path)

    def on_train_epoch_start(self, trainer, pl_module):
        if self._any_received(trainer):
            self._stop(trainer, self.folder / "checkpoints" / "last.ckpt")

    def on_train_end(self, trainer, pl_module):
        if self._any_received(trainer):
            self._stop(trainer, None)
        self._restore_handlers()  # before Lightning restores those it found

    def _any_received(self, trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)

    def _stop(self, trainer, path: Path | None):
        if trainer.is_global_zero:
            if path is None:
                self._say_without_test()
            else:
                log.warning("Interrupted. To go on exactly where it stopped:\n    %s", run_command(self.folder, path))
        # The other processes end as if all were well: Lightning kills the first one, with SIGKILL, if a child fails.
        raise SystemExit(128 + (self.received or signal.SIGTERM) if trainer.is_global_zero else 0)

    def _say_without_test(self):
        command = pasted("python", "-m", "zoo", "evaluate", self.folder)
        log.warning("Interrupted after training; the test was left out: %s", command)

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


def _within_its_epoch(fit: dict[str, Any]) -> None:
    """Let a run that ended within an epoch, by ``max_time`` or ``max_steps``, go on within it.

    Lightning counts that epoch as processed. It would leave out the rest, or draw it in the order of the next epoch.

    Args:
        fit: the state of the loops in a checkpoint, which is changed.
    """
    epoch, batches = fit["epoch_progress"], fit["epoch_loop.batch_progress"]
    current = epoch["current"]
    broken_off = not batches["is_last_batch"] and batches["current"]["ready"] > 0
    if broken_off and current["processed"] == current["ready"] == current["completed"] + 1:
        current["processed"] -= 1
        epoch["total"]["processed"] -= 1
