"""Tests of the bars of rich: one bar at a time, messages above it, and none outside a terminal."""

import io
import logging
import re

import lightning as L
import pytest
from test_messages import SHORT, printed, written

from zoo.functional.progress import has_bars
from zoo.training.progress import Bars, ProgressLines, progress_bar

pytest.importorskip("rich")

CONTROL = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")


class Say(L.Callback):
    """Log a message of 150 characters while the bar is shown."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            logging.getLogger("zoo").info("Said in epoch %d %s", trainer.current_epoch, "[x] " * 33)


def test_messages_stand_above_the_bar_of_rich_and_long_ones_stay_on_one_line(tmp_path):
    output = printed(True, tmp_path, *SHORT, "logger=csv", f"+callbacks.say._target_={__name__}.Say", term="xterm")
    lines = [CONTROL.sub("", line).strip() for line in written(output)]
    assert any(re.match(r"Epoch 1/1\s+━+ 11/11", line) for line in lines)
    assert any(re.match(r"Testing\s+━+ (\d+)/\1 ", line) for line in lines)
    for message in ("Said in epoch 0", "Said in epoch 1", "Test of the best checkpoint:", "Files in ", "VAE has "):
        (line,) = [line for line in lines if message in line]
        assert line.startswith(message) and ("Said" not in message or line.endswith("[x] " * 32 + "[x]"))
    assert "%|" not in output and "it/s]" not in output and "v_num" not in output  # no bar of tqdm


def test_a_terminal_with_a_bar_of_rich_has_no_place_for_another(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    class Held(Terminal):
        rich_proxied_file = None

    assert has_bars(Terminal()) and not has_bars(Held())
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_bar(), Bars)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(progress_bar(), ProgressLines)
