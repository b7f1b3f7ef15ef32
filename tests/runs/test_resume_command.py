"""Tests of ``zoo resume``: which run and which checkpoint it takes, with which settings."""

import os
import re
import shlex
import signal
import sys

import pytest
import torch
import yaml
from helpers import QUIET, TINY, assert_same, checkpoint, logged, stop
from processes import done

from zoo.__main__ import main
from zoo.commands import resuming
from zoo.commands.resuming import merged, newest_checkpoint, run_folders

STARTED = 1_700_000_000


def made(folder, command="zoo train model=vae seed=3", *, epochs=1, steps=11, begun=0, written=("last",), **trainer):
    """Write what ``zoo resume`` reads of a run. The run began ``begun`` seconds after the first one."""
    config = {"model": {"lr": 1}, "data": {}, "trainer": {"max_epochs": 3, **trainer}}
    (folder / "checkpoints").mkdir(parents=True)
    text = yaml.safe_dump({**config, "command": command})
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    os.utime(folder / "config.yaml", (STARTED + begun, STARTED + begun))
    for age, name in enumerate(written):
        file = folder / "checkpoints" / f"{name}.ckpt"
        loops = {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}}
        record = {"config": config, "command": "python train.py model=vae seed=4"}
        torch.save({"state_dict": {}, "loops": loops, "global_step": steps, "record": record}, file)
        os.utime(file, (STARTED + age, STARTED + age))
    return folder


@pytest.fixture
def resume(tmp_path, monkeypatch, capsys):
    """Return a function that runs ``zoo resume`` in the folder of the test, and returns its words for training.

    It also returns what the command prints.
    """
    monkeypatch.chdir(tmp_path)

    def resumed(*words):
        trained = []
        monkeypatch.setattr(resuming, "train", trained.extend)
        monkeypatch.setattr(sys, "argv", ["zoo", "resume", *map(str, words)])
        main()
        said = capsys.readouterr()
        return trained, said.out + said.err

    return resumed


def test_the_run_that_began_last_goes_on_with_its_own_settings(tmp_path, resume):
    made(tmp_path / "runs" / "vae" / "b", begun=1)
    made(tmp_path / "runs" / "gan" / "a", "python train.py model=gan 'model.hidden=[1, 2]' ckpt=old +x=1", begun=3)
    made(tmp_path / "runs" / "vae" / "c", begun=2)
    trained, said = resume()
    last = ["ckpt=runs/gan/a/checkpoints/last.ckpt", "hydra.run.dir=runs/gan/a"]
    assert sorted(trained) == sorted(["model=gan", "model.hidden=[1, 2]", "+x=1", *last])
    line = "Resuming runs/gan/a, the last of 3 runs in runs, from last.ckpt (complete epochs: 1 of 3)\n"
    assert said == line


def test_only_folders_of_runs_are_found_and_those_of_sweeps_too(tmp_path):
    runs = tmp_path / "runs"
    jobs = [made(runs / "sweep" / "2026" / f"job{n}", begun=n) for n in range(2)]
    for other in (jobs[1] / ".hydra", jobs[1] / "wandb" / "run-1" / "files", runs / ".trash"):
        made(other, begun=9)
    made(tmp_path / "elsewhere", begun=9)
    assert run_folders(runs) == jobs[::-1] and run_folders(tmp_path / "nothing") == []


@pytest.mark.parametrize("name", ["runs/a", "runs/a/checkpoints", "runs/a/", "{}/runs/a", "~/runs/a"])
def test_a_run_is_named_by_its_folder(name, tmp_path, resume, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made(tmp_path / "runs" / "a", written=("last", "interrupted"))
    trained, said = resume(name.format(tmp_path), "trainer.max_epochs=20", "seed=3")
    expected = ["model=vae", "ckpt=runs/a/checkpoints/interrupted.ckpt", "hydra.run.dir=runs/a"]
    assert sorted(trained) == sorted([*expected, "trainer.max_epochs=20", "seed=3"])
    assert said.startswith("Resuming runs/a, as named, from interrupted.ckpt")


def test_a_name_with_an_equals_sign_is_a_run_if_there_is_one(tmp_path, resume):
    made(tmp_path / "seed=1")
    made(tmp_path / "runs" / "a")
    assert "hydra.run.dir=runs/a" in resume("seed=2")[0]
    assert 'hydra.run.dir="seed=1"' in resume("seed=1")[0]
    assert "hydra.run.dir=runs/a" in resume("~callbacks.samples")[0]


@pytest.mark.parametrize(("written", "newest"), [(("last", "interrupted"), 1), (("interrupted", "last"), 1)])
def test_the_checkpoint_that_was_written_last_is_taken(written, newest, tmp_path):
    folder = made(tmp_path / "a", written=written)
    assert newest_checkpoint(folder).stem == written[newest]


def test_a_checkpoint_file_goes_on_in_its_run_or_in_a_new_one(tmp_path, resume):
    folder = made(tmp_path / "a", written=("best-epoch001", "last"))
    trained, _ = resume(folder / "checkpoints" / "best-epoch001.ckpt")
    assert {"ckpt=a/checkpoints/best-epoch001.ckpt", 'hydra.run.dir="a"', "seed=3"} <= set(trained)
    (folder / "checkpoints" / "last.ckpt").rename(tmp_path / "copy.ckpt")
    trained, said = resume("copy.ckpt")
    assert trained == ["model=vae", "seed=4", "ckpt=copy.ckpt"] and "in no run folder, in a new run" in said


def test_a_run_of_another_working_folder_finds_its_data(tmp_path, resume, monkeypatch):
    command = "zoo train model=vae data=images 'data.path=\"my photos\"' init=vae"
    folder, here = made(tmp_path / "a" / "runs" / "b", command), tmp_path / "here"
    (tmp_path / "a" / "my photos").mkdir()
    (tmp_path / "a" / "data").mkdir()
    here.mkdir()
    with (folder / "config.yaml").open("a", encoding="utf-8") as file:
        file.write(f"working_folder: {tmp_path / 'a'}\n")
    monkeypatch.chdir(here)
    monkeypatch.delenv("ZOO_DATA", raising=False)
    trained, _ = resume("../a/runs/b")
    assert {f'data.path="{tmp_path}/a/my photos"', "init=vae"} < set(trained)
    assert os.environ.pop("ZOO_DATA") == str(tmp_path / "a" / "data")
    monkeypatch.chdir(tmp_path / "a")
    assert 'data.path="my photos"' in resume("runs/b")[0] and "ZOO_DATA" not in os.environ


def test_a_run_in_its_own_run_dir_and_with_its_own_configurations_goes_on(tmp_path, resume):
    made(tmp_path / "runs" / "a", "zoo train --config-dir=/mine model=made run_dir=/before/a ckpt=b")
    trained, _ = resume()
    assert trained[0] == "--config-dir=/mine" and {"run_dir=runs/a", "hydra.run.dir=runs/a"} <= set(trained)
    trained, _ = resume("--config-dir", "moved", "runs/a")
    assert [word for word in trained if word.startswith("--")] == ["--config-dir=moved"]


@pytest.mark.parametrize("trainer", [{"max_epochs": 1}, {"max_epochs": None, "max_steps": 11}])
def test_a_finished_run_says_so_and_how_to_extend_it(trainer, tmp_path, resume):
    made(tmp_path / "runs" / "a", **trainer)
    trained, said = resume()
    assert not trained and said.startswith("runs/a is finished: it has trained for ")
    assert "for 1 epoch. " in said or "for 11 steps. " in said
    longer = shlex.split(said.partition("To train longer: ")[2])
    assert longer[:3] == ["zoo", "resume", "runs/a"]
    trained, _ = resume(*longer[2:])
    assert longer[3] in trained and {longer[3]} < {"trainer.max_epochs=2", "trainer.max_steps=22"}


def test_an_override_replaces_the_one_of_the_run():
    given = ["model=vae", "+trainer.max_steps=3", "seed=1", "~callbacks.ema"]
    assert merged(given, ["trainer.max_steps=5", "seed=2"]) == ["model=vae", "+trainer.max_steps=5", "seed=2", given[3]]
    assert merged(given, ["++seed=2", "+x=1"]) == [*given[:2], "++seed=2", given[3], "+x=1"]


REFUSED = [
    ([], 1, r"error: there is no run in .*runs: start one with zoo train, or name the folder of a run"),
    (["nothing"], 1, "error: there is no run nothing: give the folder of a run, or a checkpoint file in it"),
    (["."], 1, r"error: \. is no run folder, because it has no config.yaml: the last run in it is begun"),
    (["empty"], 1, "error: empty is no run folder, .*: give a folder that holds one"),
    (["begun"], 1, "error: begun has no checkpoint, .*; start it again: zoo train model=vae seed=3$"),
    (["notes.txt"], 1, "error: notes.txt is not a checkpoint that can be read safely"),
    (["other.ckpt"], 1, "error: other.ckpt has no record of zoo train: resume it with the program that wrote it"),
    (["-m", "seed=1"], 2, "error: unrecognized arguments: -m; see zoo resume --help"),
    (["--confg-dir=x"], 2, r"\(did you mean --config-dir\?\)"),
]


@pytest.mark.parametrize(("words", "status", "message"), REFUSED)
def test_what_cannot_resume_is_one_line(words, status, message, tmp_path, resume, capsys):
    made(tmp_path / "begun", written=())
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit) as ended:
        resume(*words)
    said = capsys.readouterr().err if status == 2 else str(ended.value.code)
    assert (ended.value.code == 2) == (status == 2) and re.search(message, said)
    assert said.rstrip("\n").count("\n") == 0


EXACT = [
    *TINY["vae"],
    *QUIET,
    "trainer.max_epochs=2",
    "callbacks.estimator_variance.draws=2",
    "callbacks.estimator_variance.every_n_steps=10",  # the steps of "auto" depend on the time
    "trainer.log_every_n_steps=4",
]


def zoo(folder, *words, code=0, **variables):
    """Run ``python -m zoo`` in ``folder``, and return what it prints."""
    ended = done("-m", "zoo", *words, cwd=folder, timeout=300, **variables)
    assert ended.returncode == code, ended.stderr[-2000:]
    return ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_that_the_command_resumes_is_the_uninterrupted_one(devices, tmp_path):
    """The interrupted run is the first job of a sweep if it has one process. Sweeps have one process for each job."""
    overrides = [*EXACT, f"trainer.devices={devices}"]
    zoo(tmp_path, "train", *overrides, "hydra.run.dir=whole")
    sweep = ["-m", "seed=0"] if devices == 1 else []
    said = zoo(tmp_path, "train", *sweep, *overrides, *stop(15, signal.SIGTERM), code=143)
    (folder,) = run_folders(tmp_path / "runs")
    printed = said.split("To resume from this point:\n")[1].split("\n")[0]
    assert shlex.split(printed) == ["python", "-m", "zoo", "resume", str(folder.relative_to(tmp_path))]
    assert "the only run in runs, from interrupted.ckpt" in zoo(tmp_path, "resume")
    ours, theirs = checkpoint(folder), checkpoint(tmp_path / "whole")
    assert ours["global_step"] == theirs["global_step"] > 16
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "epoch"):
        assert_same(ours[key], theirs[key], key)
    assert logged(folder) == logged(tmp_path / "whole")
    assert "is finished" in zoo(tmp_path, "resume")
