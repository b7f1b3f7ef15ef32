"""Data module of images of the user: a folder of image files, a file of arrays, or a dataset of another library.

The images of a split are one tensor in memory if all images fit the memory limit. If not, worker processes read them
from disk. Both ways give the same batches.

The layouts of folders are in image_sources.py, the forms of arrays in image_arrays.py, and those of datasets in
dataset_sources.py. The rules of reading are in image_files.py. The code in image_store.py checks all images and keeps
their pixels for later runs.
"""

import hashlib
import logging
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from zoo.checks.errors import UserError
from zoo.checks.values import check_choice, check_flag, check_fraction, check_integer, check_not_negative
from zoo.datamodules.dataset_sources import DatasetSource, HubSource, made_by
from zoo.datamodules.files import DataError, resumes
from zoo.datamodules.image_arrays import ENDINGS, ArrayFile
from zoo.datamodules.image_sources import Folder, ImageSource, problem_lines
from zoo.datamodules.image_store import Options, Prepared, Subset, prepare
from zoo.datamodules.images import TRAIN_ON
from zoo.datamodules.limits import SPLITS
from zoo.datamodules.loaders import ImageModule
from zoo.datamodules.splits import Split
from zoo.training.processes import number
from zoo.training.threads import available_processors

log = logging.getLogger(__name__)

GIB = 2**30
LARGEST_SIDE = 4096  # pixels; a mistyped size would fill the disk
MOST_WORKERS = 4  # processes that read from disk, unless the recipe says otherwise


def source_at(path: Path) -> ImageSource:
    """Return the images in the folder or the array file ``path``.

    Raises:
        DataError: if there are none.
    """
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise DataError(f"data.path={path} cannot be read: {error.strerror}") from error
    if is_folder:
        return Folder(path)
    if not exists:
        raise DataError(f"data.path={path} does not exist: give a folder of images, or a .npy, .npz or .pt file")
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        raise DataError(f"data.path={path} is no folder and no .npy, .npz or .pt file: give the folder of the images")
    return ArrayFile(path)


class OwnImages(ImageModule):
    """LightningDataModule of images in a folder, an array file, or a dataset of another library.

    The labels are the class folders, or come with the arrays. The parts of the data are the folders ``train``, ``val``
    and ``test``, or are split off by a seed. Each class is then split separately.

    Args:
        path: path of the folder or of the ``.npy``, ``.npz`` or ``.pt`` file. ``~`` means the home folder.
        size: height and width, or one integer for both. The centre of each image is resized. None requires that all
            images have one size.
        channels: 1 for grey images and 3 for colours. None means 3 if an image has colours, and 1 if none has.
        batch_size: images per training step, over all processes. Each process needs at least one image.
        eval_batch_size: images per validation or test batch, over all processes.
        seed: seed of the order of the training images.
        split_seed: seed of the split. It does not depend on ``seed``, so that all seeds of training have one split.
        val_fraction, test_fraction: fractions of the images for validation and test, above 0. A fraction is not used if
            the data have this part.
        train_on: ``train``, ``train_and_validation`` or ``everything``, as in :class:`Images`.
        flip: whether training images are mirrored left-right at random, each with probability 1/2 in each pass.
        skip: True leaves out files that cannot be used, with a warning. False raises an error.
        memory_limit: most GiB of pixels in memory. More pixels are read from disk.
        workers: processes that read from disk. None means one less than the number of cores, from 1 to 4.
        cache: whether decoded pixels are kept in the data folder. False decodes the files at each start.
        dataset: ``package.module:name`` of a torch Dataset, or of a class or function that returns one, in place of
            ``path``. A tuple (train, val, test) or a dictionary of these gives the parts of the data.
        name: name of a dataset of Hugging Face, in place of ``path``.
        subset: configuration of the dataset of Hugging Face, or None.
        image_column, label_column: columns of the dataset of Hugging Face. None looks for usual names. If there is no
            such column of labels, there are no labels.

    Raises:
        UserError: if an argument is not allowed.
        DataError: if images are missing, unreadable or too few. ``shape``, ``num_classes``, ``prepare_data`` and
            ``setup`` read the images.
    """

    def __init__(
        self,
        path: str | None = None,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        seed: int = 0,
        split_seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        train_on: Literal["train", "train_and_validation", "everything"] = "train",
        skip: bool = False,
        memory_limit: float = 4,
        workers: int | None = None,
        cache: bool = True,
        dataset: str | None = None,
        name: str | None = None,
        subset: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        flip: bool = False,
    ):
        super().__init__()
        check_places({"path": path, "dataset": dataset, "name": name})
        for key, value in {"subset": subset, "image_column": image_column, "label_column": label_column}.items():
            if value is not None and name is None:
                raise UserError(f"data.{key} is {value!r}, but is used only with data=hf: set it to null")
        check_options(size, channels, batch_size, eval_batch_size, seed, split_seed, val_fraction, test_fraction)
        check_choice("data.train_on", train_on, tuple(TRAIN_ON))
        check_flag("data.flip", flip)
        check_flag("data.skip", skip)
        check_flag("data.cache", cache)
        check_not_negative("data.memory_limit", memory_limit)
        if workers is not None:
            check_integer("data.workers", workers, least=0)
        self.save_hyperparameters(logger=False)
        self.used = "images" if name is None else "hf"

    @cached_property
    def source(self) -> ImageSource:
        """The images as they are, before they are resized."""
        return self.open()

    def open(self) -> ImageSource:
        """Return the source of the images. A subclass with other images overrides this method."""
        options = self.hparams
        if (spec := options["dataset"]) is not None:
            return DatasetSource(f"data.dataset={spec}", made_by(spec))
        if (name := options["name"]) is not None:
            return HubSource(name, options["subset"], options["image_column"], options["label_column"])
        try:
            return source_at(Path(options["path"]).expanduser())
        except RuntimeError as error:  # there is no such home folder
            raise DataError(f"data.path={options['path']} cannot be found: {error} Give the full path.") from error

    @cached_property
    def prepared(self) -> Prepared:
        """The images in use, all of one shape. The first access reads all images, or finds them in the data folder."""
        options, size = self.hparams, self.hparams["size"]
        size = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
        limit = options["memory_limit"] * GIB
        return prepare(self.source, Options(size, options["channels"], options["skip"], options["cache"], limit))

    @property
    def shape(self) -> list[int]:
        """Shape of an image, [C, H, W]."""
        return list(self.prepared.shape)

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the labels, or None without labels."""
        return None if self.source.classes is None else len(self.source.classes)

    @property
    def workers(self) -> int:
        """Number of processes that read from disk."""
        given = self.hparams["workers"]
        return max(1, min(available_processors() - 1, MOST_WORKERS)) if given is None else given

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """The rows of each part in the prepared images, before ``train_on``."""
        kept, source, options = self.prepared.kept, self.source, self.hparams
        labels = None if source.labels is None else source.labels[kept]
        parts = None if source.parts is None else np.array(source.parts)[kept]
        fractions = {"val": options["val_fraction"], "test": options["test_fraction"]}
        return split_rows(source, labels, parts, len(kept), fractions, options["split_seed"])

    @cached_property
    def digest(self) -> str:
        """SHA-256 digest of the images in use: names, contents, labels, parts, size and channels."""
        digest = hashlib.sha256(self.prepared.digest.encode())
        labels = self.source.labels
        digest.update(b"" if labels is None else labels[self.prepared.kept].astype("<i8").tobytes())
        for split, rows in self.rows.items():
            digest.update(f"{split} {len(rows)}".encode() + rows.astype("<i8").tobytes())
        return digest.hexdigest()

    def prepare_data(self) -> None:
        """Read and check the images. One process per machine does this, and the others find the pixels on disk."""
        _ = self.digest

    def setup(self, stage: str | None = None) -> None:
        if self.trainer is not None:
            strategy = self.trainer.strategy
            if not strategy.reduce_boolean_decision(strategy.broadcast(self.digest) == self.digest):
                raise DataError("the processes of this run have different images: give all of them the same data")
        if not self.splits:
            self._fill()
        self.check()

    def _fill(self) -> None:
        pixels, device = self.prepared.pixels, self.device
        rows = {split: torch.from_numpy(found) for split, found in self.rows.items()}
        rows["train"] = torch.cat([rows[part] for part in TRAIN_ON[self.hparams["train_on"]]])
        given = self.source.labels
        labels = None if given is None else torch.from_numpy(given[self.prepared.kept])
        size, limit = len(pixels) * math.prod(self.shape) / GIB, self.hparams["memory_limit"]
        in_memory = size <= limit
        for split in SPLITS:
            images = pixels[rows[split]].to(device) if in_memory else Subset(pixels, rows[split])
            self.splits[split] = Split(images, None if labels is None else labels[rows[split]].to(device))
        if in_memory:  # the splits have the pixels now
            self.prepared = self.prepared._replace(pixels=None)
        if number() > 0:
            return
        log.info(
            "%s: %s images of shape %s (%s), %s. They have %s MiB, and data.memory_limit is %g GiB: %s",
            self.source.title(),
            f"{len(pixels):,}",
            self.shape,
            ", ".join(f"{len(rows[split]):,} {split}" for split in SPLITS),
            f"{self.num_classes} classes" if self.num_classes else "no labels",
            f"{1024 * size:,.1f}",
            limit,
            f"kept in memory on {device}" if in_memory else f"read from disk with data.workers={self.workers}",
        )

    def state_dict(self) -> dict[str, Any]:
        keys = ("size", "channels", "split_seed", "batch_size", "seed", "train_on", "flip")
        return {"used": self.used, **{key: self.hparams[key] for key in keys}, "digest": self.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise DataError if the data or their order differ from the checkpoint. Lightning calls it after ``setup``."""
        super().load_state_dict({key: value for key, value in state.items() if key != "digest"})
        if state.get("digest", self.digest) != self.digest and resumes(self):
            raise DataError(
                f"{self.source.title()} differs from the data of the checkpoint in files, labels or split: resume with "
                "the same images, or start a new run without ckpt"
            )


def check_places(places: dict[str, Any]) -> None:
    """Raise UserError unless exactly one of the places of images is given, as a text."""
    given = [key for key, value in places.items() if value is not None]
    if not given:
        raise UserError(
            "data=images needs the images: set data.path to a folder, or to a .npy, .npz or .pt file, or set "
            "data.dataset to package.module:name. data=hf needs data.name"
        )
    if len(given) > 1:
        raise UserError(f"data.{' and data.'.join(given)} are both set: set one of them, and the others to null")
    if places[given[0]] == "":
        raise UserError(f"data.{given[0]} is empty: give the images, or . for the working folder")
    if not isinstance(places[given[0]], str):
        raise UserError(f"data.{given[0]} is {places[given[0]]!r}, but must be text: put quotes around a numeric name")


def check_options(
    size: Any, channels: Any, batch_size: Any, eval_batch_size: Any, seed: Any, split_seed: Any, val: Any, test: Any
) -> None:
    """Raise UserError if an argument of :class:`OwnImages` with one of these names is not allowed."""
    sides = size if isinstance(size, list | tuple) else [size, size]
    if size is not None:
        if len(sides) != 2:
            raise UserError(f"data.size must be an integer or [height, width], got {size!r}")
        for side in sides:
            check_integer("data.size", side)
            if side > LARGEST_SIDE:
                raise UserError(f"data.size must be at most {LARGEST_SIDE:,} pixels, got {side:,}")
    if channels not in (None, 1, 3) or isinstance(channels, bool):
        raise UserError(f"data.channels must be 1 (grey), 3 (colours) or null, got {channels!r}")
    check_integer("data.batch_size", batch_size)
    check_integer("data.eval_batch_size", eval_batch_size)
    check_integer("data.seed", seed, least=0)
    check_integer("data.split_seed", split_seed, least=0)
    for key, value in {"val_fraction": val, "test_fraction": test}.items():
        check_fraction(f"data.{key}", value)
        if value == 0:
            raise UserError(f"data.{key} must be above 0, because every run validates and tests")
    if val + test >= 1:
        raise UserError(f"data.val_fraction + data.test_fraction must be below 1, got {val + test:g}")


def split_rows(
    source: ImageSource,
    labels: np.ndarray | None,
    parts: np.ndarray | None,
    n: int,
    fractions: dict[str, float],
    seed: int,
) -> dict[str, np.ndarray]:
    """Return the rows of the training, validation and test images, each in rising order.

    Parts that the data lack are split off the training images at random, from each class separately.

    Raises:
        DataError: if a class has too few images, or is missing in the training images.
    """
    parts = np.full(n, "train") if parts is None else parts
    rows = {split: np.flatnonzero(parts == split) for split in SPLITS}
    classes = source.classes or ["the data"]
    labels = np.zeros(n, dtype=np.int64) if labels is None else labels
    missing = {split: fraction for split, fraction in fractions.items() if not len(rows[split])}
    generator, train, problems = torch.Generator().manual_seed(seed), [], []
    taken: dict[str, list[np.ndarray]] = {split: [] for split in missing}
    for label, name in enumerate(classes):
        own = rows["train"][labels[rows["train"]] == label]
        counts = [max(1, round(fraction * len(own))) for fraction in missing.values()]
        if len(own) <= sum(counts):
            need = len(missing) + 1
            problems.append(f"{name}: {len(own)} training images, at least {need} are needed")
            continue
        own = own[torch.randperm(len(own), generator=generator).numpy()]
        for split, part in zip(missing, np.split(own, np.cumsum(counts)), strict=False):
            taken[split].append(part)
        train.append(own[sum(counts) :])
    if problems:
        few = "classes with too few images. Add images, or remove these classes" if source.classes else "too few images"
        raise DataError(problem_lines(f"{source.title()} has {few}", problems))
    rows |= {split: np.concatenate(found) for split, found in taken.items()} | {"train": np.concatenate(train)}
    return {split: np.sort(found) for split, found in rows.items()}
