"""Where data files lie, and how those that are missing are fetched."""

import errno
import os
import secrets
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm

from zoo.checks.errors import UserError

SECONDS_TO_DECIDE = 8


class FileNotWritten(OSError, UserError):
    """A file that cannot be made where it was asked for; ``filename`` says which, ``strerror`` why."""


class DataError(UserError):
    """Data that cannot be had or cannot be read; the message says which, and what to do."""


def data_root() -> Path:
    """The folder where data live: ``ZOO_DATA``, else ``data`` in the working folder."""
    return Path(os.environ.get("ZOO_DATA") or "data")


def reachable(addresses: Iterable[str]) -> bool:
    """Whether the host of one of these web addresses answers, found out within ``SECONDS_TO_DECIDE``."""
    answered = threading.Event()

    def knock(host: str) -> None:
        try:
            socket.create_connection((host, 443), timeout=SECONDS_TO_DECIDE).close()
            answered.set()
        except OSError:
            pass

    # Threads, since looking up a name obeys no timeout.
    hosts = {urllib.parse.urlsplit(address).hostname for address in addresses}
    threads = [threading.Thread(target=knock, args=(host,), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    for _ in range(10 * SECONDS_TO_DECIDE):
        if answered.wait(0.1) or not any(thread.is_alive() for thread in threads):
            break
    return answered.is_set()


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that becomes ``path`` when all is written, and is gone if anything fails before.

    Raises:
        FileNotWritten: naming ``path``, if it cannot be made; what fails while it is written, as it fails.
    """
    unfinished = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        with unfinished.open("xb") as file:
            yield file
        unfinished.replace(path)
    except OSError as error:
        if error.filename not in map(str, (unfinished, path, *path.parents)):  # such as a download that breaks off
            raise
        raise FileNotWritten(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def download(address: str, path: Path) -> None:
    """Put what is at ``address`` into ``path``, whole or not at all; the digest is the reader's to check.

    Raises:
        OSError: if it cannot be had, or written.
    """
    with (
        urllib.request.urlopen(address, timeout=20) as source,
        written_whole(path) as file,
        tqdm(total=source.length, desc=f"fetching {path.name}", unit="B", unit_scale=True) as bar,
    ):
        while block := source.read(1 << 16):
            file.write(block)
            bar.update(len(block))
