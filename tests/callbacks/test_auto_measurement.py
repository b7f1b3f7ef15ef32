"""Tests of EstimatorVariance with every_n_steps=auto: times of measurements, numbers of draws, parts, and Ctrl-C."""

import signal
from itertools import pairwise

import pytest
import torch
from helpers import TINY, run
from lightning.pytorch import Callback

import zoo.callbacks.estimator_variance
import zoo.callbacks.measurement
import zoo.callbacks.measuring_budget
from zoo.callbacks import EstimatorVariance
from zoo.callbacks.measurement import Measurement
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

    class epoch_loop:
        _batches_that_stepped = 0

    class epoch_progress:
        class current:
            processed, ready = 0, 1


class Trainer:
    """Stand-in for a Trainer of one process, with the attributes that the callback uses."""

    loggers = callbacks = ()
    global_step = current_epoch = 0
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

    _trainer = None

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def __deepcopy__(self, memo):
        return Model(self.clock, self.seconds)

    def gradient_estimators(self):
        def noise(batch, generator):
            self.clock.now += self.seconds
            return {"eps": torch.randn(3, generator=generator)}

        surrogate = lambda params, batch, noise: (params["theta"] * noise["eps"]).sum()  # noqa: E731
        return {
            name: GradientEstimator(name, {"theta": torch.zeros(3)}, noise, surrogate, batched=False) for name in "ab"
        }


class Training:
    """Training of ``steps`` steps with a callback. Only training steps and draws move its clock forward.

    Attributes:
        shares: for each step, the time of measurements divided by the time of training so far.
        pauses: for each step, the seconds for which the callback stopped training.
        ended: for each measurement, the time at which it was recorded, seconds since training began.
    """

    def __init__(self, monkeypatch, *, steps, per_step, per_draw, callback=None, begin=0, kind=Model):
        clock = Clock()
        monkeypatch.setattr(zoo.callbacks.measuring_budget, "time", clock)
        for user in (zoo.callbacks.measuring_budget, zoo.callbacks.measurement):
            monkeypatch.setattr(user, "clock", clock.monotonic)
        self.callback = callback or EstimatorVariance("x")
        self.callback.probes = [None] * self.callback.batches
        trainer, model = Trainer(), kind(clock, per_draw)
        budget, began = self.callback._budget, clock.now
        self.callback.begin(model, begin)
        self.shares, self.pauses, self.ended = [], [], []
        for step in range(begin, begin + steps):
            trainer.fit_loop.total_batch_idx = step
            before = clock.now
            self.callback.on_train_batch_start(trainer, model, None, 0)
            self.pauses.append(clock.now - before)
            self.shares.append(budget.spent / max(budget.total() - budget.spent, 1e-9))
            self.ended += [clock.now - began] * (len(self.callback.history) - len(self.ended))
            clock.now += per_step
        self.trainer, self.model = trainer, model


@pytest.mark.parametrize("per_step", [0.001, 0.1, 3.0])
@pytest.mark.parametrize("relative", [0.2, 1.0])
def test_measuring_never_takes_more_than_a_twentieth_of_the_time(per_step, relative, monkeypatch):
    """Before its first draw, the callback assumes that a draw takes as long as a step."""
    run = Training(monkeypatch, steps=3000, per_step=per_step, per_draw=relative * per_step)
    assert max(run.shares) <= SHARE + 1e-9
    assert run.shares[-1] > 0.6 * SHARE
    assert run.callback.history[0]["step"] > 0


def test_an_unexpectedly_slow_draw_delays_the_next_one(monkeypatch):
    """A draw takes 20 times as long as a step. Only the first draw of each estimator exceeds the limit."""
    run = Training(monkeypatch, steps=6000, per_step=0.1, per_draw=2.0)
    first, second, third = [step for step, pause in enumerate(run.pauses) if pause][:3]
    assert run.shares[first] > SHARE and second * 0.1 * SHARE >= 2.0 and third * 0.1 * SHARE >= 6.0
    assert max(run.shares[third:]) <= SHARE + 1e-9
    assert max(run.pauses) == pytest.approx(2.0)


@pytest.mark.parametrize("per_draw", [0.001, 0.03, 0.1, 0.3])
@pytest.mark.parametrize("per_step", [0.001, 0.1, 0.5])
def test_a_minute_of_training_has_two_points_and_no_long_pause(per_step, per_draw, monkeypatch):
    """Measuring stops training for at most 0.25 s, or for one draw. Each of the two estimators has its own draws.

    3 s of the minute are for measuring. The second point has as many draws as 1.25 s allow.
    """
    run = Training(monkeypatch, steps=round(57 / per_step), per_step=per_step, per_draw=per_draw)
    rows = run.callback.history
    assert len(rows) >= 2 and run.ended[1] < 60
    assert max(run.pauses) <= max(0.25, per_draw) + 1e-6
    assert rows[0]["estimator_draws"] == 2
    assert rows[1]["estimator_draws"] == min(16, max(2, int(0.05 * 25 / (2 * per_draw) + 1e-6)))


def test_the_least_number_of_draws_doubles_after_every_fourth_measurement(monkeypatch):
    """1.25 seconds, which are 5 % of 25 seconds of training, allow two draws. The minimum therefore sets the number."""
    run = Training(monkeypatch, steps=4000, per_step=1.0, per_draw=0.3)
    draws = [row["estimator_draws"] for row in run.callback.history]
    assert draws[:14] == [2] * 4 + [4] * 4 + [8] * 4 + [16] * 2
    assert set(draws[12:]) == {16}
    few = EstimatorVariance("x", draws=3)
    Training(monkeypatch, steps=4000, per_step=1.0, per_draw=0.3, callback=few)
    assert {row["estimator_draws"] for row in few.history} == {2, 3}


def test_the_batches_until_the_callback_acts_are_those_until_its_next_pause(monkeypatch):
    run = Training(monkeypatch, steps=400, per_step=0.1, per_draw=0.1)
    paused = [step for step, pause in enumerate(run.pauses) if pause]
    assert len(paused) > 5
    asked = []

    class Asked(EstimatorVariance):
        def on_train_batch_start(self, trainer, *args):
            step = trainer.fit_loop.total_batch_idx
            trainer.fit_loop.total_batch_idx = step - 1  # the loop calls it before the batch begins
            asked.append(self.batches_until_due(trainer))
            trainer.fit_loop.total_batch_idx = step
            super().on_train_batch_start(trainer, *args)

    callback = Asked("x")
    run = Training(monkeypatch, steps=400, per_step=0.1, per_draw=0.1, callback=callback)
    acts = [step for step, pause in enumerate(run.pauses) if pause]
    assert acts == paused
    assert all(asked[step] == 1 for step in acts)
    assert min(asked) == 1 and all(a - 1 == b for a, b in pairwise(asked) if a > 1)
    regular = EstimatorVariance("x", every_n_steps=6)
    trainer = Trainer()
    for step in range(-1, 14):
        trainer.fit_loop.total_batch_idx = step
        due = next(n for n in range(1, 8) if (step + n) % 6 == 0)
        assert regular.batches_until_due(trainer) == due


def test_a_resumed_run_keeps_its_time_budget(monkeypatch):
    first = Training(monkeypatch, steps=500, per_step=0.1, per_draw=0.1).callback
    resumed = EstimatorVariance("x")
    resumed.load_state_dict(first.state_dict())
    second = Training(monkeypatch, steps=500, per_step=0.1, per_draw=0.1, callback=resumed, begin=500)
    whole = Training(monkeypatch, steps=1000, per_step=0.1, per_draw=0.1)
    assert max(second.shares) <= SHARE + 1e-9
    assert abs(len(resumed.history) - len(whole.callback.history)) <= 1


def test_a_run_that_ends_within_a_measurement_uses_the_draws_made_so_far(monkeypatch, tmp_path):
    """With fewer than two draws of an estimator, there is no row. A resumed run drops the draws of the first run.

    The first measurement is different, because the end of the run completes it.
    """
    rows = {}
    for steps in range(200, 800, 20):
        callback = EstimatorVariance(str(tmp_path))
        run = Training(monkeypatch, steps=steps, per_step=0.1, per_draw=0.2, callback=callback)
        before, running = len(callback.history), callback._running
        resumed = EstimatorVariance("x")
        resumed.load_state_dict(callback.state_dict())
        assert resumed._running is None
        if running is not None and before > 0:
            made = min(moments.n for moments in running._moments.values())
            run.trainer.is_global_zero = False  # draws no figure
            callback.on_train_end(run.trainer, run.model)
            assert len(callback.history) - before == (made >= 2)
            if made >= 2:
                assert callback.history[-1]["estimator_draws"] == made
                assert callback.history[-1]["variance/a/all"] > 0
            rows[made] = True
    assert 1 in rows and 2 in rows


@pytest.mark.parametrize("batches", [1, 3])
def test_a_run_that_is_too_short_for_its_first_measurement_completes_it_at_its_end(batches, monkeypatch):
    """Thirty steps allow no draw. The values are those of a measurement without breaks, at the weights of step 10."""
    callback = EstimatorVariance("x", batches=batches)
    run = Training(monkeypatch, steps=30, per_step=0.1, per_draw=0.3, callback=callback)
    assert run.callback.history == [] and max(run.pauses) == 0
    run.trainer.is_global_zero = False  # draws no figure
    callback.on_train_end(run.trainer, run.model)
    [row] = callback.history
    whole = Measurement(run.model.gradient_estimators(), [None] * batches, 2, most=16)
    while not whole.done:
        whole.advance()
        whole.end_batch()
    assert row == {"step": 10, **whole.values()} and row["estimator_draws"] == 2


def test_a_signal_in_the_last_draw_leaves_no_row(monkeypatch):
    run = Training(monkeypatch, steps=30, per_step=0.1, per_draw=0.3)
    running = run.callback._running
    monkeypatch.setattr(
        zoo.callbacks.estimator_variance, "interrupted", lambda trainer: running.done or running.batch_done
    )
    run.trainer.is_global_zero = False
    run.callback.on_train_end(run.trainer, run.model)
    assert run.callback.history == []


def test_the_end_of_a_run_logs_the_row_at_its_step_and_keeps_the_random_state(monkeypatch):
    run = Training(monkeypatch, steps=30, per_step=0.1, per_draw=0.3)
    logged, advance = [], run.callback._running.advance

    class Logger:
        log_metrics = staticmethod(lambda row, step: logged.append(step))

    run.trainer.loggers, run.trainer.is_global_zero = [Logger], False
    run.callback._running_at = (10, 9)
    monkeypatch.setattr(run.callback._running, "advance", lambda *a, **k: (torch.rand(1), advance(*a, **k)))
    before = torch.get_rng_state()
    run.callback.on_train_end(run.trainer, run.model)
    assert logged == [9] and torch.equal(before, torch.get_rng_state())


def test_a_restored_state_drops_a_running_measurement_and_begins_again_with_few_draws(monkeypatch):
    callback = Training(monkeypatch, steps=20, per_step=0.1, per_draw=0.3).callback
    assert callback._running is not None
    callback.load_state_dict({**callback.state_dict(), "per_draw": {"a": 0.001, "b": 0.001}})
    assert callback._running is None and callback._planned_draws() == 2


def test_a_run_that_resumes_before_its_first_measurement_begins_it_at_once(monkeypatch):
    first = Training(monkeypatch, steps=20, per_step=0.1, per_draw=0.3).callback
    assert first._running is not None and first._next > 20
    resumed = EstimatorVariance("x")
    resumed.load_state_dict(first.state_dict())
    Training(monkeypatch, steps=3, per_step=0.1, per_draw=0.3, callback=resumed, begin=20)
    assert resumed._running is not None and resumed._running_at[0] == 20


class Growing(Model):
    """Model with parameters that a copy does not share. The variance of its gradient is proportional to theta^2."""

    def __init__(self, clock, seconds, theta=1.0):
        super().__init__(clock, seconds)
        self.theta = torch.full((3,), theta)

    def __deepcopy__(self, memo):
        return Growing(self.clock, self.seconds, float(self.theta[0]))

    def gradient_estimators(self):
        surrogate = lambda params, batch, noise: (params["theta"].square() * noise["eps"]).sum()  # noqa: E731
        found = super().gradient_estimators()
        return {
            name: GradientEstimator(name, {"theta": self.theta}, e.noise, surrogate, batched=False)
            for name, e in found.items()
        }


def test_the_first_measurement_is_of_the_weights_of_its_step(monkeypatch):
    """The weights triple after the measurement has begun, which multiplies the variance of later weights by nine."""
    variances = []
    for factor in (1, 3):
        run = Training(monkeypatch, steps=30, per_step=0.1, per_draw=0.3, kind=Growing)
        run.model.theta.mul_(factor)
        run.trainer.is_global_zero = False
        run.callback.on_train_end(run.trainer, run.model)
        variances.append(run.callback.history[0]["variance/a/all"])
    assert variances[0] > 0 and variances[0] == variances[1]


def test_a_signal_at_the_end_of_a_short_run_drops_its_first_measurement(monkeypatch):
    run = Training(monkeypatch, steps=30, per_step=0.1, per_draw=0.3)
    assert run.callback._running is not None
    monkeypatch.setattr(zoo.callbacks.estimator_variance, "interrupted", lambda trainer: True)
    run.trainer.is_global_zero = False
    run.callback.on_train_end(run.trainer, run.model)
    assert run.callback.history == []


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
