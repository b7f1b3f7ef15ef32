"""The epochs at which callbacks draw or measure, and the step number that loggers receive."""

from typing import Any

import lightning as L

from zoo.checks.values import check_integer


class AtEpochs(L.Callback):
    """Base class of callbacks that draw or measure in the validation of every n-th epoch and at the end of training.

    EarlyStopping, ``max_steps`` or ``max_time`` can end a run early. If the callback has not yet drawn or measured with
    the final weights, the run is validated once more. Every validation uses averaged weights if the run has EMA.

    Args:
        every_n_epochs: epochs between two drawings or measurements. The last epoch always has one.

    Raises:
        UserError: if ``every_n_epochs`` is below 1.
    """

    def __init__(self, every_n_epochs: int = 1):
        check_integer("every_n_epochs", every_n_epochs)
        self.every_n_epochs = every_n_epochs
        self._seen: int | None = None  # optimiser step of the latest drawing or measurement

    def due(self, trainer) -> bool:
        """Return whether to draw or measure in this validation.

        The result is False in the sanity check before training.
        """
        epoch, progress = trainer.current_epoch + 1, trainer.fit_loop.epoch_progress.current
        last = epoch == trainer.max_epochs or progress.processed == progress.ready
        if trainer.sanity_checking or not (last or epoch % self.every_n_epochs == 0):
            return False
        self._seen = trainer.global_step
        return True

    def on_train_end(self, trainer, pl_module):
        """Validate once more, unless this callback has already drawn or measured with the final weights.

        All callbacks of this class draw or measure in this validation.
        """
        if self._seen == trainer.global_step:
            return
        loop, epoch = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.current
        loop._batches_that_stepped -= 1  # so that values are logged under the last trained step and epoch
        epoch.completed -= 1
        trainer.validating = True
        loop.val_loop.run()
        trainer.training = True
        epoch.completed += 1
        loop._batches_that_stepped += 1


def logged_step(trainer) -> int:
    """Return the step under which Lightning logs the current or last batch.

    The step is the number of earlier batches that ended with an optimiser step.
    """
    epoch = trainer.fit_loop.epoch_progress.current
    over = epoch.processed == epoch.ready and not trainer.validating  # Lightning has already counted the last batch
    return max(0, trainer.fit_loop.epoch_loop._batches_that_stepped - over)


def steps_behind(checkpoint: dict[str, Any]) -> int:
    """Return the first step that a run logs after it resumes from ``checkpoint``.

    Loggers drop the old rows from this step on, because the resumed run logs these steps again.
    """
    fit = checkpoint["loops"]["fit_loop"]
    epoch = fit["epoch_progress"]["current"]
    # Lightning saves best and interrupted checkpoints before it counts the current batch. Add 1 for that batch.
    return fit["epoch_loop.state_dict"]["_batches_that_stepped"] + (epoch["processed"] < epoch["ready"])
