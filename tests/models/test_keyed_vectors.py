"""Tests of the vectors of a skip-gram model in gensim."""

import sys

import pytest
import torch

import zoo
from zoo.checks.errors import UserError
from zoo.skipgram import SkipGram


@pytest.fixture(scope="module")
def gensim():
    return pytest.importorskip("gensim")


def test_gensim_has_the_vectors_the_counts_and_the_order(gensim, tmp_path):
    """``most_similar`` of gensim agrees with ``nearest``. A file in the word2vec format gives the vectors back."""
    model = zoo.load("skipgram")
    found = model.keyed_vectors()
    assert isinstance(found, gensim.models.KeyedVectors)
    assert found.index_to_key == model.words and found.key_to_index == model.index
    assert torch.equal(torch.from_numpy(found.vectors), model.input.weight.detach().float())
    counts = model.counts.tolist()
    assert [found.get_vecattr(word, "count") for word in model.words[:100]] == counts[:100]
    assert counts == sorted(counts, reverse=True)
    for word in ("king", "three", model.words[-1]):
        theirs, ours = found.most_similar(word, topn=10), model.nearest(word, 10)
        assert [w for w, _ in theirs] == [w for w, _ in ours]
        assert [c for _, c in theirs] == pytest.approx([c for _, c in ours], abs=1e-5)
    assert (
        found.most_similar(positive=["woman", "king"], negative=["man"], topn=1)[0][0]
        == (model.analogy("man", "woman", "king")[0][0])
    )
    path, vocabulary = str(tmp_path / "vectors"), str(tmp_path / "words")
    found.save_word2vec_format(path, fvocab=vocabulary, binary=True)
    again = gensim.models.KeyedVectors.load_word2vec_format(path, fvocab=vocabulary, binary=True)
    assert again.index_to_key == model.words and again.get_vecattr("king", "count") == counts[model.number("king")]
    assert (again.vectors == found.vectors).all()


def test_the_vectors_are_a_copy(gensim):
    model = SkipGram(dim=4)
    model.make_vocabulary(["a", "b", "c"], torch.tensor([5, 3, 2]), torch.ones(3))
    before = model.input.weight.detach().clone()
    model.keyed_vectors().vectors[:] = 0
    assert torch.equal(model.input.weight, before)


def test_a_missing_gensim_or_vocabulary_is_named(monkeypatch):
    with pytest.raises(UserError, match="the model has no vocabulary yet: train it, or load trained weights"):
        SkipGram(dim=4).keyed_vectors()
    model = SkipGram(dim=4)
    model.make_vocabulary(["a", "b"], torch.tensor([5, 3]), torch.ones(2))
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(UserError, match="keyed_vectors needs gensim: pip install gensim"):
        model.keyed_vectors()
