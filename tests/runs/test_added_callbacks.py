"""Tests of callbacks that the command line adds to those of a recipe: early stopping and Lightning's two tuners."""

from pathlib import Path

import pytest
from helpers import CONFIGS, TINY, checkpoint, config, run, tiers

from zoo.checks.errors import UserError
from zoo.training.added_callbacks import as_typed
from zoo.training.command_line import readable_arguments

SHORT = ["test=false", "~callbacks.estimator_variance", "trainer.limit_train_batches=2"]
# Every change counts as no improvement, so the third validation stops the run.
PATIENCE = ["callbacks.early_stopping.min_delta=1e9", "callbacks.early_stopping.patience=2"]


def read(*arguments):
    """Return the overrides that Hydra reads for a command line."""
    return readable_arguments(list(arguments), Path(CONFIGS))


@pytest.mark.parametrize("name", tiers(TINY, ["vae", "gan", "skipgram"]))
def test_early_stopping_is_added_to_the_callbacks_of_each_recipe(name):
    recipe = config("x", f"model={name}").callbacks
    added = config("x", *read(f"model={name}", "callbacks=early_stopping")).callbacks
    assert list(added) == [*recipe, "early_stopping"] and all(added[key] == recipe[key] for key in recipe)
    assert added.early_stopping.monitor == recipe.best.monitor and added.early_stopping.mode == recipe.best.mode


def test_lists_and_several_additions_compose():
    assert read("callbacks=[early_stopping,lr_finder]") == read(
        "callbacks=early_stopping,lr_finder".replace("=", "=[") + "]"
    )
    assert {"ema", "lr_finder"} < set(config("x", *read("model=gan", "callbacks=[early_stopping,lr_finder]")).callbacks)
    complete = config("x", *read("model=vae", "callbacks=[ema,early_stopping]")).callbacks
    assert {"ema", "best", "early_stopping"} < set(complete) and "latents" not in complete
    assert read("callbacks=none") == ["callbacks=none"]
    for typed in ("callbacks=early_stopping", "callbacks=[early_stopping,lr_finder]", "callbacks=none", "seed=1"):
        assert as_typed(*read(typed)) == typed


def test_a_sweep_over_an_addition_is_refused_with_the_lists_to_write():
    with pytest.raises(UserError, match=r"write complete lists, such as \[vae,early_stopping\],\[none\]"):
        read("-m", "callbacks=early_stopping,none")


@pytest.mark.parametrize("name", tiers(TINY, ["vae"]))
def test_a_resumed_run_stops_in_the_epoch_of_a_run_without_interruption(name, tmp_path):
    options = [*TINY[name], *SHORT, *PATIENCE, *read("callbacks=early_stopping")]
    run(tmp_path / "whole", *options, "trainer.max_epochs=9")
    run(tmp_path / "parts", *options, "trainer.max_epochs=2")
    ckpt = f"ckpt={tmp_path / 'parts' / 'checkpoints' / 'last.ckpt'}"
    run(tmp_path / "parts", *options, "trainer.max_epochs=9", ckpt)
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert whole["epoch"] == parts["epoch"] == 2 and whole["global_step"] == parts["global_step"]
    counters = [state["wait_count"] for key, state in parts["callbacks"].items() if key.startswith("EarlyStopping")]
    assert counters == [2]


# Lightning's tuners.

STEPS = "callbacks.lr_finder.num_training_steps=30"


# tests/callbacks/test_tuners.py has a search of each kind in the first tier.


@pytest.mark.parametrize("name", tiers(TINY, []))
def test_a_found_learning_rate_trains_as_the_same_rate_given_by_hand(name, tmp_path):
    if name in ("vade", "rbm"):
        pytest.skip("the pretraining of VaDE diverges at the found rate, and the loss of an RBM shows no best rate")
    if name in ("gan", "wgan", "infogan"):
        with pytest.raises(UserError, match="finds one learning rate, and adversarial models have two"):
            run(tmp_path, *TINY[name], *SHORT, *read("callbacks=lr_finder"))
        return
    options = [*TINY[name], "test=false", "~callbacks.estimator_variance", "trainer.max_epochs=4"]
    run(tmp_path / "found", *options, *read("callbacks=lr_finder"), STEPS)
    found = checkpoint(tmp_path / "found")
    run(tmp_path / "given", *options, f"model.lr={found['hyper_parameters']['lr']}")
    same(found, checkpoint(tmp_path / "given"))
    default = config("x", f"model={name}").model.lr
    assert found["hyper_parameters"]["lr"] != default


@pytest.mark.parametrize("name", tiers(TINY, []))
def test_a_found_batch_size_trains_as_the_same_size_given_by_hand(name, tmp_path):
    options = [*TINY[name], *SHORT, "trainer.max_epochs=1"]
    search = ["callbacks.batch_size_finder.init_val=4", "callbacks.batch_size_finder.max_trials=2"]
    run(tmp_path / "found", *options, *read("callbacks=batch_size_finder"), *search)
    found = checkpoint(tmp_path / "found")
    size = next(found[key]["batch_size"] for key in ("Images", "Words", "Text") if key in found)
    assert size in (8, 16)
    run(tmp_path / "given", *options, f"data.batch_size={size}")
    same(found, checkpoint(tmp_path / "given"))


def same(found, given):
    assert found["global_step"] == given["global_step"] > 0
    assert all((value == given["state_dict"][key]).all() for key, value in found["state_dict"].items())
