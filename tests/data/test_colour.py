"""Tests of CIFAR-10, SVHN and CelebA with small files in their published formats."""

import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
import web_server
from helpers import run
from published import make_celeba, make_cifar10, make_svhn, md5, pickled, pixels, write

from zoo.checks.errors import UserError
from zoo.datamodules import DataError, Images, by_name, colour


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with web_server.running() as server:
        yield server


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return an empty data folder. Nothing can be downloaded."""
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("zoo.datamodules.files.reachable", lambda addresses: False)
    return tmp_path / "data"


def loaded(name, **options):
    data = Images(name, batch_size=2, **options)
    data.setup()
    return data


def files_in(folder):
    """Return the names of the files in a folder, without locks."""
    return {p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


def pairs(*splits):
    """Return the pairs (pixels, label) of some splits, sorted."""
    return sorted(
        (image.numpy().tobytes(), int(label)) for s in splits for image, label in zip(s.images, s.labels, strict=True)
    )


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize("place", ["CIFAR10", "cifar10", "."])
def test_cifar10_is_read_from_the_folder_or_the_archive(packed, place, root, monkeypatch):
    images, labels = make_cifar10(root / place, monkeypatch, packed)
    data = loaded("cifar10")
    splits = data.splits
    assert [len(s.images) for s in splits.values()] == [45, 5, 10]
    assert splits["train"].images.shape[1:] == data.shape == (3, 32, 32) and data.num_classes == 10
    expected = sorted((image.tobytes(), label) for image, label in zip(images[:50], labels[:50], strict=True))
    assert pairs(splits["train"], splits["val"]) == expected
    assert (splits["test"].images.numpy() == images[50:]).all() and splits["test"].labels.tolist() == labels[50:]


def test_the_reader_agrees_with_torchvision(root, monkeypatch):
    monkeypatch.setitem(
        torchvision.datasets.CIFAR10.meta, "md5", md5(pickle.dumps({"label_names": list("abcdefghij")}))
    )
    make_cifar10(root, monkeypatch)
    write(root / "cifar-10-batches-py" / "batches.meta", pickle.dumps({"label_names": list("abcdefghij")}))
    make_svhn(root, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)  # torchvision's, with NumPy 2.4
        theirs = torchvision.datasets.CIFAR10(root, train=False)
    ours = loaded("cifar10").splits["test"]
    assert (ours.images.permute(0, 2, 3, 1).numpy() == theirs.data).all() and ours.labels.tolist() == theirs.targets
    theirs, ours = torchvision.datasets.SVHN(root, split="test"), loaded("svhn").splits["test"]
    assert (ours.images.numpy() == theirs.data).all() and ours.labels.tolist() == theirs.labels.tolist()


def test_the_validation_images_are_the_same_in_every_run(root, monkeypatch):
    make_cifar10(root, monkeypatch)
    a, b = loaded("cifar10", seed=1), loaded("cifar10", seed=2)
    assert torch.equal(a.splits["val"].images, b.splits["val"].images)


class Wipe:
    """An object whose pickle runs a function when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("digest_matches", [False, True])
def test_a_pickle_with_code_is_not_run(digest_matches, root, tmp_path, monkeypatch):
    make_cifar10(root, monkeypatch)
    path = root / "cifar-10-batches-py" / "test_batch"
    made = write(path, pickle.dumps({"data": Wipe(str(tmp_path / "ran")), "labels": []}))
    if digest_matches:
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [["test_batch", made]])
    with pytest.raises(DataError, match=r"test_batch is damaged.*it is not the published file") as error:
        loaded("cifar10")
    assert ("mkdir" in str(error.value)) == digest_matches and not (tmp_path / "ran").exists()


def test_numbers_of_another_type_are_refused(root, monkeypatch):
    make_cifar10(root, monkeypatch)
    content = pickled(pixels(3, 0), [1, 2, 3]).replace(b"u1", b"i1")
    made = write(root / "cifar-10-batches-py" / "test_batch", content)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [["test_batch", made]])
    with pytest.raises(DataError, match="its numbers are int8"):
        loaded("cifar10")


@pytest.mark.parametrize("place", ["SVHN", "svhn", "."])
def test_svhn_is_read_and_its_label_ten_is_the_digit_zero(place, root, monkeypatch):
    made = make_svhn(root / place, monkeypatch)
    splits = loaded("svhn").splits
    assert [len(s.images) for s in splits.values()] == [36, 4, 20]
    images, labels = made["train"]
    assert 0 in labels
    assert pairs(splits["train"], splits["val"]) == sorted(
        (i.tobytes(), int(y)) for i, y in zip(images, labels, strict=True)
    )
    assert (splits["test"].images.numpy() == made["test"][0]).all()


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_celeba_is_cropped_resized_and_split_by_its_own_lists(packed, root, monkeypatch):
    expected = make_celeba(root / "CelebA", monkeypatch, packed)
    splits = loaded("celeba").splits
    for split, images in expected.items():
        assert (splits[split].images.numpy() == np.stack(images)).all() and splits[split].labels is None
    assert [len(s.images) for s in splits.values()] == [6, 3, 3]


def test_celeba_is_decoded_once_and_stays_in_its_file(root, monkeypatch):
    make_celeba(root / "celeba", monkeypatch)
    first = loaded("celeba").splits
    (root / "celeba" / "img_align_celeba.zip").unlink()  # the decoded file is enough
    monkeypatch.setattr(colour, "_celeba_image", None)
    data = loaded("celeba")
    assert all(torch.equal(data.splits[split].images, first[split].images) for split in first)
    if (maps := Path("/proc/self/maps")).exists():
        assert colour.CELEBA_DECODED in maps.read_text(encoding="utf-8")
    (x,) = next(iter(data.train_dataloader()))
    assert x.shape == (2, 3, 64, 64) and 0 <= x.min() < x.max() <= 1


def test_one_attribute_of_celeba_can_be_the_label(root, monkeypatch):
    make_celeba(root / "celeba", monkeypatch)
    data = Images("celeba", batch_size=2)
    assert data.num_classes is None and Images("celeba", attribute="Smiling").num_classes == 2
    splits = loaded("celeba", attribute="Smiling").splits
    assert [s.labels.tolist() for s in splits.values()] == [[1, 0, 0, 0, 0, 1], [0, 1, 0], [1, 0, 0]]
    with pytest.raises(UserError, match="attribute is 'Tall', but CelebA has the attributes Male, Smiling"):
        loaded("celeba", attribute="Tall")
    with pytest.raises(UserError, match="only data=celeba has attributes"):
        Images("svhn", attribute="Smiling")


def test_celeba_names_a_broken_image_and_keeps_no_half_of_a_file(root, monkeypatch):
    make_celeba(root / "celeba", monkeypatch, packed=False)
    path = root / "celeba" / "img_align_celeba" / "000005.jpg"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no image"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"000005.jpg of celeba cannot be read from .*img_align_celeba"):
            loaded("celeba")
    path.unlink()
    with pytest.raises(DataError, match=r"000005.jpg of celeba cannot be read from .*No such file"):
        loaded("celeba")
    assert not [p for p in (root / "celeba").iterdir() if p.name.endswith(".npy") or p.name.startswith(".")]


def test_a_file_of_decoded_images_that_is_cut_or_another_is_named(root, monkeypatch):
    make_celeba(root / "celeba", monkeypatch)
    loaded("celeba")
    path = root / "celeba" / colour.CELEBA_DECODED
    whole = np.load(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="64x64.npy is damaged .*delete it"):
        loaded("celeba")
    for other in (whole[:-1], whole.astype(np.float32)):
        np.save(path, other)
        with pytest.raises(DataError, match="64x64.npy is damaged .*it holds .* numbers of shape"):
            loaded("celeba")


MAKERS = {"cifar10": make_cifar10, "svhn": make_svhn, "celeba": make_celeba}


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_with_another_digest_is_named(name, root, monkeypatch):
    MAKERS[name](root / name, monkeypatch)
    path = {
        "cifar10": root / "cifar10" / "cifar-10-batches-py" / "data_batch_3",
        "svhn": root / "svhn" / "train_32x32.mat",
        "celeba": root / "celeba" / "img_align_celeba.zip",
    }[name]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name} is damaged.*not the published file"):
        loaded(name)


@pytest.mark.parametrize("name", MAKERS)
def test_without_files_and_a_network_one_sentence_names_the_files(name, root):
    wanted = {"cifar10": "cifar-10-python.tar.gz", "svhn": "train_32x32.mat and test", "celeba": "list_eval_partition"}
    for begin in (Images.prepare_data, Images.setup):
        with pytest.raises(DataError, match=f"{name} is not in .* and cannot be downloaded.*{wanted[name]}"):
            begin(by_name(name))


def test_downloads_are_verified_and_read(server, root, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.datamodules.files.reachable", lambda addresses: True)
    source = tmp_path / "published"
    make_cifar10(source, monkeypatch, packed=True)
    make_svhn(source, monkeypatch)
    make_celeba(source, monkeypatch)
    server.files = {f"/{path.name}": path.read_bytes() for path in source.iterdir()}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{server.address}/cifar-10-python.tar.gz")
    lists = torchvision.datasets.SVHN.split_list
    lists = {part: [f"{server.address}/{file}", file, md5] for part, (_, file, md5) in lists.items()}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    for name, n in (("cifar10", 10), ("svhn", 20)):
        assert len(loaded(name).splits["test"].images) == n
    shutil.rmtree(root)
    server.files["/cifar-10-python.tar.gz"] = b"<html>log in first</html>"
    with pytest.raises(DataError, match="the file at this address is not the published file"):
        loaded("cifar10")
    assert files_in(root) == set()
    monkeypatch.setattr(colour, "DRIVE", f"{server.address}/{{}}")
    files = {file: key for key, _, file in torchvision.datasets.CelebA.file_list}
    server.files = {f"/{files[path.name]}": path.read_bytes() for path in source.iterdir() if path.name in files}
    assert len(loaded("celeba").splits["test"].images) == 3
    assert "list_attr_celeba.txt" not in files_in(root)  # needed for data.attribute only
    assert len(loaded("celeba", attribute="Male").splits["test"].labels) == 3


@pytest.mark.parametrize("name", MAKERS)
def test_a_recipe_trains_on_the_set(name, root, tmp_path, monkeypatch):
    MAKERS[name](root / name, monkeypatch)
    options = ["model=gan", "model.network=mlp", "data.batch_size=2", "trainer.max_epochs=1"]
    without = ["callbacks=none", "~callbacks.sample_distance", "~callbacks.best", "trainer.limit_train_batches=2"]
    assert run(tmp_path / "run", *options, *without, f"data={name}")
