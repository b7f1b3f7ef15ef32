"""python -m zoo curves reads what runs wrote."""

import sys

import pytest
from helpers import TINY, run

from zoo.__main__ import main
from zoo.curves import figure, read_curve


def test_curves_of_runs(tmp_path, monkeypatch, capsys):
    metrics = run(tmp_path / "a", *TINY["vae"], "trainer.max_epochs=3", "trainer.log_every_n_steps=5")
    unit, points = read_curve(tmp_path / "a", "val/loss")
    assert unit == "epochs"
    assert [epoch for epoch, _ in points] == [1, 2, 3]
    assert abs(points[-1][1] - metrics["val/loss"]) < 1e-3
    assert [epoch for epoch, _ in read_curve(tmp_path / "a", "test/loss")[1]] == [3]
    unit, points = read_curve(tmp_path / "a", "variance/pathwise/all")
    assert unit == "steps" and points[0][0] == 0
    monkeypatch.setattr(sys, "argv", ["zoo", "curves", str(tmp_path / "a"), "-o", str(tmp_path / "x.png")])
    main()
    assert "val/loss" in capsys.readouterr().out and (tmp_path / "x.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="has no values of val/los; it has .*val/loss"):
        read_curve(tmp_path / "a", "val/los")
    with pytest.raises(ValueError, match=r"there is no .*metrics.csv"):
        read_curve(tmp_path, "val/loss")


def test_the_first_epochs_do_not_flatten_the_rest():
    points = [(1, 500.0)] + [(i, 100 - i / 10) for i in range(2, 40)]
    axes = figure({"run": points}, "val/loss").axes[0]
    assert axes.get_ylim()[1] < 120 and axes.get_ylim()[0] > 95
