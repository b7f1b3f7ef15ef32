"""Tests of measurements that are made in parts while training continues: values, copies of models, processes."""

import math

import pytest
import torch
from helpers import TINY, checkpoint, run, tiers
from processes import together
from torch.testing import assert_close

import zoo.callbacks.estimator_variance as module
from zoo.callbacks import EstimatorVariance
from zoo.callbacks.measurement import frozen
from zoo.training.tables import read_rows

DRAWS = 3
# In the first five recipes, training also changes other state: baselines, a temperature, chains, a history of losses.
RECIPES = {
    "vae, learned baseline": ["vae", "model.latent=bernoulli", "model.estimator=score_function+nvil"],
    "vae, temperature": ["vae", "model.latent=bernoulli", "model.estimator=gumbel_softmax"]
    + ["model.temperature_end=0.1"],
    "rbm, persistent chains": ["rbm", "model.learning=pcd"],
    "ddpm, importance": ["ddpm", "model.timesteps=importance", "model.steps=3", "trainer.max_epochs=2"]
    + ["callbacks.estimator_variance.compare=[uniform,importance]"],
    "gan, two networks": ["gan", "trainer.max_epochs=2"],
    **{name: [name] for name in TINY},
}
FIRST = ("vae, learned baseline", "vae, temperature", "rbm, persistent chains")


class Twice(EstimatorVariance):
    """EstimatorVariance that makes each measurement in parts and, at its first step, also without breaks.

    Attributes:
        pairs: for each complete measurement, the values without breaks and the values of the parts.
        calls: number of steps that each measurement took.
    """

    pairs: list[tuple[dict, dict]]
    calls: list[int]

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.at_once, self.number = {}, 0
        type(self).pairs, type(self).calls = [], []

    def _plan(self, step):
        return 0, DRAWS

    def _spend(self, trainer, pl_module, step):
        if self._running is None:
            self._measure(trainer, pl_module, step)
            self.at_once, self.number = self.history.pop(), 0
        self.number += 1
        super()._spend(trainer, pl_module, step)
        if self.history and self._running is None:
            type(self).pairs.append((self.at_once, self.history[-1]))
            type(self).calls.append(self.number)


def measured_twice(folder, monkeypatch, name, *overrides):
    monkeypatch.setattr(module, "PAUSE", 0.0)  # one part at a time
    often = ["callbacks.estimator_variance.every_n_steps=auto", f"callbacks.estimator_variance.draws={DRAWS}"]
    often += ["callbacks.estimator_variance.batch_size=16"]
    target = ["callbacks.estimator_variance._target_=test_measurement_in_parts.Twice"]
    epochs = ["trainer.max_epochs=3", "trainer.limit_val_batches=1", "test=false", "logger=none"]
    run(folder, *TINY[name], *often, *target, *epochs, *overrides)
    assert Twice.pairs and max(Twice.calls) > 1
    return Twice.pairs


def differing(at_once, in_parts):
    """Return the names of values that are not bitwise equal. Two NaN are equal."""
    assert set(at_once) == set(in_parts)
    timed = {key for key in at_once if key.startswith("ms_per_draw")}
    both = {key: (at_once[key], in_parts[key]) for key in set(at_once) - timed}
    return [key for key, (a, b) in both.items() if a != b and not (math.isnan(a) and math.isnan(b))]


@pytest.mark.parametrize("recipe", tiers(RECIPES, FIRST))
def test_parts_give_the_values_of_a_measurement_at_once(recipe, tmp_path, monkeypatch):
    """Training continues between the parts. The values belong to the weights and the state at the first part."""
    name, *overrides = RECIPES[recipe]
    for at_once, in_parts in measured_twice(tmp_path, monkeypatch, name, *overrides):
        assert differing(at_once, in_parts) == []
        assert in_parts["estimator_draws"] == DRAWS


def test_several_fixed_batches_give_the_same_values_in_parts(tmp_path, monkeypatch):
    few = ["callbacks.estimator_variance.batches=2", "callbacks.estimator_variance.batch_size=20"]
    for at_once, in_parts in measured_twice(tmp_path, monkeypatch, "vae", *few):
        assert differing(at_once, in_parts) == []
        assert any(key.startswith("data_variance/") for key in in_parts)


def test_parts_do_not_change_training(tmp_path, monkeypatch):
    """The final weights, optimiser and random state are bitwise equal to those of a run without the callback."""
    measured_twice(tmp_path / "with", monkeypatch, "rbm", "model.learning=pcd")
    few = ["trainer.max_epochs=3", "trainer.limit_val_batches=1", "test=false", "logger=none"]
    run(tmp_path / "without", *TINY["rbm"], "model.learning=pcd", *few, "~callbacks.estimator_variance")
    one, other = checkpoint(tmp_path / "with"), checkpoint(tmp_path / "without")
    for key in ("state_dict", "optimizer_states", "random_state", "chains"):
        assert_close(one[key], other[key], rtol=0, atol=0)


def test_a_copy_of_a_model_has_its_state_and_leaves_the_model_alone(tmp_path, monkeypatch):
    """The copy has its own memory, the step at which it was made, and no gradients. The model keeps its Trainer."""
    seen = {}

    class Copying(EstimatorVariance):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                seen["copy"], seen["step"] = frozen(pl_module), trainer.global_step
                seen["weights"] = {k: v.clone() for k, v in pl_module.state_dict().items()}
            if batch_idx == 5:
                copied = seen["copy"]
                assert pl_module.trainer is trainer and trainer.global_step > seen["step"]
                assert copied.trainer.global_step == seen["step"] and copied.trainer.world_size == 1
                assert all(p.grad is None for p in copied.parameters())
                assert all(torch.equal(v, seen["weights"][k]) for k, v in copied.state_dict().items())
                assert not any(torch.equal(p, q) for p, q in zip(copied.parameters(), pl_module.parameters(), strict=1))
                seen["compared"] = True

    monkeypatch.setattr(module, "EstimatorVariance", Copying)
    monkeypatch.setattr("zoo.callbacks.EstimatorVariance", Copying)
    one = ["trainer.steps_per_execution=1", "trainer.max_epochs=1", "trainer.limit_val_batches=1"]
    run(tmp_path, *TINY["vae"], *one, "test=false", "logger=none")
    assert seen["compared"]


def trained_in_parts(folder, every):
    """Train on two processes, with measurements in parts if ``every`` is ``auto``."""
    module.PAUSE = 0.0
    EstimatorVariance._plan = lambda self, step: (0, DRAWS)
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=2", "test=false"]
    options = [f"callbacks.estimator_variance.{o}" for o in (f"every_n_steps={every}", f"draws={DRAWS}")]
    few = ["trainer.limit_val_batches=1", "logger=csv", "~callbacks.samples"]
    run(folder, *TINY["rbm"], "model.learning=pcd", *ddp, *options, *few)


@pytest.mark.slow
def test_two_processes_take_the_same_parts(tmp_path):
    """The first measurement of ``auto`` is at step 10. A measurement without breaks at step 10 has the same values."""
    for every in ("auto", "10"):
        together(2, trained_in_parts, tmp_path / every, every)
    rows = {every: read_rows(tmp_path / every / "estimator_variance.csv") for every in ("auto", "10")}
    first, at_once = ([r for r in rows[every] if r["step"] == "10"] for every in ("auto", "10"))
    assert first and len(first) == len(at_once)
    for a, b in zip(first, at_once, strict=True):
        assert {k: v for k, v in a.items() if k != "ms_per_draw"} == {k: v for k, v in b.items() if k != "ms_per_draw"}
