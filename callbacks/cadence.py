"""At which epochs a callback draws or measures, and at which step loggers are told."""

from typing import Any

import lightning as L

from zoo.checks.values import check_whole


class AtEpochs(L.Callback):
    """What draws or measures in the validation of some epochs, and once more where training ends.

    A run may end at an epoch that nobody knew to be the last: by EarlyStopping, ``max_steps`` or ``max_time``. Then
    it is validated once more, with the weights that every validation judges, so that its end is drawn, too.

    Args:
        every_n_epochs: how often; the last epoch always counts.

    Raises:
        UserError: for ``every_n_epochs`` below 1.
    """

    def __init__(self, every_n_epochs: int = 1):
        check_whole("every_n_epochs", every_n_epochs)
        self.every_n_epochs = every_n_epochs
        self._seen: int | None = None  # the step at which it last was due

    def due(self, trainer) -> bool:
        """Whether this validation is of an epoch that counts. False in the sanity check before training."""
        epoch, progress = trainer.current_epoch + 1, trainer.fit_loop.epoch_progress.current
        last = epoch == trainer.max_epochs or progress.processed == progress.ready
        if trainer.sanity_checking or not (last or epoch % self.every_n_epochs == 0):
            return False
        self._seen = trainer.global_step
        return True

    def on_train_end(self, trainer, pl_module):
        """Validate once more if the last weights were not seen. All callbacks of this kind see them then."""
        if self._seen == trainer.global_step:
            return
        loop, epoch = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.current
        loop._batches_that_stepped -= 1  # what is logged is of the last step and epoch
        epoch.completed -= 1
        trainer.validating = True
        loop.val_loop.run()
        trainer.training = True
        epoch.completed += 1
        loop._batches_that_stepped += 1


def logged_step(trainer) -> int:
    """The step that Lightning gives loggers for the batch in hand, or the last one: optimiser steps before it."""
    epoch = trainer.fit_loop.epoch_progress.current
    over = epoch.processed == epoch.ready and not trainer.validating  # the count has gone on already
    return max(0, trainer.fit_loop.epoch_loop._batches_that_stepped - over)


def steps_behind(checkpoint: dict[str, Any]) -> int:
    """The first step that a run which resumes from ``checkpoint`` logs: later rows are logged again."""
    fit = checkpoint["loops"]["fit_loop"]
    epoch = fit["epoch_progress"]["current"]
    # Within a batch, where best and interrupted checkpoints are saved, the count has still to go on.
    return fit["epoch_loop.state_dict"]["_batches_that_stepped"] + (epoch["processed"] < epoch["ready"])
