"""Write files atomically, write vectors of words, and test whether a web host answers."""

import errno
import secrets
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zoo.checks.errors import UserError
from zoo.training.outputs import FileNotWritten, vectors_format

if TYPE_CHECKING:
    from torch import Tensor

SECONDS_TO_DECIDE = 8


def reachable(addresses: Iterable[str]) -> bool:
    """Return whether the host of at least one web address answers within ``SECONDS_TO_DECIDE`` seconds.

    If the environment sets a proxy for an address, the proxy is tested instead of the host.
    """
    answered = threading.Event()

    def knock(place: tuple[str, int]) -> None:
        try:
            socket.create_connection(place, timeout=SECONDS_TO_DECIDE).close()
            answered.set()
        except OSError:
            pass

    # Threads limit the time, because a DNS lookup has no timeout.
    threads = [threading.Thread(target=knock, args=(place,), daemon=True) for place in set(map(_door, addresses))]
    for thread in threads:
        thread.start()
    for _ in range(10 * SECONDS_TO_DECIDE):
        if answered.wait(0.1) or not any(thread.is_alive() for thread in threads):
            break
    return answered.is_set()


def _door(address: str) -> tuple[str, int]:
    """Return the host and port of ``address``, or of the proxy that the environment sets for it."""
    parts = urllib.parse.urlsplit(address)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to ``path`` at the end, or removed if the block raises.

    Yields:
        the temporary file, open for writing bytes.

    Raises:
        FileNotWritten: if ``path`` cannot be written. Other errors inside the block are raised unchanged.
    """
    unfinished = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        if file := next((parent for parent in path.parents if parent.is_file()), None):
            raise NotADirectoryError(errno.ENOTDIR, f"{file} is not a folder", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        with unfinished.open("xb") as file:
            yield file
        unfinished.replace(path)
    except OSError as error:
        if error.filename not in map(
            str, (unfinished, path, *path.parents)
        ):  # another error, such as a lost connection
            raise
        raise FileNotWritten(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # the file was renamed, or was never made
            unfinished.unlink()


def save_word2vec(words: list[str], vectors: "Tensor", path: Path, binary: bool = False) -> None:
    """Write words and their vectors in the format of the word2vec program. gensim's KeyedVectors reads this format.

    The first line holds V and D. Each further entry holds a word, a space and D numbers. The numbers are decimal in the
    text format, and little-endian float32 in the binary format. The file is compressed if its name ends in .gz, .bz2 or
    .xz.

    Args:
        words: V words, the most frequent first.
        vectors: their vectors, (V, D).
        path: the file to write. Its ending selects the format and the compression.
        binary: True writes the binary format, also without an ending. False writes it only for the ending .bin.

    Raises:
        UserError: if the ending of ``path`` belongs to another format.
    """
    binary, packed = vectors_format(path, binary)
    vectors = vectors.detach().float().cpu()
    with (
        atomic_write(path) as whole,
        import_module(packed).open(whole, "wb") if packed else nullcontext(whole) as file,
    ):
        file.write(f"{len(words)} {vectors.shape[1]}\n".encode())
        for part in _lines(words, vectors, binary):
            file.write(part)


def keyed_vectors(words: list[str], vectors: "Tensor", counts: "Tensor") -> Any:
    """Return a copy of words and their vectors as gensim's KeyedVectors.

    Args:
        words: V words, the most frequent first. The result has the same order.
        vectors: their vectors, (V, D). The result has them in float32.
        counts: occurrences of each word, (V,), the attribute ``count`` of the result.

    Raises:
        UserError: if gensim is not installed.
    """
    try:
        from gensim.models import KeyedVectors
    except ImportError as error:
        raise UserError("keyed_vectors needs gensim: pip install gensim") from error
    found = KeyedVectors(vectors.shape[1])
    found.add_vectors(words, vectors.detach().float().cpu().numpy())
    for word, count in zip(words, counts.tolist(), strict=True):
        found.set_vecattr(word, "count", count)
    return found


def _lines(words: list[str], vectors: "Tensor", binary: bool) -> Iterator[bytes]:
    for word, vector in zip(words, vectors.numpy().astype("<f4"), strict=True):
        yield word.encode() + b" "
        yield vector.tobytes() + b"\n" if binary else " ".join(f"{x:.9g}" for x in vector.tolist()).encode() + b"\n"
