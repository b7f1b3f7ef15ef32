"""Tests of faults in long runs: divergence, processes that die, full disks, and kills at any moment."""

import importlib
import os
import random
import re
import resource
import signal
import subprocess
import time

import lightning as L
import pytest
import torch
from helpers import TINY, checkpoint, run, tiers
from processes import command, done, finish, kill, process, seconds, together

from zoo.callbacks.finite_loss import FiniteLoss, NotFinite
from zoo.datamodules import Images
from zoo.training.checkpoint_files import CheckpointFiles, CheckpointNotWritten, clear_unfinished
from zoo.training.error_lines import one_line_errors

EVERY_PICTURE = ["callbacks.samples.every_n_epochs=1", "logger=none", "test=false"]
BARE = ["callbacks=none", "logger=none", "test=false"]


def bare(name):
    return [o for o in TINY[name] if not o.startswith("callbacks.")] + BARE


def poison(at):
    return ["+callbacks.poison._target_=helpers.Poison", f"+callbacks.poison.at={at}"]


# Divergence.


@pytest.mark.parametrize(
    ("name", "term"),
    [("vae", r"nll = nan"), ("wgan", r"critic_loss = nan"), ("rbm", "loss = nan"), ("skipgram", "loss = nan")],
)
def test_a_diverged_run_stops_with_step_term_and_the_last_good_checkpoint(name, term, tmp_path):
    batches = ["trainer.max_epochs=3", "trainer.limit_train_batches=4"]
    with pytest.raises(NotFinite, match=rf"at step 5 \(epoch 1\) .*{term}.*last good checkpoint is .*/last.ckpt"):
        run(tmp_path, *bare(name), *batches, *poison(5))
    last = checkpoint(tmp_path)
    assert last["global_step"] == 4
    assert all(v.isfinite().all() for v in last["state_dict"].values() if v.is_floating_point())


def test_weights_that_the_last_batch_has_spoilt_are_not_saved(tmp_path):
    """The last loss is finite, but the last update makes a weight infinite. Every checkpoint is checked."""

    class Trainer:
        current_epoch = 2
        fit_loop = type("Loop", (), {"total_batch_idx": 33})

    good = {"state_dict": {"w": torch.ones(2)}}
    bad = {"state_dict": {"v": torch.ones(1), "w": torch.tensor([1, torch.inf])}}
    callback = FiniteLoss(tmp_path)
    callback.on_save_checkpoint(Trainer, None, good)
    with pytest.raises(
        NotFinite, match=r"step 33 \(epoch 2\) would have NaN or infinite values in w. .* no checkpoint yet"
    ):
        callback.on_save_checkpoint(Trainer, None, bad)
    with pytest.raises(NotFinite, match="NaN or infinite values in current_model_state.w"):
        callback.on_save_checkpoint(Trainer, None, good | {"current_model_state": bad["state_dict"]})
    moments = [{"state": {0: {"exp_avg_sq": torch.tensor([torch.inf])}}}]
    with pytest.raises(NotFinite, match="NaN or infinite values in optimizer_states.0.state.0.exp_avg_sq"):
        callback.on_save_checkpoint(Trainer, None, good | {"optimizer_states": moments})


def test_two_processes_stop_where_one_has_diverged(tmp_path):
    together(2, diverge_on_one, tmp_path, codes=(1,))
    assert checkpoint(tmp_path)["global_step"] == 4


def diverge_on_one(folder):
    at = 5 if os.environ["RANK"] == "1" else 10**6
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    run(folder, *bare("vae"), *ddp, "trainer.max_epochs=30", "trainer.limit_train_batches=4", *poison(at))


# Processes that die.


@pytest.mark.parametrize("rank", tiers([0, 1], [1]))
def test_a_dead_process_ends_the_run(rank, tmp_path):
    """The run ends within a minute, with an exit status other than 0, and no process remains."""
    dies = ["+callbacks.kill._target_=helpers.KillProcess", f"+callbacks.kill.rank={rank}", "+callbacks.kill.at=14"]
    run = command(tmp_path, *bare("vae"), *dies, "trainer=cpu", "trainer.devices=2", "trainer.max_epochs=10000")
    try:
        last = tmp_path / "checkpoints" / "last.ckpt"
        until(lambda: last.is_file() or run.poll() is not None, 120)  # until the first epoch ends
        assert last.is_file()
        assert run.wait(seconds(60)) != 0
        until(lambda: not living(run.pid), 30)
        assert checkpoint(tmp_path)["global_step"] == 11
    finally:
        kill(run)
        finish(run)


def until(condition, limit):
    """Wait until ``condition()`` holds."""
    deadline = time.monotonic() + seconds(limit)
    while not condition():
        assert time.monotonic() < deadline, f"the condition does not hold after {seconds(limit)} seconds"
        time.sleep(0.05)


def living(group):
    """Return the processes of a group that have not ended. Zombie processes are left out."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in listed.splitlines()]
    return [pid for pid, pgid, state in found if int(pgid) == group and not state.startswith("Z")]


# Kills at any moment.


def write_for_ever(path):
    number = 0
    while True:
        CheckpointFiles().save_checkpoint({"number": number, "weights": torch.full((1_000_000,), float(number))}, path)
        number += 1


def test_a_checkpoint_is_whole_whenever_its_writer_is_killed(tmp_path):
    """A process writes 4 MB again and again, and is killed at a random time. The file is always complete.

    Lightning's own writer can leave an incomplete file, because its temporary folder can be on another disk. The writer
    then copies the file.
    """
    path, chance = tmp_path / "last.ckpt", random.Random(0)
    CheckpointFiles().save_checkpoint({"number": -1, "weights": torch.zeros(1)}, path)
    for _ in range(25):
        before = path.read_bytes()
        writer = process(write_for_ever, path)
        until(lambda before=before: path.read_bytes() != before, 60)
        time.sleep(0.2 * chance.random())
        writer.kill()
        writer.join()
        found = torch.load(path, weights_only=True)
        assert found["number"] == -1 or (found["weights"] == found["number"]).all()
    (tmp_path / ".best-epoch003.ckpt-0123abcd").touch()
    clear_unfinished(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]  # unfinished files are removed


def test_only_what_a_killed_writer_has_left_is_removed(tmp_path):
    """Other files are kept, such as copies of a checkpoint that the user has made."""
    kept = ["last.ckpt", "last.ckpt-20261129", ".last.ckpt-before", ".config.yaml-0123abcd"]
    for name in (*kept, ".last.ckpt-0123abcd"):
        (tmp_path / name).touch()
    clear_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_a_run_killed_again_and_again_goes_on(tmp_path):
    """A run is killed five times at random moments. Each time last.ckpt loads, and its epoch is larger than before."""
    chance, epoch = random.Random(1), -1
    last = tmp_path / "checkpoints" / "last.ckpt"
    endless = [*bare("vae"), "trainer.max_epochs=100000", "trainer.limit_train_batches=3"]
    for _ in range(5):
        resumed = [f"ckpt={last}"] if last.is_file() else []
        before = last.read_bytes() if last.is_file() else None
        child = process(run, tmp_path, *endless, *resumed)
        until(lambda before=before: last.is_file() and last.read_bytes() != before, 60)  # until a new checkpoint
        time.sleep(chance.random())
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        found = checkpoint(tmp_path)
        assert found["epoch"] > epoch
        assert found["global_step"] == 3 * (found["epoch"] + 1)
        epoch = found["epoch"]


# A full disk.


def test_a_full_disk_is_said_and_what_was_there_stays(tmp_path):
    path = tmp_path / "last.ckpt"
    CheckpointFiles().save_checkpoint({"a": 1}, path)
    assert together(1, too_large, path) == [True]
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def too_large(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    with pytest.raises(
        CheckpointNotWritten, match=r"last.ckpt \(4.0 MB\) cannot be written: File too large. Free disk space"
    ):
        CheckpointFiles().save_checkpoint({"weights": torch.zeros(1_000_000)}, path)
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "size", "said"),
    [
        (BARE, 20_000, r"epoch002.ckpt \(1\.9 MB\) cannot be written: File too large. Free disk space"),
        (EVERY_PICTURE, 200, r"cannot be written: File too large. Free disk space, then resume with .*zoo resume"),
    ],
    ids=["checkpoints", "pictures"],
)
def test_a_run_on_a_full_disk_ends_in_one_line(overrides, size, said, tmp_path):
    few = ["trainer=cpu", "trainer.enable_progress_bar=false"]
    ended = done("train.py", *TINY["vae"], *overrides, *full_disk(size), *few, f"hydra.run.dir={tmp_path}")
    assert ended.returncode == 1
    assert re.search(said, ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr
    assert checkpoint(tmp_path)["epoch"] == 1


def full_disk(size):
    """Return the overrides of a run that from its third epoch can write only ``size`` bytes to a file."""
    full = ["+callbacks.full._target_=helpers.FullDisk", "+callbacks.full.epoch=2", f"+callbacks.full.size={size}"]
    return [*full, "model.hidden=[100]", "trainer.max_epochs=5"]


def message_on_a_full_disk(folder):
    with pytest.raises(SystemExit) as ended, one_line_errors(str(folder)):
        run(folder, *TINY["vae"], *BARE, *full_disk(20_000))
    return ended.value.code


def test_a_run_on_a_full_disk_names_the_checkpoint_and_keeps_the_last_one(tmp_path):
    (message,) = together(1, message_on_a_full_disk, tmp_path)
    assert re.search(r"epoch002.ckpt \(1\.9 MB\) cannot be written: File too large. Free disk space", message)
    assert len(message.splitlines()) == 1 and checkpoint(tmp_path)["epoch"] == 1


def test_a_signal_during_the_test_ends_it(tmp_path):
    stop = ["+callbacks.stop._target_=helpers.SignalInTest", "trainer.max_epochs=1"]
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *TINY["vae"], *stop)
    assert stopped.value.code == 143
    assert checkpoint(tmp_path)["global_step"] == 11


# Evaluations that stop early.


class BrokenOff(L.Callback):
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            raise RuntimeError("broken off")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("zoo.evaluation.classifier.Classifier", {"widths": [2, 2, 4], "num_features": 8}),
        ("zoo.vade.VaDE", {"hidden": [8], "latent_dim": 2}),
        ("zoo.infogan.InfoGAN", {"width": 4, "features": 16}),
    ],
)
def test_an_evaluation_that_was_broken_off_leaves_nothing_in_the_next(kind, options):
    module, _, name = kind.rpartition(".")
    torch.manual_seed(0)
    model = getattr(importlib.import_module(module), name)(**options)

    def validate(*callbacks):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet)
        return trainer.validate(model, Images("digits", eval_batch_size=32), verbose=False)[0]

    whole = validate()
    with pytest.raises(RuntimeError, match="broken off"):
        validate(BrokenOff())
    assert validate() == whole and "val/accuracy" in whole
