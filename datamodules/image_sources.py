"""Sources of images: folders and array files. A source knows its labels and parts, and reads one image at a time.

To add a source, write a subclass of :class:`ImageSource`, and a subclass of
:class:`zoo.datamodules.own_images.OwnImages` whose method ``open`` returns it. Only ``__len__`` and ``read`` must be
written. The base class computes a digest of the pixels, has no labels, leaves the split to a seed, and has no stamp. A
source must be picklable, because other processes read images with it.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from zoo.datamodules.files import DataError
from zoo.datamodules.image_files import Unreadable, decode
from zoo.functional.progress import tracked
from zoo.training.processes import number

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IGNORED = ("thumbs.db", "desktop.ini", "__macosx")  # operating systems write these; hidden files are also ignored
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm")
NAMED = 5  # problems that an error lists

_Found = tuple[str, int, int, int]  # relative path of a file, its size in bytes, and the times of two kinds of change


class ImageSource:
    """Images that are read one at a time.

    Attributes:
        name: name of the data in messages and records, such as ``images``.
        labels: labels (n,), int64, from 0 to the number of classes - 1. None without labels.
        classes: names of the classes, or None.
        parts: ``train``, ``val`` or ``test`` for each image. None if the data are not split yet.
        problems: descriptions of files that cannot be used, found before an image is read.
    """

    name = "images"
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    parts: Sequence[str] | None = None
    problems: Sequence[str] = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, i: int) -> np.ndarray:
        """Return image ``i``, (C, H, W) uint8, where C is 1 or 3.

        Raises:
            Unreadable: if it is no image. The message is the reason.
        """
        raise NotImplementedError

    def read_with_digest(self, i: int) -> tuple[np.ndarray, bytes]:
        """Return image ``i``, and a SHA-256 digest of it."""
        image = self.read(i)
        return image, hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()

    def title(self) -> str:
        """Return the name of the data at the beginning of an error."""
        return self.name

    def describe(self, i: int) -> str:
        """Return the name of image ``i`` in messages."""
        return f"image {i:,}"

    def key(self, i: int) -> bytes:
        """Return bytes that belong to image ``i`` in the digest of the data, besides its content: its relative name."""
        return b""

    def place(self) -> str:
        """Return a text that names the place of the data. Prepared images of the same place replace each other."""
        return self.name

    def stamp(self) -> str | None:
        """Return a text that changes when the images change, computed without reading them.

        None means that there is no such text. Every process then reads the images itself, at every start.
        """
        return None


class Folder(ImageSource):
    """Image files in a folder.

    The folder has either images, or a folder for each class, or folders ``train``, ``val`` and ``test`` with either of
    these. The labels follow the sorted names of the classes. A single class folder gives no labels.

    Raises:
        DataError: if the folder cannot be read, or its layout is ambiguous.
    """

    def __init__(self, root: Path):
        self.root, problems = root, []
        found = sorted(tracked(_files(str(root), "", problems), f"listing {root}", "file", show=number() == 0))
        split = _split_folders(root, [path for path, *_ in found])
        first = 1 if split else 0  # number of folders above the class folders
        if split:
            found = self._below(first, found, problems, "folders train, val and test")
        if any(path.count("/") > first for path, *_ in found):
            found = self._below(first + 1, found, problems, "class folders")
        if not found:
            raise DataError(problem_lines(f"{self.title()} has no images", problems))
        self.problems = problems
        self.paths = [path for path, *_ in found]
        self._stamp = hashlib.sha256(os.fsencode(repr((found, problems)))).hexdigest()
        if split:
            self.parts = [SPLIT_FOLDERS[path.partition("/")[0].casefold()] for path in self.paths]
        names = [path.split("/")[first] for path in self.paths]
        classes = sorted(set(names)) if self.paths[0].count("/") > first else []
        if len(classes) > 1:
            label = {name: i for i, name in enumerate(classes)}
            self.classes, self.labels = classes, np.array([label[name] for name in names], dtype=np.int64)

    def _below(self, depth: int, found: list[_Found], problems: list[str], folders: str) -> list[_Found]:
        """Return the files with at least ``depth`` folders above. Other files are problems, and images an error."""
        outside = [path for path, *_ in found if path.count("/") < depth]
        if images := [path for path in outside if path.lower().endswith(IMAGE_ENDINGS)]:
            what = f"{self.title()} has {folders}, and also {len(images):,} images outside of them"
            raise DataError(problem_lines(f"{what}. Move these images into the folders", [*images, *problems]))
        problems += [f"{path}: a file outside of the {folders}" for path in outside]
        return [entry for entry in found if entry[0].count("/") >= depth]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> np.ndarray:
        return decode(self._content(i))

    def read_with_digest(self, i: int) -> tuple[np.ndarray, bytes]:
        # The content has the same digest on all machines. Decoded pixels of JPEG files depend on the decoder.
        content = self._content(i)
        return decode(content), hashlib.sha256(content).digest()

    def _content(self, i: int) -> bytes:
        try:
            return (self.root / self.paths[i]).read_bytes()
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from None

    def describe(self, i: int) -> str:
        return self.paths[i]

    def title(self) -> str:
        return f"data.path={self.root}"

    def key(self, i: int) -> bytes:
        return os.fsencode(self.paths[i])

    def place(self) -> str:
        return str(self.root.absolute())

    def stamp(self) -> str:
        return self._stamp


def _files(root: str, inner: str, problems: list[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[_Found]:
    """Yield the relative path, size and times of change of each file in a folder. Hidden files are left out.

    Args:
        root: the folder of all files.
        inner: the folder to list, relative to ``root``, with a slash at its end unless it is empty.
        problems: receives a line for each file or folder that cannot be read.
        above: device and number of each folder above, which show loops of links.
    """
    folder = os.path.join(root, inner)
    try:
        status = os.stat(folder)
        own = (status.st_dev, status.st_ino)
        if own in above:
            problems.append(f"{inner}: a link to a folder above it")
            return
        with os.scandir(folder) as listed:
            entries = [e for e in listed if not e.name.startswith(".") and e.name.casefold() not in IGNORED]
    except OSError as error:
        problems.append(f"{inner or root}: {error.strerror}")
        return
    if not entries and inner:
        problems.append(f"{inner}: an empty folder")
    for entry in sorted(entries, key=lambda entry: entry.name):
        path = inner + entry.name
        try:
            status = entry.stat()
        except OSError as error:
            broken = isinstance(error, FileNotFoundError)
            problems.append(f"{path}: {'a link to a missing file' if broken else error.strerror}")
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _files(root, f"{path}/", problems, (*above, own))
        elif stat.S_ISREG(status.st_mode):
            yield path, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        else:
            problems.append(f"{path}: a pipe, socket or device")


def _split_folders(root: Path, paths: Sequence[str]) -> bool:
    """Return whether the files are in the folders ``train``, ``val`` and ``test``."""
    tops = sorted({path.partition("/")[0] for path in paths if "/" in path})
    named: dict[str, str] = {}
    for top in tops:
        if (split := SPLIT_FOLDERS.get(top.casefold())) is None:
            continue
        if split in named:
            raise DataError(f"data.path={root} has two folders of {split} images, {named[split]} and {top}: keep one")
        named[split] = top
    others = [top for top in tops if top not in named.values()]
    if others and "train" in named and len(named) > 1:
        raise DataError(
            f"data.path={root} has the folders {' and '.join(named.values())}, and also {', '.join(others[:NAMED])}: "
            "move the others away, or rename the folders if all of them are classes"
        )
    if others or not named:
        return False
    if "train" not in named:
        raise DataError(f"data.path={root} has a folder {tops[0]}, but no folder train: add it")
    return True


def problem_lines(what: str, problems: Sequence[str]) -> str:
    """Return a message with the first problems, one on each line."""
    if not problems:
        return what
    more = [f"... and {len(problems) - NAMED:,} more"] if len(problems) > NAMED else []
    return "\n  ".join([f"{what}:", *problems[:NAMED], *more])
