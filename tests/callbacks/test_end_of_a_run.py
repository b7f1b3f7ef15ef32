"""Tests of runs that end early: their last pictures and measurements, and resuming within an epoch."""

import lightning as L
import pytest
from helpers import TINY, assert_same, checkpoint, run, tiers

from zoo.training.tables import read_rows

PICTURES = {
    "vae": ("samples", "latents", "log_likelihood"),
    "infogan": ("samples", "codes"),
    "ddpm": ("samples", "loss_per_step"),
    "skipgram": ("neighbours",),
}
EARLY = ["+callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.early.monitor=val/loss"]
EARLY += ["+callbacks.early.stopping_threshold=1e9"]


def drawn(folder):
    kinds = ("*/epoch_*.png", "*/epoch_*.csv", "samples/*epoch_*.png")
    return {p.relative_to(folder): p.read_bytes() for kind in kinds for p in folder.glob(kind)}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PICTURES))
def test_the_last_epoch_of_a_run_that_stops_early_is_drawn(name, tmp_path):
    monitor = [EARLY[0], "+callbacks.early.monitor=val/distance", EARLY[2]] if name == "infogan" else EARLY
    common = [*TINY[name], *monitor, "test=false", "trainer.max_epochs=1000", "~callbacks.estimator_variance"]
    common += ["trainer.limit_train_batches=2", "trainer.log_every_n_steps=1"]
    for folder, every in (("often", 1), ("seldom", 7)):
        cadence = [f"callbacks.{callback}.every_n_epochs={every}" for callback in PICTURES[name]]
        run(tmp_path / folder, *common, *cadence)
    pictures = drawn(tmp_path / "often")
    assert pictures and drawn(tmp_path / "seldom") == pictures
    if name == "vae":
        measured = [row["val/log_likelihood"] for row in read_rows(tmp_path / "often" / "metrics.csv")]
        again = [row["val/log_likelihood"] for row in read_rows(tmp_path / "seldom" / "metrics.csv")]
        assert float(again[-1]) == pytest.approx(float(measured[-1]), rel=1e-6)


class StopsWithin(L.Callback):
    """Callback that asks the trainer to stop after batch number ``at``, as Lightning's Timer does."""

    def __init__(self, at: int):
        self.at = at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.at:
            trainer.should_stop = True


@pytest.mark.parametrize("name", tiers(["vae", "skipgram", "rbm", "gan"], ["vae"]))
def test_a_run_that_ended_within_an_epoch_resumes_within_it(name, tmp_path):
    """A run stops within an epoch. When it resumes from any checkpoint, it has the results of an uninterrupted run."""
    common = [*TINY[name], "test=false", "~callbacks.estimator_variance", "trainer.log_every_n_steps=1"]
    common += ["trainer.max_epochs=3", "trainer.limit_train_batches=6", "trainer.check_val_every_n_epoch=1"]
    stops = ["+callbacks.stops._target_=test_end_of_a_run.StopsWithin", "+callbacks.stops.at=8"]
    run(tmp_path / "whole", *common)
    run(tmp_path / "ended", *common, *stops)
    assert checkpoint(tmp_path / "ended")["global_step"] == 9
    for ckpt in sorted((tmp_path / "ended" / "checkpoints").iterdir()):
        run(tmp_path / ckpt.stem, *common, f"ckpt='{ckpt}'")
        whole, ours = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / ckpt.stem)
        for key in ("state_dict", "optimizer_states", "random_state", "epoch", "global_step"):
            assert_same(ours[key], whole[key], key)
        assert ours["loops"]["fit_loop"]["epoch_progress"] == whole["loops"]["fit_loop"]["epoch_progress"]
        rows = read_rows(tmp_path / ckpt.stem / "metrics.csv")
        trained = [row["step"] for row in rows if any(v and k.startswith("train/") for k, v in row.items())]
        assert trained == [str(i) for i in range(18)]
