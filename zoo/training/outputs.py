"""Check the name of an output file, and whether it can be written, before the work begins."""

import errno
import tempfile
from pathlib import Path

from zoo.checks.errors import UserError

COMPRESSED_ENDINGS = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "lzma",
}  # ending of a compressed file -> module that writes it
TEXT, BINARY = (".txt", ".vec", ".w2v", ""), (".bin",)


class FileNotWritten(OSError, UserError):
    """A file cannot be written. ``filename`` is its path and ``strerror`` is the reason."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}. Choose another path"


def check_writable(path: Path) -> None:
    """Check that a file or folder can be made. The check makes a temporary file in the nearest existing parent folder.

    Raises:
        FileNotWritten: if it cannot be made.
    """
    try:
        folder = next(parent for parent in path.parents if parent.exists())
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder", str(path))
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=path.name[-20:]):
            pass
    except OSError as error:
        why = error.strerror if error.errno != errno.ENOENT else "its folder does not allow new files"
        raise FileNotWritten(error.errno, why, str(path)) from error


def check_picture(path: Path) -> None:
    """Check the name of a picture.

    Raises:
        UserError: if ``path`` does not end in .png or is a folder.
    """
    if path.suffix.lower() != ".png" or path.is_dir():
        raise UserError(f"a picture must be a file that ends in .png, got {str(path)!r}")


def vectors_format(path: Path, binary: bool = False) -> tuple[bool, str | None]:
    """Return the format and the compression of a file of word vectors.

    Args:
        path: the file. Its ending selects the format and the compression.
        binary: whether the user asked for the binary format.

    Returns:
        whether the format is binary, and the name of the module that compresses the file: gzip, bz2, lzma or None.

    Raises:
        UserError: if the ending is unknown, or belongs to text although ``binary`` is true.
    """
    endings = [ending.lower() for ending in path.suffixes]
    packed = COMPRESSED_ENDINGS.get(endings[-1]) if endings else None
    ending = (["", *endings[:-1]] if packed else ["", *endings])[-1]
    if ending not in (*TEXT, *BINARY):
        raise UserError(
            f"a file of vectors must end in {', '.join(filter(None, TEXT))} (text) or .bin (binary), and then "
            f"{', '.join(COMPRESSED_ENDINGS)} if it is compressed; got {str(path)!r}"
        )
    if binary and ending in TEXT[:-1]:
        raise UserError(f"{str(path)!r} has the ending of a text file, and --binary needs .bin: change one of them")
    return binary or ending in BINARY, packed
