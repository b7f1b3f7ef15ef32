"""How many threads torch computes with, and how they wait for one another; to be set before torch is imported."""

import os
from collections.abc import MutableMapping
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def prepare_threads(environment: MutableMapping[str, str] = os.environ, root: Path = CGROUP) -> None:
    """Let waiting threads sleep, and start no more threads than this process may use processors.

    By default, threads of OpenMP that wait for one another keep their cores busy. Where another process wants these
    cores, the thread that is waited for does not run: a step with two threads took three to ten times as long as with
    one. Asleep, they give their cores away. Results are the same bits. What the user has set stays.

    OpenMP counts the processors of the machine or of the process's affinity. It does not know the quota of a container.

    Args:
        environment: of this process.
        root: where control groups are.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    quota = processors_of_quota(root)
    if quota is not None and quota < available_processors():
        environment.setdefault("OMP_NUM_THREADS", str(quota))


def available_processors() -> int:
    """The number of processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def processors_of_quota(root: Path = CGROUP) -> int | None:
    """The number of whole processors whose time a container's quota is worth, at least 1; None without a quota."""
    try:
        if (root / "cpu.max").is_file():  # version 2
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota == "max" or int(quota) <= 0:
            return None
        return max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None
