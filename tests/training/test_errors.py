"""Tests of errors. An error that the user can fix is one line. Other errors have a traceback."""

import errno
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import QUIET, TINY, config
from processes import done

from zoo.checks.errors import UserError
from zoo.training.command_line import check_values
from zoo.training.error_lines import one_line_errors
from zoo.training.hydra_errors import hydra_raises
from zoo.training.shell import resume_command

ROOT = Path(__file__).parents[2]

# This script puts a bug into the package and then starts the program. The bug raises a ValueError.
PLANT = """
import runpy, sys
import {module} as module
def bug(*args, **kwargs):
    first, second = (1, 2, 3)
{where} = bug
sys.argv = {argv!r}
runpy.{run}
"""


def planted(module, where, argv, run):
    script = PLANT.format(module=module, where=where, argv=argv, run=run)
    return done("-c", script)


@pytest.mark.parametrize(
    ("module", "where"),
    [
        pytest.param("zoo.vae", "module.image_networks", marks=pytest.mark.slow),  # while Hydra calls the constructor
        pytest.param("zoo.vae", "module.VAE.negative_elbo", marks=pytest.mark.slow),  # in a training step
        pytest.param("zoo.callbacks.samples", "module.Samples._draw", marks=pytest.mark.slow),  # in a callback
    ],
)
def test_a_bug_keeps_its_traceback_in_training(module, where, tmp_path):
    argv = ["train.py", *TINY["vae"], *QUIET, "debug=fast", f"hydra.run.dir={tmp_path}"]
    ended = planted(module, where, argv, f"run_path({str(ROOT / 'train.py')!r}, run_name='__main__')")
    assert ended.returncode != 0
    assert "in bug" in ended.stderr and "too many values to unpack" in ended.stderr, ended.stderr[-2000:]
    assert "error: too many" not in ended.stderr


def test_a_bug_keeps_its_traceback_on_the_command_line(tmp_path):
    argv = ["zoo", "sample", "vae", "-o", str(tmp_path / "a.png")]
    ended = planted("zoo.vae", "module.VAE.prior", argv, "run_module('zoo', run_name='__main__')")
    assert ended.returncode != 0
    assert "in bug" in ended.stderr and "too many values to unpack" in ended.stderr, ended.stderr[-2000:]
    assert "error: too many" not in ended.stderr


@pytest.mark.slow
def test_a_bug_in_the_constructor_of_a_checkpoint_keeps_its_traceback(tmp_path):
    argv = ["zoo", "sample", "vae", "-o", str(tmp_path / "a.png")]
    ended = planted("zoo.vae", "module.image_networks", argv, "run_module('zoo', run_name='__main__')")
    assert ended.returncode != 0 and "in bug" in ended.stderr, ended.stderr[-2000:]


def test_what_a_user_can_fix_is_one_line():
    with pytest.raises(SystemExit, match="error: lr must be positive"), one_line_errors():
        raise UserError("lr must be positive")
    bugs = (ValueError("not enough values"), KeyError("x"), RuntimeError("closed by peer"), FileNotFoundError(2, "x"))
    for bug in bugs:
        with pytest.raises(type(bug)), one_line_errors():
            raise bug
    gone = "another process of this run has ended; resume with .*zoo resume runs/a"
    with pytest.raises(SystemExit, match=gone), one_line_errors("runs/a"):
        raise RuntimeError("Connection closed by peer [127.0.0.1]")
    full = "error: a.csv cannot be written: No space left on device. Free disk space$"
    with pytest.raises(SystemExit, match=full), one_line_errors():
        raise OSError(28, "No space left on device", "a.csv")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_a_quota_and_a_file_can_be_full(number):
    """A run on a full disk, quota or file ends with one line, which has the command that resumes the run."""
    resume = resume_command("runs/a")
    full = f"error: a.csv cannot be written: {os.strerror(number)}. Free disk space, then resume with {resume}"
    with pytest.raises(SystemExit, match=re.escape(full)), one_line_errors("runs/a"):
        raise OSError(number, os.strerror(number), "a.csv")


def test_a_log_on_a_full_disk_adds_nothing_to_the_line(capfd):
    """The log is /dev/full. Every write to it fails, as on a full disk."""
    handler = logging.FileHandler("/dev/full")
    logging.getLogger().addHandler(handler)
    try:
        with pytest.raises(SystemExit, match="No space left"), one_line_errors():
            raise OSError(errno.ENOSPC, "No space left on device", "a.csv")
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):
            handler.close()
    assert not capfd.readouterr().err


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_a_process_other_than_the_first_says_which_it_is(variable, monkeypatch):
    """The message contains the global rank. In processes that Lightning starts, it is the local rank."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "3")
    with pytest.raises(SystemExit, match=re.escape("[process 3] error: too large")), one_line_errors():
        raise UserError("too large")
    monkeypatch.setenv(variable, "0")
    with pytest.raises(SystemExit, match="^error: too large"), one_line_errors():
        raise UserError("too large")


def test_a_wrong_seed_is_named(tmp_path):
    """The error for a wrong seed contains the seed. Seeds are integers from 0 to 2^32 - 1."""
    cfg = config(tmp_path, *TINY["vae"])
    for cfg.seed in (-1, 2**32, 1.5, None):
        with pytest.raises(UserError, match=re.escape(f"got {cfg.seed!r}")):
            check_values(cfg)
    for cfg.seed in (0, 2**32 - 1):
        check_values(cfg)


def test_a_file_that_cannot_be_made_is_one_line(tmp_path):
    ended = done("-m", "zoo", "vectors", "skipgram", "-o", "/proc/nothing/v.txt")
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1 and "/proc/nothing/v.txt" in ended.stderr


@pytest.mark.parametrize("before", [None, "0"])
def test_what_the_user_set_of_hydra_is_there_again(before, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if before is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", before)
    with hydra_raises():
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
    assert os.environ.get("HYDRA_FULL_ERROR") == before
