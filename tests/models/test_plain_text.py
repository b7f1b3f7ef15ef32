"""Tests of SkipGram with a plain DataLoader of rows of words, or of pairs of words."""

import logging
import warnings
from collections import Counter

import lightning as L
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from zoo.checks.errors import UserError
from zoo.checks.rows import rows_of_pairs
from zoo.datamodules.text import make_rows
from zoo.functional.contrastive import Rows, pairs_in_window
from zoo.skipgram import SkipGram

SENTENCES = [s.split() for s in ("the king rules", "the queen rules", "a dog runs home", "a cat runs home")] * 20
WORDS, COUNTS = map(list, zip(*Counter(w for s in SENTENCES for w in s).most_common(), strict=True))
NUMBERS = [[WORDS.index(w) for w in s] for s in SENTENCES]
PAIRS = [(c, w) for s in NUMBERS for i, c in enumerate(s) for j, w in enumerate(s) if i != j]
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def rows():
    stream = torch.tensor([n for s in NUMBERS for n in [*s, -1]])
    return make_rows(stream, torch.ones(len(WORDS)), window=2, generator=torch.Generator().manual_seed(0))


def made(objective="nce"):
    torch.manual_seed(0)
    model = SkipGram(objective, dim=8, lr=0.5)
    model.make_vocabulary(WORDS, torch.tensor(COUNTS))
    return model


def fit(model, data, batch_size=4, **loader):
    loader = DataLoader(data, batch_size, **loader)
    trainer = L.Trainer(max_epochs=3, accelerator="cpu", **QUIET)
    (before,) = trainer.validate(model, loader, verbose=False)
    trainer.fit(model, loader, loader)
    (after,) = trainer.test(model, loader, verbose=False)
    return before["val/nll"], after["test/nll"]


@pytest.mark.parametrize("objective", ["nce", "negative_sampling", "softmax"])
def test_rows_of_ones_own_sentences_train_vectors(objective):
    model = made(objective)
    before, after = fit(model, TensorDataset(*rows()), shuffle=True)
    assert objective == "negative_sampling" or after < before - 0.02
    assert len(model.nearest("king", 3)) == 3


def test_pairs_of_words_train_vectors():
    centres, words = torch.tensor(PAIRS).unbind(1)
    before, after = fit(made(), TensorDataset(centres, words), shuffle=True, batch_size=22)
    assert after < before - 0.02


@pytest.mark.parametrize("n", [1, 10, 11, 12, 33])
def test_rows_of_pairs_have_these_pairs_and_no_other(n):
    generator = torch.Generator().manual_seed(n)
    centres, words = torch.randint(0, 9, (2, n), generator=generator)
    centre, around, taken = pairs_in_window(Rows(*rows_of_pairs(centres, words)))
    found = torch.stack([centre[..., None].expand_as(around)[taken], around[taken]], 1)
    assert_close(found, torch.stack([centres, words], 1))


@pytest.mark.parametrize("objective", ["nce", "softmax"])
def test_the_loss_of_pairs_is_the_mean_over_pairs(objective):
    """With one draw of noise for all words, the loss of pairs is the mean loss of batches of one pair."""
    model, (centres, words) = made(objective), torch.tensor(PAIRS[:15]).unbind(1)
    model.output.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    noise = torch.randint(0, len(WORDS), (1, 6), generator=torch.Generator().manual_seed(0))
    model.noise = lambda batch, *, generator=None, k=None: {"noise": noise.expand(len(batch[0]), -1)}
    each = [model.loss([centres[i : i + 1], words[i : i + 1]])["loss"] for i in range(15)]
    terms = model.loss([centres, words])
    assert int(terms["pairs"]) == 15
    assert_close(terms["loss"], torch.stack(each).mean())


def test_every_estimator_takes_pairs():
    model, pairs = made(), list(torch.tensor(PAIRS[:15]).unbind(1))
    for estimator in model.gradient_estimators().values():
        noise = estimator.noise(pairs, torch.Generator().manual_seed(0))
        assert estimator.surrogate(dict(model.named_parameters()), pairs, noise).isfinite()


def test_the_rates_of_words_come_from_the_first_batch():
    model = made()
    fit(model, TensorDataset(*rows()))
    pairs = 2 * rows().reach[:4].sum()
    frequency = torch.tensor(COUNTS) / sum(COUNTS)
    assert_close(model.share_input[:, 0], (1 / (0.5 * pairs * frequency)).clamp(max=1))
    assert (model.share_input < 1).any()


def test_a_loader_without_length_is_evaluated_on_one_row_of_each_batch():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(*rows(), strict=True))

    before, after = fit(made(), Stream())
    assert after < before


def test_a_model_without_words_says_how_to_give_them():
    with pytest.raises(UserError, match=r"the model has no words: .* call model.make_vocabulary\(words, counts\)"):
        fit(SkipGram(), TensorDataset(*rows()))


@pytest.mark.parametrize(
    "batch",
    [
        [torch.zeros(4, 1, 28, 28), torch.zeros(4)],
        [torch.zeros(4, dtype=torch.long)],
        [torch.zeros(4, dtype=torch.long), torch.zeros(3, dtype=torch.long)],
        [torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)],
    ],
)
def test_batches_that_are_no_text_are_refused(batch):
    with pytest.raises(UserError, match=r"a batch of text has the shapes .* or pairs of words, \(B,\) and \(B,\)"):
        made().loss(batch)
