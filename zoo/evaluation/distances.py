"""Distances between samples and data: classifier-FID for (Fashion-)MNIST, energy distance for other images and points.

Both distances use samples only and need no density.

Classifier-FID is the Frechet distance of Heusel et al. 2017 (arXiv:1706.08500), in features of a classifier of
the zoo. The classifier was trained on the same data set. The usual FID uses a network trained on photographs. Values of
classifier-FID on one data set can therefore be compared with each other, but not with values of the usual FID. MNIST
and Fashion-MNIST have different classifiers, so their values cannot be compared either.

Classifier-FID has an upward bias, which is larger for fewer images. Compare only sets of equal size. The score of real
images is called the floor and is published next to the score of samples. If the floor is computed from fewer images
than the score of samples, the floor has the larger bias. Good samples may then score below the floor.

No classifier knows other images, such as photographs. For these images, the energy distance of their pixels is
measured. It needs no network and is 0 only for equal distributions (Székely & Rizzo 2013). Its unit is the Euclidean
distance of two images in [0, 1], which grows with the number of pixels. Use it to compare epochs or models on one data
set. It does not weigh details as people do, and values of different data sets or sizes cannot be compared.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import zoo
from zoo.checks import capabilities
from zoo.checks.values import check_integer
from zoo.datamodules import Images, Toy
from zoo.datamodules.access import name_of, split_of
from zoo.datamodules.splits import as_floats
from zoo.evaluation.estimates import Estimate, fraction, with_errors
from zoo.evaluation.frechet import frechet_distance, frechet_standard_error
from zoo.evaluation.kernels import kid
from zoo.evaluation.manifolds import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS, density_coverage, precision_recall
from zoo.evaluation.pairs import sums_between, sums_within, two_sample_estimate
from zoo.functional.precision import in_float64
from zoo.functional.progress import tracked
from zoo.sampling.chunks import sample_chunks

CONFIDENT = 0.9  # the classifier is confident if the probability of the predicted label exceeds this
CLASSIFIERS = {"mnist": "classifier", "fashion_mnist": "classifier-fashion"}  # checkpoint trained on these data
SIMILAR = {"digits": "classifier"}  # checkpoint trained on similar data: its distances only compare epochs and models
MOST_IMAGES = 5000  # largest number of samples and of real images in the energy distance of images


class ClassifierOutput(NamedTuple):
    """Outputs of the classifier for N images: ``features`` (N, F), float64, and ``probabilities`` (N, K)."""

    features: Tensor
    probabilities: Tensor


def classifier_of(data, similar: bool = False) -> str | None:
    """Return the name of the checkpoint that classifies the images of a data module, or None.

    The digits of scikit-learn look like those of MNIST, but the classifier was not trained on them. Its numbers on them
    are not published.

    Args:
        data: datamodule after ``setup``. Only ``Images`` have a classifier: the name alone does not make images known.
        similar: accept a classifier that was trained on similar data.
    """
    known = CLASSIFIERS | SIMILAR if similar else CLASSIFIERS
    return known.get(name_of(data)) if isinstance(data, Images) else None


@torch.no_grad()
def classify_images(images: Tensor, classifier, progress: bool = False) -> ClassifierOutput:
    """Return the outputs of a classifier for images in [0, 1], (N, 1, 28, 28).

    Args:
        images: images to classify.
        classifier: classifier in eval mode, such as ``zoo.load("classifier")``.
        progress: show a progress bar.
    """
    batches = tracked(images.split(500), "classifying images", "batch", show=progress)
    features = torch.cat([classifier.features(x.to(classifier.device)) for x in batches])
    return ClassifierOutput(features.cpu().double(), classifier.head(features).softmax(-1).cpu())


def confident(output: ClassifierOutput) -> Estimate:
    """Return the fraction of images whose predicted label has a probability above 0.9."""
    return fraction(output.probabilities.max(-1).values > CONFIDENT)


def feature_distances(real_features: Tensor, fake_features: Tensor, progress: bool = False) -> dict[str, Estimate]:
    """Return all distances between real and fake features, (N, F) and (M, F), each with its standard error.

    ``fid`` and ``kid`` are smaller for closer sets, and symmetric. ``precision``, ``recall``, ``density`` and
    ``coverage`` are larger for closer sets, and not symmetric (zoo/evaluation/manifolds.py). ``progress`` shows the
    progress of the error of ``fid``, which takes the longest.

    Precision and recall need at least 4 vectors in each set, and density and coverage at least 6 real vectors. They are
    left out if there are fewer.
    """
    real, fake = in_float64(real_features), in_float64(fake_features)
    found = {
        "fid": Estimate(frechet_distance(fake, real), frechet_standard_error(fake, real, progress=progress)),
        "kid": kid(real, fake),
    }
    if min(len(real), len(fake)) > PRECISION_NEIGHBOURS:
        found["precision"], found["recall"] = precision_recall(real, fake)
    if len(real) > DENSITY_NEIGHBOURS:
        found["density"], found["coverage"] = density_coverage(real, fake)
    return found


def classifier_distances(real: Tensor, fake: Tensor, ending: str = "") -> dict[str, Estimate]:
    """Return :func:`feature_distances` of features of the classifier, with the names of cards.

    The names ``fid`` and ``kid`` become ``classifier_fid`` and ``classifier_kid``. Each name ends with ``ending``.
    """
    names = {"fid": "classifier_fid", "kid": "classifier_kid"}
    return {names.get(name, name) + ending: found for name, found in feature_distances(real, fake).items()}


def sample_metrics(
    model, real: Tensor, classifier, n: int = 10_000, seed: int = 0, conditions=None, progress: bool = False
) -> dict[str, float]:
    """Return metrics of ``n`` samples of a model, computed with the classifier.

    Args:
        model: model in eval mode with ``sample(n, *, generator)``.
        real: features of real images from the same classifier, (N, F).
        classifier: classifier in eval mode.
        n: number of samples. They are drawn in chunks (zoo/sampling/chunks.py).
        seed: seed of the noise.
        conditions: conditions of the samples, by name.
        progress: show a progress bar.

    Returns:
        The following metrics, and the standard error ``<name>_error`` of each:
        ``classifier_fid``: Frechet distance of features.
        ``classifier_kid``: kernel distance of features (zoo/evaluation/kernels.py).
        ``precision``, ``recall``, ``density``, ``coverage``: see zoo/evaluation/manifolds.py. Precision and recall are
        left out for fewer than 4 samples.
        ``rarest_class``: fraction of samples in the class with the fewest samples.
        ``commonest_class``: fraction of samples in the class with the most samples.
        ``confident``: fraction of samples whose predicted label has a probability above 0.9.

        The errors of fractions are binomial. For the rarest and the commonest class, they ignore the selection.
    """
    fake = classify_images(sample_chunks(model, n, seed, progress=progress, **(conditions or {})), classifier, progress)
    predicted = fake.probabilities.argmax(-1)
    counts = predicted.bincount(minlength=fake.probabilities.shape[1])
    fractions = {
        "rarest_class": fraction(predicted == counts.argmin()),
        "commonest_class": fraction(predicted == counts.argmax()),
        "confident": confident(fake),
    }
    return with_errors(classifier_distances(real, fake.features) | fractions)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Return the energy distance of two sets of points, (N, D) and (M, D), with N and M at least 2.

        2 E|X - Y| - E|X - X'| - E|Y - Y'|

    The distance is 0 for equal distributions and positive for different ones (Székely & Rizzo 2013). The estimate is
    unbiased. It can therefore be negative if the distributions are equal or close.
    """
    return energy_estimate(a, b).value


def energy_estimate(a: Tensor, b: Tensor) -> Estimate:
    """Return :func:`energy_distance` and its jackknife standard error."""
    a, b = in_float64(a), in_float64(b)
    return two_sample_estimate(sums_between(a, b), sums_within(a), sums_within(b))


class ImageDistance:
    """Energy distance between samples and fixed real images, in pixel space.

    The distances of pairs are Euclidean, over all pixels and channels. They are computed in blocks of 500 rows, in
    float32, and summed in float64. 5,000 samples and 5,000 images of 12,288 values take about 0.8 GB of memory.

    Args:
        real: images in [0, 1], (M, ...), with M at least 2.
        device: device of the computation.

    Raises:
        UserError: if there are fewer than two images.
    """

    def __init__(self, real: Tensor, device: torch.device | str = "cpu"):
        check_integer("the number of real images", len(real), least=2)
        self.centre = real.to(device).float().mean(0).flatten()  # small numbers have small rounding errors
        self.real = self._vectors(real)
        self.within_real = sums_within(self.real)

    def _vectors(self, images: Tensor) -> Tensor:
        return images.to(self.centre.device).float().flatten(1) - self.centre

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Estimate:
        """Return the distance of ``samples``, (N, ...) in [0, 1], from the real images, with N at least 2.

        The value is the unbiased estimate of :func:`energy_distance`. The error is the jackknife standard error of
        :func:`zoo.evaluation.pairs.two_sample_estimate`, and NaN for fewer than three samples or real images.
        """
        fake = self._vectors(samples)
        return two_sample_estimate(sums_between(fake, self.real), sums_within(fake), self.within_real)


class Modes(NamedTuple):
    """Coverage of a mixture by samples.

    Attributes:
        covered: number of modes with at least 1 % of the samples near the mode.
        near: fraction of samples near any mode.
    """

    covered: int
    near: float


def modes(x: Tensor, mu: Tensor, sigma: float) -> Modes:
    """Return how many modes of a mixture the samples reach, and the fraction of samples near a mode.

    A sample is near a mode if its distance from the centre is below 3 sigma. This holds for 98.9 % of the samples of
    the mixture itself.

    Args:
        x: samples, (N, 2).
        mu: centres of the modes, (K, 2).
        sigma: standard deviation of each mode.
    """
    distance, which = torch.cdist(in_float64(x), in_float64(mu)).min(-1)
    near = distance < 3 * sigma
    counts = which[near].bincount(minlength=len(mu))
    return Modes(int((counts >= len(x) / 100).sum()), in_float64(near).mean().item())


class SampleDistanceMetric:
    """Distance between a model and a data set. A smaller distance is better.

    The data select the distance. Everything that depends only on the data is computed once.

        kl                 for sequences of a known Markov chain: KL(data || model), nats, by enumeration
        energy_distance    for points in the plane
        classifier_fid     for images of MNIST, Fashion-MNIST and the digits
        energy_distance    for all other examples, by :class:`ImageDistance`, on the first 5,000 samples

    Args:
        data: datamodule after ``setup``.
        split: ``train``, ``val`` or ``test``.
        real: examples to use in place of those of ``data``, (N, ...).
        device: device on which the distance of other examples is computed.

    Raises:
        UserError: if the data have fewer than two examples.
    """

    def __init__(self, data, split: str = "val", real: Tensor | None = None, device: torch.device | str = "cpu"):
        if isinstance(data, Toy) and isinstance(data.distribution, capabilities.Enumerable):
            self.name = "kl"
            self.measure = lambda model, _: data.distribution.kl(lambda v: model.log_likelihood(v.to(model.device)))
        elif isinstance(data, Toy):
            points = data.splits[split].images.cpu()
            self.name = "energy_distance"
            self.measure = lambda _, samples: energy_distance(samples, points[: len(samples)])
        elif name := classifier_of(data, similar=True):
            self.name = "classifier_fid"
            classifier = zoo.load(name)
            features = classify_images(as_floats(data.splits[split].images.cpu()), classifier).features
            self.measure = lambda _, samples: frechet_distance(classify_images(samples, classifier).features, features)
        else:
            self.name = "energy_distance"
            found = split_of(data, split, MOST_IMAGES).images if real is None else real[:MOST_IMAGES]
            distance = ImageDistance(as_floats(found), device)
            self.measure = lambda _, samples: distance(samples[:MOST_IMAGES]).value

    def __call__(self, model, samples: Tensor) -> float:
        """Return the distance between ``samples`` and the data. ``kl`` uses ``model`` and not ``samples``."""
        return self.measure(model, samples)
