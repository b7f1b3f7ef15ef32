"""Set the number of threads of torch, and how they wait for each other. This must run before torch is imported."""

import os
from collections.abc import MutableMapping
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def prepare_threads(environment: MutableMapping[str, str] = os.environ, root: Path = CGROUP) -> None:
    """Let waiting threads sleep, and limit the number of threads to the number of processors of this process.

    By default, OpenMP threads that wait for each other keep their cores busy. If another process used the same cores, a
    step with two threads took three to ten times as long as a step with one thread. Sleeping threads leave the cores to
    other processes. The results are bitwise the same. Variables that the user has set do not change.

    OpenMP counts the processors of the machine, or the processors to which this process is bound. It ignores the CPU
    quota of a container.

    Args:
        environment: the environment variables of this process.
        root: the folder of the control groups.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    quota = processors_of_quota(root)
    if quota is not None and quota < available_processors():
        environment.setdefault("OMP_NUM_THREADS", str(quota))


def available_processors() -> int:
    """Return the number of processors on which the system lets this process run."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has sched_getaffinity
        return os.cpu_count() or 1


def processors_of_quota(root: Path = CGROUP) -> int | None:
    """Return the CPU quota of the container in processors, rounded down, at least 1. Return None without a quota."""
    try:
        if (root / "cpu.max").is_file():  # version 2 of control groups
            quota, period = (root / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (root / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        if quota == "max" or int(quota) <= 0:
            return None
        return max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None
