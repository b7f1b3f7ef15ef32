"""Loggers: metrics.csv in every run folder, TensorBoard, and Weights & Biases, which works without a login."""

import hashlib
import json
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as lightning_loggers
import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.callbacks.cadence import steps_behind
from zoo.checks.errors import UserError
from zoo.datamodules.digests import digest_of
from zoo.estimators.figures import MEASURED
from zoo.estimators.figures import table as estimator_table
from zoo.training.files import atomic_write
from zoo.training.run_names import names_of_run
from zoo.training.shell import pasted
from zoo.training.tables import Table
from zoo.training.wandb_login import keep_wandb_out_of_home, wandb_credentials, wandb_settings
from zoo.training.wandb_parts import go_back, offline_parts

log = logging.getLogger(__name__)

METRICS, ESTIMATORS = "metrics.csv", "estimator_variance.csv"
# Environment variables of Weights & Biases that replace a default. The runs of its sweeps are grouped already.
VARIABLES = {
    "name": {"WANDB_NAME"},
    "group": {"WANDB_RUN_GROUP", "WANDB_SWEEP_ID"},
    "tags": {"WANDB_TAGS"},
    "job_type": {"WANDB_JOB_TYPE"},
}


class CSVLogger(lightning_loggers.CSVLogger):
    """Write ``metrics.csv`` and ``estimator_variance.csv`` in the run folder.

    ``metrics.csv`` has a row for each step at which something was logged. Its columns are ``epoch``, ``step``, and the
    metrics of training, validation and test. ``estimator_variance.csv`` has the measurements of EstimatorVariance, a
    row for each step, estimator and parameter group.

    A resumed run removes the rows that the interrupted run logged after the checkpoint, and then adds new rows. If the
    run folder has no such files, the resumed run first copies them from the run folder of the checkpoint.

    Args:
        folder: the run folder.
        resume_from: path of the checkpoint that this run resumes from, or None.
    """

    def __init__(self, folder: str, resume_from: str | None = None):
        super().__init__(folder, name="", version="")
        self._resume_from = _checkpoint_path(resume_from)
        self._tables: tuple[Table, Table] | None = None

    @property
    @rank_zero_experiment
    def experiment(self):
        """The tables of ``metrics.csv`` and ``estimator_variance.csv``."""
        if self._tables is None:
            folder = Path(self.save_dir)
            metrics = Table(folder / METRICS, order=_place)
            self._tables = (metrics, Table(folder / ESTIMATORS, key=("step", "estimator", "group")))
            if self._resume_from is not None:
                for table in self._tables:
                    self._go_back(table, self._resume_from)
        return self._tables

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        """Add ``metrics``, a dictionary of numbers or tensors of one element, to the row of ``step``."""
        values = {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in metrics.items()}
        table, estimators = self.experiment
        columns, rows = estimator_table([{"step": step or 0, **values}])
        for row in rows:
            estimators.add({k: v for k, v in zip(columns, row, strict=True) if v is not None})
        if rows:
            values = {k: v for k, v in values.items() if k.partition("/")[0] not in MEASURED}
        if values:
            table.add({"step": step or 0, **values})

    @staticmethod
    def _go_back(table: Table, ckpt: Path) -> None:
        """Remove the rows of ``table`` that were logged after the checkpoint ``ckpt``.

        If the table has no file, first copy it from the run folder of the checkpoint.
        """
        before, step = ckpt.parent.parent / table.path.name, _first_step_after(ckpt)
        if not table.path.exists() and before.is_file():
            with atomic_write(table.path) as file:
                file.write(before.read_bytes())
        table.keep(lambda row: row.get("step", "").isdigit() and int(row["step"]) < step)

    @rank_zero_only
    def save(self):
        """Do nothing, because ``log_metrics`` writes each row to disk."""

    @rank_zero_only
    def log_hyperparams(self, params=None):
        """Do nothing, because ``config.yaml`` in the run folder has the hyperparameters."""


def _place(column: str) -> tuple[int, str]:
    order = ("epoch", "step", "train", "val", "test")
    kind = column.partition("/")[0]
    return (order.index(kind) if kind in order else len(order), column)


def _checkpoint_path(resume_from: str | None) -> Path | None:
    path = Path(resume_from).expanduser() if resume_from is not None else None
    return path if path is not None and path.is_file() else None


def _first_step_after(ckpt: Path) -> int:
    return steps_behind(torch.load(ckpt, weights_only=True, map_location="cpu", mmap=True))


class TensorBoardLogger(lightning_loggers.TensorBoardLogger):
    """TensorBoard logger that writes to ``tensorboard/`` in the run folder.

    If a run resumes, TensorBoard hides the values that the interrupted run logged after the checkpoint.

    Args:
        folder: the run folder.
        resume_from: path of the checkpoint that this run resumes from, or None.

    Raises:
        UserError: if TensorBoard is not installed.
    """

    def __init__(self, folder: str, resume_from: str | None = None):
        if not any(map(find_spec, ("tensorboard", "tensorboardX"))):
            raise UserError("logger=tensorboard needs the package tensorboard: pip install tensorboard")
        path = _checkpoint_path(resume_from)
        step: dict[str, Any] = {} if path is None else {"purge_step": _first_step_after(path)}
        super().__init__(folder, name="tensorboard", version="", default_hp_metric=False, **step)


class WandbLogger(lightning_loggers.WandbLogger):
    """Weights & Biases logger. With a login, the run is online. Without a login, the run is offline.

    An offline run prints the command that uploads it. The environment variable ``WANDB_MODE`` overrides the mode. If
    the service cannot be reached, the run continues offline.

    A resumed run continues the Weights & Biases run of its checkpoint. An offline run writes a new folder each time it
    resumes, and prints one command that uploads all its folders in order. If it resumes in its own run folder, it first
    removes the rows that were logged after the checkpoint from folders that were not uploaded.

    Weights & Biases cannot delete values. Values that an online run logged after its checkpoint stay in the history, so
    plot against ``trainer/global_step``.

    The command line of zoo train gives the default name, group and tags (:mod:`zoo.training.run_names`). Without this
    command line, Weights & Biases chooses a name. The environment variables ``WANDB_NAME``, ``WANDB_RUN_GROUP``,
    ``WANDB_TAGS``, ``WANDB_NOTES`` and ``WANDB_JOB_TYPE`` have precedence over defaults. A resumed run keeps its name,
    group and tags, unless an argument gives others. A run of a Weights & Biases sweep has no default group.

    Args:
        folder: the run folder. Files are written to ``wandb/`` in it.
        project: name of the project.
        resume_from: path of the checkpoint that this run resumes from, or None.
        patience: seconds to wait for the service before the run continues offline.
        checkpoints: whether :meth:`log_checkpoints` uploads checkpoints.
        name: name of the run, or None for the default.
        group: name of the group of the run, or None for the default.
        tags: tags of the run, or None for the model, the data and the recipe.
        job_type: type of the run in its group, or None for ``train``.
        notes: description of the run.
        entity: user or team that owns the project, or None for the default of the account.
    """

    def __init__(
        self,
        folder: str,
        project: str = "zoo",
        resume_from: str | None = None,
        patience: float = 20,
        checkpoints: bool = True,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        job_type: str | None = None,
        notes: str | None = None,
        entity: str | None = None,
    ):
        keep_wandb_out_of_home(Path(folder))
        import wandb

        self._checkpoints, self._folder = checkpoints, Path(folder)

        if wandb.run is not None:  # the run of an earlier job of a sweep
            wandb.finish()
        self._chosen_mode = os.environ.get("WANDB_MODE") or ("online" if wandb_credentials() else "offline")
        run_id, before, self._resumed_at = None, None, None
        self._folders = [self._folder]  # run folders of all parts of this run
        if ckpt := _checkpoint_path(resume_from):
            checkpoint = torch.load(ckpt, weights_only=True, map_location="cpu", mmap=True)
            if (run_id := checkpoint.get("wandb_run_id")) is not None:
                before = checkpoint.get("wandb_names", {})
            self._folders.insert(0, ckpt.parent.parent)
            if "loops" in checkpoint and self._folder.resolve() == ckpt.parent.parent.resolve():
                self._resumed_at = steps_behind(checkpoint)
        self._before = before or {}  # names of the run when it was interrupted
        given = {"name": name, "group": group, "tags": tags, "job_type": job_type, "notes": notes}
        given = {key: value for key, value in given.items() if value is not None}
        self._names = {**(_defaults() if before is None else self._kept()), **given}
        self._tags_of_data = before is None and not {"tags", "WANDB_TAGS"} & {*given, *os.environ}
        super().__init__(
            project=project,
            save_dir=folder,
            id=run_id,
            mode=self._chosen_mode,
            entity=entity,
            settings=wandb_settings(
                project=str(project),
                init_timeout=patience,
                silent=True,
                **{f"run_{key}": value for key, value in self._names.items()},
            ),
        )
        self._wandb_init.pop("anonymous", None)  # Lightning sets this deprecated argument. Any value causes a warning

    @property
    @rank_zero_experiment
    def experiment(self):
        import wandb

        if self._experiment is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._resumed_at is not None and self._id is not None:
                go_back(self._folder, self._id, self._resumed_at)
            try:
                run = super().experiment
            except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
                log.warning("Weights & Biases cannot be reached (%s): this run is logged offline", error)
                self._chosen_mode = self._wandb_init["mode"] = "offline"
                run = super().experiment
            if self._chosen_mode == "offline":
                parts = {part.resolve(): part for folder in self._folders for part in offline_parts(folder, run.id)}
                command = pasted("wandb", "sync", *sorted(parts.values(), key=lambda part: part.name))
                log.info("Weights & Biases runs offline. To upload this run: %s", command)
            elif self._chosen_mode == "online":
                log.info("Weights & Biases: %s", run.url)
        return self._experiment

    @property
    def names(self) -> dict[str, Any]:
        """The name, group, tags and mode of the run. A checkpoint keeps them for the run that resumes from it."""
        return {**self._before, **self._names, "mode": self._chosen_mode}

    def _kept(self) -> dict[str, Any]:
        """Return the names that a resumed run passes on. The service keeps the names of an online run.

        Users can change these names on the website, and names that are passed on would undo the change.
        """
        online = self._chosen_mode == self._before.get("mode") == "online"
        return {} if online else {key: value for key, value in self._before.items() if key != "mode"}

    @rank_zero_only
    def log_record(self, config: dict[str, Any], data: str | None) -> None:
        """Add ``config`` to the configuration of the run, and the name of its data to the default tags."""
        self.log_hyperparams(config)
        if data and self._tags_of_data and data not in self._names.get("tags", []):
            self._names["tags"] = [*self._names.get("tags", []), data]
            self.experiment.tags = self._names["tags"]

    @rank_zero_only
    def log_checkpoints(self, folder: Path, metrics: dict[str, float], data: Any = None) -> None:
        """Upload ``last.ckpt`` and the newest ``best-*.ckpt`` in ``folder``, as versions ``last`` and ``best``.

        Both are versions of one artifact of type ``model``, such as ``vae-1a2b3c4d``. The name contains the model and
        the ID of the run. Each version has the checkpoint and a file ``card.json``. The card has the model and its
        arguments, the record of the run, ``metrics``, and the SHA-256 of the checkpoint. Load a version with
        ``zoo.load("wandb:entity/project/name:best")``.

        The metadata of a version have the model, its data with their digest, the command, the seed, the epoch, and the
        metrics of this checkpoint. The test metrics belong to the best checkpoint.

        Args:
            folder: the folder of the checkpoints.
            metrics: the last metrics of the run by name.
            data: the data module of the run. :func:`zoo.datamodules.digests.digest_of` gives its digest.
        """
        import wandb

        if not self._checkpoints:
            return
        try:
            self._log_checkpoints(folder, metrics, None if data is None else digest_of(data))
        except (OSError, RuntimeError, wandb.errors.Error) as error:  # a failed upload does not fail the run
            log.warning(
                "the checkpoints could not be uploaded to Weights & Biases (%s). They are in %s", error, pasted(folder)
            )

    def _log_checkpoints(self, folder: Path, metrics: dict[str, float], data_digest: str | None) -> None:
        import wandb

        best = sorted(folder.glob("best-*.ckpt"), key=lambda path: path.stat().st_mtime)[-1:]
        for alias, path in [*(("last", path) for path in folder.glob("last.ckpt")), *(("best", path) for path in best)]:
            checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
            card = {key: checkpoint.get(key) for key in ("model", "hyper_parameters", "epoch", "global_step", "record")}
            with path.open("rb") as file:
                card |= {"metrics": metrics, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            name = card["model"] or (card["record"] or {}).get("class", "model").rpartition(".")[2]
            metadata = _metadata(checkpoint, name, metrics, alias) | {"data_digest": data_digest}
            artifact = wandb.Artifact(f"{name}-{self.version}", type="model", metadata=metadata)
            # The default policy would copy the file to the home folder.
            artifact.add_file(str(path), name=path.name, policy="immutable")
            with artifact.new_file("card.json") as file:
                json.dump(card, file, indent=2)
            self.experiment.log_artifact(artifact, aliases=[alias])


def _metadata(checkpoint: dict[str, Any], model: str, metrics: dict[str, float], alias: str) -> dict[str, Any]:
    """Return the metadata of a checkpoint: model, data, command, seed, epoch, step and its own metrics."""
    record = checkpoint.get("record") or {}
    found = {name: value for name, value in metrics.items() if name.startswith("test/") == (alias == "best")}
    for key, state in (checkpoint.get("callbacks") or {}).items():
        score = state.get("best_model_score") if key.startswith("ModelCheckpoint") else None
        if alias == "best" and score is not None:
            found[state["monitor"]] = float(score)
    part = {"model": model, "data": record.get("data"), "command": _first_command(record)}
    part |= {"seed": (record.get("config") or {}).get("seed"), "commit": record.get("commit")}
    return part | {"epoch": checkpoint.get("epoch"), "step": checkpoint.get("global_step"), "metrics": found}


def _first_command(record: dict[str, Any]) -> str | None:
    """Return the command that began the run, which may have been resumed since."""
    earlier = record.get("earlier") or [record]
    return earlier[0].get("command")


def _defaults() -> dict[str, Any]:
    """Return the names of a new run, except those that environment variables of Weights & Biases give."""
    names = names_of_run()
    defaults = {"job_type": "train", **(names._asdict() if names else {})}
    return {key: value for key, value in defaults.items() if not VARIABLES[key] & {*os.environ}}
