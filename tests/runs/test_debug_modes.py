"""Tests of the debug recipes (fast, limit, overfit, profiler), of trainer=mps, and of trainer.max_time."""

import re

import pytest
import torch
from helpers import TINY, checkpoint, config, run, tiers

from zoo.checks.errors import UserError
from zoo.training.profiling import make_profiler, short, slowest
from zoo.training.tables import read_rows


def losses(folder):
    """Return the logged training losses, or those of the second player of an adversarial model."""
    rows = read_rows(folder / "metrics.csv")
    name = next(
        n for n in ("train/loss", "train/discriminator_loss", "train/critic_loss") if any(r.get(n) for r in rows)
    )
    return [float(row[name]) for row in rows if row.get(name)]


@pytest.mark.parametrize("name", tiers(TINY, []))
def test_limit_takes_a_small_part_of_the_data(name, tmp_path):
    run(tmp_path, *TINY[name], "debug=limit", "~callbacks.estimator_variance")
    saved = checkpoint(tmp_path)
    batches = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
    assert saved["epoch"] == 2 and 3 <= batches <= 9


@pytest.mark.parametrize("name", tiers(TINY, ["vae"]))
def test_overfitting_sees_three_batches_and_lowers_their_loss(name, tmp_path):
    rate = ["model.lr=0.01"] if name in ("vae", "cvae") else []
    options = [*TINY[name], *rate, "trainer.max_epochs=12", "~callbacks.estimator_variance", "test=false"]
    run(tmp_path, *options, "debug=overfit")
    batches = checkpoint(tmp_path)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
    epochs = 11 if name == "vade" else 12  # pretraining, one epoch here, logs another loss
    assert batches == 36 and len(losses(tmp_path)) == epochs
    if rate:
        assert losses(tmp_path)[-1] < 0.8 * losses(tmp_path)[0]


@pytest.mark.parametrize("name", tiers(TINY, []))
def test_the_profile_of_a_run_is_printed_and_in_its_folder(name, tmp_path, caplog):
    limits = ["trainer.limit_train_batches=2", "~callbacks.estimator_variance", "test=false"]
    with caplog.at_level("INFO"):
        run(tmp_path, *TINY[name], "debug=profiler", *limits)
    check_profile(tmp_path, caplog)


def test_the_profile_of_a_vae_is_printed_and_in_its_folder(tmp_path, caplog):
    limits = ["trainer.limit_train_batches=2", "callbacks=none", "~callbacks.samples", "test=false"]
    with caplog.at_level("INFO"):
        run(tmp_path, *TINY["vae"], "debug=profiler", *limits)
    check_profile(tmp_path, caplog)


def check_profile(folder, caplog):
    _, table = [r.getMessage() for r in caplog.records if r.name == "zoo.training.profiling"]
    assert re.search(r"\n *\d+\.\d{3} +2 +\d+\.\d{3}  run_training_batch\n", table) and len(table.splitlines()) == 16
    assert max(map(len, table.splitlines())) < 120
    assert "run_training_batch" in (folder / "fit-profile.txt").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule")  # the run is short
@pytest.mark.parametrize("kind", ["advanced", "pytorch"])
def test_other_profilers_write_their_table_to_the_run_folder(kind, tmp_path):
    limits = ["trainer.limit_train_batches=2", "callbacks=none", "~callbacks.samples", "test=false"]
    run(tmp_path, *TINY["vae"], "debug=profiler", f"trainer.profiler.kind={kind}", *limits)
    assert (tmp_path / "fit-profile.txt").stat().st_size > 1000


def test_a_profile_lists_the_slowest_calls_first():
    table = slowest({"a": [0.1, 0.2], "[Callback]X{'monitor': {'b': 1}}.end": [2.0], "never": []})
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["2.000", "1", "2000.000", "[Callback]X.end"],
        ["0.300", "2", "150.000", "a"],
    ]
    assert short("plain") == "plain"
    with pytest.raises(UserError, match=r"trainer.profiler.kind must be simple, advanced or pytorch, got 'slow'"):
        make_profiler("slow", ".")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_composes_and_a_machine_without_it_is_named_in_one_line(tmp_path):
    assert config("x", "trainer=mps").trainer.accelerator == "mps"
    with pytest.raises(UserError, match="trainer.accelerator=mps is not available on this machine: use trainer=auto"):
        run(tmp_path, *TINY["vae"], "trainer=mps")


def test_a_run_ends_after_its_longest_time(tmp_path):
    limits = ["trainer.limit_train_batches=2", "callbacks=none", "~callbacks.samples", "test=false"]
    run(tmp_path, *TINY["vae"], *limits, "trainer.max_epochs=1000", "trainer.max_time=00:00:00:01")
    saved = checkpoint(tmp_path)
    assert 0 < saved["global_step"] < 2000
