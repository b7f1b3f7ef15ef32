"""Text as arrays of whole numbers, in one pass over a stream: text8, WikiText-2, any file, Python's own documentation.

    text    -> words        runs of letters and digits in lower case, or whatever stands between white space
    words   -> vocabulary   those seen often enough in the training text, the most frequent first
    words   -> numbers      their places in the vocabulary; other words are left out, as word2vec does, and those
                            beside them become neighbours
    blank lines -> gaps     the number -1, where a paragraph ends: no window reaches over one

The training text is the first 90 % of the words, then 5 % each are for validation and test, as is usual with text8;
WikiText-2 comes split. What has been made of a text is kept in ``encoded/`` beside the data, named by what the text and
the options are, and read from there the next time.
"""

import codecs
import gzip
import hashlib
import itertools
import logging
import lzma
import re
import sys
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from zoo.datamodules.files import DataError, data_root, download
from zoo.training.files import reachable, written_whole

log = logging.getLogger(__name__)

BLOCK = 1 << 22  # bytes read at a time
BLANK_LINES = re.compile(r"\n\s*\n")
FORMAT = 2  # of what is kept; a change of it makes everything anew


@cache
def _pattern(ascii: bool) -> re.Pattern[str]:
    """Runs of letters and digits, with apostrophes inside; beyond ASCII with the marks that letters carry, too."""
    if ascii:
        letter = "[^\\W_]"
    else:  # vowel signs and accents are no letters to re: é as e and U+0301, or most of Hindi
        marks = (chr(i) for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i))[0] == "M")
        letter = f"(?:[^\\W_][{''.join(marks)}]*)"
    return re.compile(rf"{letter}+(?:['\u2019]{letter}+)*")


def find_words(text: str) -> list[str]:
    """The words of ``text`` in lower case, accents composed with their letters where Unicode can."""
    text = text.lower()
    return _pattern(text.isascii()).findall(unicodedata.normalize("NFC", text))


RULES: dict[str, Callable[[str], list[str]]] = {"words": find_words, "as_spaced": str.split}

WIKITEXT2 = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
# Of each file: where it is had from, what it is called there, and the MD5 of the text inside.
PUBLISHED = {
    "text8": {"all": ("https://mattmahoney.net/dc/text8.zip", "3bea1919949baf155f99411df5fada7e")},
    "wikitext2": {
        "train": (f"{WIKITEXT2}/train.txt", "34a77ebe59551b3a3b3d8c0a2797c976"),
        "val": (f"{WIKITEXT2}/valid.txt", "d756d22ab2310e7e60c094bea5c5a8eb"),
        "test": (f"{WIKITEXT2}/test.txt", "781c9418ab9414bd09e4aad825aae752"),
    },
}
FOLDERS = {"text8": "text8", "wikitext2": "wikitext-2"}
SPLITS = ("train", "val", "test")


class Corpus(NamedTuple):
    """A text as numbers.

    words: the vocabulary, V words, the most frequent of the training text first, ties by the alphabet.
    counts: how often each is in the training text, (V,) int64.
    splits: of ``train``, ``val`` and ``test`` each the words' numbers, (n,) int32, and -1 where a paragraph ends.
    raw_words: of the training text, those outside the vocabulary too.
    """

    words: list[str]
    counts: np.ndarray
    splits: dict[str, np.ndarray]
    raw_words: int


# Reading.


def unpack(file: BinaryIO, path: Path) -> BinaryIO:
    """The bytes of an open file, unpacked if the name of ``path`` ends in .gz, .xz or .zip."""
    if path.suffix == ".gz":
        return gzip.open(file)
    if path.suffix == ".xz":
        return lzma.open(file)
    if path.suffix != ".zip":
        return file
    archive = zipfile.ZipFile(file)
    inside = [name for name in archive.namelist() if not name.endswith("/")]
    if len(inside) != 1:
        raise DataError(f"{path} must hold one file and holds {len(inside)}: unpack it, and name the text itself")
    return archive.open(inside[0])


def read_text(path: Path, md5: str | None = None) -> Iterator[str]:
    """The text of a UTF-8 file in pieces; each ends with a word, and white space begins the next one.

    Raises:
        DataError: for a file that cannot be unpacked, is not UTF-8, or, after the last piece, has another MD5 than
            ``md5`` inside.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    digest, position, text, block = hashlib.md5(usedforsecurity=False), 0, "", b"begin"
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, desc=f"reading {path.name}", unit="B", unit_scale=True, disable=None) as bar,
    ):
        try:
            stream = unpack(file, path)
            while block:
                block = stream.read(BLOCK)
                digest.update(block)
                text += decode(block, final=not block)
                position += len(block)
                bar.update(file.tell() - bar.n)
                # The last word may go on in the next block, and so may the white space before it, or behind it.
                parts = text.rsplit(None, 1)
                piece = text if not block else parts[0] if len(parts) == 2 else ""
                yield piece
                text = text[len(piece) :]
        except UnicodeDecodeError as error:
            place = (
                position + error.start - (len(error.object) - len(block))
            )  # what was left of the block before counts
            raise DataError(
                f"{path} is not UTF-8 text: {error.object[error.start]:#04x} stands at byte {place:,} of the text. "
                "Convert it first, for example with iconv"
            ) from error
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{path} is damaged: {error}") from error  # RuntimeError: an archive with a password
    if md5 is not None and digest.hexdigest() != md5:
        raise DataError(f"{path} is damaged: it is not the published file. Delete it, and it is fetched again.")


# Encoding.


def number_words(pieces: Iterable[str], rule: str, index: dict[str, int]) -> np.ndarray:
    """The text as numbers of words in the order in which they first come, -1 where a paragraph ends; (n,) int32.

    Args:
        pieces: of the text, as :func:`read_text` gives them.
        rule: what a word is, one of ``RULES``.
        index: a defaultdict of words and their numbers, which grows.
    """
    blocks = []
    for piece in pieces:
        numbers = []
        for i, paragraph in enumerate(BLANK_LINES.split(piece)):
            if i:
                numbers.append(-1)
            numbers += map(index.__getitem__, RULES[rule](paragraph))
        blocks.append(np.array(numbers, np.int32))
    return np.concatenate(blocks) if blocks else np.empty(0, np.int32)


def split_off(numbers: np.ndarray) -> dict[str, np.ndarray]:
    """The first 90 % of the words, the next 5 % and the last 5 %."""
    places = np.flatnonzero(numbers >= 0)
    cuts = [int(places[len(places) * part // 100]) for part in (90, 95)] if len(places) else [0, 0]
    return dict(zip(SPLITS, np.split(numbers, cuts), strict=True))


def encode(parts: dict[str, np.ndarray], index: dict[str, int], min_count: int, max_vocabulary: int | None) -> Corpus:
    """Number words by their frequency in the training text, and leave out the others.

    Args:
        parts: as :func:`number_words` gives them, for each of ``SPLITS``.
        index: of their words.
        min_count: how often a word of the vocabulary is in the training text, at least.
        max_vocabulary: words of the vocabulary, at most; None for no such limit.

    Raises:
        DataError: if fewer than two words are left, or none of a split.
    """
    spelling = list(index)
    train = parts["train"]
    counts = np.bincount(train[train >= 0], minlength=len(spelling))
    often = sorted(np.flatnonzero(counts >= min_count).tolist(), key=lambda i: (-counts[i], spelling[i]))
    often = often[:max_vocabulary]
    if len(often) < 2:
        raise DataError(
            f"of the {int(counts.sum()):,} words of the training text {len(often)} come min_count={min_count} times or "
            "more, and a vocabulary has at least two words: take more text, or a lower min_count. (Words are what "
            "stands between spaces and punctuation; a language without them has to be cut into words first.)"
        )
    new = np.full(len(spelling) + 1, -2, np.int32)
    new[often] = np.arange(len(often), dtype=np.int32)
    new[-1] = -1  # where the end of a paragraph points
    splits = {}
    for split, numbers in parts.items():
        known = new[numbers]
        known = known[known > -2]
        gap = known == -1
        splits[split] = known[~(gap & np.roll(gap, 1))]  # one is enough
        if (splits[split] >= 0).sum() < 2:
            raise DataError(
                f"the {split} part of the text has fewer than two words of the vocabulary: take more text, or a lower "
                "min_count"
            )
    return Corpus([spelling[i] for i in often], counts[often], splits, int(counts.sum()))


# Keeping.


def save(corpus: Corpus, path: Path) -> None:
    """Write ``corpus`` whole or not at all. Raises OSError if it cannot be written."""
    words = np.frombuffer("\n".join(corpus.words).encode(), np.uint8)
    with written_whole(path) as file:
        np.savez(file, words=words, counts=corpus.counts, raw_words=corpus.raw_words, **corpus.splits)


def restore(path: Path) -> Corpus | None:
    """What :func:`save` wrote, or None if there is nothing, or something else."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            words = file["words"].tobytes().decode().split("\n")
            corpus = Corpus(words, file["counts"], {k: file[k] for k in SPLITS}, int(file["raw_words"]))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("%s is damaged (%s) and is made anew", path, error)
        return None
    return corpus


def load_corpus(
    name: str,
    path: Path | None = None,
    *,
    rule: str,
    min_count: int,
    max_vocabulary: int | None,
    everything: bool = False,
) -> Corpus:
    """The text ``name`` as numbers, from what was kept of it, or read now and kept.

    Args:
        name: ``text8``, ``wikitext2``, ``pydocs``, or ``textfile``, which is ``path``.
        path: of the text file.
        rule: what a word is, one of ``RULES``.
        min_count, max_vocabulary: see :func:`encode`.
        everything: whether the training text is all of it, validation and test too, which then are not held out.

    Raises:
        DataError: for text that is not there, cannot be read, or has too few words.
    """
    pieces, content = _sources(name, path)
    options = f"{FORMAT} {content} {rule} {min_count} {max_vocabulary} {everything}"
    kept = data_root() / "encoded" / f"{name}-{hashlib.sha256(options.encode()).hexdigest()[:16]}.npz"
    if (corpus := restore(kept)) is not None:
        return corpus
    index: dict[str, int] = defaultdict(itertools.count().__next__)
    parts = {split: number_words(read(), rule, index) for split, read in pieces.items()}
    if "all" in parts:
        parts = split_off(parts["all"])
    if everything:
        parts["train"] = np.concatenate([parts[split] for split in SPLITS])
    corpus = encode(parts, index, min_count, max_vocabulary)
    try:
        save(corpus, kept)
    except OSError as error:
        log.warning("%s cannot be written (%s): the text will be read anew each time", kept, error)
    return corpus


def _sources(name: str, path: Path | None) -> tuple[dict[str, Callable[[], Iterable[str]]], str]:
    """How to read each part, and a word for the content of all."""
    if name == "pydocs":
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[title] for title in sorted(topics))
        return {"all": lambda: [text]}, hashlib.sha256(text.encode()).hexdigest()
    if name == "textfile":
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"data.path={path} cannot be read: {error.strerror}") from error
        return {"all": partial(read_text, path)}, content
    files = PUBLISHED[name]
    return (
        {split: partial(read_text, _find(name, address), md5) for split, (address, md5) in files.items()},
        " ".join(md5 for _, md5 in files.values()),
    )


def _find(name: str, address: str) -> Path | None:
    """Where the published file lies, under its own name or packed or unpacked."""
    own = data_root() / FOLDERS[name] / address.rpartition("/")[2]
    plain = own.with_suffix("") if own.suffix == ".zip" else own
    choices = [own, plain, *(plain.with_name(plain.name + suffix) for suffix in (".gz", ".xz", ".zip"))]
    return next((choice for choice in choices if choice.is_file()), None)


def fetch(name: str) -> None:
    """Have the published files of ``name``: nothing to do where they are, else download them.

    Raises:
        DataError: if they are not there and cannot be downloaded.
    """
    missing = [address for address, _ in PUBLISHED[name].values() if _find(name, address) is None]
    if not missing:
        return
    folder = data_root() / FOLDERS[name]
    wanted = f"{name} is not in {folder} and cannot be downloaded"
    remedy = (
        f"Put {', '.join(address.rpartition('/')[2] for address in missing)} there (ZOO_DATA names another folder than "
        "data/), connect to the network, or use the text that needs no download: data=pydocs"
    )
    if not reachable(missing):
        raise DataError(f"{wanted}: its host does not answer. {remedy}.")
    try:
        for address in missing:
            download(address, folder / address.rpartition("/")[2])
    except OSError as error:
        raise DataError(f"{wanted}: {error}. {remedy}.") from error
