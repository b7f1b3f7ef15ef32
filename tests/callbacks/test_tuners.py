"""Tests of Lightning's tuners and callbacks in runs of the zoo."""

from pathlib import Path

import pytest
import torch
from helpers import TINY, checkpoint, run
from lightning.pytorch import Trainer
from lightning.pytorch.tuner import Tuner

from zoo.checks.errors import UserError
from zoo.datamodules import Images
from zoo.vae import VAE

SHORT = ["trainer.max_epochs=1", "trainer.limit_train_batches=4", "test=false", "~callbacks.estimator_variance"]
LIGHTNING = "lightning.pytorch.callbacks"


def added(name, **arguments):
    given = [f"+callbacks.t.{key}={value}" for key, value in arguments.items()]
    return [f"+callbacks.t._target_={LIGHTNING}.{name}", *given]


def test_a_learning_rate_that_was_found_is_the_one_of_the_run(tmp_path, monkeypatch):
    """A run with ``model.lr`` set to the rate that was found has the same weights. The record omits the search.

    The search writes nothing into the working folder, which would keep its temporary file if the program is killed.
    """
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    written, save = set(), Trainer.save_checkpoint

    def recorded(trainer, path, *arguments, **kwargs):
        written.add(path)
        save(trainer, path, *arguments, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", recorded)
    small = [*TINY["vae"], *(o for o in SHORT if "limit" not in o), "data.batch_size=32"]
    search = added("LearningRateFinder", num_training_steps=30, early_stop_threshold="null")
    run(tmp_path / "found", *small, *search)
    saved = checkpoint(tmp_path / "found")
    lr = saved["hyper_parameters"]["lr"]
    assert lr != 0.001 and saved["global_step"] == 44 and saved["record"]["earlier"] == []
    assert any(".lr_find" in str(path) for path in written)
    assert all(Path(path).absolute().is_relative_to(tmp_path / "found") for path in written)
    run(tmp_path / "given", *small, f"model.lr={lr}")
    given = checkpoint(tmp_path / "given")
    assert all(torch.equal(v, given["state_dict"][k]) for k, v in saved["state_dict"].items())
    # A run that resumes keeps the rate, and does not search again.
    for name, options in (("found", search), ("given", [f"model.lr={lr}"])):
        ckpt = f"ckpt={tmp_path / name / 'checkpoints' / 'last.ckpt'}"
        run(tmp_path / name, *small, *options, "trainer.max_epochs=2", ckpt)
    found, given = checkpoint(tmp_path / "found"), checkpoint(tmp_path / "given")
    assert found["global_step"] == 88 and found["hyper_parameters"]["lr"] == lr
    assert all(torch.equal(v, given["state_dict"][k]) for k, v in found["state_dict"].items())


def test_a_batch_size_that_was_found_is_the_one_of_the_run(tmp_path):
    run(tmp_path, *TINY["vae"], *SHORT, *added("BatchSizeFinder", steps_per_trial=1, max_trials=2, init_val=8))
    saved = checkpoint(tmp_path)
    assert saved["Images"]["batch_size"] == 16 and saved["global_step"] == 4 and saved["record"]["earlier"] == []
    search = added("BatchSizeFinder", steps_per_trial=1, max_trials=2, init_val=8)
    ckpt = f"ckpt={tmp_path / 'checkpoints' / 'last.ckpt'}"
    run(tmp_path, *TINY["vae"], *SHORT, *search, "trainer.max_epochs=2", ckpt)  # resumes without a search
    assert checkpoint(tmp_path)["Images"]["batch_size"] == 16 and checkpoint(tmp_path)["global_step"] == 8


def test_the_search_ends_before_an_epoch_has_no_batch(tmp_path):
    """``debug=limit`` takes a tenth of the batches. With 1,437 digits, 128 is the last size with ten batches."""
    limited = [*TINY["vae"], "debug=limit", "test=false", "~callbacks.estimator_variance", "trainer.max_epochs=1"]
    run(tmp_path / "a", *limited, *added("BatchSizeFinder", init_val=32, steps_per_trial=1))
    saved = checkpoint(tmp_path / "a")
    assert saved["Images"]["batch_size"] == 128 and saved["global_step"] == 1
    with pytest.raises(UserError, match=r"init_val=200\. .* sizes up to 140\. Set init_val to at most 140"):
        run(tmp_path / "b", *limited, *added("BatchSizeFinder", init_val=200))


WORK = {
    "StochasticWeightAveraging": {"swa_lrs": 0.01},
    "GradientAccumulationScheduler": {"scheduling": "{0:1,1:2}"},
    "Timer": {"duration": "00:00:10:00"},
    "LearningRateMonitor": {},
    "ModelSummary": {},
    "WeightAveraging": {},
    "LambdaCallback": {},
    "TQDMProgressBar": {},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")  # the schedule counts steps
@pytest.mark.parametrize("name", WORK)
def test_callbacks_of_lightning_work_with_those_of_the_zoo(name, tmp_path):
    short = [option for option in SHORT if "limit" not in option]
    run(tmp_path, *TINY["vae"], *short, *added(name, **WORK[name]), "trainer.enable_progress_bar=true")
    assert checkpoint(tmp_path)["global_step"] > 0


def test_two_checkpoint_callbacks_of_one_name_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="more than one stateful callback of type `ModelCheckpoint`"):
        run(tmp_path, *TINY["vae"], *SHORT, *added("ModelCheckpoint"))


def test_adversarial_models_have_no_single_learning_rate(tmp_path):
    with pytest.raises(ValueError, match="finds one learning rate, and adversarial models have two"):
        run(tmp_path, *TINY["gan"], *SHORT, *added("LearningRateFinder"))


def test_a_notebook_can_search_both(tmp_path):
    trainer = Trainer(accelerator="cpu", devices=1, max_steps=2, logger=False, default_root_dir=tmp_path)
    model, data = VAE(hidden=[8], latent_dim=2), Images("digits", digits_repeat=1, batch_size=32)
    tuner = Tuner(trainer)
    assert tuner.lr_find(model, datamodule=data, num_training=30).suggestion() == model.hparams.lr
    assert tuner.scale_batch_size(model, datamodule=data, steps_per_trial=1, max_trials=2) == data.hparams.batch_size
