"""Distances between samples and data: classifier-FID for (Fashion-)MNIST, energy distance for other images and points.

Both distances use samples only and need no density.

Classifier-FID is the Frechet distance of Heusel et al. 2017 (arXiv:1706.08500, eq. 6), in features of a classifier of
the zoo. The classifier was trained on the same data set. The usual FID uses a network trained on photographs. Values of
classifier-FID on one data set can therefore be compared with each other, but not with values of the usual FID. MNIST
and Fashion-MNIST have different classifiers, so their values cannot be compared either.

Classifier-FID has an upward bias, which is larger for fewer images. Compare only sets of equal size. The score of real
images is called the floor and is published next to the score of samples. If the floor is computed from fewer images
than the score of samples, the floor has the larger bias. Good samples may then score below the floor.

No classifier knows other images, such as photographs. For these images, the energy distance of their pixels is
measured. It needs no network and is 0 only for equal distributions (Szekely & Rizzo 2013). Its unit is the Euclidean
distance of two images in [0, 1], which grows with the number of pixels. Use it to compare epochs or models on one data
set. It does not weigh details as people do, and values of different data sets or sizes cannot be compared.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

import zoo
from zoo.checks import capabilities
from zoo.checks.values import check_integer
from zoo.datamodules import Images, Toy
from zoo.datamodules.access import name_of, split_of
from zoo.datamodules.splits import as_floats
from zoo.functional.noise import chunk_generator
from zoo.functional.precision import in_float64
from zoo.functional.progress import tracked
from zoo.sampling.chunks import sample_chunks

CONFIDENT = 0.9  # the classifier is confident if the probability of the predicted label exceeds this
CLASSIFIERS = {"mnist": "classifier", "fashion_mnist": "classifier-fashion"}  # checkpoint trained on these data
SIMILAR = {"digits": "classifier"}  # checkpoint trained on similar data: its distances only compare epochs and models
MOST_IMAGES = 5000  # largest number of samples and of real images in the energy distance of images
ROWS_AT_ONCE = 500  # images whose distances to all others are in memory at once


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


def confident(output: ClassifierOutput) -> float:
    """Return the fraction of images whose predicted label has a probability above 0.9."""
    return in_float64(output.probabilities.max(-1).values > CONFIDENT).mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Frechet distance of two sets of vectors, (N, F) and (M, F), with N and M at least 2.

        |mu_a - mu_b|^2 + tr( C_a + C_b - 2 (C_a C_b)^(1/2) )

    This is the squared 2-Wasserstein distance between two Gaussians with the means and covariances of the sets. The
    code takes the eigenvalues of the symmetric matrix C_a^(1/2) C_b C_a^(1/2). They equal the eigenvalues of C_a C_b.
    """
    (mu_a, C_a), (mu_b, C_b) = ((x.mean(0), torch.atleast_2d(torch.cov(x.T))) for x in (a, b))
    values, vectors = torch.linalg.eigh(C_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ C_b @ root).clamp(min=0).sqrt().sum()
    return float((mu_a - mu_b).square().sum() + C_a.trace() + C_b.trace() - 2 * cross)


def frechet_standard_error(a: Tensor, b: Tensor, resamples: int = 50, seed: int = 0) -> float:
    """Return the standard deviation of :func:`frechet_distance` over bootstrap resamples of both sets.

    A resample has fewer distinct vectors than the original set. The bootstrap mean is therefore biased and not used.
    """
    distances = []
    for k in range(resamples):
        generator = chunk_generator(seed, k)
        again = [x[torch.randint(len(x), (len(x),), generator=generator)] for x in (a, b)]
        distances.append(frechet_distance(*again))
    return float(torch.tensor(distances).std())


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
        ``classifier_fid`` and its standard error ``classifier_fid_error``.
        ``rarest_class``: fraction of samples in the class with the fewest samples.
        ``commonest_class``: fraction of samples in the class with the most samples.
        ``confident``: fraction of samples whose predicted label has a probability above 0.9.
    """
    fake = classify_images(sample_chunks(model, n, seed, progress=progress, **(conditions or {})), classifier, progress)
    predicted = fake.probabilities.argmax(-1)
    shares = predicted.bincount(minlength=fake.probabilities.shape[1]) / n
    return {
        "classifier_fid": frechet_distance(fake.features, real),
        "classifier_fid_error": frechet_standard_error(fake.features, real),
        "rarest_class": shares.min().item(),
        "commonest_class": shares.max().item(),
        "confident": confident(fake),
    }


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Return the energy distance of two sets of points, (N, D) and (M, D), with N and M at least 2.

        2 E|X - Y| - E|X - X'| - E|Y - Y'|

    The distance is 0 for equal distributions and positive for different ones (Szekely & Rizzo 2013). The estimate is
    unbiased. It can therefore be negative if the distributions are equal or close.
    """
    a, b = in_float64(a), in_float64(b)
    within = lambda x: torch.pdist(x).mean()  # noqa: E731
    return float(2 * torch.cdist(a, b).mean() - within(a) - within(b))


class Estimate(NamedTuple):
    """An estimate and its standard error."""

    value: float
    error: float


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

        The value is the unbiased estimate of :func:`energy_distance`. The error is the jackknife standard error over
        samples and real images. On average, the jackknife does not underestimate the variance (Efron & Stein 1981).
        The error is NaN for fewer than three samples or real images.
        """
        fake = self._vectors(samples)
        n, m = len(fake), len(self.real)
        of_fake, of_real = sums_between(fake, self.real)
        within_fake, between = sums_within(fake), of_fake.sum()
        value = 2 * between / (n * m) - within_fake.sum() / (n * (n - 1)) - self.within_real.sum() / (m * (m - 1))
        variances = [
            _jackknife_variance(of_fake, within_fake, between, m),
            _jackknife_variance(of_real, self.within_real, between, n),
        ]
        return Estimate(float(value), math.sqrt(sum(variances)))


def _jackknife_variance(between: Tensor, within: Tensor, total: Tensor, others: int) -> float:
    """Return the jackknife variance of the energy distance over the examples of one set.

    Args:
        between: sum of the distances from each example to the other set, (N,).
        within: sum of the distances from each example to its own set, (N,).
        total: sum of ``between``.
        others: number of examples in the other set.
    """
    n = len(between)
    if n < 3:
        return math.nan
    # The distance without each of the examples. The term of the other set is constant and is left out.
    without = 2 * (total - between) / ((n - 1) * others) - (within.sum() - 2 * within) / ((n - 1) * (n - 2))
    return float((n - 1) / n * (without - without.mean()).square().sum())


def sums_between(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the distances from each row of ``a`` to all rows of ``b``, and the reverse, float64, CPU.

    Args:
        a: vectors, (N, D).
        b: vectors, (M, D).
    """
    rows, columns = [], torch.zeros(len(b), dtype=torch.float64)
    for part in a.split(ROWS_AT_ONCE):
        distances = in_float64(torch.cdist(part, b))
        rows.append(distances.sum(1).cpu())
        columns += distances.sum(0).cpu()
    return torch.cat(rows), columns


def sums_within(a: Tensor) -> Tensor:
    """Return the sum of the distances from each row of ``a``, (N, D), to the other rows, (N,), float64, on the CPU."""
    sums = torch.zeros(len(a), dtype=torch.float64)
    for begin in range(0, len(a), ROWS_AT_ONCE):
        part = a[begin : begin + ROWS_AT_ONCE]
        end = begin + len(part)
        distances = in_float64(torch.cdist(part, a[begin:]))  # pairs with earlier rows are counted already
        distances[:, : len(part)].fill_diagonal_(0)  # cdist rounds the distance of a row to itself
        sums[begin:end] += distances.sum(1).cpu()
        sums[end:] += distances[:, len(part) :].sum(0).cpu()
    return sums


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
