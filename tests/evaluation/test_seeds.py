"""Tests of the picture of results over seeds."""

import pytest
from PIL import Image

from zoo.checks.errors import UserError
from zoo.evaluation.seeds import draw_seeds, interval, seeds_figure


def test_the_interval_is_that_of_a_textbook():
    """The mean of 1, 2, 3, 4, 5 is 3 and its standard error is sqrt(2.5 / 5). The quantile of t is 2.776."""
    low, high = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert low == pytest.approx(3 - 2.7764 * 0.5**0.5, abs=1e-4) and high == pytest.approx(6 - low)
    assert interval([1.0]) is None


def test_every_seed_is_drawn_in_the_row_of_its_label():
    values = {"ours": [95.0, 95.0, 93.0], "shorter": [90.0]}
    (axes,) = seeds_figure(values, "accuracy, %", {"ours": 94.4}).axes
    points = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in points] == list(values.values())
    assert [{round(y) for y in line.get_ydata()} for line in points] == [{0}, {1}]
    assert len(set(points[0].get_ydata())) == 3  # equal results do not hide each other
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ours\n3 seeds", "shorter\n1 seed"]
    means = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert means == [[pytest.approx(283 / 3)], [90.0]]
    intervals = [tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "|" and len(line.get_xdata())]
    assert intervals == [interval(values["ours"])]  # one run has no interval
    assert [94.4, 94.4] in [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "--"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first label is at the top


def test_the_picture_is_a_file_and_wrong_values_are_named(tmp_path):
    draw_seeds({"a": [1.0, 2.0]}, tmp_path / "a.png", "nats")
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.size[0] == 840
    for values, published, message in [
        ({}, None, "at least one label"),
        ({"a": []}, None, r"a must have finite results, one for each seed; got \[\]"),
        ({"a": [1.0, float("nan")]}, None, "got .*nan"),
        ({"a": [1.0]}, {"b": 1.0}, "published values must belong to a; got b"),
    ]:
        with pytest.raises(UserError, match=message):
            draw_seeds(values, tmp_path / "b.png", "nats", published)
    assert not (tmp_path / "b.png").exists()
