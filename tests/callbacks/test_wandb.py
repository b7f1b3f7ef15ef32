"""Tests of Weights & Biases. They run wandb offline, without a simulation, and read the transaction log of the run."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from helpers import CONFIGS, TINY, assert_same, checkpoint, config, model_of, run
from omegaconf import OmegaConf
from wandb_log import read_log, wait_for_exit
from wandb_server import serve

import zoo
from zoo.callbacks import WandbLogger
from zoo.checks.errors import UserError
from zoo.hub import CheckpointError
from zoo.training.run_names import RunNames


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no login
    wandb.teardown()  # forgets the credentials and the address of earlier tests
    yield
    wandb.teardown()


def test_an_offline_run_holds_config_metrics_and_samples(tmp_path, offline, caplog):
    import logging

    measured = "callbacks.estimator_variance.every_n_steps=8"
    with caplog.at_level(logging.INFO):
        run(
            tmp_path / "run",
            *(*TINY["vae"], "logger=wandb", "trainer.max_epochs=2", "trainer.log_every_n_steps=5", measured),
        )
        wandb.finish()
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert f"To upload this run: wandb sync {folder}" in caplog.text
    (log,) = folder.glob("*.wandb")
    wait_for_exit(log)
    config, history, run_id, artifacts = {}, [], None, []
    for record in read_log(log):
        for update in [*record.run.config.update, *record.config.update]:
            config[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        run_id = record.run.run_id or run_id
        logged = record.request.log_artifact.artifact if record.request.HasField("log_artifact") else record.artifact
        if logged.name:
            artifacts.append(logged)
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

    # The best and the last checkpoint are versions of one artifact. Each version holds card.json.
    artifacts = [a for a in artifacts if a.type == "model"]
    assert [a.name for a in artifacts] == [f"vae-{run_id}"] * 2
    assert [set(a.aliases) - {"latest"} for a in artifacts] == [{"last"}, {"best"}]
    for artifact, path in zip(artifacts, ("last.ckpt", "best-epoch001.ckpt"), strict=True):
        entries = {entry.path: entry for entry in artifact.manifest.contents}
        assert set(entries) == {path, "card.json"}
        checkpoint_file = tmp_path / "run" / "checkpoints" / path
        assert Path(entries[path].local_path).samefile(checkpoint_file)
        card = json.loads(Path(entries["card.json"].local_path).read_text(encoding="utf-8"))
        assert card["model"] == "vae" and card["hyper_parameters"]["latent_dim"] == 2
        assert card["record"]["data"] == "digits" and {"val/loss", "test/loss"} <= set(card["metrics"])
        assert card["sha256"] == hashlib.sha256(checkpoint_file.read_bytes()).hexdigest()
    tables = [row for row in history if "estimator_variance_table/path" in row]
    assert len(tables) == 1 and any("estimator_variance/filenames" in row for row in history)

    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert WandbLogger(tmp_path / "again", resume_from=str(last)).version == run_id  # a resumed run keeps the run ID


def passed_on(folder, **arguments):
    """Return the name, group, tags and type of the run that the logger passes on to wandb.init."""
    settings = WandbLogger(folder, **arguments)._wandb_init["settings"]
    return settings.run_name, settings.run_group, settings.run_tags, settings.run_job_type


def test_arguments_and_variables_have_precedence_over_names_from_the_command(tmp_path, offline, monkeypatch):
    command = RunNames("vae lr=1e-3 seed=1", "vae lr=1e-3", ["vae", "mnist"])
    monkeypatch.setattr("zoo.callbacks.loggers.names_of_run", lambda: command)
    assert passed_on(tmp_path) == ("vae lr=1e-3 seed=1", "vae lr=1e-3", ("vae", "mnist"), "train")
    given = {"name": "mine", "tags": ["a", "b"], "group": "ours", "job_type": "try"}
    assert passed_on(tmp_path, **given) == ("mine", "ours", ("a", "b"), "try")
    for name in ("WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_TAGS", "WANDB_JOB_TYPE"):
        monkeypatch.setenv(name, "variable")
    assert passed_on(tmp_path) == (None, None, None, None)  # wandb.init reads the variables
    assert passed_on(tmp_path, **given) == ("mine", "ours", ("a", "b"), "try")
    monkeypatch.delenv("WANDB_RUN_GROUP")
    monkeypatch.setenv("WANDB_SWEEP_ID", "1a2b3c")
    assert passed_on(tmp_path)[1] is None  # Weights & Biases groups the runs of its sweeps
    with pytest.raises(UserError, match=r"does not allow a value in logger\.wandb"):
        passed_on(tmp_path, name="x" * 129)


@pytest.mark.parametrize(("before", "now"), [("offline", "offline"), ("offline", "online"), ("online", "online")])
def test_a_resumed_run_keeps_its_names(tmp_path, offline, monkeypatch, before, now):
    """The service keeps the names of an online run, which the user can have changed there."""
    kept = {"name": "first", "group": "old", "tags": ["a"], "job_type": "train"}
    torch.save({"wandb_run_id": "1a2b", "wandb_names": {**kept, "mode": before}}, tmp_path / "last.ckpt")
    monkeypatch.setattr("zoo.callbacks.loggers.names_of_run", lambda: RunNames("other", "other", ["b"]))
    monkeypatch.setenv("WANDB_MODE", now)
    resumed = {"resume_from": str(tmp_path / "last.ckpt")}
    nothing = before == now == "online"
    assert passed_on(tmp_path, **resumed) == ((None,) * 4 if nothing else ("first", "old", ("a",), "train"))
    assert passed_on(tmp_path, **resumed, name="new")[0] == "new"
    assert WandbLogger(tmp_path, **resumed).names == {**kept, "mode": now}
    torch.save({"wandb_run_id": "1a2b"}, tmp_path / "last.ckpt")  # of an earlier version
    assert passed_on(tmp_path, **resumed) == (None,) * 4


def test_the_newest_best_checkpoint_is_logged(tmp_path, offline, monkeypatch):
    """A resumed run can leave several best checkpoints. The newest one and the last checkpoint are uploaded."""
    monkeypatch.setenv("WANDB_MODE", "disabled")  # wandb writes nothing; the test checks the calls
    for age, name in enumerate(("best-epoch001.ckpt", "best-epoch004.ckpt", "best-epoch002.ckpt", "last.ckpt")):
        torch.save({"model": "vae"}, tmp_path / name)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "best-epoch004.ckpt", (2e9, 2e9))
    logger, logged = WandbLogger(tmp_path / "run"), []
    log_artifact = logger.experiment.log_artifact

    def watched(artifact, aliases):
        logged.append((set(artifact.manifest.entries) - {"card.json"}, aliases))
        return log_artifact(artifact, aliases=aliases)

    logger.experiment.log_artifact = watched
    logger.log_checkpoints(tmp_path, {"val/loss": 1.0})
    assert logged == [({"last.ckpt"}, ["last"]), ({"best-epoch004.ckpt"}, ["best"])]


def test_a_service_out_of_reach_does_not_stop_a_run(tmp_path, offline, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server listens at this port
    logger = WandbLogger(tmp_path / "run", patience=2)
    logger.log_metrics({"x": 1.0}, step=0)
    assert "this run is logged offline" in caplog.text
    wandb.finish()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_an_artifact_of_a_run_is_loaded(tmp_path, offline, monkeypatch):
    """A local server replaces the service. The test checks the requests, and the errors after wrong answers."""
    run(tmp_path, *TINY["vae"], "debug=fast", "callbacks=none", "test=false")
    files = {"last.ckpt": (tmp_path / "checkpoints" / "last.ckpt").read_bytes(), "card.json": b"{}"}
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with serve("vae-1a2b3c4d", files) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        model = zoo.load("wandb:someone/zoo/vae-1a2b3c4d:best")
        assert_same(dict(model.state_dict()), dict(checkpoint(tmp_path)["state_dict"]))
        with pytest.raises(
            CheckpointError, match="wandb:someone/zoo/gan-1a2b3c4d:best cannot be downloaded: .*not found"
        ):
            zoo.load("wandb:someone/zoo/gan-1a2b3c4d:best")
    with serve("vae-1a2b3c4e", {"last.ckpt": b"other" * 99, "card.json": b"{}"}, damaged=True) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        with pytest.raises(CheckpointError, match="differ from the logged files: Digest mismatch"):
            zoo.load("wandb:someone/zoo/vae-1a2b3c4e:best")
    with serve("vae-1a2b3c4f", {"card.json": b"{}"}) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        with pytest.raises(
            CheckpointError, match="best holds 0 .ckpt files; an artifact of this zoo holds exactly one"
        ):
            zoo.load("wandb:someone/zoo/vae-1a2b3c4f:best")
    with pytest.raises(CheckpointError, match="an artifact must be wandb:entity/project/name:alias"):
        zoo.load("wandb:vae")
    monkeypatch.delenv("WANDB_API_KEY")
    wandb.teardown()  # forgets the key
    with pytest.raises(CheckpointError, match="needs a login; run wandb login"):
        zoo.load("wandb:someone/zoo/vae-1a2b3c4d:best")


def test_the_sweep_files_fit_the_configuration():
    """Training accepts the settings of every sweep. The sweep optimises the metric that selects the best checkpoint."""
    for path in (Path(CONFIGS) / "sweeps").glob("*.yml"):
        sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
        first = {k: v.get("values", [v.get("value", v.get("min"))])[0] for k, v in sweep["parameters"].items()}
        fixed = [part for part in sweep["command"] if "=" in part]
        cfg = config("/", *fixed, *(f"{key}={value}" for key, value in first.items()))
        assert OmegaConf.select(cfg, "callbacks.best.monitor") == sweep["metric"]["name"]
        assert sweep["program"] == "zoo" and sweep["command"][:3] == ["${env}", "${program}", "train"]
        assert sweep["command"][-1] == "${args_no_hyphens}"
        model_of(cfg)
