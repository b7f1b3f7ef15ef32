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
import hashlib
import itertools
import logging
import re
import stat
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from zoo.datamodules.files import (
    DAMAGE,
    DataError,
    Missing,
    data_root,
    fetch_missing,
    find_file,
    in_any_capitals,
    locked,
    md5_of,
    unpack,
)
from zoo.training.files import written_whole

log = logging.getLogger(__name__)

BLOCK = 1 << 22  # bytes read at a time
LONGEST = 1 << 25  # characters without white space, at most
BLANK_LINES = re.compile(r"\n\s*\n")
FORMAT = 2  # of what is kept; after a change of it everything is made again


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
FOLDERS = {"text8": ("text8",), "wikitext2": ("wikitext-2", "wikitext2", "wikitext-2-v1")}
# What they are called, without the ending of a packed file. In the archive of all of WikiText-2 it is the last name.
NAMES = {
    "text8": {"all": ("text8", "text8.txt")},
    "wikitext2": {
        "train": ("train.txt", "wiki.train.tokens"),
        "val": ("valid.txt", "wiki.valid.tokens"),
        "test": ("test.txt", "wiki.test.tokens"),
    },
}
ARCHIVES = {"wikitext2": ("wikitext-2-v1",)}
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


def read_text(path: Path, md5: str | None = None, member: str | None = None) -> Iterator[str]:
    """The text of a file in pieces; each ends with a word, and white space begins the next one.

    The text is UTF-8, or what a byte order mark at its beginning says.

    Args:
        path: of the file, plain or packed as :func:`zoo.datamodules.files.unpack` reads it.
        md5: of the text, as bytes; None if it is not published.
        member: the file wanted of a zip archive of several.

    Raises:
        DataError: for a file that cannot be unpacked, is no text, or, after the last piece, has another MD5 than
            ``md5`` inside.
    """
    digest, position, text, block, decode = hashlib.md5(usedforsecurity=False), 0, "", b"begin", None
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, desc=f"reading {path.name}", unit="B", unit_scale=True, disable=None) as bar,
    ):
        try:
            stream = unpack(file, path, member)
            while block:
                block = stream.read(BLOCK)
                digest.update(block)
                if decode is None:
                    encoding = encoding_of(block)
                    decode = codecs.getincrementaldecoder(encoding)().decode
                if encoding == "utf-8-sig" and b"\0" in block:
                    raise DataError(f"{path} is no text: {_nul(block, position)}")
                text += decode(block, final=not block)
                position += len(block)
                bar.update(file.tell() - bar.n)
                # The last word may go on in the next block, and so may the white space before it, or behind it.
                parts = text.rsplit(None, 1)
                piece = text if not block else parts[0] if len(parts) == 2 else ""
                yield piece
                text = text[len(piece) :]
                if len(text) > LONGEST:
                    raise DataError(
                        f"{path} has {LONGEST:,} characters without a space or the end of a line, so words cannot be "
                        "told apart: put spaces between them"
                    )
        except UnicodeDecodeError as error:
            place = (
                position + error.start - (len(error.object) - len(block))
            )  # what was left of the block before counts
            name = encoding.removesuffix("-sig").upper()
            raise DataError(
                f"{path} is not {name} text: {error.object[error.start]:#04x} stands at byte {place:,} of the text. "
                f"Convert it first, for example by iconv -f LATIN1 -t UTF-8 {path} > converted.txt if it is Latin-1"
            ) from error
        except DAMAGE as error:
            wrong = "" if path.suffix in ("", ".txt") else f", or it is no {path.suffix} file and needs another name"
            raise DataError(f"{path} is damaged: {error}{wrong}") from error
    if md5 is not None and digest.hexdigest() != md5:
        raise DataError(
            f"{path} is damaged: it is not the published file. Delete it, or move it away, and it is fetched again."
        )


def encoding_of(begin: bytes) -> str:
    """What the byte order mark at the beginning of a text says, else UTF-8."""
    if begin.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _nul(block: bytes, position: int) -> str:
    """What a zero byte in UTF-8 means, and what to do."""
    place = position + block.index(0)
    if block.count(0) * 3 > len(block) and b"\0\0" not in block:
        return (
            f"every second byte is zero, from byte {place:,} on, as in UTF-16 without a byte order mark. Convert it "
            "first, for example by iconv -f UTF-16LE -t UTF-8"
        )
    return (
        f"a zero byte stands at byte {place:,}, as in binary files and archives. Name a text, or delete the zero bytes "
        "by tr -d '\\000'"
    )


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
    """What :func:`save` wrote, or None if there is nothing, or something else, which is said."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            words = file["words"].tobytes().decode().split("\n")
            corpus = Corpus(words, file["counts"], {k: file[k] for k in SPLITS}, int(file["raw_words"]))
        _check(corpus)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        log.warning("%s cannot be read (%s) and is made again", path, error.strerror)
        return None
    except (*DAMAGE, ValueError, TypeError, KeyError) as error:
        log.warning("%s is damaged (%s) and is made again", path, error)
        return None
    return corpus


def _check(corpus: Corpus) -> None:
    """Refuse arrays that :func:`encode` does not make. Raises ValueError."""
    V = len(corpus.words)
    if V < 2 or len(set(corpus.words)) < V:
        raise ValueError("no vocabulary")
    if corpus.counts.dtype != np.int64 or corpus.counts.shape != (V,) or corpus.counts.min() < 1:
        raise ValueError("counts that are not one for each word")
    for numbers in corpus.splits.values():
        if numbers.dtype != np.int32 or numbers.ndim != 1 or len(numbers) < 2:
            raise ValueError("a split that is no text")
        if numbers.min() < -1 or numbers.max() >= V:
            raise ValueError("numbers of words that are not in the vocabulary")
    if corpus.raw_words < corpus.counts.sum():
        raise ValueError("fewer words than are counted")


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
    with locked(kept.stem) as waited:
        if waited and (corpus := restore(kept)) is not None:
            return corpus
        corpus = _read(pieces, rule, min_count, max_vocabulary, everything)
        try:
            save(corpus, kept)
        except OSError as error:
            log.warning("%s cannot be written (%s): the text will be read again each time", kept, error)
    return corpus


def _read(
    pieces: dict[str, Callable[[], Iterable[str]]],
    rule: str,
    min_count: int,
    max_vocabulary: int | None,
    everything: bool,
) -> Corpus:
    """The text in ``pieces``, as :func:`_sources` gives them, as numbers; see :func:`load_corpus`."""
    index: dict[str, int] = defaultdict(itertools.count().__next__)
    parts = {split: number_words(read(), rule, index) for split, read in pieces.items()}
    if "all" in parts:
        parts = split_off(parts["all"])
    if everything:
        parts["train"] = np.concatenate([parts[split] for split in SPLITS])
    return encode(parts, index, min_count, max_vocabulary)


def check_path(path: Path) -> None:
    """Refuse what is no text file by its kind.

    Raises:
        DataError: saying what it is instead.
    """
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise DataError(f"data.path={path} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(kind):
        raise DataError(f"data.path={path} is a folder: name a file; cat {path}/* > all.txt makes one of several")
    if not stat.S_ISREG(kind):
        raise DataError(
            f"data.path={path} is no file but a pipe or a device, and text is read more than once: write it into a file"
        )


def _sources(name: str, path: Path | None) -> tuple[dict[str, Callable[[], Iterable[str]]], str]:
    """How to read each part, and a word for the content of all."""
    if name == "pydocs":
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[title] for title in sorted(topics))
        return {"all": lambda: [text]}, hashlib.sha256(text.encode()).hexdigest()
    if name == "textfile":
        check_path(path)
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"data.path={path} cannot be read: {error.strerror}") from error
        return {"all": partial(read_text, path)}, content
    files = PUBLISHED[name]
    pieces = {}
    for split, (_, md5) in files.items():
        if (place := _find(name, split)) is None:
            raise DataError(f"{' or '.join(NAMES[name][split])} of {name} is not in {data_root() / FOLDERS[name][0]}")
        pieces[split] = partial(read_text, place.path, md5, place.member)
    return pieces, " ".join(md5 for _, md5 in files.values())


class Place(NamedTuple):
    """A file, and if it is an archive of several, which of them."""

    path: Path
    member: str | None = None


def _find(name: str, split: str) -> Place | None:
    """Where a published text lies, under any of its names, packed or not, or in the archive of all."""
    own = [folder for entry in FOLDERS[name] if (folder := in_any_capitals(data_root() / entry)) is not None]
    # In the folder of all data, only what is called by no other text's name.
    general = [published for published in NAMES[name][split] if published not in ("train.txt", "valid.txt", "test.txt")]
    found = itertools.chain(find_file(own, NAMES[name][split]), find_file([data_root()], general))
    if (path := next(found, None)) is not None:
        return Place(path)
    archives = find_file([*own, data_root()], ARCHIVES.get(name, ()))
    return next((Place(path, NAMES[name][split][-1]) for path in archives), None)


def fetch(name: str) -> None:
    """Have the published files of ``name``: nothing to do where they are, else download and verify them.

    Raises:
        DataError: if they are not there and cannot be downloaded.
    """
    folder = data_root() / FOLDERS[name][0]

    def missing() -> list[Missing]:
        return [
            Missing(
                folder / address.rpartition("/")[2],
                [address],
                lambda path, md5=md5: md5_of(path, unpacked=True) == md5,
            )
            for split, (address, md5) in PUBLISHED[name].items()
            if _find(name, split) is None
        ]

    files = ", ".join(address.rpartition("/")[2] for address, _ in PUBLISHED[name].values())
    also = f", or {ARCHIVES[name][0]}.zip," if name in ARCHIVES else ""
    remedy = (
        f"Put {files}{also} there (ZOO_DATA names another folder than data/), connect to the network, or use the text "
        "that needs no download: data=pydocs"
    )
    fetch_missing(name, missing, remedy)
