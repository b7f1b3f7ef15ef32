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

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IGNORED = ("thumbs.db", "desktop.ini", "__macosx")  # operating systems write these; hidden files are also ignored
NAMED = 5  # problems that an error lists


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

    def label_of(self, i: int) -> str:
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
        self.root, found, self.problems = root, [], []
        for path, status in _files(root, self.problems):
            found.append((path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
        found.sort()
        split = _split_folders(root, found)
        self.paths = [path for path, *_ in found]
        self._stamp = hashlib.sha256(os.fsencode(repr(found))).hexdigest()
        if not found:
            raise DataError(problem_lines(f"data.path={root} has no images", [*self.problems]))
        self.parts = [SPLIT_FOLDERS[path.split("/")[0].casefold()] for path in self.paths] if split else None
        inner = [path.split("/")[1:] if split else path.split("/") for path in self.paths]
        flat = [path for path, parts in zip(self.paths, inner, strict=True) if len(parts) == 1]
        if flat and len(flat) < len(inner):
            raise DataError(
                problem_lines(
                    f"data.path={root} has class folders and also images outside of them. Move these images into "
                    "class folders, or all images into one folder",
                    flat,
                )
            )
        if not flat:
            names = [parts[0] for parts in inner]
            if len(classes := sorted(set(names))) > 1:
                index = {name: i for i, name in enumerate(classes)}
                self.classes, self.labels = classes, np.array([index[name] for name in names], dtype=np.int64)

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

    def label_of(self, i: int) -> str:
        return self.paths[i]

    def title(self) -> str:
        return f"data.path={self.root}"

    def key(self, i: int) -> bytes:
        return os.fsencode(self.paths[i])

    def place(self) -> str:
        return str(self.root.absolute())

    def stamp(self) -> str:
        return self._stamp


def _files(folder: Path, problems: list[str], above: tuple = ()) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the regular files below a folder, and their status. Hidden files are left out.

    Args:
        folder: the folder.
        problems: receives a line for each file or folder that cannot be read.
        above: device and number of each folder above, which show loops of links.
    """
    try:
        status = folder.stat()
        own = (status.st_dev, status.st_ino)
        if own in above:
            problems.append(f"{folder}: a link to a folder above it")
            return
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        problems.append(f"{folder}: {error.strerror}")
        return
    shown = [e for e in entries if not e.name.startswith(".") and e.name.casefold() not in IGNORED]
    if not shown and above:
        problems.append(f"{folder}: an empty folder")
    for entry in shown:
        path = folder / entry.name
        try:
            status = entry.stat()
        except OSError as error:
            broken = entry.is_symlink() and isinstance(error, FileNotFoundError)
            problems.append(f"{path}: {'a link to a missing file' if broken else error.strerror}")
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _files(path, problems, (*above, own))
        elif stat.S_ISREG(status.st_mode):
            yield path, status
        else:
            problems.append(f"{path}: a pipe, socket or device")


def _split_folders(root: Path, found: list) -> bool:
    """Return whether the files lie in the folders ``train``, ``val`` and ``test``."""
    tops = sorted({path.split("/")[0] for path, *_ in found if "/" in path})
    named: dict[str, str] = {}
    for top in tops:
        if (split := SPLIT_FOLDERS.get(top.casefold())) is None:
            continue
        if split in named:
            raise DataError(f"data.path={root} has two folders of {split} images, {named[split]} and {top}: keep one")
        named[split] = top
    others = [top for top in tops if top not in named.values()]
    if len(named) == len(tops) > 0:
        if "train" not in named:
            raise DataError(f"data.path={root} has a folder {tops[0]}, but no folder train: add it")
        return True
    if "train" in named and len(named) > 1:
        raise DataError(
            f"data.path={root} has the folders {' and '.join(named.values())}, and also {', '.join(others[:NAMED])}: "
            "move the others away, or rename the folders if all of them are classes"
        )
    return False


def problem_lines(what: str, problems: Sequence[str]) -> str:
    """Return a message with the first problems, one on each line."""
    if not problems:
        return what
    more = [f"... and {len(problems) - NAMED:,} more"] if len(problems) > NAMED else []
    return "\n  ".join([f"{what}:", *problems[:NAMED], *more])
