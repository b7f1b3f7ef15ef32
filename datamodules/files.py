"""Where data files lie, and how those that are missing are fetched."""

import os
import socket
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from tqdm.auto import tqdm

SECONDS_TO_DECIDE = 8


class DataError(ValueError):
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


def download(address: str, path: Path) -> None:
    """Put what is at ``address`` into ``path``, whole or not at all; the digest is the reader's to check.

    Raises:
        OSError: if it cannot be had, or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        urllib.request.urlopen(address, timeout=20) as source,
        tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as partial,
        tqdm(total=source.length, desc=f"fetching {path.name}", unit="B", unit_scale=True) as bar,
    ):
        try:
            while block := source.read(1 << 16):
                partial.write(block)
                bar.update(len(block))
            partial.flush()
            os.replace(partial.name, path)
        except BaseException:
            os.unlink(partial.name)
            raise
