"""Read weights from addresses. Downloads stay in the cache of ``torch.hub``, under the digest of the file."""

import hashlib
import http.client
import logging
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from zoo.checks.errors import CheckpointError
from zoo.training.error_lines import FULL_DISK
from zoo.training.outputs import check_writable

log = logging.getLogger(__name__)

SECONDS_WITHOUT_AN_ANSWER = 60
LARGEST_FILE = 2**30  # bytes of a file at a file: address, which is read into memory before its digest is known


def read_address(url: str, digest: str) -> bytes:
    """Return the content of the file at ``url``.

    A download is kept in the folder ``zoo`` of ``torch.hub.get_dir()``, and later calls read it there. If this folder
    cannot be written, nothing is kept.

    Args:
        url: a ``file:``, ``http:`` or ``https:`` address.
        digest: the SHA-256 digest of the file, 64 hexadecimal digits. A download and a kept file have this digest. The
            content of a ``file:`` address is not compared with it.

    Raises:
        CheckpointError: if the file cannot be read, or if a download has another digest. No part of it is kept then.
    """
    if url.startswith("file:"):
        return _read_file(url)
    kept = Path(torch.hub.get_dir()) / "zoo" / f"{digest}.safetensors"
    if kept.is_file():
        data = kept.read_bytes()
        if hashlib.sha256(data).hexdigest() == digest:
            return data
        log.warning("%s is damaged, so it is downloaded again", kept)
        with suppress(OSError):
            kept.unlink()
    with _folder(kept.parent) as folder:
        _download(url, folder / kept.name, digest)
        return (folder / kept.name).read_bytes()


def _read_file(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url) as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise CheckpointError(f"{url} cannot be read: {error}") from error
    if len(data) > LARGEST_FILE:
        raise CheckpointError(f"{url} is larger than {LARGEST_FILE:,} bytes, the limit for a file")
    return data


@contextmanager
def _folder(cache: Path) -> Iterator[Path]:
    """Yield the folder ``cache``, or a temporary folder if ``cache`` cannot be written."""
    try:
        check_writable(cache / "file")
        cache.mkdir(parents=True, exist_ok=True)
        writable = True
    except OSError as error:
        log.warning("the download is not kept, because %s cannot be written: %s", cache, error.strerror)
        writable = False
    with nullcontext(cache) if writable else TemporaryDirectory() as folder:
        yield Path(folder)


def _download(url: str, path: Path, digest: str) -> None:
    """Download a file. It has its name ``path`` once it is complete and has the digest."""
    try:
        with _time_limit(SECONDS_WITHOUT_AN_ANSWER):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=sys.stderr.isatty())
    except RuntimeError as error:  # the digest differs
        raise CheckpointError(
            f"what came from {url} was removed: it is not the published file, or the download broke off ({error})"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise
        raise CheckpointError(f"{url} cannot be read: {error or type(error).__name__}") from error


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Let network connections without a time limit wait at most so long. torch.hub sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
