"""Tests of ``zoo compare --csv``: the results file of a measurement of gradient estimators."""

import pytest
import torch

import zoo
from zoo.checks.errors import UserError
from zoo.commands.models import compare
from zoo.commands.pages import Documentation
from zoo.commands.parser import parser
from zoo.evaluation.comparison import COLUMNS, Row, cells


def test_cells_have_three_digits_and_name_what_is_below_noise():
    rows = [
        Row("pathwise", "all", 3171.4, 0.4123, 6.312, 0.0, 0.0),
        Row("reinforce", "all", 1.52e7, 0.0, 6.5, 0.1, 0.1),
    ]
    rows += [Row("pathwise", "encoder", 1.0, 1.0, 1.0, 0.0, 0.0)]
    assert cells(rows) == [
        ["`pathwise`", "3170", "0.41", "6.31", "20000"],
        ["`reinforce`", "1.52e7", "below noise", "6.50", "9.88e7"],
    ]


@pytest.mark.slow
def test_compare_writes_a_table_that_report_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "docs" / "results" / "estimators-chain.csv"
    file.parent.mkdir(parents=True)
    words = ["compare", "gan-discrete", "--data", "markov_chain", "--draws", "2", "--batch-size", "4"]
    compare(parser().parse_args([*words, "-o", "figure.png", "--csv", str(file)]))
    names = {f"`{name}`" for name in zoo.load("gan-discrete").gradient_estimators()}
    table = Documentation(tmp_path).table("estimators-chain")
    assert table.columns == list(COLUMNS) and {row[0] for row in table.rows} == names
    head = file.read_text(encoding="utf-8").splitlines()
    assert head[0] == "# command: zoo compare gan-discrete --draws 2 --data markov_chain --batch-size 4"
    assert head[1] == "# seed: 0" and f"torch {torch.__version__}" in head[2]
    with pytest.raises(UserError, match="--csv writes results of a model, not of toy: leave out --csv"):
        compare(parser().parse_args(["compare", "toy", "--csv", str(file)]))


@pytest.mark.parametrize("words", [["--estimators", "pathwise"], ["--data", "digits"], ["--batch-size", "8"]])
def test_toy_refuses_options_of_models(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{words[0]} is an option of trained models, and toy is an example: leave out"):
        compare(parser().parse_args(["compare", "toy", "--draws", "2", *words]))
    assert not list(tmp_path.iterdir())
