"""Tests of the text at the end of a run: test metrics, files, and commands that work when they are pasted."""

import logging
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from helpers import CONFIGS, FIGURE, QUIET, TINY, tiers
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from matplotlib.figure import Figure
from small_models import made

import zoo
from zoo.__main__ import main
from zoo.callbacks.run_end import _longer, known_word, run_end
from zoo.commands import resuming
from zoo.commands.training import train
from zoo.training.command_line import readable_arguments

# For each run: its overrides, and the commands of ``zoo`` that it prints.
RUNS = {
    "vae": (TINY["vae"], ["sample", "evaluate", "curves"]),
    "cvae": (TINY["cvae"], ["sample", "sample", "evaluate", "curves"]),
    "ddpm-guided": ([*TINY["ddpm"], "experiment=ddpm_guided"], ["sample", "sample", "evaluate", "curves"]),
    "gan": (TINY["gan"], ["sample", "evaluate", "curves"]),
    "infogan": (TINY["infogan"], ["sample", "sample", "evaluate", "curves"]),
    "gan-ring": (["experiment=wgan_ring", "model.hidden=[8]"], ["sample", "evaluate", "curves"]),
    "gan-sequence": (["experiment=gan_discrete", "model.width=4"], ["sample", "evaluate", "curves"]),
    "rbm": (TINY["rbm"], ["sample", "evaluate", "curves"]),
    "vade": (TINY["vade"], ["sample", "sample", "evaluate", "curves"]),
    "score": (TINY["score"], ["sample", "evaluate", "curves"]),
    "wgan": (TINY["wgan"], ["sample", "evaluate", "curves"]),
    "skipgram": (TINY["skipgram"], ["nearest", "evaluate", "curves"]),
    "classifier": (["experiment=classifier", "data=digits"], ["evaluate", "curves"]),
}


@pytest.fixture(autouse=True)
def _started_as_zoo(monkeypatch):
    """Printed commands begin with ``zoo`` if the command ``zoo`` has started the program."""
    monkeypatch.setattr(sys, "argv", ["zoo"])


def ended(folder, *overrides):
    """Run ``python train.py`` with ``overrides`` in this process, and return the lines of its last message."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("zoo.commands.training")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    singleton = HydraConfig.instance()
    before = singleton.cfg
    try:
        with initialize_config_dir(CONFIGS, version_base="1.3"):
            cfg = compose("train", list(overrides), return_hydra_config=True)
        singleton.set_config(cfg)
        del cfg.hydra
        cfg.run_dir = str(folder)
        train(cfg)
    finally:
        singleton.cfg = before
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    return said[-1].splitlines()


def block(lines, heading):
    """Return the lines below ``heading`` until the next empty line."""
    start = next(i for i, line in enumerate(lines) if line.startswith(heading)) + 1
    return lines[start : lines.index("", start)] if "" in lines[start:] else lines[start:]


def files(lines):
    """Return the list of files as a dict. The keys are labels, and the values are the words after a label.

    The words are split as in a shell. The first of them is a path.
    """
    return {line[4:].split("  ")[0]: shlex.split(line[4:].split("  ", 1)[1]) for line in block(lines, "Files in ")}


@pytest.mark.parametrize("name", tiers(sorted(RUNS), ["vae"]))
def test_every_command_at_the_end_of_a_run_works(name, tmp_path, monkeypatch, capsys):
    overrides, expected = RUNS[name]
    folder = tmp_path / "ä 'b"
    overrides = [*overrides, *QUIET, "debug=fast", "~callbacks.estimator_variance"]
    lines = ended(folder, *overrides)
    monkeypatch.chdir(tmp_path)
    of_zoo = [shlex.split(line) for line in block(lines, "Next")]
    (resume,) = [shlex.split(line) for line in block(lines, "To continue this run to ")]
    assert [words[:2] for words in of_zoo] == [["zoo", command] for command in expected]
    for words in of_zoo:
        assert words[2] == str(folder)
        monkeypatch.setattr(sys, "argv", words)
        main()
        assert capsys.readouterr().out
    assert resume == ["zoo", "resume", str(folder), "trainer.max_epochs=2"]
    assert "\ncommand: zoo train " in (folder / "config.yaml").read_text(encoding="utf-8")
    trained = []
    monkeypatch.setattr(resuming, "train", trained.extend)
    monkeypatch.setattr(sys, "argv", resume)
    main()
    readable = readable_arguments(trained, Path(CONFIGS))
    assert [o for o in readable if o.startswith("hydra.run.dir=")]
    again = ended(folder, *(o for o in readable if not o.startswith("hydra.run.dir=")))
    assert block(again, "To continue this run to 4 epochs")[0].endswith("trainer.max_epochs=4")
    namespace = {}
    exec("\n".join(block(lines, "Or in Python")), namespace)
    if "samples" in namespace:
        assert len(namespace["samples"]) == 16
    assert type(namespace["model"]).__module__.startswith("zoo.")


def test_numbers_and_files_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(FIGURE, lambda history: Figure(figsize=(1, 1)))
    monkeypatch.chdir(tmp_path)
    lines = ended(tmp_path / "run", *TINY["vae"], *QUIET, "debug=fast")
    assert lines[0] == "Test of the best checkpoint:"
    assert re.fullmatch(r"    loss [\d.]+ nats, nll [\d.]+ nats, kl [\d.]+ nats", lines[1])
    found = files(lines)
    assert list(found) == [
        *("best checkpoint", "last checkpoint", "samples", "manifold", "reconstructions"),
        *("traversals", "gradient estimators", "metrics"),
    ]
    assert all(Path(path).is_file() and not Path(path).is_absolute() for path, *_ in found.values())
    assert found["best checkpoint"][1] == "(val/loss" and found["best checkpoint"][3] == "nats)"
    assert len(lines) <= 26


def test_a_run_without_callbacks_and_loggers_says_what_there_is(tmp_path):
    lines = ended(tmp_path, *TINY["vae"], *QUIET, "debug=fast", "callbacks=none", "logger=none", "test=false")
    assert lines[0] == "Last validation:"
    assert list(files(lines)) == ["best checkpoint", "last checkpoint"]
    assert [shlex.split(line)[1] for line in block(lines, "Next")] == ["sample", "evaluate"]


def test_without_a_checkpoint_nothing_is_to_be_loaded(tmp_path):
    trainer = L.Trainer(logger=False, enable_checkpointing=False, max_epochs=1, accelerator="cpu")
    trainer.datamodule = None
    assert run_end(trainer, made("vae"), tmp_path, {}) == ""
    said = run_end(trainer, made("vae"), tmp_path, {"test/loss": 1.0, "test/nll": 0.5}).splitlines()
    assert said == ["Test of the last weights:", "    loss 1 nats, nll 0.5 nats"]


def test_many_metrics_take_several_lines_and_keep_their_units(tmp_path):
    trainer = L.Trainer(logger=False, enable_checkpointing=False, max_epochs=1, accelerator="cpu")
    trainer.datamodule = None
    metrics = {f"test/metric{i}": float(i) for i in range(20)} | {"test/accuracy": 0.97}
    lines = run_end(trainer, made("vae"), tmp_path, metrics).splitlines()
    assert max(map(len, lines)) <= 104 and " ".join(lines).endswith("accuracy 97.0 %")
    assert all(line.endswith(("%", ",")) for line in lines[1:])


def test_a_run_folder_with_the_name_of_a_pretrained_model_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("vae", "checkpoints").mkdir(parents=True)
    Path("vae", "checkpoints", "last.ckpt").touch()
    trainer = L.Trainer(logger=False, enable_checkpointing=False, max_epochs=-1, accelerator="cpu")
    trainer.datamodule = SimpleNamespace(used=None)
    lines = run_end(trainer, made("cvae"), "vae", {}).splitlines()
    assert block(lines, "Next") == [
        "zoo sample ./vae -o samples.png",
        "zoo sample ./vae -c y=3 -o samples.png",
        "zoo evaluate ./vae",
    ]
    assert lines[-3:] == ["import zoo", 'model = zoo.load("./vae")', "samples = model.sample(16, y=3)"]
    assert "vae" in zoo.list_checkpoints()


def test_the_unit_of_the_best_value_is_known_from_the_test():
    """A finished run that is resumed has test metrics and no validation metrics."""
    trainer = L.Trainer(logger=False, callbacks=ModelCheckpoint(monitor="val/loss"), max_epochs=1, accelerator="cpu")
    trainer.checkpoint_callback.best_model_score = torch.tensor(538.76)
    trainer.checkpoint_callback.best_model_path = "/nowhere/best.ckpt"
    trainer.datamodule = None
    lines = run_end(trainer, made("vae"), "/", {"test/loss": 538.5, "test/nll": 538.2}).splitlines()
    assert files(lines)["best checkpoint"] == ["/nowhere/best.ckpt", "(val/loss", "538.76", "nats)"]


@pytest.mark.parametrize("online", [True, False])
def test_a_run_in_weights_and_biases_has_an_address_or_a_folder(online, tmp_path, monkeypatch):
    from zoo.callbacks.run_end import _place

    folder = tmp_path / "wandb" / "offline-run-1"
    run = SimpleNamespace(offline=not online, url="https://wandb.ai/me/zoo/runs/1", dir=str(folder / "files"))
    assert _place(run, tmp_path) == (run.url if online else str(folder))
    # With WANDB_MODE=disabled, wandb writes outside the run folder.
    assert online or _place(run, tmp_path / "elsewhere") is None


@pytest.mark.parametrize(("words", "asked"), [(["the", "music", "zebra"], "music"), (["the", "it's"], "the")])
def test_the_word_to_look_up_next_is_one_that_is_known(words, asked):
    assert known_word(words) == asked


def test_an_analogy_is_printed_where_its_words_are_known(tmp_path):
    Path(tmp_path, "checkpoints").mkdir()
    Path(tmp_path, "checkpoints", "last.ckpt").touch()
    trainer = L.Trainer(logger=False, enable_checkpointing=False, max_epochs=-1, accelerator="cpu")
    trainer.datamodule = None
    lines = run_end(trainer, zoo.load("skipgram"), tmp_path, {}).splitlines()
    commands = [shlex.split(line)[1:] for line in block(lines, "Next")]
    assert ["analogy", str(tmp_path), "man", "king", "woman"] in commands
    assert lines[-1] == 'model.nearest("music")'


def test_a_run_that_max_time_has_ended_continues_with_more_time(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    timer = Timer(duration="00:23:40:05")
    trainer = SimpleNamespace(callbacks=[timer], max_epochs=10)
    assert _longer(trainer, tmp_path)[-1].endswith(" trainer.max_epochs=20")
    timer.load_state_dict({"time_elapsed": {"train": 85_205.0, "validate": 0.0, "test": 0.0, "sanity_check": 0.0}})
    assert _longer(trainer, tmp_path)[-1].endswith(" trainer.max_time=01:23:20:10")
