"""Encode a text as arrays of integers: text8, WikiText-2, text files, or Python's documentation.

    text    -> words        runs of letters and digits in lower case, or any text between white space
    words   -> vocabulary   words that are frequent enough in the training text, most frequent first
    words   -> numbers      the index of each word in the vocabulary. Words outside the vocabulary are removed, as in
                            word2vec. The words before and after a removed word become neighbours
    blank lines -> gaps     the number -1 at the end of a paragraph; no window crosses it

The training text is the first 90 % of the words. Validation and test have 5 % each, as is usual for text8. WikiText-2
comes with its own split. The encoded text is saved as a file in ``encoded/`` in the data folder. Later runs read this
file. The name of the file contains a hash of the text and the options.
"""

import hashlib
import itertools
import logging
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.datamodules.files import (
    READ_ERRORS,
    DataError,
    Missing,
    data_root,
    fetch_missing,
    find_file,
    ignoring_case,
    locked,
    md5_of,
)
from zoo.datamodules.text_files import find_texts, read_text, read_texts
from zoo.training.files import atomic_write

log = logging.getLogger(__name__)

BLANK_LINES = re.compile(r"\n\s*\n")
FORMAT = 2  # version of the encoded files; a new version makes the program encode every text again


@cache
def _pattern(ascii: bool) -> re.Pattern[str]:
    """Return the pattern of a word: letters and digits, with single apostrophes between them.

    Unless ``ascii`` is true, letters can have combining accents and vowel signs.
    """
    if ascii:
        letter = "[^\\W_]"
    else:  # for re, combining accents (U+0301 in é) and vowel signs (in Hindi) are no letters
        marks = (chr(i) for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i))[0] == "M")
        letter = f"(?:[^\\W_][{''.join(marks)}]*)"
    return re.compile(rf"{letter}+(?:['\u2019]{letter}+)*")


def find_words(text: str) -> list[str]:
    """Return the words of ``text`` in lower case, in the normal form NFC of Unicode."""
    text = text.lower()
    return _pattern(text.isascii()).findall(unicodedata.normalize("NFC", text))


RULES: dict[str, Callable[[str], list[str]]] = {"words": find_words, "as_spaced": str.split}

WIKITEXT2 = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
# For each split: the address of the file, and the MD5 digest of the decompressed text.
PUBLISHED = {
    "text8": {"all": ("https://mattmahoney.net/dc/text8.zip", "3bea1919949baf155f99411df5fada7e")},
    "wikitext2": {
        "train": (f"{WIKITEXT2}/train.txt", "34a77ebe59551b3a3b3d8c0a2797c976"),
        "val": (f"{WIKITEXT2}/valid.txt", "d756d22ab2310e7e60c094bea5c5a8eb"),
        "test": (f"{WIKITEXT2}/test.txt", "781c9418ab9414bd09e4aad825aae752"),
    },
}
FOLDERS = {"text8": ("text8",), "wikitext2": ("wikitext-2", "wikitext2", "wikitext-2-v1")}
# File names of each split, without the ending of a compressed file. The archive of WikiText-2 uses the last name.
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
    """A text encoded as numbers.

    Attributes:
        words: the vocabulary of V words, most frequent first. Equally frequent words are in alphabetical order.
        counts: occurrences of each word in the training text, (V,) int64.
        splits: for ``train``, ``val`` and ``test``, the numbers of the words, and -1 at the end of a paragraph; (n,)
            int32.
        raw_words: number of words in the training text, including words outside the vocabulary.
    """

    words: list[str]
    counts: np.ndarray
    splits: dict[str, np.ndarray]
    raw_words: int


# Encoding.


def number_words(pieces: Iterable[str], rule: str, index: dict[str, int]) -> np.ndarray:
    """Return the text as numbers of words, and -1 at the end of a paragraph; (n,) int32.

    Words are numbered in the order in which they first occur.

    Args:
        pieces: pieces of the text, as from :func:`read_text`.
        rule: rule that splits the text into words, a key of ``RULES``.
        index: defaultdict from words to their numbers. The function adds new words.
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
    """Split a text into the first 90 % of the words for training, 5 % for validation, and 5 % for the test."""
    places = np.flatnonzero(numbers >= 0)
    cuts = [int(places[len(places) * part // 100]) for part in (90, 95)] if len(places) else [0, 0]
    return dict(zip(SPLITS, np.split(numbers, cuts), strict=True))


def encode(parts: dict[str, np.ndarray], index: dict[str, int], min_count: int, max_vocabulary: int | None) -> Corpus:
    """Choose the vocabulary, number its words by frequency in the training text, and remove all other words.

    Args:
        parts: the numbers from :func:`number_words` for each split of ``SPLITS``.
        index: numbers of the words in ``parts``.
        min_count: smallest number of times that a word of the vocabulary occurs in the training text.
        max_vocabulary: largest number of words in the vocabulary, or None for no limit.

    Raises:
        DataError: if the vocabulary or a split has fewer than two words.
    """
    spelling = list(index)
    train = parts["train"]
    counts = np.bincount(train[train >= 0], minlength=len(spelling))
    often = sorted(np.flatnonzero(counts >= min_count).tolist(), key=lambda i: (-counts[i], spelling[i]))
    often = often[:max_vocabulary]
    if len(often) < 2:
        raise DataError(
            f"the vocabulary has {len(often)} words, because no others occur at least min_count={min_count} times in "
            f"the training text of {int(counts.sum()):,} words. It needs at least 2: use a longer text, or a lower "
            "min_count. (Spaces and punctuation separate words. In a language without them, insert spaces first.)"
        )
    new = np.full(len(spelling) + 1, -2, np.int32)
    new[often] = np.arange(len(often), dtype=np.int32)
    new[-1] = -1  # index -1 is the end of a paragraph
    splits = {}
    for split, numbers in parts.items():
        known = new[numbers]
        known = known[known > -2]
        gap = known == -1
        splits[split] = known[~(gap & np.roll(gap, 1))]  # keep one of several consecutive gaps
        if (splits[split] >= 0).sum() < 2:
            raise DataError(
                f"the {split} part of the text has fewer than two words of the vocabulary: use a longer text, or a "
                "lower min_count"
            )
    return Corpus([spelling[i] for i in often], counts[often], splits, int(counts.sum()))


# Saving.


def save(corpus: Corpus, path: Path) -> None:
    """Write ``corpus`` to ``path``, completely or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    words = np.frombuffer("\n".join(corpus.words).encode(), np.uint8)
    with atomic_write(path) as file:
        np.savez(file, words=words, counts=corpus.counts, raw_words=corpus.raw_words, **corpus.splits)


def restore(path: Path) -> Corpus | None:
    """Return the corpus that :func:`save` wrote, or None if the file is missing or damaged.

    If the file exists but cannot be used, the function logs a warning.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            words = file["words"].tobytes().decode().split("\n")
            corpus = Corpus(words, file["counts"], {k: file[k] for k in SPLITS}, int(file["raw_words"]))
        _check(corpus)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        log.warning("%s cannot be read (%s): the text is encoded again", path, error.strerror)
        return None
    except (*READ_ERRORS, ValueError, TypeError, KeyError) as error:
        log.warning("%s is damaged (%s): the text is encoded again", path, error)
        return None
    return corpus


def _check(corpus: Corpus) -> None:
    """Raise ValueError if :func:`encode` cannot have made these arrays."""
    V = len(corpus.words)
    if V < 2 or len(set(corpus.words)) < V:
        raise ValueError("the vocabulary has repeated words, or fewer than two")
    if corpus.counts.dtype != np.int64 or corpus.counts.shape != (V,) or corpus.counts.min() < 1:
        raise ValueError("the counts do not match the vocabulary")
    for numbers in corpus.splits.values():
        if numbers.dtype != np.int32 or numbers.ndim != 1 or len(numbers) < 2:
            raise ValueError("a split is not an array of word numbers")
        if numbers.min() < -1 or numbers.max() >= V:
            raise ValueError("a split has word numbers outside the vocabulary")
    if corpus.raw_words < corpus.counts.sum():
        raise ValueError("the number of words is smaller than the sum of the counts")


def load_corpus(
    name: str,
    path: Path | None = None,
    *,
    column: str | None = None,
    rule: str,
    min_count: int,
    max_vocabulary: int | None,
    everything: bool = False,
) -> Corpus:
    """Return the encoded text ``name``. Read its saved encoding, or encode the text and save the result.

    Args:
        name: ``text8``, ``wikitext2``, ``pydocs``, or ``textfile`` for the file or folder at ``path``.
        path: path of the text file, or of a folder of text files.
        column: name of the column with the texts, if the files are tables.
        rule: rule that splits the text into words, a key of ``RULES``.
        min_count, max_vocabulary: see :func:`encode`.
        everything: whether the training text includes the validation and test text. If true, these are not held out.

    Raises:
        DataError: if the text is missing, cannot be read, or has too few words.
    """
    pieces, content = _sources(name, path, column)
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
            log.warning("%s cannot be written (%s): each run will encode the text again", kept, error)
    return corpus


def _read(
    pieces: dict[str, Callable[[], Iterable[str]]],
    rule: str,
    min_count: int,
    max_vocabulary: int | None,
    everything: bool,
) -> Corpus:
    """Return the encoded text. ``pieces`` come from :func:`_sources`, other arguments from :func:`load_corpus`."""
    index: dict[str, int] = defaultdict(itertools.count().__next__)
    parts = {split: number_words(read(), rule, index) for split, read in pieces.items()}
    if "all" in parts:
        parts = split_off(parts["all"])
    if everything:
        parts["train"] = np.concatenate([parts[split] for split in SPLITS])
    return encode(parts, index, min_count, max_vocabulary)


def _sources(name: str, path: Path | None, column: str | None) -> tuple[dict[str, Callable[[], Iterable[str]]], str]:
    """Return a reader of pieces for each part of a text, and a digest of its content."""
    if name == "pydocs":
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[title] for title in sorted(topics))
        return {"all": lambda: [text]}, hashlib.sha256(text.encode()).hexdigest()
    if name == "textfile":
        texts = find_texts(path, column)
        return {"all": partial(read_texts, texts)}, texts.digest
    files = PUBLISHED[name]
    pieces = {}
    for split, (_, md5) in files.items():
        if (place := _find(name, split)) is None:
            folder = data_root() / FOLDERS[name][0]
            raise DataError(f"{' or '.join(NAMES[name][split])} of {name} is missing: it belongs in {folder}")
        pieces[split] = partial(read_text, place.path, md5, place.member)
    return pieces, " ".join(md5 for _, md5 in files.values())


class Place(NamedTuple):
    """The path of a text. If the path is an archive of several files, ``member`` is the name of the text in it."""

    path: Path
    member: str | None = None


def _find(name: str, split: str) -> Place | None:
    """Return the place of a published text, or None if it is not on disk.

    The file can have any of the names in ``NAMES``. It can be compressed, or be part of an archive.
    """
    own = [folder for entry in FOLDERS[name] if (folder := ignoring_case(data_root() / entry)) is not None]
    # Search the folder of all data for unusual names only, because other texts can also have a file train.txt there.
    general = [published for published in NAMES[name][split] if published not in ("train.txt", "valid.txt", "test.txt")]
    found = itertools.chain(find_file(own, NAMES[name][split]), find_file([data_root()], general))
    if (path := next(found, None)) is not None:
        return Place(path)
    archives = find_file([*own, data_root()], ARCHIVES.get(name, ()))
    return next((Place(path, NAMES[name][split][-1]) for path in archives), None)


def fetch(name: str) -> None:
    """Download and verify the published files of ``name`` that are missing.

    Raises:
        DataError: if a file is missing and cannot be downloaded.
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
        f"Put {files}{also} there, or connect to the network (ZOO_DATA sets another folder than data/). Python's "
        "documentation needs no download: data=pydocs"
    )
    fetch_missing(name, missing, remedy)
