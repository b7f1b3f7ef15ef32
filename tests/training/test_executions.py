"""Tests that training with K batches in one execution is bitwise equal to training with one, and ends where it must."""

import signal
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from helpers import CONFIGS, assert_same, assert_same_run, logged, run, tiers
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from short_runs import EXPERIMENTS, One, fitted, of, runs

from zoo.callbacks import EMA, FiniteLoss
from zoo.callbacks.finite_loss import Pending
from zoo.checks.errors import UserError
from zoo.training.executions import Executions
from zoo.training.trainer import make_trainer

FIRST_TIER = ("vae-annealed", "rbm-schedules", "experiment=wgan_ring")


def test_every_experiment_is_compared():
    found = {path.stem for path in (Path(CONFIGS) / "experiment").glob("*.yaml")}
    assert found - {"classifier", "classifier_fashion"} == set(EXPERIMENTS)  # classifiers are no generative models


@pytest.mark.parametrize("name", tiers(sorted(runs()), FIRST_TIER))
def test_sixteen_batches_in_one_execution_train_as_one_at_a_time(name, tmp_path):
    """The weights, averages, optimisers, chains, baselines, random state and all logged rows are bitwise equal."""
    found = {k: run(tmp_path / k, *of(name), f"trainer.steps_per_execution={k}") for k in ("1", "16")}
    expected = {k: v for k, v in found["1"].items() if "second" not in k}
    assert_same_run(found["16"], tmp_path / "16", (expected, tmp_path / "1"))
    assert logged(tmp_path / "16") == logged(tmp_path / "1")


# The loop, with a module of one weight.


class Noted(L.Callback):
    """Callback without ``batches_until_due``, which records the state of the run in every hook."""

    def __init__(self, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(("start", batch_idx, trainer.global_step))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        shown = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.seen.append(("end", batch_idx, trainer.global_step, float(outputs["loss"]), shown))
        if trainer.fit_loop.total_batch_idx == self.stop_at:
            trainer.should_stop = True

    def on_validation_start(self, trainer, pl_module):
        self.seen.append(("validation", trainer.fit_loop.total_batch_idx, float(pl_module.weight)))


class Spoiled(One):
    """A module whose loss is infinite in one batch. Its weight stays finite."""

    bad = 5

    def training_step(self, batch, batch_idx):
        infinite = torch.tensor(torch.inf if self.trainer.fit_loop.total_batch_idx == self.bad else 0.0)
        return {"loss": self.weight.square(), "other": infinite}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_epochs": 1, "max_steps": 9},
        {"val_check_interval": 4},
        {"val_check_interval": 6, "check_val_every_n_epoch": None},
        {"val_check_interval": 0.5},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.01},
        {"limit_train_batches": 7},
        {"log_every_n_steps": 1},
        {"precision": "64-true"},
        {"fast_dev_run": True},
    ],
    ids=str,
)
def test_no_option_of_the_trainer_makes_executions_differ(options, tmp_path):
    found = {}
    for k in (1, 16):
        noted = Noted()
        rows, state, _ = fitted(tmp_path / str(k), k, callbacks=[noted, LearningRateMonitor()], **options)
        found[k] = rows, noted.seen, {key: state.get(key) for key in COMPARED_STATE}
    assert found[16][:2] == found[1][:2]
    assert_same(found[16][2], found[1][2])
    assert found[1][1]


COMPARED_STATE = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "random", "global_step", "epoch")


@pytest.mark.parametrize("what", ["skip", "plateau", "should_stop", "checkpoint every 3 steps"])
def test_what_a_module_or_a_callback_asks_for_ends_an_execution(what, tmp_path):
    found = {}
    for k in (1, 16):
        module = One(skip_at=5 if what == "skip" else None, plateau=what == "plateau")
        callbacks = [Noted(stop_at=8 if what == "should_stop" else None)]
        if what.startswith("checkpoint"):
            folder = tmp_path / str(k) / "steps"
            callbacks.append(ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1))
        rows, state, _ = fitted(tmp_path / str(k), k, module=module, callbacks=callbacks)
        saved = {p.name: torch.load(p, weights_only=True) for p in sorted((tmp_path / str(k)).rglob("step*/*.ckpt"))}
        kept = {name: {key: c[key] for key in ("state_dict", "loops", "global_step")} for name, c in saved.items()}
        found[k] = rows, callbacks[0].seen, {key: state.get(key) for key in COMPARED_STATE}, kept
    assert found[16][:2] == found[1][:2]
    assert_same(found[16][2:], found[1][2:])
    assert not what.startswith("checkpoint") or len(found[1][3]) == 8


def test_hooks_of_a_callback_that_names_its_cadence_run_when_they_are_due_only(tmp_path):
    class EveryFifth(L.Callback):
        seen = ()

        def batches_until_due(self, trainer):
            return 5 - (trainer.fit_loop.total_batch_idx + 1) % 5

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen = (*self.seen, trainer.fit_loop.total_batch_idx)

    callback = EveryFifth()
    fitted(tmp_path, 100, callbacks=[callback], log_every_n_steps=0, max_epochs=1, batches=23)
    assert callback.seen == (4, 9, 14, 19, 22)  # 22 is the last batch of the epoch


@pytest.mark.parametrize(("accumulated", "updates"), [(1, 26), (3, 10)])
def test_an_average_of_weights_is_the_same_in_both_loops(accumulated, updates, tmp_path):
    averages = []
    for k in (1, 16):
        ema = EMA(0.9)
        fitted(tmp_path / str(k), k, callbacks=[ema], accumulate_grad_batches=accumulated)
        averages.append((ema._average_model.module.weight.item(), int(ema._average_model.n_averaged)))
    assert averages[0] == averages[1] and averages[0][1] == updates
    assert averages[0][0] != 0


@pytest.mark.parametrize("k", [1, 4, 16])
def test_a_value_that_was_infinite_within_an_execution_is_named_with_its_step(k, tmp_path):
    with pytest.raises(UserError, match=r"at step 5 \(epoch 0\) other = inf \(loss = 0\)"):
        fitted(tmp_path, k, module=Spoiled(), callbacks=[FiniteLoss(tmp_path)])


@pytest.mark.parametrize("k", [1, 16])
def test_the_first_of_several_infinite_values_is_named(k, tmp_path):
    class Often(One):
        def training_step(self, batch, batch_idx):
            n = self.trainer.fit_loop.total_batch_idx
            infinite = torch.tensor(torch.inf if n >= 3 else 0.0)
            return {"loss": self.weight.square(), "odd" if n % 2 else "even": infinite}

    with pytest.raises(UserError, match=r"at step 3 \(epoch 0\) odd = inf"):
        fitted(tmp_path, k, module=Often(), callbacks=[FiniteLoss(tmp_path)], log_every_n_steps=0)


@pytest.mark.parametrize(("hook", "arguments"), [("on_save_checkpoint", [{}]), ("on_train_epoch_end", [])])
def test_values_that_are_still_on_their_way_from_a_gpu_are_looked_at(hook, arguments, tmp_path):
    callback, rows = FiniteLoss(tmp_path), torch.tensor([[0.0, 1.0], [1.0, torch.inf]])
    callback._pending = Pending(7, 2, [("loss",)], lambda: [rows, torch.tensor([2])])
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(total_batch_idx=-1), current_epoch=2)
    with pytest.raises(UserError, match=r"at step 8 \(epoch 2\) loss = inf"):
        getattr(callback, hook)(trainer, None, *arguments)


def test_losses_of_an_epoch_that_is_skipped_in_the_middle_of_an_execution_are_looked_at(tmp_path):
    """The rows of such steps do not stay until the next epoch, where they would exceed the largest number of rows."""
    options = {"log_every_n_steps": 0, "max_epochs": 3, "val_check_interval": 13}
    fitted(tmp_path / "finite", 6, module=One(skip_at=5), callbacks=[FiniteLoss(tmp_path)], **options)
    module = Spoiled(skip_at=5)
    module.bad = 3
    with pytest.raises(UserError, match=r"at step 3 \(epoch 0\) other = inf"):
        fitted(tmp_path / "infinite", 6, module=module, callbacks=[FiniteLoss(tmp_path)], **options)


def test_a_step_that_returns_terms_without_a_loss_is_an_error_as_in_lightning(tmp_path):
    class NoLoss(One):
        def training_step(self, batch, batch_idx):
            return {"other": self.weight.square()}

    for k in (1, 16):
        with pytest.raises(MisconfigurationException, match="'loss' key"):
            fitted(tmp_path / str(k), k, module=NoLoss())


class Hooked(One):
    """A module that changes batches, steps of schedules, or how often schedules step."""

    def __init__(self, what):
        super().__init__()
        if what == "batches":
            self.on_after_batch_transfer = lambda batch, dataloader_idx: [batch[0] + 1]
        if what == "steps of schedules":
            self.lr_scheduler_step = lambda scheduler, metric: [scheduler.step(), scheduler.step()]
        self.frequency = 4 if what == "frequency" else 1

    def configure_optimizers(self):
        found = super().configure_optimizers()
        return found | {"lr_scheduler": found["lr_scheduler"] | {"frequency": self.frequency}}


@pytest.mark.parametrize("what", ["batches", "steps of schedules", "frequency"])
def test_hooks_of_a_module_act_at_every_batch_of_an_execution(what, tmp_path):
    found = []
    for k in (1, 16):
        rows, state, _ = fitted(tmp_path / str(k), k, module=Hooked(what))
        found.append((rows, state["state_dict"], state["lr_schedulers"]))
    assert found[1][0] == found[0][0]
    assert_same(found[1][1:], found[0][1:])


def test_batches_go_through_the_hooks_of_a_data_module(tmp_path):
    class Data(L.LightningDataModule):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch

    _, _, trainer = fitted(tmp_path, 16)
    loop, found = trainer.fit_loop.epoch_loop, []
    for data in (None, L.LightningDataModule(), Data()):
        trainer.datamodule = data
        loop._prepare()
        found.append(loop._transfers)
    assert found == [False, False, True]


def test_a_signal_ends_an_execution_with_its_batch(tmp_path):
    class Signalled(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.fit_loop.total_batch_idx == 3:
                signal.raise_signal(signal.SIGTERM)

    from zoo.callbacks import ExactResume

    with pytest.raises(SystemExit):
        fitted(tmp_path, 100, callbacks=[Signalled(), ExactResume(tmp_path)])
    saved = torch.load(tmp_path / "checkpoints" / "interrupted.ckpt", weights_only=True)
    assert saved["global_step"] == 4


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_changes_the_next_execution_only_in_a_run_of_one_process(processes, tmp_path, monkeypatch):
    """A signal between two executions may reach one of several processes. Their executions stay equally long."""
    numbers = []

    class Signalled(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            loop = trainer.fit_loop.epoch_loop
            loop.end_early()
            with monkeypatch.context() as patched:
                patched.setattr(L.Trainer, "world_size", processes)
                numbers.append(loop._number_of_batches(trainer.fit_loop._data_fetcher, []))

    fitted(tmp_path, 4, callbacks=[Signalled()], max_epochs=1)
    assert numbers == [1 if processes == 1 else 4]


def test_executions_grow_with_auto_and_stay_below_the_largest(tmp_path, monkeypatch):
    import zoo.training.executions as module

    monkeypatch.setattr(module, "MOST", 40)
    _, _, trainer = fitted(tmp_path, "auto", batches=150, max_epochs=1, log_every_n_steps=0)
    loop = trainer.fit_loop.epoch_loop
    assert isinstance(loop, Executions) and 1 < loop.size <= loop.most == 40


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "many", True])
def test_a_wrong_number_of_batches_is_refused_at_the_start(wrong):
    with pytest.raises(UserError, match=r"steps_per_execution.*auto"):
        make_trainer(steps_per_execution=wrong, accelerator="cpu", logger=False)


class TwoSteps(One):
    """A module that takes two optimiser steps in each batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimiser = self.optimizers()
        for _ in range(2):
            optimiser.zero_grad()
            self.manual_backward((batch[0].mean() + 0.1 * torch.randn(()) - self.weight).square())
            optimiser.step()
        self.log("train", self.weight)


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.parametrize("options", [{"max_steps": 18}, {}], ids=str)
def test_batches_of_two_optimiser_steps_cross_nothing(options, tmp_path):
    """Checkpoints every six steps, and the largest number of steps, fall on the same batches."""
    found = {}
    for k in (1, 16):
        every = ModelCheckpoint(tmp_path / str(k) / "steps", every_n_train_steps=6, save_top_k=-1)
        rows, state, _ = fitted(tmp_path / str(k), k, module=TwoSteps(), callbacks=[every], **options)
        saved = {p.name: torch.load(p, weights_only=True) for p in sorted((tmp_path / str(k) / "steps").iterdir())}
        kept = {name: {key: c[key] for key in ("state_dict", "loops", "global_step")} for name, c in saved.items()}
        found[k] = rows, {key: state.get(key) for key in COMPARED_STATE}, kept
    assert found[16][0] == found[1][0]
    assert list(found[16][2]) == list(found[1][2])
    assert_same(found[16][1:], found[1][1:])
    assert len(found[1][2]) == (3 if options else 8)
