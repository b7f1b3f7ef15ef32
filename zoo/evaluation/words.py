"""What word vectors are worth: analogies, agreement with people's judgements of similarity, and the word2vec formats.

Analogies (Mikolov et al. 2013a): the word nearest to b - a + c is d, of vectors of length 1, among the most frequent
words that are not a, b or c. Similarity: Spearman's rank correlation of cosines with people's mean scores
(WordSim-353, Finkelstein et al. 2002; SimLex-999, Hill et al. 2015). Questions and pairs with a word outside the
vocabulary are left out, and how many are left is said beside each number.
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

LONG = 5  # letters of a word that tells more than how sentences are built
SETS = ("questions-words.txt", "wordsim353.tsv", "simlex999.txt")
AT_ONCE = 256  # questions answered by one product with the vocabulary


Question = tuple[str, str, str, str]  # a is to b as c is to d


class WordFileError(UserError):
    """A file of questions or of pairs that is not one; the message says which line."""


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WordFileError(f"{path} cannot be read: {error}") from error


def read_questions(path: Path) -> dict[str, list[Question]]:
    """Sections and their questions (a, b, c, d), in lower case: lines of four words after a line ``: name``."""
    sections: dict[str, list[Question]] = {}
    for number, line in enumerate(_lines_of(path), start=1):
        words = line.lower().split()
        if words[:1] == [":"]:
            section = sections.setdefault(" ".join(words[1:]), [])
        elif len(words) == 4 and sections:
            section.append(tuple(words))
        elif words:
            raise WordFileError(
                f"{path}, line {number}: four words after a section ': name' are expected, got {line!r}"
            )
    return sections


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Word, word and score of each line, in lower case; lines that begin with # are comments."""
    pairs = []
    for number, line in enumerate(_lines_of(path), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            a, b, score = line.lower().split()[:3]
            pairs.append((a, b, float(score)))
        except ValueError:
            raise WordFileError(f"{path}, line {number}: two words and a number are expected, got {line!r}") from None
    return pairs


def find_word_sets(folder: Path | None = None) -> Path:
    """The folder that holds the three published sets under the names in ``SETS``: ``folder``, or gensim's own copy.

    Raises:
        WordFileError: where they are not.
    """
    if folder is None:
        gensim = find_spec("gensim")
        if gensim is None or gensim.origin is None:  # none, or a mere folder of that name
            raise WordFileError(
                f"the published sets of words ({', '.join(SETS)}) come with gensim, which is not installed: "
                'pip install -e ".[bench]", or name a folder that holds them with --words'
            )
        folder = Path(gensim.origin).parent / "test" / "test_data"
    if missing := [name for name in SETS if not (folder / name).is_file()]:
        raise WordFileError(f"{folder} holds no {', '.join(missing)}")
    return folder


def measure_words(model, folder: Path | None = None) -> dict[str, float]:
    """All that is published of vectors of words.

    Args:
        model: a SkipGram.
        folder: see :func:`find_word_sets`.

    Returns:
        what :func:`analogies` gives, all shares of 1; ``wordsim353`` and ``simlex999``, Spearman's correlations, each
        with its ``/coverage``; what no question or pair was known for is left out.
    """
    folder = find_word_sets(folder)
    metrics = analogies(model, read_questions(folder / SETS[0]))
    for name in SETS[1:]:
        key = Path(name).stem
        metrics[key], metrics[f"{key}/coverage"] = similarity(model, read_pairs(folder / name))
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def analogies(model, sections: dict[str, list[Question]], most_frequent: int = 30_000) -> dict[str, float]:
    """The share of questions answered right: ``analogies``, ``/semantic``, ``/syntactic``, and ``/coverage``.

    Sections whose name begins with ``gram`` are syntactic, the others semantic, as in the published set.

    Args:
        model: a SkipGram.
        sections: as :func:`read_questions` gives them.
        most_frequent: words of the vocabulary that questions and answers are from.
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
    """The places of words by their spelling in lower case, of several the most frequent one's."""
    return {word.lower(): i for i, word in reversed(list(enumerate(words)))}


def similarity(model, pairs: list[tuple[str, str, float]]) -> tuple[float, float]:
    """Spearman's correlation of cosines with people's scores, and the share of pairs whose words are both known."""
    index = lower_case(model.words)
    known = [(index[a], index[b], score) for a, b, score in pairs if a in index and b in index]
    if len(known) < 3:
        return float("nan"), len(known) / max(1, len(pairs))
    unit = model.unit_vectors()
    a, b, score = (torch.tensor(column) for column in zip(*known, strict=True))
    return float(spearmanr((unit[a] * unit[b]).sum(1).tolist(), score.tolist()).statistic), len(known) / len(pairs)


def word_map(model, n: int = 150) -> Figure:
    """The ``n`` most frequent words at the first two principal components of their vectors, scaled to length 1.

    Words of five letters and more, where there are ten or more of these, else any.
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
