"""Source of images in an array file: ``.npy``, ``.npz`` or ``.pt``.

The images are (n, H, W), (n, C, H, W) or (n, H, W, C). Their values are bytes, booleans, other integers from 0 to 255,
16-bit integers without a sign, or floating-point numbers in [0, 1]. Nothing is unpickled.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.datamodules.files import DataError
from zoo.datamodules.image_files import Unreadable, fractions, on_white, sixteen_bits
from zoo.datamodules.image_sources import ImageSource

ENDINGS = (".npy", ".npz", ".pt", ".pth")
IMAGES, LABELS = ("x", "images", "data", "X", "arr_0"), ("y", "labels", "targets", "label", "arr_1")
PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
CHANNELS = (1, 2, 3, 4)  # grey, grey with opacity, colours, colours with opacity


class ArrayFile(ImageSource):
    """Images in an array file.

    A ``.npz`` file, or a dictionary in a ``.pt`` file, has the images under ``x``, ``images`` or ``data``. The labels,
    if any, are under ``y``, ``labels`` or ``targets``. Names such as ``x_train``, ``y_train`` and ``x_test`` give parts
    of the data. A ``.pt`` file can also hold a tensor, or images and labels in a list. The labels of ``NAME.npy`` can
    be in the file ``NAME_labels.npy`` in the same folder.

    Raises:
        DataError: if the file cannot be read, or does not hold images and labels.
    """

    def __init__(self, path: Path):
        self.path = path
        arrays = _arrays(path)
        beside = path.with_name(f"{path.stem}_labels.npy")
        if "y" not in arrays and "x" in arrays and beside.is_file():
            arrays["y"] = _load(beside)
        self._stamp = " ".join(f"{f.stat().st_size} {f.stat().st_mtime_ns}" for f in (path, beside) if f.is_file())
        names = [name for name in arrays if name.startswith("x")]
        self._arrays = [_with_channels_first(arrays[name], path) for name in names]
        self._ends = np.cumsum([len(array) for array in self._arrays])
        if len(self) == 0:
            raise DataError(f"data.path={path} has no images: its arrays are empty")
        if names != ["x"]:
            self.parts = [n.partition("_")[2] for n, a in zip(names, self._arrays, strict=True) for _ in range(len(a))]
            if "x_train" not in names:
                raise DataError(f"data.path={path} has {', '.join(names)}, but no images x_train: add them")
        labels = [arrays.get(f"y{name[1:]}") for name in names]
        if any(part is not None for part in labels):
            self._set_labels([_labels(y, len(a), path) for y, a in zip(labels, self._arrays, strict=True)])

    def _set_labels(self, parts: list[np.ndarray]) -> None:
        values, labels = np.unique(np.concatenate(parts), return_inverse=True)
        if len(values) > 1:
            self.labels, self.classes = labels.reshape(-1).astype(np.int64), [str(value) for value in values]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _raw(self, i: int) -> np.ndarray:
        part = int(np.searchsorted(self._ends, i, side="right"))
        return np.ascontiguousarray(self._arrays[part][i - (self._ends[part - 1] if part else 0)])

    def read(self, i: int) -> np.ndarray:
        return as_image(self._raw(i))

    def read_with_digest(self, i: int) -> tuple[np.ndarray, bytes]:
        raw = self._raw(i)
        return as_image(raw), hashlib.sha256(f"{raw.dtype.str} {raw.shape}".encode() + raw.tobytes()).digest()

    def title(self) -> str:
        return f"data.path={self.path}"

    def place(self) -> str:
        return str(self.path.absolute())

    def stamp(self) -> str:
        return self._stamp


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of images and labels in a file, under ``x`` and ``y``, or ``x_train``, ``y_train``, ..."""
    loaded = _load(path)
    if isinstance(loaded, np.ndarray | torch.Tensor):
        loaded = {"x": loaded}
    elif isinstance(loaded, list | tuple) and 1 <= len(loaded) <= 2:
        loaded = dict(zip(("x", "y"), loaded, strict=False))
    if not isinstance(loaded, dict):
        raise DataError(f"data.path={path} holds a {type(loaded).__name__}, but must hold an array of images")
    known = {name: kind for kind, names in (("x", IMAGES), ("y", LABELS)) for name in names}
    for kind, names in (("x", IMAGES), ("y", LABELS)):
        for part, endings in PARTS.items():
            known |= {f"{name}_{ending}": f"{kind}_{part}" for name in names for ending in endings}
            known |= {f"{ending}_{name}": f"{kind}_{part}" for name in names for ending in endings}
    found = {known[key]: np.asarray(value) for key, value in loaded.items() if key in known and value is not None}
    if not any(name.startswith("x") for name in found):
        raise DataError(
            f"data.path={path} has the arrays {', '.join(map(str, loaded)) or 'none'}, but no images: name the images "
            "x, and the labels y"
        )
    if "x" in found and any("_" in name for name in found):
        found = {name: array for name, array in found.items() if "_" not in name}
    order = [f"{kind}{part}" for kind in "xy" for part in ("", "_train", "_val", "_test")]
    return {name: found[name] for name in order if name in found}


def _load(path: Path) -> Any:
    try:
        if path.suffix.lower() in (".pt", ".pth"):
            return torch.load(path, map_location="cpu", weights_only=True)
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise DataError(f"data.path={path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file can raise any exception
        pickled = any(word in str(error).lower() for word in ("pickle", "python objects", "weights_only"))
        reason = "it holds Python objects" if pickled else "it is damaged"
        raise DataError(f"data.path={path} cannot be read safely: {reason}. Save plain arrays of numbers") from error


def _with_channels_first(array: np.ndarray, path: Path) -> np.ndarray:
    """Return a view of images as (n, C, H, W)."""
    shape = array.shape
    if array.dtype.kind not in "buif":
        raise DataError(f"data.path={path} has values of type {array.dtype}, but images must be numbers")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and shape[1] not in CHANNELS and shape[3] in CHANNELS:
        array = np.moveaxis(array, 3, 1)
    if array.ndim != 4 or array.shape[1] not in CHANNELS or 0 in array.shape[2:]:
        raise DataError(
            f"data.path={path} has an array of shape {list(shape)}, but images must be (n, H, W), (n, C, H, W) or "
            "(n, H, W, C) with 1 to 4 channels"
        )
    return array


def _labels(y: np.ndarray | None, n: int, path: Path) -> np.ndarray:
    if y is None:
        raise DataError(f"data.path={path} has labels for some of its parts only: add the others, or remove all")
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (n,):
        raise DataError(
            f"data.path={path} has labels of shape {list(y.shape)}, but must have one for each of {n:,} images"
        )
    if y.dtype.kind not in "buiUS":
        raise DataError(f"data.path={path} has labels of type {y.dtype}, but they must be integers or names")
    return y


def as_image(raw: np.ndarray) -> np.ndarray:
    """Return an image (C, H, W) of any numbers as bytes, without opacity."""
    if raw.dtype == np.bool_:
        image = raw.astype(np.uint8) * np.uint8(255)
    elif raw.dtype.kind == "f":
        image = fractions(raw)
    elif raw.dtype == np.uint16:
        image = sixteen_bits(raw)
    elif raw.dtype == np.uint8:
        image = raw
    elif raw.min() < 0 or raw.max() > 255:
        raise Unreadable(f"integers from {raw.min():,} to {raw.max():,}, outside 0 to 255")
    else:
        image = raw.astype(np.uint8)
    return on_white(image) if len(image) in (2, 4) else image
