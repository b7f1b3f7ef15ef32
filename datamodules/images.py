"""Data module of published images: MNIST, Fashion-MNIST, CIFAR-10, SVHN, CelebA, and scikit-learn's digits.

The images of a split are one tensor in memory. A batch is ``images[indices]``, which needs no loop over images. See
zoo/datamodules/loaders.py for the order of the images.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from zoo.checks.errors import UserError
from zoo.checks.values import check_flag
from zoo.datamodules import colour
from zoo.datamodules.files import (
    DataError,
    Missing,
    data_root,
    fetch_missing,
    find_file,
    ignoring_case,
    md5_of,
    read_published,
)
from zoo.datamodules.loaders import ImageModule
from zoo.datamodules.splits import Split, joined, shuffled

log = logging.getLogger(__name__)

NAMES = ("mnist", "fashion_mnist", "digits", "mnist_or_digits", *colour.SHAPES)
TRAIN_ON = {"train": ["train"], "train_and_validation": ["train", "val"], "everything": ["train", "val", "test"]}
FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}  # names of torchvision's classes and folders
OWN_FOLDERS = {"mnist": ("MNIST",), "fashion_mnist": ("FashionMNIST", "Fashion-MNIST", "fashion_mnist")}

# MD5 digests of the published files after decompression. Downloads are verified by torchvision's digests of the
# compressed files.
MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def _folders(name: str, root: Path) -> Iterator[Path]:
    """Yield the folders to search for files of ``name``: torchvision's folder, similar names, and ``root``."""
    for own in OWN_FOLDERS[name]:
        if (folder := ignoring_case(root / own)) is not None:
            yield from (raw for raw in [ignoring_case(folder / "raw")] if raw is not None)
            yield folder
    yield root


def _find(name: str, file: str, root: Path) -> Path | None:
    """Return the path of ``file``, plain or compressed, or None. The name can have ``.idx`` in place of ``-idx``."""
    for path in find_file(_folders(name, root), (file, file.replace("-idx", ".idx"))):
        if path.parent != root or not _is_of_another(name, path):
            return path
    return None


def _is_of_another(name: str, path: Path) -> bool:
    """Return whether a file belongs to the other data set. The files of both data sets have the same names."""
    return any(md5_of(path, unpacked=True) in files.values() for other, files in MD5.items() if other != name)


def _read_idx(name: str, file: str, root: Path, md5: str) -> np.ndarray:
    """Return the bytes of an IDX file as an array. The MD5 digest is checked before the file is parsed."""
    path = _find(name, file, root)
    if path is None:
        raise DataError(f"{file} of {name} is missing: it belongs in {root / FOLDERS[name] / 'raw'}")
    data = read_published(path, md5)
    dims = data[3]
    shape = np.frombuffer(data, ">u4", dims, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def fetch(name: str, root: Path, attribute: str | None = None) -> None:
    """Download and verify the files of ``name`` that are missing under ``root``.

    Raises:
        DataError: if a file is missing and cannot be downloaded.
    """
    if name in colour.SHAPES:
        colour.fetch(name, root, attribute)
        return

    def missing() -> list[Missing]:
        absent = [file for file in MD5[name] if _find(name, file, root) is None]
        if not absent:
            return []
        import torchvision.datasets

        published = getattr(torchvision.datasets, FOLDERS[name])
        digests = dict(published.resources)
        return [
            Missing(
                root / FOLDERS[name] / "raw" / f"{file}.gz",
                [f"{mirror}{file}.gz" for mirror in published.mirrors],
                lambda path, md5=digests[f"{file}.gz"]: md5_of(path) == md5,
            )
            for file in absent
        ]

    files = ", ".join(f"{file}.gz" for file in MD5[name])
    remedy = (
        f"Put {files} there, compressed or not, or connect to the network (ZOO_DATA sets another folder than data/). "
        "The data set digits needs no download"
    )
    fetch_missing(name, missing, remedy)


def load_split(name: str, root: Path, attribute: str | None = None) -> dict[str, Split]:
    """Return the training, validation and test images of ``name``. The images are split with a fixed seed.

    For MNIST and Fashion-MNIST, the official training set is split into 55,000 training and 5,000 validation images.
    The test images are the 10,000 official ones. For the digits, scikit-learn's 1,797 images are split into 1,437, 180
    and 180, and scaled from 8 x 8 to 28 x 28. :mod:`zoo.datamodules.colour` describes the splits of colour images.
    """
    if name in colour.SHAPES:
        return colour.load_split(name, root, attribute)
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        small = torch.from_numpy(digits.images).float()[:, None] / 16  # (1797, 1, 8, 8) in [0, 1]
        large = F.interpolate(small, size=28, mode="bicubic").clamp(0, 1)  # (1797, 1, 28, 28)
        everything = Split((large * 255).round().byte(), torch.from_numpy(digits.target).byte())
        parts = shuffled(everything, [1437, 180, 180])
        return dict(zip(("train", "val", "test"), parts, strict=True))

    arrays = [torch.from_numpy(_read_idx(name, file, root, md5).copy()) for file, md5 in MD5[name].items()]
    for images in (0, 2):
        arrays[images] = arrays[images].unsqueeze(1)  # (n, 1, 28, 28)
    train, val = shuffled(Split(*arrays[:2]), [55_000, 5_000])
    return {"train": train, "val": val, "test": Split(*arrays[2:])}


class Images(ImageModule):
    """LightningDataModule of an image data set.

    Args:
        name: ``mnist``, ``fashion_mnist``, ``digits``, ``mnist_or_digits``, ``cifar10``, ``svhn`` or ``celeba``.
            ``mnist_or_digits`` is MNIST if MNIST is on disk or can be downloaded. If not, it is the digits, with a
            warning. ``self.used`` holds the name of the data set in use.
        batch_size: images per training step, over all processes. Each process needs at least one image.
        eval_batch_size: images per validation or test batch, over all processes.
        seed: seed of the order of the training images.
        digits_repeat: passes over the 1,437 training digits in one epoch.
        train_on: the images to train on. ``train`` selects the training images. ``train_and_validation`` selects both
            splits, for a final run after all choices are made. ``everything`` selects all images, for protocols that
            score a clustering on the images to which it was fitted. The validation and test sets stay the same. If a
            model is trained on one of them, that set is not held out.
        attribute: one of the 40 attributes of CelebA, which becomes the label: 1 where it is present, else 0. None
            gives CelebA no labels. Other data sets take only None.
        flip: whether training images are mirrored left-right at random, each with probability 1/2 in each pass.

    Raises:
        UserError: if an argument is not allowed.
        DataError: from ``prepare_data`` or ``setup``, if data are missing, damaged or too few.
    """

    def __init__(
        self,
        name: str = "mnist_or_digits",
        batch_size: int = 128,
        eval_batch_size: int = 500,
        seed: int = 0,
        digits_repeat: int = 4,
        train_on: Literal["train", "train_and_validation", "everything"] = "train",
        attribute: str | None = None,
        flip: bool = False,
    ):
        super().__init__()
        if name not in NAMES:
            raise UserError(f"name is {name!r}, but must be one of {', '.join(NAMES)}")
        if train_on not in TRAIN_ON:
            raise UserError(f"train_on is {train_on!r}, but must be one of {', '.join(TRAIN_ON)}")
        if attribute is not None and name != "celeba":
            raise UserError(f"attribute is {attribute!r}, but only data=celeba has attributes: set it to null")
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "digits_repeat": digits_repeat}
        for key, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{key} is {value!r}, but must be an integer of at least 1")
        check_flag("flip", flip)
        self.save_hyperparameters(logger=False)
        self.used: str | None = None if name == "mnist_or_digits" else name

    def prepare_data(self) -> None:
        """Download missing files, and choose the data set of ``mnist_or_digits``. One process per machine does this."""
        if self.used == "digits":
            return
        try:
            fetch(self.used or "mnist", data_root(), self.hparams.attribute)
        except DataError as error:
            if self.used is not None:
                raise
            self.used = "digits"
            log.warning(
                "NO MNIST, USING THE DIGITS OF SCIKIT-LEARN INSTEAD (1,797 images; not comparable with MNIST).\n"
                "%s To require MNIST: data=mnist",
                error,
            )
        else:
            self.used = self.used or "mnist"

    def setup(self, stage: str | None = None) -> None:
        if self.trainer is not None:
            self.used = self.trainer.strategy.broadcast(self.used)
        elif not self.splits:  # without a Trainer, nothing else calls prepare_data
            self.prepare_data()
        if not self.splits:
            splits = load_split(self.used, data_root(), self.hparams.attribute)
            splits["train"] = joined([splits[k] for k in TRAIN_ON[self.hparams.train_on]])
            self.splits = {k: s.to(self.device) for k, s in splits.items()}
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image, (C, H, W)."""
        return colour.SHAPES.get(self.hparams.name, (1, 28, 28))

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the labels, or None if there are no labels."""
        if self.hparams.name == "celeba":
            return None if self.hparams.attribute is None else 2
        return 10

    @property
    def repeat(self) -> int:
        """Passes over the training images per epoch."""
        return self.hparams.digits_repeat if self.used == "digits" else 1

    def state_dict(self) -> dict[str, str | int | None]:
        return {
            "used": self.used,
            **{
                key: self.hparams[key]
                for key in ("batch_size", "seed", "digits_repeat", "train_on", "attribute", "flip")
            },
        }
