"""Several processes of one test, started as torchrun starts them, but forked: nothing is imported twice."""

import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from collections import defaultdict
from pathlib import Path

from zoo.estimators.figures import measurements
from zoo.training.tables import read_rows

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("fork")


def _as_rank(rank, world_size, port, function, args, results):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",  # Lightning would give one process all cores, and several a part each: other bits
    }
    try:
        result = function(*args)
    except SystemExit as stopped:
        results.put((rank, None))
        results.close()
        results.join_thread()
        os._exit(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    results.put((rank, result))
    results.close()
    results.join_thread()
    os._exit(0)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(world_size, function, *args):
    """``function(*args)`` in each of ``world_size`` processes; they, and the queue of (rank, result)."""
    results, port = CONTEXT.Queue(), free_port()
    children = [
        CONTEXT.Process(target=_as_rank, args=(rank, world_size, port, function, args, results), daemon=True)
        for rank in range(world_size)
    ]
    for child in children:
        child.start()
    return children, results


def together(world_size, function, *args, codes=(0,), timeout=120):
    """What ``function(*args)`` returned in each of several processes, whose exit statuses are among ``codes``."""
    children, results = start(world_size, function, *args)
    returned = {}
    for child in children:
        child.join(timeout)
    for child in children:
        if child.is_alive():
            child.kill()
            raise TimeoutError(f"a process did not end within {timeout} seconds")
    assert all(child.exitcode in codes for child in children), [child.exitcode for child in children]
    while not results.empty():
        rank, result = results.get()
        returned[rank] = result
    return [returned.get(rank) for rank in range(world_size)]


def command(folder, *overrides, **environment):
    """``python train.py``, started and not waited for."""
    return subprocess.Popen(
        [sys.executable, "train.py", "trainer.enable_progress_bar=false", *overrides, f"hydra.run.dir={folder}"],
        cwd=ROOT,
        # One process's torch would otherwise take all cores.
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(folder):
    """The rows of metrics.csv, then what was measured of estimators at each step; "" where nothing was logged."""
    found = read_rows(folder / "metrics.csv") + measurements(read_rows(folder / "estimator_variance.csv"))
    return [defaultdict(str, row) for row in found]
