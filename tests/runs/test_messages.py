"""Tests of messages: progress bars on a terminal, log lines elsewhere, the summary of a run, and CPU threads."""

import fcntl
import io
import logging
import multiprocessing
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import warnings
from pathlib import Path

import lightning as L
import pytest
from helpers import QUIET, TINY, config
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.file_proxy import FileProxy

import zoo.functional.progress as progress
import zoo.training.progress as of_trainer
import zoo.training.trainer as of_lightning
from zoo.commands.training import train
from zoo.evaluation.units import metric_texts, with_unit
from zoo.functional.progress import Lines, counted, duration, tracked
from zoo.training.error_lines import one_line_errors
from zoo.training.messages import log_above_bars
from zoo.training.threads import available_processors, prepare_threads, processors_of_quota

ROOT = Path(__file__).parents[2]


# Each run is a forked process, so that it does not import the modules again.


def _child(write, folder, overrides, term):
    os.environ["TERM"] = term  # a terminal that cannot move the cursor has no bars of rich
    for fd in (1, 2):
        os.dup2(write, fd)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
    logging.root.handlers = [logging.StreamHandler(sys.stderr)]
    logging.root.setLevel(logging.INFO)
    of_trainer.Lines = lambda first: Lines(first=0, every=0)
    shown = [o for o in QUIET if "progress" not in o and "logger" not in o]
    code = 0
    try:
        with one_line_errors(str(folder)), log_above_bars():
            warnings.simplefilter("default")
            train(config(folder, *shown, *overrides))
    except SystemExit as stopped:
        print(stopped.code, file=sys.stderr)
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def printed(terminal, folder, *overrides, term="dumb"):
    """Return the output of a run on a terminal of 100 columns, or into a pipe."""
    read, write = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    child = multiprocessing.get_context("fork").Process(target=_child, args=(write, folder, overrides, term))
    child.start()
    os.close(write)
    out = b""
    try:
        while data := os.read(read, 1 << 16):
            out += data
    except OSError:  # Linux raises this when the other end of a terminal is closed
        pass
    os.close(read)
    child.join()
    return out.decode().replace("\r\n", "\n")


def written(output):
    """Return all lines that were printed, with each state of the progress bars as a line."""
    return [part.strip() for part in re.split(r"[\r\n]|\x1b\[A", output) if part.strip()]


SHORT = [*TINY["vae"], "trainer.max_epochs=2", "callbacks.time_estimate.after=8"]


def test_on_a_terminal_messages_stand_above_the_bar(tmp_path):
    output = printed(True, tmp_path, *SHORT, "logger=csv")
    lines = written(output)
    assert any(line.startswith("Epoch 1: 100%") for line in lines)
    assert any(line.startswith("Testing") and "0/?" not in line for line in lines)
    for message in ("About ", "Test of the best checkpoint:", "Files in ", "VAE has "):
        (line,) = [line for line in lines if message in line]
        assert line.startswith(message)
    assert "v_num" not in output and "FLOPs" not in output and "───" not in output


def test_an_error_begins_on_a_line_of_its_own(tmp_path):
    poison = ["+callbacks.poison._target_=helpers.Poison", "+callbacks.poison.at=14"]
    lines = written(printed(True, tmp_path, *SHORT, "logger=csv", *poison))
    (line,) = [line for line in lines if "Training has diverged" in line]
    assert line.startswith("error: ")


def test_without_a_terminal_there_are_lines_and_nothing_is_warned_of(tmp_path):
    output = printed(False, tmp_path, *SHORT, "logger=wandb")
    assert "\r" not in output and "\x1b" not in output
    lines = written(output)
    assert [line for line in lines if re.match(r"Epoch 2 of 2, batch \d+ of 11: train/loss=[\d.]+", line)]
    assert "WARNING" not in output.upper().replace("ZOO.WARNING", "")
    assert len([line for line in lines if line.startswith("About ")]) == 1


def test_bars_and_lines_can_be_turned_off(tmp_path):
    output = printed(False, tmp_path, *SHORT, "logger=csv", "trainer.enable_progress_bar=false")
    assert "Epoch" not in output and "Test of the best checkpoint:" in output


def test_warnings_are_lines_of_the_log(caplog):
    with log_above_bars(), warnings.catch_warnings():
        warnings.simplefilter("default")
        before = warnings.showwarning
        warnings.showwarning = before
        warnings.warn("this is odd", UserWarning, stacklevel=1)
    assert "UserWarning: this is odd" in caplog.text


CONTROL = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")


class Say(L.Callback):
    """Log a message of 150 characters while the bar is shown."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            logging.getLogger("zoo").info("Said in epoch %d %s", trainer.current_epoch, "[x] " * 33)


def test_messages_stand_above_the_bar_of_rich_and_long_ones_stay_on_one_line(tmp_path):
    pytest.importorskip("rich")
    output = printed(True, tmp_path, *SHORT, "logger=csv", f"+callbacks.say._target_={__name__}.Say", term="xterm")
    lines = [CONTROL.sub("", line).strip() for line in written(output)]
    assert any(re.match(r"Epoch 1/1\s+━+ 11/11", line) for line in lines)
    assert any(re.match(r"Testing\s+━+ (\d+)/\1 ", line) for line in lines)
    for message in ("Said in epoch 0", "Said in epoch 1", "Test of the best checkpoint:", "Files in ", "VAE has "):
        (line,) = [line for line in lines if message in line]
        assert line.startswith(message) and ("Said" not in message or line.endswith("[x] " * 32 + "[x]"))
    assert "%|" not in output and "it/s]" not in output and "v_num" not in output  # no bar of tqdm


def test_a_terminal_with_a_bar_of_rich_has_no_place_for_another(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    held = FileProxy(Console(), Terminal())  # rich replaces standard error by this while it shows a bar
    assert progress.has_bars(Terminal()) and not progress.has_bars(held)
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(of_trainer.progress_bar(), of_trainer.Bars)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(of_trainer.progress_bar(), of_trainer.ProgressLines)


@pytest.mark.slow
def test_only_the_kernel_of_a_notebook_has_bars_without_a_terminal():
    """A program that imports ipykernel, to execute notebooks, is no notebook. The kernel that it starts is one."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    asked = "import ipykernel, IPython\nfrom zoo.functional.progress import has_bars\nprint(has_bars())"
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(asked)])
    nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    assert notebook.cells[0].outputs[0].text == "True\n"


# Progress of work that takes more than a few seconds.


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_lines_come_soon_and_then_ever_more_seldom(clock):
    lines, due = Lines(first=5, every=30), []
    for second in range(20_000):
        clock.now = float(second)
        if lines.due():
            due.append(second)
    assert due[:4] == [5, 35, 65, 95]
    assert 180 < due[-1] - due[-2] <= 200  # the pause between two lines is 1 % of the elapsed time


def test_long_work_says_how_far_it_is(clock, caplog, monkeypatch):
    monkeypatch.setattr(progress, "has_bars", lambda stream=None: False)
    with caplog.at_level("INFO"):
        for _ in tracked(range(60), "annealing", "temperature"):
            clock.now += 1.0
        quick = list(tracked(range(3), "quick"))
        for _ in tracked(iter(range(8)), "unknown", "row"):
            clock.now += 1.0
        hidden = [clock.monotonic() for _ in tracked(range(100), "hidden", show=False)]
    assert [r.getMessage() for r in caplog.records] == [
        "annealing: 5 of 60, about 55 seconds left",
        "annealing: 35 of 60, about 25 seconds left",
        "unknown: 5 rows",
    ]
    assert quick == [0, 1, 2] and len(hidden) == 100


def test_durations_are_words():
    assert [duration(s) for s in (0.6, 1.4, 2, 99, 100, 3600, 7500, 7200, 400_000)] == [
        *("1 second", "1 second", "2 seconds", "99 seconds", "2 minutes", "60 minutes"),
        *("2 hours 5 minutes", "2 hours", "4 days 15 hours"),
    ]
    assert counted(1, "epoch") == "1 epoch" and counted(2000, "epoch") == "2,000 epochs"


# The summary at the end of a run.


def test_numbers_have_units():
    names = {"test/loss", "test/nll", "test/accuracy"}
    assert with_unit("test/loss", 248.40626525878906, names) == "248.41 nats"
    assert with_unit("test/loss", 0.0123456, {"test/loss"}) == "0.01235"  # a squared error has no unit
    assert (
        with_unit("val/loss", 0.0123456, {"val/loss", "test/nll"}) == "0.01235"
    )  # test/nll says nothing about the unit of val/loss
    assert with_unit("test/accuracy", 0.97314, names) == "97.3 %"
    words = {"analogies", "analogies/semantic", "wordsim353", "wordsim353/coverage"}
    assert with_unit("analogies", 0.45441, words) == "45.4 %" and with_unit("wordsim353", 0.7026, words) == "0.7026"
    assert with_unit("wordsim353/coverage", 0.8612, words) == "86.1 %"
    assert with_unit("bits_per_dim", 1.8823, names) == "1.882 bits per dimension"
    assert with_unit("train/images_per_second", 6369.4, names) == "6,369.40 images per second"


def test_errors_and_counts_are_next_to_their_metrics():
    metrics = {"classifier_fid/eta=0.5": 3.67763, "classifier_fid_error/eta=0.5": 0.11779, "kl": 0.01432}
    metrics |= {"confident": 0.6412, "confident_error": 0.00479, "test/log_likelihood": -88.19, "recall_floor": 1.0}
    metrics |= {"test/log_likelihood_error": 0.3, "recall_floor_error": 0.0}
    metrics |= {"bound/L_0": 379.62445, "bound/L_0_error": 3.4172, "bound/L_T": 8.83222e-7, "bound/L_T_error": 1.534e-9}
    counts = {"classifier_fid/eta=0.5": 10_000, "test/log_likelihood": 100}
    assert metric_texts(metrics, counts) == {
        "classifier_fid/eta=0.5": "3.68 \u00b1 0.12 (n = 10,000)",
        "kl": "0.01432 nats",
        "confident": "64.12 \u00b1 0.48 %",
        "test/log_likelihood": "-88.19 \u00b1 0.30 nats (n = 100)",
        "recall_floor": "100.00 \u00b1 0 %",
        "bound/L_0": "379.6 \u00b1 3.4 nats",
        "bound/L_T": "8.832e-07 \u00b1 1.5e-09 nats",
    }
    assert metric_texts({"reconstruction_error": 3.0}) == {"reconstruction_error": "3 squared pixels"}


def test_resuming_in_the_folder_of_the_run_warns_of_nothing(tmp_path):
    (tmp_path / "last.ckpt").touch()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        of_lightning.quiet_lightning()
        ModelCheckpoint(tmp_path)._ModelCheckpoint__warn_if_dir_not_empty(tmp_path)
    assert not [w for w in warned if "not empty" in str(w.message)]


# Threads.


def test_waiting_threads_sleep_unless_the_user_says_otherwise(tmp_path):
    for given, expected in (
        ({}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "9"}, None),
    ):
        environment = dict(given)
        prepare_threads(environment, tmp_path)
        assert environment.get("OMP_WAIT_POLICY") == expected
        assert "OMP_NUM_THREADS" not in environment


def test_there_are_no_more_threads_than_a_containers_quota(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.training.threads.available_processors", lambda: 64)
    for text, expected in (("max 100000", None), ("250000 100000", 2), ("50000 100000", 1), ("", None)):
        (tmp_path / "cpu.max").write_text(text, encoding="utf-8")
        environment = {}
        prepare_threads(environment, tmp_path)
        assert processors_of_quota(tmp_path) == expected
        assert environment.get("OMP_NUM_THREADS") == (None if expected is None else str(expected))
    (tmp_path / "cpu.max").write_text("200000 100000", encoding="utf-8")
    environment = {"OMP_NUM_THREADS": "7"}
    prepare_threads(environment, tmp_path)
    assert environment["OMP_NUM_THREADS"] == "7"
    assert available_processors() >= 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    for name, text in (("quota", "300000\n"), ("period", "100000\n")):
        (tmp_path / "cpu" / f"cpu.cfs_{name}_us").write_text(text, encoding="utf-8")
    assert processors_of_quota(tmp_path) == 3
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n", encoding="utf-8")  # -1 means no quota
    assert processors_of_quota(tmp_path) is None


@pytest.mark.parametrize("command", [["train.py", "model=nothing"], ["-m", "zoo", "sample", "vae", "-n", "0"]])
def test_threads_are_prepared_before_torch_is_imported(command):
    """libgomp reads its environment variables once, when it is loaded."""
    watch = (
        "import atexit, os, sys, runpy; a = sys.argv[1:]; sys.path.insert(0, os.getcwd());"
        "atexit.register(lambda: print('\\nPOLICY', os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules));"
        "sys.argv = a[1:] if a[0] == '-m' else a;"
        "runpy.run_module('zoo', run_name='__main__') if a[0] == '-m' else runpy.run_path(a[0], run_name='__main__')"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", watch, *command], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=120
    )
    assert "POLICY PASSIVE False" in done.stdout


# The whole command (slow).


WHOLE = ("skipgram", "vae")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TINY) - set(WHOLE)))
def test_no_recipe_warns_of_anything(name, tmp_path):
    output = printed(False, tmp_path, *TINY[name], "trainer.max_epochs=2", "logger=wandb")
    assert "Files in " in output
    assert "\r" not in output and "warning" not in output.lower()


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_command_warns_of_nothing(name, tmp_path):
    """The output of a run has no warning, with Weights & Biases offline. ``train.log`` contains the summary."""
    command = [sys.executable, "train.py", *TINY[name], "trainer.max_epochs=2", "logger=wandb"]
    env = {**os.environ, "WANDB_MODE": "offline"}
    with (tmp_path / "out").open("w") as out:
        subprocess.run(
            [*command, f"hydra.run.dir={tmp_path / 'run'}"], cwd=ROOT, env=env, stdout=out, stderr=out, check=True
        )
    output = (tmp_path / "out").read_text(encoding="utf-8")
    assert "\r" not in output and "warning" not in output.lower()
    assert "Files in " in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
