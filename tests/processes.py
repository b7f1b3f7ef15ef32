"""Start processes and programs in tests, and end them with the test.

:func:`together` starts the processes of one run, as torchrun does. :func:`program` starts a program.
"""

import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from multiprocessing import connection
from pathlib import Path

from environment import PATIENCE

from zoo.estimators.figures import measurements
from zoo.training.tables import read_rows

ROOT = Path(__file__).parents[1]
# Child processes are forked from a server that has imported all modules and computed nothing. A child that is forked
# from the test process would inherit locks and torch's thread pool. Two threads of the child could then repair the
# pool at the same time, and one of them would fail with "Invalid thread pool!".
CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = ["pytest", "preloaded"]


def seconds(limit):
    """Return a time limit in seconds, multiplied by the factor in ZOO_TEST_PATIENCE."""
    return limit * float(os.environ.get(PATIENCE, 1))


def environment(**variables):
    """Return the environment of a program that a test starts. The program imports the zoo from this checkout."""
    path = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {"PYTHONPATH": os.pathsep.join(path), "PYTHONIOENCODING": "utf-8", "COLUMNS": "80", "NO_COLOR": "1"}
    return {**os.environ, **fixed, **variables}


def free_port():
    """Return a free port below the range that systems use for outgoing connections."""
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(10_000, 32_000)
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


# Several processes of one run.


def _as_rank(rank, world_size, port, variables, filters, function, args, answer):
    os.environ.clear()
    os.environ |= variables | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    warnings.resetwarnings()
    for action, message, category, module, line in reversed(filters):
        warnings.filterwarnings(action, _pattern(message), category, _pattern(module), line)
    try:
        answer.send(function(*args))
    except SystemExit as stopped:
        os._exit(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _pattern(expression):
    return getattr(expression, "pattern", expression) or ""


def process(function, *args):
    """Start ``function(*args)`` in a new process, and return the process. The function must be in a module."""
    with _server_environment():
        child = CONTEXT.Process(target=function, args=args, daemon=True)
        child.start()
    return child


@contextmanager
def _server_environment():
    """Set PYTHONPATH, so that the fork server finds the test modules. The server starts with the first child."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]
    CONTEXT.set_forkserver_preload(PRELOAD)
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def together(world_size, function, *args, codes=(0,), timeout=120):
    """Run ``function(*args)`` in ``world_size`` processes of one run, and return the list of results.

    Every exit status must be in ``codes``. All processes must end within ``timeout`` seconds.
    """
    port, deadline = free_port(), time.monotonic() + seconds(timeout)
    children, answers, returned = [], {}, [None] * world_size
    try:
        for rank in range(world_size):
            answer, sent = CONTEXT.Pipe(duplex=False)
            given = (rank, world_size, port, dict(os.environ), list(warnings.filters), function, args, sent)
            children.append(process(_as_rank, *given))
            sent.close()  # now only the child has this end open, so the pipe closes when the child ends
            answers[answer] = rank
        while answers:
            for answer in connection.wait(list(answers), max(0, deadline - time.monotonic())):
                rank = answers.pop(answer)
                with suppress(EOFError):
                    returned[rank] = answer.recv()
                children[rank].join(seconds(10))
                assert children[rank].exitcode in codes, f"process {rank} ended with {children[rank].exitcode}"
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"processes {sorted(answers.values())} did not end within {seconds(timeout)} seconds"
                )
    finally:
        for child in children:
            child.kill()
            child.join()
    return returned


# Programs.


def program(*arguments, cwd=ROOT, **variables):
    """Start ``python *arguments``, and return the program at once. Pass it to ``finish`` or ``kill`` later."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def command(folder, *overrides, **variables):
    """Start ``python train.py`` with the run folder ``folder``, and return the program at once."""
    quiet = "trainer.enable_progress_bar=false"
    return program("train.py", quiet, *overrides, f"hydra.run.dir={folder}", **variables)


def finish(*programs, timeout=120):
    """Wait for all programs, and return their output and exit statuses. Then kill the programs and their children."""
    with ThreadPoolExecutor(len(programs)) as readers:
        try:
            said = [readers.submit(one.communicate) for one in programs]
            late = wait(said, seconds(timeout)).not_done
        finally:
            kill(*programs)
    done = [subprocess.CompletedProcess(p.args, p.returncode, *s.result()) for p, s in zip(programs, said, strict=True)]
    assert not late, f"did not end within {seconds(timeout)} seconds: {done}"
    return done


def done(*arguments, timeout=120, **options):
    """Run ``python *arguments`` to its end, and return its output and exit status."""
    return finish(program(*arguments, **options), timeout=timeout)[0]


def kill(*programs):
    """Kill programs and all their descendants, including descendants in other process groups."""
    for pid in [pid for one in programs for pid in (one.pid, *_descendants(one.pid))]:
        for send in (os.killpg, os.kill):
            with suppress(ProcessLookupError, PermissionError):
                send(pid, signal.SIGKILL)


def _descendants(pid):
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listed.splitlines())
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [further for child in found for further in _descendants(child)]


def rows(folder):
    """Return the measurements in estimator_variance.csv, then the rows of metrics.csv. Missing values are empty."""
    found = measurements(read_rows(folder / "estimator_variance.csv")) + read_rows(folder / "metrics.csv")
    return [defaultdict(str, row) for row in found]
