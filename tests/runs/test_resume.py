"""Tests that a resumed run has bitwise the same weights, optimiser states and counters as an uninterrupted run."""

import os
import shutil
import signal

import pytest
import torch
from helpers import TINY, assert_same, assert_same_run, checkpoint, config, logged, model_of, run, stop, tiers
from processes import process, seconds, together
from short_runs import runs

from zoo.callbacks import ExactResume
from zoo.commands.resuming import newest_checkpoint
from zoo.datamodules import DataError
from zoo.hub import CheckpointError, check_resumable
from zoo.training.shell import resume_command

# Each epoch has 11 batches.
EPOCHS = [
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=4",
    "callbacks.estimator_variance.draws=2",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return {"vae": (run(folder / "vae", *TINY["vae"], *EPOCHS), folder / "vae")}


TWO_EPOCHS = ["trainer.max_epochs=2", "trainer.log_every_n_steps=4", "callbacks.estimator_variance.draws=2"]
TWO_EPOCHS += ["callbacks.estimator_variance.every_n_steps=6", "callbacks.estimator_variance.batch_size=8"]
TWO_EPOCHS += ["trainer.limit_train_batches=8", "data.batch_size=32"]
DDP = ["trainer=ddp", "trainer.accelerator=cpu"]


@pytest.mark.parametrize("name", tiers(sorted(TINY), ("ddpm", "rbm", "skipgram", "vade", "vae", "wgan")))
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path):
    resumes_as_if_uninterrupted(name, 1, tmp_path)


@pytest.mark.parametrize("name", tiers(sorted(TINY), ("vae", "rbm", "skipgram")))
def test_a_resumed_run_of_two_processes_is_the_uninterrupted_one(name, tmp_path):
    resumes_as_if_uninterrupted(name, 2, tmp_path)


OTHERS = ("gan-labels", "wgan-labels", "score-labels", "rbm-gaussian", "vae-logistic", "vae-dequantised", "vade-conv")
OTHERS += ("ddpm-attention", "ddpm-colours", "infogan-colours", "vae-colours-on-disk")


@pytest.mark.parametrize("name", tiers(OTHERS, ("rbm-gaussian", "vae-colours-on-disk")))
def test_a_resumed_run_with_other_options_is_the_uninterrupted_one(name, tmp_path):
    resumes_as_if_uninterrupted(name, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gan-labels", "rbm-gaussian", "vade-conv", "ddpm-attention"])
def test_a_resumed_run_of_two_processes_with_other_options_is_the_uninterrupted_one(name, tmp_path):
    resumes_as_if_uninterrupted(name, 2, tmp_path)


def resumes_as_if_uninterrupted(name, processes, tmp_path):
    """Stop a run after the fourth batch of the second epoch, resume it, and compare it with an uninterrupted run.

    The stopped run takes up to 16 batches in one execution, or 8 with two processes. The uninterrupted run takes one
    batch at a time. The weights, averages, optimisers, chains and random states of every process must be bitwise equal.
    The order of the data and all logged steps and values must be equal.
    """
    own = runs()[name]
    overrides = [*own, *TWO_EPOCHS, *DDP, f"trainer.devices={processes}"]
    # Leave out callbacks that only draw pictures.
    kept = ("best", "last", "finite_loss", "exact_resume", "ema", "estimator_variance", "sample_distance")
    drawn = [c for c, node in config("/", *own).callbacks.items() if "_target_" in node and c not in kept]
    overrides = [o for o in overrides if not any(f"callbacks.{c}." in o for c in drawn)]
    overrides += [*(f"~callbacks.{c}" for c in drawn), *(["test=false"] if processes == 2 else [])]
    one, several = "trainer.steps_per_execution=1", f"trainer.steps_per_execution={16 // processes}"
    expected = together(processes, run, tmp_path / "whole", *overrides, one)[0]
    stopped = [*overrides, several, *stop(11, signal.SIGTERM)]
    together(processes, run, tmp_path / "parts", *stopped, codes=(143, 0))  # exit statuses of ranks 0 and 1
    interrupted = tmp_path / "parts" / "checkpoints" / "interrupted.ckpt"
    assert checkpoint(tmp_path / "parts", "interrupted")["global_step"] == 12
    resumed = [*overrides, one if processes == 1 else several]
    metrics = together(processes, run, tmp_path / "parts", *resumed, f"ckpt={interrupted}")[0]
    # VaDE logs some metrics only in its first epoch, which the resumed run does not repeat.
    expected = {k: v for k, v in expected.items() if k in metrics and "second" not in k}
    assert_same_run(metrics, tmp_path / "parts", (expected, tmp_path / "whole"))
    assert len(checkpoint(tmp_path / "parts")["random_state"]) == processes
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "at", "signum", "left"),
    [
        ("vae", 15, signal.SIGTERM, "interrupted"),  # in the middle of the second epoch
        ("vae", 0, signal.SIGINT, "interrupted"),  # in the first batch of the run
        ("vae", 21, signal.SIGTERM, "last"),  # in the last batch of the second epoch
    ],
)
def test_a_signal_saves_and_the_run_goes_on_exactly(name, at, signum, left, tmp_path, uninterrupted, caplog):
    overrides = [*TINY[name], *EPOCHS]
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *overrides, *stop(at, signum))
    assert stopped.value.code == 128 + signum
    path = tmp_path / "checkpoints" / f"{left}.ckpt"
    assert caplog.text.rstrip().endswith(resume_command(tmp_path)) and newest_checkpoint(tmp_path) == path
    if left == "interrupted" and at > 11:
        assert checkpoint(tmp_path)["global_step"] == 11  # last.ckpt still has the state after the first epoch
        assert checkpoint(tmp_path, left)["global_step"] == at + 1
    metrics = run(tmp_path, *overrides, f"ckpt={path}")
    assert_same_run(metrics, tmp_path, uninterrupted[name])
    record = checkpoint(tmp_path)["record"]
    assert len(record["earlier"]) == 1
    assert record["seconds"] > record["earlier"][0]["seconds"] > 0


@pytest.mark.parametrize("k", [1, 16])
def test_a_signal_before_a_validation_within_an_epoch_loses_no_row(k, tmp_path):
    overrides = [*TINY["vae"], "trainer.max_epochs=2", "trainer.log_every_n_steps=4", "callbacks=none", "test=false"]
    overrides += ["+trainer.val_check_interval=3", f"trainer.steps_per_execution={k}"]
    run(tmp_path / "whole", *overrides)
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", *overrides, *stop(13, signal.SIGTERM))  # the third batch of the second epoch
    assert checkpoint(tmp_path / "parts", "interrupted")["global_step"] == 15
    run(tmp_path / "parts", *overrides, f"ckpt={tmp_path / 'parts' / 'checkpoints' / 'interrupted.ckpt'}")
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert_same(*(checkpoint(tmp_path / part)["state_dict"] for part in ("parts", "whole")))


def test_a_signal_in_the_last_batch_of_all_ends_a_finished_run(tmp_path, uninterrupted):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *TINY["vae"], *EPOCHS, *stop(32, signal.SIGTERM))
    assert stopped.value.code == 143
    assert_same(checkpoint(tmp_path)["state_dict"], checkpoint(uninterrupted["vae"][1])["state_dict"])


def test_after_kill_9_the_run_goes_on_from_the_epoch_boundary(tmp_path, uninterrupted):
    overrides = [*TINY["vae"], *EPOCHS]
    killed = process(run, tmp_path, *overrides, *stop(26, signal.SIGKILL))
    killed.join(seconds(120))
    assert killed.exitcode == -signal.SIGKILL
    assert checkpoint(tmp_path)["global_step"] == 22
    metrics = run(tmp_path, *overrides, f"ckpt={tmp_path / 'checkpoints' / 'last.ckpt'}")
    assert_same_run(metrics, tmp_path, uninterrupted["vae"])


def signalled_twice():
    class Trainer:
        world_size, global_rank, global_step = 1, 0, 0
        fit_loop = type("FitLoop", (), {"restarting": False, "epoch_loop": None})

    callback = ExactResume(".")
    callback.on_train_start(Trainer, None)
    os.kill(os.getpid(), signal.SIGTERM)
    assert callback.received == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_signal_does_not_wait():
    child = process(signalled_twice)
    child.join(seconds(60))
    assert child.exitcode == -signal.SIGTERM


def test_resuming_on_other_data_is_refused(tmp_path, uninterrupted, mnist_root):
    last = uninterrupted["vae"][1] / "checkpoints" / "last.ckpt"
    with pytest.raises(DataError, match="this run has data=mnist, but its checkpoint was trained on digits"):
        run(tmp_path, *TINY["vae"], "data=mnist", "trainer.max_epochs=4", f"ckpt={last}")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from at .*nothing\.ckpt"):
        run(tmp_path, *TINY["vae"], f"ckpt={tmp_path / 'nothing.ckpt'}")


def test_another_models_checkpoint_is_refused(tmp_path, uninterrupted):
    last = uninterrupted["vae"][1] / "checkpoints" / "last.ckpt"
    with pytest.raises(CheckpointError, match="is a checkpoint of the model 'vae', but this run trains"):
        run(tmp_path, *TINY["ddpm"], f"ckpt={last}")
    with pytest.raises(CheckpointError, match=r"model.latent_dim was 2 and is 3; model.lr was 0.001 and is 0.1"):
        run(tmp_path, *TINY["vae"], "model.latent_dim=3", "model.lr=0.1", f"ckpt={last}")
    with pytest.raises(CheckpointError, match=r"seed was 0 and is 5"):
        run(tmp_path, *TINY["vae"], "seed=5", f"ckpt={last}")
    with pytest.raises(
        CheckpointError, match=r"has already trained for 3 epochs: trainer.max_epochs must be at least 3, got 2"
    ):
        run(tmp_path, *TINY["vae"], "trainer.max_epochs=2", f"ckpt={last}")


def test_a_finished_run_resumes_to_its_end(tmp_path, uninterrupted):
    """All epochs are complete, so the resumed run trains nothing. Its test metrics equal those of the first run."""
    metrics, folder = uninterrupted["vae"]
    again = run(tmp_path, *TINY["vae"], *EPOCHS, f"ckpt={folder / 'checkpoints' / 'last.ckpt'}")
    tested = {k: v for k, v in metrics.items() if k.startswith("test/")}
    assert tested and {k: v for k, v in again.items() if k.startswith("test/")} == tested


def test_a_run_may_go_on_without_end(tmp_path, uninterrupted):
    """With trainer.max_epochs=-1 or null, the run has no last epoch, so every checkpoint can be resumed."""
    last = uninterrupted["vae"][1] / "checkpoints" / "last.ckpt"
    model = model_of(config(tmp_path, *TINY["vae"]))
    for max_epochs in (-1, None, 3):
        check_resumable(last, model, 0, max_epochs)
    with pytest.raises(
        CheckpointError, match="has already trained for 3 epochs: trainer.max_epochs must be at least 3, got 2"
    ):
        check_resumable(last, model, 0, 2)


def test_a_finished_run_can_be_extended(tmp_path, uninterrupted):
    """The learning rate schedule follows the new length of the run. At the new end, the learning rate is 0."""
    last = uninterrupted["vae"][1] / "checkpoints" / "last.ckpt"
    run(tmp_path, *TINY["vae"], "trainer.max_epochs=6", f"ckpt={last}", "test=false")
    extended = checkpoint(tmp_path)
    assert extended["global_step"] == 66
    assert extended["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-12)
    assert not torch.equal(
        extended["state_dict"]["decoder.0.0.weight"], checkpoint(last.parent.parent)["state_dict"]["decoder.0.0.weight"]
    )


def test_a_folder_with_a_run_in_it_is_not_mixed_with_another(tmp_path):
    run(tmp_path, *TINY["vae"], "debug=fast")
    with pytest.raises(ValueError, match=r"already holds a run: resume it with .*zoo resume "):
        run(tmp_path, *TINY["vae"], "debug=fast")


def test_resuming_in_another_folder_continues_too(tmp_path, uninterrupted):
    _, reference = uninterrupted["vae"]
    shutil.copytree(reference / "checkpoints", tmp_path / "copy")
    run(tmp_path / "new", *TINY["vae"], "trainer.max_epochs=4", f"ckpt={tmp_path / 'copy' / 'last.ckpt'}", "test=false")
    assert checkpoint(tmp_path / "new")["epoch"] == 3
    assert list((tmp_path / "new" / "checkpoints").glob("best-*.ckpt"))
