"""Loggers: metrics.csv in every run folder, and Weights & Biases that never asks for a login nor fails without one."""

import csv
import hashlib
import json
import logging
import os
import warnings
from pathlib import Path

import lightning.pytorch.loggers as lightning_loggers
import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.training.shell import pasted
from zoo.training.wandb_login import keep_wandb_out_of_home, wandb_credentials, wandb_settings

log = logging.getLogger(__name__)


class CSVLogger(lightning_loggers.CSVLogger):
    """``metrics.csv`` in the run folder itself; a run that resumes in the same folder continues the file."""

    def __init__(self, folder: str):
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=50)

    @property
    @rank_zero_experiment
    def experiment(self):
        if self._experiment is None:
            path = Path(self.save_dir) / "metrics.csv"
            kept = path.with_name("metrics.csv.kept")  # out of the parent's way, who deletes what is there
            if path.is_file():
                path.rename(kept)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Experiment logs directory")
                writer = super().experiment
            if kept.is_file():
                kept.rename(path)
                with path.open(newline="") as file:
                    writer.metrics_keys = next(csv.reader(file), [])
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params=None):
        """Nothing: ``config.yaml`` beside the file says it."""


class WandbLogger(lightning_loggers.WandbLogger):
    """Weights & Biases: online where there is a login, else offline with a line that says how to sync.

    ``WANDB_MODE`` decides if it is set. If the service cannot be reached the run goes on offline.

    Args:
        folder: the run folder; files go to ``wandb/`` in it.
        project: name of the project.
        resume_from: the checkpoint this run resumes from, whose Weights & Biases run it continues; or None.
        patience: seconds to wait for the service before going on offline.
        checkpoints: whether :meth:`log_checkpoints` does anything.
    """

    def __init__(
        self,
        folder: str,
        project: str = "zoo",
        resume_from: str | None = None,
        patience: float = 20,
        checkpoints: bool = True,
    ):
        keep_wandb_out_of_home(Path(folder))
        import wandb

        self._checkpoints, self._folder = checkpoints, Path(folder)

        if wandb.run is not None:  # an earlier job of the same sweep
            wandb.finish()
        self._chosen_mode = os.environ.get("WANDB_MODE") or ("online" if wandb_credentials() else "offline")
        run_id = None
        if resume_from is not None and Path(resume_from).is_file():
            run_id = torch.load(resume_from, weights_only=True, map_location="cpu", mmap=True).get("wandb_run_id")
        super().__init__(
            project=project,
            save_dir=folder,
            id=run_id,
            mode=self._chosen_mode,
            settings=wandb_settings(project=str(project), init_timeout=patience, silent=True),
        )

    @property
    @rank_zero_experiment
    def experiment(self):
        import wandb

        if self._experiment is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                run = super().experiment
            except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
                log.warning("Weights & Biases cannot be reached (%s); tracking this run offline", error)
                self._chosen_mode = self._wandb_init["mode"] = "offline"
                run = super().experiment
            if self._chosen_mode == "offline":
                command = pasted("wandb", "sync", Path(run.dir).parent)
                log.info("Weights & Biases runs offline. To upload this run: %s", command)
            elif self._chosen_mode == "online":
                log.info("Weights & Biases: %s", run.url)
        return self._experiment

    @rank_zero_only
    def log_checkpoints(self, folder: Path, metrics: dict[str, float]) -> None:
        """Log ``last.ckpt`` and the newest ``best-*.ckpt`` in ``folder``, as versions ``last`` and ``best``.

        They are of one artifact of type ``model``, named by the model and the run, which has beside each checkpoint its
        card, ``card.json``: the model and its arguments, the record of the run, ``metrics``, and the file's SHA-256.
        ``zoo.load("wandb:entity/project/name:best")`` reads it back.
        """
        import wandb

        if not self._checkpoints:
            return
        try:
            self._log_checkpoints(folder, metrics)
        except (OSError, RuntimeError, wandb.errors.Error) as error:  # the run has ended well; it stays so
            log.warning("Weights & Biases has not kept the checkpoints, which are in %s: %s", pasted(folder), error)

    def _log_checkpoints(self, folder: Path, metrics: dict[str, float]) -> None:
        import wandb

        best = sorted(folder.glob("best-*.ckpt"), key=lambda path: path.stat().st_mtime)[-1:]
        for alias, path in [*(("last", path) for path in folder.glob("last.ckpt")), *(("best", path) for path in best)]:
            checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
            card = {key: checkpoint.get(key) for key in ("model", "hyper_parameters", "epoch", "global_step", "record")}
            with path.open("rb") as file:
                card |= {"metrics": metrics, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            artifact = wandb.Artifact(f"{card['model']}-{self.version}", type="model", metadata={"metrics": metrics})
            artifact.add_file(str(path), name=path.name, policy="immutable")  # read where it lies; else copied to HOME
            with artifact.new_file("card.json") as file:
                json.dump(card, file, indent=2)
            self.experiment.log_artifact(artifact, aliases=[alias])
