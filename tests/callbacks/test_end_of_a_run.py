"""Whatever ends a run, its end is drawn, once, as an epoch that is due would be."""

import pytest
from helpers import TINY, run

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
