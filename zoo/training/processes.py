"""What one of several processes of a run does that one alone need not."""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def overrides_of_process(arguments: list[str], environment: Mapping[str, str]) -> list[str]:
    """What the command line lacks where torchrun or SLURM has started it in a process other than the first.

    Run folders are named by the time: that of the first process is the run's, and the others have none.
    """
    if int(environment.get("RANK") or environment.get("SLURM_PROCID") or 0) == 0:
        return []
    folder = [] if any(a.startswith("hydra.run.dir=") for a in arguments) else ["hydra.run.dir=."]
    return [*folder, "hydra.output_subdir=null", "hydra/job_logging=none"]


def number() -> int:
    """This process's, of those of the run or of this machine; 0 is the first."""
    environment = os.environ
    return int(environment.get("RANK") or environment.get("SLURM_PROCID") or environment.get("LOCAL_RANK") or 0)


def speaker() -> str:
    """Which process speaks, if it is not the first."""
    return f"[process {number()}] " if number() else ""


def end_with_parent() -> None:
    """End this process, if it is one that Lightning has started, when the one that started it is gone.

    Killed outright, the first process of a machine would leave the others waiting for it, for as long as NCCL does.
    torchrun and SLURM see to theirs themselves.
    """
    elsewhere = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    if elsewhere or int(os.environ.get("LOCAL_RANK", 0)) == 0:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


@contextmanager
def leaving_together() -> Iterator[None]:
    """Leave the group of processes, if there is one, when the run is over or was stopped by a signal.

    Lightning leaves gloo's threads running. Now and then one of them aborts a process while Python ends ("terminate
    called without an active exception"). SLURM then calls the run failed, and torchrun waits for minutes.
    After any other exception the group is kept, because others may still wait in it.
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
