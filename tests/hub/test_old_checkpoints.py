"""Tests of files of an earlier version: training checkpoints made at commit 000fc6c, before the modules moved.

The checkpoints hold very small models after a few steps on the digits or on Python's documentation. The runs had all
callbacks of their recipes. ``vae-resumed.json`` holds the metrics of a run at that commit that resumed ``vae.ckpt`` for
one epoch.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import run
from torch.testing import assert_close

import zoo
from zoo.callbacks.run_record import hardware
from zoo.hub import data_of, read_card, read_training_checkpoint, record_of
from zoo.hub.exporting import golden_terms

FOLDER = Path(__file__).parent / "made_by_000fc6c"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ckpt"))


def test_there_is_one_of_each_of_the_first_ten_models():
    assert len(NAMES) == 10 and set(NAMES) <= set(zoo.list_models())
    assert all(record_of(path)["commit"].startswith("000fc6c") for path in FOLDER.glob("*.ckpt"))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_an_earlier_version_loads(name, generator):
    path = FOLDER / f"{name}.ckpt"
    model, saved = zoo.load(path), read_training_checkpoint(path)
    assert f"{type(model).__module__}.{type(model).__name__}" == zoo.MODELS[name]
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved["state_dict"][key]), key
    assert set(model.state_dict()) == set(saved["state_dict"])
    if name == "skipgram":
        assert model.nearest(model.words[0], 3)
    else:
        options = {"num_steps": 2} if name == "ddpm" else {"steps": 1} if name in ("score", "rbm") else {}
        assert model.sample(2, generator=generator, **options).shape == (2, 1, 28, 28)
    if name == "rbm":
        assert torch.equal(model.chains, saved["chains"])
    assert saved["record"]["config"]["data"]["_target_"].startswith("datamodules.")
    data = data_of(record_of(path))
    assert type(data).__module__.startswith("zoo.datamodules.")


def test_a_run_of_an_earlier_version_resumes_as_it_would_have_then(tmp_path):
    expected = json.loads((FOLDER / "vae-resumed.json").read_text(encoding="utf-8"))
    (tmp_path / "checkpoints").mkdir()
    ckpt = shutil.copy(FOLDER / "vae.ckpt", tmp_path / "checkpoints" / "last.ckpt")
    metrics = run(tmp_path, *expected["command"], f"ckpt={ckpt}")
    assert set(metrics) == set(expected["metrics"])
    for name, value in metrics.items():
        assert_close(value, expected["metrics"][name], rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", zoo.list_checkpoints())
def test_shipped_checkpoints_give_the_golden_terms_on_their_cards(name):
    """With one thread, AVX-512 and the kind of CPU of the card, the terms equal ``golden``. Others agree to 1e-4."""
    card = read_card(name)
    terms, golden = golden_terms(zoo.load(name)), card["golden"]
    assert set(terms) == set(golden)
    same_cpu = hardware(torch.device("cpu")).partition(", torch")[0] == card["hardware"].partition(", torch")[0]
    if same_cpu and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.get_num_threads() == 1:
        assert terms == golden
    assert_close(terms, golden, rtol=1e-4, atol=0)


def test_no_shipped_checkpoint_is_missing():
    assert len(zoo.list_checkpoints()) >= 19
