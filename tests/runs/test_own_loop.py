"""Tests of docs/own_loop.md. The script of each model runs, in two steps of training, and the script with callbacks."""

import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch

import zoo

PAGE = (Path(__file__).parents[2] / "docs" / "own_loop.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MODULE, SCRIPT = (b for b in BLOCKS if "Denoiser" in b)  # a module of the user, and a script with callbacks
SCRIPTS = [b for b in BLOCKS if "Denoiser" not in b]
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


@pytest.mark.parametrize("killed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_callbacks_of_the_zoo_work_in_a_script_beside_those_of_the_user(killed, tmp_path):
    (tmp_path / "callbacks").mkdir()
    then = f"os.kill(os.getpid(), {int(signal.SIGINT)})" if killed else "print('callback of the user')"
    (tmp_path / "callbacks" / "__init__.py").write_text(
        "import os\nimport lightning as L\n\n\nclass PrintLoss(L.Callback):\n"
        f"    def on_train_batch_end(self, trainer, *_):\n        if trainer.global_step == 3:\n            {then}\n",
        encoding="utf-8",
    )
    (tmp_path / "model.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "fit.py").write_text(SCRIPT.replace("max_epochs=5", "max_steps=5, accelerator='cpu'"), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "fit.py"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = ended.stdout + ended.stderr
    if killed:  # the script says how it continues, because zoo resume cannot start it
        interrupted = "out/checkpoints/interrupted.ckpt"
        assert ended.returncode == 130 and f"trainer.fit(..., ckpt_path='{interrupted}')" in said, said
        assert torch.load(tmp_path / interrupted, weights_only=True)["random_state"]
    else:
        assert ended.returncode == 0 and "callback of the user" in said, said
        assert (tmp_path / "out" / "estimator_variance.png").is_file()


def test_the_keys_of_the_page_are_those_of_the_code():
    from zoo.checks.pixels import EXAMPLE_KEYS, LABEL_KEYS

    (row,) = re.findall(r"^\| a dictionary \|.*$", PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", row) == [*EXAMPLE_KEYS, *LABEL_KEYS]
