"""How fast training goes and how long it will take, said early and logged."""

import logging
import time

import lightning as L

from zoo.checks import capabilities

log = logging.getLogger(__name__)


class TimeEstimate(L.Callback):
    """After ``after`` batches, say how long the run will take; log ``train/images_per_second`` for every epoch.

    Of a text it is ``train/words_per_second``: all words of it, those that subsampling leaves out too.

    Time spent on validation, samples and checkpoints is not part of the rate, and neither are the first five batches.
    """

    def __init__(self, after: int = 30):
        self.after = after
        self._said = False
        self._seconds, self._images, self._batches, self._begin = 0.0, 0.0, 0, 0.0
        self._unit, self._each = "images", 1.0  # a row of a batch counts for so much of what

    def on_train_epoch_start(self, trainer, pl_module):
        self._seconds, self._images, self._batches = 0.0, 0.0, 0
        data = trainer.datamodule
        self._unit, self._each = data.unit if isinstance(data, capabilities.CountedData) else ("images", 1.0)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._begin = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._batches += 1
        if self._batches <= 5:
            return
        self._seconds += time.perf_counter() - self._begin
        here = len(batch[0]) * trainer.world_size * self._each
        self._images += here
        if self._batches >= self.after and not self._said:
            self._said = True
            self._say(trainer, here)

    def _say(self, trainer, batch_size: float) -> None:
        if not trainer.is_global_zero or trainer.max_epochs in (None, -1):
            return
        rate = self._images / self._seconds
        epochs = trainer.max_epochs - trainer.current_epoch
        images = round(trainer.num_training_batches * batch_size)
        minutes = epochs * images / rate / 60
        data = trainer.datamodule
        used = data.used if isinstance(data, capabilities.NamedData) else "data"
        length = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{60 * minutes:.0f} seconds"
        log.info(
            "About %s to go, validation and samples not counted: %d epochs of %s %s (%s), %.0f per second. "
            "Shorter: trainer.max_epochs=1",
            *(length, epochs, f"{images:,}", self._unit, used, rate),
        )

    def on_train_epoch_end(self, trainer, pl_module):
        if self._seconds > 0:
            for logger in trainer.loggers:
                rate = self._images / self._seconds
                logger.log_metrics({f"train/{self._unit}_per_second": rate}, step=trainer.fit_loop.total_batch_idx)
