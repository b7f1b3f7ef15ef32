"""Tests of a search with Optuna: stored studies, stopped and failed trials, pruning, and what is refused."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from helpers import CONFIGS, TINY, config, run
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from zoo.callbacks import Pruning
from zoo.checks.errors import UserError
from zoo.training import sweeps
from zoo.training.command_line import readable_arguments
from zoo.training.sweeps import without_search

optuna = pytest.importorskip("optuna")
search = pytest.importorskip("zoo.training.search")

SPACE = ["model.lr=tag(log,interval(0.001,1))", "model.latent_dim=2,4"]


def values(overrides):
    return {
        key: float(value) for key, value in (o.split("=") for o in overrides) if key in ("model.lr", "model.latent_dim")
    }


class Jobs:
    """Jobs whose result is a function of their values. ``ends`` gives another result for a job, by its number."""

    def __init__(self, **ends):
        self.ends, self.given = ends, []

    def launch(self, overrides, initial_job_idx):
        return [self._job(job) for job in overrides]

    def _job(self, overrides):
        self.given.append(list(overrides))
        end = self.ends.get(f"job{len(self.given) - 1}")
        if isinstance(end, BaseException):
            raise end
        point = values(overrides)
        value = (math.log10(point["model.lr"]) + 2) ** 2 + point["model.latent_dim"] if end is None else end
        return JobReturn(status=JobStatus.COMPLETED, _return_value=value)


def searched(folder, jobs, *arguments, n_trials=4, **options):
    """Run a search whose trials are ``jobs``, and return its study."""
    options = {"study_name": None, "n_jobs": 1, "direction": None, "seed": 0, "params": {}} | options
    options = {"storage": str(folder / "study.db"), "mode": "min"} | options
    best = {"monitor": "val/loss", "mode": options.pop("mode")}
    sweeper = search.StudySweeper(n_trials=n_trials, sampler=optuna.samplers.TPESampler, **options)
    sweeper._config = OmegaConf.create(
        {
            "model": {"lr": 1, "latent_dim": 2},
            "callbacks": {"best": best, "pruning": {}},
            "hydra": {"runtime": {"choices": {"model": "vae"}}},
        }
    )
    sweeper._launcher = jobs
    sweeper.sweep(["model=vae", *(arguments or SPACE)])
    (name,) = optuna.get_all_study_names(sweeper._storage)
    return optuna.load_study(study_name=name, storage=sweeper._storage)


def ended(study):
    return [t for t in study.trials if "stopped" not in t.user_attrs]


def test_a_search_that_was_killed_goes_on_with_the_trials_of_one_that_was_not(tmp_path):
    """The third trial is killed. The second call repeats it, and a third call has nothing left to do."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = searched(tmp_path / "whole", Jobs())
    with pytest.raises(SystemExit):
        searched(tmp_path / "parts", Jobs(job2=SystemExit(143)))
    second = Jobs()
    study = searched(tmp_path / "parts", second)
    assert [t.params for t in ended(study)] == [t.params for t in whole.trials] and len(whole.trials) == 4
    assert len({t.params["model.lr"] for t in whole.trials}) == 4
    assert [t.value for t in ended(study)] == [t.value for t in whole.trials] and len(second.given) == 2
    third = Jobs()
    assert len(searched(tmp_path / "parts", third).trials) == 5 and third.given == []
    assert len(ended(searched(tmp_path / "parts", Jobs(), n_trials=6))) == 6


def test_a_trial_of_a_process_that_has_ended_is_repeated_and_one_of_a_live_process_is_left(tmp_path):
    study = searched(tmp_path, Jobs(), n_trials=1)
    killed, running, elsewhere = (study.ask(study.trials[0].distributions) for _ in range(3))
    host = study.trials[0].user_attrs["process"][0]
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    killed.set_user_attr("process", [host, child])
    running.set_user_attr("process", [host, os.getpid()])
    elsewhere.set_user_attr("process", ["another-host", child])
    study = searched(tmp_path, Jobs(), n_trials=2)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", "RUNNING", "RUNNING", "COMPLETE"]
    assert study.trials[4].params == killed.params


def test_two_commands_that_search_at_once_make_different_trials(tmp_path):
    other = []

    class Slow(Jobs):
        def launch(self, overrides, initial_job_idx):
            if not other:  # a second command begins and ends while the first trial runs
                other.append(searched(tmp_path, Jobs(), n_trials=2))
            return super().launch(overrides, initial_job_idx)

    study = searched(tmp_path, Slow(), n_trials=4)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 4
    assert len({t.params["model.lr"] for t in study.trials}) == 4


def test_a_place_with_a_quote_and_a_database_with_a_password(tmp_path):
    folder = tmp_path / "it's"
    folder.mkdir()
    jobs = Jobs()
    searched(folder, jobs, n_trials=1)
    given = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(jobs.given[0])}
    assert given["callbacks.pruning.storage"] == f"sqlite:///{folder}/study.db"
    for storage in ("redis://me:secret@host", "postgresql+nothing://me:secret@host/db"):
        with pytest.raises(UserError, match=r"//me:\*\*\*@host") as error:
            searched(tmp_path, Jobs(), storage=storage)
        assert "secret" not in str(error.value)


def test_a_failed_trial_is_marked_and_the_search_goes_on(tmp_path, caplog):
    failed = JobReturn(status=JobStatus.FAILED, _return_value=ValueError("of the trial"))
    jobs = Jobs(job1=math.nan)
    returned = jobs._job
    jobs._job = lambda overrides: failed if len(jobs.given) == 3 else returned(overrides)
    jobs.given.append([])
    sweeps.FAILED.append(1)  # as a job does that fails
    with caplog.at_level("INFO"):
        study = searched(tmp_path, jobs, "model.lr=interval(0.1,1)", "model.latent_dim=choice(2,4)", n_trials=3)
    assert sweeps.FAILED == []  # the search succeeds
    assert [t.state.name for t in study.trials][:1] == ["FAIL"] and study.trials[2].state.name == "FAIL"
    assert "3 trials: 1 completed, 2 failed" in caplog.text and "Trial 2 failed: of the trial" in caplog.text
    with pytest.raises(UserError, match=r"no trial of the study .* was completed \(2 failed\)"):
        searched(tmp_path, Jobs(job0=math.nan, job1=math.inf), "model.lr=1,2", "model.latent_dim=2", n_trials=2)


def test_every_job_of_a_trial_gets_its_values_and_where_to_report(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["zoo"])
    jobs = Jobs()
    with caplog.at_level("INFO"):
        study = searched(tmp_path, jobs, "seed=3", *SPACE, n_trials=2, n_jobs=2)
    first, _ = jobs.given
    assert first[:2] == ["model=vae", "seed=3"] and values(first) == study.trials[0].params
    assert f'callbacks.pruning.study="{study.study_name}"' in first and "callbacks.pruning.trial=0" in first
    assert "\nzoo train model=vae seed=3 model.lr=" in caplog.text
    assert without_search(["hparams_search=optuna", *first]) == first[:4]


def test_values_of_the_command_line_replace_those_of_the_recipe(tmp_path):
    recipe = {"model.lr": "interval(0.1,1)", "model.latent_dim": "choice(2,4)", "seed": "7"}
    of_recipe = searched(tmp_path, Jobs(), "model.latent_dim=2", params=recipe, n_trials=1)
    assert set(of_recipe.trials[0].params) == {"model.lr"}
    with pytest.raises(UserError, match=r"^vae has no model.rate, which the recipe of the search names"):
        searched(tmp_path, Jobs(), "seed=1", params={"model.rate": "1,2"})
    with pytest.raises(UserError, match="the search has no value to choose"):
        searched(tmp_path, Jobs(), "seed=1")


def test_a_study_of_other_settings_is_not_mixed_with_this_search(tmp_path):
    searched(tmp_path, Jobs(), study_name="mine", n_trials=1)
    with pytest.raises(UserError, match="the study mine in .* has other settings than this command"):
        searched(tmp_path, Jobs(), "seed=1", *SPACE, study_name="mine")


@pytest.mark.parametrize(("direction", "expected"), [(None, "MAXIMIZE"), ("minimize", "MINIMIZE")])
def test_the_direction_is_that_of_the_best_checkpoint_unless_it_is_given(direction, expected, tmp_path):
    study = searched(tmp_path, Jobs(), n_trials=1, mode="max", direction=direction)
    assert study.direction.name == expected


def test_distributions_are_those_of_the_grammar():
    def of(line):
        return search.distribution(OverridesParser.create().parse_override(line))

    d = optuna.distributions
    assert of("a=int(interval(1,8))") == d.IntDistribution(1, 8)
    assert of("a=interval(0.1,1)") == d.FloatDistribution(0.1, 1.0)
    assert of("a=tag(log,interval(1e-4,1e-2))") == d.FloatDistribution(1e-4, 1e-2, log=True)
    assert of("a=range(2,9,3)") == d.IntDistribution(2, 8, step=3)
    assert of("a=1,null,x") == d.CategoricalDistribution((1, "null", "x"))
    with pytest.raises(UserError, match="cannot be searched"):
        of("a=interval(1,0)")


def test_only_databases_hold_a_study():
    assert search.storage_address("runs/a.db") == "sqlite:///runs/a.db"
    with pytest.raises(UserError, match="must be the path of a file or an address of sqlite, mysql, postgresql"):
        search.storage_address("redis://host")


def test_a_search_needs_several_jobs():
    with pytest.raises(UserError, match="add -m"):
        Pruning("val/loss", None)
    assert "callbacks.pruning.trial" not in str(readable_arguments(["hparams_search=optuna"], Path(CONFIGS)))


@pytest.mark.parametrize("better", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_trial_that_is_worse_than_others_is_stopped(better, tmp_path):
    """Two earlier trials have losses of 1 nat or of 10,000 nats. The run has several hundred."""
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=storage, study_name="s")
    for _ in range(2):
        trial = study.ask()
        for epoch in range(3):
            trial.report(10_000.0 if better else 1.0, epoch)
        study.tell(trial, 1.0)
    study.ask()
    given = [f"callbacks.pruning.storage={storage}", "callbacks.pruning.study=s", "callbacks.pruning.trial=2"]
    given += ["callbacks.pruning.pruner.n_startup_trials=0", "callbacks.pruning.pruner.n_warmup_steps=0"]
    short = ["trainer.max_epochs=2", "trainer.limit_train_batches=1", "~callbacks.estimator_variance"]
    short += ["trainer.num_sanity_val_steps=1"]  # the sanity check is not reported
    metrics = run(tmp_path / "run", *TINY["vae"], *short, "hparams_search=optuna", *given)
    trial = study.trials[2]
    assert trial.state.name == ("RUNNING" if better else "PRUNED")
    assert list(trial.intermediate_values) == ([0, 1] if better else [0])
    assert trial.intermediate_values[1 if better else 0] == pytest.approx(metrics["val/loss"])
    assert ("test/loss" in metrics) == better
    assert config("x", "model=gan", "hparams_search=optuna").callbacks.pruning.monitor == "val/distance"


@pytest.mark.slow
def test_the_command_of_a_killed_search_goes_on_to_four_trials(tmp_path):
    """The whole command is killed while its third trial runs. Then the same command ends with four trials."""
    options = [*TINY["vae"], "trainer.max_epochs=2", "~callbacks.estimator_variance", "logger=csv", "test=false"]
    command = [sys.executable, str(Path(CONFIGS).parent / "train.py"), "-m", "hparams_search=optuna", *options]
    command += ["hydra.sweeper.n_trials=4", "model.lr=tag(log,interval(1e-4,1e-2))", "model.latent_dim=2,4"]
    storage = f"sqlite:///{tmp_path}/runs/optuna.db"

    def trials():
        (name,) = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage).trials

    def states():
        """Return the state and the number of parameters of each trial.

        The database is opened read only. Optuna would create missing tables, and the command would fail if it created
        the same tables at this moment.
        """
        parameters = "(SELECT COUNT(*) FROM trial_params p WHERE p.trial_id = t.trial_id)"
        try:
            with closing(sqlite3.connect(f"file:{tmp_path}/runs/optuna.db?mode=ro", uri=True)) as database:
                return database.execute(f"SELECT t.state, {parameters} FROM trials t ORDER BY t.number").fetchall()
        except sqlite3.OperationalError:  # there is no database, or the command is creating it
            return []

    output = tmp_path / "output.txt"
    with output.open("w", encoding="utf-8") as written:
        first = subprocess.Popen(command, cwd=tmp_path, stdout=written, stderr=written)
    while states() != [("COMPLETE", 2), ("COMPLETE", 2), ("RUNNING", 2)]:
        assert first.poll() is None, output.read_text(encoding="utf-8")
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    killed = trials()[2].params
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [t.state.name for t in trials()] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials()[3].params == killed
    assert "has 4 trials: 4 complete" in second.stdout + second.stderr
