"""Weights & Biases offline, for real: the run's transaction log is read back."""

import json
import os
import struct
import time
from pathlib import Path

import pytest
import wandb
from helpers import TINY, checkpoint, run
from wandb.proto.wandb_internal_pb2 import Record

from callbacks import WandbLogger


def records(path: Path):
    """The records of a .wandb file: a 7-byte header, then LevelDB's log format in blocks of 32 KiB."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):  # half written
            return
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no login
    yield
    wandb.finish()


def test_an_offline_run_holds_config_metrics_and_samples(tmp_path, offline, caplog):
    import logging

    with caplog.at_level(logging.INFO):
        run(tmp_path / "run", *TINY["vae"], "logger=wandb", "trainer.max_epochs=2", "trainer.log_every_n_steps=5")
        wandb.finish()
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert f"To upload this run: wandb sync {folder}" in caplog.text
    (log,) = folder.glob("*.wandb")
    # Its service writes on for a moment after finish() has returned, for longer on a busy machine.
    for _ in range(600):
        if any(record.WhichOneof("record_type") == "exit" for record in records(log)):
            break
        time.sleep(0.1)
    config, history, run_id = {}, [], None
    for record in records(log):
        for update in [*record.run.config.update, *record.config.update]:
            config[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        run_id = record.run.run_id or run_id
        if record.history.item:
            history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    assert config["data_used"] == "digits" and config["model"]["latent_dim"] == 2 and config["seed"] == 0
    assert config["commit"] and "threads" in config["hardware"]
    keys = {key for row in history for key in row}
    assert {"train/loss", "val/nll", "val/kl", "test/loss", "variance/pathwise/all", "samples/filenames"} <= keys
    assert all(row["val/loss"] > 0 for row in history if "val/loss" in row)
    (picture,) = [file for row in history for file in row.get("samples/filenames", [])]
    assert (folder / "files" / picture).read_bytes().startswith(b"\x89PNG")
    assert checkpoint(tmp_path / "run")["wandb_run_id"] == run_id

    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert WandbLogger(tmp_path / "again", resume_from=str(last)).version == run_id  # a resumed run continues it


def test_a_service_out_of_reach_does_not_stop_a_run(tmp_path, offline, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    logger = WandbLogger(tmp_path / "run", patience=2)
    logger.log_metrics({"x": 1.0}, step=0)
    assert "tracking this run offline" in caplog.text
    wandb.finish()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
