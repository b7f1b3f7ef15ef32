"""Tests of the benchmark of training steps. The other benchmarks are not tested."""

import importlib
from pathlib import Path

import pytest
from helpers import TINY, tiers

from zoo.evaluation.results import read_results

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def steps(monkeypatch):
    """Return the module of the benchmark."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("steps")


def arguments(model, *more):
    few = ["--steps", "6", "--warm-up", "8", "--rounds", "1"]  # more than an epoch of 11 batches
    return [model, *few, *more, "--set", *TINY[model][1:]]


def test_the_benchmark_of_steps_prints_a_row_for_each_contender(steps, tmp_path, capsys):
    differences = steps.main(arguments("vae", "--callbacks", "none", "default", "--csv", str(tmp_path)))["vae"]
    printed = capsys.readouterr().out
    assert "data=digits" in printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ") and "---" not in line]
    names = [row[0].removeprefix("| ") for row in rows[1:]]
    assert names == list(differences)
    assert names[0] == steps.BARE
    assert all(any(name.startswith("train.py") and what in name for name in names) for what in ("", "default"))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert "DIFFERS" not in printed
    assert max(differences.values()) < 1e-5
    table, about = read_results(tmp_path / "speed-steps.csv")  # zoo report reads this file
    assert [row[0] for row in table.rows] == ["`vae`"] and len(table.columns) == 5
    assert all(float(cell) > 0 for cell in table.rows[0][1:]) and "torch" in about["hardware"]


@pytest.mark.parametrize("model", tiers(["rbm", "gan", "wgan"], ["rbm"]))
def test_the_bare_loop_trains_the_same_model_as_train_py(model, steps):
    differences = steps.main(arguments(model, "--callbacks", "none"))[model]
    assert len(differences) >= 2
    assert max(differences.values()) < 1e-5


@pytest.mark.slow
def test_a_bare_loop_that_trains_less_than_train_py_is_marked(steps, monkeypatch, capsys):
    monkeypatch.setattr(steps.Average, "update", lambda self: None)
    differences = steps.main(arguments("rbm", "--callbacks", "none"))["rbm"]
    assert max(differences.values()) > steps.TOLERANCE
    assert "DIFFERS" in capsys.readouterr().out


# Adam's fused kernel rounds differently, and adversarial training enlarges the difference. RMSprop has no such kernel.
CLIPPED = [*TINY["wgan"], "model.lipschitz=clip", "model.clip_value=0.2"]


@pytest.mark.parametrize("overrides", [TINY["vae"], pytest.param(CLIPPED, marks=pytest.mark.slow)], ids=["vae", "wgan"])
def test_the_step_as_graphs_trains_the_same_model_as_the_bare_loop(overrides, steps, tmp_path, monkeypatch):
    # Without a GPU, a replay runs the step again.
    monkeypatch.setattr(steps, "beside", lambda run: run())
    monkeypatch.setattr(steps, "captured", lambda run: (run, None))
    bare, graph = (
        steps.run(
            overrides[0].removeprefix("model="),
            tmp_path / str(graph),
            "none",
            {"_target_": "steps.Bare", "first": 8, "last": 14, "graph": graph},
            ["trainer=cpu", *overrides[1:]],
        )
        for graph in (False, True)
    )
    assert steps.difference(graph, bare) < 1e-5
