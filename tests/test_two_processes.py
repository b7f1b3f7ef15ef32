"""Two gloo processes through the command line: one run, one log, the measurements of one process."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, checkpoint, run
from torch.testing import assert_close

ROOT = Path(__file__).parent.parent
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.enable_progress_bar=false"]
ESTIMATOR = {
    "ddpm": "uniform",
    "score": "denoising",
    "rbm": "cd-1",
    "gan": "non_saturating",
    "wgan": "critic",
    "infogan": "bound",
    "skipgram": "nce_5",
}
OPPONENT = {"gan": "discriminator_loss", "wgan": "critic_loss", "infogan": "discriminator_loss"}
SHORT = ["trainer.max_epochs=2", "trainer.log_every_n_steps=4", "callbacks.estimator_variance.draws=5"]
SHORT += ["callbacks.estimator_variance.every_n_steps=8"]


def two_processes(folder, *overrides):
    # One process's torch would otherwise take both cores.
    return subprocess.run(
        [sys.executable, "train.py", *DDP, *overrides, f"hydra.run.dir={folder}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=240,
    )


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", sorted(TINY))
def test_two_processes_train_validate_sample_and_log_once(name, tmp_path):
    fixed = ["+callbacks.fixed._target_=helpers.NoiseOfTheRow"]
    short = [*TINY[name], *SHORT, *(fixed if name == "skipgram" else ["callbacks.samples.n=20"])]
    done = two_processes(tmp_path / "two", *short, "logger=wandb")
    assert done.returncode == 0, done.stderr
    run(tmp_path / "one", *short)
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")

    # Logged once: the same steps, and one Weights & Biases run.
    loss = OPPONENT.get(name, "loss")
    for key in (f"val/{loss}", f"train/{loss}", f"variance/{ESTIMATOR.get(name, 'pathwise')}/all"):
        assert [r["step"] for r in two if r[key]] == [r["step"] for r in one if r[key]], key
    assert len(list((tmp_path / "two" / "wandb").glob("offline-run-*"))) == 1
    assert sum(bool(r[f"test/{loss}"]) for r in two) == 1

    # Before the first step the weights are the same, and so is what K draws measure, however they were spread.
    for key in one[0]:
        if key.startswith(("variance/", "snr/")):
            assert_close(float(two[0][key]), float(one[0][key]), rtol=1e-4, atol=1e-6)

    # The same images in the same batches, other training noise: which two players carry far apart.
    a, b = (float(r[-1][f"test/{loss}"]) for r in (two, one))
    if name == "skipgram":  # the same noise, too: the same steps and numbers
        for key in ("val/nll", "val/perplexity", "val/log_Z", "test/nll"):
            assert_close(*([float(r[key]) for r in rows if r[key]] for rows in (two, one)), rtol=1e-4, atol=1e-6)
        ours, theirs = (checkpoint(tmp_path / k)["state_dict"] for k in ("two", "one"))
        for key, weights in theirs.items():
            assert_close(ours[key], weights, rtol=1e-4, atol=1e-5)
    else:
        assert a != b
        if name not in OPPONENT:
            assert_close(a, b, rtol=0.1, atol=0)
    states = checkpoint(tmp_path / "two")["random_state"]
    assert len(states) == 2
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])
    if name == "skipgram":
        assert sorted(p.name for p in (tmp_path / "two" / "neighbours").iterdir()) == ["epoch_000.csv", "epoch_001.csv"]
    else:
        assert sorted(p.name for p in (tmp_path / "two" / "samples").iterdir()) == ["epoch_001.png"]


def test_chains_of_two_processes_are_all_kept_and_go_on_in_one(tmp_path):
    few = [*TINY["rbm"], "callbacks=none", "test=false", "model.num_chains=31"]
    few = [o for o in few if not o.startswith("callbacks.")]
    done = two_processes(tmp_path, *few, "trainer.max_epochs=1", "logger=csv")
    assert done.returncode == 0, done.stderr
    chains = checkpoint(tmp_path)["chains"]
    assert chains.shape == (31, 8) and chains.dtype == torch.bool
    assert not torch.equal(chains[:30:2], chains[1:31:2])  # each process has its own
    last = tmp_path / "checkpoints" / "last.ckpt"
    run(tmp_path, *few, "trainer.max_epochs=2", f"ckpt={last}")
    after = checkpoint(tmp_path)["chains"]
    assert after.shape == (31, 8) and not torch.equal(after, chains)


def test_a_sweep_of_several_processes_is_refused_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "train.py", "-m", "seed=1,2", *DDP, *TINY["vae"], f"hydra.sweep.dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "a sweep (-m) cannot run jobs of 2 processes" in done.stderr
    assert "Traceback" not in done.stderr
