"""Tests that the weights in zoo/weights give the numbers on their cards."""

import functools
import os
from pathlib import Path

import pytest
import torch
from helpers import tiers
from torch.testing import assert_close

import zoo
from zoo import hub
from zoo.datamodules.images import FOLDERS
from zoo.hub import exporting

ROOT = Path(__file__).parents[2]
CARDS = sorted(p.stem for p in (ROOT / "zoo" / "weights").glob("*.json"))


@pytest.fixture
def files(name):
    """Skip the test if the data of the checkpoint ``name`` are not in the data folder."""
    folder = FOLDERS.get(hub.read_card(name)["data"])
    if folder and not (Path(os.environ["ZOO_DATA"]) / folder / "raw").is_dir():
        pytest.skip(f"no files of {folder}: ZOO_DATA names no folder with {folder}/raw in it")


@pytest.mark.parametrize("name", CARDS)
def test_shipped_weights_give_their_golden_output(name):
    terms, card = exporting.golden_terms(zoo.load(name)), hub.read_card(name)
    assert_close(terms, card["golden"], rtol=1e-4, atol=0)
    assert (ROOT / "zoo" / "weights" / f"{name}.safetensors").stat().st_size < 10e6
    assert card["name"] == name and "+changes" not in card["commit"]


# The test loop of these models estimates log Z, which takes a minute or more.
ENERGIES = [name for name in CARDS if "test/log_partition" in hub.read_card(name)["metrics"]]


WORDS = [name for name in CARDS if hub.read_card(name)["model"] == "skipgram"]


@pytest.mark.parametrize("name", WORDS)
def test_shipped_vectors_answer_as_published(name):
    from zoo.evaluation.words import measure_words

    published, model = hub.read_card(name)["metrics"], zoo.load(name)
    assert len(model.words) == 20_000
    assert_close(measure_words(model), published, rtol=0, atol=2e-3)  # rounding can change two answers


REST = [name for name in CARDS if name not in ENERGIES + WORDS]


# An evaluation takes up to half a minute, so most models are marked as slow. The first test of this file is fast and
# covers all models.
@pytest.mark.parametrize("name", tiers(REST, ("vae", "vade", "cvae", "gan-discrete")))
def test_shipped_numbers_are_recomputed(name, files):
    from zoo.datamodules import by_name
    from zoo.evaluation.protocol import evaluate

    card = hub.read_card(name)
    measured = evaluate(zoo.load(name), by_name(card["data"]))
    # test_shipped_log_likelihoods_are_recomputed measures the log likelihood.
    apart = {"test/log_likelihood"} if card.get("log_likelihood") else set()
    published = {key for key in card["metrics"] if key.startswith("test/") and not key.endswith("_error")}
    assert set(measured) == published - apart
    for key, value in measured.items():
        # Rounding can change the predicted class of two images. The tolerance for each is ``one_image``.
        one_image = 1.5e-4 if any(s in key for s in ("accuracy", "nmi", "ari")) else 0.0
        assert_close(value, card["metrics"][key], rtol=1e-4, atol=2 * one_image)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENERGIES)
def test_shipped_energies_are_recomputed(name, files):
    """The metrics that do not depend on log Z agree up to rounding.

    log Z is estimated with a fifth of the chains and temperatures. Its interval must overlap the published interval.
    """
    from zoo.datamodules import Images
    from zoo.evaluation.protocol import evaluate, feature_accuracy

    model, published = zoo.load(name), hub.read_card(name)["metrics"]
    model.hparams.ais_chains //= 5
    model.hparams.test_ais_temperatures //= 5
    measured, data = evaluate(model, Images(hub.read_card(name)["data"])), Images(hub.read_card(name)["data"])
    for key in ("pseudo_likelihood", "reconstruction_error"):
        assert_close(measured[f"test/{key}"], published[f"test/{key}"], rtol=1e-4, atol=0)
    free_energy = [m["test/loss"] - m["test/log_partition"] for m in (measured, published)]
    assert_close(*free_energy, rtol=1e-5, atol=0)
    assert measured["test/log_partition_low"] < published["test/log_partition_high"]
    assert measured["test/log_partition_high"] > published["test/log_partition_low"]
    # ``coins`` is the estimate of log Z from chains that start at random pixels. It must be smaller than the upper end
    # of the published interval.
    assert published["test/log_partition_coins"] < published["test/log_partition_high"]
    data.setup()
    # Rounding changes the iteration at which the logistic regression stops. With another number of threads, 8 of the
    # 10,000 test images had another predicted class.
    assert abs(feature_accuracy(model, data) - published["feature_accuracy"]) < 2e-3


def test_all_weights_fit_their_budget():
    assert sum(p.stat().st_size for p in (ROOT / "zoo" / "weights").glob("*.safetensors")) < 70e6


@pytest.mark.parametrize("name", [name for name in CARDS if "judged_accuracy" in hub.read_card(name)["metrics"]])
def test_shipped_samples_are_recognised_as_their_labels(name):
    """The test draws all 10,000 samples. Rounding of pixels can change the class of one or two samples."""
    from zoo.evaluation.distances import CLASSIFIERS
    from zoo.evaluation.samples import judged_accuracy

    card = hub.read_card(name)
    published, classifier = card["metrics"]["judged_accuracy"], zoo.load(CLASSIFIERS[card["data"]])
    assert abs(judged_accuracy(zoo.load(name), classifier=classifier)["judged_accuracy"] - published) <= 3e-4
    assert published >= 0.98


@functools.cache
def floor(name):
    """Return the classifier, its features of test images, and the Frechet distance of validation and test images.

    ``name`` is the name of a data set.
    """
    from zoo.datamodules import Images
    from zoo.evaluation.distances import CLASSIFIERS, classify_images, frechet_distance

    data, classifier = Images(name), zoo.load(CLASSIFIERS[name])
    data.setup()
    said = {k: classify_images(data.splits[k].images.float() / 255, classifier).features for k in ("val", "test")}
    return classifier, said["test"], frechet_distance(said["val"], said["test"])


# These models draw 10,000 samples in a minute. For slower models, a test below draws only some of the samples.
ADVERSARIAL = [name for name in CARDS if hub.read_card(name)["model"] in ("gan", "wgan", "infogan")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ADVERSARIAL if "classifier_fid" in hub.read_card(n)["metrics"]])
def test_shipped_samples_are_as_far_from_data_as_published(name, files):
    """The test draws all 10,000 samples. Rounding of pixels can change the class of one or two samples.

    No class is missing, and no class has more than a quarter of the samples.
    """
    from zoo.evaluation.distances import classify_images, frechet_distance
    from zoo.sampling.chunks import sample_chunks

    card = hub.read_card(name)
    classifier, real, distance = floor(card["data"])
    published = {k.replace("_digit", "_class"): v for k, v in card["metrics"].items()}  # "digit" on older cards
    fake = classify_images(sample_chunks(zoo.load(name), 10_000, seed=0), classifier)
    assert_close(frechet_distance(fake.features, real), published["classifier_fid"], rtol=1e-3, atol=0)
    shares = fake.probabilities.argmax(-1).bincount(minlength=10) / 10_000
    assert_close(shares.min().item(), published["rarest_class"], atol=3e-4, rtol=0)
    assert_close(shares.max().item(), published["commonest_class"], atol=3e-4, rtol=0)
    assert shares.min() > 0 and shares.max() < 0.25
    assert_close(distance, published["classifier_fid_floor"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", [name for name in CARDS if hub.read_card(name)["data"] in ("ring", "markov_chain")])
def test_shipped_models_of_known_distributions(name):
    from zoo.datamodules import by_name
    from zoo.evaluation.samples import measure_samples

    card = hub.read_card(name)
    data = by_name(card["data"])
    data.setup()
    measured = measure_samples(zoo.load(name), data)
    assert {"energy_distance", "kl"} & measured.keys() & card["metrics"].keys()
    for key in measured.keys() & card["metrics"].keys():  # cards can be older than a metric
        assert_close(measured[key], card["metrics"][key], rtol=1e-2, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


WITH_LIKELIHOOD = [name for name in CARDS if hub.read_card(name).get("log_likelihood")]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_LIKELIHOOD)
def test_shipped_log_likelihoods_are_recomputed(name, files):
    """The test uses the first 100 test images and all importance samples.

    The noise of a batch of 100 depends only on the index of the batch. The first batch can be measured alone.
    """
    from zoo.datamodules import Images
    from zoo.evaluation.bounds import log_likelihood_per_batch

    card = hub.read_card(name)
    published, data = card["log_likelihood"], Images(card["data"])
    data.setup()
    measured = log_likelihood_per_batch(zoo.load(name), data, published["num_samples"], batches=1)
    assert_close(measured, published["of_each_hundred"][:1], rtol=1e-4, atol=0)
    mean = sum(published["of_each_hundred"]) / len(published["of_each_hundred"])
    assert_close(mean, card["metrics"]["test/log_likelihood"], rtol=1e-6, atol=0)
    assert len(published["of_each_hundred"]) == 100


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in CARDS if (hub.read_card(name).get("samples") or {}).get("n") == 1000]
)
def test_the_first_samples_of_many_steps_are_classified_as_published(name):
    """The test draws 16 samples under each condition. It skips chains of all 1,000 steps, which take 40 s."""
    from zoo.evaluation.distances import CLASSIFIERS, classify_images
    from zoo.sampling.chunks import sample_chunks

    card = hub.read_card(name)
    drawn, classifier = card["samples"], zoo.load(CLASSIFIERS[card["data"]])
    for conditions, published in zip(drawn["conditions"], drawn["sure_of_the_first"], strict=True):
        if conditions.get("num_steps", 0) is None:
            continue
        said = (
            classify_images(sample_chunks(zoo.load(name), 16, seed=0, **conditions), classifier)
            .probabilities.max(-1)
            .values
        )
        assert_close(said, torch.tensor(published), rtol=0, atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CARDS if hub.read_card(name).get("bound")])
def test_the_shipped_bound_is_recomputed(name, files):
    """The test uses the first five test images and all terms of the bound.

    The noise of a batch of five depends only on the index of the batch. The first batch can be measured alone.
    """
    from zoo.datamodules import Images
    from zoo.evaluation.bounds import bound_metrics, bound_per_batch

    card = hub.read_card(name)
    published = torch.tensor(card["bound"]["of_each_five"], dtype=torch.float64)
    data = Images(card["data"])
    data.setup()
    assert_close(bound_per_batch(zoo.load(name), data, 1), published[:1], rtol=1e-3, atol=1e-2)
    assert len(published) * 5 == card["bound"]["images"]
    for key, value in bound_metrics(published, 784).items():
        assert_close(value, card["metrics"][key], rtol=1e-6, atol=0)
