"""Tests of the test suite: environment, warnings of other plugins, random seeds, processes and test collection."""

import ast
import os
import random
import subprocess
import time
import zlib
from pathlib import Path

import conftest
import environment
import numpy as np
import pytest
import torch
from processes import ROOT, done, finish, program, together
from processes import environment as variables

PYTHON = [*(ROOT / "zoo").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), ROOT / "train.py"]
PYTHON += [*(ROOT / "callbacks").glob("*.py"), *(ROOT / "datamodules").glob("*.py")]


def test_the_environment_of_a_user_does_not_reach_the_tests():
    names = (
        "RANK WORLD_SIZE MASTER_PORT SLURM_PROCID TORCHELASTIC_RUN_ID PL_GLOBAL_SEED https_proxy NETRC WANDB_API_KEY"
    )
    assert all(environment.foreign(name) for name in names.split())
    assert not any(
        environment.foreign(name) for name in ("PATH", "ZOO_DATA", "ZOO_TEST_PATIENCE", "PYTHONPATH", "TMPDIR")
    )
    assert os.environ["WANDB_MODE"] == "offline" and os.environ["OMP_NUM_THREADS"] == "1"
    assert Path.home() == Path(os.environ["HOME"]) and not list(Path.home().glob(".netrc"))
    assert not torch.cuda.is_available()  # GPUs of the machine are hidden


@pytest.mark.parametrize(
    ("expression", "visible"),
    [
        ("gpu", True),
        ("gpu and not slow", True),
        ("", False),
        ("not slow and not train and not gpu", False),
        ("not (slow or gpu)", False),
        ("slow", False),
        ("slow or gpu", False),
        ("not slow", False),
        ("gpu or", False),
    ],
)
def test_only_tests_with_the_mark_gpu_see_gpus(expression, visible):
    assert conftest._asks_for_gpus(expression) == visible


PLUGIN = """
import warnings
def pytest_configure(config):
    warnings.warn("of another plugin, before any test")
def pytest_collection_modifyitems(items):
    warnings.warn("of another plugin, while tests are collected")
"""
PROBE = """
import os, warnings, numpy, pytest, random, torch
def test_other_warnings_are_none_of_our_business():
    warnings.warn_explicit("x", UserWarning, "plugin.py", 1, module="plugin")
@pytest.mark.parametrize("module", ["zoo.vae", "train", "lightning.pytorch.loops", "test_probe"])
def test_own_warnings_are_errors(module):
    with pytest.raises(UserWarning):
        warnings.warn_explicit("x", UserWarning, "x.py", 1, module=module)
def test_the_environment_is_clean():
    assert not {"RANK", "SLURM_PROCID", "https_proxy", "WANDB_API_KEY", "NETRC"} & set(os.environ)
    assert os.environ["HOME"] != "/nonexistent" and not torch.cuda.is_available()
"""


def test_a_hostile_environment_and_a_plugin_that_warns_change_nothing(tmp_path):
    """pytest passes in a SLURM job, behind a proxy, without a home folder, in another folder and in another locale."""
    (tmp_path / "warns_at_start.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "test_probe.py").write_text(PROBE, encoding="utf-8")
    hostile = {
        "RANK": "3",
        "SLURM_PROCID": "3",
        "https_proxy": "http://127.0.0.1:9",
        "WANDB_API_KEY": "x",
        "LC_ALL": "C",
    }
    hostile |= {"NETRC": "/nowhere", "HOME": "/nonexistent", "ZOO_DATA": "", "TZ": "Pacific/Chatham"}
    path = os.pathsep.join([str(tmp_path), variables()["PYTHONPATH"]])
    arguments = ["-c", ROOT / "pyproject.toml", "-p", "conftest", "-p", "warns_at_start", "-p", "no:cacheprovider"]
    ended = done(
        "-m", "pytest", "-n", "0", *arguments, tmp_path / "test_probe.py", cwd=tmp_path, **hostile, PYTHONPATH=path
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "6 passed" in ended.stdout
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__" and p.name[0] != ".") == [
        "test_probe.py",
        "warns_at_start.py",
    ]


def drawn():
    return torch.rand(2).tolist(), random.random(), np.random.rand()  # noqa: NPY002


@pytest.fixture
def in_fixture():
    return drawn()


def test_random_numbers_do_not_depend_on_what_ran_before(in_fixture):
    """The seed of a fixture or test depends only on its name."""
    here = drawn()
    seeded = []
    for name in ("in_fixture", "test_suite.py::test_random_numbers_do_not_depend_on_what_ran_before"):
        number = zlib.crc32(name.encode())
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002
        torch.manual_seed(number)
        seeded.append(drawn())
    assert [in_fixture, here] == seeded and in_fixture != here


def threads():
    return len(list(Path("/proc/self/task").iterdir())), torch.get_num_threads()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_processes_of_one_run_begin_with_one_thread():
    """A child that is forked from a process with threads can wait forever for a lock of such a thread."""
    assert together(2, threads) == [(1, 1), (1, 1)]


def sleep_for_ever(*_):
    time.sleep(1000)


def end_with(status):
    if os.environ["RANK"] == "0":
        os._exit(status)
    time.sleep(1000)


def test_no_process_outlives_its_test(monkeypatch, tmp_path):
    """If a process of a run fails, the others are killed. Children of a program are killed, even in new sessions."""
    with pytest.raises(AssertionError, match="process 0 ended with 7"):
        together(2, end_with, 7)
    with pytest.raises(TimeoutError):
        together(2, sleep_for_ever, timeout=1)
    child = "import subprocess, sys, time; s = 'import time; time.sleep(1000)'\n"
    child += (
        "p = subprocess.Popen([sys.executable, '-c', s], start_new_session=True); print(p.pid, flush=True); p.wait()"
    )
    with pytest.raises(AssertionError, match="did not end within") as said:
        finish(program("-c", child), timeout=3)
    pid = int(str(said.value).partition("stdout='")[2].partition("\\n")[0])
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    assert not listed or listed.startswith("Z")


def test_files_are_read_and_written_in_one_encoding():
    """Every call of ``read_text`` and ``write_text`` names an encoding. The default depends on the machine."""
    missing = []
    for file in PYTHON:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
                named = any(keyword.arg == "encoding" for keyword in node.keywords)
                missing += [] if named else [f"{file}:{node.lineno}"]
    assert not missing


@pytest.mark.slow
def test_every_worker_finds_the_same_tests(request):
    """With another hash seed, pytest finds the same tests in the same order, although sets have another order."""
    arguments = ["-m", "pytest", "-n", "0", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", ""]
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    where = request.config.invocation_params.dir
    ended = done(*arguments, *request.config.args, cwd=where, PYTHONHASHSEED=seed, timeout=300)
    assert ended.returncode == 0, ended.stdout
    found = [line for line in ended.stdout.splitlines() if "::" in line]
    assert found and found == request.config.stash[conftest.COLLECTED]
