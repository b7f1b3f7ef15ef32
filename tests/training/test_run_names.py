"""Tests of the names, groups and tags that a run has in experiment trackers."""

import pytest
from helpers import CONFIGS
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import open_dict

from zoo.training import run_names


def composed(*overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


@pytest.fixture(scope="module")
def default():
    """Return Hydra's configuration of a VAE."""
    return composed()


@pytest.fixture
def names(monkeypatch, default):
    """Return a function that returns the names of a run. ``sweep`` has the arguments of the command of a sweep.

    Composing a configuration takes long, so the overrides are only written into the configuration of a VAE, unless
    ``compose`` is true.
    """
    monkeypatch.setattr(HydraConfig.instance(), "cfg", HydraConfig.instance().cfg)

    def of(*overrides, sweep=None, compose=False):
        monkeypatch.setattr("sys.argv", ["train.py", "-m", *(sweep or [])])
        cfg = composed(*overrides) if compose else default.copy()
        with open_dict(cfg):
            cfg.hydra.overrides.task = list(overrides)
            cfg.hydra.mode = RunMode.RUN if sweep is None else RunMode.MULTIRUN
        HydraConfig.instance().set_config(cfg)
        return run_names.names_of_run()

    return of


def test_a_run_is_named_by_its_recipe_and_what_the_command_changes(names):
    assert names() == ("vae", "vae", ["vae"])  # the data are known later
    changed = names(
        "model=ddpm", "data=fashion_mnist", "model.widths=[8,16]", "trainer.max_epochs=2", "seed=7", compose=True
    )
    assert changed.name == "ddpm data=fashion_mnist widths=[8,16] max_epochs=2 seed=7"
    assert changed.tags == ["ddpm", "fashion_mnist"]
    recipe = names("experiment=wgan_ring", "model.lr=1e-3", "~callbacks.sample_distance", compose=True)
    assert recipe.name == "wgan_ring lr=1e-3 ~callbacks.sample_distance"
    assert recipe.tags == ["wgan", "ring", "wgan_ring"]
    stop = "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping"
    own = names("model=vae", "data=images", "data.path='/home/me/my faces'", stop)
    assert own.name == "vae data=images data.path=my faces callbacks.stop=EarlyStopping"
    added = names("+callbacks@_global_.callbacks=[early_stopping]")  # what Hydra gets for callbacks=early_stopping
    assert added.name == "vae callbacks=early_stopping"


def test_runs_that_differ_in_the_seed_or_the_hardware_share_a_group(names):
    one = names("model.latent_dim=8", "seed=1")
    two = names(
        "seed=2", "model.latent_dim=8", "trainer=cpu", "trainer.devices=2", "ckpt=runs/a/last.ckpt", "logger=csv"
    )
    assert one.group == two.group == "vae latent_dim=8"
    assert (one.name, two.name) == ("vae latent_dim=8 seed=1", "vae seed=2 latent_dim=8")
    assert names("model.latent_dim=9", "seed=1").group != one.group


def test_the_jobs_of_a_sweep_share_the_group_of_its_command(names):
    sweep = ["model=vae", "model.lr=1e-3,3e-4", "seed=0,1", "hydra.sweep.dir=somewhere"]
    jobs = [
        names("model=vae", f"model.lr={lr}", f"seed={seed}", sweep=sweep) for lr in ("1e-3", "3e-4") for seed in (0, 1)
    ]
    assert {job.group for job in jobs} == {"vae lr=1e-3,3e-4"}
    assert len({job.name for job in jobs}) == 4 and jobs[3].name == "vae lr=3e-4 seed=1"
    storage = "callbacks.pruning.storage='mysql://me:secret@host/studies'"
    trial = names("model.lr=3e-4", "hparams_search=optuna", storage, "callbacks.pruning.trial=3", sweep=sweep)
    assert trial.name == "vae lr=3e-4"
    # A launcher can run a job in another program, without the command line of the sweep.
    assert names("model=vae", "model.lr=3e-4", "seed=1", sweep=[]).group == "vae lr=3e-4"


def test_long_names_are_shortened_and_stay_different(names):
    keys = ("beta", "temperature", "variance_floor", "latent_dim", "num_samples", "lr", "num_categories", "beta")
    overrides = [f"model.{key}=0.123456789" for key in keys]
    one, two = names(*overrides, "model.beta=1"), names(*overrides, "model.beta=2")
    assert len(one.name) <= 100 and one.name != two.name and one.name[:80] == two.name[:80]
