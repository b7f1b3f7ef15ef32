"""Logger of MLflow, which needs no server."""

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as lightning_loggers
import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.checks.errors import UserError
from zoo.training.shell import without_password

log = logging.getLogger(__name__)

STORE = Path("runs", "mlflow.db")  # the database of all runs, if no other address is given


class MLFlowLogger(lightning_loggers.MLFlowLogger):
    """MLflow logger of settings, metrics and pictures. By default, all runs are in one local database.

    A resumed run continues the MLflow run of its checkpoint. MLflow cannot change a logged setting. If a setting has
    changed, such as ``trainer.max_epochs``, its new value is a tag of the run. Values that were logged after the
    checkpoint stay in the run, because MLflow cannot delete them.

    Args:
        folder: the run folder. Its last two parts name the run.
        experiment: name of the experiment.
        tracking_uri: address of a server or a database. None selects the environment variable ``MLFLOW_TRACKING_URI``,
            or ``runs/mlflow.db`` if the variable is not set.
        resume_from: path of the checkpoint that this run resumes from, or None.

    Raises:
        UserError: if MLflow is not installed, or if the address has no store.
    """

    def __init__(
        self, folder: str, experiment: str = "zoo", tracking_uri: str | None = None, resume_from: str | None = None
    ):
        if find_spec("mlflow") is None:
            raise UserError("logger=mlflow needs the package mlflow: pip install 'generative-zoo[mlflow]'")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow would report its use over the network
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        for name in ("alembic", "lightning.pytorch.loggers.mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)  # the first run creates the database and the experiment
        address = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE}"
        pictures = None  # the server chooses their place
        if address.startswith("sqlite:///"):
            beside = Path(address.removeprefix("sqlite:///")).absolute().parent
            beside.mkdir(parents=True, exist_ok=True)
            pictures = (beside / "mlflow").as_uri()
        from mlflow.exceptions import MlflowException

        try:
            super().__init__(
                experiment_name=experiment,
                run_name="/".join(Path(folder).absolute().parts[-2:]),
                tracking_uri=address,
                artifact_location=pictures,
            )
        except MlflowException as error:
            why = " ".join(str(error).split())
            line = f"logger.mlflow.tracking_uri={address} cannot be opened: {why}"
            raise UserError(without_password(line)) from error
        self._resume_from = Path(resume_from).expanduser() if resume_from else None

    @property
    @rank_zero_experiment
    def experiment(self):
        if self._resume_from is not None:
            ckpt, self._resume_from = self._resume_from, None
            self._run_id = self._earlier(ckpt)
        return super().experiment

    def _earlier(self, ckpt: Path) -> str | None:
        """Return the number of the MLflow run of a checkpoint, or None if this store does not have the run."""
        from mlflow.exceptions import MlflowException

        number = torch.load(ckpt, weights_only=True, map_location="cpu", mmap=True).get("mlflow_run_id")
        if number is None:
            return None
        try:
            self._mlflow_client.get_run(number)
            self._mlflow_client.set_terminated(number, "RUNNING")
        except MlflowException as error:
            log.warning("MLflow does not have the run %s of the checkpoint (%s): a new run begins", number, error)
            return None
        return number

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Log settings. A setting that the run already has with another value becomes a tag."""
        params = _flatten_dict(_convert_params(params))
        before = self.experiment.get_run(self.run_id).data.params
        for key in params.keys() & before.keys():
            value = str(params.pop(key))
            if value[:250] != before[key]:
                self.experiment.set_tag(self.run_id, key, value)
        super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics. MLflow allows no ``+`` in a name, so ``pathwise+antithetic`` becomes ``pathwise_antithetic``."""
        super().log_metrics({name.replace("+", "_"): value for name, value in metrics.items()}, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log pictures as artifacts of the run. An element of ``images`` is a PIL image or a path."""
        for number, image in enumerate(images):
            place = "-".join([key, *([f"step{step:08d}"] if step is not None else []), *([str(number)] * (number > 0))])
            if isinstance(image, str):
                self.experiment.log_artifact(self.run_id, image, key)
            else:
                self.experiment.log_image(self.run_id, image, artifact_file=f"{key}/{place.replace('/', '-')}.png")
