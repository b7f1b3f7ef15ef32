"""Prepare the images of a source once: check, decode, resize, and keep the pixels for later runs.

:func:`prepare` reads every image, and names all images that cannot be used in one error. The pixels are written to
``images/`` under the data folder. A later run finds them by the stamp of the source, and reads no image again.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.datamodules.files import DataError, data_root, locked
from zoo.datamodules.image_files import Unreadable, fitted
from zoo.datamodules.image_sources import NAMED, ImageSource, problem_lines
from zoo.datamodules.loaders import in_workers
from zoo.functional.progress import tracked
from zoo.training.files import FileNotWritten, atomic_write
from zoo.training.processes import number
from zoo.training.threads import available_processors

log = logging.getLogger(__name__)

FORMAT = 1  # increase when the rules of reading change, so that prepared images are prepared again
AT_ONCE = 32  # images that a process decodes at once
ALONE = 16 * AT_ONCE  # fewer images are decoded by this process, because others take time to start
MOST_WORKERS = 16  # processes that decode
SPARE = 2**30  # bytes of free disk space that prepared images leave


class Prepared(NamedTuple):
    """Checked images of one shape.

    Attributes:
        shape: shape of an image, (C, H, W).
        digest: SHA-256 digest of the shape, and of the names and contents of the images in use.
        kept: indices of the images in use, into the source.
        pixels: the images (n, C, H, W), uint8. They are a tensor, or :class:`StoredImages` or :class:`SourceImages`,
            which read from disk.
    """

    shape: tuple[int, ...]
    digest: str
    kept: np.ndarray
    pixels: Any


class StoredImages:
    """Prepared images in a file. Indexing with a tensor of indices or a slice gives a uint8 tensor."""

    def __init__(self, path: Path, shape: Sequence[int]):
        self.path, self.shape = path, tuple(shape)
        self._open()

    def _open(self) -> None:
        self._map = np.memmap(self.path, np.uint8, "r", shape=self.shape)

    def __getstate__(self) -> dict[str, Any]:  # a map would be pickled with all of its pixels
        return {"path": self.path, "shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        # A slice is a view of the file, which must be copied. Rows with indices are a copy.
        return torch.from_numpy(self._map[index].copy() if isinstance(index, slice) else self._map[index.cpu().numpy()])


class SourceImages:
    """Images that are read from their source whenever they are used."""

    def __init__(self, source: ImageSource, kept: np.ndarray, size: Sequence[int] | None, shape: Sequence[int]):
        self.source, self.kept, self.size, self.shape = source, kept, size, (len(kept), *shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        chosen = self.kept[index if isinstance(index, slice) else index.cpu().numpy()]
        images = [fitted(self.source.read(int(i)), self.size, self.shape[1]) for i in chosen]
        return torch.from_numpy(np.stack(images)) if images else torch.empty(0, *self.shape[1:], dtype=torch.uint8)


class Subset:
    """The images with some indices, in this order, of images on disk."""

    def __init__(self, images: StoredImages | SourceImages, rows: Tensor):
        self.images, self.rows = images, rows
        self.shape = (len(rows), *images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return self.images[self.rows[index if isinstance(index, slice) else index.cpu()]]


class Options(NamedTuple):
    """What decides the pixels of prepared images, and how problems are treated.

    Attributes:
        size: height and width, or None if all images have one size.
        channels: 1, 3, or None for 3 if an image has colours and 1 if none has.
        skip: whether to leave out images that cannot be used, with a warning, in place of an error.
        cache: whether to keep the pixels on disk.
        memory_limit: most bytes of pixels to keep in memory if they are not kept on disk.
    """

    size: tuple[int, int] | None
    channels: int | None
    skip: bool
    cache: bool
    memory_limit: float


def prepare(source: ImageSource, options: Options) -> Prepared:
    """Return the checked images of a source. Read them from the data folder if a former run has prepared them.

    Only one process of a machine prepares images that have a stamp.

    Raises:
        DataError: if images cannot be used. The message has their number, and the first names and reasons.
    """
    stamp = source.stamp() if options.cache else None
    if stamp is None:
        return _decoded(source, options, None)
    place = f"{FORMAT} {source.place()} {options.size} {options.channels} {options.skip}"
    name = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:16]
    stamp = hashlib.sha256(stamp.encode(errors="surrogateescape")).hexdigest()[:16]
    record = data_root() / "images" / f"{name}-{stamp}.json"
    if (prepared := _restore(record, source)) is not None:
        return prepared
    with locked(f"images-{name}") as waited:
        if waited and (prepared := _restore(record, source)) is not None:
            return prepared
        _remove(record.parent.glob(f".{name}-*"))  # unfinished files of a process that was killed
        return _decoded(source, options, record)


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink()


def _restore(record: Path, source: ImageSource) -> Prepared | None:
    """Return the images that a former run has prepared, or None if there are none, or they are damaged."""
    pixels = record.with_suffix(".uint8")
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        shape, skipped = tuple(found["shape"]), np.array(found["skipped"], dtype=np.int64)
        kept = np.setdiff1d(np.arange(len(source)), skipped)
        if os.stat(pixels).st_size != len(kept) * int(np.prod(shape)):
            raise ValueError("its size is wrong")
        _warn_of_skipped(source, found["reasons"])
        stored = StoredImages(pixels, (len(kept), *shape))
        return Prepared(shape, found["digest"], kept, stored)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s cannot be used (%s): the images are prepared again", pixels, error)
        return None


class _Chunk(NamedTuple):
    """Result of decoding some images: pixels of the good ones, and what was found."""

    pixels: np.ndarray
    forms: list[tuple[int, ...]]  # (C, H, W) of the images that were read, before they were changed
    digests: list[bytes]
    reasons: dict[int, str]


class _Decoder:
    """Decode ranges of images. DataLoader calls it in its processes, one range of images at a time."""

    def __init__(self, source: ImageSource, size: Sequence[int] | None, channels: int):
        self.source, self.size, self.channels = source, size, channels

    def __getitem__(self, which: range) -> _Chunk:
        pixels, forms, digests, reasons = [], [], [], {}
        for i in which:
            try:
                image, digest = self.source.read_with_digest(i)
            except Unreadable as error:
                reasons[i] = str(error)
                continue
            forms.append(image.shape)
            image = fitted(image, self.size, self.channels)
            if not pixels or image.shape == pixels[0].shape:
                pixels.append(image)
            digests.append(digest)
        return _Chunk(np.stack(pixels) if pixels else np.empty(0, np.uint8), forms, digests, reasons)


def _chunks(source: ImageSource, options: Options, channels: int) -> Iterator[_Chunk]:
    ranges = [range(begin, min(begin + AT_ONCE, len(source))) for begin in range(0, len(source), AT_ONCE)]
    decoder = _Decoder(source, options.size, channels)
    if len(source) <= ALONE:
        yield from map(decoder.__getitem__, ranges)
        return
    workers = min(available_processors(), MOST_WORKERS)
    yield from in_workers(decoder, ranges, workers)


class _Coloured(Exception):
    """An image has colours, and the images before it had none."""


def _decoded(source: ImageSource, options: Options, record: Path | None) -> Prepared:
    """Decode all images. Keep the pixels in a file if ``record`` is a path, else in memory, or nowhere."""
    channels = options.channels or 1
    while True:
        try:
            if record is not None:
                try:
                    return _decoded_to_file(source, options, channels, record)
                except OSError as error:
                    reason = error.strerror or error
                    log.warning("%s cannot be written (%s): each run prepares the images again", record.parent, reason)
                    record = None
            return _decoded_to_memory(source, options, channels)
        except _Coloured:  # the first images were grey, and a later one has colours
            channels = 3


def _decoded_to_file(source: ImageSource, options: Options, channels: int, record: Path) -> Prepared:
    pixels = record.with_suffix(".uint8")
    room: list[int] = []

    def keep(chunk: np.ndarray) -> None:
        if not room:  # the first chunk shows how many bytes an image has
            room.append(shutil.disk_usage(pixels.parent).free - SPARE)
            if len(source) * chunk[0].size > room[0]:
                raise FileNotWritten(errno.ENOSPC, os.strerror(errno.ENOSPC), str(pixels))
        file.write(chunk.tobytes())

    with atomic_write(pixels) as file:
        prepared, reasons = _decode(source, options, channels, keep)
    skipped = np.setdiff1d(np.arange(len(source)), prepared.kept).tolist()
    found = {"shape": prepared.shape, "digest": prepared.digest, "skipped": skipped, "reasons": reasons}
    with atomic_write(record) as file:
        file.write(json.dumps(found).encode())
    same_place = pixels.parent.glob(f"{record.stem.partition('-')[0]}-*")
    _remove(old for old in same_place if old not in (pixels, record))  # images of this place before they changed
    return prepared._replace(pixels=StoredImages(pixels, (len(prepared.kept), *prepared.shape)))


def _decoded_to_memory(source: ImageSource, options: Options, channels: int) -> Prepared:
    chunks: list[np.ndarray] = []
    size = 0

    def keep(chunk: np.ndarray) -> None:
        nonlocal size
        size += chunk.size
        if size > options.memory_limit:
            chunks.clear()
        else:
            chunks.append(chunk)

    prepared, _ = _decode(source, options, channels, keep)
    if size <= options.memory_limit:
        return prepared._replace(pixels=torch.from_numpy(np.concatenate(chunks)))
    return prepared._replace(pixels=SourceImages(source, prepared.kept, options.size, prepared.shape))


def _decode(
    source: ImageSource, options: Options, channels: int, keep: Callable[[np.ndarray], None]
) -> tuple[Prepared, list[str]]:
    """Decode all images and give their pixels to ``keep``. Return what was found, and the reasons of skipped images."""
    digests: list[bytes] = []
    reasons: dict[int, str] = {}
    sizes: Counter[tuple[int, ...]] = Counter()
    total = -(-len(source) // AT_ONCE)
    chunks = _chunks(source, options, channels)
    for chunk in tracked(chunks, f"preparing {len(source):,} images, {AT_ONCE} at a time", total=total):
        if options.channels is None and channels == 1 and any(form[0] == 3 for form in chunk.forms):
            raise _Coloured
        sizes.update(form[1:] for form in chunk.forms)
        reasons |= chunk.reasons
        digests += chunk.digests
        if len(chunk.pixels):
            keep(chunk.pixels)
    _raise_problems(source, reasons, sizes, options)
    kept = np.setdiff1d(np.arange(len(source)), np.array(sorted(reasons), dtype=np.int64))
    shape = (channels, *(options.size or next(iter(sizes))))
    digest = hashlib.sha256(f"{shape}".encode())
    for i, content in zip(kept, digests, strict=True):
        name = source.key(int(i))
        digest.update(len(name).to_bytes(8, "little") + name + content)
    shown = [*source.problems, *(f"{source.describe(i)}: {reasons[i]}" for i in sorted(reasons))]
    _warn_of_skipped(source, shown)
    return Prepared(shape, digest.hexdigest(), kept, None), shown


def _raise_problems(source: ImageSource, reasons: dict[int, str], sizes: Counter, options: Options) -> None:
    problems = [*source.problems, *(f"{source.describe(i)}: {reasons[i]}" for i in sorted(reasons))]
    if not sizes:
        raise DataError(problem_lines(f"{source.title()} has no images that can be used", problems))
    if problems and not options.skip:
        some = f"{len(problems):,} of its entries cannot be used. Remove them, or leave them out with data.skip=true"
        raise DataError(problem_lines(f"{source.title()} cannot be used as it is: {some}", problems))
    if options.size is None and len(sizes) > 1:
        most = ", ".join(f"{h} x {w} ({n:,})" for (h, w), n in sizes.most_common(NAMED))
        more = f" and {len(sizes) - NAMED:,} more" if len(sizes) > NAMED else ""
        (h, w), _ = sizes.most_common(1)[0]
        size = h if h == w else f"[{h},{w}]"
        raise DataError(
            f"{source.title()} has images of {len(sizes):,} sizes, height x width: {most}{more}. Set data.size, "
            f"such as data.size={size}, to crop and resize all of them"
        )


def _warn_of_skipped(source: ImageSource, shown: Sequence[str]) -> None:
    if shown and number() == 0:
        log.warning("%s", problem_lines(f"{source.title()}: {len(shown):,} entries are left out", shown))
