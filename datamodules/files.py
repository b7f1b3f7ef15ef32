"""Find data files under several names and compressions, read them, and download missing ones."""

import bz2
import gzip
import hashlib
import http.client
import logging
import lzma
import os
import re
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from zoo.checks.errors import UserError
from zoo.training.error_lines import FULL_DISK
from zoo.training.files import FileNotWritten, atomic_write, reachable

log = logging.getLogger(__name__)

SECONDS_WITHOUT_AN_ANSWER = 20
# Exceptions that a damaged archive raises. zipfile raises RuntimeError for a password or an unknown compression.
READ_ERRORS = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, lzma.LZMAError, zlib.error)
COMPRESSED_ENDINGS = ("", ".gz", ".xz", ".zip", ".bz2")  # endings of a file, in the order of the search

OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
# First bytes of compressed files. They show the compression of a file with any name.
BEGINNINGS = {
    rb"\x1f\x8b": ".gz",
    rb"\xfd7zXZ\0": ".xz",
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": ".bz2",
    rb"PK(\x03\x04|\x05\x06)": ".zip",
    rb"\x28\xb5\x2f\xfd": ".zst",
    rb"7z\xbc\xaf\x27\x1c": ".7z",
    rb"Rar!\x1a\x07": ".rar",
    rb"\x1f\x9d": ".Z",
    rb"\x04\x22\x4d\x18": ".lz4",
}
NOT_READ = (".zst", ".7z", ".rar", ".Z", ".lz4")


class DataError(UserError):
    """Error for data that are missing, unreadable or unsuitable. The message names the data and says what to do."""


def data_root() -> Path:
    """Return the folder of all data: the environment variable ``ZOO_DATA``, or ``data`` in the working folder.

    ``~`` in ``ZOO_DATA`` means the home folder.

    Raises:
        DataError: if ``ZOO_DATA`` contains ``~`` and there is no home folder.
    """
    folder = Path(os.environ.get("ZOO_DATA") or "data")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise DataError(f"ZOO_DATA={folder} cannot be found: {error} Set ZOO_DATA to the full path.") from error


# Finding.


def ignoring_case(path: Path) -> Path | None:
    """Return the path of the file or folder at ``path``, or None. Upper and lower case in its name count as equal.

    Raises:
        DataError: if the parent folder cannot be read.
    """
    try:
        if path.exists():
            return path
        names = sorted(os.listdir(path.parent))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path.parent} cannot be read: {error.strerror}. Make this folder readable") from error
    return next((path.parent / name for name in names if name.casefold() == path.name.casefold()), None)


def find_file(folders: Iterable[Path], names: Iterable[str]) -> Iterator[Path]:
    """Yield the files in ``folders`` with these names, plain or compressed.

    The order is the order of ``folders``. Within a folder, it is the order of ``names``. Upper and lower case count as
    equal.
    """
    names = list(names)
    for folder in folders:
        for name in names:
            for ending in COMPRESSED_ENDINGS:
                if (path := ignoring_case(folder / f"{name}{ending}")) is not None and path.is_file():
                    yield path


# Reading.


def unpack(file: BinaryIO, path: PurePath, member: str | None = None) -> BinaryIO:
    """Return a stream of the content of an open file, decompressed if it is gzip, bzip2, xz or zip.

    The first bytes of the file determine its compression. If they are unknown, the ending of its name determines it.

    Args:
        file: the open file, at its beginning.
        path: path of the file.
        member: name, with or without folders, of the file to read in a zip archive. If it is None, the archive
            must contain a single file. This file can be compressed too.

    Raises:
        DataError: for another compression, or a zip archive without exactly one matching file.
        OSError, or another of ``READ_ERRORS``: if the content does not match the ending of the name.
    """
    begin = file.read(16)
    file.seek(0)
    ending = next((ending for pattern, ending in BEGINNINGS.items() if re.match(pattern, begin, re.DOTALL)), None)
    ending = ending or next((e for e in (*OPENERS, ".zip", *NOT_READ) if e.lower() == path.suffix.lower()), "")
    if ending in NOT_READ:
        raise DataError(f"{path} is a {ending} file, which cannot be read: decompress it, or use .gz, .bz2 or .xz")
    if ending == ".zip":
        return _unzip(zipfile.ZipFile(file), path, member)
    return OPENERS[ending](file) if ending else file


def inside_zip(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the files in a zip archive, without the files that macOS adds."""
    return [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]


def _unzip(archive: zipfile.ZipFile, path: PurePath, member: str | None) -> BinaryIO:
    inside = inside_zip(archive)
    if member is not None:
        inside = [member] if member in inside else [name for name in inside if PurePosixPath(name).name == member]
    if len(inside) != 1:
        what = "one file" if member is None else f"one file named {member}"
        raise DataError(f"{path} must contain {what}, but contains {len(inside)}: unzip it, and name the text file")
    return unpack(cast(BinaryIO, archive.open(inside[0])), PurePosixPath(inside[0]))


def md5_of(path: Path, unpacked: bool = False, member: str | None = None) -> str | None:
    """Return the MD5 digest of a file, or of its decompressed content. Return None if decompression fails."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        try:
            stream = unpack(file, path, member) if unpacked else file
            while block := stream.read(1 << 20):
                digest.update(block)
        except (*READ_ERRORS, DataError):
            return None
    return digest.hexdigest()


def read_published(path: Path, md5: str, opened: BinaryIO | None = None) -> bytes:
    """Return the content of a file, decompressed, after a comparison with its published digest.

    Args:
        path: path of the file, or of the archive that contains it.
        md5: the MD5 digest of the content.
        opened: the open file. If it is None, ``path`` is opened.

    Raises:
        DataError: if the content cannot be read or has another digest.
    """
    try:
        with opened or path.open("rb") as file:
            content = (unpack(file, path) if opened is None else file).read()
    except READ_ERRORS as error:
        raise damaged(path, error) from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise damaged(path)
    return content


def damaged(path: Path, error: Exception | None = None) -> DataError:
    """Return the error for a file that is not the published one."""
    reason = f" ({error})" if error else ""
    return DataError(
        f"{path} is damaged{reason}: it is not the published file. Delete or move it, and the next run downloads "
        "it again."
    )


# Downloading.


class Missing(NamedTuple):
    """A file to download: its path, its addresses, and a function that returns whether a downloaded file is intact."""

    path: Path
    addresses: Sequence[str]
    intact: Callable[[Path], bool]


@contextmanager
def locked(what: str) -> Iterator[bool]:
    """Lock ``what`` against other processes that share the data folder. Yield whether another process held the lock.

    The operating system releases the lock when the process ends, even after a crash. If no lock is available, for
    example in a read-only folder, the work continues without a lock. Without a lock, two processes can do the same
    work. Both write complete files, so the result is the same. Locks work on local disks, on Windows, and on NFS from
    version 3 with its lock service.
    """
    path = data_root() / ".locks" / f"{what}.lock"
    lock, waited = FileLock(path), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waited = True
            log.warning("waiting for another process that prepares %s (it holds the lock %s)", what, path)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.debug("%s cannot be locked: %s", path, error)
    try:
        yield waited
    finally:
        lock.release()


def fetch_missing(name: str, missing: Callable[[], list[Missing]], remedy: str) -> None:
    """Download the missing files of a data set. A failed download leaves no file. Only one process downloads.

    Args:
        name: name of the data set.
        missing: function that returns the missing files. It is called again after other processes have finished.
        remedy: text for the error: the files that the user can supply, and the data that need no download.

    Raises:
        DataError: if a file cannot be downloaded or written.
    """
    if not (files := missing()):
        return
    folder = files[0].path.parent.absolute()
    wanted = f"{name} is not in {folder} and cannot be downloaded"
    if not reachable([address for file in files for address in file.addresses]):
        raise DataError(f"{wanted}: no server answers. {remedy}.")
    with locked(name):
        for file in missing():
            try:
                download(file)
            except OSError as error:
                if isinstance(error, FileNotWritten) or error.errno in FULL_DISK:
                    raise DataError(
                        f"{name} cannot be written to {folder}: {error.strerror}. Correct this, or set ZOO_DATA to "
                        "another folder"
                    ) from error
                raise DataError(f"{wanted}: {error}. {remedy}.") from error


def download(file: Missing) -> None:
    """Download a file from the first of its addresses that works.

    The download has a temporary name until it is complete and verified.

    Raises:
        OSError: if the file cannot be downloaded or written.
    """
    failed = []
    for address in file.addresses:
        try:
            return _download_from(address, file)
        except OSError as error:
            if isinstance(error, FileNotWritten) or error.errno in FULL_DISK:
                raise
            failed.append(f"{address}: {error}")
    raise OSError("; ".join(failed))


def _download_from(address: str, file: Missing) -> None:
    # torch.hub.download_url_to_file has no time limit, and it ignores the length that the server announces. It also
    # gives the file its name before ``intact`` can read it.
    request = urllib.request.Request(address, headers={"User-Agent": "zoo"})  # some servers refuse urllib's own name
    try:
        with (
            urllib.request.urlopen(request, timeout=SECONDS_WITHOUT_AN_ANSWER) as source,
            atomic_write(file.path) as target,
            tqdm(total=source.length, desc=f"downloading {file.path.name}", unit="B", unit_scale=True) as bar,
        ):
            while block := source.read(1 << 16):
                target.write(block)
                bar.update(len(block))
            if source.length:  # the number of bytes that the server announced and did not send
                raise OSError(f"the download stopped {source.length:,} bytes before the end of the file")
            target.flush()
            if not file.intact(Path(target.name)):
                raise OSError("the file at this address is not the published file")
    except http.client.HTTPException as error:
        raise OSError(str(error) or type(error).__name__) from error


def resumes(data) -> bool:
    """Return False if one of Lightning's tuners restores the state of ``data``, and True if a resumed run does."""
    path = data.trainer.ckpt_path if data.trainer is not None else None
    return path is None or not Path(path).name.startswith(".")  # Lightning's tuners use hidden checkpoint files
