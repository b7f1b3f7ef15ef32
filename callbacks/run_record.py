"""Record the configuration, data, commit and hardware of a run in its folder, its loggers and its checkpoints."""

import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from zoo.callbacks import loggers
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.hub.loading import name_of_class
from zoo.training.added_callbacks import as_typed
from zoo.training.files import atomic_write
from zoo.training.processes import number
from zoo.training.shell import pasted, resume_command, shareable, short, training_command, without_password
from zoo.training.sweeps import without_search

FOLDER = Path(__file__).resolve().parent  # resolve() follows the link zoo/callbacks to callbacks/ of the checkout


def commit() -> str:
    """Return the git commit of this checkout, or ``unknown`` outside a checkout.

    ``+changes`` is appended if a tracked file has changes that are not committed.
    """

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=FOLDER, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != FOLDER.parent.resolve():
            return "unknown"
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware(device: torch.device, processes: int = 1) -> str:
    """Return a description of the hardware: the GPU or CPU, the processes, the CPU threads and the torch version."""
    if device.type == "cuda":
        what = f"{processes} x {torch.cuda.get_device_name(device)}"
    else:
        what = f"{processes} x {torch.get_num_threads()} threads of {_cpu_name()}"
    return f"{what}, torch {torch.__version__}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def run_command(absolute: bool = False) -> str:
    """Return the command that started this run.

    Args:
        absolute: whether the command is for this machine, with the folder of the user's configurations as an absolute
            path. Otherwise, it is for records that others read. This folder is then relative to the working folder if
            it is inside. The home folder is ``~``, and passwords in addresses are left out.
    """
    from hydra.core.hydra_config import HydraConfig

    program = training_command()
    overrides, folders = [], []
    if HydraConfig.initialized():
        overrides = [as_typed(given) for given in without_search(HydraConfig.get().overrides.task)]
        folders = [Path(s.path) for s in HydraConfig.get().runtime.config_sources if s.provider == "command-line"]
    if isinstance(program[-1], Path):
        program[-1] = program[-1].name  # records have no paths of this machine
    words = [*(f"--config-dir={path if absolute else short(path)}" for path in folders), *overrides]
    return pasted(*program, *(words if absolute else map(shareable, words)))


def _without_passwords(value: Any) -> Any:
    """Return nested plain values without passwords in addresses."""
    if isinstance(value, dict):
        return {key: _without_passwords(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_passwords(each) for each in value]
    return without_password(value) if isinstance(value, str) else value


def locked_folder(folder: Path) -> FileLock:
    """Lock a run folder, so that two processes do not write to it. The operating system releases a forgotten lock.

    Without permission to write, and on disks without locks, the folder is not locked.

    Raises:
        UserError: if another process holds the lock.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process trains the run {pasted(folder)}: wait until it ends, or use another folder"
        ) from None
    except (OSError, NotImplementedError):
        pass
    return lock


class RunRecord(L.Callback):
    """Record the command, class, configuration, data, commit and hardware of a run.

    The record goes to ``config.yaml``, to the loggers, and to checkpoints under the key ``record``. A run that is
    resumed consists of several parts. The key ``earlier`` lists the earlier parts. In checkpoints, the key ``seconds``
    holds the seconds of training of all parts. At the end of the run, Weights & Biases receives the best and the last
    checkpoint.

    Args:
        folder: the run folder.
        config: the resolved configuration, as plain values.
        init: the checkpoint whose weights began the run (see :func:`zoo.hub.initialising.begin_from`), or None. A run
            that resumes keeps the record of its first part.

    Raises:
        UserError: if the folder already holds a run and this run does not resume from a checkpoint. It is also raised
            if another process trains the run in this folder.
    """

    def __init__(self, folder: str, config: dict[str, Any] | None = None, init: dict[str, Any] | None = None):
        self.folder, self.config, self.init = Path(folder), _without_passwords(dict(config or {})), init
        if (self.folder / "config.yaml").is_file() and self.config.get("ckpt") is None:
            command = resume_command(self.folder)
            raise UserError(
                f"{pasted(self.folder)} already holds a run: resume it with {command}, or use another folder"
            )
        self._lock = locked_folder(self.folder) if number() == 0 else None
        self.record: dict[str, Any] = {}
        self._earlier: list[dict[str, Any]] = []
        self._seconds_before, self._started = 0.0, 0.0
        self._metrics: dict[str, float] = {}
        self._saved = False  # whether this run has saved a checkpoint

    def __getstate__(self) -> dict[str, Any]:  # other processes have no lock, and a lock cannot be pickled
        return {**self.__dict__, "_lock": None}

    def setup(self, trainer, pl_module, stage):
        self._saved = False
        if self._lock is not None and not self._lock.is_locked:  # a test after training also writes to the folder
            self._lock = locked_folder(self.folder)

    def teardown(self, trainer, pl_module, stage):
        self.close()

    def on_exception(self, trainer, pl_module, exception):
        self.close()

    def close(self) -> None:
        """Release the lock of the run folder."""
        if self._lock is not None:
            self._lock.release()

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        # Lightning's tuners load a checkpoint that this run itself has saved. That checkpoint is no earlier part.
        if not self._saved and (before := checkpoint.get("record")):
            self._seconds_before = before["seconds"]
            part = {key: before[key] for key in ("command", "commit", "hardware", "seconds")}
            self._earlier = [*before.get("earlier", []), part]
            self.init = before.get("init")

    def on_fit_start(self, trainer, pl_module):
        data = trainer.datamodule
        self.record = {
            "command": run_command(),
            "class": name_of_class(type(pl_module)),
            "config": self.config,
            "data": data.used if isinstance(data, capabilities.NamedData) else None,
            "data_digest": data.digest if isinstance(data, capabilities.DigestedData) else None,
            "commit": commit(),
            "hardware": hardware(pl_module.device, trainer.world_size),
            "earlier": self._earlier,
            "init": self.init,
        }
        if not trainer.is_global_zero:
            return
        written = {**self.config, "data_used": self.record["data"]}
        if self.record["data_digest"] is not None:
            written["data_digest"] = self.record["data_digest"]
        # "zoo resume" reads the command and the folder in which it was typed.
        in_file = {**written, "command": run_command(absolute=True), "working_folder": str(Path.cwd())}
        with atomic_write(self.folder / "config.yaml") as file:
            file.write(yaml.safe_dump(in_file, sort_keys=False).encode())
        logged = {**written, "commit": self.record["commit"], "hardware": self.record["hardware"]}
        for logger in trainer.loggers:
            if isinstance(logger, loggers.WandbLogger):
                logger.log_record({**logged, **self._commands()}, self.record["data"])
            else:
                logger.log_hyperparams(logged)

    def _commands(self) -> dict[str, Any]:
        """Return the command that began this run, and the commands that resumed it, if there are any."""
        first, *others = [part["command"] for part in (*self._earlier, self.record)]
        return {"command": first, **({"resumed_by": others} if others else {})}

    def on_train_start(self, trainer, pl_module):
        self._started = time.monotonic()

    def on_fit_end(self, trainer, pl_module):
        self._log_checkpoints(trainer, last=not self.config.get("test"))

    def on_test_end(self, trainer, pl_module):
        self._log_checkpoints(trainer, last=True)

    def _log_checkpoints(self, trainer, last: bool) -> None:
        # Read the metrics on every process, because reading can sum over the processes.
        self._metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        for logger in trainer.loggers:
            if last and isinstance(logger, loggers.WandbLogger):
                logger.log_checkpoints(self.folder / "checkpoints", self._metrics, trainer.datamodule)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self._saved = True
        seconds = self._seconds_before + time.monotonic() - self._started
        checkpoint["record"] = {**self.record, "seconds": seconds}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                checkpoint["wandb_run_id"] = logger.version  # a resumed run continues this Weights & Biases run
                if isinstance(logger, loggers.WandbLogger):
                    checkpoint["wandb_names"] = logger.names
            elif isinstance(logger, MLFlowLogger):
                checkpoint["mlflow_run_id"] = logger.version
