"""Tests of progress bars and logs in special cases: unknown totals, last batches, full disks."""

import logging
import math
import warnings
from types import SimpleNamespace

import pytest

from zoo.functional.progress import Lines
from zoo.training.messages import LogFile, log_above_bars
from zoo.training.progress import Bars, ProgressLines, known


def test_a_total_is_known_where_all_its_parts_are():
    assert known(2, 3) == 5 and known(0) == 0
    assert known() is None and known(2, math.inf) is None and known(None) is None


def test_a_bar_shows_its_last_batch_however_soon_it_comes():
    bars = Bars()
    assert bars._should_update(1, 3)
    assert not bars._should_update(2, 3)
    assert bars._should_update(3, 3)


def test_the_sanity_check_has_no_lines(caplog):
    lines = ProgressLines()
    for checking in (True, False):
        lines._lines = Lines(first=0, every=0)
        trainer = SimpleNamespace(sanity_checking=checking, num_val_batches=[9])
        with caplog.at_level("INFO"):
            lines.on_validation_batch_end(trainer, None, None, None, 0)
    assert [record.getMessage() for record in caplog.records] == ["Validation, batch 1 of 9"]


def test_warnings_are_shown_as_before_once_a_run_is_over():
    before = warnings.showwarning
    with log_above_bars():
        assert warnings.showwarning is not before
    assert warnings.showwarning is before


def test_a_full_disk_loses_lines_of_the_log_and_a_mistake_in_a_line_is_said(capfd):
    handler = LogFile("/dev/full")
    handler.handle(logging.LogRecord("zoo", logging.INFO, __file__, 0, "a line", None, None))
    assert capfd.readouterr().err == ""
    handler.handle(logging.LogRecord("zoo", logging.INFO, __file__, 0, "%d lines", ("no number",), None))
    assert "Logging error" in capfd.readouterr().err
    with pytest.raises(OSError, match="No space left"):
        handler.close()
