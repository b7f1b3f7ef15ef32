"""Tests of whole runs on a simulated device: no step waits for it, and nothing mixes it with the CPU."""

import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import lightning as L
import pytest
from helpers import FIGURE, QUIET, TINY, config, model_of, tiers
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from pretended_device import on_the_device, trainer_arguments, watched
from processes import together

import zoo
from zoo.callbacks import RunRecord
from zoo.commands.training import build, build_all
from zoo.hub.exporting import export
from zoo.training.tables import read_rows

STEPS = 16
FEW = ["trainer.max_epochs=2", "trainer.limit_train_batches=8", "trainer.limit_val_batches=1"]
FEW += ["trainer.limit_test_batches=1", "trainer.log_every_n_steps=8"]


def around_steps(trainer, context, found):
    """Run each training step inside ``context()``, and add what the context yields to ``found``.

    A step includes training_step, the gradient, the optimiser and the averages.
    """
    loop = trainer.fit_loop.epoch_loop
    call = loop.step

    def step(batch, batch_idx):
        with context() as seen:
            returned = call(batch, batch_idx)
        found.append(seen)
        return returned

    loop.step = step


def made(folder, device, name, *overrides):
    """Return Trainer, model and data of a small run on ``device``."""
    cfg = config(folder, *TINY[name], *QUIET, *FEW, *overrides)
    L.seed_everything(0, verbose=False)
    data, model = build(cfg.data), model_of(cfg)
    own = [*build_all(cfg.callbacks), RunRecord(cfg.run_dir, OmegaConf.to_container(cfg, resolve=True))]
    given = {"callbacks": own, "logger": build_all(cfg.logger)}
    return build(cfg.trainer, **given, **trainer_arguments(device), steps_per_execution=STEPS), model, data


def run(name, device):
    """Train, validate, sample, measure, test and export a recipe on the device."""
    with tempfile.TemporaryDirectory() as temporary, patch(FIGURE, lambda history: Figure(figsize=(1, 1))):
        folder = Path(temporary)
        fewer = ["callbacks.estimator_variance.every_n_steps=8", "callbacks.estimator_variance.draws=2"]
        fewer += [] if name == "skipgram" else ["callbacks.samples.n=2"]
        trainer, model, data = made(folder, device, name, *fewer)
        steps = []
        around_steps(trainer, watched, steps)
        trainer.fit(model, datamodule=data)
        waited = Counter(entry for step in steps for entry in step.waits + step.moves)
        # The last step of an execution logs directly. Lightning allocates the tensor of a logged value once per epoch.
        waited = {entry: n for entry, n in waited.items() if "apply_func" not in entry}
        assert len(steps) == STEPS and not waited, waited
        best = trainer.checkpoint_callback.best_model_path
        for tested in (model, type(model).load_from_checkpoint(best, weights_only=True).to(device)):
            trainer.test(tested, datamodule=data, verbose=False)
        assert read_rows(folder / "estimator_variance.csv"), "no estimator was measured"
        assert name == "skipgram" or list((folder / "samples").iterdir()), "no samples were drawn"
        with patch.object(zoo, "WEIGHTS", folder / "weights"):
            export(best, "trial")


def assert_runs(*arguments):
    (wrong,) = together(1, on_the_device, *arguments, timeout=600)
    assert not wrong, "\n".join(wrong.values())


@pytest.mark.parametrize("name", tiers(TINY, ["skipgram"]))
def test_a_model_runs_on_a_device_and_no_step_waits_for_it(name):
    assert_runs(run, [name], True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_model_runs_on_a_device_without_float64(name):
    assert_runs(run, [name], False)
