"""Tests of runs on images of the user: evaluated, sampled, exported and loaded, on the command line and in Python."""

import json
import re
import shutil
import sys

import lightning as L
import numpy as np
import pytest
import torch
from helpers import config, run
from own_data import Stripes
from PIL import Image
from torch.testing import assert_close

import zoo
from zoo import hub
from zoo.__main__ import main
from zoo.callbacks.run_end import run_end
from zoo.checks.errors import UserError
from zoo.commands.training import train
from zoo.datamodules import Images, OwnImages, Text, by_name
from zoo.evaluation.distances import ImageDistance
from zoo.evaluation.protocol import Protocol
from zoo.hub import exporting
from zoo.hub.recorded_data import check_unchanged, data_of, needs_trust
from zoo.sampling.chunks import sample_chunks

GAN = ["model=gan", "model.network=mlp", "model.hidden=[8]", "data.batch_size=16", "callbacks.sample_distance.n=20"]
# The options of a run on a dataset of another library, which is replaced by a folder.
MOVED = {"_target_": "zoo.datamodules.OwnImages", "path": None, "dataset": "own:make", "name": None, "split_seed": 3}
FAST = ["debug=fast", "test=false", "logger=none"]


def write_images(folder, shape, classes):
    """Write the images of :class:`own_data.Stripes` as PNG files, in a folder for each class if there are classes."""
    data = Stripes(shape, classes and len(classes))
    data.setup("fit")
    for split, images in data.sets.items():
        for i, (x, *y) in enumerate(images):
            path = folder / (classes[int(y[0])] if classes else "") / f"{split}{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (x * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
            Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_root(tmp_path_factory):
    """Keep the pixels that data modules cache in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """Return a folder of colour images in three class folders, and a run on them."""
    folder = tmp_path_factory.mktemp("colour")
    images = write_images(folder / "images", (3, 32, 32), ["flat", "grid", "upright"])
    run(folder / "run", *GAN, *FAST, "data=images", f"data.path={images}")
    return images, folder / "run"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def command(monkeypatch, capsys):
    def run_command(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run_command


def metrics_in(text):
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def test_a_run_on_a_folder_of_colour_images_is_published(colour, weights):
    images, folder = colour
    exporting.export(folder, "mine", protocol=Protocol(samples=20))
    card, model = hub.read_card("mine"), zoo.load("mine")
    assert (card["shape"], card["num_classes"], card["class_names"]) == ([3, 32, 32], 3, ["flat", "grid", "upright"])
    data = OwnImages(str(images), batch_size=16)
    assert (card["data"], card["data_digest"]) == ("images", data.digest)
    assert card["preprocessing"].startswith("images (B, 3, 32, 32) in [0, 1] from the datamodule")
    assert card["init"] is None
    assert exporting.golden_terms(model) == card["golden"]
    data.setup()
    expected = ImageDistance(data.splits["test"].images / 255)(sample_chunks(model, 20, 0))
    assert_close([card["metrics"][f"energy_distance{k}"] for k in ("", "_error")], list(expected))
    assert card["samples"]["n"] == 20 and card["samples"]["test_images"] == len(data.splits["test"].images)
    picture = np.asarray(Image.open(weights / "mine.png"))
    assert picture.shape == (8 * 34 + 2, 8 * 34 + 2, 3)  # 64 images, with two pixels between them
    assert model.sample(2).shape == (2, 3, 32, 32)
    assert not [name for name in card["metrics"] if "classifier" in name or "accuracy" in name]


def test_what_a_run_began_from_is_on_its_card(colour, weights, tmp_path):
    checkpoint = torch.load(next((colour[1] / "checkpoints").glob("best-*")), weights_only=True)
    checkpoint["record"]["init"] = {"source": "runs/first", "file": "/home/somebody/runs/first/best.ckpt"}
    torch.save(checkpoint, tmp_path / "begun.ckpt")
    exporting.export(tmp_path / "begun.ckpt", "begun", protocol=Protocol(samples=2))
    assert hub.read_card("begun")["init"] == {"source": "runs/first", "file": "best.ckpt"}  # no folder of the user


def test_a_run_is_evaluated_and_compared_on_its_own_images(colour, command, tmp_path):
    images, folder = colour
    own = metrics_in(command("evaluate", folder, "--samples", 20))
    assert {"test/generator_loss", "energy_distance"} <= set(own)
    assert re.fullmatch(r"-?[\d.]+ \u00b1 [\d.]+ \(n = 20\)", own["energy_distance"])
    assert metrics_in(command("evaluate", folder, "--samples", 20, "--data", images)) == own
    out = command("compare", folder, "--draws", 2, "-o", tmp_path / "figure.png")
    assert "discriminator" in out and (tmp_path / "figure.png").is_file()
    assert command("sample", folder, "-n", 6, "-o", tmp_path / "samples.png").startswith("Wrote 6 samples")
    assert np.asarray(Image.open(tmp_path / "samples.png")).shape == (3 * 34 + 2, 2 * 34 + 2, 3)


def test_grey_images_that_are_not_square_and_have_no_labels(command, weights, tmp_path):
    images = write_images(tmp_path / "images", (1, 20, 30), None)
    run(tmp_path / "run", *GAN, *FAST, "data=images", f"data.path={images}")
    assert "energy_distance" in metrics_in(command("evaluate", tmp_path / "run", "--samples", 10))
    command("export", tmp_path / "run", "grey", "--samples", 10)
    card = hub.read_card("grey")
    assert (card["shape"], card["num_classes"], card["class_names"]) == ([1, 20, 30], None, None)
    assert zoo.load("grey").sample(2).shape == (2, 1, 20, 30)
    assert np.asarray(Image.open(weights / "grey.png")).shape[:2] == (8 * 22 + 2, 8 * 32 + 2)
    listed = command("list").splitlines()[-1].split()
    assert listed[:3] == ["grey", "gan", "images"] and "energy_distance" in listed
    with pytest.raises(SystemExit, match=r"grey was trained on images of its author: name images with --data PATH"):
        command("evaluate", "grey")
    assert "test/generator_loss" in command("evaluate", "grey", "--samples", 2, "--data", images)


def test_images_of_another_size_get_the_size_of_the_model(colour, command, tmp_path):
    large = write_images(tmp_path / "large", (3, 40, 50), None)
    assert "test/generator_loss" in command("evaluate", colour[1], "--samples", 2, "--data", large)
    small = by_name(str(large), (3, 32, 32))
    assert small.shape == [3, 32, 32] and by_name(str(large)).shape == [3, 40, 50]
    assert by_name(str(large), (2,)).shape == [3, 40, 50] and by_name(str(large), (1, 8, 8)).shape == [1, 8, 8]


def test_grey_images_get_the_channels_of_a_model_whose_run_states_only_a_size(tmp_path):
    grey = write_images(tmp_path / "grey", (1, 40, 50), None)
    config = {"data": {"_target_": "zoo.datamodules.OwnImages", "path": "gone", "size": 32, "channels": None}}
    data = data_of({"config": config, "data": "images"}, str(grey), shape=(3, 32, 32))
    assert data.shape == [3, 32, 32]


def test_a_book_is_still_a_text(tmp_path):
    (tmp_path / "book.txt").write_text("words", encoding="utf-8")
    (tmp_path / "x.npy").touch()
    assert isinstance(by_name(str(tmp_path / "book.txt")), Text)
    assert isinstance(by_name(str(tmp_path / "x.npy")), OwnImages) and isinstance(by_name(str(tmp_path)), OwnImages)


def test_images_that_are_gone_or_changed_are_named(colour, command, weights, tmp_path):
    images = shutil.copytree(colour[0], tmp_path / "images")
    run(tmp_path / "run", *GAN, *FAST, "data=images", f"data.path={images}")
    moved = images.rename(tmp_path / "moved")
    for arguments in (["evaluate"], ["export", "gone"]):
        with pytest.raises(
            SystemExit, match=r"the data of this run are gone: .*images does not exist in .*--data PATH"
        ):
            command(arguments[0], tmp_path / "run", *arguments[1:])
    command("export", tmp_path / "run", "moved", "--samples", 2, "--data", moved)
    assert hub.read_card("moved")["data_digest"] == OwnImages(str(moved), batch_size=1).digest
    next(moved.rglob("*.png")).unlink()
    moved.rename(images)
    changed = r"images has changed since the run: its digest is \w{12} and was \w{12}"
    with pytest.raises(SystemExit, match=changed):
        command("evaluate", tmp_path / "run")
    with pytest.raises(SystemExit, match=changed):
        command("export", tmp_path / "run", "other", "--data", images)
    assert "test/generator_loss" in command("evaluate", tmp_path / "run", "--samples", 2, "--data", images)
    assert zoo.list_checkpoints() == ["moved"]


def test_a_card_needs_the_data_of_its_run(colour, weights):
    with pytest.raises(UserError, match="the card of this run needs its data, images; got digits"):
        exporting.export(colour[1], "other", data="digits")


# Data modules of the user.


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """Return a run on a data module that is not part of the zoo."""
    folder = tmp_path_factory.mktemp("strange")
    cfg = config(folder / "run", *GAN[:3], GAN[-1], *FAST, "trainer=cpu", "trainer.enable_progress_bar=false")
    cfg.data = {"_target_": "own_data.Stripes", "shape": [3, 16, 12], "level": 0.6}
    train(cfg)
    return folder / "run"


def test_a_data_module_of_the_user_is_imported_only_with_consent(strange, command, monkeypatch):
    refusal = "the data of this run come from own_data.Stripes. A checkpoint may not choose what is imported"
    monkeypatch.delitem(sys.modules, "own_data")
    with pytest.raises(SystemExit, match=refusal):
        command("evaluate", strange)
    assert "own_data" not in sys.modules
    measured = metrics_in(command("evaluate", strange, "--samples", 20, "--trust-data"))
    assert {"test/generator_loss", "energy_distance"} <= set(measured)
    assert data_of(hub.record_of(strange), trust=True).hparams.level == 0.6


def test_the_end_of_a_run_names_a_command_that_works(colour, strange, tmp_path):
    """A run on data of the zoo needs no option. A run on a data module of the user needs consent."""
    for folder, data, ending in ((colour[1], Images("digits"), "run"), (strange, Stripes(), "run --trust-data")):
        trainer = L.Trainer(logger=False, enable_checkpointing=False, max_epochs=-1, accelerator="cpu")
        trainer.datamodule = data
        lines = run_end(trainer, zoo.load(folder), folder, {}).splitlines()
        (line,) = [line for line in lines if "zoo evaluate " in line]
        assert line.endswith(ending)


def test_a_run_on_a_data_module_of_the_user_is_published_in_python(strange, weights, command):
    with pytest.raises(UserError, match="come from own_data.Stripes"):
        exporting.export(strange, "strange")
    exporting.export(strange, "strange", protocol=Protocol(samples=10), data=Stripes((3, 16, 12), level=0.6))
    card = hub.read_card("strange")
    assert (card["data"], card["shape"], card["data_digest"]) == ("stripes", [3, 16, 12], None)
    assert "all 30 test examples of stripes" in card["protocol"]
    assert zoo.load("strange").sample(3).shape == (3, 3, 16, 12)
    with pytest.raises(SystemExit, match="strange was trained on images of its author: name images with --data PATH"):
        command("evaluate", "strange")  # also if MNIST has the shape of the model


@pytest.mark.parametrize(
    "target", ["os.system", "zoo.datamodules.files.fetch_missing", "subprocess.Popen", "builtins.exec"]
)
def test_a_record_cannot_call_anything(target):
    record = {"data": "x", "config": {"data": {"_target_": target, "command": "true"}}}
    with pytest.raises(UserError, match="A checkpoint may not choose what is imported"):
        data_of(record)


def test_a_function_that_a_record_names_is_not_called():
    options = {"_target_": "zoo.datamodules.OwnImages", "path": None, "dataset": "os:getcwd"}
    record = {"data": "images", "config": {"data": options}}
    with pytest.raises(UserError, match="the data of this run come from os:getcwd. A checkpoint may not choose"):
        data_of(record)


def test_what_cannot_be_found_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"the data of this run need nowhere.Data, which cannot be imported: No module"):
        data_of({"data": "x", "config": {"data": {"_target_": "nowhere.Data"}}}, trust=True)
    assert data_of({"data": "images", "config": {"data": MOVED}}, str(tmp_path)).hparams.split_seed == 3
    with pytest.raises(UserError, match="this run does not record its data: name them with --data"):
        data_of({"data": None, "config": {}})
    assert isinstance(data_of({"data": None, "config": {}}, "digits"), Images)


def test_published_data_have_their_default_options():
    config = {
        "_target_": "datamodules.Images",
        "name": "mnist_or_digits",
        "train_on": "everything",
        "eval_batch_size": 7,
    }
    data = data_of({"data": "digits", "config": {"data": config}})
    assert dict(data.hparams) == dict(by_name("digits").hparams)


def test_images_of_the_user_are_measured_without_training_on_their_test_images(tmp_path):
    options = {"_target_": "zoo.datamodules.OwnImages", "path": str(tmp_path), "split_seed": 3, "channels": 1}
    record = {"data": "images", "config": {"data": options | {"train_on": "everything", "batch_size": 500}}}
    for data in (data_of(record), data_of(record, str(tmp_path))):
        found = {key: data.hparams[key] for key in ("train_on", "batch_size", "split_seed", "channels")}
        assert found == {"train_on": "train", "batch_size": 1, "split_seed": 3, "channels": 1}


def test_digests_are_compared_only_where_they_are_known():
    check_unchanged(Stripes(), {"data_digest": "abc"})
    check_unchanged(Stripes(), {})
    assert needs_trust(Stripes()) and not needs_trust(Images("digits")) and not needs_trust(Text("pydocs"))
    assert json.dumps(exporting._shape_and_classes(zoo.load("rbm"), Stripes((1, 28, 28), 4)))


def test_a_run_on_a_text_reads_other_texts_with_its_options(tmp_path):
    """The other text is a published one, a file or a folder. Names of other data keep their meaning."""
    options = {"_target_": "zoo.datamodules.Text", "name": "textfile", "path": "old.txt", "window": 3}
    record = {"data": "textfile", "config": {"data": options}}
    (tmp_path / "book.txt").touch()
    for path in (tmp_path, tmp_path / "book.txt"):
        data = data_of(record, str(path))
        assert isinstance(data, Text) and (data.hparams.path, data.hparams.window) == (str(path), 3)
    data = data_of(record, "pydocs")
    assert (data.hparams.name, data.hparams.path, data.hparams.window) == ("pydocs", None, 3)
    assert isinstance(data_of(record, "digits"), Images)
    with pytest.raises(UserError, match="there are no data 'nothing'"):
        data_of(record, "nothing")
