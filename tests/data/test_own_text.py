"""Tests of texts of the user: folders, archives, compressed files and columns of tables."""

import bz2
import gzip
import lzma
import os
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from zoo.datamodules import DataError, Text, text_files
from zoo.datamodules.corpus import load_corpus
from zoo.datamodules.text_files import PARAGRAPH, find_texts, read_column, read_texts
from zoo.hub import data_of


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))


def place(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, column: str | None = None) -> str:
    return "".join(read_texts(find_texts(path, column)))


def packed(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


# Folders and archives.


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    """Subfolders and all packings are read. Hidden files and folders are not. A paragraph ends with each file."""
    folder = tmp_path / "texts"
    place(folder / "b.txt", b"\xef\xbb\xbftwo")
    place(folder / "a" / "z.txt.gz", gzip.compress(b"one"))
    place(folder / "c.bz2", bz2.compress(b"three"))
    place(folder / "d" / "e" / "x.xz", lzma.compress("vier \u00fc".encode()))
    packed(folder / "e.zip", {"2.txt": "six", "1/1.txt": "five", "__MACOSX/._1.txt": b"\0", ".hidden": b"\0", "f/": ""})
    place(folder / "f.txt", "seven".encode("utf-16"))
    place(folder / ".hidden", b"\0")
    place(folder / ".git" / "config", b"\0")
    assert read(folder).split(PARAGRAPH) == ["one", "two", "three", "vier \u00fc", "five", "six", "seven"]


def test_an_archive_may_hold_several_texts_and_compressed_ones(tmp_path):
    path = packed(tmp_path / "a.zip", {"b.gz": gzip.compress(b"two"), "a": "one", "c/b.gz": bz2.compress(b"three")})
    assert read(path).split(PARAGRAPH) == ["one", "two", "three"]


def test_links_to_folders_are_followed_once(tmp_path):
    folder = tmp_path / "texts"
    place(folder / "a.txt", "one")
    place(tmp_path / "elsewhere" / "b.txt", "two")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder)
    assert sorted(read(folder).split(PARAGRAPH)) == ["one", "two"]


def test_everything_that_cannot_be_read_is_named_at_once(tmp_path):
    folder = tmp_path / "texts"
    place(folder / "good.txt", "one two " * 50)
    place(folder / "latin.txt", "caf\u00e9 noir".encode("latin-1"))
    place(folder / "picture.png", b"\x89PNG\r\n\x1a\n\0\0")
    place(folder / "cut.gz", gzip.compress(os.urandom(2000))[:1000])
    place(folder / "table.parquet", b"PAR1")
    packed(folder / "in.zip", {"a.txt": "one", "b.bin": b"\0\0\0"})
    packed(folder / "none.zip", {})
    os.mkfifo(folder / "pipe")
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError) as error:
        Text("textfile", str(folder), min_count=1).prepare_data()
    said = str(error.value)
    assert said.startswith("8 texts cannot be read: ") and "\n" not in said
    for part in (
        "latin.txt is not UTF-8 text: byte 3 of the text is 0xe9",
        "picture.png is not ",
        "cut.gz is damaged: ",
        "table.parquet is a table: set data.column",
        "in.zip (b.bin) is not text: byte 0 is zero",
        "none.zip must contain a text file",
        "pipe is a pipe or a device",
        "broken cannot be read: No such file",
    ):
        assert part in said, part
    assert "good.txt" not in said
    for path in folder.iterdir():
        if path.name not in ("good.txt",):
            path.unlink()
    data = Text("textfile", str(folder), min_count=1)
    data.prepare_data()
    assert data.corpus.words == ["one", "two"]


def test_an_error_names_ten_texts_and_counts_the_others(tmp_path):
    for i in range(25):
        place(tmp_path / "texts" / f"{i:02}.txt", b"\xff")
    with pytest.raises(DataError, match=r"25 texts cannot be read: .*09.txt is not .*; and 15 more$"):
        read(tmp_path / "texts")


def test_a_saved_encoding_is_of_the_content_the_names_and_the_column(tmp_path):
    """Another file, another order or another column is encoded again. A single file keeps its earlier digest."""
    folder = tmp_path / "texts"
    place(folder / "a.csv", "x,y\none,two\n" * 1)
    before = find_texts(folder).digest
    assert find_texts(folder).digest == before != find_texts(folder, "x").digest
    assert find_texts(folder, "x").digest != find_texts(folder, "y").digest
    (folder / "a.csv").rename(folder / "b.csv")
    assert find_texts(folder).digest != before
    (folder / "b.csv").rename(folder / "a.csv")
    assert find_texts(folder).digest == before
    place(folder / "c.txt", "three")
    assert find_texts(folder).digest != before
    single = place(tmp_path / "one.txt", "one")
    assert find_texts(single).digest == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


# Tables.


def test_one_column_of_a_table_is_read(tmp_path):
    """Cells may hold separators, quotes and line breaks. Each cell ends with the end of a paragraph."""
    rows = 'id,review\r\n1,"good, very ""good"""\r\n\r\n2,"two\nlines"\r\n3,last'
    path = place(tmp_path / "a.csv", rows)
    assert read(path, "review").split(PARAGRAPH) == ['good, very "good"', "two\nlines", "last"]
    assert read(path, "id").split(PARAGRAPH) == ["1", "2", "3"]
    assert read(path) == rows  # without a column, the file is text throughout
    for name, content in {
        "a.tsv": "id\treview\n1\tgood, bad\n",
        "b.csv": "id;review\n1;good, bad\n",
        "c.TSV.gz": gzip.compress(b"review\tid\ngood, bad\t1\n"),
        "d.csv": '\ufeffreview,id\n"good, bad",1\n',
        "e.csv": "id;review\n1;good, bad\n".encode("utf-16"),
    }.items():
        assert read(place(tmp_path / "tables" / name, content), "review") == "good, bad"
    packed(tmp_path / "tables" / "f.zip", {"x.csv": 'review\n"good, bad"\n'})
    assert read(tmp_path / "tables", "review").split(PARAGRAPH) == ["good, bad"] * 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,review\n1,x\n", r"a.csv has no column 'text': set data.column to one of its columns: id, review"),
        ("a.csv", "text,text\n1,x\n", r"a.csv has several columns 'text'"),
        ("a.csv", "", r"a.csv has no column 'text': .*: none"),
        ("a.csv", "id,text\n1,x\n2\n", "a row of 1 cells that ends in line 3, and data.column=text is column 2"),
        ("a.csv", 'id,text\n1,"x\n', "a.csv is no table: line 2: unexpected end of data. Correct this line"),
        ("a.csv", b"id,text\n1,\xe9\n", "a.csv is not UTF-8 text: byte 10 of the text is 0xe9"),
        ("a.txt", "text\nx\n", r"a.txt has no columns: data.column=text needs files in .csv, .tsv, .parquet"),
    ],
)
def test_a_bad_table_is_named(name, content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(place(tmp_path / name, content), "text")


def test_a_parquet_file_is_read_or_names_what_it_needs(tmp_path):
    path = place(tmp_path / "a.parquet", b"PAR1")
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        with pytest.raises(
            DataError, match=r"a Parquet file, which needs the package pyarrow: pip install 'generative-zoo\[parquet\]'"
        ):
            read(path, "text")
        return
    with pytest.raises(DataError, match="a.parquet is damaged"):
        read(path, "text")
    parquet.write_table(arrow.table({"text": ["one", None, "two\nlines"], "id": [1, 2, 3]}), path)
    assert read(path, "text").split(PARAGRAPH) == ["one", "two\nlines"]
    with pytest.raises(DataError, match="no texts in the column 'id', but int64"):
        read(path, "id")
    with pytest.raises(DataError, match="no column 'body': set data.column to one of its columns: text, id"):
        read(path, "body")


def test_a_large_table_is_read_in_pieces(tmp_path, monkeypatch):
    """Reading a table of 12 MB in blocks of 256 kB needs less than half its size."""
    monkeypatch.setattr(text_files, "BLOCK", 1 << 18)
    path = tmp_path / "large.csv.gz"
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        file.write("id,text\n")
        for i in range(200):
            file.write(f"{i},{'word ' * 12_000}\n")
    (text,) = find_texts(path, "text").files
    tracemalloc.start()
    longest = max(map(len, read_column(text)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert longest < 2_000_000 and peak < 6_000_000


# The data module.


def test_a_run_reads_a_column_and_its_record_reads_it_again(tmp_path):
    place(tmp_path / "t" / "a.csv", "id,text\n" + "".join(f"7,one two three {i % 3}\n" for i in range(300)))
    options = {"name": "textfile", "path": str(tmp_path / "t"), "column": "text", "sample": 0.0, "batch_size": 2}
    data = Text(**options)
    data.setup()
    assert set(data.corpus.words) == {"one", "two", "three", "0", "1", "2"}
    assert (data.corpus.splits["train"] == -1).sum() > 200  # each cell is a paragraph
    again = data_of({"config": {"data": options}, "data": "textfile"})
    again.setup()
    assert again.corpus.words == data.corpus.words
    plain = place(tmp_path / "plain.txt", "one two " * 50)
    assert data_of({"config": {"data": options}, "data": "textfile"}, str(plain)).hparams.column is None
    with pytest.raises(ValueError, match=r"data.column='text' must be the name of a column, and needs data=textfile"):
        Text("pydocs", column="text")
    made = load_corpus("textfile", plain, rule="words", min_count=1, max_vocabulary=None)
    assert made.words == ["one", "two"]
