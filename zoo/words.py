"""What word vectors are worth: analogies, agreement with people's judgements of similarity, and the word2vec formats.

Analogies (Mikolov et al. 2013a): the word nearest to b - a + c is d, of vectors of length 1, among all words of the
vocabulary that are not a, b or c. Similarity: Spearman's rank correlation of cosines with people's mean scores
(WordSim-353, Finkelstein et al. 2002; SimLex-999, Hill et al. 2015). Questions and pairs with a word outside the
vocabulary are left out, and how many are left is said beside each number.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor

AT_ONCE = 256  # questions answered by one product with the vocabulary


class WordFileError(ValueError):
    """A file of questions or of pairs that is not one; the message says which line."""


def read_questions(path: Path) -> dict[str, list[tuple[str, str, str, str]]]:
    """Sections and their questions (a, b, c, d), in lower case: lines of four words after a line ``: name``."""
    sections: dict[str, list[tuple[str, str, str, str]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.lower().split()
        if words[:1] == [":"]:
            section = sections.setdefault(" ".join(words[1:]), [])
        elif len(words) == 4 and sections:
            section.append(tuple(words))
        elif words:
            raise WordFileError(f"{path}, line {number}: four words after a section ': name' are expected, got {line!r}")
    return sections


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Word, word and score of each line, in lower case; lines that begin with # are comments."""
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            a, b, score = line.lower().split("\t")[:3]
            pairs.append((a, b, float(score)))
        except ValueError:
            raise WordFileError(f"{path}, line {number}: two words and a number are expected, got {line!r}") from None
    return pairs


def analogies(model, sections: dict[str, list[tuple[str, str, str, str]]], most_frequent: int = 30_000) -> dict[str, float]:
    """The share of questions answered right: ``analogies``, ``/semantic``, ``/syntactic``, and ``/coverage``.

    Sections whose name begins with ``gram`` are syntactic, the others semantic, as in the published set.

    Args:
        model: a SkipGram.
        sections: as :func:`read_questions` gives them.
        most_frequent: words of the vocabulary that questions and answers are from.
    """
    unit = model.unit_vectors()[:most_frequent]
    right, asked, all_of_them = {"semantic": 0, "syntactic": 0}, {"semantic": 0, "syntactic": 0}, 0
    for name, questions in sections.items():
        kind = "syntactic" if name.startswith("gram") else "semantic"
        all_of_them += len(questions)
        known = [
            [model.index[w] for w in q] for q in questions if all(model.index.get(w, most_frequent) < len(unit) for w in q)
        ]
        for part in torch.tensor(known, dtype=torch.long).view(-1, 4).split(AT_ONCE):
            a, b, c, d = part.T
            cosines = torch.nn.functional.normalize(unit[b] - unit[a] + unit[c], dim=1) @ unit.T
            cosines.scatter_(1, part[:, :3], -torch.inf)
            right[kind] += int((cosines.argmax(1) == d).sum())
            asked[kind] += len(part)
    total = sum(asked.values())
    shares = {f"analogies/{kind}": right[kind] / max(1, asked[kind]) for kind in asked}
    return {"analogies": sum(right.values()) / max(1, total), **shares, "analogies/coverage": total / max(1, all_of_them)}


def similarity(model, pairs: list[tuple[str, str, float]]) -> tuple[float, float]:
    """Spearman's correlation of cosines with people's scores, and the share of pairs whose words are both known."""
    known = [(model.index[a], model.index[b], score) for a, b, score in pairs if a in model.index and b in model.index]
    if len(known) < 3:
        return float("nan"), len(known) / max(1, len(pairs))
    unit = model.unit_vectors()
    a, b, score = (torch.tensor(column) for column in zip(*known, strict=True))
    return float(spearmanr((unit[a] * unit[b]).sum(1).tolist(), score.tolist()).statistic), len(known) / len(pairs)


def save_word2vec(model, path: Path, binary: bool = False) -> None:
    """The words and their input vectors in the format of the word2vec program, which gensim's KeyedVectors reads too.

    A line with V and D, then for each word, the most frequent first, its name, a space, and its numbers: in decimal, or
    as float32, least significant byte first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = model.input.detach().float().cpu()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as unfinished:
        try:
            unfinished.write(f"{len(model.words)} {vectors.shape[1]}\n".encode())
            for part in _lines(model.words, vectors, binary):
                unfinished.write(part)
            unfinished.flush()
            os.replace(unfinished.name, path)
        except BaseException:
            os.unlink(unfinished.name)
            raise


def _lines(words: list[str], vectors: Tensor, binary: bool) -> Iterator[bytes]:
    for word, vector in zip(words, vectors.numpy().astype("<f4"), strict=True):
        yield word.encode() + b" "
        yield vector.tobytes() + b"\n" if binary else " ".join(f"{x:.9g}" for x in vector.tolist()).encode() + b"\n"
