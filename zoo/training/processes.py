"""Helpers for runs of several processes: ranks, and the start and end of processes."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

FIRST = "ZOO_FIRST_PROCESS"  # environment variable with the process id of the process that starts the others


def overrides_of_process(arguments: list[str], environment: Mapping[str, str]) -> list[str]:
    """Return the overrides that turn off the run folder in all processes of torchrun or SLURM except the first.

    The name of a run folder contains the time, which differs between processes. Only the first process makes a folder.
    """
    if int(environment.get("RANK") or environment.get("SLURM_PROCID") or 0) == 0:
        return []
    folder = [] if any(a.startswith("hydra.run.dir=") for a in arguments) else ["hydra.run.dir=."]
    return [*folder, "hydra.output_subdir=null", "hydra/job_logging=none"]


def number() -> int:
    """Return the rank of this process in the run. If no rank is set, return the rank on this machine, or 0."""
    environment = os.environ
    return int(environment.get("RANK") or environment.get("SLURM_PROCID") or environment.get("LOCAL_RANK") or 0)


def speaker() -> str:
    """Return the prefix of a message from this process. It is empty for the first process."""
    return f"[process {number()}] " if number() else ""


def started_by_lightning() -> bool:
    """Return whether Lightning started this process. The first process is started by the user, torchrun or SLURM."""
    elsewhere = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    return not elsewhere and int(os.environ.get("LOCAL_RANK") or 0) > 0


def end_with_parent() -> None:
    """Let this process end when its parent process ends, if Lightning started this process.

    Without this function, a process would wait until NCCL's timeout after the first process of its machine is killed.
    torchrun and SLURM end their processes themselves.
    """
    if not started_by_lightning():
        os.environ[FIRST] = str(os.getpid())  # children read it; getppid is wrong after the parent has ended
        return
    import threading  # imported late, because it would slow down ``zoo list``

    parent = int(os.environ.get(FIRST) or os.getppid())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


@contextmanager
def leave_process_group() -> Iterator[None]:
    """Destroy the process group when the run ends or a signal stops it. Without a process group, do nothing.

    Lightning leaves gloo's threads running. Sometimes a thread aborts a process while Python exits ("terminate
    called without an active exception"). SLURM then reports that the run failed, and torchrun waits for minutes.
    After any other exception, the group is kept, because other processes can still be waiting in it.
    """
    try:
        yield
    except SystemExit:
        _leave()
        raise
    _leave()


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
