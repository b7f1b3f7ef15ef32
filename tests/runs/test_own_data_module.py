"""Tests of data modules of the user, from a folder that ``--config-dir`` names, with all recipes of images."""

import re
import shlex
import signal
import subprocess
import sys

import lightning as L
import pytest
import torch
from helpers import QUIET, TINY, assert_same, checkpoint, config, stop
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from processes import ROOT, environment

from zoo.checks.errors import UserError
from zoo.commands.training import train
from zoo.training.command_line import with_shape_of
from zoo.training.error_lines import line_of
from zoo.training.own_data import check_module, shape_of_examples, without_options_of_recipes

MODULE = """
import lightning as L
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split


class MyImages(L.LightningDataModule):
    num_classes = 10

    def prepare_data(self):
        self.prepared = True

    def setup(self, stage=None):
        digits = load_digits()
        x, y = torch.tensor(digits.images[:300]).float() / 16, torch.tensor(digits.target[:300])
        self.parts = random_split(TensorDataset(x[:, None], y), [200, 50, 50])

    def train_dataloader(self):
        return DataLoader(self.parts[0], batch_size=50, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.parts[1], batch_size=50)

    def test_dataloader(self):
        return DataLoader(self.parts[2], batch_size=50)


class Sized(MyImages):
    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size
"""
IMAGES = [name for name in TINY if name != "skipgram"]
SHORT = ["trainer.max_epochs=1", "callbacks=none", "test=false"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with a module and its configuration, on the path of imports."""
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "mydm.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "configs" / "data" / "mine.yaml").write_text("_target_: mydm.MyImages\n", encoding="utf-8")
    (tmp_path / "configs" / "data" / "sized.yaml").write_text("_target_: mydm.Sized\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mydm", raising=False)
    yield tmp_path
    sys.modules.pop("mydm", None)


def configuration(folder, *overrides):
    search = f"hydra.searchpath=[file://{folder / 'configs'}]"
    return config(folder / "run", search, *QUIET, *overrides)


def overrides_of(name):
    return [o for o in TINY[name] if not o.startswith("data")]


@pytest.mark.parametrize("name", IMAGES)
def test_a_data_module_of_the_user_trains_with_the_recipe(name, folder):
    """The module takes no batch_size, has no shape, and has 300 images of 8 x 8 pixels."""
    cfg = configuration(folder, *overrides_of(name), "data=mine", *SHORT)
    train(cfg)
    assert list(cfg.model.shape) == [1, 8, 8]
    assert "batch_size" not in cfg.data


def test_the_files_and_the_command_of_the_page_train_sample_and_test(tmp_path):
    page = (ROOT / "docs" / "own_data_module.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    (tmp_path / "my_configs" / "data").mkdir(parents=True)
    (tmp_path / "mydm.py").write_text(blocks["python"], encoding="utf-8")
    (tmp_path / "my_configs" / "data" / "mine.yaml").write_text(blocks["yaml"], encoding="utf-8")
    first, program, train, *options = shlex.split(blocks["bash"])
    assert (first, program, train, options[-1]) == ("PYTHONPATH=.", "zoo", "train", "model=ddpm")
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=3", f"hydra.run.dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "zoo", "train", *options[:-1], *overrides_of("gan"), *short, *QUIET]
    variables = environment(PYTHONPATH=f"{ROOT}:.")
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert list(written.model.shape) == [1, 8, 8] and written.data.batch_size == 64
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    assert "test/generator_loss" in (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8")


def test_a_run_on_ones_own_data_resumes_at_the_end_of_an_epoch(folder):
    """Shuffling draws from the random numbers of the run, which the checkpoint holds. An epoch has four batches."""
    arguments = [*overrides_of("vae"), "data=mine", "test=false", "callbacks.estimator_variance=null"]
    arguments += ["trainer.max_epochs=2"]
    whole = configuration(folder, *arguments)
    whole.run_dir = str(folder / "whole")
    train(whole)
    with pytest.raises(SystemExit):
        train(configuration(folder, *arguments, *stop(3, signal.SIGTERM)))
    last = folder / "run" / "checkpoints" / "last.ckpt"
    train(configuration(folder, *arguments, f"ckpt={last}"))
    assert_same(checkpoint(folder / "run")["state_dict"], checkpoint(folder / "whole")["state_dict"])


def test_the_recipe_gives_its_batch_size_to_a_class_that_takes_one(folder):
    data = configuration(folder, "model=gan", "data=sized").data
    without_options_of_recipes(data)
    assert data.batch_size == 64


def test_a_batch_size_on_the_command_line_is_not_ignored(folder):
    data = configuration(folder, "model=gan", "data=mine", "data.batch_size=32").data
    with pytest.raises(UserError, match=r"data.batch_size is given, but mydm.MyImages takes no batch_size: leave it"):
        without_options_of_recipes(data, ["model=gan", "data.batch_size=32"])


def test_options_of_the_zoos_own_data_stay():
    cfg = OmegaConf.create({"_target_": "zoo.datamodules.Images", "batch_size": 64, "train_on": "train", "typo": 1})
    without_options_of_recipes(cfg)
    assert set(cfg) == {"_target_", "batch_size", "train_on", "typo"}


class Plain(L.LightningDataModule):
    """Four batches of an unknown shape, which ``setup`` makes with the random numbers of torch."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def prepare_data(self):
        self.calls.append("prepare_data")

    def setup(self, stage):
        self.calls.append(stage)
        self.x = torch.rand(4, 2, 3, 5, 7)

    def train_dataloader(self):
        return [{"image": x} for x in self.x]


def test_the_first_batch_shows_the_shape_and_changes_no_random_numbers():
    data, model = Plain(), OmegaConf.create({"shape": "auto"})
    torch.manual_seed(0)
    with_shape_of(model, data)
    assert list(model.shape) == [3, 5, 7] and data.calls == ["prepare_data", "fit"]
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert drawn == torch.rand(1)


def test_an_attribute_shape_is_believed():
    data, model = Plain(), OmegaConf.create({"shape": "auto"})
    data.shape = (1, 2, 3)
    with_shape_of(model, data)
    assert list(model.shape) == [1, 2, 3] and not data.calls


def test_a_model_of_another_shape_does_not_ask_the_data():
    data, model = Plain(), OmegaConf.create({"shape": [1, 28, 28]})
    with_shape_of(model, data)
    assert not data.calls


def test_classes_must_be_said():
    with pytest.raises(UserError, match="Plain has no num_classes: choose other data, or set model.num_classes=..."):
        with_shape_of(OmegaConf.create({"num_classes": "auto"}), Plain())


def test_data_that_are_known_to_have_no_labels_are_not_asked_for_a_number_of_classes():
    data = Plain()
    data.num_classes = None
    with pytest.raises(UserError, match="Plain has no labels. Sort the images into a folder for each class"):
        with_shape_of(OmegaConf.create({"num_classes": "auto"}), data)


def test_images_with_the_channels_last_are_named_before_training():
    data = Plain()
    data.train_dataloader = lambda: [torch.zeros(4, 32, 30, 3)]
    with pytest.raises(UserError, match=r"have shape \[32, 30, 3\], and seem to have the channels last"):
        shape_of_examples(data)
    for shape in ([3, 32, 3], [1, 8, 1], [2, 8, 3], [32, 8, 8]):
        data.train_dataloader = lambda shape=shape: [torch.zeros(4, *shape)]
        assert shape_of_examples(data) == shape


def test_a_module_that_is_not_on_the_path_is_named_in_one_line(folder, caplog):
    (folder / "configs" / "data" / "mine.yaml").write_text("_target_: not_on_the_path.MyImages\n", encoding="utf-8")
    cfg = configuration(folder, "model=vae", "data=mine", *SHORT)
    with pytest.raises(InstantiationException) as error:
        train(cfg)
    line = line_of(error.value)
    assert line and "No module named 'not_on_the_path'" in line and "folder of its file in PYTHONPATH" in line
    assert not [record for record in caplog.records if record.name.startswith("hydra")]


def test_processes_of_torchrun_do_not_prepare_data_together(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="Plain has no attribute shape, which several processes need"):
        shape_of_examples(Plain())


def test_a_process_of_lightning_does_not_prepare_data_again(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    data = Plain()
    shape_of_examples(data)
    assert data.calls == ["fit"]


def test_an_empty_loader_is_named():
    data = Plain()
    data.train_dataloader = list
    with pytest.raises(UserError, match="the train_dataloader of Plain has no batch"):
        shape_of_examples(data)


@pytest.mark.parametrize(
    ("data", "test", "monitor", "message"),
    [
        ({}, True, None, "the data are a dict, and must be a LightningDataModule"),
        (L.LightningDataModule(), True, None, "LightningDataModule has no train_dataloader"),
        (Plain(), True, "val/loss", "Plain has no val_dataloader, and the best checkpoint is chosen by val/loss"),
        (Plain(), True, None, "Plain has no test_dataloader: add this method, or use test=false"),
    ],
)
def test_a_missing_loader_is_named_before_training(data, test, monitor, message):
    with pytest.raises(UserError, match=message):
        check_module(data, test, monitor)
    check_module(Plain(), False, None)


def test_a_model_of_words_needs_text(folder):
    with pytest.raises(
        UserError, match=r"SkipGram trains on text, and MyImages is images or points: .* attribute corpus"
    ):
        train(configuration(folder, "model=skipgram", "data=mine", *SHORT))
