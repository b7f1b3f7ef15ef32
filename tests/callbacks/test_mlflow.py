"""Tests of the MLflow logger: settings, metrics and pictures in a local database, and resumed runs in the same run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY, checkpoint, config, run
from lightning.pytorch.loggers import MLFlowLogger as OfLightning

from zoo.callbacks import MLFlowLogger, TensorBoardLogger
from zoo.checks.errors import UserError

ROOT = Path(__file__).parents[2]
SHORT = ["trainer.limit_train_batches=2", "trainer.log_every_n_steps=1", "~callbacks.estimator_variance", "test=false"]


@pytest.mark.slow
def test_a_resumed_run_logs_to_the_mlflow_run_of_its_first_part(tmp_path):
    tracking = pytest.importorskip("mlflow").tracking
    store = f"sqlite:///{tmp_path}/store/mlflow.db"
    options = [*TINY["vae"], *SHORT, "logger=[csv,mlflow]", f"logger.mlflow.tracking_uri={store}"]
    folder = tmp_path / "vae" / "first"
    run(folder, *options, "trainer.max_epochs=1")
    ckpt = f"ckpt={folder}/checkpoints/last.ckpt"
    number = checkpoint(folder)["mlflow_run_id"]
    run(folder, *options, "trainer.max_epochs=2", ckpt)

    client = tracking.MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("zoo").experiment_id])
    assert found.info.run_id == number == checkpoint(folder)["mlflow_run_id"]
    assert found.info.run_name == "vae/first" and found.info.status == "FINISHED"
    # MLflow cannot change a setting, so the new value is a tag.
    assert found.data.params["model/latent_dim"] == "2" and found.data.params["trainer/max_epochs"] == "1"
    assert found.data.tags["trainer/max_epochs"] == "2"
    steps = [metric.step for metric in client.get_metric_history(number, "train/loss")]
    assert steps == [0, 1, 2, 3] and len(client.get_metric_history(number, "val/loss")) == 2
    assert client.list_artifacts(number, "samples")
    assert (tmp_path / "store" / "mlflow" / number / "artifacts" / "samples").is_dir()

    logger = MLFlowLogger(str(folder), tracking_uri=store)  # MLflow allows no + in names
    logger.log_metrics({"variance/pathwise+antithetic/all": 1.0}, 0)
    assert client.get_run(logger.run_id).data.metrics == {"variance/pathwise_antithetic/all": 1.0}

    elsewhere = f"logger.mlflow.tracking_uri=sqlite:///{tmp_path}/other.db"
    run(tmp_path / "moved", *options, "trainer.max_epochs=3", ckpt, elsewhere)  # a store without the run
    assert checkpoint(tmp_path / "moved")["mlflow_run_id"] != number


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("zoo.callbacks.mlflow_logger.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^logger=mlflow needs the package mlflow: pip install 'generative-zoo\[mlflow\]'$"
    ):
        MLFlowLogger(str(tmp_path))
    monkeypatch.setattr("zoo.callbacks.loggers.find_spec", lambda name: None)
    with pytest.raises(UserError, match="^logger=tensorboard needs the package tensorboard: pip install tensorboard$"):
        TensorBoardLogger(str(tmp_path))
    assert issubclass(MLFlowLogger, OfLightning)
    assert (
        list(config("x", "logger=[csv,mlflow]").logger)
        == list(config("x", "logger=mlflow").logger)
        == ["csv", "mlflow"]
    )
    assert set(config("x", "logger=[wandb,mlflow]").logger) == {"csv", "mlflow", "wandb"}


@pytest.mark.slow
def test_by_default_runs_are_in_one_database_in_the_folder_of_runs(tmp_path):
    tracking = pytest.importorskip("mlflow").tracking
    command = [sys.executable, str(ROOT / "train.py"), *TINY["vae"], *SHORT, "logger=mlflow", "trainer.max_epochs=1"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = [
        subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True) for _ in range(2)
    ]
    client = tracking.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert len(client.search_runs([client.get_experiment_by_name("zoo").experiment_id])) == 2
    assert "mlflow.store" not in done[0].stderr and "WARNING" not in done[0].stderr.upper()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
