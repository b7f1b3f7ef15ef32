"""Tests of what TimeEstimate prints, and when it prints. The tests use a simulated clock."""

import math
import re
from types import SimpleNamespace

import pytest
from helpers import TINY, run
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, Timer

import zoo.callbacks.time_estimate as module
from zoo.callbacks.time_estimate import TimeEstimate, batches_left, validations_left


class Clock:
    """Replacement for the time module, with the one function that TimeEstimate calls. Tests set ``now``, in seconds."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


CLOCK = Clock()


class Pass(Callback):
    """Callback that moves the simulated clock forward.

    Args:
        batch: seconds of a training batch.
        validation: seconds of a validation batch of all 180 images. Shorter batches take less time.
        slower: seconds of a training batch from batch ``slower_from`` on, or None.
        slower_from: number of the first slower batch.
        drawing: seconds at the end of each validation.
    """

    def __init__(self, batch=1.0, validation=0.0, slower=None, slower_from=0, drawing=0.0):
        self.batch, self.validation, self.slower, self.slower_from = batch, validation, slower, slower_from
        self.drawing = drawing

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        late = self.slower is not None and trainer.fit_loop.total_batch_idx >= self.slower_from
        CLOCK.now += self.slower if late else self.batch

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        CLOCK.now += self.validation * len(batch[0]) / 180

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            CLOCK.now += self.drawing


@pytest.fixture
def said(monkeypatch, caplog, tmp_path):
    """Return a function that trains a small VAE and returns the printed estimates. An epoch has 11 batches."""
    monkeypatch.setattr(module, "time", CLOCK)
    CLOCK.now = 1e9

    def estimate(*overrides, name="vae", **passing):
        passed = [f"+callbacks.z_pass.{k}={v}" for k, v in passing.items()]
        passed.append("+callbacks.z_pass._target_=test_time_estimate.Pass")
        few = ["callbacks.time_estimate.after=10", "test=false", "~callbacks.estimator_variance", "logger=none"]
        few.append("trainer.steps_per_execution=1")
        with caplog.at_level("INFO", logger=module.__name__):
            run(tmp_path, *TINY[name], *few, *passed, *overrides)
        return [r.getMessage() for r in caplog.records if r.name == module.__name__]

    return estimate


def test_training_is_counted_to_the_end(said):
    """After 10 of 44 batches of one second, 34 seconds remain."""
    (line,) = said("trainer.max_epochs=4")
    assert line.startswith("About 34 seconds to go: 4 epochs of 1,408 images (digits), 128 per second")


def test_batches_of_an_execution_are_counted_one_by_one(said):
    """The second execution ends after 11 of 44 batches of one second. The rate leaves out the first one."""
    (line,) = said("trainer.max_epochs=4", "trainer.steps_per_execution=6")
    assert line.startswith("About 33 seconds to go: 3 epochs of 1,408 images (digits), 128 per second")


def test_validation_and_test_are_counted_from_the_sanity_check(said):
    """The run has four validations and a test. Each has one batch, which takes 20 seconds."""
    (line,) = said("trainer.max_epochs=4", "trainer.num_sanity_val_steps=1", "test=true", validation=20)
    assert line.startswith("About 2 minutes to go") and "validation 80 seconds, test 20 seconds" in line


def test_what_turns_out_to_take_long_is_said_again(said):
    """Each of four validations ends with 100 seconds of drawing. The first estimate cannot include this time."""
    first, second = said("trainer.max_epochs=4", drawing=100)
    assert first.startswith("About 34 seconds")
    assert second.startswith("About 6 minutes to go (new estimate): ") and "validation 5 minutes" in second


def test_a_machine_that_gets_slower_is_said_again_and_one_that_wavers_is_not(said):
    lines = said("trainer.max_epochs=12", slower=3, slower_from=40)
    assert lines[0].startswith("About 2 minutes") and 2 <= len(lines) <= 4
    assert re.match(r"About \d+ (minutes|seconds) to go \(new estimate\)", lines[-1])


def test_an_estimate_that_is_off_by_less_than_half_stands(said):
    assert len(said("trainer.max_epochs=12", slower=1.1, slower_from=60)) == 1


def test_annealed_importance_sampling_is_counted(monkeypatch):
    """The sanity check takes 2 seconds for 10 temperatures. A validation has 1,000 temperatures, the test 14,500."""
    monkeypatch.setattr(module, "time", CLOCK)
    from zoo.rbm import RBM

    callback, model = TimeEstimate(test=True), RBM(num_hidden=20)
    trainer = SimpleNamespace(sanity_checking=True, num_val_batches=[1], datamodule=None, num_training_batches=10)
    trainer.limit_val_batches = trainer.limit_test_batches = 1.0
    trainer.current_epoch, trainer.check_val_every_n_epoch, trainer.val_check_batch = 0, 1, 10
    trainer.fit_loop = loop(ready=0)
    callback.on_validation_start(trainer, model)
    CLOCK.now += 2
    callback.on_validation_batch_start(trainer, model, None, 0)
    callback.on_validation_batch_end(trainer, model, None, None, 0)
    assert callback._parts(trainer, model, left=20) == (400.0, 2900.0)
    trainer.limit_test_batches = 3  # a partial test uses the temperatures of validation
    assert callback._parts(trainer, model, left=20) == (400.0, 200.0)
    trainer.limit_val_batches = trainer.limit_test_batches = 1  # a trial of one batch has 10 temperatures
    assert callback._parts(trainer, model, left=20) == (4.0, 2.0)


def loop(ready, total=0):
    progress = SimpleNamespace(current=SimpleNamespace(ready=ready))
    return SimpleNamespace(total_batch_idx=total - 1, epoch_loop=SimpleNamespace(batch_progress=progress))


def fit(**given):
    defaults = {"max_epochs": 10, "max_steps": -1, "num_training_batches": 100, "current_epoch": 2, "global_step": 250}
    defaults |= {"check_val_every_n_epoch": 1, "val_check_batch": 100, "num_val_batches": [5], "callbacks": []}
    return SimpleNamespace(**{**defaults, "fit_loop": loop(50, 250), **given})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 750),
        ({"max_steps": 300}, 50),
        ({"max_steps": 600, "global_step": 500}, 50),  # two optimiser steps per batch
        ({"max_epochs": -1, "max_steps": 400}, 150),
        ({"max_epochs": -1}, math.inf),
        ({"max_epochs": -1, "max_steps": 200}, 0),
    ],
)
def test_what_ends_a_run_first_counts(given, expected):
    assert batches_left(fit(**given)) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 8),
        ({"check_val_every_n_epoch": 5}, 2),
        ({"val_check_batch": 25}, 30),
        ({"num_val_batches": [0]}, 0),
        ({"max_epochs": -1}, math.inf),
    ],
)
def test_validations_are_counted(given, expected):
    trainer = fit(**given)
    assert validations_left(trainer, batches_left(trainer)) == expected


def test_runs_without_an_end_with_a_timer_and_with_early_stopping_say_so():
    callback, words = TimeEstimate(), {"validation": 0.0, "test": 0.0, "rate": 50.0}
    callback._rows = 10.0
    data = SimpleNamespace(datamodule=None)
    endless = fit(max_epochs=-1, **vars(data))
    assert callback._words(endless, math.inf, math.inf, **words) == (
        "This run has no end: 50 images per second. Ctrl-C saves a checkpoint and stops it"
    )
    stopping = fit(callbacks=[EarlyStopping("val/loss")], **vars(data))
    assert callback._words(stopping, 1.0, 750, **words).startswith("At most 1 second to go: 8 epochs of 1,000 images")


def test_a_timer_bounds_the_estimate(caplog):
    timer = Timer(duration={"seconds": 90})
    timer.start_time = lambda stage=None: 0.0
    timer.time_remaining = lambda stage=None: 60.0
    callback = TimeEstimate(after=1)
    callback._marks.append((0.0, 0))
    callback._trained, callback._seen = 100.0, 10
    trainer = fit(callbacks=[timer], datamodule=None)
    from zoo.vae import VAE

    with caplog.at_level("INFO", logger=module.__name__):
        callback._look(trainer, VAE(latent_dim=2, hidden=[4]), now=0.0)
    assert caplog.records[0].getMessage().startswith("About 60 seconds to go")


def test_a_resumed_run_counts_what_is_left(said, tmp_path, caplog):
    said("trainer.max_epochs=2")
    caplog.clear()
    (line,) = said("trainer.max_epochs=5", f"ckpt={tmp_path}/checkpoints/last.ckpt")
    assert line.startswith("About 23 seconds to go: 3 epochs")
