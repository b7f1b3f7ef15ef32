"""Tests of new metrics of samples on the card of an exported model."""

import json

import pytest
from helpers import TINY, run

import zoo
from zoo import hub
from zoo.evaluation.protocol import Protocol
from zoo.hub import exporting


def test_samples_of_an_exported_model_are_measured_again(tmp_path, monkeypatch):
    """A metric that the card lacks is added. Other metrics, the weights and the number of samples stay."""
    fast = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "callbacks=none", "test=false"]
    run(tmp_path / "run", *TINY["gan"][:-1], *fast)
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    weights = exporting.export(tmp_path / "run", "small", protocol=Protocol(samples=20), folder=tmp_path / "weights")
    before, packed = hub.read_card("small"), weights.read_bytes()
    assert before["counts"] == {"energy_distance": 20}
    old = {k: v for k, v in before.items() if k != "counts"}
    old["metrics"] = {k: v for k, v in before["metrics"].items() if k != "energy_distance_error"}
    old["metrics"]["test/marker"] = 1.0
    weights.with_suffix(".json").write_text(json.dumps(old), encoding="utf-8")
    card = exporting.remeasure_samples("small", tmp_path / "weights")
    assert card == hub.read_card("small") == before | {"metrics": before["metrics"] | {"test/marker": 1.0}}
    assert weights.read_bytes() == packed


def test_a_model_without_measured_samples_is_refused():
    with pytest.raises(hub.CheckpointError, match="the card of classifier has no metrics of samples"):
        exporting.remeasure_samples("classifier", zoo.WEIGHTS)
