"""Callback that estimates how long a run will take and logs the speed of training."""

import logging
import math
import time
from collections import deque

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.seed import isolate_rng

from zoo.callbacks.cadence import logged_step
from zoo.checks import capabilities
from zoo.checks.pixels import as_batch
from zoo.functional.progress import counted, duration
from zoo.training.annealing import annealing_temperatures

log = logging.getLogger(__name__)

WARM_UP = 5  # number of first batches, of the process or of an epoch, that the rates leave out
WINDOW = 60  # the rate is measured over the latest 60 seconds of training, because the speed of a machine can change
CHECK = 5  # seconds between checks of the estimate
MIN_CORRECTION = 10  # seconds by which an estimate must be wrong before a new one is printed


class TimeEstimate(L.Callback):
    """Print the remaining time of a run after ``after`` batches, and log the speed of training.

    A new estimate is printed if the last one is wrong by more than 50 % and by more than 10 seconds.

    The estimate includes training with its callbacks, validation with samples and checkpoints, and the test. The
    expected time of a validation is the mean time of the latest four validations. Before the first validation, it is
    estimated from the batches of the sanity check. The time of the test is always estimated from the time of one
    validation batch.

    ``train/images_per_second`` is logged at the end of every epoch. The rate is measured over the training batches of
    the epoch except the first five. For text the metric is ``train/words_per_second``. It counts all words of the
    text, including the words that subsampling drops.

    Args:
        after: training batches before the first estimate.
        test: whether a test follows training.
    """

    def __init__(self, after: int = 30, test: bool = False):
        self.after, self.test = after, test
        # Points in time below are readings of time.monotonic(), in seconds.
        self._begin = 0.0  # time at which the current validation batch began
        # Values of (_trained, _seen) at the start of the epoch, and after its first WARM_UP batches or more.
        self._began: tuple[float, int] = (0.0, 0)
        self._warm: tuple[float, int] | None = None
        self._counted = -1  # number of the last batch in _seen
        self._unit, self._each = "images", 1.0  # the unit, images or words; number of units in a row of a batch
        self._rows = 0.0  # units in a batch, over all processes
        self._trained, self._seen = 0.0, 0  # seconds and batches of training in this process, without validation
        self._marks: deque[tuple[float, int]] = deque()  # earlier values of (_trained, _seen), oldest first
        self._mark = 0.0  # time of the latest update of _trained
        self._validation_began: float | None = None  # time at which the latest validation began, None in training
        self._validation_ended = 0.0  # time at which the latest validation ended
        self._validations: deque[float] = deque(maxlen=4)  # seconds of the latest validations
        self._of_batch, self._of_step = math.inf, 0.0  # seconds of a validation batch, and of an annealing step
        self._stage_began = 0.0  # time at which the latest validation or sanity check began
        self._said: tuple[float, float] | None = None  # remaining seconds as last printed, and the time of printing
        self._checked = 0.0  # time of the latest check

    # Training.

    def batches_until_due(self, trainer) -> float:
        return math.inf  # the end of every execution is frequent enough

    def on_train_start(self, trainer, pl_module):
        self._counted = trainer.fit_loop.total_batch_idx

    def on_train_epoch_start(self, trainer, pl_module):
        now = time.monotonic()
        self._end_validation(now)
        data = trainer.datamodule
        self._unit, self._each = data.unit if isinstance(data, capabilities.CountedData) else ("images", 1.0)
        self._mark, self._began, self._warm = now, (self._trained, self._seen), None

    def _end_validation(self, now: float) -> None:
        if self._validation_began is not None:
            self._validations.append(now - self._validation_began)
            self._validation_began, self._mark = None, now

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._end_validation(self._validation_ended)  # a validation within the epoch
        self._count(trainer, time.monotonic())
        self._rows = len(as_batch(batch)[0]) * trainer.world_size * self._each
        measured = bool(self._marks)
        if self._warm is None and self._seen - self._began[1] >= WARM_UP:
            self._warm = self._trained, self._seen
        if not measured and self._seen >= WARM_UP:
            self._marks.append((self._trained, self._seen))
        if trainer.is_global_zero and self._seen >= self.after and measured:
            self._look(trainer, pl_module, time.monotonic())

    def _count(self, trainer, now: float) -> None:
        """Add the batches since the last count, and their seconds."""
        self._seen, self._counted = (
            self._seen + trainer.fit_loop.total_batch_idx - self._counted,
            trainer.fit_loop.total_batch_idx,
        )
        self._trained, self._mark = self._trained + now - self._mark, now

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.strategy.root_device.type == "cuda":  # the GPU may not have finished the last batches
            waited = time.monotonic()
            torch.cuda.synchronize()
            self._trained += time.monotonic() - waited
        if self._seen - self._began[1] <= WARM_UP:
            return
        # If the epoch is one execution, no time was read after its first batches. All of its batches then count.
        seconds, batches = self._began if self._warm is None or self._warm[1] == self._seen else self._warm
        rate = self._rows * (self._seen - batches) / max(self._trained - seconds, 1e-9)
        for logger in trainer.loggers:
            logger.log_metrics({f"train/{self._unit}_per_second": rate}, step=logged_step(trainer))

    # Validation and test.

    def on_validation_start(self, trainer, pl_module):
        self._stage_began = time.monotonic()
        if not trainer.sanity_checking:
            self._validation_began = self._stage_began

    def on_validation_end(self, trainer, pl_module):
        self._validation_ended = time.monotonic()

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        now = time.monotonic()
        if batch_idx == 0 and (steps := _annealing(pl_module, trainer, "sanity" if trainer.sanity_checking else "val")):
            self._of_step = (now - self._stage_began) / steps
        self._begin = now

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        # Take the time of the fastest batch. Other batches include the time in which callbacks draw samples.
        seconds, data = time.monotonic() - self._begin, trainer.datamodule
        if trainer.sanity_checking and isinstance(data, capabilities.ShortSanityCheck):
            seconds /= data.sanity_check_fraction
        self._of_batch = min(self._of_batch, seconds)

    def _evaluation(self, stage: str, batches: float, trainer, model) -> float:
        """Return the estimated seconds of a validation or a test. Return 0 before the first validation batch."""
        of_batches = batches * self._of_batch if math.isfinite(self._of_batch) else 0.0
        return of_batches + _annealing(model, trainer, stage) * self._of_step

    # Printed estimates.

    def _look(self, trainer, model, now: float) -> None:
        """Print an estimate if none was printed yet, or if the last printed estimate was wrong."""
        if self._said is not None and now - self._checked < CHECK:
            return
        self._checked = now
        while len(self._marks) > 1 and self._marks[1][0] <= self._trained - WINDOW:
            self._marks.popleft()
        seconds, batches = self._marks[0]
        per_batch = (self._trained - seconds) / max(1, self._seen - batches)
        self._marks.append((self._trained, self._seen))
        left = batches_left(trainer)
        if not left:
            return
        validation, test = self._parts(trainer, model, left)
        to_go = left * per_batch + validation + test
        to_go = min([to_go, *(c.time_remaining() or math.inf for c in trainer.callbacks if isinstance(c, Timer))])
        if self._said is not None:
            said, then = self._said
            expected = said - (now - then)
            if 0.5 * expected <= to_go <= 1.5 * expected or not abs(to_go - expected) > MIN_CORRECTION:
                return
        log.info("%s", self._words(trainer, to_go, left, validation, test, self._rows / max(per_batch, 1e-9)))
        self._said = to_go, now

    def _parts(self, trainer, model, left: float) -> tuple[float, float]:
        """Return the seconds of all remaining validations, and the seconds of the test."""
        each = self._evaluation("val", sum(trainer.num_val_batches), trainer, model)
        each = sum(self._validations) / len(self._validations) if self._validations else each
        number = validations_left(trainer, left)
        test = self._evaluation("test", _test_batches(trainer), trainer, model) if self.test else 0.0
        return (each * number if number else 0.0), test

    def _words(self, trainer, to_go: float, left: float, validation: float, test: float, rate: float) -> str:
        if math.isinf(to_go):
            return f"This run has no end: {rate:,.0f} {self._unit} per second. Ctrl-C saves a checkpoint and stops it"
        epochs = math.ceil(left / trainer.num_training_batches) if math.isfinite(left) else 0
        data = trainer.datamodule
        used = data.used if isinstance(data, capabilities.NamedData) else "data"
        images = round(trainer.num_training_batches * self._rows) if epochs else 0
        parts = [f"{counted(epochs, 'epoch')} of {images:,} {self._unit} ({used})" if epochs else ""]
        parts.append(f"{rate:,.0f} per second")
        parts += [f"{what} {duration(s)}" for what, s in (("validation", validation), ("test", test)) if s >= 1]
        stops = any(isinstance(c, EarlyStopping) for c in trainer.callbacks)
        words = f"{'At most' if stops else 'About'} {duration(to_go)} to go"
        if self._said is not None:
            return f"{words} (new estimate): {', '.join(filter(None, parts))}"
        shorter = ". For a shorter run: trainer.max_epochs=1" if epochs > 1 else ""
        return f"{words}: {', '.join(filter(None, parts))}{shorter}"


def batches_left(trainer) -> float:
    """Return the number of training batches until ``max_epochs`` or ``max_steps``. Without a limit, return infinity."""
    loop, per_epoch = trainer.fit_loop, trainer.num_training_batches
    done = loop.total_batch_idx + 1
    left = [math.inf]
    if trainer.max_epochs not in (None, -1):
        within = loop.epoch_loop.batch_progress.current.ready
        left.append((trainer.max_epochs - trainer.current_epoch) * per_epoch - within)
    if trainer.max_steps not in (None, -1):
        steps = max(1, trainer.global_step)  # optimiser steps so far; a batch can have several
        left.append((trainer.max_steps - trainer.global_step) * done / steps)
    return max(0.0, min(left))


def validations_left(trainer, batches: float) -> float:
    """Return the number of validations in the next ``batches`` of training."""
    per_epoch, every = trainer.num_training_batches, trainer.check_val_every_n_epoch
    if not sum(trainer.num_val_batches) or not math.isfinite(per_epoch):
        return 0
    if every is None or trainer.val_check_batch < per_epoch:
        return batches // trainer.val_check_batch
    if not math.isfinite(batches):
        return math.inf
    last = trainer.current_epoch + math.ceil(
        (batches + trainer.fit_loop.epoch_loop.batch_progress.current.ready) / per_epoch
    )
    return last // every - trainer.current_epoch // every


def _test_batches(trainer) -> float:
    """Return the number of batches of the test."""
    if trainer.datamodule is None or not trainer.limit_test_batches:
        return 0
    with isolate_rng():
        batches, limit = len(trainer.datamodule.test_dataloader()), trainer.limit_test_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _annealing(model, trainer, stage: str) -> int:
    """Return the number of steps of annealed importance sampling before the first batch of an evaluation, or 0."""
    if not capabilities.has_log_likelihood(model, by=capabilities.ANNEALED):
        return 0
    return annealing_temperatures(trainer, model.hparams, stage)
