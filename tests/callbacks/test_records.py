"""Tests of the files of a run. A resumed run writes the same tables, and every run draws its last pictures."""

import logging

import lightning as L
import pytest
import torch
from helpers import TINY, checkpoint, run

from zoo.callbacks.loggers import CSVLogger
from zoo.training.tables import Table, read_rows

SHORT = ["trainer.log_every_n_steps=1", "trainer.max_epochs=3"]
EVERY_10 = "callbacks.estimator_variance.every_n_steps=10"  # the steps of "auto" depend on the time


class BreaksOff(L.Callback):
    """Callback that raises an unexpected error at the end of batch number ``at``."""

    def __init__(self, at: int):
        self.at = at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.at:
            raise RuntimeError("broken off")


class Wants(L.Callback):
    """Callback that asks the trainer to stop when Lightning calls ``hook`` in epoch ``epoch``."""

    def __init__(self, epoch: int, hook: str):
        self.epoch = epoch
        setattr(self, hook, self.stop)

    def stop(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.should_stop = True


def lines(folder, name="metrics.csv"):
    """Return the rows of a table, without columns that measure time."""
    timed = ("_per_second", "ms_per_draw")
    return [
        {key: value for key, value in row.items() if value and not any(t in key for t in timed)}
        for row in read_rows(folder / name)
    ]


def breaks_off(folder, *overrides, at):
    with pytest.raises(RuntimeError, match="broken off"):
        run(folder, *overrides, "+callbacks.breaks._target_=test_records.BreaksOff", f"+callbacks.breaks.at={at}")


# Tables.


def test_rows_of_one_step_are_one_row_and_columns_are_added(tmp_path):
    table = Table(tmp_path / "t.csv")
    table.add({"step": 0, "a": 1.5})
    table.add({"step": 0, "b": 2})
    table.add({"step": 0, "a": 7})  # step 0 already has a value of ``a``, so this value begins a new row
    table.add({"step": 1, "a": 3, "c": "x,y"})
    expected = [{"a": "1.5", "b": "2"}, {"a": "7"}, {"a": "3", "c": "x,y"}]
    found = [{k: v for k, v in row.items() if v and k != "step"} for row in read_rows(table.path)]
    assert found == expected
    assert [row["step"] for row in read_rows(table.path)] == ["0", "0", "1"]
    assert len({line.count(",") for line in table.path.read_text(encoding="utf-8").splitlines()[:3]}) == 1


def test_a_table_continues_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "t.csv"
    table = Table(path)
    for step in range(3):
        table.add({"step": step, "a": step})
    path.write_bytes(path.read_bytes()[:-2])
    Table(path).add({"step": 2, "a": 20})
    assert [row["a"] for row in read_rows(path)] == ["0", "1", "20"]


def test_a_value_that_was_cut_off_is_no_value(tmp_path):
    path = tmp_path / "t.csv"
    Table(path).add({"step": 0, "a": 123})
    path.write_bytes(path.read_bytes() + b"1,45")
    assert [row["a"] for row in read_rows(path)] == ["123"]
    Table(path).add({"step": 1, "a": 456})
    assert [row["a"] for row in read_rows(path)] == ["123", "456"]


def test_columns_go_with_the_rows_that_had_them(tmp_path):
    table = Table(tmp_path / "t.csv")
    table.add({"step": 0, "a": 1})
    table.add({"step": 1, "b": 2})
    table.keep(lambda row: row["step"] == "0")
    assert table.path.read_text(encoding="utf-8") == "step,a\n0,1\n"


def test_a_row_is_on_the_disk_once_it_is_logged_and_estimators_have_a_separate_table(tmp_path):
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"train/loss": torch.tensor(1.0), "epoch": 0}, step=3)
    logger.log_metrics({"variance/pathwise/all": 2.0, "snr/pathwise/all": 0.5, "ms_per_draw/pathwise": 9.0}, step=3)
    assert read_rows(tmp_path / "metrics.csv") == [{"epoch": "0", "step": "3", "train/loss": "1.0"}]
    row = {"step": "3", "estimator": "pathwise", "group": "all", "variance": "2.0", "snr": "0.5", "ms_per_draw": "9.0"}
    assert read_rows(tmp_path / "estimator_variance.csv") == [row]


def test_a_metrics_file_of_an_earlier_version_is_continued(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "epoch,snr/pathwise/all,step,train/loss\r\n0,,4,1.5\r\n,3.0,8,\r\n", encoding="utf-8"
    )
    CSVLogger(str(tmp_path)).log_metrics({"train/loss": 1.0, "epoch": 1}, step=9)
    kept = [{k: v for k, v in row.items() if v} for row in read_rows(tmp_path / "metrics.csv")]
    first = {"epoch": "0", "step": "4", "train/loss": "1.5"}
    assert kept == [first, {"step": "8", "snr/pathwise/all": "3.0"}, {"epoch": "1", "step": "9", "train/loss": "1.0"}]


# Resuming.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of an uninterrupted run with TensorBoard."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, *TINY["vae"], *SHORT, EVERY_10, "logger=tensorboard")
    return folder


def test_metrics_have_one_row_a_step_and_few_columns(whole):
    rows = read_rows(whole / "metrics.csv")
    assert len({row["step"] for row in rows}) == len(rows)
    assert list(rows[0])[:2] == ["epoch", "step"] and len(rows[0]) < 20
    assert not any(key.startswith(("variance/", "snr/", "ms_per_draw/", "estimator_draws")) for key in rows[0])


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "second" not in tag and "ms_per" not in tag]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("ckpt", ["last", "best"])
def test_what_was_logged_after_the_checkpoint_is_dropped_on_resumption(whole, ckpt, tmp_path):
    overrides = [*TINY["vae"], *SHORT, EVERY_10, "logger=tensorboard"]
    breaks_off(tmp_path, *overrides, at=17)  # the second epoch has batches 11 to 21
    assert int(lines(tmp_path)[-1]["step"]) >= 16
    path = next((tmp_path / "checkpoints").glob(f"{ckpt}*.ckpt"))
    run(tmp_path, *overrides, f"ckpt={path}")
    assert lines(tmp_path) == lines(whole)
    measured = lines(whole, "estimator_variance.csv")
    assert {row["step"] for row in measured} == {"0", "10", "20", "30"}
    assert lines(tmp_path, "estimator_variance.csv") == measured
    assert scalars(tmp_path) == scalars(whole)
    ours, theirs = ({path.name for path in (folder / "checkpoints").iterdir()} for folder in (tmp_path, whole))
    assert ours - {path.name} == theirs - {path.name}  # the checkpoint from which the run resumed is kept


def test_a_run_that_resumes_in_another_folder_keeps_its_rows_and_its_best_checkpoint(tmp_path, recwarn):
    a, b = tmp_path / "a", tmp_path / "b"
    overrides = [*TINY["vae"], "trainer.log_every_n_steps=1"]
    run(a, *overrides, "trainer.max_epochs=2")
    best = next((a / "checkpoints").glob("best-*.ckpt"))
    run(
        b, *overrides, "trainer.max_epochs=3", "callbacks.best.mode=min", f"ckpt={a}/checkpoints/last.ckpt", "test=true"
    )
    assert [row["step"] for row in lines(b)][: len(lines(a)) - 1] == [row["step"] for row in lines(a)][:-1]
    assert lines(b)[:10] == lines(a)[:10]
    ours = checkpoint(b)["callbacks"]
    theirs = checkpoint(a)["callbacks"]
    key = next(k for k in theirs if "val/loss" in k)
    assert ours[key]["best_model_score"] <= theirs[key]["best_model_score"]
    assert ours[key]["best_model_path"].startswith(str(b))
    assert best.is_file()  # the first run keeps its best checkpoint
    assert not [w for w in recwarn if "dirpath" in str(w.message)]


def test_the_best_checkpoint_comes_along_where_nothing_better_follows(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    run(a, *TINY["vae"], "trainer.max_epochs=2")
    best = next((a / "checkpoints").glob("best-*.ckpt"))
    breaks_off(b, *TINY["vae"], "trainer.max_epochs=3", f"ckpt={a}/checkpoints/last.ckpt", at=25)
    assert (b / "checkpoints" / best.name).read_bytes() == best.read_bytes()


def test_a_best_checkpoint_that_is_gone_is_said_to_be(tmp_path, caplog):
    a, b = tmp_path / "a", tmp_path / "b"
    run(a, *TINY["vae"], "trainer.max_epochs=1")
    next((a / "checkpoints").glob("best-*.ckpt")).unlink()
    with caplog.at_level(logging.WARNING):
        run(b, *TINY["vae"], "trainer.max_epochs=2", f"ckpt={a}/checkpoints/last.ckpt")
    assert "is missing" in caplog.text
    assert list((b / "checkpoints").glob("best-*.ckpt"))


# The end of a run.


ENDS = {
    "early stopping": (
        ["trainer.max_epochs=9", "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping"]
        + ["+callbacks.stop.monitor=val/loss", "+callbacks.stop.stopping_threshold=1e9"],
        0,
    ),
    "steps": (["trainer.max_epochs=9", "+trainer.max_steps=16"], 1),
    "after training": (
        ["trainer.max_epochs=9", "+callbacks.stop._target_=test_records.Wants", "+callbacks.stop.epoch=1"]
        + ["+callbacks.stop.hook=on_train_epoch_end"],
        1,
    ),
    "epochs that are not validated": (["trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"], 2),
}


@pytest.mark.parametrize("ending", ENDS)
def test_whatever_ends_a_run_its_end_is_drawn_once(ending, tmp_path):
    overrides, last = ENDS[ending]
    every = ["callbacks.samples.every_n_epochs=4", "callbacks.latents.every_n_epochs=4"]
    every += ["callbacks.log_likelihood.every_n_epochs=4", "callbacks.log_likelihood.num_samples=2"]
    run(tmp_path, *TINY["vae"], *every, *overrides)
    for folder in ("samples", "reconstructions", "traversals"):
        assert [path.name for path in (tmp_path / folder).iterdir()] == [f"epoch_{last:03d}.png"]
    assert sum("val/log_likelihood" in row for row in lines(tmp_path)) == 1
    *before, test = lines(tmp_path)
    batches = 16 if ending == "steps" else 11 * (last + 1)
    assert (before[-1]["epoch"], before[-1]["step"]) == (str(last), str(batches - 1))
    assert (test["epoch"], test["step"]) == (str(last + 1), str(batches)) and "test/loss" in test


def test_an_end_is_drawn_after_others_that_were_due(tmp_path):
    every = ["callbacks.samples.every_n_epochs=2", "trainer.max_epochs=9", "test=false"]
    every += ["callbacks.estimator_variance=null", "trainer.limit_train_batches=4"]
    stop = ["+callbacks.stop._target_=test_records.Wants", "+callbacks.stop.epoch=2"]
    run(tmp_path, *TINY["gan"], *every, *stop, "+callbacks.stop.hook=on_validation_end")
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["epoch_001.png", "epoch_002.png"]


def test_the_first_step_after_a_checkpoint_is_dropped_with_those_that_follow(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.callbacks.loggers._first_step_after", lambda ckpt: 2)
    table = Table(tmp_path / "metrics.csv")
    for step in range(4):
        table.add({"step": step, "a": step})
    CSVLogger._go_back(table, tmp_path / "checkpoints" / "last.ckpt")
    assert [row["step"] for row in read_rows(table.path)] == ["0", "1"]


def test_the_last_picture_uses_the_weights_of_validation(tmp_path):
    """A run of nine epochs that stops after two epochs draws the same picture as a run of two epochs."""
    overrides = [*TINY["gan"], "callbacks.samples.every_n_epochs=5", "callbacks.estimator_variance=null", "test=false"]
    overrides += ["trainer.limit_train_batches=4"]
    run(tmp_path / "two", *overrides, "trainer.max_epochs=2")
    stop = ["+callbacks.stop._target_=test_records.Wants", "+callbacks.stop.epoch=1"]
    run(tmp_path / "stopped", *overrides, *stop, "+callbacks.stop.hook=on_validation_end", "trainer.max_epochs=9")
    pictures = [tmp_path / name / "samples" / "epoch_001.png" for name in ("two", "stopped")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
