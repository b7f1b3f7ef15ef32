"""Sources of images that other libraries read: datasets of PyTorch, and datasets of Hugging Face.

An item of a dataset is an image, a tuple (image, label), or a dictionary. An image is a tensor, an array or a Pillow
image. It has the shape (H, W), (C, H, W) or (H, W, C). Its values are those of an array file (see image_arrays.py).
"""

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from zoo.checks.errors import UserError
from zoo.checks.pixels import EXAMPLE_KEYS, LABEL_KEYS
from zoo.datamodules.files import DataError
from zoo.datamodules.image_arrays import CHANNELS, as_image
from zoo.datamodules.image_files import Unreadable, decode, from_pillow
from zoo.datamodules.image_sources import SPLIT_FOLDERS, ImageSource, problem_lines

NUMBERS = "buif"  # kinds of NumPy's types: booleans, integers without and with a sign, and floating-point numbers


@runtime_checkable
class Indexed(Protocol):
    """A dataset with a length and items by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@runtime_checkable
class Targets(Protocol):
    """A dataset that knows its labels without its images, such as those of torchvision."""

    targets: Any


@runtime_checkable
class TransformedTargets(Protocol):
    """A dataset that can change its labels."""

    target_transform: Any


@runtime_checkable
class Classes(Protocol):
    """A dataset with names of its classes."""

    classes: Any


class DatasetSource(ImageSource):
    """Images of datasets that have a length and give an item for an index.

    The labels are integers or names. The attributes ``classes`` and ``targets`` of torchvision's datasets give the
    names of the classes and save a pass over the images.

    Args:
        title: name of the data in errors, such as ``data.dataset=faces:make``.
        parts: a dataset, a tuple (train, val) or (train, val, test), or a dictionary of these.

    Raises:
        DataError: if the datasets or their labels cannot be used, or differ each time they are read.
    """

    def __init__(self, title: str, parts: Any):
        self._title = title
        datasets = parts_of(title, parts)
        self._names, self._datasets = list(datasets), list(datasets.values())
        self._ends = np.cumsum([len(dataset) for dataset in self._datasets])
        if len(self) == 0:
            raise DataError(f"{title} is empty: it must have images")
        self.parts = [name for name, dataset in datasets.items() for _ in range(len(dataset))]
        self._failed: dict[int, str] = {}  # reasons of the items that could not be read for their labels
        self._check_repeats()
        self._set_labels(self._all_labels())

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, i: int) -> tuple[int, int]:
        """Return the number of the dataset that has item ``i``, and the index of the item in this dataset."""
        part = int(np.searchsorted(self._ends, i, side="right"))
        return part, i - int(self._ends[part - 1] if part else 0)

    def _item(self, i: int) -> Any:
        part, index = self._place(i)
        return self._datasets[part][index]

    def read(self, i: int) -> np.ndarray:
        return pixels_of(self._image(i))

    def _image(self, i: int) -> Any:
        """Return the image of item ``i`` in the form of the dataset."""
        if i in self._failed:
            raise Unreadable(self._failed[i])
        try:
            item = self._item(i)
        except Exception as error:  # the code of another project can raise anything for a broken image
            raise Unreadable(_in_short(error)) from error
        return image_in(item)

    def _check_repeats(self) -> None:
        """Read the first item twice. Its errors keep their traceback, because they show the code to correct."""
        first, second = self._item(0), self._item(0)
        with suppress(Unreadable):  # the check of all images names it
            if not np.array_equal(pixels_of(image_in(first)), pixels_of(image_in(second))):
                raise DataError(
                    f"{self._title} gives other pixels each time it is asked for item 0: remove its random transforms"
                )

    def _known_labels(self, dataset: Any) -> list[Any] | None:
        """Return the label of each item if it is known without the items, else None."""
        if isinstance(dataset, TransformedTargets) and dataset.target_transform is not None:
            return None
        targets, n = dataset.targets if isinstance(dataset, Targets) else None, len(dataset)
        if n and isinstance(targets, Sequence | torch.Tensor):
            plain = [plain_label(target) for target in targets]
            if len(plain) == n and all(plain[i] == plain_label(label_in(dataset[i])) for i in (0, n - 1)):
                return plain
        return None

    def _all_labels(self) -> list[Any]:
        """Return the label of each item. An item that cannot be read has the label of the first one."""
        labels: list[Any] = []
        for dataset in self._datasets:
            if (known := self._known_labels(dataset)) is not None:
                labels += known
                continue
            for i in range(len(labels), len(labels) + len(dataset)):
                try:
                    labels.append(plain_label(label_in(self._item(i))))
                except Exception as error:
                    self._failed[i] = _in_short(error)
                    labels.append(labels[0] if labels else None)
        return labels

    def _set_labels(self, labels: list[Any]) -> None:
        unknown = [i for i, label in enumerate(labels) if not isinstance(label, int | str | None)]
        wrong = [f"{self.describe(i)}: {reason_of(labels[i])}" for i in unknown]
        if wrong:
            what = "has labels that are no integers and no names. Return images alone to train without labels"
            raise DataError(problem_lines(f"{self._title} {what}", wrong))
        kinds = {type(label) for label in labels}
        if kinds == {type(None)}:
            return
        if len(kinds) > 1:
            other = next(i for i, label in enumerate(labels) if type(label) is not type(labels[0]))
            raise DataError(
                f"{self._title} mixes labels: {self.describe(0)} has {labels[0]!r}, and {self.describe(other)} has "
                f"{labels[other]!r}. Give all items an integer, all a name, or none a label"
            )
        self._name_classes(labels)

    def _name_classes(self, labels: list[int] | list[str]) -> None:
        names = self._datasets[0].classes if isinstance(self._datasets[0], Classes) else None
        numbers = isinstance(labels[0], int)
        if numbers and isinstance(names, list) and min(labels) >= 0 and max(labels) < len(names):
            self.classes, self.labels = [str(name) for name in names], np.array(labels, dtype=np.int64)
            return
        values, index = np.unique(np.array(labels), return_inverse=True)
        if len(values) > 1:
            self.classes, self.labels = [str(value) for value in values], index.reshape(-1).astype(np.int64)

    def describe(self, i: int) -> str:
        part, index = self._place(i)
        return f"item {index:,}" if len(self._names) == 1 else f"item {index:,} of {self._names[part]}"

    def title(self) -> str:
        return self._title

    def place(self) -> str:
        return self._title


class HubSource(DatasetSource):
    """Images of a dataset of Hugging Face, read by its library ``datasets``.

    Args:
        name: name on the hub, such as ``ylecun/mnist``, or a local folder.
        subset: name of the configuration, or None.
        image_column, label_column: names of the columns. None looks for usual names.

    Raises:
        DataError: if the library is not installed, or the dataset cannot be loaded or used.
    """

    name = "hf"

    def __init__(self, name: str, subset: str | None, image_column: str | None, label_column: str | None):
        self._image_column, self._label_column = image_column, label_column
        title = f"data.name={name}"
        super().__init__(title, self._columns_chosen(title, parts_on_hub(title, name, subset)))

    def _columns_chosen(self, title: str, parts: dict[str, Any]) -> dict[str, Any]:
        """Choose the columns of the image and the label. Images stay encoded, so that one decoder reads all files."""
        import datasets

        features = next(iter(parts.values())).features
        pictures = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
        self._image_column = _column(title, "image_column", self._image_column, features, (*EXAMPLE_KEYS, *pictures))
        if self._image_column is None:
            raise DataError(f"{title} has the columns {', '.join(features)}: set data.image_column to the images")
        self._label_column = _column(title, "label_column", self._label_column, features, LABEL_KEYS)
        if self._image_column in pictures:
            encoded = datasets.Image(decode=False)
            parts = {name: part.cast_column(self._image_column, encoded) for name, part in parts.items()}
        return parts

    def _item(self, i: int) -> Any:
        item = super()._item(i)[self._image_column]
        if isinstance(item, Mapping) and {"bytes", "path"} <= set(item):
            return item["bytes"] if item["bytes"] is not None else Path(item["path"]).read_bytes()
        return np.asarray(item) if isinstance(item, list) else item

    def _known_labels(self, dataset: Any) -> list[Any]:
        return [None] * len(dataset) if self._label_column is None else list(dataset[self._label_column])

    def _name_classes(self, labels: list[int] | list[str]) -> None:
        super()._name_classes(labels)
        import datasets

        kind = self._datasets[0].features[self._label_column]
        if isinstance(kind, datasets.ClassLabel):
            if min(labels) < 0:  # the hub marks the missing labels of test images with -1
                raise DataError(f"{self._title} has items without a label (-1): remove them or their split")
            self.classes, self.labels = list(kind.names), np.array(labels, dtype=np.int64)

    def read_with_digest(self, i: int) -> tuple[np.ndarray, bytes]:
        # The content of a file has the same digest on all machines. Decoded pixels depend on the decoder.
        image = self._image(i)
        content = image if isinstance(image, bytes) else None
        return (decode(content), hashlib.sha256(content).digest()) if content else super().read_with_digest(i)

    def stamp(self) -> str:
        parts = zip(self._names, (dataset._fingerprint for dataset in self._datasets), strict=True)
        return f"{self._image_column} {self._label_column} {list(parts)}"


def parts_on_hub(title: str, name: str, subset: str | None) -> dict[str, Any]:
    """Return the datasets ``train``, ``val`` and ``test`` of a name on the hub, or those that exist.

    Raises:
        DataError: if the library ``datasets`` is not installed, or the dataset cannot be loaded.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise DataError("data=hf needs the package datasets: pip install 'generative-zoo[hf]'") from None
    try:
        loaded = datasets.load_dataset(name, subset)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{title} cannot be loaded ({reason}): check the name, data.subset and the network") from error
    known = {split: part for split, part in loaded.items() if split.casefold() in SPLIT_FOLDERS}
    if "train" not in known:
        if len(loaded) > 1:
            splits = ", ".join(loaded)
            raise DataError(f"{title} has the splits {splits}, but no split train: choose another data.subset")
        return {"train": next(iter(loaded.values()))}
    return known


def _column(title: str, key: str, given: str | None, features: Mapping, usual: Sequence[str]) -> str | None:
    """Return the column ``given``, or else the first of the usual columns that exists, or None."""
    if given is not None and given not in features:
        raise DataError(f"data.{key} is {given!r}, but {title} has the columns {', '.join(features)}")
    return given or next((column for column in usual if column in features), None)


def made_by(spec: str) -> Any:
    """Return what the name ``package.module:attribute`` stands for. A class or a function is called.

    The module may lie in the working folder.

    Raises:
        UserError: if the name has another form, or there is no such module or attribute.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (colon and attribute and all(part.isidentifier() for part in module_name.split("."))):
        raise UserError(f"data.dataset is {spec!r}, but must be package.module:name, such as my_images:make")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # at the end, so that no file of the working folder replaces a library
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, and imports another one that does not
        raise UserError(
            f"data.dataset={spec}: there is no module {error.name}. Put it into the working folder {here} or install it"
        ) from None
    made = module
    for name in attribute.split("."):
        try:
            made = getattr(made, name)
        except AttributeError:
            public = ", ".join(key for key in vars(module) if not key.startswith("_"))
            raise UserError(
                f"data.dataset={spec}: {module.__file__ or module_name} has no {name!r}, only {public or 'no names'}"
            ) from None
    if isinstance(made, type) or (callable(made) and not isinstance(made, Indexed)):
        _check_needs_nothing(spec, made)
        return made()
    return made


def _check_needs_nothing(spec: str, made: Any) -> None:
    """Raise UserError if a class or function cannot be called without arguments."""
    try:
        signature = inspect.signature(made)
    except ValueError:  # some functions in C have no signature
        return
    try:
        signature.bind()
    except TypeError as error:
        raise UserError(
            f"data.dataset={spec} cannot be called without arguments ({error}): name a function that needs none"
        ) from None


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def parts_of(title: str, made: Any) -> dict[str, Any]:
    """Return {``train``, ``val`` or ``test``: dataset} of a dataset, a tuple or a dictionary of datasets.

    Raises:
        DataError: if there is no training dataset, or a dataset has no length or no items by index.
    """
    if isinstance(made, Mapping):
        unknown = [str(key) for key in made if str(key).casefold() not in SPLIT_FOLDERS]
        if unknown:
            raise DataError(f"{title} has the parts {', '.join(unknown)}, but they must be train, val and test")
        named = [(SPLIT_FOLDERS[str(key).casefold()], dataset) for key, dataset in made.items()]
    elif isinstance(made, tuple):
        if not 1 <= len(made) <= 3:
            raise DataError(f"{title} gives {len(made)} datasets, but must give (train, val) or (train, val, test)")
        named = list(zip(("train", "val", "test"), made, strict=False))
    else:
        named = [("train", made)]
    parts = dict(named)
    if len(parts) < len(named) or "train" not in parts:
        raise DataError(f"{title} has the parts {', '.join(name for name, _ in named)}, but must have train once")
    for name, dataset in parts.items():
        kind = type(dataset).__name__
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Indexed):
            raise DataError(
                f"{title} gives a {kind} for {name}, which has no length or no items by index: give a dataset with "
                "__len__ and __getitem__"
            )
        try:
            len(dataset)
        except (TypeError, NotImplementedError) as error:
            raise DataError(f"{title} gives a {kind} for {name} without a length ({error}): add __len__") from None
    return parts


def image_in(item: Any) -> Any:
    """Return the image of an item.

    Raises:
        Unreadable: if the item is a tuple or a dictionary of another form.
    """
    if isinstance(item, Mapping):
        if (key := next((key for key in EXAMPLE_KEYS if key in item), None)) is None:
            wanted = f"{', '.join(EXAMPLE_KEYS[:-1])} or {EXAMPLE_KEYS[-1]}"
            raise Unreadable(f"a dictionary with {', '.join(map(str, item))}, but no {wanted}")
        return item[key]
    if isinstance(item, tuple | list):
        if not 1 <= len(item) <= 2:
            raise Unreadable(f"a {type(item).__name__} of {len(item)}, in place of (image, label)")
        return item[0]
    return item


def label_in(item: Any) -> Any:
    """Return the label of an item, or None if there is none."""
    if isinstance(item, Mapping):
        return next((item[key] for key in LABEL_KEYS if key in item), None)
    return item[1] if isinstance(item, tuple | list) and len(item) == 2 else None


def plain_label(label: Any) -> Any:
    """Return an integer label as int, and a name as str. Any other label is returned unchanged."""
    if isinstance(label, torch.Tensor | np.ndarray | np.generic) and np.ndim(label) == 0:
        label = label.item()
    return int(label) if isinstance(label, bool) else label


def reason_of(label: Any) -> str:
    """Return a short description of a label that cannot be used."""
    kind, shape = type(label).__name__, list(label.shape) if isinstance(label, torch.Tensor | np.ndarray) else []
    return f"{kind} of shape {shape}" if shape else f"{kind} {str(label)[:40]}"


def pixels_of(image: Any) -> np.ndarray:
    """Return a tensor, an array, a Pillow image, or the content of an image file as (C, H, W) uint8, with C of 1 or 3.

    Raises:
        Unreadable: if it is no image, or its values have an unknown range.
    """
    if isinstance(image, bytes):
        return decode(image)
    if isinstance(image, Image.Image):
        return from_pillow(image)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    if not isinstance(image, np.ndarray):
        raise Unreadable(f"a {type(image).__name__}, but must be a tensor, an array or a Pillow image")
    if image.dtype.kind not in NUMBERS:
        raise Unreadable(f"values of type {image.dtype}, but they must be numbers")
    shape = image.shape
    if image.ndim == 2:
        image = image[None]
    elif image.ndim == 3 and shape[0] not in CHANNELS and shape[2] in CHANNELS:
        image = np.moveaxis(image, 2, 0)
    if image.ndim != 3 or image.shape[0] not in CHANNELS or 0 in image.shape:
        raise Unreadable(f"shape {list(shape)}, but must be (H, W), (C, H, W) or (H, W, C) with 1 to 4 channels")
    return as_image(np.ascontiguousarray(image))
