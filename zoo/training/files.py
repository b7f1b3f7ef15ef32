"""Files that are written whole or not at all, and hosts that answer in time or not."""

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
from typing import TYPE_CHECKING, BinaryIO

from zoo.training.outputs import FileNotWritten, vectors_format

if TYPE_CHECKING:
    from torch import Tensor

SECONDS_TO_DECIDE = 8


def reachable(addresses: Iterable[str]) -> bool:
    """Whether the host of one of these web addresses answers, found out within ``SECONDS_TO_DECIDE``.

    Where the environment names a proxy for an address, it is the proxy that has to answer.
    """
    answered = threading.Event()

    def knock(place: tuple[str, int]) -> None:
        try:
            socket.create_connection(place, timeout=SECONDS_TO_DECIDE).close()
            answered.set()
        except OSError:
            pass

    # Threads, since looking up a name obeys no timeout.
    threads = [threading.Thread(target=knock, args=(place,), daemon=True) for place in set(map(_door, addresses))]
    for thread in threads:
        thread.start()
    for _ in range(10 * SECONDS_TO_DECIDE):
        if answered.wait(0.1) or not any(thread.is_alive() for thread in threads):
            break
    return answered.is_set()


def _door(address: str) -> tuple[str, int]:
    """The host and port that a request for ``address`` goes to first."""
    parts = urllib.parse.urlsplit(address)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that becomes ``path`` when all is written, and is gone if anything fails before.

    Raises:
        FileNotWritten: naming ``path``, if it cannot be made; what fails while it is written, as it fails.
    """
    unfinished = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        if file := next((parent for parent in path.parents if parent.is_file()), None):
            raise NotADirectoryError(errno.ENOTDIR, f"{file} is no folder", str(path))
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
        with suppress(OSError):  # there is none, or none can be: a part of the path is a file, its name is too long
            unfinished.unlink()


def save_word2vec(words: list[str], vectors: "Tensor", path: Path, binary: bool = False) -> None:
    """Words and their vectors, (V, D), in the format of the word2vec program, which gensim's KeyedVectors reads too.

    A line with V and D, then for each word, the most frequent first, its name, a space, and its numbers: in decimal, or
    as float32, least significant byte first, where ``binary`` or the ending .bin asks for it. A file that ends in .gz,
    .bz2 or .xz is packed.

    Raises:
        UserError: for an ending that promises another format.
    """
    binary, packed = vectors_format(path, binary)
    vectors = vectors.detach().float().cpu()
    with (
        written_whole(path) as whole,
        import_module(packed).open(whole, "wb") if packed else nullcontext(whole) as file,
    ):
        file.write(f"{len(words)} {vectors.shape[1]}\n".encode())
        for part in _lines(words, vectors, binary):
            file.write(part)


def _lines(words: list[str], vectors: "Tensor", binary: bool) -> Iterator[bytes]:
    for word, vector in zip(words, vectors.numpy().astype("<f4"), strict=True):
        yield word.encode() + b" "
        yield vector.tobytes() + b"\n" if binary else " ".join(f"{x:.9g}" for x in vector.tolist()).encode() + b"\n"
