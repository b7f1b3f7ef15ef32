"""Tests that published checkpoints load, and that changed or wrong files are rejected."""

import hashlib
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, run
from safetensors.torch import load_file, save_file

import zoo
from zoo import hub
from zoo.__main__ import main
from zoo.checks.sources import export_folder
from zoo.hub import CheckpointError, exporting
from zoo.hub.initialising import begin_from
from zoo.hub.loading import best_of
from zoo.sampling.chunks import sample_chunks
from zoo.sampling.pictures import save_grid

ROOT = Path(__file__).parents[2]


FIRST = ("ddpm", "gan", "rbm", "skipgram", "vae")  # the second tier exports the other models


def trained(folder, names):
    """Make a short run of each model in a folder of its name below ``folder``."""
    for name in names:
        few = [*TINY[name], "callbacks.estimator_variance=null"]
        run(folder / name, *few, "debug=fast", "test=false", "logger=none")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs"), FIRST)


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """Export every model of the first tier once, and return the folder of the exported weights."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "WEIGHTS", folder)
        for name in FIRST:
            exporting.export(runs / name, name)
    return folder


@pytest.fixture
def published(exported, tmp_path, monkeypatch):
    """Return a folder of weights with the exported models. Each test has a separate copy."""
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    return Path(shutil.copytree(exported, tmp_path / "weights"))


def test_export_then_load_is_the_same_model(published, runs):
    loads_what_was_exported(published, runs, FIRST)


@pytest.mark.slow
def test_export_then_load_is_the_same_model_for_the_other_models(tmp_path, monkeypatch):
    others = sorted(set(TINY) - set(FIRST))
    runs = trained(tmp_path / "runs", others)  # their callbacks use the published classifier
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    for name in others:
        exporting.export(runs / name, name)
    loads_what_was_exported(tmp_path / "weights", runs, others)


def loads_what_was_exported(published, runs, names):
    assert zoo.list_checkpoints() == sorted(names)
    for name in names:
        ours, theirs = zoo.load(name), zoo.load(runs / name)
        assert not ours.training
        if name == "skipgram":
            expected = {k: v.half().float() if v.is_floating_point() else v for k, v in theirs.published().items()}
        else:
            expected = theirs.state_dict()
        assert list(ours.state_dict()) == list(expected)
        for key, value in expected.items():
            assert torch.equal(ours.state_dict()[key], value)
        card = hub.read_card(name)
        assert card["stored_as"] == ("float16" if name == "skipgram" else "float32") and "previous" not in card
        assert card["model"] == name and card["data"] == ("pydocs" if name == "skipgram" else "digits")
        metrics = card["whole_model"] or card["metrics"]
        assert metrics.get("test/loss", metrics.get("test/generator_loss")) is not None
        assert card["seconds"] >= 0 and card["hardware"] and card["commit"] and "zoo train" in card["command"]
        best = torch.load(best_of(runs / name), weights_only=True)
        assert (card["epochs"], card["steps"]) == (best["epoch"] + 1, best["global_step"]) == (1, best["global_step"])
        assert card["sha256"] == hashlib.sha256((published / f"{name}.safetensors").read_bytes()).hexdigest()
        assert exporting.golden_terms(ours) == card["golden"]
    assert not list(published.glob("*.part"))


def test_averaged_weights_are_what_is_published(runs, published):
    checkpoint = torch.load(next((runs / "ddpm" / "checkpoints").glob("best-*")), weights_only=True)
    ours = zoo.load("ddpm").state_dict()
    assert all(torch.equal(ours[k], v) for k, v in checkpoint["state_dict"].items())
    assert "current_model_state" in checkpoint


def test_a_download_has_an_end(tmp_path, monkeypatch):
    """A file larger than the limit is rejected. A file of exactly the limit is read. It is not a safetensors file."""
    (tmp_path / "x.safetensors").write_bytes(bytes(11))
    source = f"file://{tmp_path}/x.safetensors#sha256={hashlib.sha256(bytes(11)).hexdigest()}"
    monkeypatch.setattr("zoo.hub.addresses.LARGEST_FILE", 10)
    with pytest.raises(CheckpointError, match="x.safetensors is larger than 10 bytes, the limit"):
        zoo.load(source)
    monkeypatch.setattr("zoo.hub.addresses.LARGEST_FILE", 11)
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        zoo.load(source)


def test_a_run_folder_stands_for_its_newest_best_checkpoint(tmp_path):
    """The newest best checkpoint is used. If there is no best checkpoint, ``last.ckpt`` is used."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="holds no best-"):
        best_of(tmp_path)
    (folder / "last.ckpt").touch()
    assert best_of(tmp_path) == best_of(folder) == folder / "last.ckpt"
    for seconds, name in ((1e9, "best-epoch009.ckpt"), (2e9, "best-epoch003.ckpt"), (1.5e9, "best-epoch005.ckpt")):
        (folder / name).touch()
        os.utime(folder / name, (seconds, seconds))
    assert best_of(tmp_path) == best_of(folder) == folder / "best-epoch003.ckpt"


def test_a_changed_byte_is_refused(published):
    weights = published / "vae.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="weights of vae are not the published ones: SHA-256"):
        zoo.load("vae")


def test_another_models_file_is_refused(published):
    shutil.copy(published / "ddpm.safetensors", published / "vae.safetensors")
    with pytest.raises(CheckpointError, match="weights of vae are not the published ones"):
        zoo.load("vae")


def test_weights_of_another_shape_are_refused(published):
    tensors = load_file(published / "vae.safetensors")
    tensors.pop(next(iter(tensors)))
    metadata = {"model": "vae", "hyper_parameters": json.dumps(hub.read_card("vae")["hyper_parameters"])}
    save_file(tensors, published / "odd.safetensors", metadata)
    with pytest.raises(CheckpointError, match="does not fit VAE of this version"):
        zoo.load(address(published / "odd.safetensors"))
    save_file(tensors, published / "odd.safetensors", {**metadata, "model": "os.system"})
    with pytest.raises(
        CheckpointError, match=f"a model named 'os.system'; the known models are {', '.join(zoo.MODELS)}"
    ):
        zoo.load(address(published / "odd.safetensors"))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-pickle-ran",)


def test_a_hostile_pickle_is_never_run(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = published / "vae.safetensors"
    weights.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match="not the published ones"):
        zoo.load("vae")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        zoo.load(address(weights))  # the digest matches
    torch.save({"state_dict": {}, "model": "vae", "x": Hostile()}, tmp_path / "hostile.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read|not a checkpoint that can be read safely"):
        zoo.load(tmp_path / "hostile.ckpt")
    assert not (tmp_path / "hostile-pickle-ran").exists()


def address(path, digest=None):
    return f"{path.as_uri()}#sha256={digest or hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_an_address_needs_its_digest(published):
    path = published / "vae.safetensors"
    assert torch.equal(
        next(iter(zoo.load(address(path)).state_dict().values())), next(iter(zoo.load("vae").state_dict().values()))
    )
    with pytest.raises(CheckpointError, match="has no SHA-256 digest"):
        zoo.load(path.as_uri())
    with pytest.raises(CheckpointError, match="not the published ones"):
        zoo.load(address(path, "0" * 64))
    with pytest.raises(CheckpointError, match="cannot be read"):
        zoo.load(address(path.with_name("absent"), "0" * 64))


def test_unknown_sources_name_the_known_ones(published, tmp_path):
    known = ", ".join(sorted(FIRST))
    with pytest.raises(CheckpointError, match=f"'vea' is neither a file nor a pretrained checkpoint.*: {known}"):
        zoo.load("vea")
    with pytest.raises(CheckpointError, match=r"holds no best-\*.ckpt and no last.ckpt"):
        zoo.load(tmp_path)
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="holds no state_dict"):
        zoo.load(tmp_path / "list.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "nameless.ckpt")
    with pytest.raises(CheckpointError, match="a model named None"):
        zoo.load(tmp_path / "nameless.ckpt")


def test_export_refuses_before_it_writes(published, runs, tmp_path):
    before = (published / "vae.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="named vae exists already: .* --force"):
        exporting.export(runs / "vae", "vae")
    with pytest.raises(CheckpointError, match="lower-case letters"):
        exporting.export(runs / "vae", "../vae")
    torch.save({"state_dict": {}, "model": "vae"}, tmp_path / "bare.ckpt")
    with pytest.raises(CheckpointError, match="does not record the run"):
        exporting.export(tmp_path / "bare.ckpt", "bare")
    assert (published / "vae.safetensors").read_bytes() == before
    exporting.export(runs / "vae", "vae", force=True)


def test_an_installed_zoo_exports_to_a_folder_of_the_user(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "__file__", str(tmp_path / "site-packages" / "zoo" / "__init__.py"))
    assert export_folder() == Path() and export_folder(Path("mine")) == Path("mine")
    weights = exporting.export(runs / "vae", "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "mine.png", "mine.safetensors"]
    assert exporting.golden_terms(zoo.load(weights)) == hub.card_of(weights)["golden"]
    assert hub.record_of(weights) is None
    with pytest.raises(CheckpointError, match="named mine exists already"):
        exporting.export(runs / "vae", "mine")
    begun = begin_from(zoo.load(runs / "vae"), "mine.safetensors")
    assert begun["sha256"] == hub.card_of(weights)["sha256"]
    Path("mine.json").unlink()
    with pytest.raises(CheckpointError, match=r"mine.safetensors has no card: put mine.json"):
        zoo.load("mine.safetensors")


def test_conditions_as_people_type_them():
    from zoo.commands.conditions import parse_conditions
    from zoo.commands.inputs import check_examples
    from zoo.datamodules import Toy
    from zoo.ddpm import DDPM

    assert parse_conditions("") == {}
    assert parse_conditions("num_steps=5,eta=1,labels=[1,2],show=x0") == {
        "num_steps": 5,
        "eta": 1,
        "labels": [1, 2],
        "show": "x0",
    }
    for text, message in {
        "eta=1,eta=0": "each condition must be given once, got eta=1,eta=0",
        "eta": "a condition must be written name=value, such as num_steps=100; got 'eta'",
        "eta=1/2": "a condition must be a number, a word, true, false, null or a list; got 'eta=1/2'",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_conditions(text)
    data = Toy("mixture")
    data.setup()
    with pytest.raises(
        ValueError, match=r"DDPM takes examples of shape \[1, 28, 28\], and the examples of mixture have"
    ):
        check_examples(DDPM(steps=4, widths=[8]), data)


def test_the_command_line(runs, published, tmp_path, monkeypatch, capsys):
    """Test the commands ``list``, ``sample``, ``evaluate`` and ``export``. Equal seeds give equal pictures."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    assert re.search(r"^  vae +vae +\w+ +[\d,]+  loss [\d.]+ nats$", command("list"), re.MULTILINE)
    command("sample", runs / "vae", "-n", 20, "--seed", 0, "-o", tmp_path / "a.png")
    command("sample", "vae", "-n", 20, "-o", tmp_path / "b.png")
    command("sample", "rbm", "-n", 3, "-c", "steps=2", "-c", "frames=2", "--images", "digits", "-o", tmp_path / "d.png")
    command("sample", "ddpm", "-n", 1, "-o", tmp_path / "c.png", "-c", "num_steps=2", "--condition", "eta=0.5")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    measured = dict(line.split(": ") for line in command("evaluate", "vae", "--data", "digits").splitlines())
    assert measured["test/loss"] == f"{hub.read_card('vae')['metrics']['test/loss']:.2f} nats"
    assert "its card" in command("export", runs / "vae", "again")
    for wrong, message in [
        (["sample", "nothing"], "neither a file nor a pretrained"),
        (["sample", "vae", "-c", "eta=1"], "VAE.sample takes no eta; it has no conditions"),
        (["sample", "ddpm", "-c", "eta"], "written name=value"),
        (["sample", "vae", "-n", "0"], "at least 1, got 0"),
        (["sample", "ddpm", "-c", "eta=1;2"], "a condition must be a number, a word"),
        (["sample", "rbm", "-c", "init=nowhere"], "must be noise, data or chains, got 'nowhere'"),
        (["sample", "rbm", "--images", "digits", "-c", "init=noise"], "leave out one of them"),
        (["evaluate", "vae", "--data", "imagenet"], "there are no data 'imagenet'"),
        (["export", tmp_path / "none", "x"], "neither a file nor a pretrained"),
    ]:
        with pytest.raises(SystemExit) as refused:
            command(*wrong)
        assert re.search(message, f"{refused.value}\n{capsys.readouterr().err}")


def test_the_seed_on_the_command_line_is_that_of_the_picture(tmp_path, monkeypatch):
    """The default seed is 0."""

    def drawn(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", "sample", "vae", "-n", "2", "-o", str(tmp_path / "a.png"), *arguments])
        main()
        return (tmp_path / "a.png").read_bytes()

    assert drawn() == drawn("--seed", "0") != drawn("--seed", "3") == drawn("--seed", "3")
    images = sample_chunks(zoo.load("vae"), 2, 3)
    save_grid(images, tmp_path / "b.png", 1)
    assert drawn("--seed", "3") == (tmp_path / "b.png").read_bytes()
