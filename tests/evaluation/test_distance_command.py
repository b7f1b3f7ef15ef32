"""Tests of ``zoo distance``: what it reads, what it prints, and its errors."""

import csv
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import zoo
from zoo.__main__ import main
from zoo.commands import image_sets
from zoo.datamodules import Images
from zoo.datamodules.access import make_ready
from zoo.datamodules.images import NAMES
from zoo.evaluation.distances import classifier_distances
from zoo.functional.noise import chunk_generator
from zoo.sampling import chunks
from zoo.sampling.chunks import sample_chunks

N = 45  # images in each of the small sets


@pytest.fixture(scope="module")
def digits():
    return make_ready(Images("digits"))


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """Return a folder with the same digits as grey files, as coloured files, as an array and with other sizes."""
    root = tmp_path_factory.mktemp("images")
    pixels = digits.splits["val"].images[:N, 0].numpy()
    np.save(root / "digits.npy", pixels)
    np.save(root / "others.npy", digits.splits["test"].images[:N].numpy())
    for i, image in enumerate(pixels):
        picture = Image.fromarray(image)
        reddish = Image.merge("RGB", [picture, *(Image.fromarray(image // 2),) * 2])
        large = picture.resize((56, 56), Image.Resampling.NEAREST)
        kinds = {"grey": picture, "rgb": picture.convert("RGB"), "red": reddish, "large": large}
        for kind, made in kinds.items():
            (root / kind).mkdir(exist_ok=True)
            made.save(root / kind / f"{i:02}.png")
    np.savez(root / "parts.npz", x_train=pixels[:20], x_test=pixels[20:])
    return root


@pytest.fixture
def distance(monkeypatch, folder, capsys):
    """Return a function that runs ``zoo distance`` in the folder, and returns what it prints."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", "distance", *arguments])
        main()
        return capsys.readouterr().out

    return run


def table(printed):
    """Return the rows of csv: {metric: row}."""
    return {row["metric"]: row for row in csv.DictReader(io.StringIO(printed))}


def expected(real, fake):
    network = zoo.load("classifier")
    return classifier_distances(*(network.features(x.float() / 255).double().detach() for x in (real, fake)))


def test_the_first_set_is_real_and_the_second_is_the_samples(distance, digits):
    real, fake = digits.splits["val"].images[:N], digits.splits["test"].images[:N]
    for words, sets in ((("grey", "others.npy"), (real, fake)), (("others.npy", "grey"), (fake, real))):
        rows = table(distance(*words, "--format", "csv"))
        for name, (value, error) in expected(*sets).items():
            row = rows.pop(name)
            assert_close([float(row["value"]), float(row["standard_error"])], [value, error], rtol=1e-4, atol=1e-6)
            assert [row["real"], row["samples"], row["features"]] == [*words, "mnist"]
            assert row["n_real"] == row["n_samples"] == str(N)
        assert not rows
    assert expected(real, fake)["recall"] != expected(fake, real)["recall"]


def test_grey_pictures_with_colours_are_the_same_images(distance, caplog):
    rows = table(distance("digits.npy", "rgb", "--format", "csv"))
    assert abs(float(rows["classifier_fid"]["value"])) < 1e-4 and float(rows["recall"]["value"]) == 1
    assert "the sets have" not in caplog.text  # they have equal sizes


@pytest.mark.parametrize(
    ("words", "convert"), [(["red", "--grey"], (None, 1)), (["large", "--size", "28"], (28, None))]
)
def test_colours_and_sizes_are_converted_by_the_rules_of_the_data_module(words, convert, distance, folder):
    """Pillow converts colours by the weights of ITU-R 601, and resizes with its Lanczos filter."""
    real = torch.from_numpy(np.load(folder / "digits.npy"))[:, None]
    wanted = [Image.open(path) for path in sorted((folder / words[0]).iterdir())]
    wanted = [image.convert("L").resize((28, 28), Image.Resampling.LANCZOS) for image in wanted]
    wanted = expected(real, torch.from_numpy(np.stack([np.asarray(image) for image in wanted]))[:, None])
    found = table(distance("digits.npy", *words, "--format", "csv"))
    for name, (value, _) in wanted.items():
        assert_close(float(found[name]["value"]), value, rtol=1e-4, atol=1e-6)
    assert wanted["classifier_fid"].value > 1e-3


def test_a_model_draws_as_many_samples_as_there_are_real_images(distance):
    found = json.loads(distance("parts.npz:train", "gan", "--seed", "3", "--format", "json"))
    assert found["real"] == {"name": "parts.npz:train", "n": 20} and found["samples"] == {"name": "gan", "n": 20}
    real = torch.from_numpy(np.load("parts.npz")["x_train"])[:, None]
    wanted = expected(real, 255 * sample_chunks(zoo.load("gan"), 20, 3))
    assert list(found["metrics"]) == list(wanted) and found["features"] == "mnist"
    for name, (value, error) in wanted.items():
        given = found["metrics"][name]
        assert_close(given["value"], value, rtol=1e-4, atol=1e-6)
        assert (given["standard_error"] is None) == np.isnan(error)


def test_data_with_parts_give_their_test_images(distance, caplog):
    printed = distance("digits:val", "parts.npz")
    assert "real      digits:val, 180 images\nsamples   parts.npz:test, 25 images\nfeatures  mnist\n" in printed
    assert "METRIC" in printed and "STANDARD ERROR" in printed and "coverage" in printed
    assert "the sets have 180 and 25 images" in caplog.text and "fewer than 2,048 images" in caplog.text


MISTAKES = {
    ("grey", "gann"): r"there are no images 'gann'.* trained model\. Did you mean gan\?",
    ("grey", "nowhere/x.npy"): r"there are no images 'nowhere/x.npy'",
    ("grey", "digits:tset"): r"a part of digits must be train, val, test, got 'tset'",
    ("grey", "grey:val"): r"grey has no parts train, val and test: leave out :val",
    ("parts.npz:val", "grey"): r"parts.npz has the parts test, train, and no part val",
    ("grey", "large"): r"need grey images of 28 x 28 pixels, and large has 56 x 56: resize all images with --size 28",
    ("grey", "red"): r"there are colours in red: convert them with --grey",
    ("grey", "large", "--size", "14"): r"mnist features need images of 28 x 28 pixels: give --size 28, got 14",
    ("grey", "skipgram"): r"skipgram is a SkipGram, which draws no images",
    ("grey", "score-mixture"): r"score-mixture has examples of shape \[2\]",
    ("grey", "gan", "-n", "1"): r"gan has 1 image, and distances need at least 2",
    ("grey", "gan", "-n", "5", "-c", "y=3"): r"trained without labels.*leave out y",
    ("grey", "rgb", "-n", "5"): r"-n is an option of models.* neither grey nor rgb is a model: leave out -n",
    ("grey", "rgb", "-c", "y=3"): r"-c is an option of models",
    ("objects.npy", "grey"): r"objects.npy cannot be read safely: it holds Python objects",
    ("mixed", "grey"): r"images of 2 sizes.* Set --size, such as --size 28, to crop",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_that_says_what_to_do(words, distance, folder):
    if words[0] == "objects.npy":
        np.save(folder / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    if words[0] == "mixed":
        (folder / "mixed").mkdir()
        for i, side in enumerate((28, 28, 30)):
            Image.new("L", (side, side)).save(folder / "mixed" / f"{i}.png")
    with pytest.raises(SystemExit, match=MISTAKES[words]) as stopped:
        distance(*words)
    assert "data." not in str(stopped.value)


LATE = {
    ("gan", "skipgram"): "skipgram is a SkipGram, which draws no images",
    ("gan", "cvae", "-n", "40", "-c", "y=3"): "trained without labels.*leave out y",
    ("cvae", "gan", "-n", "40", "-c", "y=3"): "trained without labels.*leave out y",
    ("cvae", "red"): "there are colours in red",
}


@pytest.mark.parametrize("words", LATE, ids=" ".join)
def test_models_draw_no_samples_before_a_mistake_is_found(words, distance, monkeypatch):
    """Samples can take hours. Noise of a chunk after the first is made only for samples, and not for the checks."""
    drawn = []
    monkeypatch.setattr(chunks, "chunk_generator", lambda seed, c: drawn.append(c) or chunk_generator(seed, c))
    with pytest.raises(SystemExit, match=LATE[words]):
        distance(*words)
    assert set(drawn) <= {0}


def test_the_names_of_data_sets_are_those_of_the_data_module():
    assert image_sets.DATA_SETS == NAMES


def test_a_run_folder_is_a_model_and_other_folders_hold_images(folder, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert image_sets.find(str(tmp_path / "run")).kind == "model"
    assert image_sets.find(str(folder / "grey")) == image_sets.Place("path", str(folder / "grey"))
    assert image_sets.find(f"{folder / 'grey'}:val") == image_sets.Place("path", str(folder / "grey"), "val")
    assert image_sets.find("hf:user/repo").kind == "model"
