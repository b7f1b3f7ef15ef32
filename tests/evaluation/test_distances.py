"""Tests of distances between samples and data, against closed forms and other implementations."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torch.testing import assert_close

import zoo
from zoo.datamodules import Toy
from zoo.datamodules.toy import MarkovChain, ring
from zoo.evaluation.distances import (
    SampleDistanceMetric,
    classifier_distances,
    classify_images,
    energy_distance,
    frechet_distance,
    frechet_standard_error,
    modes,
    sample_metrics,
)


def test_frechet_distance_is_the_formula(generator):
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    a = torch.randn(500, 6, generator=generator, dtype=torch.float64) @ mix + 0.3
    b = torch.randn(700, 6, generator=generator, dtype=torch.float64)
    C_a, C_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(C_a + C_b - 2 * sqrtm(C_a @ C_b).real)
    assert_close(frechet_distance(a, b), float(expected))
    assert_close(frechet_distance(a, b), frechet_distance(b, a))
    assert abs(frechet_distance(a, a)) < 1e-9


def test_frechet_distance_of_known_gaussians():
    """The distance of N(0, 1) and N(m, s^2) in one dimension is m^2 + (1 - s)^2.

    The test has m = 5 and s = 3. Mean and variance of its points are exact.
    """
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64) / math.sqrt(2)
    assert_close(frechet_distance(x, 3 * x + 5), 25.0 + 4.0)


def test_a_degenerate_covariance_is_no_obstacle(generator):
    a = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    a[:, 3] = 0  # a feature that is always 0
    assert_close(frechet_distance(a, a + 1), 20.0)
    assert frechet_distance(a[:5], a) > 0  # fewer vectors than features


def test_the_bootstrap_error_is_the_spread_of_the_distance(generator):
    """The bootstrap error agrees within 35 % with the standard deviation over 60 independent pairs of sets.

    The standard deviation of 60 values has a relative error of 9 %. The bootstrap error is a mean over five pairs.
    """
    draw = lambda shift: torch.randn(400, 4, generator=generator, dtype=torch.float64) + shift  # noqa: E731
    pairs = [(draw(0.0), draw(0.5)) for _ in range(60)]
    spread = float(torch.tensor([frechet_distance(*pair) for pair in pairs]).std())
    errors = [frechet_standard_error(*pair, resamples=60) for pair in pairs[:5]]
    assert abs(sum(errors) / 5 - spread) < 0.35 * spread


def test_the_bootstrap_error_of_equal_distributions_is_too_large(generator):
    """With six seeds, it was 1.5 to 2.1 times the standard deviation over 40 pairs, whose relative error is 11 %."""
    pairs = torch.randn(40, 2, 400, 16, generator=generator, dtype=torch.float64)
    spread = float(torch.tensor([frechet_distance(*pair) for pair in pairs]).std())
    errors = [frechet_standard_error(*pair, resamples=40) for pair in pairs[:5]]
    assert 1.2 < sum(errors) / 5 / spread < 2.6, (errors, spread)


def test_roles_of_real_and_fake_in_distances_of_features(generator):
    """The fake vectors copy one of two distant modes. All are precise, and half of the real modes is not reached."""
    one = torch.randn(20, 4, generator=generator)
    found = classifier_distances(torch.cat([one, one + 1000]), one, ending="_floor")
    assert {name: found[f"{name}_floor"].value for name in ("precision", "recall", "density", "coverage")} == {
        "precision": 1.0,
        "recall": 0.5,
        "density": 6 / 5,
        "coverage": 0.5,
    }


def test_energy_distance_in_closed_form():
    """The distance of two sets of two points on a line is computed by hand, as a sum over all pairs."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0]])
    between = (3 + 5 + 2 + 4) / 4
    assert_close(energy_distance(a, b), 2 * between - 1.0 - 2.0)


def test_energy_distance_is_unbiased_about_zero(generator):
    """The mean over 200 pairs of samples of the ring is 0 within 4.5 standard errors (fails once in 1.5e5)."""
    values = torch.tensor(
        [energy_distance(*(ring().sample(50, generator=generator)[0] for _ in range(2))) for _ in range(200)]
    )
    assert values.mean().abs() < 4.5 * values.std() / 200**0.5
    assert (
        energy_distance(
            ring().sample(500, generator=generator)[0], ring(radius=1.0).sample(500, generator=generator)[0]
        )
        > 0.3
    )


def test_modes_of_the_ring(generator):
    mixture = ring()
    x, _ = mixture.sample(10_000, generator=generator)
    found = modes(x, mixture.mu, 0.1)
    assert found.covered == 8
    # A sample is within 3 sigma of its mode with probability 1 - exp(-9/2). The tolerance is 4.5 standard errors.
    expected = 1 - math.exp(-4.5)
    assert abs(found.near - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 10_000)
    half = x[x[:, 0] > 0.5]
    assert modes(half, mixture.mu, 0.1).covered == 3
    assert modes(torch.zeros(100, 2), mixture.mu, 0.1) == (0, 0.0)
    # A mode with less than 1 % of the samples does not count as covered.
    assert modes(torch.cat([half[:990], x[x[:, 0] < -1.9][:9]]), mixture.mu, 0.1).covered == 3


class Judge(nn.Module):
    """Classifier with two classes, bright and dark. Its feature is the mean of the image."""

    def __init__(self):
        super().__init__()
        self.device = "cpu"
        self.head = nn.Linear(1, 2)
        nn.init.zeros_(self.head.bias)
        self.head.weight.data = torch.tensor([[-5.0], [5.0]])

    def features(self, x):
        return x.mean((1, 2, 3))[:, None] - 0.5


class Grey:
    """Model that draws a black image for every third sample and white images for the others."""

    device = "cpu"

    def sample(self, n, *, generator):
        return (torch.arange(n) % 3 > 0).float().view(n, 1, 1, 1).expand(n, 1, 28, 28)


def test_what_is_said_of_samples():
    real = torch.cat([torch.zeros(50, 1, 28, 28), torch.ones(50, 1, 28, 28)])
    said = sample_metrics(Grey(), Judge().features(real).double(), Judge(), n=16)
    # 6 of 16 samples are black, with feature -1/2, and 10 are white, with feature 1/2.
    assert_close(said["rarest_class"], 6 / 16)
    assert_close(said["commonest_class"], 10 / 16)
    assert said["confident"] == 1.0
    var = lambda p, n: p * (1 - p) * n / (n - 1)  # noqa: E731
    a, b = math.sqrt(var(10 / 16, 16)), math.sqrt(var(1 / 2, 100))
    assert_close(said["classifier_fid"], (10 / 16 - 1 / 2) ** 2 + (a - b) ** 2)
    assert said["classifier_fid_error"] > 0
    assert_close(said["rarest_class_error"], math.sqrt(6 * 10 / 16**3))
    # All copies of an image are equal, so both sets cover each other.
    assert [said[k] for k in ("precision", "recall", "coverage")] == [1.0, 1.0, 1.0]
    assert_close(said["density"], 50 / 5)  # each sample lies in the balls of 50 real images
    assert {f"{k}_error" for k in ("classifier_kid", "recall", "density", "confident")} <= set(said)
    unsure = Judge()
    unsure.head.weight.data = torch.tensor([[-0.85], [0.85]])  # the probability of the predicted class is 0.70
    assert sample_metrics(Grey(), unsure.features(real).double(), unsure, n=16)["confident"] == 0.0


@pytest.mark.slow
def test_the_yardstick_fits_the_data(mnist_root, generator):
    from zoo.datamodules import Images

    data = Images("mnist")
    data.setup()
    images = data.splits["val"].images.float() / 255
    measure = SampleDistanceMetric(data, "test")
    assert measure.name == "classifier_fid"
    floor = measure(None, images)
    noisy = (images + 0.3 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    assert 0 < floor < 1 < measure(None, noisy)
    assert classify_images(images[:3], zoo.load("classifier")).features.shape == (3, 128)


def test_the_yardstick_of_points_and_sequences(generator):
    data = Toy("ring")
    data.setup()
    measure = SampleDistanceMetric(data)
    assert measure.name == "energy_distance"
    x = ring().sample(1000, generator=generator)[0].float()
    assert abs(measure(None, x)) < 0.02 < measure(None, 0.5 * x)
    for split, factor in (("train", 1.0), ("val", 2.0), ("test", 3.0)):
        data.splits[split] = data.splits[split]._replace(images=factor * data.splits[split].images)
    by = {split: SampleDistanceMetric(data, split)(None, 2 * x) for split in ("train", "val", "test")}
    assert by["val"] < 0.02 < min(by["train"], by["test"])
    chain = Toy("markov_chain")
    chain.setup()

    class Same:
        device = "cpu"
        log_likelihood = staticmethod(MarkovChain().log_probability)

    measure = SampleDistanceMetric(chain)
    assert (measure.name, measure(Same, None)) == ("kl", 0.0)


def test_fewer_samples_are_compared_with_as_many_points(generator):
    data = Toy("ring")
    data.setup()
    x = ring().sample(50, generator=generator)[0].float()
    assert SampleDistanceMetric(data)(None, x) == energy_distance(x, data.splits["val"].images[:50])


def test_what_is_measured_of_points():
    from zoo.evaluation.samples import measure_samples

    class Drawn:
        """Model that draws exact samples of the ring."""

        device = "cpu"

        def sample(self, n, *, generator):
            return ring().sample(n, generator=generator)[0].float()

    data = Toy("ring")
    data.setup()
    measured = measure_samples(Drawn(), data)
    assert measured["modes_covered"] == 8.0
    assert abs(measured["near_a_mode"] - (1 - math.exp(-4.5))) < 4.5 * 0.0011  # for 10,000 samples; fails once in 1.5e5
    assert abs(measured["energy_distance"]) < 0.01
    p = measured["near_a_mode"]
    assert_close(measured["near_a_mode_error"], math.sqrt(p * (1 - p) / 10_000))
