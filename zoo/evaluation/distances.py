"""Distances between samples and data: classifier-FID for images, energy distance for points.

Both distances use samples only and need no density.

Classifier-FID is the Frechet distance of Heusel et al. 2017 (arXiv:1706.08500, eq. 6), in features of the zoo's MNIST
classifier. The usual FID uses a network trained on photographs. Values of classifier-FID can therefore be compared
with each other, but not with values of the usual FID.

Classifier-FID has an upward bias, which is larger for fewer images. Compare only sets of equal size. The score of real
images is called the floor and is published next to the score of samples. If the floor is computed from fewer images
than the score of samples, the floor has the larger bias. Good samples may then score below the floor.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import zoo
from zoo.checks import capabilities
from zoo.datamodules import Toy
from zoo.datamodules.splits import as_floats
from zoo.functional.noise import chunk_generator
from zoo.functional.precision import in_float64
from zoo.functional.progress import tracked
from zoo.sampling.chunks import sample_chunks

CONFIDENT = 0.9  # the classifier is confident if the probability of the predicted label exceeds this


class ClassifierOutput(NamedTuple):
    """Outputs of the classifier for N images: ``features`` (N, F), float64, and ``probabilities`` (N, K)."""

    features: Tensor
    probabilities: Tensor


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
        ``rarest_digit``: fraction of samples that are classified as the least frequent digit.
        ``commonest_digit``: fraction of samples that are classified as the most frequent digit.
        ``confident``: fraction of samples whose predicted label has a probability above 0.9.
    """
    fake = classify_images(sample_chunks(model, n, seed, progress=progress, **(conditions or {})), classifier, progress)
    digit = fake.probabilities.argmax(-1)
    shares = digit.bincount(minlength=fake.probabilities.shape[1]) / n
    return {
        "classifier_fid": frechet_distance(fake.features, real),
        "classifier_fid_error": frechet_standard_error(fake.features, real),
        "rarest_digit": shares.min().item(),
        "commonest_digit": shares.max().item(),
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

    The kind of data selects the distance. Features of the data are computed once.

        kl                 for sequences of a known Markov chain: KL(data || model), nats, by enumeration
        energy_distance    for points in the plane
        classifier_fid     for images

    Args:
        data: datamodule after ``setup``.
        split: ``train``, ``val`` or ``test``.
    """

    def __init__(self, data, split: str = "val"):
        real = data.splits[split].images.cpu()
        if isinstance(data, Toy) and isinstance(data.distribution, capabilities.Enumerable):
            self.name = "kl"
            self.measure = lambda model, _: data.distribution.kl(lambda v: model.log_likelihood(v.to(model.device)))
        elif real.shape[1:] == (2,):
            self.name = "energy_distance"
            self.measure = lambda _, samples: energy_distance(samples, real[: len(samples)])
        else:
            self.name = "classifier_fid"
            classifier = zoo.load("classifier")
            features = classify_images(as_floats(real), classifier).features
            self.measure = lambda _, samples: frechet_distance(classify_images(samples, classifier).features, features)

    def __call__(self, model, samples: Tensor) -> float:
        """Return the distance between ``samples`` and the data. ``kl`` uses ``model`` and not ``samples``."""
        return self.measure(model, samples)
