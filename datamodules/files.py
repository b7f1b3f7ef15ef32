"""Where data files lie, under which names and packed how; how those that are missing are fetched, and by whom."""

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
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from zoo.checks.errors import UserError
from zoo.training.error_lines import FULL_DISK
from zoo.training.files import FileNotWritten, reachable, written_whole

log = logging.getLogger(__name__)

SECONDS_WITHOUT_AN_ANSWER = 20
# What comes of an archive that is damaged; RuntimeError of one with a password, or packed in a way that zipfile lacks.
DAMAGE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, lzma.LZMAError, zlib.error)
PACKED = ("", ".gz", ".xz", ".zip", ".bz2")  # endings of one file, in the order in which they are looked for

OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
# How packed files begin, whatever they are called.
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
    """Data that cannot be had or cannot be read; the message says which, and what to do."""


def data_root() -> Path:
    """The folder where data live: ``ZOO_DATA``, in which ``~`` is the home folder, else ``data`` in the working folder.

    Raises:
        DataError: for a ``~`` where there is no home folder.
    """
    folder = Path(os.environ.get("ZOO_DATA") or "data")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise DataError(f"ZOO_DATA={folder} cannot be found: {error} Write the path in full.") from error


# Finding.


def in_any_capitals(path: Path) -> Path | None:
    """The file or folder at ``path``, whose name may be written in other capitals; None if there is none.

    Raises:
        DataError: if the folder it would lie in cannot be read.
    """
    try:
        if path.exists():
            return path
        names = sorted(os.listdir(path.parent))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path.parent} cannot be read: {error.strerror}. Make it readable") from error
    return next((path.parent / name for name in names if name.casefold() == path.name.casefold()), None)


def find_file(folders: Iterable[Path], names: Iterable[str]) -> Iterator[Path]:
    """The files in ``folders`` of these names, in any capitals, plain or packed, in the order of the arguments."""
    names = list(names)
    for folder in folders:
        for name in names:
            for ending in PACKED:
                if (path := in_any_capitals(folder / f"{name}{ending}")) is not None and path.is_file():
                    yield path


# Reading.


def unpack(file: BinaryIO, path: Path, member: str | None = None) -> BinaryIO:
    """The bytes of an open file, unpacked if it is packed by gzip, bzip2, xz or zip.

    How a file begins decides. Its ending has to agree if it is one of a packed file.

    Args:
        file: at its beginning, where it is again afterwards.
        path: its name.
        member: the file wanted of a zip archive, by its name without folders; None for the only one.

    Raises:
        DataError: for a file packed in another way, or a zip archive of several files.
        OSError, or another of ``DAMAGE``: for a file that is not what its ending says.
    """
    begin = file.read(16)
    file.seek(0)
    ending = next((ending for pattern, ending in BEGINNINGS.items() if re.match(pattern, begin, re.DOTALL)), None)
    ending = ending or next((e for e in (*OPENERS, ".zip", *NOT_READ) if e.lower() == path.suffix.lower()), "")
    if ending in NOT_READ:
        raise DataError(f"{path} is packed as {ending}, which is not read: unpack it, or pack it as .gz, .bz2 or .xz")
    if ending == ".zip":
        return _unzip(zipfile.ZipFile(file), path, member)
    return OPENERS[ending](file) if ending else file


def _unzip(archive: zipfile.ZipFile, path: Path, member: str | None) -> BinaryIO:
    inside = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if member is not None:
        inside = [name for name in inside if PurePosixPath(name).name == member]
    if len(inside) != 1:
        what = "one file" if member is None else f"one {member}"
        raise DataError(f"{path} must hold {what} and holds {len(inside)}: unpack it, and name the text itself")
    return archive.open(inside[0])


def md5_of(path: Path, unpacked: bool = False, member: str | None = None) -> str | None:
    """The MD5 digest of a file, or of what is packed in it; None for a file that cannot be unpacked."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        try:
            stream = unpack(file, path, member) if unpacked else file
            while block := stream.read(1 << 20):
                digest.update(block)
        except (*DAMAGE, DataError):
            return None
    return digest.hexdigest()


# Fetching.


class Missing(NamedTuple):
    """A file to fetch: where it is put, the addresses it is had from, and what tells that it is the right one."""

    path: Path
    addresses: Sequence[str]
    intact: Callable[[Path], bool]


@contextmanager
def locked(what: str) -> Iterator[bool]:
    """Keep other processes that share the data folder from preparing ``what``. The value says whether one was awaited.

    The system ends the lock with its process, however that ends. Where none can be had, as in a folder that is
    read-only, the work goes on without: every file is written whole, and so the worst is work done twice. Locks hold
    on local disks, on NFS from version 3 with its lock service, and on Windows.
    """
    path = data_root() / ".locks" / f"{what}.lock"
    lock, waited = FileLock(path), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waited = True
            log.warning("waiting for another process, which is preparing %s and holds %s", what, path)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.debug("%s takes no lock: %s", path, error)
    try:
        yield waited
    finally:
        lock.release()


def fetch_missing(name: str, missing: Callable[[], list[Missing]], remedy: str) -> None:
    """Download the missing files of a data set, each whole or not at all; of several processes one does it.

    Args:
        name: of the data set.
        missing: tells what is missing now. It is asked again once no other process is fetching.
        remedy: the files that a user may put there instead, and which data need no download.

    Raises:
        DataError: if they cannot be downloaded, or not be written.
    """
    if not (files := missing()):
        return
    folder = files[0].path.parent.absolute()
    wanted = f"{name} is not in {folder} and cannot be downloaded"
    if not reachable([address for file in files for address in file.addresses]):
        raise DataError(f"{wanted}: no host that has it answers. {remedy}.")
    with locked(name):
        for file in missing():
            try:
                download(file)
            except OSError as error:
                if isinstance(error, FileNotWritten) or error.errno in FULL_DISK:
                    raise DataError(
                        f"{name} is to be fetched into {folder}, which cannot be written: {error.strerror}. Mend that, "
                        "or name another folder by ZOO_DATA"
                    ) from error
                raise DataError(f"{wanted}: {error}. {remedy}.") from error


def download(file: Missing) -> None:
    """Put what is at the first of the addresses that has it into its place, once it is known to be intact.

    Raises:
        OSError: if it cannot be had, or written.
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
    request = urllib.request.Request(address, headers={"User-Agent": "zoo"})  # some hosts refuse urllib by its name
    try:
        with (
            urllib.request.urlopen(request, timeout=SECONDS_WITHOUT_AN_ANSWER) as source,
            written_whole(file.path) as target,
            tqdm(total=source.length, desc=f"fetching {file.path.name}", unit="B", unit_scale=True) as bar,
        ):
            while block := source.read(1 << 16):
                target.write(block)
                bar.update(len(block))
            if source.length:  # what was announced and has not come
                raise OSError(f"it broke off {source.length:,} bytes before its end")
            target.flush()
            if not file.intact(Path(target.name)):
                raise OSError("what is there is not the published file")
    except http.client.HTTPException as error:
        raise OSError(str(error) or type(error).__name__) from error


def resumes(data) -> bool:
    """Whether the state that ``data`` is given is that of a run which goes on, and not what a tuner puts back."""
    path = data.trainer.ckpt_path if data.trainer is not None else None
    return path is None or not Path(path).name.startswith(".")  # tuners of Lightning keep theirs in hidden files
