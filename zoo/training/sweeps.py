"""Sweeps (``-m``): report jobs that fail, and run the remaining jobs."""

import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from zoo.checks.errors import UserError
from zoo.training.interruption import interrupted
from zoo.training.shell import pasted

JOBS: list[list[str]] = []  # the overrides of each job of the sweep so far
FAILED: list[int] = []  # the numbers of the jobs that failed
OF_SEARCH = ("hparams_search=", "callbacks.pruning.")  # overrides that make a run a trial of a search


def in_sweep() -> bool:
    """Return whether Hydra runs this program as a job of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def without_search(overrides: Iterable[str]) -> list[str]:
    """Return the overrides of a run by itself, without those that make it a trial of a search."""
    return [given for given in overrides if not given.startswith(OF_SEARCH)]


@contextmanager
def report_failed_job() -> Iterator[None]:
    """Report an error that ends a job of a sweep, so that the sweep continues. Outside a sweep, the error is raised.

    Signals end the sweep. The log in the folder of a failed job contains its error.

    Raises:
        UserError: if submitit runs the job in a new process. The error goes to the first process, which raises
            it when all jobs have ended.
    """
    if not in_sweep():
        yield
        return
    from hydra.core.hydra_config import HydraConfig

    number = len(JOBS)
    JOBS.append(list(HydraConfig.get().overrides.task))
    try:
        yield
    except SystemExit as end:
        if interrupted() or not isinstance(end.code, str):  # the code is an integer if standard output is closed
            raise
        print(end.code, file=sys.stderr, flush=True)
        if "SUBMITIT_EXECUTOR" in os.environ:
            job, given = HydraConfig.get().job.num, pasted(*HydraConfig.get().overrides.task)
            raise UserError(f"job {job} ({given}) failed: {end.code.removeprefix('error: ')}") from None
        FAILED.append(number)
    except Exception:
        if interrupted():
            raise
        if "SUBMITIT_EXECUTOR" in os.environ:
            raise
        traceback.print_exc()
        FAILED.append(number)


def end_of_sweep() -> None:
    """End the program with one line if jobs have failed.

    Raises:
        SystemExit: if jobs have failed. The message lists them.
    """
    if FAILED:
        common = set.intersection(*map(set, JOBS)) if len(JOBS) > 1 else set()
        failed = [f"{n} ({pasted(*(o for o in JOBS[n] if o not in common))})" for n in FAILED]
        raise SystemExit(f"error: {len(FAILED)} of {len(JOBS)} jobs failed: {', '.join(failed)}")
