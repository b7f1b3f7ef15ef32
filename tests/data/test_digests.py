"""Tests of the digest of the data that a run uses."""

from types import SimpleNamespace

import numpy as np
import torch

from zoo.datamodules import Images
from zoo.datamodules.digests import digest_of
from zoo.datamodules.splits import Split


def digits(**options):
    data = Images("digits", **options)
    data.setup()
    return data


def test_the_digest_depends_on_every_example_and_label():
    data = digits()
    before = digest_of(data)
    assert digest_of(digits(batch_size=7, seed=3)) == before  # options of training do not change the examples
    assert digest_of(digits(train_on="everything")) != before
    test = data.splits["test"]
    for change in (test.images[-1, 0, 27, 27], test.labels[0]):
        change += 1
        assert digest_of(data) != before
        change -= 1
    assert digest_of(data) == before
    data.splits["test"] = Split(test.images.view(-1, 1, 14, 56), test.labels)  # the same bytes in another shape
    assert digest_of(data) != before


def test_data_without_fixed_examples_have_no_digest_and_own_digests_are_kept():
    assert digest_of(object()) is None
    assert digest_of(SimpleNamespace(splits={"train": Split([1, 2], None)})) is None  # images that are read from files
    assert digest_of(SimpleNamespace(digest="own", splits={"train": Split(torch.zeros(2), None)})) == "own"


def test_the_digest_of_a_text_depends_on_words_and_order():
    def text(words, *numbers):
        splits = {"train": np.array(numbers, np.int32), "val": np.array([0], np.int32)}
        return SimpleNamespace(corpus=SimpleNamespace(words=words, splits=splits))

    digests = [digest_of(text(*content)) for content in ((["a", "b"], 0, 1), (["a", "b"], 1, 0), (["a", "c"], 0, 1))]
    assert len(set(digests)) == 3
