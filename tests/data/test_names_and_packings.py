"""Tests of data files with other names, other compressions, missing parts, or content that is not text."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import socket
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from zoo.datamodules import DataError, Images, Text, corpus, images, text_files
from zoo.datamodules.corpus import load_corpus, restore
from zoo.datamodules.images import load_split


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """Return an empty data folder, and refuse all network connections."""

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def zipped(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zip": lambda content: zipped(("inside", content)),
}


def place(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Texts.

STORY = "the cat sat\nthe caf\u00e9\n\na dog\n" * 20


def words_of(path: Path, **options) -> list[str]:
    made = load_corpus("textfile", path, rule="words", min_count=1, max_vocabulary=None, **options)
    return sorted(made.words)


EXPECTED = ["a", "caf\u00e9", "cat", "dog", "sat", "the"]


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("name", ["own", "capitals", "none", "txt"])
def test_a_text_is_unpacked_whatever_its_ending(packing, name, tmp_path):
    names = {"own": f"a.txt{packing}", "capitals": f"A.TXT{packing.upper()}", "none": "a", "txt": "a.txt"}
    path = place(tmp_path / names[name], PACK[packing](STORY.encode()))
    assert words_of(path) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_obeyed_and_lines_may_end_as_on_windows(encoding, tmp_path):
    text = STORY.replace("\n", "\r\n")
    path = place(tmp_path / "a.txt", text.encode(encoding))
    assert words_of(path) == EXPECTED
    ends = lambda path: int((restore_of(path).splits["train"] < 0).sum())  # noqa: E731
    assert ends(path) == ends(place(tmp_path / "b.txt", STORY.encode())) == 18


def restore_of(path: Path):
    return load_corpus("textfile", path, rule="words", min_count=1, max_vocabulary=None)


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("inside.txt")
        info.size = len(STORY.encode())
        archive.addfile(info, io.BytesIO(STORY.encode()))
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(97, 123, 3_000, dtype=np.uint8).tobytes()

# For each file name: the content of the file, and a pattern of the error message.
REFUSED = {
    "cut.gz": (cut(gzip.compress(NOISE)), "cut.gz is damaged: Compressed file ended"),
    "cut.bz2": (cut(bz2.compress(NOISE)), "cut.bz2 is damaged: Compressed file ended"),
    "cut.xz": (cut(lzma.compress(NOISE)), "cut.xz is damaged: Compressed file ended"),
    "cut.zip": (cut(zipped(("a", NOISE))), "cut.zip is damaged: File is not a zip file"),
    "plain.gz": (
        STORY.encode(),
        "plain.gz is damaged: Not a gzipped file .* If it is not a .gz file, rename it",
    ),
    "plain.BZ2": (STORY.encode(), "plain.BZ2 is damaged: Invalid data stream. If it is not a .BZ2 file"),
    "a.zst": (b"\x28\xb5\x2f\xfd" + STORY.encode(), "a.zst is a .zst file, which cannot be read: decompress it"),
    "zstd.txt": (b"\x28\xb5\x2f\xfd" + STORY.encode(), "zstd.txt is a .zst file, which cannot be read: decompress it"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c" + STORY.encode(), "a.7z is a .7z file, which cannot be read"),
    "a.tar": (tar(), "a.tar is not text: byte 10 is zero, as in binary files and archives"),
    "a.tar.gz": (gzip.compress(tar()), "a.tar.gz is not text: byte 10 is zero"),
    "nul.txt": (b"one two\0three", r"nul.txt is not text: byte 7 is zero.*tr -d '\\000'"),
    "utf16.txt": (STORY.encode("utf-16-le"), "utf16.txt is not text: .*every second byte .*UTF-16 without .*iconv"),
    "latin.txt": (
        STORY.encode("latin-1"),
        "latin.txt is not UTF-8 text: byte 19 of the text is 0xe9.*iconv -f LATIN1",
    ),
    "half.txt": (STORY.encode("utf-16")[:-1], "half.txt is not UTF-16 text"),
    "picture.png": (b"\x89PNG\r\n\x1a\n\0\0", "picture.png is not text: byte|is not UTF-8 text"),
    "two.docx": (zipped(("a", b"one"), ("b", b"two")), "two.docx must contain one file, but contains 2: unzip it"),
    "none.zip": (zipped(), "none.zip must contain a text file, but contains none"),
    "empty.txt": (b"", "the vocabulary has 0 words, because .* min_count=1 times in the training text of 0 words"),
    "empty.gz": (b"", "the training text of 0 words"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_is_named_in_one_line_with_what_to_do(name, tmp_path):
    content, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as error:
        words_of(place(tmp_path / name, content))
    assert "\n" not in str(error.value)


def test_what_a_mac_adds_to_an_archive_does_not_count(tmp_path):
    content = zipped(("a.txt", STORY.encode()), ("__MACOSX/._a.txt", b"\0\1"))
    assert words_of(place(tmp_path / "a.zip", content)) == EXPECTED


def test_one_line_is_read_however_long_if_it_has_spaces(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK", 64)
    monkeypatch.setattr(text_files, "LONGEST", 200)
    assert words_of(place(tmp_path / "a.txt", STORY.replace("\n", " ").encode() * 9)) == EXPECTED
    with pytest.raises(DataError, match="has 200 characters without a space or a line break"):
        words_of(place(tmp_path / "a.txt", b"x" * 500))


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for path, message in {
        tmp_path / "empty": f"data.path={tmp_path}/empty is a folder without files",
        tmp_path / "pipe": "is a pipe or a device",
        Path("/dev/null"): "data.path=/dev/null is a pipe or a device",
        tmp_path / "gone": "data.path=.*gone cannot be read: No such file",
    }.items():
        with pytest.raises(DataError, match=message):
            Text("textfile", str(path)).prepare_data()


# Saved encodings of texts.


@pytest.fixture
def kept(tmp_path, data):
    """Return a text file, its corpus, and the file of its saved encoding."""
    path = place(tmp_path / "text.txt", b"one two three " * 50)
    made = restore_of(path)
    (file,) = (data / "encoded").iterdir()
    return path, made, file


def arrays(made) -> dict[str, np.ndarray]:
    words = np.frombuffer("\n".join(made.words).encode(), np.uint8)
    return {"words": words, "counts": made.counts, "raw_words": np.array(made.raw_words), **made.splits}


# For each damage: the arrays of the saved encoding that it replaces.
DAMAGES = {
    "a word too few": {"words": np.frombuffer(b"one\ntwo", np.uint8)},
    "a word twice": {"words": np.frombuffer(b"one\none\ntwo", np.uint8)},
    "no count": {"counts": np.array([0, 150, 150])},
    "other numbers": {"counts": np.array([0.5, 150, 150])},
    "a number of no word": {"val": np.array([0, 3, 1], np.int32)},
    "a number below": {"test": np.array([0, -2, 1], np.int32)},
    "longer numbers": {"train": np.array([0, 1, 2])},
    "a table": {"train": np.zeros((2, 2), np.int32)},
    "nothing": {"train": np.zeros(0, np.int32)},
    "fewer words than counted": {"raw_words": np.array(3)},
    "what is pickled": {"words": np.array([{"a": 1}], dtype=object)},
    "another shape": {"raw_words": np.array([3, 4])},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_kept_of_a_text_is_not_trusted_if_it_cannot_be_right(damage, kept, caplog):
    path, made, file = kept
    before = file.read_bytes()
    np.savez(file, **arrays(made) | DAMAGES[damage])
    assert restore(file) is None and caplog.text.count("is damaged") == 1
    again = restore_of(path)
    assert again.words == made.words and file.read_bytes() == before


def test_a_saved_text_that_is_incomplete_or_something_else_is_encoded_again(kept, caplog):
    path, made, file = kept
    before = file.read_bytes()
    one_array, without = io.BytesIO(), io.BytesIO()
    np.save(one_array, made.counts)
    np.savez(without, **{name: value for name, value in arrays(made).items() if name != "val"})
    garbled = before[:200] + bytes(20) + before[220:]
    for content in (b"", before[:-50], b"text", one_array.getvalue(), without.getvalue(), garbled):
        file.write_bytes(content)
        assert restore_of(path).words == made.words and "is damaged" in caplog.text
        assert file.read_bytes() == before
        caplog.clear()
    file.unlink()
    file.mkdir()
    assert restore_of(path).words == made.words and "cannot be written" in caplog.text


# Images.


@pytest.fixture
def black(monkeypatch):
    """Replace MNIST and Fashion-MNIST by small data sets with other digests and the same file names."""
    sets = {}
    for grey, name in enumerate(("mnist", "fashion_mnist")):
        big = {"train-images-idx3-ubyte": [60, 2, 2], "t10k-images-idx3-ubyte": [10, 2, 2]}
        dims = big | {"train-labels-idx1-ubyte": [60], "t10k-labels-idx1-ubyte": [10]}
        sets[name] = {
            file: bytes([0, 0, 8, len(n)]) + b"".join(d.to_bytes(4, "big") for d in n) + bytes([grey]) * int(np.prod(n))
            for file, n in dims.items()
        }
        order = {file: hashlib.md5(sets[name][file]).hexdigest() for file in images.MD5[name]}
        monkeypatch.setitem(images.MD5, name, order)
    monkeypatch.setattr(images, "shuffled", lambda split, sizes: [split, split])
    return sets


FOLDERS = {
    "mnist": ["MNIST/raw", "MNIST", "mnist/raw", "mnist", "Mnist/Raw", "."],
    "fashion_mnist": ["FashionMNIST/raw", "fashion-mnist", "Fashion_MNIST/raw", "fashionmnist", "."],
}
SPELLINGS = {
    "published": lambda name: name,
    "with a point": lambda name: name.replace("-idx", ".idx"),
    "capitals": str.upper,
    "point and capitals": lambda name: name.replace("-idx", ".idx").title(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("name", "folder"), [(name, folder) for name in FOLDERS for folder in FOLDERS[name]])
def test_images_are_found_under_every_published_name(name, folder, spelling, black, data):
    for packing, (file, content) in zip(("", ".gz", ".bz2", ".zip"), black[name].items(), strict=True):
        place(data / folder / f"{SPELLINGS[spelling](file)}{packing}", PACK[packing](content))
    Images(name).prepare_data()
    splits = load_split(name, data)
    assert len(splits["test"].images) == 10 and splits["test"].images.max() == (name == "fashion_mnist")


def test_of_two_data_sets_with_files_of_one_name_each_is_itself(black, data):
    for file, content in black["mnist"].items():
        place(data / file, content)
    with pytest.raises(DataError, match="fashion_mnist is not in"):
        Images("fashion_mnist").prepare_data()
    for file, content in black["fashion_mnist"].items():
        place(data / "fashion-mnist" / file, content)
    for grey, name in enumerate(("mnist", "fashion_mnist")):
        Images(name).prepare_data()
        assert load_split(name, data)["test"].images.max() == grey


def test_digests_are_as_strict_under_every_name(black, data):
    for folder in ("MNIST", "."):
        for file, content in black["mnist"].items():
            place(data / folder / file.replace("-idx", ".idx"), content)
        wrong = place(data / folder / "t10k-labels.idx1-ubyte", b"something else")
        Images("mnist").prepare_data()  # a damaged file is not downloaded again
        with pytest.raises(DataError, match="t10k-labels.idx1-ubyte is damaged: it is not the published file"):
            load_split("mnist", data)
        for path in wrong.parent.iterdir():
            if path.is_file():
                path.unlink()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_what_is_missing_is_named_with_its_place(name, data):
    with pytest.raises(DataError) as error:
        Images(name).prepare_data()
    for file in getattr(torchvision.datasets, images.FOLDERS[name]).resources:
        assert file[0] in str(error.value)
    assert str(data / images.FOLDERS[name] / "raw") in str(error.value)


# Published texts.


@pytest.mark.parametrize(
    "place_of",
    ["text8/text8.zip", "text8", "text8.gz", "TEXT8.ZIP", "Text8/text8", "text8/text8.txt", "text8/text8.bz2"],
)
def test_text8_is_found_under_every_published_name(place_of, data, monkeypatch):
    text = b" anarchism originated as a term" * 40
    published = {"all": (corpus.PUBLISHED["text8"]["all"][0], hashlib.md5(text).hexdigest())}
    monkeypatch.setitem(corpus.PUBLISHED, "text8", published)
    place(data / place_of, PACK[Path(place_of).suffix.lower().replace(".txt", "")](text))
    made = Text("text8", min_count=1, sample=0, batch_size=1)
    made.setup()
    assert made.used == "text8" and set(made.corpus.words) == set(text.decode().split())
    place(data / place_of, b"something else")
    for file in (data / "encoded").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="is damaged"):
        Text("text8_or_pydocs", min_count=1).prepare_data()


WIKITEXT2 = ["wikitext-2/{}.txt", "WikiText-2/wiki.{}.tokens", "wikitext-2-v1/wiki.{}.tokens", "wiki.{}.tokens"]
WIKITEXT2 += ["wikitext-2-v1.zip", "wikitext-2/wikitext-2-v1.zip", "WikiText-2-v1.ZIP"]


@pytest.mark.parametrize("layout", WIKITEXT2)
def test_wikitext_is_found_under_every_published_name(layout, data, monkeypatch):
    names, published, files = {"train": "train", "val": "valid", "test": "test"}, {}, {}
    for split, (address, _) in corpus.PUBLISHED["wikitext2"].items():
        files[names[split]] = f" = A = \n \n The <unk> of {split} . \n".encode() * 40
        published[split] = (address, hashlib.md5(files[names[split]]).hexdigest())
    monkeypatch.setitem(corpus.PUBLISHED, "wikitext2", published)
    if layout.lower().endswith(".zip"):
        content = zipped(*((f"wikitext-2/wiki.{name}.tokens", text) for name, text in files.items()))
        place(data / layout, content)
    else:
        for name, text in files.items():
            place(data / layout.format(name), text)
    made = Text("wikitext2", min_count=2, batch_size=1, sample=0)
    made.setup()
    assert {"train", "The", "<unk>"} <= set(made.corpus.words)


def test_a_train_txt_among_all_data_is_not_taken_for_wikitext(data):
    for name in ("train.txt", "valid.txt", "test.txt"):
        place(data / name, b"a text of the user's own")
    with pytest.raises(DataError, match=r"wikitext2 is not in .*wikitext-2.* Put train.txt, valid.txt, test.txt, or"):
        Text("wikitext2").prepare_data()
