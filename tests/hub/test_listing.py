"""Tests of the lists of models and checkpoints: wildcards, filters, and ``list --format`` of the command line."""

import csv
import io
import json
import sys

import pytest

import zoo
from zoo.__main__ import main
from zoo.checks.errors import UserError
from zoo.commands.listing import SIZES, recipe_in
from zoo.hub import read_card


@pytest.fixture
def listed(monkeypatch, capsys):
    """Return a function that runs the command ``list`` and returns its output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", "list", *arguments])
        main()
        return capsys.readouterr().out

    return run


def test_patterns_are_wildcards():
    assert zoo.list_models("*gan") == ["gan", "infogan", "wgan"] == zoo.list_models(["wgan", "info*", "gan"])
    assert zoo.list_checkpoints("wgan*") == ["wgan", "wgan-clip", "wgan-fashion", "wgan-ring"]
    assert zoo.list_checkpoints(["vae", "*-cl?p", "[gh]an"]) == ["gan", "vae", "wgan-clip"]
    assert zoo.list_checkpoints("WGAN*") == zoo.list_models("nothing") == zoo.list_checkpoints([]) == []
    assert zoo.list_checkpoints({"vae"}) == ["vae"]
    for pattern in (3, None, ["vae", 3]):
        with pytest.raises(UserError, match=r"a pattern must be a string such as 'wgan\*'"):
            zoo.list_checkpoints(pattern)
    assert zoo.list_checkpoints() == zoo.list_checkpoints("*") and len(zoo.list_models()) == len(zoo.MODELS)


def test_checkpoints_are_filtered_by_their_model_and_their_data():
    cards = {name: read_card(name) for name in zoo.list_checkpoints()}
    for model, data in [("vae", "*"), ("*gan", "mnist"), (["rbm", "score"], "m*"), ("*", "ring")]:
        models, datas = zoo.list_models(model), {"*": None, "m*": ("mnist", "mixture")}.get(data, (data,))
        expected = [
            name
            for name, card in cards.items()
            if (model == "*" or card["model"] in models) and (datas is None or card["data"] in datas)
        ]
        assert zoo.list_checkpoints(model=model, data=data) == expected != []
    assert zoo.list_checkpoints("*-clip", model="wgan", data="mnist") == ["wgan-clip"]
    assert zoo.list_checkpoints(model="vea") == []


def test_the_rows_of_csv_are_the_numbers_of_the_cards(listed):
    rows = list(csv.DictReader(io.StringIO(listed("--format", "csv"))))
    assert [row["name"] for row in rows] == zoo.list_checkpoints() and len(rows) >= 20
    for row in rows:
        card = read_card(row["name"])
        for key in ("model", "data", "sha256", "commit", "hardware", "protocol", "command"):
            assert row[key] == card[key]
        for key in ("parameters", "seed", "seconds", "epochs", "steps"):
            assert row[key] == str(card[key])
        assert row["bytes"] == str((zoo.WEIGHTS / f"{row['name']}.safetensors").stat().st_size)
        written = {key: float(value) for key, value in row.items() if key not in SIZES and "/" in key and value}
        plain = {key: value for key, value in card["metrics"].items() if "/" in key}
        assert written == plain | {f"whole_model/{k}": v for k, v in (card.get("whole_model") or {}).items()}
        assert all(float(row[key]) == value for key, value in card["metrics"].items())
    assert next(row for row in rows if row["name"] == "vae")["log_likelihood/num_samples"] == "5000"


def test_the_rows_of_json_are_the_numbers_of_the_cards(listed):
    rows = json.loads(listed("wgan*", "vae", "--format", "json"))
    assert [row["name"] for row in rows] == ["vae", "wgan", "wgan-clip", "wgan-fashion", "wgan-ring"]
    assert [row["metrics"] for row in rows] == [read_card(row["name"])["metrics"] for row in rows]
    assert [row["recipe"] for row in rows] == ["vae_burda", "wgan", "wgan_clip", "wgan", "wgan_ring"]
    assert rows[0]["sizes"] == {"log_likelihood/num_samples": 5000} and rows[1]["sizes"] == {"samples/n": 10_000}
    assert rows[-1]["sizes"] == {}


def test_the_table_shows_what_matches(listed):
    printed = listed("wgan*")
    assert "Models. Train one" in printed and "wgan-ring" in printed and "vae" not in printed
    assert "Models. Train one" not in listed("wgan-*")
    assert listed("wagn*", "nothing") == "Nothing matches wagn* nothing. Did you mean wgan?\n"
    assert (
        len(listed("nothing", "--format", "csv").splitlines()) == 1 and listed("nothing", "--format", "json") == "[]\n"
    )


def test_the_recipe_is_read_from_the_command():
    assert recipe_in("python train.py model=vae experiment=vae_burda 'model.hidden=[2]'") == "vae_burda"
    assert recipe_in("python train.py model=ddpm '~callbacks.samples' seed=1") == "ddpm"
    assert recipe_in("python train.py seed=1") is None
