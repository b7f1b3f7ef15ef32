"""Evaluation of word vectors: analogies, similarity of words, and a map of words.

Analogies have the form "a is to b as c is to d" (Mikolov et al. 2013a). An answer is correct if the word nearest to
b - a + c is d. All vectors have length 1. The candidates are the most frequent words except a, b and c.

Similarity is Spearman's rank correlation between cosines and the mean scores that people gave. The pairs come from
WordSim-353 (Finkelstein et al. 2002) and SimLex-999 (Hill et al. 2015).

Questions and pairs with a word outside the vocabulary are skipped. ``coverage`` is the fraction of questions or pairs
that are used.
"""

import math
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from zoo.checks.errors import UserError
from zoo.functional.progress import tracked

LONG = 5  # smallest number of letters of a word on the map; shorter words are mostly function words
SETS = ("questions-words.txt", "wordsim353.tsv", "simlex999.txt")
AT_ONCE = 256  # number of questions in one matrix product with the vocabulary


Question = tuple[str, str, str, str]  # a is to b as c is to d


class WordFileError(UserError):
    """A file of questions or word pairs is missing or malformed. The message names the file and any malformed line."""


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WordFileError(f"{path} cannot be read: {error}") from error


def read_questions(path: Path) -> dict[str, list[Question]]:
    """Return the questions (a, b, c, d) of each section, in lower case.

    A section begins with a line ``: name``. Each question is a line of four words.
    """
    sections: dict[str, list[Question]] = {}
    for number, line in enumerate(_lines_of(path), start=1):
        words = line.lower().split()
        if words[:1] == [":"]:
            section = sections.setdefault(" ".join(words[1:]), [])
        elif len(words) == 4 and sections:
            section.append(tuple(words))
        elif words:
            raise WordFileError(
                f"{path}, line {number}: got {line!r}; a line must have four words and follow a section ': name'"
            )
    return sections


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Return (word, word, score) from each line, with the words in lower case. Lines that begin with # are comments."""
    pairs = []
    for number, line in enumerate(_lines_of(path), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            a, b, score = line.lower().split()[:3]
            pairs.append((a, b, float(score)))
        except ValueError:
            message = f"{path}, line {number}: got {line!r}; a line must have two words and a number"
            raise WordFileError(message) from None
    return pairs


def find_word_sets(folder: Path | None = None) -> Path:
    """Return the folder that holds the three published sets, with the file names in ``SETS``.

    Args:
        folder: folder to use. None uses the copy that gensim installs.

    Raises:
        WordFileError: if a set is missing.
    """
    if folder is None:
        gensim = find_spec("gensim")
        if gensim is None or gensim.origin is None:  # not installed, or a folder named gensim without a package
            raise WordFileError(
                f"the published sets of words ({', '.join(SETS)}) come with gensim, which is not installed. "
                "Run pip install gensim, or name a folder that holds them with --words"
            )
        folder = Path(gensim.origin).parent / "test" / "test_data"
    if missing := [name for name in SETS if not (folder / name).is_file()]:
        raise WordFileError(f"{folder} does not contain {', '.join(missing)}; name a folder that contains them")
    return folder


def measure_words(model, folder: Path | None = None) -> dict[str, float]:
    """Return the published metrics of word vectors.

    Args:
        model: a SkipGram.
        folder: folder of the published sets, see :func:`find_word_sets`.

    Returns:
        the metrics of :func:`analogies`, and Spearman's correlations ``wordsim353`` and ``simlex999``.
        Each set also has a metric ``<name>/coverage``. The score of a set is left out if the model knows none of its
        questions, or fewer than three of its pairs.
    """
    folder = find_word_sets(folder)
    metrics = analogies(model, read_questions(folder / SETS[0]))
    for name in SETS[1:]:
        key = Path(name).stem
        metrics[key], metrics[f"{key}/coverage"] = similarity(model, read_pairs(folder / name))
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def analogies(model, sections: dict[str, list[Question]], most_frequent: int = 30_000) -> dict[str, float]:
    """Return the fractions of questions answered correctly, and the fraction of questions used.

    Args:
        model: a SkipGram.
        sections: output of :func:`read_questions`. Sections with names that begin with ``gram`` are syntactic, and
            the others are semantic, as in the published set.
        most_frequent: number of most frequent words that can be answers. Questions with other words are skipped.

    Returns:
        ``analogies``, ``analogies/semantic`` and ``analogies/syntactic``: fractions of correct answers, NaN without
        questions. ``analogies/coverage``: fraction of questions with known words.
    """
    unit, index = model.unit_vectors()[:most_frequent], lower_case(model.words)
    right, asked, all_of_them = {"semantic": 0, "syntactic": 0}, {"semantic": 0, "syntactic": 0}, 0
    for name, questions in tracked(sections.items(), "analogies", "section"):
        kind = "syntactic" if name.startswith("gram") else "semantic"
        all_of_them += len(questions)
        numbers = [[index.get(word, len(unit)) for word in question] for question in questions]
        known = [question for question in numbers if max(question) < len(unit)]
        for part in torch.tensor(known, dtype=torch.long).view(-1, 4).split(AT_ONCE):
            a, b, c, d = part.T
            cosines = F.normalize(unit[b] - unit[a] + unit[c], dim=1) @ unit.T
            cosines.scatter_(1, part[:, :3], -torch.inf)
            right[kind] += int((cosines.argmax(1) == d).sum())
            asked[kind] += len(part)
    total = sum(asked.values())
    share = lambda right, asked: right / asked if asked else math.nan  # noqa: E731
    shares = {f"analogies/{kind}": share(right[kind], asked[kind]) for kind in asked}
    return {
        "analogies": share(sum(right.values()), total),
        **shares,
        "analogies/coverage": total / max(1, all_of_them),
    }


def lower_case(words: list[str]) -> dict[str, int]:
    """Return {word in lower case: index}. Words that differ only in case get the index of the most frequent one."""
    return {word.lower(): i for i, word in reversed(list(enumerate(words)))}


def similarity(model, pairs: list[tuple[str, str, float]]) -> tuple[float, float]:
    """Return Spearman's correlation of cosines with the scores, and the fraction of pairs with two known words.

    The correlation is NaN for fewer than three known pairs.
    """
    index = lower_case(model.words)
    known = [(index[a], index[b], score) for a, b, score in pairs if a in index and b in index]
    if len(known) < 3:
        return float("nan"), len(known) / max(1, len(pairs))
    unit = model.unit_vectors()
    a, b, score = (torch.tensor(column) for column in zip(*known, strict=True))
    return float(spearmanr((unit[a] * unit[b]).sum(1).tolist(), score.tolist()).statistic), len(known) / len(pairs)


def word_map(model, n: int = 150) -> Figure:
    """Plot the ``n`` most frequent words at the first two principal components of their vectors of length 1.

    The map shows words of at least five letters. If fewer than ten words have this length, the map shows words of any
    length.
    """
    words = [w for w in model.words if len(w) >= LONG]
    words = (words if len(words) >= 10 else model.words)[:n]
    unit = model.unit_vectors()[[model.index[w] for w in words]].cpu().double().nan_to_num()
    centred = unit - unit.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    place = F.pad(centred @ directions[:2].T, (0, 2 - len(directions[:2])))
    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*place.T, s=2, alpha=0.3)
    for word, (x, y) in zip(words, place.tolist(), strict=True):
        axes.text(x, y, word, fontsize=7, ha="center", va="center")
    axes.set(xlabel="first principal component", ylabel="second principal component")
    return figure
