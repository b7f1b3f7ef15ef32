"""Callback that stops a trial of an Optuna search if its metric is worse than that of other trials."""

import logging
from typing import Any

import lightning as L

from zoo.checks.errors import UserError
from zoo.training.shell import pasted, training_command

log = logging.getLogger(__name__)


class Pruning(L.Callback):
    """Report a metric to an Optuna study after each validation, and stop the trial if the pruner says so.

    A stopped trial has the state ``PRUNED`` in the study, and no test follows. A trial that has ended in the study is
    not reported again. This is the case if a run of the search resumes by itself.

    Args:
        monitor: name of the metric.
        pruner: an Optuna pruner.
        storage: address of the database of the study. The search sets this argument and the next two.
        study: name of the study.
        trial: number of the trial.

    Raises:
        UserError: if the run belongs to no search.
    """

    def __init__(
        self,
        monitor: str,
        pruner: Any,
        storage: str | None = None,
        study: str | None = None,
        trial: int | None = None,
    ):
        if storage is None or study is None or trial is None:
            command = pasted(*training_command(), "-m", "hparams_search=optuna")
            raise UserError(f"hparams_search needs several jobs: add -m, as in {command}")
        self.monitor, self.pruner, self.number = monitor, pruner, trial
        self._storage, self._name = storage, study
        self._study: Any = None
        self.pruned = False  # whether the trial was stopped

    def on_fit_start(self, trainer, pl_module):
        import optuna

        if trainer.is_global_zero:
            self._study = optuna.load_study(study_name=self._name, storage=self._storage, pruner=self.pruner)

    def on_validation_end(self, trainer, pl_module):
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or self._study is None or value is None:
            return
        from optuna.trial import Trial, TrialState

        stored = self._study.trials[self.number]
        if stored.state != TrialState.RUNNING:
            return
        trial = Trial(self._study, stored._trial_id)
        trial.report(float(value), step=trainer.current_epoch)
        if trial.should_prune():
            self._study.tell(trial, state=TrialState.PRUNED)
            self.pruned = trainer.should_stop = True
            log.info("Trial %d is stopped: %s %.6g is worse than in other trials", self.number, self.monitor, value)
