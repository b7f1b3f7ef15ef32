"""Tests of the pictures of the documentation: each is drawn by one command, is shown with a text, and is up to date."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs" / "make"))

import chart_pictures  # noqa: E402
import data_pages  # noqa: E402
import estimator_pages  # noqa: E402
import house_picture  # noqa: E402
import model_pages  # noqa: E402
import pictures  # noqa: E402
import training_pictures  # noqa: E402
from drawing import SOFTWARE  # noqa: E402

from zoo.checks.errors import UserError  # noqa: E402
from zoo.evaluation.results import read_results  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FAST = [*chart_pictures.PICTURES, *house_picture.PICTURES, *training_pictures.PICTURES]
SHOWN = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<path>[^)\s]+)\)")


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def difference(one, other):
    """Return the fraction of pixels of two pictures that differ visibly, or 1 for different sizes.

    A difference of 48 of 255 grey values is visible.
    """
    if one.shape != other.shape:
        return 1.0
    return float((abs(one - other).max(-1) > 48).mean())


def tolerance(file):
    """Return the allowed difference: small if this version of matplotlib drew the file."""
    return 0.0005 if Image.open(file).text["Software"] == SOFTWARE else 0.1


def test_every_picture_is_drawn_and_every_drawing_is_a_picture():
    assert not pictures.differences()
    assert len(pictures.REGISTRY) == sum(len(module.PICTURES) for module in pictures.MODULES)  # no name twice


def test_missing_and_unknown_pictures_are_found(tmp_path, capsys, monkeypatch):
    for name in pictures.REGISTRY:
        (tmp_path / f"{name}.png").touch()
    assert not pictures.differences(tmp_path)
    (tmp_path / "house.png").rename(tmp_path / "home.png")
    assert [line.split()[0] for line in pictures.differences(tmp_path)] == ["house.png", "home.png"]
    monkeypatch.setattr(pictures, "PICTURES", tmp_path)
    monkeypatch.setattr(pictures.differences, "__defaults__", (tmp_path,))
    assert pictures.main(["--check"]) == 1
    assert "house.png is missing: run python docs/make/pictures.py house" in capsys.readouterr().out


def test_the_names_are_listed_and_a_wrong_name_is_an_error(capsys):
    assert pictures.main(["--list"]) == 0
    assert all(name in capsys.readouterr().out for name in list(pictures.REGISTRY)[:1])
    with pytest.raises(SystemExit):
        pictures.main(["hose"])
    assert "there is no picture hose; --list prints the names. Did you mean house?" in capsys.readouterr().err


def test_a_missing_results_file_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(chart_pictures, "RESULTS", tmp_path)
    monkeypatch.setattr(pictures, "PICTURES", tmp_path)
    with pytest.raises(SystemExit) as error:
        pictures.main(["seeds-vade"])
    message = f"error: seeds-vade: the results file {tmp_path / 'seeds' / 'vade.csv'} is missing: restore it"
    assert error.value.code == 1 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_picture_has_the_name_of_a_picture_of_the_weights():
    """A page names a picture without its folder."""
    weights = {path.stem for path in (ROOT / "zoo" / "weights").glob("*.png")}
    assert len(weights) > 10 and not weights & set(pictures.REGISTRY)


def test_every_picture_has_a_caption_of_one_or_more_sentences():
    for name, caption in pictures.CAPTIONS.items():
        assert caption[0].isupper() and caption.endswith(".") and "  " not in caption, name
        assert len(caption) > 20 and not set(caption) & set("[]\n"), name


def test_every_picture_is_on_a_page():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    for module in (model_pages, estimator_pages, data_pages):
        texts += module.pages().values()
    shown = {Path(target.removeprefix("picture:")).stem for text in texts for _, target in SHOWN.findall(text)}
    assert not set(pictures.REGISTRY) - shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_of_a_page_exist_and_have_a_text(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for match in SHOWN.finditer(text):
        if "://" not in match["path"]:
            assert (page.parent / match["path"]).is_file(), f"{page.name} shows {match['path']}, which does not exist"
        assert len(match["text"].split()) > 2, f"{page.name} shows {match['path']} without a text that describes it"


def test_the_pattern_finds_pictures_with_and_without_a_text():
    found = [match.groups() for match in SHOWN.finditer("![](a.png) and ![a house](b/c.png)")]
    assert found == [("", "a.png"), ("a house", "b/c.png")]


def test_every_picture_is_small_and_wide_enough():
    """A page shows a picture 640 pixels wide, on fine screens with twice as many pixels. Data sets need fewer."""
    for file in sorted(pictures.PICTURES.glob("*.png")):
        assert file.stat().st_size < 400_000, f"{file.name} has {file.stat().st_size} bytes"
        height, width = pixels(file).shape[:2]
        assert max(height, width) >= 600 if file.name.startswith("data-") else width >= 1000, file.name
        assert width <= 1340, file.name


def test_no_picture_is_cut_off():
    """The outermost pixels are white, because every picture has a margin."""
    for file in sorted(pictures.PICTURES.glob("*.png")):
        image = pixels(file)
        edge = [*image[0], *image[-1], *image[:, 0], *image[:, -1]]
        assert np.min(edge) > 250, file.name


@pytest.mark.parametrize("name", FAST)
def test_charts_agree_with_their_sources(name):
    file = pictures.PICTURES / f"{name}.png"
    drawn = difference(pixels(io.BytesIO(pictures.drawn(name))), pixels(file))
    assert drawn < tolerance(file), f"{name}.png is out of date: run python docs/make/pictures.py {name}"


def test_a_changed_number_changes_the_chart(tmp_path, monkeypatch):
    """The tolerance of the comparison is smaller than the effect of one marker that no other covers."""
    source = (chart_pictures.RESULTS / "seeds" / "vade.csv").read_text(encoding="utf-8")
    row = next(line for line in source.splitlines() if line.startswith("test/accuracy"))
    *_, second, largest = sorted(row.rsplit(",", 1)[1].split(), key=float)  # the accuracies of the seeds
    # The new place is inside the axes, so one marker moves and nothing else. Other markers do not cover it.
    changed = source.replace(row, row.replace(second, str((float(second) + float(largest)) / 2)))
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "vade.csv").write_text(changed, encoding="utf-8")
    monkeypatch.setattr(chart_pictures, "RESULTS", tmp_path)
    drawn, file = pixels(io.BytesIO(pictures.drawn("seeds-vade"))), pictures.PICTURES / "seeds-vade.png"
    assert difference(drawn, pixels(file)) > 0.0005


def test_the_house_has_a_room_for_every_package_and_its_arrows_are_imports():
    graph = house_picture.imports()
    assert set(graph) == set(house_picture.rooms()) == set(house_picture.NOTES)
    assert "functional" in graph["estimators"] and "estimators" not in graph["functional"]
    arrows = house_picture.direct(graph)
    assert all(imported in graph[importer] for importer, imported in arrows)
    assert house_picture.direct({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {("a", "b"), ("b", "c")}


def test_a_run_becomes_a_strip(tmp_path, monkeypatch):
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    for epoch in range(12):
        grid = np.full((5 * 10 + 2, 6 * 10 + 2), 127, dtype=np.uint8)  # 5 x 6 images of 8 x 8 pixels
        for y in range(5):
            for x in range(6):
                grid[2 + 10 * y : 10 + 10 * y, 2 + 10 * x : 10 + 10 * x] = 20 * epoch + 5 * x
        Image.fromarray(grid).save(run / "samples" / f"epoch_{epoch:03d}.png")
    record = {"command": "zoo train ckpt=last.ckpt", "hardware": "1 thread", "data": "digits", "config": {"seed": 3}}
    record["earlier"] = [{"command": "python train.py model=vae"}]
    (run / "checkpoints").mkdir()
    torch.save({"state_dict": {}, "record": record}, run / "checkpoints" / "last.ckpt")
    rows = "".join(f"{epoch},{100 * epoch},,{1 / (epoch + 1)}\n{epoch},{100 * epoch},0.5,\n" for epoch in range(12))
    (run / "metrics.csv").write_text(f"epoch,step,train/loss,val/loss\n{rows}", encoding="utf-8")
    monkeypatch.setattr(training_pictures, "TRAINING", tmp_path)
    training_pictures.record(run, "trial", "val/loss", "validation loss")
    strip = pixels(tmp_path / "trial.png")
    assert strip.shape == (38, 8 * 38, 3)  # 4 x 4 images of 8 pixels, with lines of 2 pixels between them
    assert strip[0, 0, 0] == 10 and strip[0, -1, 0] == 245  # columns 2 and 5 of epochs 0 and 11
    figure = training_pictures.training("trial")
    (line,) = (line for line in figure.axes[-1].lines if len(line.get_xdata()) == 12)
    assert line.get_ydata()[[0, -1]].tolist() == pytest.approx([1, 1 / 12])
    assert figure.axes[-1].get_yscale() == "log"  # the loss falls to a twelfth
    assert "on digits, and the validation loss" in training_pictures.caption("trial")
    about = read_results(tmp_path / "trial.csv")[1]
    assert about["command"].startswith("python train.py model=vae, then python docs/make/training_pictures.py RUN")
    assert (about["hardware"], about["seed"]) == ("1 thread", "3")
    wrong = {
        (run, "val/los"): "has no values of val/los; it has train/loss, val/loss",
        (tmp_path / "lost", "val/loss"): "there is no folder .*lost: give the folder of a run",
        (tmp_path, "val/loss"): "give the folder of a run with samples",
    }
    for (folder, metric), message in wrong.items():
        with pytest.raises(UserError, match=message):
            training_pictures.record(folder, "trial", metric, "validation loss")
    (run / "samples" / "epoch_000.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"epoch_000\.png cannot be read as an image"):
        training_pictures.record(run, "trial", "val/loss", "validation loss")
    (run / "metrics.csv").unlink()
    with pytest.raises(UserError, match=r"there is no .*metrics\.csv: give run folders"):
        training_pictures.record(run, "trial", "val/loss", "validation loss")
    with pytest.raises(SystemExit):
        training_pictures.main([str(run), "../trial", "val/loss", "validation loss"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in pictures.REGISTRY if name not in FAST])
def test_pictures_of_models_are_drawn_again(name):
    """Other processors round differently, and chains of draws can then end elsewhere. A few images may differ."""
    drawn = difference(pixels(io.BytesIO(pictures.drawn(name))), pixels(pictures.PICTURES / f"{name}.png"))
    assert drawn < 0.05, f"{name}.png is out of date: run python docs/make/pictures.py {name}"
