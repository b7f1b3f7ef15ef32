"""Tests of docs/own_loop.md. The script of each model runs, in two steps of training."""

import re
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch

import zoo

PAGE = (Path(__file__).parents[2] / "docs" / "own_loop.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MODELS = [re.search(r"from zoo\.(\w+) import [A-Z]", script).group(1) for script in SCRIPTS]
SMALL = {  # replacements that shorten a run
    "DDPM(": "DDPM(widths=[8, 16], steps=60, ",
    "Score(": "Score(num_sigmas=3, ",
    "pretrain_epochs=3": "pretrain_epochs=0, restarts=1",
    "num_hidden=64": "num_hidden=64, ais_temperatures=5",
}


def test_every_model_has_a_script():
    assert sorted(MODELS) == sorted(zoo.list_models())


@pytest.mark.parametrize("script", SCRIPTS, ids=MODELS)
def test_a_script_has_at_most_fifteen_lines(script):
    assert len([line for line in script.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("script", SCRIPTS, ids=MODELS)
def test_a_script_trains_and_uses_its_model(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 1}
    trainer = L.Trainer
    monkeypatch.setattr(L, "Trainer", lambda max_epochs: trainer(max_epochs=1, limit_train_batches=2, **quiet))
    for before, after in SMALL.items():
        script = script.replace(before, after)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(script, names)
    model = names["model"]
    assert model.trainer.global_step == 2 and all(p.isfinite().all() for p in model.parameters())
    for name in ("images", "sevens", "threes", "samples"):
        if name in names:
            shape = tuple(model.hparams.get("shape", (1, 28, 28)))
            assert names[name].shape == (16, *shape) and names[name].isfinite().all()
    for name in ("clusters", "categories"):
        if name in names:
            assert names[name].shape == (16,) and names[name].dtype == torch.long
    if "similar" in names:
        assert len(names["similar"]) == 3


def test_the_keys_of_the_page_are_those_of_the_code():
    from zoo.checks.pixels import EXAMPLE_KEYS, LABEL_KEYS

    (row,) = re.findall(r"^\| a dictionary \|.*$", PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", row) == [*EXAMPLE_KEYS, *LABEL_KEYS]
