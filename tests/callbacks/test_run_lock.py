"""Tests of the lock of a run folder: two processes never write to one run."""

import pickle

import pytest
from filelock import FileLock
from helpers import TINY, run

from zoo.callbacks import RunRecord
from zoo.checks.errors import UserError


def test_a_run_that_another_process_trains_is_refused_until_that_process_ends(tmp_path):
    other = FileLock(tmp_path / ".lock")
    with other, pytest.raises(UserError, match=r"another process trains the run .*: wait until it ends"):
        RunRecord(str(tmp_path))
    RunRecord(str(tmp_path))


def test_the_folder_is_locked_from_the_start_until_the_run_ends(tmp_path):
    record = RunRecord(str(tmp_path))
    with pytest.raises(TimeoutError):
        FileLock(tmp_path / ".lock").acquire(timeout=0)
    assert pickle.loads(pickle.dumps(record)).folder == record.folder
    record.on_exception(None, None, KeyboardInterrupt())
    FileLock(tmp_path / ".lock").acquire(timeout=0).lock.release()


def test_a_start_that_fails_frees_the_folder_at_once(tmp_path):
    """The error keeps the frames of the failed start, and they keep the lock of the run record."""
    with pytest.raises(UserError, match="trainer.precision must be") as error:
        run(tmp_path, *TINY["vae"], "trainer.precision=8")
    RunRecord(str(tmp_path))
    assert error.value.__traceback__ is not None


def test_a_folder_that_cannot_be_made_is_not_locked(tmp_path):
    (tmp_path / "file").touch()
    RunRecord(str(tmp_path / "file" / "run"))


def test_a_folder_is_locked_in_training_and_test_and_free_after_them(tmp_path, monkeypatch):
    def refused(*args):
        with pytest.raises(TimeoutError):
            FileLock(tmp_path / ".lock").acquire(timeout=0)
        asked.append(args)

    asked = []
    monkeypatch.setattr(RunRecord, "on_train_start", refused)
    monkeypatch.setattr(RunRecord, "on_test_start", refused)
    run(tmp_path, *TINY["vae"], "debug=fast", "callbacks=none")
    assert len(asked) == 2
    FileLock(tmp_path / ".lock").acquire(timeout=0).lock.release()
