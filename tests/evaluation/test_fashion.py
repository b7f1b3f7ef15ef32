"""Tests of the classifier of Fashion-MNIST, and of the choice of the classifier for samples and data."""

import pytest
import torch
from own_data import Stripes
from torch.testing import assert_close

import zoo
from zoo import hub
from zoo.commands.inputs import data_on_card
from zoo.datamodules import Images, Toy
from zoo.datamodules.access import make_ready
from zoo.datamodules.splits import Split
from zoo.evaluation.classifier import Classifier
from zoo.evaluation.distances import (
    SampleDistanceMetric,
    classifier_of,
    classify_images,
    frechet_distance,
    frechet_standard_error,
)
from zoo.evaluation.manifolds import density_coverage
from zoo.evaluation.protocol import Protocol, measure
from zoo.evaluation.samples import judged_accuracy
from zoo.gan import GAN
from zoo.sampling.chunks import sample_chunks

# Augmentation.


def mirrored(flip, n=400):
    """Return black images with a white left half, and the same images as the loss of a classifier sees them."""
    x = torch.zeros(n, 1, 28, 28)
    x[..., :14] = 1
    model, seen = Classifier(widths=[4, 4, 4], shift=0, rotate=0, scale=0, shear=0, flip=flip), []
    model.forward = lambda images: seen.append(images) or torch.zeros(n, 10)
    model.loss([x, torch.zeros(n, dtype=torch.long)], generator=torch.Generator().manual_seed(0))
    return x, seen[0]


def test_mirror_images_have_the_given_probability():
    """Between 150 and 250 of 400 images are mirrored. A correct number is outside this range with p < 1e-6."""
    x, seen = mirrored(0.5)
    flipped = (seen - x.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    kept = (seen - x).abs().amax((1, 2, 3)) < 1e-5
    assert (flipped ^ kept).all() and 150 < flipped.sum() < 250
    for flip, expected in ((0.0, x), (1.0, x.flip(-1))):
        assert_close(mirrored(flip)[1], expected)


def test_classifiers_without_mirror_images_draw_the_noise_of_earlier_versions(generator):
    x = [torch.zeros(3, 1, 28, 28)]
    assert set(Classifier(widths=[4, 4, 4]).noise(x)) == {"u"}
    again = torch.Generator().manual_seed(0)
    noise = Classifier(widths=[4, 4, 4], flip=0.5).noise(x, generator=generator)
    assert torch.equal(noise["u"], torch.rand(3, 5, generator=again)) and noise["mirrored"].shape == (3,)


@pytest.mark.parametrize("flip", [-0.1, 1.5, "half"])
def test_a_flip_that_is_no_probability_is_refused(flip):
    with pytest.raises(ValueError, match="flip must be a probability from 0 to 1, got"):
        Classifier(flip=flip)


# The classifier of each data set.


class Clothes(Images):
    """Fashion-MNIST with random images in place of its files."""

    def prepare_data(self):
        pass

    def setup(self, stage=None):
        generator = torch.Generator().manual_seed(0)

        def draw(n):
            x = torch.randint(256, (n, 1, 7, 7), generator=generator, dtype=torch.uint8)
            return Split(x.repeat_interleave(4, 2).repeat_interleave(4, 3), torch.arange(n) % 10)

        self.splits = {"train": draw(20), "val": draw(30), "test": draw(40)}


@pytest.fixture(scope="module")
def clothes():
    return make_ready(Clothes("fashion_mnist"))


def test_each_data_set_has_its_classifier(clothes):
    assert classifier_of(Images("mnist")) == "classifier"
    assert classifier_of(clothes) == "classifier-fashion"
    digits = Images("digits")
    assert classifier_of(digits) is None and classifier_of(digits, similar=True) == "classifier"
    named = make_ready(Stripes((1, 28, 28)))
    named.used = "fashion_mnist"  # a name does not make the images known
    for unknown in (named, Images("cifar10"), Toy("ring")):
        assert classifier_of(unknown) is None and classifier_of(unknown, similar=True) is None


def test_samples_of_clothes_are_compared_by_their_own_classifier(clothes):
    samples = torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    real = clothes.splits["val"].images / 255
    distance = SampleDistanceMetric(clothes)
    assert distance.name == "classifier_fid"
    by = {name: zoo.load(name) for name in ("classifier", "classifier-fashion")}
    expected = {
        name: frechet_distance(classify_images(samples, c).features, classify_images(real, c).features)
        for name, c in by.items()
    }
    assert_close(distance(None, samples), expected["classifier-fashion"])
    assert abs(expected["classifier"] - expected["classifier-fashion"]) > 0.01 * expected["classifier"]


def test_a_card_of_clothes_has_the_metrics_of_their_classifier_with_a_floor(clothes):
    """The model is a GAN with labels. All numbers come from the classifier of clothes."""
    torch.manual_seed(0)
    model = GAN(network="mlp", shape=[1, 28, 28], hidden=[8], num_classes=10).eval()
    metrics, evidence = measure(model, clothes, Protocol(samples=30))
    classifier = zoo.load("classifier-fashion")
    said = {k: classify_images(clothes.splits[k].images / 255, classifier) for k in ("val", "test")}
    fake = classify_images(sample_chunks(model, 30, 0), classifier)
    shares = fake.probabilities.argmax(-1).bincount(minlength=10) / 30
    expected = {
        "classifier_fid": frechet_distance(fake.features, said["test"].features),
        "classifier_fid_error": frechet_standard_error(fake.features, said["test"].features),
        "classifier_fid_floor": frechet_distance(said["val"].features, said["test"].features),
        "rarest_class": shares.min().item(),
        "commonest_class": shares.max().item(),
        "judged_accuracy": judged_accuracy(model, 30, classifier=classifier)["judged_accuracy"],
    }
    density, coverage = density_coverage(said["test"].features, said["val"].features[:30])
    expected |= {"density_floor": density.value, "coverage_floor": coverage.value}
    assert_close({name: metrics[name] for name in expected}, expected)
    (sure,) = evidence["samples"]["sure_of_the_first"]
    assert_close(torch.tensor(sure), fake.probabilities.max(-1).values[:16])
    assert "energy_distance" not in metrics and evidence["samples"]["n"] == 30
    assert {name for name in metrics if f"{name}_error" in metrics} == set(evidence["counts"])


def test_counts_of_floors_are_the_numbers_of_validation_images(clothes):
    torch.manual_seed(0)
    model = GAN(network="mlp", shape=[1, 28, 28], hidden=[8]).eval()
    sizes = {split: len(clothes.splits[split].images) for split in ("val", "test")}
    counts = measure(model, clothes, Protocol(samples=sizes["val"] + 7))[1]["counts"]
    assert counts["classifier_fid"] == counts["confident"] == sizes["val"] + 7
    assert counts["classifier_fid_floor"] == counts["classifier_kid_floor"] == sizes["val"]
    assert counts["confident_of_test_images"] == sizes["test"]


def test_evaluate_uses_the_data_of_the_card():
    assert data_on_card("classifier-fashion") == "fashion_mnist"
    assert data_on_card("vae") == "mnist_or_digits"  # without MNIST, the digits
    assert data_on_card("wgan-ring") == "ring"


# The weights.


def test_the_shipped_classifier_of_clothes_is_accurate_and_small():
    """The card states the accuracy. A test in tests/hub/test_shipped.py measures it."""
    card = hub.read_card("classifier-fashion")
    assert card["data"] == "fashion_mnist" and 0.925 <= card["metrics"]["test/accuracy"] < 1
    assert (zoo.WEIGHTS / "classifier-fashion.safetensors").stat().st_size < 1e6
