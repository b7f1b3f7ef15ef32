"""Tests of whole runs on a simulated device: no step waits for it, and nothing mixes it with the CPU."""

import inspect
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import lightning as L
import pytest
from helpers import FIGURE, QUIET, TINY, config, tiers
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from pretended_device import OnDevice, on_the_device, operations, trainer_arguments, watched
from processes import together
from torchmetrics import Metric

import zoo
from train import build, build_all
from zoo.callbacks import RunRecord
from zoo.hub.exporting import export
from zoo.training.tables import read_rows
from zoo.training.trainer import make_trainer

STEPS = 16
FEW = ["trainer.max_epochs=2", "trainer.limit_train_batches=8", "trainer.limit_val_batches=1"]
FEW += ["trainer.limit_test_batches=1", "trainer.log_every_n_steps=8"]
# With this argument, the loop of the zoo runs several batches without Lightning's calls.
MANY = {"steps_per_execution": STEPS} if "steps_per_execution" in inspect.signature(make_trainer).parameters else {}


def around_steps(trainer, context, found):
    """Run each training step inside ``context()``, and add what the context yields to ``found``.

    A step goes from training_step to the optimiser and the averages.
    """
    loop = trainer.fit_loop.epoch_loop
    parts = [(loop, "step")] if hasattr(loop, "step") else []
    parts = parts or [(loop.automatic_optimization, "run"), (loop.manual_optimization, "run")]
    for owner, name in parts:
        setattr(owner, name, _inside(context, getattr(owner, name), found))


def _inside(context, call, found):
    def step(*args, **kwargs):
        with context() as seen:
            returned = call(*args, **kwargs)
        found.append(seen)
        return returned

    return step


def without_logging(module):
    """Replace ``log`` and ``log_dict`` of a module. Lightning keeps what they receive outside the step."""
    module.__dict__ |= dict.fromkeys(("log", "log_dict"), lambda *args, **kwargs: None)


def made(folder, device, name, *overrides, callbacks=True):
    """Return Trainer, model, data and configuration of a small run on ``device``."""
    cfg = config(folder, *TINY.get(name, [name]), *QUIET, *FEW, *overrides)
    L.seed_everything(0, verbose=False)
    data, model = build(cfg.data), build(cfg.model)
    own = [*build_all(cfg.callbacks), RunRecord(cfg.run_dir, OmegaConf.to_container(cfg, resolve=True))]
    given = {"callbacks": own if callbacks else [], "logger": build_all(cfg.logger) if callbacks else False}
    return build(cfg.trainer, **given, **trainer_arguments(device), **MANY), model, data, cfg


def run(name, device):
    """Train, validate, sample, measure, test and export a recipe on the device."""
    with tempfile.TemporaryDirectory() as temporary, patch(FIGURE, lambda history: Figure(figsize=(1, 1))):
        folder = Path(temporary)
        fewer = ["callbacks.estimator_variance.every_n_steps=8", "callbacks.estimator_variance.draws=2"]
        fewer += [] if name == "skipgram" else ["callbacks.samples.n=2"]
        trainer, model, data, _ = made(folder, device, name, *fewer)
        steps = []
        around_steps(trainer, watched, steps)
        trainer.fit(model, datamodule=data)
        waited = Counter(entry for step in steps for entry in step.waits + step.moves)
        if not MANY:  # Lightning then creates the sums of logged values inside the step
            waited = {entry: n for entry, n in waited.items() if "apply_func" not in entry}
        assert len(steps) == STEPS and not waited, waited
        best = trainer.checkpoint_callback.best_model_path
        for tested in (model, type(model).load_from_checkpoint(best, weights_only=True).to(device)):
            trainer.test(tested, datamodule=data, verbose=False)
        assert read_rows(folder / "estimator_variance.csv"), "no estimator was measured"
        assert name == "skipgram" or list((folder / "samples").iterdir()), "no samples were drawn"
        with patch.object(zoo, "WEIGHTS", folder / "weights"):
            export(best, "trial")


def kept(module, optimisers):
    """Return the addresses of all tensors that a module and its optimisers keep from step to step, by name."""
    found = {}
    for path, part in module.named_modules():
        if isinstance(part, Metric):  # evaluation alone uses it
            continue
        tensors = {**part.__dict__, **part._buffers, **part._parameters}
        found |= {f"{path}.{name}": t for name, t in tensors.items() if isinstance(t, OnDevice)}
    for i, state in enumerate(state for optimiser in optimisers for state in optimiser.state.values()):
        found |= {f"optimiser/{i}.{name}": t for name, t in state.items() if isinstance(t, OnDevice)}
    return {name: t.inner.data_ptr() for name, t in found.items()}


def settings(optimisers):
    """Return the settings of optimisers except their learning rates, which are tensors in a graph."""
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    return [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in groups]


def check_repeats(name, device, overrides):
    """Train, and assert that a CUDA graph of a step may stand for all later steps with the same key.

    These steps have the same operations with the same shapes and numbers. The tensors that the model keeps stay at
    their place in memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer, model, data, _ = made(folder, device, name, *overrides, callbacks=False)
        model.log = model.log_dict = lambda *args, **kwargs: None  # a step in a graph keeps what it logs
        steps, keys, places = [], [], []

        @contextmanager
        def recorded():
            keys.append((model.graph_key() if hasattr(model, "graph_key") else None, settings(trainer.optimizers)))
            with operations() as found:
                yield found
            places.append(kept(model, trainer.optimizers))

        around_steps(trainer, recorded, steps)
        trainer.fit(model, datamodule=data)
    first = {}
    for i, key in enumerate(map(str, keys)):
        ours = [operation for operation in steps[i] if "optim/" not in operation[-1]]
        theirs, its_places = first.setdefault(key, (ours, places[i]))
        different = next(((a, b) for a, b in zip(ours, theirs, strict=False) if a != b), (len(ours), len(theirs)))
        assert ours == theirs, f"step {i} differs from another step with the key {key[:80]}: {str(different)[:400]}"
        moved = {n: p for n, p in its_places.items() if places[i].get(n, p) != p}
        assert not moved, f"step {i} keeps {', '.join(moved)} at a new place in memory"


def assert_runs(*arguments):
    (wrong,) = together(1, on_the_device, *arguments, timeout=600)
    assert not wrong, "\n".join(wrong.values())


# The reasons for which a model cannot yet do it.
WAITS = {"vade": "a step reads whether the mixture is fitted", "rbm": "a step counts the chains that restart"}


def with_faults(parameters, faults):
    """Mark parameters of a test as expected failures, for the reasons in ``faults``."""
    marked = []
    for one in parameters:
        name, marks = (one, ()) if isinstance(one, str) else (one.values[0], one.marks)
        known = [pytest.mark.xfail(strict=False, reason=faults[name])] if name in faults else []
        marked.append(pytest.param(name, marks=[*marks, *known]))
    return marked


@pytest.mark.parametrize("name", with_faults(tiers(TINY, ["vae", "skipgram"]), WAITS))
def test_a_model_runs_on_a_device_and_no_step_waits_for_it(name):
    assert_runs(run, [name], True)


@pytest.mark.slow
@pytest.mark.parametrize("name", with_faults(TINY, WAITS))
def test_a_model_runs_on_a_device_without_float64(name):
    assert_runs(run, [name], False)


# Runs in which something changes from step to step.
CHANGES = {name: [] for name in TINY} | {
    "vae": ["model.latent=bernoulli", "model.estimator=gumbel_softmax", "model.temperature_end=0.1"],
    "vae-baseline": ["model.latent=bernoulli", "model.estimator=score_function+moving_average"],
    "rbm": ["model.k=[[0,1],[1,3]]", "model.momentum=[[0,0.5],[1,0.9]]", "model.restarts=0.2"],
    "gan": ["model.discriminator_steps=3"],
    "wgan": ["model.n_critic=3"],
    "wgan-clip": ["model.lipschitz=clip"],
    "ddpm": ["model.timesteps=importance"],
}


def repeats(name, device):
    check_repeats(name.partition("-")[0], device, CHANGES[name])


UNEQUAL = {
    "vae": "the temperature is a number",
    "vade": "it has no key for its phases",
    "rbm": "the number of chains that restart is a shape",
    "gan": "it has no key for its turns",
    "wgan": "it has no key for its turns",
    "wgan-clip": "it has no key for its turns",
    "ddpm": "the number of distinct steps is a shape",
}


@pytest.mark.parametrize("name", with_faults(tiers(CHANGES, ["vae", "rbm", "wgan"]), UNEQUAL))
def test_steps_with_equal_keys_have_equal_operations(name):
    assert_runs(repeats, [name], True)
