"""Tests that printed paths and commands can be pasted into a shell, and that Hydra reads the same values."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import config
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from zoo.callbacks import loggers
from zoo.callbacks.exact_resume import ExactResume
from zoo.callbacks.finite_loss import FiniteLoss
from zoo.callbacks.run_record import RunRecord, run_command
from zoo.checks.errors import UserError
from zoo.training.error_lines import line_of, one_line_errors
from zoo.training.shell import override, pasted, resume_command, shareable, training_command, zoo_command
from zoo.training.wandb_login import keep_wandb_out_of_home, wandb_credentials, wandb_settings

FOLDERS = ["a b", "ü", "it's", 'a"b', "x=1", "a,b", "$HOME", "`id`", "a\\", "a\\'b", "-x", "=ls", "~", "#1", "(1)"]
FOLDERS += ["[1]", "{a}", "null", "1e3", "!x", "a;b", "a&b", "50%", "*", "a:b", "plain"]
PRINT = "import json, sys; print(json.dumps(sys.argv[1:]))"


def read_by_a_shell(*commands):
    """Return the words of each command, as sh passes them to a program."""
    script = "\n".join(f"{sys.executable} -S -c '{PRINT}' {command}" for command in commands)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_paths_and_overrides_are_read_back_as_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [tmp_path / name / "last.ckpt" for name in FOLDERS] + [tmp_path / name for name in FOLDERS]
    words = read_by_a_shell(*(pasted(path, override("ckpt", path)) for path in paths))
    for path, (word, setting) in zip(paths, words, strict=True):
        assert tmp_path / word == path and word[0] not in "-=~", word  # not an option, and not expanded by zsh
        assert tmp_path / str(OverridesParser.create().parse_override(setting).value()) == path, setting
    literal = OverridesParser.create().parse_override(override("ckpt", "a/${x}")).value()
    assert literal == r"a/\${x}"  # the backslash keeps OmegaConf from replacing ${x}
    for text in ("a/${x}", r"a\${x}", r"a\\${x}/b"):
        assert OmegaConf.create([OverridesParser.create().parse_override(override("k", text)).value()])[0] == text


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/usr/bin/zoo", "zoo train"),
        ("/usr/lib/python3/site-packages/zoo/__main__.py", "python -m zoo train"),
        ("/home/a b/zoo/train.py", "python '/home/a b/zoo/train.py'"),
        ("/home/a/mine/__main__.py", "zoo train"),
        ("-c", "zoo train"),
    ],
)
def test_commands_to_type_begin_as_the_user_began(program, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program])
    assert pasted(*training_command()) == command
    assert run_command().startswith(command.replace("'/home/a b/zoo/train.py'", "train.py"))


def test_records_that_others_read_have_no_home_folder_and_no_passwords(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    for text, expected in {
        "data.path=/home/me/faces": "data.path=~/faces",
        'data.path="/home/me/my faces"': 'data.path="~/my faces"',
        "data.path=/disk/home/me/faces": "data.path=/disk/home/me/faces",
        "data.path=/home/meg/faces": "data.path=/home/meg/faces",
        "a=mysql://me:pa:ss@host/b@c": "a=mysql://me:***@host/b@c",
        "a=postgresql://me@host:5432/b@c": "a=postgresql://me@host:5432/b@c",
        "init=https://host/a.safetensors#sha256=0": "init=https://host/a.safetensors#sha256=0",
    }.items():
        assert shareable(text) == expected
    record = RunRecord(str(tmp_path), {"logger": [{"uri": "http://me:secret@host"}], "seed": 1})
    assert record.config == {"logger": [{"uri": "http://me:***@host"}], "seed": 1}
    for home in ("/", "~"):
        monkeypatch.setenv("HOME", home)
        assert shareable("ckpt=/a/~/b") == "ckpt=/a/~/b"


@pytest.mark.parametrize("installed", [True, False])
def test_without_a_command_zoo_printed_commands_begin_with_python(installed, tmp_path, monkeypatch):
    if installed:
        (tmp_path / "zoo").write_text("#!/bin/sh\n", encoding="utf-8")
        (tmp_path / "zoo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    module = ["python", "-m", "zoo"]
    for program, command in (
        ("/usr/bin/zoo", ["zoo"]),
        ("/usr/lib/zoo/__main__.py", module),
        ("train.py", ["zoo"] if installed else module),
    ):
        monkeypatch.setattr(sys, "argv", [program])
        assert zoo_command() == command, program


def test_everything_that_names_a_run_folder_can_be_pasted(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "it's a =run,$x ü"
    last = folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    (folder / "config.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["zoo"])
    command = resume_command(folder, "trainer.max_epochs=4")
    assert read_by_a_shell(command) == [["zoo", "resume", str(folder), "trainer.max_epochs=4"]]
    setting = resume_command(folder)
    with pytest.raises(UserError) as refused:
        RunRecord(str(folder))
    assert setting in str(refused.value) and pasted(folder) in str(refused.value)
    assert pasted(last) in FiniteLoss(str(folder))._advice()
    ExactResume(str(folder))._say_without_test()
    assert pasted("zoo", "evaluate", folder) in caplog.text
    assert setting in line_of(RuntimeError("Connection closed by peer"), str(folder))
    assert setting in line_of(OSError(28, "No space left on device", "a.csv"), str(folder))
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = loggers.WandbLogger(str(folder), checkpoints=False)
    assert logger.experiment
    logger.experiment.finish()
    assert "wandb sync '" in caplog.text and pasted(folder)[:-1] in caplog.text


# Errors of one line, and errors with a traceback.


def test_a_file_that_the_user_named_is_one_line_and_another_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["zoo", "curves", "runs/a", "hydra.run.dir=/proc/foo"])
    for error in (
        PermissionError(13, "Permission denied", "anything.csv"),
        FileNotFoundError(2, "No such file or directory", "/proc/foo"),
        IsADirectoryError(21, "Is a directory", "runs/a/metrics.csv"),
    ):
        with pytest.raises(SystemExit, match=f"error: {error.filename} cannot be read or written"), one_line_errors():
            raise error
    for bug in (FileNotFoundError(2, "No such file", "of_ours.json"), OSError(22, "x"), KeyError("a"), ValueError("b")):
        with pytest.raises(type(bug)), one_line_errors("runs/a"):
            raise bug


@pytest.mark.parametrize("left_out", ["trainer", "model", "data"])
def test_a_configuration_without_one_of_its_parts_is_refused(left_out, tmp_path):
    from zoo.training.command_line import check_values

    model = ["model=vae"] if left_out != "model" else []
    with pytest.raises(UserError, match=f"has no {left_out}: choose"):
        check_values(config(tmp_path, *model, f"~{left_out}"))


# Names and files of Weights & Biases.


@pytest.mark.parametrize("project", ["a/b#c", "x" * 129, "a%b", "a:b"])
def test_a_name_that_the_service_forbids_is_refused_in_one_line(project, tmp_path):
    with pytest.raises(UserError, match="Weights & Biases does not allow") as refused:
        loggers.WandbLogger(str(tmp_path), project=project)
    assert "\n" not in str(refused.value)


def test_names_in_the_environment_are_looked_at_too(monkeypatch):
    for name, value in (("WANDB_ENTITY", "a/b"), ("WANDB_RUN_ID", "a/b"), ("WANDB_NAME", "x" * 200)):
        monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="Weights & Biases does not allow"):
            wandb_settings(project="zoo")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("home", ["/proc/nothing", None])
def test_a_home_that_cannot_be_written_is_left_alone(home, tmp_path, monkeypatch):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", home or "~")  # expanduser then returns "~", as for a user without a home folder
    assert not wandb_credentials()
    keep_wandb_out_of_home(tmp_path)
    assert Path(os.environ["WANDB_DATA_DIR"]) == tmp_path / "wandb" / "data"
