"""Tests of ``data.flip``: half of the training images are mirrored, and every way of reading gives the same batches."""

import signal
import statistics

import pytest
import torch
from helpers import assert_same_run, config, logged, run, stop
from own_images import digit_folders

from zoo.checks.errors import UserError
from zoo.datamodules import DataError, ImageLoader, Images, OwnImages
from zoo.datamodules.loaders import DiskLoader
from zoo.datamodules.splits import Split, as_floats

N = 1000
WAYS = {
    "memory": {},
    "disk": {"memory_limit": 0, "workers": 0},
    "disk by workers": {"memory_limit": 0, "workers": 2},
    "files": {"memory_limit": 0, "workers": 0, "cache": False},
}


@pytest.fixture(scope="module", autouse=True)
def own_data_root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_DATA", str(tmp_path_factory.mktemp("root")))
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return digit_folders(tmp_path_factory.mktemp("digits"), 300)


@pytest.fixture(scope="module")
def split():
    """Images of different pixels. The label is the number of the image."""
    images = torch.randint(256, (N, 3, 4, 5), generator=torch.Generator().manual_seed(0)).byte()
    return Split(images, torch.arange(N))


def epoch(loader, number=0):
    loader.set_epoch(number)
    return list(loader)


def whole(batches):
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def which_are_mirrored(split, x, labels):
    """Return which of the images ``x`` are mirrored. Every image must be the one of its label, mirrored or not."""
    original = as_floats(split.images[labels])
    same, mirrored = ((x == y).flatten(1).all(1) for y in (original, original.flip(-1)))
    assert (same ^ mirrored).all()
    return mirrored


def test_half_of_the_training_images_are_mirrored_and_the_order_stays(split):
    """In 10 epochs, 10,000 coins are thrown. A fair one is 5 sigma from the middle once in two million cases."""
    plain, flipped = (ImageLoader(split, 50, shuffle=True, seed=3, flip=flip) for flip in (False, True))
    thrown = []
    for number in range(10):
        (x, labels), (_, expected) = whole(epoch(flipped, number)), whole(epoch(plain, number))
        assert torch.equal(labels, expected)
        mirrored = torch.zeros(N, dtype=torch.bool)
        mirrored[labels] = which_are_mirrored(split, x, labels)
        thrown.append(mirrored)
    assert abs(torch.stack(thrown).float().mean() - 0.5) < 5 * 0.5 / (10 * N) ** 0.5
    counts = torch.stack(thrown).float().sum(0).tolist()  # Binomial(10, 1/2) for each image: variance 2.5
    assert 2 < statistics.variance(counts) < 3  # the standard deviation of this estimate is 0.1


def test_mirrored_images_are_the_same_for_a_seed_and_differ_between_epochs_and_passes(split):
    loader, same, other = (ImageLoader(split, 50, shuffle=True, seed=seed, flip=True, repeat=2) for seed in (0, 0, 1))
    x, labels = whole(epoch(loader, 4))
    assert all(torch.equal(a, b) for a, b in zip((x, labels), whole(epoch(same, 4)), strict=True))
    found = []
    for loader_, number in ((loader, 4), (loader, 5), (other, 4)):
        x, labels = whole(epoch(loader_, number))
        mirrored = which_are_mirrored(split, x, labels)
        for part in range(2):  # passes
            found.append(torch.zeros(N, dtype=torch.bool))
            found[-1][labels[part * N : (part + 1) * N]] = mirrored[part * N : (part + 1) * N]
    for i, first in enumerate(found):  # two sets of fair coins agree in half of the cases
        assert all(abs((first == second).float().mean() - 0.5) < 6 * 0.5 / N**0.5 for second in found[i + 1 :])


def test_two_processes_mirror_the_images_that_one_process_mirrors(split):
    one = epoch(ImageLoader(split, 50, shuffle=True, flip=True), 1)
    halves = [epoch(ImageLoader(split, 50, True, rank=r, world_size=2, flip=True), 1) for r in range(2)]
    for batch, *parts in zip(one, *halves, strict=True):
        for i, tensor in enumerate(batch):
            assert all(torch.equal(tensor[r::2], parts[r][i]) for r in range(2))


def test_a_loader_resumes_with_the_same_mirrored_images(split):
    expected = epoch(ImageLoader(split, 50, shuffle=True, flip=True), 2)
    resumed = ImageLoader(split, 50, shuffle=True, flip=True)
    resumed.load_state_dict({"position": 13})
    for batch, other in zip(epoch(resumed, 2), expected[13:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "memory"])
def test_images_on_disk_are_mirrored_as_images_in_memory(way, digits):
    found, expected = (OwnImages(str(digits), batch_size=32, flip=True, **WAYS[w]) for w in (way, "memory"))
    for data in (found, expected):
        data.setup()
    assert isinstance(found.train_dataloader(), DiskLoader)
    for number in range(2):
        for batch, other in zip(*(epoch(d.train_dataloader(), number) for d in (found, expected)), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))
    for name in ("val_dataloader", "test_dataloader"):
        for batch, other in zip(getattr(found, name)(), getattr(expected, name)(), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_only_training_images_are_mirrored(digits):
    flipped, plain = (OwnImages(str(digits), batch_size=32, flip=flip) for flip in (True, False))
    for data in (flipped, plain):
        data.setup()
    for split, same in (("train", False), ("val", True), ("test", True)):
        images = [whole(getattr(data, f"{split}_dataloader")())[0] for data in (flipped, plain)]
        assert torch.equal(*images) == same


def test_images_without_labels_are_mirrored():
    images = torch.arange(8, dtype=torch.uint8).view(2, 1, 1, 4)
    seen = {
        tuple((x * 255).round().int().flatten().tolist())
        for n in range(12)
        for (x,) in epoch(ImageLoader(Split(images, None), 1, shuffle=True, flip=True), n)
    }
    assert seen == {(0, 1, 2, 3), (3, 2, 1, 0), (4, 5, 6, 7), (7, 6, 5, 4)}


def test_a_run_does_not_resume_with_another_choice():
    data, other = (Images("digits", flip=flip) for flip in (True, False))
    other.load_state_dict(other.state_dict())
    with pytest.raises(DataError, match="data.flip is True, but was False"):
        data.load_state_dict(other.state_dict())
    old = {key: value for key, value in other.state_dict().items() if key != "flip"}  # of a version without flip
    other.load_state_dict(old)
    with pytest.raises(DataError, match="data.flip is True, but was False"):
        data.load_state_dict(old)


@pytest.mark.parametrize("kind", [lambda flip: Images("digits", flip=flip), lambda flip: OwnImages("x", flip=flip)])
def test_other_values_are_refused(kind):
    with pytest.raises(UserError, match=r"flip .*'yes'"):
        kind("yes")


def test_the_recipe_of_the_paper_mirrors_images(tmp_path):
    assert config(tmp_path, "experiment=ddpm_cifar10").data.flip
    assert not config(tmp_path, "data=cifar10").data.flip


@pytest.mark.parametrize("more", [[], ["data.memory_limit=0", "data.workers=2"]], ids=["memory", "disk"])
def test_a_stopped_run_resumes_bit_for_bit(more, digits, tmp_path):
    overrides = ["model=vae", "model.hidden=[16]", "model.latent_dim=2", "data=images", f"data.path={digits}"]
    overrides += ["data.flip=true", "data.batch_size=32", "trainer.max_epochs=2", "callbacks=none", "test=false"]
    overrides += ["trainer.log_every_n_steps=2"]
    whole = run(tmp_path / "whole", *overrides, "trainer.steps_per_execution=1")
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", *overrides, *more, *stop(9, signal.SIGTERM), "trainer.steps_per_execution=16")
    left = tmp_path / "parts" / "checkpoints" / "interrupted.ckpt"
    metrics = run(tmp_path / "parts", *overrides, *more, f"ckpt={left}", "trainer.steps_per_execution=16")
    whole = {k: v for k, v in whole.items() if k in metrics and "second" not in k}
    assert_same_run(metrics, tmp_path / "parts", (whole, tmp_path / "whole"))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
