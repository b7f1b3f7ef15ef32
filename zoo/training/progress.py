"""Show the progress of a run: progress bars on a terminal, log lines elsewhere. Log the model's size at the start."""

import logging
import math
import os
import sys
import time
from importlib.util import find_spec
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from zoo.functional.progress import Lines, has_bars

log = logging.getLogger(__name__)

BETWEEN = 0.1  # seconds between updates of a bar; each update reads values from the device


def progress_bar() -> ProgressBar:
    """Return the callback that shows progress. It shows bars if standard output is a terminal, and log lines if not.

    The bars are those of rich if rich is installed. Notebooks, and terminals that cannot move the cursor, have the bars
    of tqdm.
    """
    if not has_bars(sys.stdout):
        return ProgressLines()
    moves = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "dumb", "unknown")
    return RichBars() if moves and find_spec("rich") else Bars()


def known(*totals: float | None) -> int | None:
    """Return the sum of numbers of batches. Return None if a number is unknown or infinite."""
    finite = [t for t in totals if t is not None and math.isfinite(t)]
    return int(sum(finite)) if totals and len(finite) == len(totals) else None


def shown_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of a bar, without ``v_num``, the name of the logger's run."""
    return {name: value for name, value in metrics.items() if name != "v_num"}


class Bars(TQDMProgressBar):
    """Lightning's progress bars, with totals from the start. An exception closes them.

    Values are read from the device every ``BETWEEN`` seconds, not at every step.
    """

    def __init__(self):
        super().__init__()
        self._last = -math.inf

    def _bar(self, what: str, total: int | None, **kwargs) -> Tqdm:
        return Tqdm(
            desc=what,
            total=total,
            disable=self.is_disabled,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format=self.BAR_FORMAT if total is not None else None,
            **kwargs,
        )

    def init_sanity_tqdm(self):
        return self._bar(self.sanity_check_description, known(*self.trainer.num_sanity_val_batches), leave=False)

    def init_train_tqdm(self):
        return self._bar(self.train_description, known(self.trainer.num_training_batches), leave=True, smoothing=0)

    def init_validation_tqdm(self):
        fitting = self.trainer.state.fn != "validate"
        total = known(*self.trainer.num_val_batches)
        return self._bar(self.validation_description, total, position=int(fitting), leave=not fitting)

    def init_test_tqdm(self):
        return self._bar("Testing", known(*self.trainer.num_test_batches), leave=True)

    def get_metrics(self, trainer, pl_module):
        return shown_metrics(super().get_metrics(trainer, pl_module))

    def _should_update(self, current: int, total: int) -> bool:
        now = time.monotonic()
        if not self.is_enabled or (current != total and now - self._last < BETWEEN):
            return False
        self._last = now
        return True

    def on_exception(self, trainer, pl_module, exception):
        # Closed bars end with a new line, so the error message does not begin behind a bar.
        for bar in (self._val_progress_bar, self._test_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()


class RichBars(RichProgressBar):
    """Lightning's bars of rich. Values are read from the device every ``BETWEEN`` seconds, not at every step."""

    def __init__(self):
        super().__init__(refresh_rate=10)  # Lightning's default draws the bars 100 times a second
        self._last = -math.inf

    def get_metrics(self, trainer, pl_module):
        return shown_metrics(super().get_metrics(trainer, pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = time.monotonic()
        if trainer.is_last_batch or now - self._last >= BETWEEN:
            self._last = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class ProgressLines(ProgressBar):
    """Callback that shows progress as log lines, after 10 s and then at intervals of at least 30 s."""

    def __init__(self):
        super().__init__()
        self._enabled, self._lines = True, Lines(first=10)

    def disable(self):
        self._enabled = False

    def enable(self):
        self._enabled = True

    def batches_until_due(self, trainer) -> float:
        return math.inf  # the end of every execution is frequent enough

    def on_train_start(self, trainer, pl_module):
        self._lines = Lines(first=10)

    on_test_start = on_train_start

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self._enabled and self._lines.due():
            epochs = f" of {trainer.max_epochs}" if trainer.max_epochs not in (None, -1) else ""
            what = f"Epoch {trainer.current_epoch + 1}{epochs}, batch {batch_idx + 1:,}"
            self._say(what, known(trainer.num_training_batches), self.get_metrics(trainer, pl_module))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self._of_evaluation(trainer, "Validation", batch_idx + 1, known(*trainer.num_val_batches))

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self._of_evaluation(trainer, "Test", batch_idx + 1, known(*trainer.num_test_batches))

    def _of_evaluation(self, trainer, what: str, done: int, total: int | None) -> None:
        if self._enabled and not trainer.sanity_checking and done != total and self._lines.due():
            self._say(f"{what}, batch {done:,}", total)

    def _say(self, what: str, total: int | None, metrics: dict[str, Any] | None = None) -> None:
        values = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in shown_metrics(metrics or {}).items()
        )
        log.info("%s%s%s", what, "" if total is None else f" of {total:,}", f": {values}" if values else "")


class ModelSize(L.Callback):
    """Log the number of parameters, and warn if the run is too short for its training loss to be logged."""

    def on_fit_start(self, trainer, pl_module):
        if not trainer.is_global_zero:
            return
        parts = {name: sum(p.numel() for p in child.parameters()) for name, child in pl_module.named_children()}
        whole = sum(p.numel() for p in pl_module.parameters())
        of = ", ".join(f"{name} {number:,}" for name, number in parts.items() if number)
        log.info("%s has %s parameters%s", type(pl_module).__name__, f"{whole:,}", f": {of}" if len(parts) > 1 else "")

    def on_train_start(self, trainer, pl_module):
        steps = trainer.num_training_batches * (trainer.max_epochs or -1)
        if trainer.is_global_zero and trainer.loggers and 0 < steps < trainer.log_every_n_steps:
            log.warning(
                "The run has %d batches, and the training loss is logged every %d batches, so it will never be logged. "
                "Set trainer.log_every_n_steps=%d",
                *(steps, trainer.log_every_n_steps, max(1, int(steps) // 10)),
            )
