"""Tests of signals at any moment, closed pipes, and sweeps with jobs that fail. All tests start real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import QUIET, TINY

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
TRAIN = [sys.executable, str(ROOT / "train.py")]
ZOO = [sys.executable, "-m", "zoo"]
SHORT = [*TINY["vae"], *QUIET, "logger=none", "callbacks=none", "test=false", "debug=fast"]


def start(command, folder):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, start_new_session=True, **pipes)


def listens(process):
    """Wait until the program has installed its handler for SIGTERM."""
    for _ in range(6000):
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        if int(re.search(r"SigCgt:\s*(\w+)", status).group(1), 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.01)
    raise AssertionError("the process never installs a signal handler")


def nothing_left(process):
    for _ in range(200):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("a process outlived the one that was interrupted")


# Each moment: a command, the seconds that it runs before the signal, and the signal.
MOMENTS = [
    (TRAIN + ["model=vae", "data=digits", "logger=none", "trainer=cpu"], 0, signal.SIGINT),
    (ZOO + ["sample", "vae", "-n", "1000000"], 1.5, signal.SIGTERM),
]
LATER = [
    (TRAIN + ["model=vae", "data=digits", "logger=none", "trainer=cpu"], 1, signal.SIGTERM),
    (ZOO + ["sample", "vae", "-n", "1000000"], 0, signal.SIGTERM),
    (ZOO + ["sample", "vae", "-n", "1000000"], 1.5, signal.SIGINT),
    (ZOO + ["evaluate", "vae", "--data", "digits", "--importance-samples", "100000"], 0.5, signal.SIGINT),
    (TRAIN + ["model=vade", "data=digits", "logger=none", "trainer=cpu"], 15, signal.SIGINT),
    (TRAIN + ["model=vae", "data=digits", "logger=none", "trainer=cpu", "trainer.devices=2"], 4, signal.SIGINT),
    (TRAIN + ["model=vae", "data=digits", "logger=none", "trainer=cpu", "trainer.devices=2"], 9, signal.SIGTERM),
    (ZOO + ["sample", "ddpm", "-n", "100000"], 12, signal.SIGINT),
    (ZOO + ["compare", "vae", "--data", "digits", "--draws", "1000000"], 12, signal.SIGTERM),
]


@pytest.mark.parametrize(
    ("command", "seconds", "signum"),
    [*MOMENTS, *(pytest.param(*moment, marks=pytest.mark.slow) for moment in LATER)],
)
def test_a_signal_at_any_moment_is_one_line_and_its_status(command, seconds, signum, tmp_path):
    process = start(command, tmp_path)
    try:
        listens(process)
        time.sleep(seconds)
        os.killpg(process.pid, signum)
        said, errors = process.communicate(timeout=90)
        assert process.returncode == 128 + signum, errors
        assert "Traceback" not in said + errors
        lines = errors.splitlines()
        if "trainer.devices=2" in command:  # gloo of the other process may print a warning after this line
            assert "Error executing" not in errors
            lines = [line for line in lines if not line.startswith("[W")]
        assert lines[-1:] == [f"interrupted by {signum.name}"] or "Interrupted" in errors
        half_written = [path for path in tmp_path.rglob(".*") if path.name not in (".hydra", ".lock")]
        assert not half_written and not list(tmp_path.glob("*.png"))  # no file is incomplete or outside a run folder
        nothing_left(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_first_moments_of_a_second_process_is_one_line(signum, tmp_path):
    """The second process gets the signal while Python starts, before it can install a handler."""
    process = start(TRAIN + ["model=vae", "data=digits", "logger=none", "trainer=cpu", "trainer.devices=2"], tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        for _ in range(12_000):
            if children.read_text(encoding="utf-8"):
                break
            time.sleep(0.005)
        os.killpg(process.pid, signum)
        said, errors = process.communicate(timeout=90)
        assert process.returncode == 128 + signum, errors
        assert "Traceback" not in said + errors and f"interrupted by {signum.name}" in errors
        nothing_left(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


SWALLOWED = """
import os, signal, time
from zoo.training.interruption import ended_by_signals
with ended_by_signals():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except BaseException:
        pass
    try:
        time.sleep(60)
    finally:
        print("unwound", flush=True)
"""
REPLACED = """
import os, signal, time
from zoo.training.interruption import ended_by_signals
with ended_by_signals():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)  # the kernel can give the signal to another thread first
    finally:
        raise ValueError("from an interrupted library")
"""
AGAIN = """
import os, signal, time
from zoo.training.interruption import ended_by_signals
with ended_by_signals():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        print("cleared away", flush=True)
"""
IGNORED = """
import os, signal
from zoo.training.interruption import ended_by_signals
signal.signal(signal.SIGINT, signal.SIG_IGN)
with ended_by_signals():
    os.kill(os.getpid(), signal.SIGINT)
    print("continues", flush=True)
"""
EARLY = """
import os, signal
from zoo.training import interruption
installed = signal.set_wakeup_fd
def during(*arguments, **options):  # the handlers are there, and the block has not begun
    os.kill(os.getpid(), signal.SIGINT)
    return installed(*arguments, **options)
signal.set_wakeup_fd = during
with interruption.ended_by_signals():
    print("begins")
"""
CRASHING = """
import atexit, os, signal, sys, time
from zoo.training.interruption import ended_by_signals
class Crashes:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGSEGV)
sys.modules["half_imported"] = Crashes()
with ended_by_signals():
    atexit.register(sys.stdout.write, "cleared away")
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
STUCK = """
import ctypes, os, signal
from zoo.training import interruption
interruption.PATIENCE = 1
with interruption.ended_by_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # signals then do not interrupt system calls
    os.kill(os.getpid(), signal.SIGINT)
    ctypes.CDLL(None).sleep(60)
"""
HALF_IMPORTED = """
import os, signal, sys, time
from zoo.training.interruption import ended_by_signals
class Finder:  # torch.distributed imports this module after it has registered its C++ types
    def find_spec(name, path=None, target=None):
        if name == "torch.distributed.distributed_c10d":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
with ended_by_signals():
    try:
        import torch
        time.sleep(60)
    finally:
        import torch
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (SWALLOWED, "unwound\n"),
        (REPLACED, ""),
        (AGAIN, "cleared away\n"),
        (EARLY, ""),
        (CRASHING, "cleared away"),
        (STUCK, ""),
        (HALF_IMPORTED, ""),
    ],
)
def test_no_library_keeps_a_signal_from_ending_the_program(script, said):
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (130, said, "interrupted by SIGINT\n")


def test_a_signal_that_a_background_job_ignores_stays_ignored():
    done = subprocess.run([sys.executable, "-c", IGNORED], env=ENVIRONMENT, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "continues\n", "")


@pytest.mark.parametrize("command", [ZOO + ["list"], ZOO + ["-h"], TRAIN + ["--help"], TRAIN + ["--cfg", "job"]])
def test_a_closed_pipe_is_silence_and_the_status_of_sigpipe(command, tmp_path):
    process = start(command, tmp_path)
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == ""
    # argparse ignores errors when it writes its help. The status is then 0 if Python does not buffer standard output.
    assert process.wait(60) in ((0, 141) if "-h" in command else (141,))


# Sweeps.

SWEEP = """
import runpy, sys
import zoo.vae
from hydra._internal.hydra import Hydra
made, multirun = zoo.vae.VAE.negative_elbo, Hydra.multirun
def bug(self, *args, **kwargs):
    if self.hparams.lr == 5:
        first, second = (1, 2, 3)
    return made(self, *args, **kwargs)
def told(self, *args, **kwargs):
    jobs = multirun(self, *args, **kwargs)[0]
    print("a sweeper reads", [job.return_value for job in jobs])
zoo.vae.VAE.negative_elbo, Hydra.multirun = bug, told
sys.argv = {argv!r}
runpy.run_path({train!r}, run_name="__main__")
"""


def sweep(folder, *overrides):
    argv = ["train.py", "-m", *SHORT, "callbacks=checkpoints", f"hydra.sweep.dir={folder}", *overrides]
    script = SWEEP.format(argv=[*argv, "hydra.sweep.subdir=${hydra:job.num}"], train=str(ROOT / "train.py"))
    return subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_a_sweep_goes_on_after_a_job_that_fails(tmp_path):
    """One job has a wrong value, one has a bug, and two train. An optimising sweeper receives NaN for failed jobs."""
    done = sweep(tmp_path, "model.lr=-1,1e-3,5,2e-3")
    assert done.returncode == 1, done.stderr[-2000:]
    assert re.search(r"a sweeper reads \[nan, [\d.]+, nan, [\d.]+\]", done.stdout), done.stdout
    assert "error: lr must be a positive number, got -1" in done.stderr
    assert "in bug" in done.stderr and "too many values to unpack" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "error: 2 of 4 jobs failed: 0 (model.lr=-1), 2 (model.lr=5)"
    assert "error: lr must be" in (tmp_path / "0" / "train.log").read_text(encoding="utf-8")
    assert "in bug" in (tmp_path / "2" / "train.log").read_text(encoding="utf-8")
    assert [(tmp_path / str(n) / "checkpoints" / "last.ckpt").is_file() for n in range(4)] == [False, True, False, True]


@pytest.mark.slow
def test_a_signal_ends_a_whole_sweep(tmp_path):
    stop = ["+callbacks.stop._target_=helpers.SendSignal", "+callbacks.stop.at=0", "+callbacks.stop.signum=15"]
    done = sweep(tmp_path, "model.lr=1e-3,2e-3", *stop, "trainer.limit_train_batches=3")
    assert done.returncode == 143 and not (tmp_path / "1").exists(), done.stderr[-2000:]


@pytest.mark.slow
def test_a_run_without_a_home_folder_ends_well(tmp_path):
    """HOME is not set, and the user has no entry in the password database."""
    alone = ["unshare", "-U", "--map-user=12345"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    without = {k: v for k, v in ENVIRONMENT.items() if k not in ("HOME", "WANDB_MODE") and "XDG" not in k}
    run = [*TINY["vae"], "trainer=cpu", "trainer.enable_progress_bar=false", "debug=fast", "callbacks=checkpoints"]
    done = subprocess.run(
        [*alone, *TRAIN, *run, f"hydra.run.dir={tmp_path}/a run"],
        env=without,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "could not be uploaded" not in done.stderr and list(tmp_path.glob("a run/wandb/offline-run-*"))
