"""Tests of reading the training images: each image once, however many processes and passes there are."""

import itertools
import warnings

import lightning as L
import pytest
import torch
from processes import together
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from zoo.infogan import InfoGAN
from zoo.rbm import RBM
from zoo.training.loaders import encode_training_images
from zoo.training.trainer import make_trainer
from zoo.vade import VaDE

OFF = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|have no `val_dataloader`)")


def images(n, seed=0):
    return torch.rand(n, 1, 4, 5, generator=torch.Generator().manual_seed(seed))


class Module(L.LightningDataModule):
    """A data module of a stranger, whose loader knows nothing of processes."""

    def __init__(self, x):
        super().__init__()
        self.loader = DataLoader(TensorDataset(x), batch_size=5, shuffle=True)

    def train_dataloader(self):
        return self.loader


def start(world_size, form, n=40):
    """Train an RBM. Return the mean image and the sorted sums of the images of the probe."""
    torch.manual_seed(0)
    model, data = RBM(3, [1, 4, 5], learning="cd", lr=1e-12), Module(images(n))
    strategy = "ddp" if world_size > 1 else "auto"
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, devices=world_size, strategy=strategy, **OFF)
    given = {"datamodule": data} if form == "module" else {"train_dataloaders": data.loader}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # processes do not have the filters of pytest
        trainer.fit(model, **given)
    return model.mu.tolist(), model.probe.sum((1, 2, 3)).sort().values.tolist()


def check_start(found):
    x = images(40)
    mean, probe = map(torch.tensor, found)
    assert_close(mean, (x.flatten(1).sum(0) + 1) / 42)  # one black and one white image are added
    assert_close(probe, x.sum((1, 2, 3)).sort().values)


@pytest.mark.parametrize("form", ["module", "loader"])
def test_the_mean_image_counts_each_image_once(form):
    check_start(start(1, form))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["module", "loader"])
def test_two_processes_count_each_image_once(form):
    for found in together(2, start, 2, form):
        check_start(found)


class Stream(IterableDataset):
    """A stream of images without a length and, with ``n`` None, without an end."""

    def __init__(self, n=None):
        self.x, self.n = images(24), n

    def __iter__(self):
        return itertools.islice(itertools.cycle(self.x), self.n)


@pytest.mark.parametrize(("every", "expected"), [(1, 24), (2, 48)])
def test_an_endless_stream_is_read_as_far_as_the_run_trains(every, expected):
    """Three steps take 24 images, and 48 images with two batches for each step."""
    model = VaDE(3, 2, [8], pretrain_epochs=0, restarts=1, shape=[1, 4, 5])
    limits = {"max_steps": 3, "accumulate_grad_batches": every}
    trainer = L.Trainer(accelerator="cpu", limit_val_batches=0, **limits, **OFF)
    stream = Stream(n=400)  # a stream with an end, so that a failure is no hang
    trainer.fit(model, DataLoader(stream, 8))
    assert model.initialised
    assert len(encode_training_images(trainer, lambda x: x)) == expected


def test_images_are_encoded_in_their_order():
    x = images(20)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, **OFF)
    trainer.fit(RBM(3, [1, 4, 5], learning="cd"), DataLoader(TensorDataset(x), batch_size=6))
    assert torch.equal(encode_training_images(trainer, lambda x: x), x)


class CountBatches(L.Callback):
    def __init__(self):
        self.epochs = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.epochs.append(trainer.current_epoch)


@pytest.mark.slow
def test_validation_within_an_epoch_takes_no_batch_from_persistent_workers():
    """InfoGAN reads training images before validation. Each epoch still has its four batches."""
    torch.manual_seed(0)
    loader = DataLoader(images(16), batch_size=4, num_workers=1, persistent_workers=True)
    model, counted = InfoGAN(width=2, features=8, num_categories=3, shape=(1, 4, 5)), CountBatches()
    how = {"two_players": True, "num_sanity_val_steps": 0, "val_check_interval": 2}
    trainer = make_trainer(accelerator="cpu", max_epochs=2, callbacks=[counted], **how, **OFF)
    trainer.fit(model, loader, DataLoader(images(8, 1), batch_size=4))
    assert counted.epochs == [0] * 4 + [1] * 4
