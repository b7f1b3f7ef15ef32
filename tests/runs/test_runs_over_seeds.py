"""Tests of ``zoo report --runs``: the mean, the spread and the interval of runs that differ in their seeds."""

import csv
import json
import math
import re
import shutil
import sys

import pytest
import torch
from helpers import TINY, run
from PIL import Image
from scipy.stats import t

import zoo
import zoo.__main__ as command_line
from zoo.commands.pages import Documentation
from zoo.evaluation.results import read_results
from zoo.evaluation.runs import interval, read_card_of_run, spread, with_units
from zoo.evaluation.seeds import seeds_figure
from zoo.evaluation.units import decimals

SHORT = [*TINY["vae"], "callbacks=none", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with runs of two seeds, and the test metrics of each run."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, [run(folder / f"seed{seed}", *SHORT, f"seed={seed}") for seed in (0, 1)]


@pytest.fixture
def runs(trained, tmp_path):
    """Return a copy of the two runs, which a test may change."""
    for name in ("seed0", "seed1"):
        shutil.copytree(trained[0] / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def report(monkeypatch, capsys, *words):
    """Return the output of ``zoo report --runs`` with some words, or its error."""
    monkeypatch.setattr(sys, "argv", ["zoo", "report", "--runs", *map(str, words)])
    try:
        command_line.main()
    except SystemExit as end:
        return str(end.code)
    return capsys.readouterr().out


def test_two_runs_give_mean_spread_and_interval(trained, monkeypatch, capsys):
    folder, metrics = trained
    said = report(monkeypatch, capsys, folder / "*", "--format", "csv")
    rows = {row["metric"]: row for row in csv.DictReader(said.splitlines())}
    assert set(rows) == {name for name in metrics[0] if name.startswith("test/")}
    a, b = (float(of_run["test/loss"]) for of_run in metrics)
    assert a != b
    row = {name: float(rows["test/loss"][name]) for name in ("n", "mean", "sd", "min", "max", "low", "high")}
    quantile = math.tan(0.475 * math.pi)  # Student's t with one degree of freedom is a Cauchy distribution
    half = quantile * abs(a - b) / 2
    mean = (a + b) / 2
    expected = {"n": 2, "mean": mean, "sd": abs(a - b) / 2**0.5, "min": min(a, b), "max": max(a, b)}
    assert row == pytest.approx(expected | {"low": mean - half, "high": mean + half}, rel=1e-5)
    assert rows["test/loss"]["seeds"] == "0 1"
    said = report(monkeypatch, capsys, folder / "*", "--metric", "test/nll")
    assert "95 % interval of the mean" in said and "Student's t" in said and "Seeds: 0, 1." in said
    assert "`test/nll` | 2 |" in said and "test/loss" not in said


def test_the_interval_is_that_of_students_t():
    values = [95.1, 96.0, 94.2, 95.5, 95.9, 94.8, 95.3, 96.4]
    found = spread("m", range(8), values)
    expected = t.interval(0.95, 7, loc=sum(values) / 8, scale=found.sd / 8**0.5)
    assert (found.low, found.high) == pytest.approx(expected)
    a, b = interval([1.0, 2.0, 6.0])  # the quantile p of two degrees of freedom is (2p - 1) sqrt(2 / (4p (1 - p)))
    assert (b - a) / 2 == pytest.approx(0.95 * (2 / (4 * 0.975 * 0.025)) ** 0.5 * (7 / 3) ** 0.5)
    one = spread("m", [0], [3.0])
    assert (one.mean, one.sd, one.low, one.high) == (3.0, None, None, None)


def test_the_interval_holds_the_mean_in_95_of_100_cases():
    """In 2,000 experiments of 4 normal values, the mean is inside 1,860 to 1,940 times. False alarms: 1 in 25,000."""
    values = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    inside = sum(low < 0 < high for low, high in map(interval, values))
    assert abs(inside - 1900) <= 40


def change(file, before, after):
    text = file.read_text(encoding="utf-8")
    assert re.search(before, text, re.MULTILINE), before
    file.write_text(re.sub(before, after, text, count=1, flags=re.MULTILINE), encoding="utf-8")


def test_runs_with_other_settings_or_models_are_refused(runs, monkeypatch, capsys):
    config = runs / "seed1" / "config.yaml"
    before = config.read_text(encoding="utf-8")
    change(config, r"^  lr: .*$", "  lr: 0.5")
    said = report(monkeypatch, capsys, runs / "*")
    assert (
        "seed0 has model.lr=0.001, and" in said and "seed1 has model.lr=0.5: give runs that differ in nothing" in said
    )
    config.write_text(before, encoding="utf-8")
    change(config, r"zoo\.vae\.VAE", "zoo.cvae.CVAE")
    said = report(monkeypatch, capsys, runs / "*")
    assert "seed0 trained zoo.vae.VAE, and" in said and "seed1 trained zoo.cvae.CVAE: give runs of one model" in said


def test_the_same_seed_twice_is_refused(runs, monkeypatch, capsys):
    shutil.copytree(runs / "seed0", runs / "again")
    assert "both have seed 0: leave out one of them" in report(monkeypatch, capsys, runs / "*")


def test_a_run_without_test_metrics_is_named(runs, monkeypatch, capsys):
    lines = (runs / "seed1" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert "test/loss" in lines[0]
    (runs / "seed1" / "metrics.csv").write_text("epoch,step,val/loss\n0,2,3.5\n", encoding="utf-8")
    said = report(monkeypatch, capsys, runs / "*")
    assert "seed1 has no test metrics: it was stopped or had test=false" in said
    assert "`val/loss` | 2 |" in report(monkeypatch, capsys, runs / "*", "--metric", "val/loss")
    said = report(monkeypatch, capsys, runs / "seed0", "--metric", "test/los")
    assert "seed0 has no metric test/los" in said and "Did you mean test/loss?" in said


def test_a_pattern_without_runs_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    for pattern in ("nothing*", "empty"):
        said = report(monkeypatch, capsys, tmp_path / pattern)
        assert f"no run folder matches {str(tmp_path / pattern)!r}" in said


CONFIG, TABLE = "seed: 0\nmodel: {_target_: zoo.vae.VAE}\n", "epoch,step,val/loss,test/loss\n0,9,2.5,\n1,10,,2.5\n"
CARD = {"model": "zoo.vae.VAE", "hyper_parameters": {}, "metrics": {"test/loss": 2.5}, "command": "zoo train seed=0"}


def written(folder, config=CONFIG, table=TABLE):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    (folder / "metrics.csv").write_text(table, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"table": TABLE.replace("2.5", "oops")}, "metrics.csv has 'oops' in its column val/loss, which holds numbers"),
        ({"table": TABLE.replace("2.5", "2.5,3,4")}, "metrics.csv has a row with more cells than its header"),
        ({"table": TABLE.replace("2.5", "2" * 200_000)}, r"metrics.csv is damaged \(field larger than"),
        ({"config": "- a\n"}, "config.yaml holds no settings"),
        ({"config": ""}, "config.yaml holds no settings"),
        ({"config": CONFIG.replace("0", "[1]")}, r"has the seed \[1\], which is no integer"),
    ],
)
def test_a_run_folder_with_wrong_values_is_an_error_of_one_line(changed, message, tmp_path, monkeypatch, capsys):
    assert "`test/loss` | 1 | 2.5" in report(monkeypatch, capsys, written(tmp_path / "good"))
    said = report(monkeypatch, capsys, written(tmp_path / "bad", **changed))
    assert said.startswith(f"error: {tmp_path / 'bad'}") and re.search(message, said)
    assert "restore the file" in said and "\n" not in said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metrics": {"test/loss": "abc"}}, "has 'abc' as the metric test/loss, which must be a number"),
        ({"metrics": {"test/loss": None}}, "has None as the metric test/loss, which must be a number"),
        ({"metrics": [1]}, "its metrics have no names"),
        ({"hyper_parameters": [1]}, "its hyper_parameters have no names"),
        ({"command": None}, "does not record the command of its run"),
        ({"command": "zoo train 'a=1"}, "does not record the command of its run"),
        ({"seed": [1]}, r"has the seed \[1\], which is no integer"),
    ],
)
def test_a_card_with_wrong_values_is_an_error_of_one_line(changed, message, tmp_path, monkeypatch, capsys):
    card = tmp_path / "card.json"
    card.write_text(json.dumps(CARD), encoding="utf-8")
    assert "`test/loss` | 1 | 2.5" in report(monkeypatch, capsys, card)
    card.write_text(json.dumps(CARD | changed), encoding="utf-8")
    said = report(monkeypatch, capsys, card)
    assert said.startswith(f"error: {card}") and re.search(message, said) and "\n" not in said


def test_a_wrong_pattern_is_an_error_of_one_line(tmp_path, monkeypatch, capsys):
    said = report(monkeypatch, capsys, "runs/**x")  # from Python 3.13 on, this pattern is allowed, and matches nothing
    pattern = "'runs/**x' is no pattern of run folders: write for example 'runs/vade/*'"
    assert said == f"error: {pattern}" or said.startswith("error: no run folder matches 'runs/**x'")


def test_a_file_that_cannot_be_written_is_an_error_before_the_table(tmp_path, monkeypatch, capsys):
    folder = written(tmp_path / "run")
    (tmp_path / "a.csv").mkdir()
    for place in (folder / "config.yaml" / "a.csv", tmp_path / "a.csv"):
        said = report(monkeypatch, capsys, folder, "-o", place)
        assert said.startswith(f"error: {place} cannot be written") and not capsys.readouterr().out


def test_runs_with_folders_of_one_name_have_a_curve_each(tmp_path, monkeypatch, capsys):
    folders = [written(tmp_path / name / "run", table=TABLE.replace("2.5", value)) for name, value in ("a1", "b2")]
    said = report(monkeypatch, capsys, *folders, "--points", "--metric", "val/loss", "--format", "csv")
    assert list(csv.reader(said.splitlines())) == [["epoch", *(f"`{folder}`" for folder in folders)], ["1", "1", "2"]]


def test_the_results_file_of_seeds_enters_the_table(trained, tmp_path, monkeypatch, capsys):
    folder, metrics = trained
    file = tmp_path / "docs" / "results" / "seeds" / "vae.csv"
    file.parent.mkdir(parents=True)
    report(monkeypatch, capsys, folder / "*", "--metric", "test/loss", "-o", file)
    _, about = read_results(file)
    assert about["seed"] == "0, 1" and "threads of" in about["hardware"] and about["command"]
    (row,) = Documentation(tmp_path).table("seeds").rows
    values = [float(of_run["test/loss"]) for of_run in metrics]
    sd = abs(values[0] - values[1]) / 2**0.5
    digits = decimals(sd)  # all numbers have the decimals of the standard deviation
    assert row[:1] + row[2:4] == ["`vae`", "0, 1", f"{sum(values) / 2:.{digits}f} ({sd:.{digits}f})"]
    assert row[4] == f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def test_cards_of_exported_runs_are_read_like_runs(tmp_path, monkeypatch, capsys):
    card = json.loads((zoo.WEIGHTS / "gan.json").read_text(encoding="utf-8"))
    for seed, distance in ((0, 3.5), (1, 4.5)):
        card |= {"seed": seed, "metrics": {**card["metrics"], "classifier_fid": distance}}
        (tmp_path / f"gan-{seed}.json").write_text(json.dumps(card), encoding="utf-8")
    words = [tmp_path / "*.json", "--metric", "classifier_fid"]
    said = report(monkeypatch, capsys, *words)
    assert "| `classifier_fid` | 2 | 4.00 | 0.71 | 3.50 | 4.50 |" in said
    file = tmp_path / "docs" / "results" / "seeds" / "gan.csv"
    file.parent.mkdir(parents=True)
    report(monkeypatch, capsys, *words, "-o", file)
    assert read_results(file)[1] == {"command": card["command"], "seed": "0, 1", "hardware": card["hardware"]}
    # The best checkpoint of another seed can be of another epoch. Another command is another run.
    for command, epochs in ((card["command"], 1), (f"{card['command']} trainer.precision=64-true", card["epochs"])):
        changed = {**card, "command": command, "epochs": epochs}
        (tmp_path / "gan-1.json").write_text(json.dumps(changed), encoding="utf-8")
        refused = "gan-1.json has trainer.precision='64-true': give runs that differ in nothing"
        assert (refused in report(monkeypatch, capsys, *words)) == (command != card["command"])
    card["hyper_parameters"]["lr"] = 1.0
    (tmp_path / "gan-1.json").write_text(json.dumps(card), encoding="utf-8")
    assert "gan-1.json has model.lr=1.0: give runs that differ in nothing" in report(monkeypatch, capsys, *words)


def test_standard_errors_of_a_card_are_no_metrics_of_seeds(tmp_path):
    """The reconstruction error of an RBM is a metric."""
    card = json.loads((zoo.WEIGHTS / "rbm.json").read_text(encoding="utf-8"))
    card["metrics"] |= {"feature_accuracy_error": 0.002, "kl/eta=1": 0.1, "kl_error/eta=1": 0.01}
    (tmp_path / "rbm.json").write_text(json.dumps(card), encoding="utf-8")
    found = read_card_of_run(tmp_path / "rbm.json").metrics
    assert set(card["metrics"]) - set(found) == {"feature_accuracy_error", "kl_error/eta=1"}
    assert "test/reconstruction_error" in found


def test_metrics_in_a_picture_have_units_and_axes_of_their_own():
    spreads = [spread("test/accuracy", [0, 1], [0.9, 0.8]), spread("test/loss", [0, 1], [500.0, 510.0])]
    named = dict(with_units(spreads, ["test/accuracy", "test/loss", "test/nll"]))
    assert {name: pytest.approx(values) for name, values in named.items()} == {
        "test/accuracy, %": [90.0, 80.0],
        "test/loss, nats": [500.0, 510.0],
    }
    first, second = seeds_figure(named).axes
    assert first.get_xlim()[1] < 200 and second.get_xlim()[0] > 300


def test_a_picture_shows_the_values_of_all_seeds(trained, tmp_path, monkeypatch, capsys):
    report(monkeypatch, capsys, trained[0] / "*", "--metric", "test/loss", "-o", tmp_path / "seeds.png")
    with Image.open(tmp_path / "seeds.png") as picture:
        assert picture.size[0] > 100


def test_the_points_of_learning_curves_are_a_table_of_the_documentation(trained, tmp_path, monkeypatch, capsys):
    file = tmp_path / "docs" / "results" / "curve-vae.csv"
    file.parent.mkdir(parents=True)
    words = [trained[0] / "*", "--points", "--metric", "val/loss"]
    said = report(monkeypatch, capsys, *words, "--format", "csv", "-o", file)
    header, point = csv.reader(said.splitlines())
    assert header == ["epoch", "`seed0`", "`seed1`"] and point[0] == "1"
    assert float(point[1]) > 0 and float(point[2]) > 0 and point[1] != point[2]
    assert Documentation(tmp_path).table("curve-vae").rows == [point]
    assert "--points writes CSV files" in report(monkeypatch, capsys, *words, "-o", "a.png")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv"])
def test_a_damaged_file_of_a_run_is_an_error_that_names_it(name, runs, monkeypatch, capsys):
    for content in (b"\xff\xfe\n", *([b"a: [1\n"] if name == "config.yaml" else [])):
        (runs / "seed0" / name).write_bytes(content)
        assert f"{runs / 'seed0' / name} is not" in report(monkeypatch, capsys, runs / "*")


def test_a_metric_that_is_no_number_is_shown(runs, monkeypatch, capsys):
    table = runs / "seed0" / "metrics.csv"
    header, *rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([header, *rows, ",".join(["nan"] * len(header.split(",")))]) + "\n", encoding="utf-8")
    assert "| `test/loss` | 2 | nan | nan |" in report(monkeypatch, capsys, runs / "*")


def test_one_run_has_no_interval(runs, monkeypatch, capsys):
    said = report(monkeypatch, capsys, runs / "seed0")
    assert said.endswith("Seeds: 0. One run gives no spread and no interval.\n")
