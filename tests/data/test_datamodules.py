"""Tests of Images: contents, order, disjoint parts for several processes, and errors."""

import gzip
import logging
import shutil
import socket

import lightning as L
import pytest
import torch

from zoo.datamodules import DataError, ImageLoader, Images
from zoo.datamodules.files import data_root
from zoo.datamodules.images import MD5, load_split
from zoo.datamodules.splits import Split


@pytest.fixture
def split():
    return Split(
        torch.arange(103, dtype=torch.uint8).view(103, 1, 1, 1).expand(103, 1, 28, 28).contiguous(),
        (torch.arange(103) % 10).byte(),
    )


@pytest.fixture
def offline(monkeypatch):
    """Refuse every network connection, as on a machine without a network."""

    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)


def seen(loader):
    return [(255 * x[:, 0, 0, 0]).round().long().tolist() for x, _ in loader]


def test_batches_are_images_in_zero_to_one_with_labels(split):
    x, y = next(iter(ImageLoader(split, 10, shuffle=True)))
    assert x.shape == (10, 1, 28, 28) and x.dtype == torch.float32
    assert y.shape == (10,) and y.dtype == torch.int64
    assert torch.equal((255 * x[:, 0, 0, 0]).round().long() % 10, y)


def test_an_epoch_is_a_permutation_keyed_by_seed_and_epoch(split):
    def epoch(seed, number):
        loader = ImageLoader(split, 10, shuffle=True, seed=seed)
        loader.set_epoch(number)
        return sum(seen(loader), [])

    first = epoch(0, 0)
    assert len(first) == 100 and len(set(first)) == 100  # the incomplete batch is dropped
    assert first == epoch(0, 0)
    assert first != epoch(0, 1)
    assert first != epoch(1, 0)
    assert epoch(0, 1) != epoch(1, 0)  # epoch 0 of seed 1 is not epoch 1 of seed 0
    repeated = ImageLoader(split, 10, shuffle=True, repeat=3)
    assert len(repeated) == 30
    assert max(sum(seen(repeated), []).count(i) for i in range(103)) == 3


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_every_batch_without_overlap(split, world_size):
    for shuffle, batch_size in ((True, 12), (False, 20)):
        whole = seen(ImageLoader(split, batch_size, shuffle))
        parts = [
            seen(ImageLoader(split, batch_size, shuffle, rank=r, world_size=world_size)) for r in range(world_size)
        ]
        assert {len(p) for p in parts} == {len(whole)}
        for batch, *shares in zip(whole, *parts, strict=True):
            assert sorted(sum(shares, [])) == sorted(batch)
            assert all(shares)


def test_evaluation_sees_every_image_once_in_nearly_equal_batches(split):
    batches = seen(ImageLoader(split, 20, shuffle=False))
    assert sum(batches, []) == list(range(103))
    assert {len(b) for b in batches} == {17, 18}


def test_evaluation_repeats_no_digits():
    """``digits_repeat`` does not apply to evaluation, which has 180 digits in two batches of 90."""
    data = Images("digits", eval_batch_size=100, digits_repeat=4)
    data.setup()
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert [len(x) for x, _ in loader] == [90, 90]
    assert len(data.train_dataloader()) == 4 * 1437 // 128


def test_a_loader_continues_where_it_stopped(split):
    loader = ImageLoader(split, 10, shuffle=True)
    loader.set_epoch(2)
    iterator = iter(loader)
    begun = [next(iterator) for _ in range(4)]
    resumed = ImageLoader(split, 10, shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(2)
    rest = seen(resumed)
    assert len(begun) + len(rest) == 10
    whole = ImageLoader(split, 10, shuffle=True)
    whole.set_epoch(2)
    assert seen(whole)[4:] == rest
    assert len(seen(resumed)) == 10  # the next epoch is complete
    list(zip(range(2), loader, strict=False))  # read two batches only
    assert len(seen(loader)) == 10


def test_lightning_tells_the_loader_which_epoch_it_is(digits_seen):
    """In a run, each epoch has all images in a different order. A second run has the same orders."""
    first, again = digits_seen(), digits_seen()
    assert first == again and len(first) == 3
    epochs = [torch.tensor(epoch) for epoch in first]
    assert all(torch.equal(e.sort().values, epochs[0].sort().values) for e in epochs)
    assert len({tuple(e.tolist()) for e in epochs}) == 3


@pytest.fixture
def digits_seen():
    class Watching(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.w, self.seen = torch.nn.Parameter(torch.zeros(())), [[], [], []]

        def training_step(self, batch, batch_idx):
            self.seen[self.current_epoch] += (batch[0].flatten(1).double() @ torch.arange(784.0).double()).tolist()
            return self.w

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def run():
        model, quiet = Watching(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, **quiet)
        trainer.fit(model, datamodule=Images("digits", batch_size=479, digits_repeat=1))
        return model.seen

    return run


def test_digits_need_no_download():
    data = Images("digits")
    data.prepare_data()
    data.setup()
    sizes = {k: len(s.images) for k, s in data.splits.items()}
    assert sizes == {"train": 1437, "val": 180, "test": 180}
    assert data.splits["train"].images.shape[1:] == (1, 28, 28)
    assert len(data.train_dataloader()) == 4 * 1437 // 128
    flat = torch.cat([s.images for s in data.splits.values()]).flatten(1)
    assert len(flat.unique(dim=0)) == 1797  # splits are disjoint
    labels = torch.cat([s.labels for s in data.splits.values()])
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # images of each digit
    assert 0.25 < flat.float().mean() / 255 < 0.35 and flat.max() == 255


def test_without_mnist_the_default_falls_back_and_says_so(tmp_path, monkeypatch, offline, caplog):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    data = Images("mnist_or_digits")
    with caplog.at_level(logging.WARNING):
        data.prepare_data()
    assert data.used == "digits"
    (message,) = [r.getMessage() for r in caplog.records]
    assert message.startswith("NO MNIST, USING THE DIGITS OF SCIKIT-LEARN") and "data=mnist" in message
    data.setup()
    assert len(data.splits["train"].images) == 1437
    assert data.state_dict()["used"] == "digits"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_asked_for_by_name_it_is_strict(name, tmp_path, monkeypatch, offline):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"{name} is not in .*raw and cannot be downloaded.*digits needs no download"):
        Images(name).prepare_data()


def test_deciding_takes_seconds_even_if_nothing_answers(tmp_path, monkeypatch, request):
    """No attempt to connect ever returns, as if the network dropped all packets. ``reachable`` returns False."""
    import threading

    import zoo.training.files as files

    forever = threading.Event()
    request.addfinalizer(forever.set)  # ends the waiting threads

    def swallowed(*args, **kwargs):
        forever.wait()
        raise OSError("at last")

    monkeypatch.setattr(socket, "create_connection", swallowed)
    monkeypatch.setattr(files, "SECONDS_TO_DECIDE", 1)
    assert files.reachable(["https://example.org/a", "https://example.org/b"]) is False


def test_damaged_files_are_named_with_the_remedy(tmp_path, monkeypatch, offline):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    for damage in (b"", b"not gzip", gzip.compress(b"too short"), gzip.compress(b"cut in the middle" * 99)[:-9]):
        for file in MD5["mnist"]:
            (raw / f"{file}.gz").write_bytes(damage)
        data = Images("mnist_or_digits")  # damaged files raise an error, although the digits could replace them
        data.prepare_data()
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is damaged.*Delete or move it"):
            data.setup()


def test_a_resumed_run_refuses_other_data():
    data = Images("digits")
    data.setup()
    state = data.state_dict()
    data.load_state_dict(state)
    with pytest.raises(DataError, match="this run has data=digits, but its checkpoint was trained on mnist"):
        data.load_state_dict({**state, "used": "mnist"})
    with pytest.raises(DataError, match=r"data.batch_size is 128, but was 64"):
        data.load_state_dict({**state, "batch_size": 64})


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="name is 'imagenet', but must be one of mnist, "):
        Images("imagenet")
    with pytest.raises(ValueError, match="batch_size is 0, but must be an integer of at least 1"):
        Images("digits", batch_size=0)
    data = Images("digits", batch_size=6000)
    with pytest.raises(DataError, match="data.batch_size is 6000, but an epoch has 5,748 training images"):
        data.setup()


@pytest.mark.parametrize(
    ("key", "value"), [("batch_size", 64), ("seed", 1), ("digits_repeat", 2), ("train_on", "everything")]
)
def test_a_run_resumes_with_every_setting_that_orders_its_images(key, value):
    before, now = Images("digits").hparams[key], Images("digits", **{key: value})
    with pytest.raises(DataError, match=f"data.{key} is {value}, but was {before}"):
        now.load_state_dict(Images("digits").state_dict())
    now.load_state_dict(now.state_dict())


def test_where_data_lie(monkeypatch):
    """ZOO_DATA sets the folder. If it is empty or not set, the folder is ``data``."""
    for value, folder in (("/somewhere", "/somewhere"), ("", "data"), (None, "data")):
        monkeypatch.delenv("ZOO_DATA", raising=False)
        if value is not None:
            monkeypatch.setenv("ZOO_DATA", value)
        assert str(data_root()) == folder


def test_real_mnist(mnist_root):
    splits = load_split("mnist", mnist_root)
    assert {k: len(s.images) for k, s in splits.items()} == {"train": 55_000, "val": 5_000, "test": 10_000}
    labels = torch.cat([splits["train"].labels, splits["val"].labels])
    assert labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert splits["test"].labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    train = torch.cat([splits["train"].images, splits["val"].images]).float() / 255
    assert abs(train.mean() - 0.1307) < 5e-5 and abs(train.std() - 0.3081) < 5e-5
    # The seed of the split is fixed, so a second call returns the same validation set.
    assert splits["val"].labels[:5].tolist() == load_split("mnist", mnist_root)["val"].labels[:5].tolist()


def test_compressed_and_plain_files_are_the_same(mnist_root, tmp_path):
    source, raw = mnist_root / "MNIST" / "raw", tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in MD5["mnist"]:
        if not (source / f"{file}.gz").is_file():
            pytest.skip("ZOO_DATA holds the unpacked files only")
        if file.startswith("train"):
            shutil.copy(source / f"{file}.gz", raw)
        else:
            (raw / file).write_bytes(gzip.decompress((source / f"{file}.gz").read_bytes()))
    a, b = load_split("mnist", mnist_root), load_split("mnist", tmp_path)
    assert all(torch.equal(a[k].images, b[k].images) for k in a)


@pytest.mark.parametrize(
    ("train_on", "n"), [("train", 1437), ("train_and_validation", 1437 + 180), ("everything", 1797)]
)
def test_what_is_trained_on(train_on, n):
    data = Images("digits", train_on=train_on)
    data.setup()
    usual = load_split("digits", None)
    assert len(data.splits["train"].images) == n
    assert torch.equal(data.splits["train"].images[:1437], usual["train"].images)
    for split in ("val", "test"):
        assert torch.equal(data.splits[split].images, usual[split].images)
    other = Images("digits", train_on="train" if train_on != "train" else "everything")
    other.setup()
    with pytest.raises(DataError, match=f"data.train_on is {other.hparams.train_on}, but was {train_on}"):
        other.load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match="train_on is 'all', but must be one of train, train_and_validation"):
        Images("digits", train_on="all")
