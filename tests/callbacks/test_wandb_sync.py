"""Tests of the upload of offline Weights & Biases runs. The real ``wandb sync`` uploads to a local server."""

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from helpers import CONFIGS, FIGURE, QUIET, TINY
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from processes import seconds
from wandb_log import wait_for_exit
from wandb_upload_server import serve

from train import train
from zoo.callbacks import ExactResume
from zoo.datamodules import Images
from zoo.datamodules.digests import digest_of

COMMAND = [*TINY["cvae"], "trainer.log_every_n_steps=1", "trainer.max_epochs=3", "logger=wandb"]
# A run draws its pictures in every epoch. The names of runs do not have these settings.
OFTEN = {"samples.every_n_epochs": 1, "samples.n": 10, "latents.every_n_epochs": 1, "log_likelihood.num_samples": 2}
OFTEN |= {"estimator_variance.every_n_steps": 8, "estimator_variance.draws": 2}


@pytest.fixture
def command(monkeypatch, caplog):
    """Return a function that runs train.py with overrides in this process, and returns the command for the upload."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.setattr(FIGURE, lambda history: Figure(figsize=(1, 1)))
    for name in [n for n in os.environ if n.startswith("WANDB_") and n != "WANDB_MODE"]:
        monkeypatch.delenv(name)

    def run(folder, *overrides):
        with initialize_config_dir(CONFIGS, version_base="1.3"):
            cfg = compose("train", [*QUIET, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        del cfg.hydra
        cfg.run_dir = str(folder)
        for key, value in OFTEN.items():
            OmegaConf.update(cfg.callbacks, key, value)
        caplog.clear()
        try:
            with caplog.at_level(logging.INFO):
                train(cfg)
        finally:
            wandb.finish()
        (said,) = re.findall(r"To upload this run: (wandb sync .*)", caplog.text)
        return shlex.split(said)

    return run


def upload(folder, address, *parts):
    """Run ``wandb sync`` in ``folder``, with a login at ``address``."""
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
    environment |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": address}
    program = [sys.executable, "-m", "wandb", "sync", *parts]
    done = subprocess.run(program, env=environment, cwd=folder, capture_output=True, text=True, timeout=seconds(60))
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr


def rows(run):
    """Return the rows of a run, without times and without random names of files."""
    timed = ("_runtime", "_timestamp", "second", "ms_per_draw")
    found = []
    for row in run.history:
        row = {key: value for key, value in row.items() if not any(t in key for t in timed)}
        for value in row.values():
            if isinstance(value, dict):  # a picture or a table
                for key in ("filenames", "path", "sha256", "artifact_path", "_latest_artifact_path", "size"):
                    value.pop(key, None)
        found.append(row)
    return found


def pictures(run):
    """Return (key, content) of every picture in the history of a run."""
    files = [(key, file) for row in run.history for key, v in row.items() for file in _filenames(v)]
    return [(key, run.files[file]) for key, file in files]


def _filenames(value):
    return value.get("filenames", []) if isinstance(value, dict) else []


def test_an_offline_run_that_broke_off_and_resumed_is_uploaded_as_if_unbroken(tmp_path, command, monkeypatch):
    """The computer stops while a row is written. The resumed run logs the rows after the checkpoint again."""
    whole = command(tmp_path / "whole", *COMMAND, "seed=3")

    def stops(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == 17:  # the second epoch has batches 11 to 21
            raise RuntimeError("broken off")

    with monkeypatch.context() as patched:
        patched.setattr(ExactResume, "on_train_batch_end", stops)
        with pytest.raises(RuntimeError, match="broken off"):
            command(tmp_path / "broken", *COMMAND, "seed=3")
    (log,) = (tmp_path / "broken" / "wandb").glob("offline-run-*/*.wandb")
    wait_for_exit(log)
    log.write_bytes(log.read_bytes()[:-9])
    time.sleep(1.1)  # the names of the folders contain the time in seconds
    last = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    broken = command(tmp_path / "broken", *COMMAND, "seed=3", "trainer.max_epochs=3", f"ckpt={last}")
    assert len(whole) == 3 and len(broken) == 4 and str(log.parent) == broken[2]
    with serve() as service:
        upload(tmp_path, service.address, *whole[2:], *broken[2:])
    one, two = (service.runs[Path(parts[-1]).name.rpartition("-")[2]] for parts in (whole, broken))

    for row, other in zip(rows(one), rows(two), strict=True):
        assert row == other
    assert [row["_step"] for row in rows(two)] == list(range(len(rows(two))))
    logged = [row["trainer/global_step"] for row in rows(two) if "train/loss" in row]
    assert logged == list(range(33))  # no step is missing or doubled
    assert pictures(one) == pictures(two)
    assert {key for key, _ in pictures(two)} == {"samples", "reconstructions", "estimator_variance"}
    timed = ("_wandb", "_runtime", "_timestamp", "ms_per_draw")
    assert {k for k in one.summary if not k.startswith(timed)} == {k for k in two.summary if not k.startswith(timed)}
    assert two.summary["test/loss"] == one.summary["test/loss"] and two.exit_codes == [1, 0]

    name = "cvae data=digits data.digits_repeat=1 hidden=[16] latent_dim=2 max_epochs=3"
    for run in (one, two):
        assert run.settings == {"displayName": f"{name} seed=3", "groupName": name, "jobType": "train"}
        assert run.tags == ["cvae", "digits"]
        assert run.config["seed"]["value"] == 3 and run.config["data_used"]["value"] == "digits"
        assert run.config["command"]["value"].endswith("seed=3")
    assert two.config["resumed_by"]["value"][0].endswith(f"ckpt={last}") and "resumed_by" not in one.config

    captions = [row["samples"]["captions"] for row in two.history if "samples" in row]
    assert captions == [[f"step {step}: y of the rows: 0 1 2 3 4 5 6 7 8 9"] for step in (10, 21, 32)]
    table = json.loads(service.artifact_files["samples_table.table.json"])
    assert table["columns"] == ["image", "label", "step", "seed"]
    assert [row[1:] for row in table["data"]] == [[label, 32, 0] for label in range(10)]
    assert all(service.artifact_files[row[0]["path"]].startswith(b"\x89PNG") for row in table["data"])

    artifacts = [artifact for artifact in two.artifacts if artifact["artifactTypeName"] == "model"]
    models = {alias["alias"]: json.loads(a["metadata"]) for a in artifacts for alias in a["aliases"]}
    best = models["best"]
    assert best["data"] == "digits" and best["command"] == two.config["command"]["value"] and best["seed"] == 3
    assert best["metrics"] == {key: one.summary[key] for key in one.summary if key.startswith("test/")} | {
        "val/loss": min(row["val/loss"] for row in one.history if "val/loss" in row)
    }
    data = Images("digits", digits_repeat=1)
    data.setup()
    assert best["data_digest"] == models["last"]["data_digest"] == digest_of(data)
