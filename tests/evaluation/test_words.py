"""Tests of the evaluation of word vectors (against gensim), of word files, and of neighbours during training."""

import csv
import os
import re
import sys

import lightning as L
import pytest
import torch
from helpers import TINY, run
from matplotlib.figure import Figure
from torch.testing import assert_close

import zoo
from zoo.__main__ import main
from zoo.callbacks import Neighbours
from zoo.evaluation.words import (
    SETS,
    WordFileError,
    analogies,
    find_word_sets,
    lower_case,
    measure_words,
    read_pairs,
    read_questions,
    similarity,
    word_map,
)
from zoo.skipgram import SkipGram

KeyedVectors = pytest.importorskip("gensim.models").KeyedVectors


def knows(words, vectors):
    """Return a model with these input vectors. The first word is the most frequent one."""
    model = SkipGram(dim=vectors.shape[1])
    model.make_vocabulary(words, torch.arange(len(words), 0, -1), torch.ones(len(words)))
    with torch.no_grad():
        model.input.weight.copy_(vectors)
    return model


@pytest.fixture(scope="module")
def questions():
    return read_questions(find_word_sets() / SETS[0])


@pytest.fixture(scope="module")
def some(questions):
    """Return a model of 600 words of the published analogy questions. Its vectors answer some of them correctly."""
    generator = torch.Generator().manual_seed(0)
    pairs = sorted({q[i : i + 2] for section in questions.values() for q in section for i in (0, 2)})[::2]
    words = list(dict.fromkeys(word for pair in pairs for word in pair))[:600]
    vectors = torch.randn(len(words), 20, generator=generator)
    shift = torch.randn(20, generator=generator)
    index = {word: i for i, word in enumerate(words)}
    for a, b in pairs:
        if a in index and b in index:
            vectors[index[b]] = vectors[index[a]] + shift + 0.4 * torch.randn(20, generator=generator)
    return knows(words, vectors)


@pytest.fixture(scope="module")
def of_gensim(some, tmp_path_factory):
    path = tmp_path_factory.mktemp("gensim") / "vectors.txt"
    some.export(path)
    return KeyedVectors.load_word2vec_format(path)


@pytest.mark.parametrize("binary", [False, True])
def test_gensim_reads_what_is_written(binary, some, tmp_path):
    path = tmp_path / "new folder" / "vectors"
    some.export(path, binary)
    read = KeyedVectors.load_word2vec_format(path, binary=binary)
    assert read.index_to_key == some.words
    assert torch.equal(torch.tensor(read.vectors), some.input.weight.detach())
    assert os.listdir(path.parent) == ["vectors"]


def test_a_failed_export_leaves_what_was_there(some, tmp_path, monkeypatch):
    path = tmp_path / "vectors"
    path.write_text("precious", encoding="utf-8")
    monkeypatch.setattr("zoo.training.files._lines", lambda *_: iter([b"half", None]))
    with pytest.raises(TypeError):
        some.export(path)
    assert path.read_text(encoding="utf-8") == "precious" and os.listdir(tmp_path) == ["vectors"]


def test_neighbours_and_analogies_are_those_of_gensim(some, of_gensim):
    for word in some.words[::100]:
        ours, theirs = some.nearest(word, 5), of_gensim.most_similar(word, topn=5)
        assert [w for w, _ in ours] == [w for w, _ in theirs]
        assert_close([c for _, c in ours], [c for _, c in theirs], atol=1e-5, rtol=0)
    a, b, c = some.words[:3]
    ours, theirs = some.analogy(a, b, c, 5), of_gensim.most_similar(positive=[b, c], negative=[a], topn=5)
    assert [w for w, _ in ours] == [w for w, _ in theirs]


@pytest.mark.parametrize("most_frequent", [300, 30_000])
def test_analogies_are_counted_as_gensim_counts_them(most_frequent, some, of_gensim, questions):
    ours = analogies(some, questions, most_frequent)
    total, sections = of_gensim.evaluate_word_analogies(find_word_sets() / SETS[0], restrict_vocab=most_frequent)
    assert ours["analogies"] == total and 0.05 < total < 0.95
    asked = {True: [0, 0], False: [0, 0]}
    for section in sections[:-1]:
        count = asked[section["section"].startswith("gram")]
        count[0] += len(section["correct"])
        count[1] += len(section["correct"]) + len(section["incorrect"])
    assert ours["analogies/syntactic"] == asked[True][0] / asked[True][1]
    assert ours["analogies/semantic"] == asked[False][0] / asked[False][1]
    assert ours["analogies/coverage"] == (asked[True][1] + asked[False][1]) / 19_544


@pytest.mark.parametrize("name", SETS[1:])
def test_similarity_is_that_of_gensim(name, of_gensim):
    pairs = read_pairs(find_word_sets() / name)
    words = list(dict.fromkeys(word for pair in pairs for word in pair[:2]))[::2] + ["zebra"]
    model = knows(words, torch.randn(len(words), 8, generator=torch.Generator().manual_seed(0)))
    theirs = KeyedVectors(8)
    theirs.add_vectors(words, model.input.weight.detach().numpy())
    _, (correlation, _), unknown = theirs.evaluate_word_pairs(find_word_sets() / name)
    ours, coverage = similarity(model, pairs)
    assert_close(ours, float(correlation), atol=1e-6, rtol=0)
    assert_close(coverage, 1 - unknown / 100)


def test_everything_that_is_published_has_a_name(some):
    metrics = measure_words(some)
    kinds = ["analogies", "analogies/semantic", "analogies/syntactic", "analogies/coverage"]
    assert list(metrics) == kinds + ["wordsim353", "wordsim353/coverage", "simlex999", "simlex999/coverage"]
    assert 0 < metrics["wordsim353/coverage"] < 1


def test_files_that_are_none_are_named_with_their_line(tmp_path):
    path = tmp_path / "questions"
    path.write_text(": capitals\nAthens Greece Baghdad Iraq\n\nthree words only\n", encoding="utf-8")
    with pytest.raises(WordFileError, match="line 4: got 'three words .*must have four words and follow a section"):
        read_questions(path)
    path.write_text("Athens Greece Baghdad Iraq\n", encoding="utf-8")
    with pytest.raises(WordFileError, match="line 1: got .*four words and follow a section"):
        read_questions(path)
    path.write_text("# comment\nold\tnew\t1.58\nold new\n", encoding="utf-8")
    with pytest.raises(WordFileError, match="line 3: got 'old new'; a line must have two words and a number"):
        read_pairs(path)
    with pytest.raises(WordFileError, match=r"does not contain questions-words.txt, wordsim353.tsv, simlex999.txt"):
        find_word_sets(tmp_path)


def test_fewer_than_three_known_pairs_have_no_correlation():
    correlation, coverage = similarity(knows(["a", "b"], torch.eye(2)), [("a", "b", 1.0), ("a", "c", 2.0)])
    assert correlation != correlation and coverage == 0.5


def test_neighbours_are_written_and_the_words_drawn(tmp_path, caplog):
    probes = ["callbacks.neighbours.words=[class,xyzzy]", "callbacks.neighbours.n=3", "test=false"]
    run(tmp_path, *TINY["skipgram"], "trainer.max_epochs=3", "callbacks.neighbours.every_n_epochs=2", *probes)
    assert sorted(os.listdir(tmp_path / "neighbours")) == ["epoch_001.csv", "epoch_002.csv"]
    head, row = csv.reader((tmp_path / "neighbours" / "epoch_002.csv").read_text(encoding="utf-8").splitlines())
    assert head == ["word", "1", "2", "3"] and row[0] == "class"
    model = zoo.load(tmp_path / "checkpoints" / "last.ckpt")
    assert row[1:] == [f"{word} {cosine:.2f}" for word, cosine in model.nearest("class", 3)]
    assert (tmp_path / "words.png").stat().st_size > 10_000
    assert "the tables leave out xyzzy: not in the vocabulary" in caplog.text


def test_as_many_words_are_probed_as_asked_for(tmp_path, generator):
    """The rows are the most frequent words of at least five letters, or the words that the user names."""
    words = ["seven", "of", "small", "letters", "and", "others"]
    model = knows(words, torch.randn(6, 3, generator=generator))
    rows = Neighbours(tmp_path, probes=2, n=3).table(model)
    assert [row[0] for row in rows] == ["seven", "small"] and {len(row) for row in rows} == {4}
    rows = Neighbours(tmp_path, words=["and", "nothing", "of"], probes=1, n=2).table(model)
    assert [row[0] for row in rows] == ["and", "of"] and {len(row) for row in rows} == {3}


def test_neighbours_need_words():
    with pytest.raises(ValueError, match="words is 'two', but must be null or a list of words"):
        Neighbours("x", words="two")
    with pytest.raises(ValueError, match="n must be an integer of at least 1, got 0"):
        Neighbours("x", n=0)
    with pytest.raises(ValueError, match="LightningModule has no method nearest"):
        Neighbours("x").setup(None, L.LightningModule(), "fit")


def test_the_map_shows_long_words(some):
    figure = word_map(some, 20)
    assert isinstance(figure, Figure)
    words = [word for word in some.words if len(word) >= 5][:20]
    assert [text.get_text() for text in figure.axes[0].texts] == words
    unit = torch.nn.functional.normalize(torch.stack([some.vector(word) for word in words]), dim=1).double()
    left, sizes, _ = torch.linalg.svd(unit - unit.mean(0))
    place = torch.tensor([text.get_position() for text in figure.axes[0].texts]).double()
    assert_close(place.abs(), (left[:, :2] * sizes[:2]).abs(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("words", "dim"), [(["a", "b"], 3), (["elephant", "b", "c"], 1), (["a", "b", "c"], 1)])
def test_a_map_of_little_is_drawn_too(words, dim):
    figure = word_map(knows(words, torch.randn(len(words), dim, generator=torch.Generator().manual_seed(0))))
    assert [text.get_text() for text in figure.axes[0].texts] == words
    assert len(word_map(knows(words, torch.full((len(words), dim), torch.nan))).axes[0].texts) == len(words)


def test_what_is_shipped_are_input_vectors(some, monkeypatch):
    monkeypatch.setattr("zoo.skipgram.PUBLISHED_WORDS", 100)
    shipped = SkipGram(**some.hparams)
    shipped.load_state_dict(some.published())
    assert shipped.words == some.words[:100] and shipped.input.weight.dtype == torch.float32
    assert_close(shipped.input.weight, some.input.weight[:100], rtol=1e-3, atol=1e-4)
    assert not shipped.predicts
    with pytest.raises(ValueError, match="these weights have no output vectors and cannot predict words"):
        shipped.check_vocabulary(shipped.words)


def test_words_of_any_case_are_those_of_the_questions():
    model = knows(["Athens", "Greece", "athens", "x"], torch.tensor([[1.0, 0], [1, 1], [5, -3], [-1, 2]]))
    pairs = [("athens", "greece", 1.0), ("greece", "athens", 2.0), ("x", "greece", 3.0)]
    assert similarity(model, pairs)[1] == 1
    assert model.index["athens"] == 2 and lower_case(model.words) == {"athens": 0, "greece": 1, "x": 3}


def test_words_on_the_command_line(tmp_path, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    source = tmp_path / "run"
    run(source, *TINY["skipgram"], "data.max_vocabulary=300", "trainer.max_epochs=1", "test=false")
    assert len(command("nearest", source, "class", "-n", 3).splitlines()) == 3
    assert len(command("analogy", source, "class", "method", "module").splitlines()) == 5
    said = command("vectors", source, "-o", tmp_path / "v.bin", "--binary")
    read = KeyedVectors.load_word2vec_format(tmp_path / "v.bin", binary=True)
    assert f"Wrote {len(read):,} vectors of 4 numbers to " in said
    told = command("evaluate", source).splitlines()
    assert {"wordsim353/coverage", "test/perplexity"} <= {line.split(":")[0] for line in told}
    table = command("compare", source, "--draws", 4, "--estimators", "softmax,nce_5", "-o",
                    tmp_path / "c.png")  # fmt: skip
    assert "nce_5" in table and (tmp_path / "c.png").is_file()
    assert list(tmp_path.glob(".*")) == []
    # The run's options also apply to another text. Equal words give equal numbers.
    from pydoc_data.topics import topics

    (tmp_path / "again.txt").write_text("\n\n".join(topics[title] for title in sorted(topics)), encoding="utf-8")
    again = command("evaluate", source, "--data", tmp_path / "again.txt")
    assert [line for line in again.splitlines() if "test/" in line] == [line for line in told if "test/" in line]
    (tmp_path / "other.txt").write_text("one two three four five six seven eight nine ten " * 9000, encoding="utf-8")
    for wrong, message in [
        (["nearest", source, "clas"], "'clas' is not among the [0-9,]+ words of the vocabulary; close to it: .*class"),
        (["nearest", source, "class", "-n", "0"], "n must be an integer of at least 1, got 0"),
        (["nearest", "vae", "class"], "vae is a VAE, which has no words: name a skip-gram model"),
        (["sample", source], "SkipGram has no method sample"),
        (["evaluate", source, "--data", "digits"], "SkipGram trains on text, .* choose other data with --data"),
        (
            ["evaluate", "vae", "--data", "pydocs"],
            "VAE trains on images or points, and pydocs is text: choose other data with --data",
        ),
        (
            ["evaluate", source, "--data", tmp_path / "other.txt"],
            "vocabulary of .* words, and the text has a different one of",
        ),
        (["evaluate", source, "--words", tmp_path], "does not contain questions-words.txt"),
        (["evaluate", "vae", "--words", tmp_path], "--words is an option of models of words, and vae has none: leave"),
        (["compare", source, "--data", "imagenet"], "there are no data 'imagenet': choose from mnist"),
        (
            ["compare", source, "--batch-size", "33"],
            "batch-size must be at most 32, the size of a validation batch",
        ),
        (["compare", source, "--data", "wikitext2"], "wikitext2 is not in .* and cannot be downloaded"),
        (["evaluate", source, "--importance-samples", "5"], "SkipGram has no log_likelihood"),
        (["vectors", source, "-o", tmp_path], "cannot be written: it is a folder"),
        (
            ["vectors", source, "-o", tmp_path / "other.txt" / "below" / "v.txt"],
            "v.txt cannot be written: .*other.txt is not a folder",
        ),
    ]:
        with pytest.raises(SystemExit) as refused:
            command(*wrong)
        assert re.search(message, f"{refused.value}\n{capsys.readouterr().err}")
