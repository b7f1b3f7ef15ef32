"""Search for hyperparameters with Optuna: a sweeper of Hydra whose study is stored, so that a later call continues it.

The published plugin, hydra-optuna-sweeper, needs an Optuna below version 3. That version cannot store a study with
current versions of SQLAlchemy. The plugin also has no pruning, and each call runs all of its trials again.
"""

import hashlib
import json
import logging
import math
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from zoo.checks.errors import UserError
from zoo.checks.values import check_choice, check_integer
from zoo.training import sweeps
from zoo.training.shell import override, pasted, training_command, without_password

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

DATABASES = ("sqlite", "mysql", "postgresql")
SETTINGS, PROCESS, STOPPED = "settings", "process", "stopped"  # attributes of studies and trials


class StudySweeper(Sweeper):
    """Run the trials of an Optuna study as jobs of Hydra. A second call of the command continues the study.

    A trial whose process was killed is repeated with the same values. A trial that fails is marked as failed, and the
    search continues. Trial number n gets the same values whether or not the search was stopped before it.

    Args:
        storage: address of a database, or the path of an SQLite file.
        study_name: name of the study, or None for a name made of the model and the settings.
        n_trials: number of finished trials, over all calls.
        n_jobs: number of trials that start together.
        direction: ``minimize``, ``maximize``, or None for ``callbacks.best.mode`` of the configuration.
        seed: integer that sets the choices of the sampler.
        sampler: function that returns an Optuna sampler for a ``seed``.
        params: values by key, in Hydra's grammar. The command line overrides them. If any value of the command line
            has several choices, only the values of the command line are searched.

    Raises:
        UserError: if a value is not allowed.
    """

    def __init__(
        self,
        storage: str,
        study_name: str | None,
        n_trials: int,
        n_jobs: int,
        direction: str | None,
        seed: int,
        sampler: Callable[..., Any],
        params: dict[str, Any],
    ):
        for key, value, least in (("n_trials", n_trials, 1), ("n_jobs", n_jobs, 1), ("seed", seed, 0)):
            check_integer(f"hydra.sweeper.{key}", value, least)
        if direction is not None:
            check_choice("hydra.sweeper.direction", direction, ("minimize", "maximize"))
        self._storage, self._study_name, self._direction = storage_address(str(storage)), study_name, direction
        self._n_trials, self._n_jobs, self._seed = n_trials, n_jobs, seed
        self._sampler, self._params = sampler, dict(params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config = config
        self._launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has ``n_trials`` finished trials.

        Raises:
            UserError: if nothing is searched, if the study has other settings, or if all trials failed.
        """
        space, fixed = self._space(arguments)
        study = self._study(space, fixed)
        log.info("Study %s in %s", study.study_name, without_password(self._storage))
        end_stopped(study)
        job = 0
        while (missing := self._n_trials - len(counted(study))) > 0:
            trials = [self._ask(study, space) for _ in range(min(missing, self._n_jobs))]
            overrides = [[*fixed, *values_of(trial), *self._of_pruning(study, trial)] for trial in trials]
            try:
                returned = self._launcher.launch(overrides, initial_job_idx=job)
            except BaseException:
                for trial in trials:
                    stop(study, trial.number)
                raise
            job += len(trials)
            for trial, result in zip(trials, returned, strict=True):
                tell(study, trial, result)
            sweeps.FAILED.clear()  # the study says which trials failed
        self._report(study, fixed)

    def _space(self, arguments: list[str]) -> "tuple[dict[str, BaseDistribution], list[str]]":
        """Return the distributions by key, and the overrides that all trials share."""
        given = OverridesParser.create().parse_overrides(arguments)
        several = [o for o in given if o.is_sweep_override()]
        fixed = [str(o.input_line) for o in given if not o.is_sweep_override()]
        if not several:
            keys = {o.get_key_element() for o in given}
            lines = [f"{key}={value}" for key, value in self._params.items() if key not in keys]
            several = [o for o in OverridesParser.create().parse_overrides(lines) if o.is_sweep_override()]
            self._check_keys([o.get_key_element() for o in several])
        if not several:
            raise UserError(
                "the search has no value to choose: give a key several values, such as 'model.lr=interval(1e-4,1e-2)'"
            )
        return {o.get_key_element(): distribution(o) for o in several}, fixed

    def _check_keys(self, keys: list[str]) -> None:
        """Raise UserError if the model of this command does not have all ``keys`` of the recipe."""
        if missing := [key for key in keys if OmegaConf.select(self._config, key, default=keys) is keys]:
            raise UserError(
                f"{self._config.hydra.runtime.choices.model} has no {' and no '.join(missing)}, which the recipe of "
                "the search names: give keys of the model several values, such as 'model.beta1=interval(0.1,0.9)'"
            )

    def _study(self, space: "dict[str, BaseDistribution]", fixed: list[str]) -> "Study":
        """Return the study, which is loaded if it exists.

        Raises:
            UserError: if a study of this name has other settings, or if the database cannot be opened.
        """
        import optuna
        from optuna.distributions import distribution_to_json
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        settings = {
            "search": {key: json.loads(distribution_to_json(value)) for key, value in sorted(space.items())},
            "settings": sorted(fixed),
        }
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        name = self._study_name or f"{self._config.hydra.runtime.choices.model}-{digest}"
        mode = OmegaConf.select(self._config, "callbacks.best.mode")
        direction = self._direction or ("maximize" if mode == "max" else "minimize")
        if self._storage.startswith("sqlite:///"):
            Path(self._storage.removeprefix("sqlite:///")).absolute().parent.mkdir(parents=True, exist_ok=True)
        try:
            study = optuna.create_study(
                storage=self._storage, study_name=name, direction=direction, load_if_exists=True
            )
        except (SQLAlchemyError, ImportError) as error:
            why = str(error).splitlines()[0]
            line = f"hydra.sweeper.storage={self._storage} cannot be opened: {why}"
            raise UserError(without_password(line)) from error
        before = study.user_attrs.get(SETTINGS)
        if before not in (None, settings) or study.direction.name.lower() != direction:
            raise UserError(
                f"the study {name} in {without_password(self._storage)} has other settings than this command: choose "
                "another hydra.sweeper.study_name, or leave it out"
            )
        study.set_user_attr(SETTINGS, settings)
        return study

    def _ask(self, study: "Study", space: "dict[str, BaseDistribution]") -> "Trial":
        """Return the next trial."""
        # A sampler with one seed for the whole study would repeat its first random trials after each start. Running
        # trials count, or two commands that search at once would make the same trials.
        study.sampler = self._sampler(seed=self._seed + len(begun(study)))
        trial = study.ask(space)
        trial.set_user_attr(PROCESS, [socket.gethostname(), os.getpid()])
        return trial

    def _of_pruning(self, study: "Study", trial: "Trial") -> list[str]:
        if OmegaConf.select(self._config, "callbacks.pruning") is None:
            return []
        names = {"storage": self._storage, "study": study.study_name}
        given = [override(f"callbacks.pruning.{key}", name) for key, name in names.items()]
        return [*given, f"callbacks.pruning.trial={trial.number}"]

    def _report(self, study: "Study", fixed: list[str]) -> None:
        states = [trial.state.name for trial in counted(study)]
        words = {"COMPLETE": "completed", "PRUNED": "stopped early", "FAIL": "failed"}
        numbers = ", ".join(f"{states.count(state)} {word}" for state, word in words.items() if state in states)
        if "COMPLETE" not in states:
            raise UserError(f"no trial of the study {study.study_name} was completed ({numbers}): see the errors above")
        best = study.best_trial
        log.info(
            "The study %s has %d trials: %s\nBest trial: number %d, %s %.6g\nTo train with its values:\n%s",
            *(study.study_name, len(states), numbers, best.number),
            *(OmegaConf.select(self._config, "callbacks.best.monitor"), best.value),
            pasted(*training_command(), *sweeps.without_search(fixed), *values_of(best)),
        )


def storage_address(storage: str) -> str:
    """Return the address of a database. A path becomes the address of an SQLite file.

    Raises:
        UserError: if the address is not one of SQLite, MySQL or PostgreSQL. Other storages of Optuna can read pickles.
    """
    if "://" not in storage:
        return f"sqlite:///{Path(storage).expanduser()}"
    if storage.partition(":")[0].partition("+")[0] not in DATABASES:
        raise UserError(
            f"hydra.sweeper.storage must be the path of a file or an address of {', '.join(DATABASES)}, got "
            f"{without_password(storage)!r}"
        )
    return storage


def distribution(given: Override) -> "BaseDistribution":
    """Return Optuna's distribution for an override with several values.

    Raises:
        UserError: if the values are not numbers, strings, booleans or null.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = given.value()
    try:
        if isinstance(value, IntervalSweep):
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            kind = IntDistribution if whole else FloatDistribution
            return kind(value.start, value.end, log="log" in value.tags)  # type: ignore[arg-type]
        if isinstance(value, RangeSweep) and not value.shuffle:
            numbers = list(value.range())
            if all(isinstance(number, int) for number in numbers):
                return IntDistribution(int(numbers[0]), int(numbers[-1]), step=abs(int(value.step)))
        if isinstance(value, ChoiceSweep | RangeSweep):
            return CategoricalDistribution(list(given.sweep_iterator(transformer=Transformer.encode)))
    except (ValueError, IndexError) as error:
        raise UserError(f"{given.input_line} cannot be searched: {error}") from error
    raise UserError(f"{given.input_line} cannot be searched: use choice, range or interval")


def values_of(trial: "Trial | FrozenTrial") -> list[str]:
    """Return the values of a trial as overrides."""
    return [f"{key}={value}" for key, value in trial.params.items()]


def counted(study: "Study") -> "Sequence[FrozenTrial]":
    """Return the trials that have ended, without those that were stopped and are repeated."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and STOPPED not in t.user_attrs]


def begun(study: "Study") -> "Sequence[FrozenTrial]":
    """Return the trials that run or have ended, without those that were stopped and are repeated."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state != TrialState.WAITING and STOPPED not in t.user_attrs]


def stop(study: "Study", number: int) -> None:
    """Mark a trial as stopped, and put its values first in the queue, so that the next trial repeats it."""
    from optuna.trial import TrialState

    trial = study.trials[number]
    if trial.state != TrialState.RUNNING:
        return
    study._storage.set_trial_user_attr(trial._trial_id, STOPPED, True)
    study.tell(number, state=TrialState.FAIL)
    study.enqueue_trial(trial.params)


def end_stopped(study: "Study") -> None:
    """Stop the trials of earlier calls on this machine whose process has ended, for example because it was killed."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        host, process = trial.user_attrs.get(PROCESS, ("", 0))
        if host == socket.gethostname() and not alive(process):
            stop(study, trial.number)


def alive(process: int) -> bool:
    """Return whether a process with this number exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def tell(study: "Study", trial: "Trial", result: JobReturn) -> None:
    """Store the result of a trial: its value, or that it failed. A trial that was pruned has ended already."""
    from optuna.trial import TrialState

    if study.trials[trial.number].state.is_finished():
        return
    try:
        value = float(result.return_value)
    except Exception as error:
        log.warning("Trial %d failed: %s", trial.number, error)
        value = math.nan
    if math.isfinite(value):
        study.tell(trial, value)
    else:
        study.tell(trial, state=TrialState.FAIL)


def register() -> None:
    """Let Hydra find the sweeper.

    Raises:
        UserError: if Optuna is not installed.
    """
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise UserError("hparams_search=optuna needs the package optuna: pip install 'generative-zoo[sweeps]'")
    # Hydra creates only plugins of the package hydra_plugins. A folder of this name would be a second package in the
    # wheel, so the class gets a second name in Hydra's table.
    Plugins.instance().register(StudySweeper)
    Plugins.instance().class_name_to_class["hydra_plugins.zoo.StudySweeper"] = StudySweeper
