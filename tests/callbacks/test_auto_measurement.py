"""Tests of EstimatorVariance with every_n_steps=auto: times of measurements, numbers of draws, and Ctrl-C."""

import signal

import pytest
import torch
from helpers import TINY, run
from lightning.pytorch import Callback

import zoo.callbacks.estimator_variance as module
from zoo.callbacks import EstimatorVariance
from zoo.estimators import GradientEstimator

SHARE = 0.05


class Clock:
    """Replacement for the time module. Tests set ``now``, in seconds."""

    def __init__(self):
        self.now = 1e6

    def monotonic(self):
        return self.now


class Loop:
    total_batch_idx = -1


class Trainer:
    """Stand-in for a Trainer of one process, with the attributes that the callback uses."""

    loggers = callbacks = ()
    is_global_zero, progress_bar_callback, world_size, global_rank = True, None, 1, 0

    class strategy:
        root_device = torch.device("cpu")
        broadcast = staticmethod(lambda value: value)
        reduce = staticmethod(lambda value, reduce_op: value)
        reduce_boolean_decision = staticmethod(lambda decision, all: decision)

    def __init__(self):
        self.fit_loop = Loop()


class Model:
    """Model with two estimators. Each draw moves the clock forward by ``seconds``."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def gradient_estimators(self):
        def noise(batch, generator):
            self.clock.now += self.seconds
            return {"eps": torch.randn(3, generator=generator)}

        surrogate = lambda params, batch, noise: (params["theta"] * noise["eps"]).sum()  # noqa: E731
        return {
            name: GradientEstimator(name, {"theta": torch.zeros(3)}, noise, surrogate, batched=False) for name in "ab"
        }


def trained(monkeypatch, *, steps, per_step, per_draw, callback=None, begin=0):
    """Return the callback after ``steps`` steps, and for each step the measuring time divided by the training time."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    callback = callback or EstimatorVariance("x")
    callback.probes = [None]
    trainer, model, shares = Trainer(), Model(clock, per_draw), []
    callback._started, callback._first_step = clock.now, begin
    callback._next = max(callback._next, begin)
    for step in range(begin, begin + steps):
        trainer.fit_loop.total_batch_idx = step
        callback.on_train_batch_start(trainer, model, None, 0)
        trained = callback._trained_before + clock.now - callback._started - callback._seconds
        shares.append(callback._seconds / max(trained, 1e-9))
        clock.now += per_step
    return callback, shares


@pytest.mark.parametrize("per_step", [0.001, 0.1, 3.0])
@pytest.mark.parametrize("relative", [0.2, 1.0])
def test_measuring_never_takes_more_than_a_twentieth_of_the_time(per_step, relative, monkeypatch):
    """The callback cannot know the cost of its first measurement. It assumes that a draw takes as long as a step."""
    callback, shares = trained(monkeypatch, steps=3000, per_step=per_step, per_draw=relative * per_step)
    assert max(shares) <= SHARE + 1e-9
    assert shares[-1] > 0.6 * SHARE
    assert callback.history[0]["step"] > 0


def test_an_unexpectedly_slow_first_measurement_delays_the_second(monkeypatch):
    callback, shares = trained(monkeypatch, steps=6000, per_step=0.1, per_draw=2.0)
    first, second = (row["step"] for row in callback.history[:2])
    # Two measurements have 2 draws of two estimators each. A draw takes 2 s, so both measurements take 16 s.
    assert shares[first] > SHARE and second * 0.1 * SHARE >= 16.0
    assert max(shares[second:]) <= SHARE + 1e-9


def test_a_minute_of_a_diffusion_has_several_points(monkeypatch):
    """The run has 600 steps of 0.1 s. A draw of each of the two estimators takes 0.1 s."""
    callback, _ = trained(monkeypatch, steps=600, per_step=0.1, per_draw=0.1)
    assert len(callback.history) >= 4
    assert callback.history[0]["step"] <= 100


def test_draws_double_after_every_fourth_measurement_up_to_those_asked_for(monkeypatch):
    callback, _ = trained(monkeypatch, steps=400, per_step=1.0, per_draw=0.05)
    draws = [row["estimator_draws"] for row in callback.history]
    assert draws[:14] == [2] * 4 + [4] * 4 + [8] * 4 + [16] * 2
    assert set(draws[12:]) == {16}
    few, _ = trained(monkeypatch, steps=400, per_step=1.0, per_draw=0.05, callback=EstimatorVariance("x", draws=3))
    assert {row["estimator_draws"] for row in few.history} == {2, 3}


def test_a_resumed_run_keeps_its_time_budget(monkeypatch):
    first, _ = trained(monkeypatch, steps=500, per_step=0.1, per_draw=0.1)
    resumed = EstimatorVariance("x")
    resumed.load_state_dict(first.state_dict())
    resumed, shares = trained(monkeypatch, steps=500, per_step=0.1, per_draw=0.1, callback=resumed, begin=500)
    whole, _ = trained(monkeypatch, steps=1000, per_step=0.1, per_draw=0.1)
    assert max(shares) <= SHARE + 1e-9
    assert abs(len(resumed.history) - len(whole.history)) <= 1


def test_what_a_tuner_takes_and_puts_back_holds_no_time_of_training(tmp_path):
    """A tuner saves and restores the state before training. Until training begins, ``trained`` does not grow."""
    callback = EstimatorVariance(tmp_path)
    assert callback.state_dict()["trained"] == 0
    callback.load_state_dict({**callback.state_dict(), "trained": 7.0})
    assert callback.state_dict()["trained"] == 7


def test_a_run_without_a_measurement_says_how_to_have_one(tmp_path, caplog):
    with caplog.at_level("INFO", logger="zoo.callbacks.estimator_variance"):
        run(tmp_path, *TINY["vae"], "trainer.max_epochs=1", "trainer.limit_train_batches=3", "test=false")
    assert "callbacks.estimator_variance.every_n_steps=10" in caplog.text
    assert not (tmp_path / "estimator_variance.png").exists()


class InterruptInDraw(Callback):
    """Callback that sends SIGINT at the second draw of a measurement and counts draws."""

    draws = 0

    def on_fit_start(self, trainer, pl_module):
        found = pl_module.gradient_estimators

        def noticed(noise):
            def draw(*args, **kwargs):
                InterruptInDraw.draws += 1
                if InterruptInDraw.draws == 2:
                    signal.raise_signal(signal.SIGINT)
                return noise(*args, **kwargs)

            return draw

        from dataclasses import replace

        pl_module.gradient_estimators = lambda: {
            name: replace(e, noise=noticed(e.noise), batched=False) for name, e in found().items()
        }


def test_ctrl_c_ends_a_measurement_after_the_draw_and_leaves_no_row(tmp_path):
    InterruptInDraw.draws = 0
    every = ["callbacks.estimator_variance.every_n_steps=1", "callbacks.estimator_variance.draws=50"]
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *TINY["vae"], *every, "+callbacks.int._target_=test_auto_measurement.InterruptInDraw")
    assert stopped.value.code == 130
    assert InterruptInDraw.draws == 2
    assert (tmp_path / "checkpoints" / "interrupted.ckpt").is_file()
    assert not (tmp_path / "estimator_variance.csv").exists()
