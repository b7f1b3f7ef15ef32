"""Tests of input checks: which inputs are allowed, and when a model reads the values of a tensor."""

import logging
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from small_models import MODELS, made
from torch.utils.data import DataLoader, TensorDataset

from zoo.checks.calls import called_by_the_model, from_outside, reads_values
from zoo.checks.errors import UserError
from zoo.checks.inputs import MOST_NUMBERS, batch_of_any_shape, count, takes, whole
from zoo.checks.pixels import check_one_hot
from zoo.datamodules.splits import Split


@pytest.mark.parametrize(("batches", "looked_at"), [(0, True), (5, False)])
def test_values_are_looked_at_in_the_first_batch_of_a_run_and_not_of_each_epoch(batches, looked_at, monkeypatch):
    """A model checks pixels only in the first batch of a run. Each check makes the CPU wait for the GPU."""
    model = made("vae")
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(total_batch_idx=batches), datamodule=None)
    monkeypatch.setattr(type(model), "trainer", trainer)
    batch = [torch.full((2, 1, 28, 28), 2.0)]
    model.on_train_batch_start(batch, 1)
    if not looked_at:
        model.on_train_batch_start(batch, 0)
        return
    with pytest.raises(UserError, match="pixels must be numbers from 0 to 1, got 2"):
        model.on_train_batch_start(batch, 0)


class Splits(L.LightningDataModule):
    """Twelve training images. The image with index ``wrong`` has the given grey value and label."""

    def __init__(self, wrong, grey, label):
        super().__init__()
        x, y = torch.zeros(12, 1, 28, 28), torch.arange(12) % 10
        x[wrong], y[wrong] = grey, label
        self.splits = {"train": Split(x, y)}

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.splits["train"].images, self.splits["train"].labels), 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "grey", "label", "message"),
    [
        ("cvae", 0.5, 10, "y must be labels, integers from 0 to 9, got 10"),
        ("ddpm-labels", 0.5, 10, "y must be labels, integers from 0 to 9, got 10"),
        ("gan-labels", 0.5, 10, "y must be labels, integers from 0 to 9, got 10"),
        ("vae", 2.0, 0, "pixels must be numbers from 0 to 1, got 2"),
    ],
)
def test_all_examples_of_splits_are_checked_before_the_first_step(name, grey, label, message):
    """The wrong example is in the last batch, which the check of the first batch does not find."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", **quiet)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with pytest.raises(UserError, match=message):
        trainer.fit(MODELS[name](), Splits(11, grey, label))
    assert trainer.global_step == 0


def test_the_label_of_none_is_for_noisy_images_alone():
    model = made("ddpm-labels")
    x, none, t = torch.zeros(1, 1, 28, 28), torch.tensor([model.hparams.num_classes]), torch.zeros(1, dtype=torch.long)
    assert model(x, t, none).shape == x.shape
    with pytest.raises(UserError, match="y must be labels, integers from 0 to"):
        model.log_likelihood(x, y=none)


def test_as_many_samples_as_fit_into_a_tensor_are_allowed():
    most = MOST_NUMBERS // 784
    assert count(made("vae"), "n", most, {}) == most
    with pytest.raises(UserError, match=f"n must be at most {most:,} per call"):
        count(made("vae"), "n", most + 1, {})


def test_a_call_within_a_call_leaves_the_outer_one_as_it_was():
    here, elsewhere = torch.empty(0), torch.empty(0, device="meta")
    with called_by_the_model("nowhere"):
        with called_by_the_model("cpu"):
            with called_by_the_model("everywhere"):
                assert reads_values(elsewhere) and not from_outside()
            assert reads_values(here) and not reads_values(elsewhere) and not from_outside()
        assert not reads_values(here) and not reads_values(elsewhere) and not from_outside()
    assert reads_values(elsewhere) and from_outside()


def test_one_hot_is_exactly_one():
    check_one_hot("x", torch.eye(3))
    for wrong in ([1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0]):
        with pytest.raises(UserError, match="x must be one-hot"):
            check_one_hot("x", torch.tensor([wrong]))


class Asked:
    """Stand-in for a model. Its methods return whether checks may read a tensor on the CPU and on another device."""

    def answer(self):
        return reads_values(torch.empty(0)), reads_values(torch.empty(0, device="meta"))

    @takes(batch=batch_of_any_shape)
    def training_step(self, batch):
        return self.answer()

    @takes(batch=batch_of_any_shape)
    def loss(self, batch):
        return self.answer()

    @takes(steps=whole)
    def sample(self, steps):
        return self.answer()


def test_a_training_step_reads_no_values_and_a_loss_reads_them_on_the_cpu():
    assert Asked().training_step(torch.zeros(1)) == (False, False)
    assert Asked().loss(torch.zeros(1)) == (True, False)
    assert Asked().sample(1) == (True, True)
