"""Tests of data=images: layouts of folders, bad files, splits, the digest, and pixels that are kept for later runs."""

import os
import shutil
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers import checkpoint, run
from own_images import digit_folders
from PIL import Image

from zoo.checks.errors import UserError
from zoo.datamodules import DataError, OwnImages
from zoo.datamodules.files import data_root
from zoo.datamodules.image_sources import Folder


@pytest.fixture(autouse=True)
def own_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "root"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return digit_folders(tmp_path_factory.mktemp("digits"), 200)


def picture(path, value=0, size=(4, 4), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def tree(folder, *paths):
    """Write a grey image of one value at each path. The values are 0, 1, 2, ..."""
    for value, path in enumerate(paths):
        picture(folder / path, value)
    return folder


def numbered(folder, n=10, **options):
    """Return the data of ``n`` images with the values 0, 1, ..., n - 1, in a folder without classes."""
    tree(folder, *(f"{i:03d}.png" for i in range(n)))
    return OwnImages(str(folder), batch_size=2, **options)


def ready(data):
    data.setup()
    return data


def values(data, split):
    return data.splits[split].images[:][:, 0, 0, 0].tolist()


# Layouts.


def test_class_folders_give_labels_in_sorted_order(tmp_path):
    source = Folder(tree(tmp_path / "a", "dog/1.png", "cat/deep/2.png", "cat/3.png", "10/4.png"))
    assert source.classes == ["10", "cat", "dog"]
    assert source.paths == ["10/4.png", "cat/3.png", "cat/deep/2.png", "dog/1.png"]
    assert source.labels.tolist() == [0, 1, 1, 2] and source.parts is None
    assert source.read(3).tolist() == [[[0] * 4] * 4]


@pytest.mark.parametrize("paths", [["1.png", "2.png"], ["all/1.png", "all/2.png"]])
def test_a_flat_folder_or_one_class_folder_gives_no_labels(paths, tmp_path):
    source = Folder(tree(tmp_path / "a", *paths))
    assert len(source) == 2 and source.labels is None and source.classes is None


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_folders_train_val_and_test_are_the_parts(val, tmp_path):
    data = OwnImages(
        str(tree(tmp_path / "a", "train/1.png", f"{val}/2.png", "test/3.png", "train/4.png")), batch_size=2
    )
    ready(data)
    assert [values(data, split) for split in ("train", "val", "test")] == [[0, 3], [1], [2]]
    assert data.num_classes is None
    with_classes = Folder(tree(tmp_path / "b", "train/x/1.png", f"{val}/y/2.png", "train/y/3.png"))
    assert with_classes.classes == ["x", "y"] and with_classes.parts.count("val") == 1


def test_hidden_files_are_ignored_and_links_are_followed(tmp_path):
    tree(tmp_path / "a", "x/1.png", "y/2.png", ".hidden/3.png", "x/.4.png")
    (tmp_path / "a" / "x" / "Thumbs.db").write_bytes(b"?")
    (tmp_path / "a" / "z").symlink_to(tree(tmp_path / "elsewhere", "5.png"))
    source = Folder(tmp_path / "a")
    assert source.paths == ["x/1.png", "y/2.png", "z/5.png"] and not source.problems


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["x/1.png", "y/2.png", "3.png"], "has class folders, and also 1 images outside of them"),
        (["train/1.png", "test/2.png", "3.png"], "has folders train, val and test, and also 1 images outside"),
        (["train/x/1.png", "test/2.png"], "has class folders, and also 1 images outside of them"),
        (["val/1.png", "test/2.png"], "has a folder test, but no folder train"),
        (["train/1.png", "val/2.png", "valid/3.png"], "two folders of val images, val and valid"),
        (["train/1.png", "test/2.png", "unlabelled/3.png"], "folders test and train, and also unlabelled"),
        ([], "has no images"),
    ],
)
def test_an_ambiguous_folder_is_named(paths, message, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=message):
        Folder(tree(tmp_path / "a", *paths))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x", encoding="utf-8"), "is no folder and no .npy, .npz or .pt file"),
        (lambda path: os.mkfifo(path), "is no folder and no"),
        (lambda path: path.symlink_to(path), "does not exist|cannot be read"),
    ],
)
def test_a_path_that_is_no_folder_and_no_array_is_named(make, message, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(DataError, match=message):
        _ = OwnImages(str(tmp_path / "a")).shape


# Bad files.


@pytest.fixture
def spoilt(tmp_path):
    """Return a folder with ten images, and with every kind of file and folder that cannot be used."""
    folder = tree(tmp_path / "a", *(f"{name}/{i}.png" for name in "xy" for i in range(5)))
    (folder / "x" / "notes.txt").write_text("no image", encoding="utf-8")
    (folder / "x" / "cut.png").write_bytes((folder / "x" / "1.png").read_bytes()[:-30])
    (folder / "y" / "empty.png").touch()
    (folder / "empty").mkdir()
    (folder / "labels.csv").write_text("outside of the class folders", encoding="utf-8")
    (folder / "y" / "loop").symlink_to(folder)
    (folder / "y" / "lost.png").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "y" / "pipe.png")
    return folder


BAD = {
    "x/notes.txt": "no image of a known format",
    "x/cut.png": "damaged",
    "y/empty.png": "the file is empty",
    "empty/": "an empty folder",
    "labels.csv": "a file outside of the class folders",
    "y/loop/": "a link to a folder above it",
    "y/lost.png": "a link to a missing file",
    "y/pipe.png": "a pipe, socket or device",
}


def test_all_bad_files_are_named_at_once_before_training(spoilt):
    with patch("zoo.datamodules.image_sources.NAMED", 100), pytest.raises(DataError) as error:
        _ = OwnImages(str(spoilt)).shape
    assert "8 of its entries cannot be used" in str(error.value)
    for name, reason in BAD.items():
        assert f"\n  {name}: {reason}" in str(error.value)


def test_a_message_names_the_first_of_many_bad_files(spoilt):
    with pytest.raises(DataError) as error:
        _ = OwnImages(str(spoilt)).shape
    assert len(str(error.value).splitlines()) == 7 and str(error.value).endswith("... and 3 more")


def test_bad_files_are_left_out_on_request(spoilt, caplog):
    for _ in range(2):  # the second time, the pixels come from the data folder
        data = ready(OwnImages(str(spoilt), skip=True, batch_size=2))
        assert sum(len(split.images) for split in data.splits.values()) == 10
        assert sorted(sum((values(data, split) for split in data.splits), [])) == list(range(10))
        assert "8 entries are left out" in caplog.text
        caplog.clear()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_without_permission_is_named(tmp_path):
    tree(tmp_path / "a", "1.png", "2.png")
    (tmp_path / "a" / "1.png").chmod(0)
    with pytest.raises(DataError, match=r"1.png: Permission denied"):
        _ = OwnImages(str(tmp_path / "a")).shape


def test_images_of_several_sizes_need_a_size(tmp_path):
    for i in range(8):
        picture(tmp_path / "a" / f"{i}.png", size=(6, 4) if i < 5 else (4, 4))
    with pytest.raises(DataError, match=r"2 sizes, height x width: 4 x 6 \(5\), 4 x 4 \(3\). Set data.size, such as"):
        _ = OwnImages(str(tmp_path / "a")).shape
    assert OwnImages(str(tmp_path / "a"), size=4).shape == [1, 4, 4]
    assert OwnImages(str(tmp_path / "a"), size=[3, 5], channels=3).shape == [3, 3, 5]


@pytest.mark.parametrize("coloured", [0, 39])
def test_one_coloured_image_makes_all_coloured(coloured, tmp_path):
    for i in range(40):  # a process decodes 32 images at once
        mode, value = ("RGB", (i, i, i)) if i == coloured else ("L", i)
        picture(tmp_path / "a" / f"{i:02d}.png", value, mode=mode)
    data = ready(OwnImages(str(tmp_path / "a"), batch_size=2))
    assert data.shape == [3, 4, 4]
    images = torch.cat([split.images for split in data.splits.values()])
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(40)) and torch.equal(images[:, 0], images[:, 2])


# Splits.


def test_the_split_holds_each_class_in_each_part_and_depends_on_its_own_seed(digits):
    first, same, other = (
        ready(OwnImages(str(digits), batch_size=2, **seeds)) for seeds in ({}, {"seed": 5}, {"split_seed": 5})
    )
    parts = [set(rows.tolist()) for rows in first.rows.values()]
    assert sorted(sum(map(list, parts), [])) == list(range(200))
    for split, low, high in (("train", 14, 17), ("val", 1, 3), ("test", 1, 3)):
        counts = torch.bincount(first.splits[split].labels, minlength=10)
        assert low <= counts.min() and counts.max() <= high, split
        assert torch.equal(first.splits[split].images, same.splits[split].images)
    assert not np.array_equal(first.rows["test"], other.rows["test"])


def test_a_missing_part_is_split_off_the_training_images(tmp_path):
    paths = [f"train/{i}.png" for i in range(20)] + ["test/a.png"]
    data = ready(OwnImages(str(tree(tmp_path / "a", *paths)), val_fraction=0.25, batch_size=2))
    assert (len(values(data, "train")), len(values(data, "val")), values(data, "test")) == (15, 5, [20])


def test_classes_with_too_few_images_or_none_for_training_are_named(tmp_path):
    paths = [f"x/{i}.png" for i in range(9)] + ["y/1.png", "y/2.png", "z/1.png"]
    with pytest.raises(DataError) as error:
        ready(OwnImages(str(tree(tmp_path / "a", *paths)), batch_size=2))
    assert "y: 2 training images, at least 3 are needed\n  z: 1 training images" in str(error.value)
    paths = [f"{part}/{name}/1.png" for part in ("train", "val", "test") for name in "xy"] + ["val/z/1.png"]
    with pytest.raises(DataError, match="z: 0 training images, at least 1 are needed"):
        ready(OwnImages(str(tree(tmp_path / "b", *paths)), batch_size=2))


def test_fewer_images_than_a_batch_are_named(tmp_path):
    with pytest.raises(DataError, match="data.batch_size is 128, but an epoch has 8 training images: set at most 8"):
        ready(OwnImages(str(numbered(tmp_path / "a").hparams.path)))


def test_training_images_can_include_the_other_parts(tmp_path):
    data = ready(numbered(tmp_path / "a", train_on="everything"))
    assert sorted(values(data, "train")) == list(range(10)) and len(values(data, "val")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "set data.path"),
        ({"path": 2024}, "put quotes"),
        ({"size": [1, 2, 3]}, r"data.size must be an integer or \[height, width\]"),
        ({"size": 0}, "data.size must be an integer of at least 1"),
        ({"channels": 4}, "data.channels must be 1"),
        ({"val_fraction": 0}, "data.val_fraction must be above 0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "must be below 1, got 1"),
        ({"memory_limit": -1}, "data.memory_limit"),
        ({"workers": -1}, "data.workers"),
        ({"train_on": "test"}, "data.train_on"),
        ({"skip": "yes"}, "data.skip"),
    ],
)
def test_options_are_checked_when_the_data_are_made(options, message):
    with pytest.raises(UserError, match=message):
        OwnImages(**{"path": "a", **options})


# The digest.


def test_the_digest_depends_on_what_is_used_and_on_nothing_else(tmp_path):
    def digest(folder, **options):
        return OwnImages(str(folder), **options).digest

    folder = tree(tmp_path / "a", *(f"{name}/{i}.png" for name in "xy" for i in range(5)))
    known = digest(folder)
    moved = shutil.copytree(folder, tmp_path / "b")
    same = [digest(moved), digest(folder, seed=3, batch_size=7), digest(folder, cache=False)]
    same += [digest(folder, memory_limit=0), digest(folder, cache=False, memory_limit=0), digest(folder, size=4)]
    assert set(same) == {known}
    changed = [digest(folder, split_seed=1), digest(folder, size=3), digest(folder, channels=3)]
    (moved / "x" / "0.png").rename(moved / "x" / "00.png")  # the order stays the same
    changed.append(digest(moved))
    (moved / "x" / "00.png").rename(moved / "y" / "9.png")
    changed.append(digest(moved))
    picture(folder / "x" / "0.png", 77)
    changed.append(digest(folder))
    assert len({known, *changed}) == 1 + len(changed)


def test_the_digest_is_recorded_and_a_run_resumes_only_from_the_same_images(digits, tmp_path):
    folder = shutil.copytree(digits, tmp_path / "digits")
    options = ["model=vae", "model.hidden=[8]", "data=images", f"data.path={folder}", "data.batch_size=20"]
    options += ["callbacks=none", "test=false", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    run(tmp_path / "run", *options, "trainer.max_epochs=1")
    digest = OwnImages(str(folder)).digest
    record = checkpoint(tmp_path / "run")["record"]
    assert record["data_digest"] == digest and record["data"] == "images"
    assert record["config"]["data"]["path"] == str(folder)
    assert f"data_digest: {digest}" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    resumed = [*options, "trainer.max_epochs=2", f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"]
    run(tmp_path / "run", *resumed)
    with pytest.raises(DataError, match=r"data.split_seed is 1, but was 0"):
        run(tmp_path / "run", *resumed, "data.split_seed=1")
    picture(next(folder.glob("3/*.png")), 9, (28, 28))
    with pytest.raises(DataError, match=r"differs from the data of the checkpoint in files, labels or split"):
        run(tmp_path / "run", *resumed)


# Pixels that are kept for later runs.


def kept():
    return sorted(path.name for path in (data_root() / "images").iterdir())


def never(*_):
    raise AssertionError("an image was read again")


def test_a_second_start_reads_no_image_again(tmp_path):
    first = ready(numbered(tmp_path / "a"))
    with patch.object(Folder, "read_with_digest", never):
        second = ready(numbered_again(first))
    assert first.digest == second.digest
    for split in first.splits:
        assert torch.equal(first.splits[split].images, second.splits[split].images)
    assert len(kept()) == 2  # the pixels and their description


def numbered_again(data, **options):
    return OwnImages(**{**data.hparams, **options})


def test_a_changed_file_is_read_again_and_old_pixels_are_removed(tmp_path):
    first = ready(numbered(tmp_path / "a"))
    before = kept()
    status = (tmp_path / "a" / "003.png").stat()
    picture(tmp_path / "a" / "003.png", 99)
    os.utime(tmp_path / "a" / "003.png", ns=(status.st_atime_ns, status.st_mtime_ns))  # as some copying programs do
    second = ready(numbered_again(first))
    assert 99 in sum((values(second, split) for split in second.splits), [])
    assert second.digest != first.digest
    assert len(kept()) == 2 and not set(kept()) & set(before)
    (tmp_path / "a" / "new").mkdir()
    with pytest.raises(DataError, match="new/: an empty folder"):
        ready(numbered_again(first))


def test_damaged_pixels_are_prepared_again(tmp_path, caplog):
    first = ready(numbered(tmp_path / "a"))
    pixels = next((data_root() / "images").glob("*.uint8"))
    pixels.write_bytes(pixels.read_bytes() + b"?")
    second = ready(numbered_again(first))
    assert "the images are prepared again" in caplog.text and second.digest == first.digest
    assert torch.equal(first.splits["train"].images, second.splits["train"].images)


def test_a_data_folder_that_cannot_be_written_costs_only_time(tmp_path, caplog):
    (tmp_path / "root").write_text("a file in place of the data folder", encoding="utf-8")
    data = ready(numbered(tmp_path / "a"))
    assert "each run prepares the images again" in caplog.text
    assert sorted(sum((values(data, split) for split in data.splits), [])) == list(range(10))


def test_an_interrupted_preparation_leaves_no_file(tmp_path):
    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        raise Interrupted

    with patch.object(Folder, "read_with_digest", interrupt), pytest.raises(Interrupted):
        ready(numbered(tmp_path / "a"))
    assert kept() == []


def test_the_unfinished_file_of_a_killed_process_is_removed_by_the_next_start(tmp_path):
    ready(numbered(tmp_path / "a"))
    before = kept()
    (pixels,) = [name for name in before if name.endswith(".uint8")]
    (data_root() / "images" / f".{pixels}-0a1b2c3d").write_bytes(b"the name of a file that atomic_write has begun")
    ready(numbered(tmp_path / "a", n=11))
    assert len(kept()) == len(before) == 2 and not set(kept()) & set(before)
