"""Where data files lie, and how those that are missing are fetched."""

import os
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm.auto import tqdm

from zoo.checks.errors import UserError
from zoo.training.files import written_whole


class DataError(UserError):
    """Data that cannot be had or cannot be read; the message says which, and what to do."""


def data_root() -> Path:
    """The folder where data live: ``ZOO_DATA``, else ``data`` in the working folder."""
    return Path(os.path.expanduser(os.environ.get("ZOO_DATA") or "data"))


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
