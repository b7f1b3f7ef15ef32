"""Tests of data.dataset=package.module:name and of data=hf."""

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import run
from own_images import digit_folders
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from zoo.checks.errors import UserError
from zoo.datamodules import DataError, OwnImages
from zoo.datamodules.dataset_sources import DatasetSource, made_by

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 9), dtype=np.uint8)
LABELS = [i % 4 for i in range(40)]


class Items:
    """A dataset of the items in a list."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes the module ``own_photos`` into the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield lambda code, name="own_photos": Path(f"{name}.py").write_text(textwrap.dedent(code), encoding="utf-8")
    for name in ("own_photos", "needs_more"):
        sys.modules.pop(name, None)


def loaded(made, **options):
    """Return the data module of a dataset."""
    data = OwnImages(dataset="own_photos:made", batch_size=2, cache=False, **options)
    data.open = lambda: DatasetSource("data.dataset=own_photos:made", made)
    data.setup()
    return data


def all_pixels(data):
    """Return the images of all splits, sorted by their bytes."""
    return sorted(image.numpy().tobytes() for split in data.splits.values() for image in split.images)


EXPECTED = sorted(image.tobytes() for image in PIXELS)
last = np.moveaxis(PIXELS, 1, 3)
FORMS = {
    "arrays": list(PIXELS),
    "channels last": list(last),
    "tensors": list(torch.from_numpy(PIXELS)),
    "floats": list(torch.from_numpy(PIXELS).float() / 255),
    "bfloat16 of 0 and 1": list(torch.from_numpy(PIXELS > 127).bfloat16()),
    "integers": list(PIXELS.astype(np.int64)),
    "pillow": [Image.fromarray(image) for image in last],
    "tuples of one": [(image,) for image in PIXELS],
}


@pytest.mark.parametrize("form", FORMS)
def test_items_of_every_form_have_the_same_pixels(form):
    data = loaded(Items(FORMS[form]))
    expected = EXPECTED if "0 and 1" not in form else sorted((image > 127).astype("u1").tobytes() for image in PIXELS)
    found = all_pixels(data)
    assert found == ([bytes(255 * v for v in e) for e in expected] if "0 and 1" in form else expected)
    assert data.shape == [3, 8, 9] and data.num_classes is None


PAIRED = {
    "tuples": Items(list(zip(PIXELS, LABELS, strict=True))),
    "lists": Items([[x, y] for x, y in zip(PIXELS, LABELS, strict=True)]),
    "TensorDataset": TensorDataset(torch.from_numpy(PIXELS), torch.tensor(LABELS)),
    "dictionaries": Items([{"image": x, "label": np.int64(y)} for x, y in zip(PIXELS, LABELS, strict=True)]),
    "other keys": Items([{"pixel_values": x, "target": y} for x, y in zip(PIXELS, LABELS, strict=True)]),
    "names": Items([{"x": x, "y": "abcd"[y], "more": 1} for x, y in zip(PIXELS, LABELS, strict=True)]),
    "a subset": Subset(Items(list(zip(PIXELS, LABELS, strict=True))), range(40)),
    "a list": list(zip(PIXELS, LABELS, strict=True)),
}


@pytest.mark.parametrize("form", PAIRED)
def test_labels_of_every_form_stay_with_their_images(form):
    data = loaded(PAIRED[form])
    assert data.num_classes == 4 and len(data.splits["val"].images) == 4
    right = {image.tobytes(): label for image, label in zip(PIXELS, LABELS, strict=True)}
    for split in data.splits.values():
        assert [right[image.numpy().tobytes()] for image in split.images] == split.labels.tolist()


@pytest.mark.parametrize("kind", [tuple, dict])
def test_a_function_can_return_parts(kind):
    parts = [Items(list(PIXELS[:30])), Items(list(PIXELS[30:36])), Items(list(PIXELS[36:]))]
    data = loaded(tuple(parts) if kind is tuple else dict(zip(("train", "validation", "test"), parts, strict=True)))
    for split, part in zip(("train", "val", "test"), parts, strict=True):
        assert (data.splits[split].images.numpy() == np.stack(part.items)).all()
    assert len(loaded(tuple(parts[:2])).splits["test"].images) == 3  # a tenth of the training images


def test_torchvisions_names_of_classes_and_targets_are_used(tmp_path):
    folder = ImageFolder(digit_folders(tmp_path / "digits", 100))
    source = DatasetSource("data.dataset=x:y", folder)
    assert source.classes == [str(i) for i in range(10)] and source.labels.tolist() == folder.targets
    moved = ImageFolder(tmp_path / "digits", target_transform=lambda y: (y + 1) % 10)
    assert DatasetSource("data.dataset=x:y", moved).labels.tolist() == [(y + 1) % 10 for y in folder.targets]
    folder.targets = folder.targets[::-1]  # these are not the labels of the items
    assert DatasetSource("data.dataset=x:y", folder).labels.tolist() == sorted(folder.targets)


def test_the_digest_follows_pixels_and_labels():
    pairs = list(zip(PIXELS, LABELS, strict=True))
    first = loaded(Items(pairs)).digest
    assert loaded(Items(list(pairs))).digest == first
    other = PIXELS.copy()
    other[5, 0, 0, 0] ^= 1
    assert loaded(Items(list(zip(other, LABELS, strict=True)))).digest != first
    assert loaded(Items(list(zip(PIXELS, [*LABELS[:-1], 0], strict=True)))).digest != first


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_is_not_kept_in_memory_gives_the_same_batches(workers):
    made = Items(list(zip(PIXELS, LABELS, strict=True)))
    kept, read = loaded(made), loaded(made, memory_limit=0, workers=workers)
    assert isinstance(kept.splits["train"].images, torch.Tensor)
    assert not isinstance(read.splits["train"].images, torch.Tensor) and kept.digest == read.digest
    for a, b in zip(kept.train_dataloader(), read.train_dataloader(), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Endless(IterableDataset):
    def __iter__(self):
        yield PIXELS[0]


class Random(Items):
    def __getitem__(self, i):
        return np.random.default_rng().integers(0, 256, (3, 8, 9), dtype=np.uint8)


class Unsized:
    def __getitem__(self, i):
        return PIXELS[i]


REFUSED = {
    "iterable": (Endless(), "gives a Endless for train, which has no length or no items by index"),
    "without a length": (Unsized(), "gives a Unsized for train, which has no length"),
    "a number": (3, "gives a int for train, which has no length"),
    "nothing": (None, "gives a NoneType for train, which has no length"),
    "empty": (Items([]), "is empty: it must have images"),
    "random": (Random(PIXELS), "other pixels each time it is asked for item 0: remove its random transforms"),
    "one text": (Items([*PIXELS[:5], "x"]), "item 5: a str, but must be a tensor, an array or a Pillow image"),
    "no image": (
        Items([{"text": "x"}] * 9),
        "item 0: a dictionary with text, but no image, images, img, pixel_values or x",
    ),
    "triples": (Items([(PIXELS[0], 1, 2)] * 9), "item 0: a tuple of 3, in place of"),
    "vectors": (Items([np.zeros(9)] * 9), r"item 0: shape \[9\], but must be \(H, W\)"),
    "normalised": (Items([torch.tensor([[-1.0, 1.0]])] * 9), r"item 0: floating-point values from -1 to 1, outside"),
    "objects": (Items([np.array([[None]])] * 9), "item 0: values of type object"),
    "complex": (Items([np.zeros((2, 2), complex)] * 9), "item 0: values of type complex128"),
    "one without a label": (Items([(PIXELS[0], 1), *[(PIXELS[0],)] * 9]), "item 0 has 1, and item 1 has None"),
    "names and numbers": (Items([(PIXELS[0], 1), (PIXELS[0], "a")]), "item 0 has 1, and item 1 has 'a'"),
    "attributes": (Items([(PIXELS[0], torch.zeros(40))] * 9), r"item 0: Tensor of shape \[40\]"),
    "float labels": (Items([(PIXELS[0], 0.5)] * 9), "item 0: float 0.5"),
    "another part": ({"train": PIXELS, "extra": PIXELS}, "has the parts extra, but they must be train, val and test"),
    "no train": ({"val": PIXELS}, "has the parts val, but must have train once"),
    "two vals": ({"train": PIXELS, "val": PIXELS, "valid": PIXELS}, "the parts train, val, val, but"),
    "four": ((PIXELS,) * 4, "gives 4 datasets, but must give"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_dataset_of_images_is_named(case):
    made, message = REFUSED[case]
    with pytest.raises(DataError, match=f"data.dataset=own_photos:made[^\0]*{message}"):
        loaded(made)


def test_an_error_of_an_item_is_named_with_its_index_and_that_of_the_first_keeps_its_traceback():
    class Broken(Items):
        bad = 7

        def __getitem__(self, i):
            if i == self.bad:
                raise OSError("image file is truncated")
            return self.items[i]

    broken = Broken(list(PIXELS))
    with pytest.raises(DataError, match="item 7: OSError: image file is truncated"):
        loaded(broken)
    assert len(all_pixels(loaded(broken, skip=True))) == 39
    broken.bad = 0
    with pytest.raises(OSError, match="truncated"):
        loaded(broken)


# The names.


def test_a_module_of_the_working_folder_is_found(module):
    module("def make():\n    return [1]\nclass Made(list):\n    pass\nready = [2]\nclass Outer:\n    inner = ready")
    assert made_by("own_photos:make") == [1] and made_by("own_photos:Made") == []
    assert made_by("own_photos:Outer.inner") == [2]


@pytest.mark.parametrize(
    "spec", ["own_photos", "own_photos:", ":make", "own_photos.py:make", "a b:make", "pic/tures:make"]
)
def test_a_name_of_another_form_is_refused(spec, module):
    module("")
    with pytest.raises(UserError, match="must be package.module:name|no module own_photos.py"):
        made_by(spec)


def test_missing_modules_and_attributes_are_named(module):
    module("import torch\ndef make():\n    pass\ndef needs(root):\n    pass\n")
    module("import a_module_that_does_not_exist", "needs_more")
    with pytest.raises(UserError, match=r"there is no module paintings. Put it into the working folder"):
        made_by("paintings:make")
    with pytest.raises(UserError, match=r"own_photos.py has no 'mkae', only torch, make, needs"):
        made_by("own_photos:mkae")
    with pytest.raises(UserError, match=r"own_photos:needs cannot be called without arguments .*'root'"):
        made_by("own_photos:needs")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_does_not_exist"):  # an error in the user's code
        made_by("needs_more:make")


def test_exactly_one_place_of_images_is_given():
    with pytest.raises(UserError, match="needs the images: set data.path to a folder.*or set data.dataset"):
        OwnImages()
    with pytest.raises(UserError, match="data.path and data.dataset are both set"):
        OwnImages(path="x", dataset="y:z")
    with pytest.raises(UserError, match="data.label_column is 'y', but is used only with data=hf"):
        OwnImages(path="x", label_column="y")
    with pytest.raises(UserError, match="data.dataset is 7, but must be text"):
        OwnImages(dataset=7)


def test_a_run_trains_on_a_dataset(module, tmp_path):
    module(
        """
        import torch
        def make():
            x = torch.rand(60, 1, 28, 28, generator=torch.Generator().manual_seed(0))
            return torch.utils.data.TensorDataset(x, torch.arange(60) % 3)
        """
    )
    options = ["model=vae", "model.hidden=[8]", "model.latent_dim=2", "trainer.max_epochs=1"]
    run(tmp_path / "run", *options, "data=images", "data.dataset=own_photos:make", "data.batch_size=16")
    record = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    data = OwnImages(dataset="own_photos:make")
    assert record["data_used"] == "images" and record["data_digest"] == data.digest and data.num_classes == 3


# Hugging Face.


def pairs(data, parts):
    """Return the pairs (pixels, label) of some splits, sorted."""
    splits = [data.splits[part] for part in parts]
    return sorted((x.numpy().tobytes(), int(y)) for split in splits for x, y in zip(*split, strict=True))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return the library ``datasets`` without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    datasets.disable_progress_bars()
    return datasets


def test_a_local_folder_is_read_by_the_library(hub, tmp_path):
    digit_folders(tmp_path / "digits" / "train", 200)
    digit_folders(tmp_path / "digits" / "test", 50)
    data = OwnImages(name=str(tmp_path / "digits"), batch_size=16)
    data.setup()
    assert data.used == "hf" and data.shape == [1, 28, 28] and data.num_classes == 10
    folder = OwnImages(path=str(tmp_path / "digits"), batch_size=16)
    folder.setup()
    for parts in (("train", "val"), ("test",)):  # the order of the files differs, and with it the split
        ours, theirs = (pairs(module, parts) for module in (data, folder))
        assert ours == theirs
    again = OwnImages(name=str(tmp_path / "digits"), batch_size=16)
    again.source.read = None  # the pixels come from the data folder
    assert again.digest == data.digest


def test_columns_are_chosen_or_named(hub, tmp_path):
    lines = ["file_name,digit,label"]
    for i in range(12):
        path = tmp_path / "set" / "train" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5), 10 * i, np.uint8)).save(path)
        lines.append(f"{path.name},{i % 2},0.5")
    (tmp_path / "set" / "train" / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    place = str(tmp_path / "set")
    data = OwnImages(name=place, label_column="digit", batch_size=2)
    data.setup()
    assert data.source.classes == ["0", "1"]
    assert sorted(int(x.max()) for s in data.splits.values() for x in s.images) == [10 * i for i in range(12)]
    for split in data.splits.values():
        assert [int(x.max()) // 10 % 2 for x in split.images] == split.labels.tolist()
    with pytest.raises(DataError, match="has labels that are no integers and no names"):
        OwnImages(name=place).prepare_data()
    with pytest.raises(DataError, match="data.image_column is 'photo', but .* has the columns image, digit, label"):
        OwnImages(name=place, image_column="photo").prepare_data()


def test_a_dataset_that_cannot_be_loaded_is_named(hub, tmp_path):
    with pytest.raises(DataError, match="data.name=.*nowhere cannot be loaded .*check the name, data.subset"):
        OwnImages(name=str(tmp_path / "nowhere")).prepare_data()


def test_without_the_library_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"data=hf needs the package datasets: pip install 'generative-zoo\[hf\]'"):
        OwnImages(name="ylecun/mnist").prepare_data()
