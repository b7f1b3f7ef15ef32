"""Tests of cards that are written again: the numbers of replaced checkpoints, and metrics that are measured again."""

import json
import logging
import sys

import pytest
from helpers import TINY, run

import zoo
from zoo import hub
from zoo.__main__ import main
from zoo.checks.errors import CheckpointError, UserError
from zoo.evaluation.protocol import Protocol
from zoo.hub import exporting
from zoo.hub.cards import previous, protocol_of
from zoo.hub.refreshing import refresh


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with runs of two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        few = [*TINY["vae"], "callbacks=none", "trainer.max_epochs=1", "test=false", "trainer.limit_train_batches=2"]
        run(folder / str(seed), *few, f"seed={seed}")
    return folder


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    return tmp_path / "weights"


def change(path, **entries):
    card = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(card | entries), encoding="utf-8")


def test_a_new_card_keeps_the_numbers_of_the_card_that_it_replaces(runs, weights, caplog):
    exporting.export(runs / "0", "vae", protocol=Protocol(importance_samples=3))
    change(weights / "vae.json", note="written by hand")
    old = hub.read_card("vae")
    exporting.export(runs / "1", "vae", force=True)
    new = hub.read_card("vae")
    (kept,) = new["previous"]
    for key in ("metrics", "errors", "command", "commit", "seed", "epochs", "steps", "seconds", "hardware", "sha256"):
        assert kept[key] == old[key], key
    assert kept["note"] == "written by hand" and "note" not in new and kept["earlier"] == []
    assert (kept["log_likelihood"], kept["bound"], kept["samples"]) == ({"num_samples": 3}, None, None)
    assert (kept["seed"], new["seed"]) == (0, 1) and new["metrics"] != kept["metrics"]
    assert new["log_likelihood"]["num_samples"] == 3  # by the protocol of the replaced card
    exporting.export(runs / "1", "vae", force=True)
    assert hub.read_card("vae")["previous"] == new["previous"]  # the same run replaces nothing
    with caplog.at_level(logging.WARNING):
        exporting.export(runs / "0", "vae", force=True, protocol=Protocol())
    assert "metrics that were not measured now: test/log_likelihood" in caplog.text
    assert [part["seed"] for part in hub.read_card("vae")["previous"]] == [0, 1]  # the newest last


def test_every_shipped_card_has_numbers_to_keep():
    """Cards of earlier versions lack some entries. A new card holds their metrics, command and protocol."""
    for name in zoo.list_checkpoints():
        old = hub.read_card(name)
        kept = previous(old, old | {"seconds": -1, "previous": []})[-1]
        for key in ("metrics", "command", "commit", "seed", "epochs", "seconds", "hardware", "earlier", "sha256"):
            assert kept[key] == old[key], (name, key)
        protocol = protocol_of(old)
        assert bool(protocol.importance_samples) == bool(old.get("log_likelihood")), name
        assert bool(protocol.bound_images) == ("bits_per_dim" in old["metrics"]), name
        assert protocol_of(kept)._replace(samples=None) == protocol._replace(samples=None), name
        of_samples = ("classifier_fid", "energy_distance", "kl")
        assert bool(kept["samples"]) == any(key.split("/")[0] in of_samples for key in old["metrics"]), name


def test_metrics_are_measured_again_and_the_rest_of_the_card_stays(runs, weights, monkeypatch, capsys):
    exporting.export(runs / "0", "vae", protocol=Protocol(importance_samples=3))
    exact = hub.read_card("vae")
    before = (weights / "vae.safetensors").read_bytes()
    change(weights / "vae.json", metrics={"test/loss": 0.0}, note="written by hand")
    monkeypatch.setattr(sys, "argv", ["zoo", "evaluate", "vae", "--update-card"])
    main()
    printed = capsys.readouterr().out
    assert f"test/loss was 0 and is {exact['metrics']['test/loss']:.6g}" in printed
    assert f"Wrote {len(exact['metrics'])} metrics to the card of vae, 1 of them with another value" in printed
    assert hub.read_card("vae") == exact | {"note": "written by hand"}
    assert (weights / "vae.safetensors").read_bytes() == before
    refresh(weights / "vae.safetensors", Protocol(importance_samples=2))
    assert hub.read_card("vae")["log_likelihood"]["num_samples"] == 2
    for wrong, message in [(runs / "0", "no card to write to"), ("vae", "is about the data digits, got mixture")]:
        with pytest.raises(UserError, match=message):
            refresh(wrong, data="mixture")
    assert hub.read_card("vae")["log_likelihood"]["num_samples"] == 2


def test_the_card_of_damaged_weights_stays(runs, weights):
    exporting.export(runs / "0", "vae")
    change(weights / "vae.json", sha256="0" * 64)
    with pytest.raises(CheckpointError, match="are not the published ones"):
        refresh("vae")
    assert hub.read_card("vae")["sha256"] == "0" * 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["skipgram", "--words", "sets"], "--update-card measures by the card, and takes no --words"),
        (["skipgram", "--data", "text8"], "need no data: leave out --data"),
    ],
)
def test_options_that_measuring_again_does_not_use_are_refused(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["zoo", "evaluate", *words, "--update-card"])
    with pytest.raises(SystemExit, match=message):
        main()


@pytest.mark.parametrize("content", ["", "[1]", "{}", "<<<<<<< HEAD"])
def test_a_damaged_card_is_replaced_by_no_export(content, tmp_path):
    """The numbers of the replaced card would be lost. The error comes before the work, so no run is needed."""
    (tmp_path / "vae.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="vae.json is no card of a checkpoint.*Restore the file"):
        exporting.export("nothing", "vae", force=True, folder=tmp_path)
    assert (tmp_path / "vae.json").read_text(encoding="utf-8") == content
