"""Read texts from files: plain or compressed files, folders, zip archives, and columns of tables.

A text is read in pieces, so that a file of several gigabytes needs little memory. Files follow each other in the order
of their names, with the end of a paragraph between them. All files that cannot be read are named in one error.
"""

import codecs
import csv
import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm.auto import tqdm

from zoo.datamodules.files import COMPRESSED_ENDINGS, READ_ERRORS, DataError, inside_zip, unpack

BLOCK = 1 << 22  # bytes read at a time
LONGEST = 1 << 25  # largest number of characters without white space, or in a cell of a table
PIECE = 1 << 20  # approximate number of characters in a piece of a table
NAMED = 10  # largest number of unreadable files that an error names
PARAGRAPH = "\n\n"  # the end of a paragraph
TABLES = (".csv", ".tsv", ".parquet")


class TextFile(NamedTuple):
    """A file of text.

    Attributes:
        path: path of the file, plain or compressed.
        member: name of the text in a zip archive, or None if the archive has a single file or the file is no archive.
        column: name of the column of a table, or None for a file that is text throughout.
    """

    path: Path
    member: str | None = None
    column: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path} ({self.member})"

    @property
    def table(self) -> str | None:
        """The kind of table that the name shows, one of ``TABLES``, or None. Endings of compression do not count."""
        endings = [ending.lower() for ending in PurePosixPath(self.member or self.path.name).suffixes]
        while endings and endings[-1] in COMPRESSED_ENDINGS:
            endings.pop()
        return endings[-1] if endings and endings[-1] in TABLES else None


class Texts(NamedTuple):
    """The texts in a file or folder.

    Attributes:
        files: the files in the order in which they are read.
        digest: SHA-256 digest of their content, their names and the column.
        problems: a sentence for each file or folder that cannot be read.
    """

    files: list[TextFile]
    digest: str
    problems: list[str]


# Finding.


def find_texts(path: Path, column: str | None = None) -> Texts:
    """Return the texts at ``path``: a file, the files in a zip archive, or all files in a folder and its subfolders.

    Files and folders whose names begin with a dot are ignored. The order is that of the names.

    Args:
        path: path of the file or folder.
        column: name of the column with the texts, if the files are tables.

    Raises:
        DataError: if ``path`` is missing, a pipe or a device, or a folder without files.
    """
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise DataError(f"data.path={path} cannot be read: {error.strerror}") from error
    problems: list[str] = []
    if not stat.S_ISDIR(kind):
        if not stat.S_ISREG(kind):
            raise DataError(f"data.path={path} {NO_FILE}")
        files = [*_members(path, column, problems)]
    else:
        found = sorted(_inside(path, problems), key=lambda file: file.relative_to(path).as_posix())
        if not found and not problems:
            raise DataError(f"data.path={path} is a folder without files: put text files there, or give another path")
        files = [text for file in found for text in _members(file, column, problems)]
    digest, whole = hashlib.sha256(), ""
    for file in dict.fromkeys(text.path for text in files):
        try:
            with file.open("rb") as opened:
                whole = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            problems.append(f"{file} cannot be read: {error.strerror}")
            files = [text for text in files if text.path != file]
        digest.update(f"{file.relative_to(path).as_posix()} {whole}\n".encode("utf-8", "surrogateescape"))
    digest.update(repr((column, problems)).encode("utf-8", "backslashreplace"))
    plain = stat.S_ISREG(kind) and column is None and not problems
    return Texts(files, whole if plain else digest.hexdigest(), problems)


NO_FILE = "is a pipe or a device, which cannot be read more than once: write the text to a file"


def _inside(folder: Path, problems: list[str]) -> Iterator[Path]:
    """Yield all files in a folder and its subfolders. Links to folders are followed once."""
    seen = set()

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        for name in names if real not in seen else ():
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.exists() and not path.is_file():
                problems.append(f"{path} {NO_FILE}")
            else:
                yield path
        seen.add(real)


def _members(path: Path, column: str | None, problems: list[str]) -> Iterator[TextFile]:
    """Yield the text at ``path``, or the texts in a zip archive. Add a sentence to ``problems`` if it has none."""
    names: list[str | None] = [None]
    if path.suffix.lower() in (".zip", ".txt", "") and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                inside = sorted(name for name in inside_zip(archive) if not _hidden(name))
        except READ_ERRORS:  # reading the archive will name what is wrong
            inside = [""]
        if not inside:
            problems.append(f"{path} must contain a text file, but contains none: put one there, or leave it out")
        names = [None] if inside == [""] else list(inside)
    for member in names:
        text = TextFile(path, member, column)
        if column is not None and text.table is None:
            problems.append(f"{text} has no columns: data.column={column} needs files in {', '.join(TABLES)}")
        elif column is None and text.table == ".parquet":
            problems.append(f"{text} is a table: set data.column to the name of the column with the texts")
        else:
            yield text


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


# Reading.


def read_texts(texts: Texts) -> Iterator[str]:
    """Yield the text of all files in pieces, as :func:`read_text` does. A paragraph ends at the end of a file.

    Raises:
        DataError: after the last piece, with a sentence for each file that cannot be read.
    """
    problems, last = list(texts.problems), None
    for i, file in enumerate(texts.files):
        if i:
            yield PARAGRAPH
        try:
            yield from read_text(file.path, member=file.member) if file.column is None else read_column(file)
        except DataError as error:
            problems.append(str(error))
            last = error
    if problems:
        more = f"; and {len(problems) - NAMED:,} more" if len(problems) > NAMED else ""
        first = f"{len(problems):,} texts cannot be read: " if len(problems) > 1 else ""
        raise DataError(f"{first}{'; '.join(problems[:NAMED])}{more}") from last


def decoded(path: Path, md5: str | None = None, member: str | None = None) -> Iterator[str]:
    """Yield the text of a file in blocks.

    The encoding is UTF-8, unless a byte order mark at the beginning declares UTF-16 or UTF-32.

    Args:
        path: path of the file, plain or compressed (see :func:`zoo.datamodules.files.unpack`).
        md5: MD5 digest of the decompressed text, or None to skip the check.
        member: name of the file to read in a zip archive of several files.

    Raises:
        DataError: if the file cannot be decompressed or is not text. If the MD5 digest is not ``md5``, the error comes
            after the last block.
    """
    digest, position, block, decode = hashlib.md5(usedforsecurity=False), 0, b"begin", None
    name, encoding = str(TextFile(path, member)), ""
    try:
        size = path.stat().st_size
        with path.open("rb") as file, _bar(path, size) as bar:
            stream = unpack(file, path, member)
            while block:
                block = stream.read(BLOCK)
                digest.update(block)
                if decode is None:
                    encoding = encoding_of(block)
                    decode = codecs.getincrementaldecoder(encoding)().decode
                if encoding == "utf-8-sig" and b"\0" in block:
                    raise DataError(f"{name} is not text: {_nul(block, position)}")
                text = decode(block, final=not block)
                position += len(block)
                bar.update(file.tell() - bar.n)
                yield text
    except UnicodeDecodeError as error:
        # error.object begins with bytes of the previous block that were not yet decoded.
        place = position + error.start - (len(error.object) - len(block))
        kind = encoding.removesuffix("-sig").upper()
        raise DataError(
            f"{name} is not {kind} text: byte {place:,} of the text is {error.object[error.start]:#04x}. Convert "
            f"the file to UTF-8. From Latin-1: iconv -f LATIN1 -t UTF-8 {path} > converted.txt"
        ) from error
    except READ_ERRORS as error:
        wrong = "" if path.suffix in ("", ".txt") else f". If it is not a {path.suffix} file, rename it"
        raise DataError(f"{name} is damaged: {error}{wrong}") from error
    if md5 is not None and digest.hexdigest() != md5:
        raise DataError(
            f"{path} is damaged: it is not the published file. Delete or move it, and the next run downloads it again."
        )


def _bar(path: Path, size: int) -> tqdm:
    return tqdm(total=size, desc=f"reading {path.name}", unit="B", unit_scale=True, disable=None, leave=False)


def read_text(path: Path, md5: str | None = None, member: str | None = None) -> Iterator[str]:
    """Yield the text of a file in pieces. A piece ends at the end of a word. White space begins the next piece.

    The arguments and errors are those of :func:`decoded`.
    """
    text = ""
    for block in decoded(path, md5, member):
        text += block
        # The last word of the block can continue in the next block. Keep it until then.
        parts = text.rsplit(None, 1)
        piece = parts[0] if len(parts) == 2 else ""
        yield piece
        text = text[len(piece) :]
        if len(text) > LONGEST:
            raise DataError(
                f"{TextFile(path, member)} has {LONGEST:,} characters without a space or a line break: separate the "
                "words by spaces"
            )
    yield text


def read_column(file: TextFile) -> Iterator[str]:
    """Yield the texts in the column of a table, in pieces. Each cell ends with the end of a paragraph.

    Raises:
        DataError: if the table cannot be read, has no such column, or has cells without text in this column.
    """
    cells, size = [], 0
    for cell in _parquet_cells(file) if file.table == ".parquet" else _csv_cells(file):
        cells.append(cell)
        size += len(cell)
        if size > PIECE:
            yield PARAGRAPH.join([*cells, ""])
            cells, size = [], 0
    yield PARAGRAPH.join(cells)


def _csv_cells(file: TextFile) -> Iterator[str]:
    """Yield the cells of the column, read by the csv module. The first line has the names of the columns.

    A .tsv file has tabs between cells. The names of a .csv file show whether commas, semicolons or tabs separate cells.
    """
    lines, row = _lines(decoded(file.path, member=file.member)), 0
    head = next(lines, "")
    separator = "\t" if file.table == ".tsv" else max(",;\t", key=head.count)
    before = csv.field_size_limit(LONGEST)
    try:
        reader = csv.reader(_first(head, lines), delimiter=separator, strict=True)
        place = _place(file, next(reader, []))
        for row in reader:
            if row and len(row) <= place:
                raise DataError(
                    f"{file} has a row of {len(row)} cells that ends in line {reader.line_num:,}, and data.column="
                    f"{file.column} is column {place + 1}: correct this row"
                )
            if row:
                yield row[place]
    except csv.Error as error:
        raise DataError(f"{file} is no table: line {reader.line_num:,}: {error}. Correct this line") from error
    finally:
        csv.field_size_limit(before)


def _place(file: TextFile, names: list[str]) -> int:
    """Return the position of the column among the ``names`` of all columns."""
    if names.count(str(file.column)) != 1:
        several = "several columns" if file.column in names else "no column"
        known = ", ".join(names[:20]) or "none"
        raise DataError(f"{file} has {several} {file.column!r}: set data.column to one of its columns: {known}")
    return names.index(str(file.column))


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text, each with its line feed."""
    rest = ""
    for block in blocks:
        *lines, rest = (rest + block).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def _first(head: str, lines: Iterator[str]) -> Iterator[str]:
    yield head
    yield from lines


def _parquet_cells(file: TextFile) -> Iterator[str]:
    """Yield the cells of the column of a Parquet file. Missing values are left out."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{file} is a Parquet file, which needs the package pyarrow: pip install 'generative-zoo[parquet]'"
        ) from error
    try:
        with file.path.open("rb") as opened:
            stream = unpack(opened, file.path, file.member)
            table = pyarrow.parquet.ParquetFile(stream if stream is opened else io.BytesIO(stream.read()))
            kind = table.schema_arrow.field(_place(file, table.schema_arrow.names)).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise DataError(f"{file} has no texts in the column {file.column!r}, but {kind}: choose another column")
            for batch in table.iter_batches(columns=[file.column]):
                yield from (cell for cell in batch.column(0).to_pylist() if cell is not None)
    except (*READ_ERRORS, pyarrow.ArrowException) as error:
        raise DataError(f"{file} is damaged: {error}") from error


def encoding_of(begin: bytes) -> str:
    """Return the encoding that a byte order mark at the beginning of a text declares, or UTF-8 without one."""
    if begin.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _nul(block: bytes, position: int) -> str:
    """Return a message about a zero byte in UTF-8: its likely cause and what to do."""
    place = position + block.index(0)
    if block.count(0) * 3 > len(block) and b"\0\0" not in block:
        return (
            f"from byte {place:,} on, every second byte is zero, as in UTF-16 without a byte order mark. Convert it to "
            "UTF-8, for example with iconv -f UTF-16LE -t UTF-8"
        )
    return (
        f"byte {place:,} is zero, as in binary files and archives. Give the path of a text, or delete the zero bytes "
        "with tr -d '\\000'"
    )
