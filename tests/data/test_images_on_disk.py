"""Tests that images on disk, which worker processes read, give bitwise the batches and runs of images in memory."""

import gc
import multiprocessing
import os
import signal
from typing import ClassVar

import lightning as L
import numpy as np
import pytest
import torch
from helpers import assert_same, assert_same_run, checkpoint, logged, run, stop, tiers
from own_images import digit_folders
from PIL import Image
from processes import together

from zoo.datamodules import OwnImages
from zoo.datamodules.loaders import in_workers

WAYS = {
    "memory": {},
    "memory without kept pixels": {"cache": False},
    "disk": {"memory_limit": 0, "workers": 0},
    "disk by workers": {"memory_limit": 0, "workers": 2},
    "files by workers": {"memory_limit": 0, "workers": 2, "cache": False},
}
ON_DISK = [way for way in WAYS if way != "memory"]


@pytest.fixture(scope="module", autouse=True)
def own_data_root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_DATA", str(tmp_path_factory.mktemp("root")))
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return digit_folders(tmp_path_factory.mktemp("digits"), 300)


def data_of(folder, way, **options):
    data = OwnImages(str(folder), **{"batch_size": 32, "eval_batch_size": 20, **WAYS[way], **options})
    data.setup()
    return data


def epoch(loader, number=0):
    loader.set_epoch(number)
    return list(loader)


def assert_same_batches(found, expected):
    assert len(found) == len(expected) > 0
    for batch, other in zip(found, expected, strict=True):
        assert len(batch) == len(other)
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(batch, other, strict=True))


@pytest.mark.parametrize("way", ON_DISK)
def test_all_ways_give_the_same_batches(way, digits):
    expected, data = data_of(digits, "memory"), data_of(digits, way)
    in_memory = way.startswith("memory")
    assert isinstance(data.splits["train"].images, torch.Tensor) == in_memory
    train, loader = expected.train_dataloader(), data.train_dataloader()
    assert len(loader) == len(train) == 7
    for number in range(2):
        assert_same_batches(epoch(loader, number), epoch(train, number))
    assert not torch.equal(epoch(train, 0)[0][0], epoch(train, 1)[0][0])
    assert_same_batches(epoch(data.val_dataloader()), epoch(expected.val_dataloader()))
    assert_same_batches(epoch(data.test_dataloader()), epoch(expected.test_dataloader()))


def test_images_without_labels_give_batches_without_labels(tmp_path):
    for i in range(12):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    for way in WAYS:
        data = data_of(tmp_path, way, batch_size=3)
        assert {len(batch) for batch in data.train_dataloader()} == {1}
        assert all(x.shape == (3, 1, 4, 4) for (x,) in data.train_dataloader())


def test_a_seed_sets_the_order(digits):
    first, same, other = (epoch(data_of(digits, "disk by workers", seed=seed).train_dataloader()) for seed in (0, 0, 1))
    assert_same_batches(first, same)
    assert not torch.equal(first[0][0], other[0][0])


def test_an_epoch_that_was_broken_off_does_not_disturb_the_next(digits):
    loader, expected = (
        data_of(digits, "disk by workers").train_dataloader(),
        data_of(digits, "memory").train_dataloader(),
    )
    for _, _ in zip(range(2), loader, strict=False):
        pass  # workers have read ahead
    assert loader.state_dict() == {"position": 2}
    assert_same_batches(epoch(loader, 1), epoch(expected, 1))


def test_a_loader_resumes_within_an_epoch(digits):
    whole = epoch(data_of(digits, "memory").train_dataloader(), 3)
    loader = data_of(digits, "disk by workers").train_dataloader()
    loader.set_epoch(3)
    iterator = iter(loader)
    first = [next(iterator) for _ in range(3)]
    resumed = data_of(digits, "disk by workers").train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert_same_batches(first + epoch(resumed, 3), whole)
    assert_same_batches(epoch(resumed, 3), whole)  # the pass after it is complete again


@pytest.mark.parametrize("way", ["disk by workers", "files by workers"])
def test_processes_share_each_batch(way, digits):
    data = data_of(digits, way)
    whole = epoch(data.train_dataloader())
    parts = []
    for rank in range(2):
        loader = data.train_dataloader()
        loader.rank, loader.world_size = rank, 2
        parts.append(epoch(loader))
    for batch, *halves in zip(whole, *parts, strict=True):
        for i, tensor in enumerate(batch):
            assert torch.equal(tensor[0::2], halves[0][i]) and torch.equal(tensor[1::2], halves[1][i])


def test_reading_by_workers_draws_no_random_number(digits):
    loader = data_of(digits, "disk by workers").train_dataloader()
    before = torch.get_rng_state()
    epoch(loader), epoch(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_subset_reads_any_rows(digits):
    expected, found = (data_of(digits, way).splits["val"].images for way in ("memory", "files by workers"))
    stored = data_of(digits, "disk").splits["val"].images
    for rows in (
        slice(3, 9),
        slice(0, 0),
        torch.tensor([5, 0, 5]),
        torch.tensor([], dtype=torch.long),
        slice(-2, None),
    ):
        assert torch.equal(expected[rows], found[rows]) and torch.equal(expected[rows], stored[rows])
    assert found.shape == stored.shape == tuple(expected.shape)


# Runs.

VAE = ["model=vae", "model.hidden=[16]", "model.latent_dim=2", "data=images", "data.batch_size=32"]
VAE += ["trainer.max_epochs=2", "trainer.log_every_n_steps=2", "callbacks=none", "data.eval_batch_size=20"]
DISK = ["data.memory_limit=0", "data.workers=2"]


def options(digits, *more):
    return [*VAE, f"data.path={digits}", *more]


@pytest.fixture(scope="module")
def in_memory(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    return run(folder, *options(digits, "trainer.steps_per_execution=1")), folder


@pytest.mark.parametrize("k", [1, 16])
def test_a_run_from_disk_is_the_run_from_memory(k, digits, in_memory, tmp_path):
    metrics = run(
        tmp_path, *options(digits, *DISK, f"trainer.steps_per_execution={k}", "trainer.num_sanity_val_steps=1")
    )
    assert_same_run(metrics, tmp_path, ({k: v for k, v in in_memory[0].items() if "second" not in k}, in_memory[1]))
    assert logged(tmp_path) == logged(in_memory[1])


def test_a_run_from_disk_resumes_bit_for_bit(digits, in_memory, tmp_path):
    overrides = options(digits, *DISK, "trainer.steps_per_execution=4")
    with pytest.raises(SystemExit):
        run(tmp_path, *overrides, *stop(9, signal.SIGTERM))  # the third batch of the second epoch
    assert checkpoint(tmp_path, "interrupted")["global_step"] == 10
    run(tmp_path, *overrides, f"ckpt={tmp_path / 'checkpoints' / 'interrupted.ckpt'}")
    assert_same(*(checkpoint(folder)["state_dict"] for folder in (tmp_path, in_memory[1])))
    assert logged(tmp_path) == logged(in_memory[1])


class SignalWorkers(L.Callback):
    """Send SIGTERM to the processes that read images, as SLURM sends it to all processes of a job."""

    signalled: ClassVar[list[int]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == 2:
            self.signalled += [child.pid for child in multiprocessing.active_children()]
            for pid in self.signalled:
                os.kill(pid, signal.SIGTERM)


def test_a_signal_to_the_workers_leaves_the_run_its_images(digits, in_memory, tmp_path):
    overrides = options(digits, *DISK, "trainer.steps_per_execution=1", "test=false")
    run(tmp_path, *overrides, "+callbacks.signal._target_=test_images_on_disk.SignalWorkers")
    assert len(SignalWorkers.signalled) >= 2
    assert_same(*(checkpoint(folder)["state_dict"] for folder in (tmp_path, in_memory[1])))


class SignalsOfWorker:
    """Items that show how a worker treats signals, and which of them are blocked."""

    def __getitem__(self, key):
        return signal.getsignal(signal.SIGINT) == signal.SIG_IGN, signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_worker_begins_with_signals_blocked_and_then_ignores_ctrl_c(tmp_path, monkeypatch):
    """A signal in its first moments would run the handlers of the main process in the worker."""
    from torch.utils.data import _utils

    original = _utils.worker._worker_loop

    def begin(*args):
        (tmp_path / str(os.getpid())).write_text(
            str(len(signal.pthread_sigmask(signal.SIG_BLOCK, []))), encoding="utf-8"
        )
        original(*args)

    monkeypatch.setattr(_utils.worker, "_worker_loop", begin)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert list(in_workers(SignalsOfWorker(), range(2), 2)) == 2 * [(True, before)]
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == 2 * [str(len(before) + 2)]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


LIMITS = {
    "limit": ["trainer.limit_train_batches=3", "trainer.limit_val_batches=1"],
    "overfit": ["+trainer.overfit_batches=2", "~callbacks.best"],
    "sanity": ["trainer.num_sanity_val_steps=-1"],
}


@pytest.mark.parametrize("name", tiers(LIMITS, ("limit",)))
def test_arguments_of_the_trainer_choose_the_same_batches_from_disk(name, digits, tmp_path):
    before = multiprocessing.active_children()
    for part, more in (("memory", []), ("disk", DISK)):
        run(tmp_path / part, *options(digits, *more, *LIMITS[name], "test=false"))
    gc.collect()
    assert multiprocessing.active_children() == before
    assert_same(*(checkpoint(tmp_path / part)["state_dict"] for part in ("memory", "disk")))
    assert logged(tmp_path / "memory") == logged(tmp_path / "disk")


class Seen(L.Callback):
    """Keep every training batch as images of bytes."""

    batches: ClassVar[list[torch.Tensor]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((batch[0] * 255).round().byte())


def batches_of_run(folder, *overrides):
    multiprocessing.current_process()._config["daemon"] = False  # processes of tests may start no others by default
    Seen.batches.clear()
    run(folder, *overrides, "+callbacks.seen._target_=test_images_on_disk.Seen")
    return [batch.numpy() for batch in Seen.batches]  # tensors are lost when their process ends


@pytest.mark.slow
def test_two_processes_see_the_batches_of_one(digits, tmp_path):
    overrides = options(digits, *DISK, "test=false", "trainer=ddp", "trainer.accelerator=cpu")
    (one,) = together(1, batches_of_run, tmp_path / "one", *overrides, "trainer.devices=1")
    two = together(2, batches_of_run, tmp_path / "two", *overrides, "trainer.devices=2")
    assert len(one) == len(two[0]) == len(two[1]) == 14
    for batch, first, second in zip(one, *two, strict=True):
        assert np.array_equal(batch[0::2], first) and np.array_equal(batch[1::2], second)
