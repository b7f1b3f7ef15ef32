"""Tests of ``zoo curves`` on the tables of runs."""

import math
import sys

import pytest
from helpers import TINY, run

from zoo.__main__ import main
from zoo.checks.errors import UserError
from zoo.evaluation import curves
from zoo.evaluation.curves import correlation, figure, read_curve


def test_curves_of_runs(tmp_path, monkeypatch, capsys):
    every = ["trainer.log_every_n_steps=5", "callbacks.estimator_variance.every_n_steps=20"]
    metrics = run(tmp_path / "a", *TINY["vae"], "trainer.max_epochs=3", *every)
    unit, points = read_curve(tmp_path / "a", "val/loss")
    assert unit == "epochs"
    assert [epoch for epoch, _ in points] == [1, 2, 3]
    assert abs(points[-1][1] - metrics["val/loss"]) < 1e-3
    assert [epoch for epoch, _ in read_curve(tmp_path / "a", "test/loss")[1]] == [3]
    unit, points = read_curve(tmp_path / "a", "variance/pathwise/all")
    assert unit == "steps" and points[0][0] == 0
    monkeypatch.setattr(sys, "argv", ["zoo", "curves", str(tmp_path / "a"), "-o", str(tmp_path / "x.png")])
    main()
    assert (
        capsys.readouterr().out.splitlines()[0].endswith(" nats after 3 epochs")
        and (tmp_path / "x.png").stat().st_size > 5000
    )
    rows = (tmp_path / "a" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "metrics.csv").write_text(
        "\n".join([rows[0], *(r for r in rows if r.startswith("0,"))]) + "\n", encoding="utf-8"
    )
    monkeypatch.setattr(sys, "argv", ["zoo", "curves", str(tmp_path), "-o", str(tmp_path / "x.png")])
    main()
    assert capsys.readouterr().out.splitlines()[0].endswith(" after 1 epoch")
    (tmp_path / "metrics.csv").unlink()
    with pytest.raises(ValueError, match="has no values of val/los; it has .*val/loss"):
        read_curve(tmp_path / "a", "val/los")
    with pytest.raises(ValueError, match=r"there is no .*metrics.csv"):
        read_curve(tmp_path, "val/loss")


def test_the_first_epochs_do_not_flatten_the_rest():
    points = [(1, 500.0)] + [(i, 100 - i / 10) for i in range(2, 40)]
    axes = figure({"run": points}, "val/loss").axes[0]
    assert axes.get_ylim()[1] < 120 and axes.get_ylim()[0] > 95


def test_a_curve_of_a_diverged_run_has_the_axis_of_its_finite_values():
    points = [(i, 100 - i) for i in range(1, 10)] + [
        (i, value) for i in range(10, 40) for value in (math.nan, math.inf)
    ]
    axes = figure({"run": [(i, float(value)) for i, value in points]}, "val/loss").axes[0]
    assert 80 < axes.get_ylim()[0] < axes.get_ylim()[1] < 110


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("last", [2.0, math.nan, math.inf])
def test_a_correlation_with_values_without_spread_is_not_defined(last):
    said = correlation([(1.0, 2.0), (2.0, 2.0), (3.0, last)])
    assert said == "correlation not defined (constant or infinite values, 3 points)"


def test_runs_with_different_axes_are_not_in_one_picture(tmp_path, monkeypatch):
    for name, rows in (("a", "epoch,step,v\n0,10,3.0\n1,20,2.0\n"), ("b", "epoch,step,v\n,10,3.0\n,20,2.0\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(rows, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["zoo", "curves", "a", "b", "--metric", "v", "-o", "x.png"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == "error: v is logged by epochs in a and by steps in b: draw these runs in two pictures"
    assert not (tmp_path / "x.png").exists()


def test_one_metric_against_another(tmp_path, monkeypatch, capsys):
    rows = ["epoch,step,val/a,val/b", "0,10,3.0,", "0,11,,30.0", "1,20,2.0,", "1,21,,19.0", "2,30,1.0,", "2,31,,11.0"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert curves.read_pairs(tmp_path, "val/a", "val/b") == [(3.0, 30.0), (2.0, 19.0), (1.0, 11.0)]
    assert curves.correlation([(1, 1), (2, 8), (3, 27)]) == "correlation 0.97 (rank correlation 1.00, 3 points)"
    arguments = [str(tmp_path), "--metric", "val/b", "--against", "val/a", "-o", str(tmp_path / "x.png")]
    monkeypatch.setattr(sys, "argv", ["zoo", "curves", *arguments])
    main()
    assert "(rank correlation 1.00, 3 points) of val/b with val/a" in capsys.readouterr().out
    assert (tmp_path / "x.png").stat().st_size > 0
    steps = ["epoch,step,val/a,v", "0,10,3.0,", "1,20,2.0,", ",1,,5.0", ",2,,6.0"]
    (tmp_path / "metrics.csv").write_text("\n".join(steps) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="val/a is logged by epochs and v by steps"):
        curves.read_pairs(tmp_path, "val/a", "v")
    (tmp_path / "metrics.csv").write_text("\n".join(rows[:5]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="val/a and val/b together 2 times; a correlation needs at least three"):
        curves.read_pairs(tmp_path, "val/a", "val/b")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("epoch,step,v\n0,10,oops\n", "'oops' in its column v, which holds numbers"),
        ("epoch,step,v\nzero,10,1\n", "'zero' in its column epoch, which holds numbers"),
        ("v\n1\n", "no value in its column step, which holds numbers"),
    ],
)
def test_values_that_are_no_numbers_are_named(table, message, tmp_path):
    (tmp_path / "metrics.csv").write_text(table, encoding="utf-8")
    with pytest.raises(UserError, match=f"metrics.csv has {message}: restore the file"):
        read_curve(tmp_path, "v")
