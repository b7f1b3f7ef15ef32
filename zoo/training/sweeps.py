"""Sweeps (``-m``): a job that fails is reported, and the others go on."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from zoo.training.interruption import interrupted
from zoo.training.shell import pasted

JOBS: list[list[str]] = []  # the overrides of each job of this process's sweep
FAILED: list[int] = []  # their numbers


def in_sweep() -> bool:
    """Whether Hydra runs this as one of several jobs."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


@contextmanager
def sweep_goes_on() -> Iterator[None]:
    """Report what ends a job of a sweep, and go on after the block; outside a sweep everything is raised.

    Signals end the sweep. A failed job has its error in the log of its folder.
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
        if interrupted() or not isinstance(end.code, str):  # or nobody who reads what is printed
            raise
        print(end.code, file=sys.stderr, flush=True)
        FAILED.append(number)
    except Exception:
        if interrupted():
            raise
        traceback.print_exc()
        FAILED.append(number)


def end_of_sweep() -> None:
    """End the program with one line if jobs have failed.

    Raises:
        SystemExit: saying which.
    """
    if FAILED:
        common = set.intersection(*map(set, JOBS)) if len(JOBS) > 1 else set()
        failed = [f"{n} ({pasted(*(o for o in JOBS[n] if o not in common))})" for n in FAILED]
        raise SystemExit(f"error: {len(FAILED)} of {len(JOBS)} jobs failed: {', '.join(failed)}")
