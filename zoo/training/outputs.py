"""What the name of a file promises of it, and whether it can be written: looked at before the work."""

import errno
import tempfile
from pathlib import Path

from zoo.checks.errors import UserError

PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}  # endings, and the modules that write them
TEXT, BINARY = (".txt", ".vec", ".w2v", ""), (".bin",)


class FileNotWritten(OSError, UserError):
    """A file that cannot be made where it was asked for; ``filename`` says which, ``strerror`` why."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}. Name another place"


def check_writable(path: Path) -> None:
    """Refuse a file or folder that cannot be made: its folder, or the nearest one above that is there, is tried.

    Raises:
        FileNotWritten: naming ``path``, and why.
    """
    try:
        folder = next(parent for parent in path.parents if parent.exists())
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder", str(path))
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=path.name[-20:]):
            pass
    except OSError as error:
        why = error.strerror if error.errno != errno.ENOENT else "no file can be made in its folder"
        raise FileNotWritten(error.errno, why, str(path)) from error


def check_picture(path: Path) -> None:
    """Refuse what is not the name of a PNG.

    Raises:
        UserError: for another ending, or a folder.
    """
    if path.suffix.lower() != ".png" or path.is_dir():
        raise UserError(f"a picture is a file that ends in .png, got {str(path)!r}")


def vectors_format(path: Path, binary: bool = False) -> tuple[bool, str | None]:
    """Return whether the name of a file of vectors, with ``binary``, asks for the binary format, and how it is packed.

    Returns:
        binary or not, and the module that packs the file: gzip, bz2 or lzma; None of one that is not packed.

    Raises:
        UserError: for an ending that promises another format.
    """
    endings = [ending.lower() for ending in path.suffixes]
    packed = PACKED.get(endings[-1]) if endings else None
    ending = (["", *endings[:-1]] if packed else ["", *endings])[-1]
    if ending not in (*TEXT, *BINARY):
        raise UserError(
            f"vectors are written as {', '.join(filter(None, TEXT))} (text) or .bin (binary), each of them packed as "
            f"{', '.join(PACKED)} too; got {str(path)!r}"
        )
    if binary and ending in TEXT[:-1]:
        raise UserError(f"--binary writes a file that ends in .bin, and {str(path)!r} promises text: leave one out")
    return binary or ending in BINARY, packed
