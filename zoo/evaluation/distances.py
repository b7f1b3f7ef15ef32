"""How far a set of samples is from a set of data: classifier-FID for images, the energy distance for points.

Neither needs a density. Classifier-FID is the Frechet distance of Heusel et al. 2017 (arXiv:1706.08500, eq. 6) in the
features of the zoo's own MNIST classifier, in place of a network trained on photographs: its values compare with each
other, never with a plain FID. It is biased upwards, the more the fewer images there are, so that sets of one size
compare. The floor, what real images score, is published beside it; where it is of fewer images than the samples are,
its bias is the larger, and good samples may score below it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import zoo
from zoo.checks import capabilities
from zoo.datamodules import Toy
from zoo.functional.noise import chunk_generator
from zoo.functional.precision import in_float64
from zoo.functional.progress import tracked
from zoo.sampling.chunks import sample_chunks

CONFIDENT = 0.9


class Judged(NamedTuple):
    """What the classifier says of N images: ``features`` (N, F), float64; ``probabilities`` (N, K)."""

    features: Tensor
    probabilities: Tensor


@torch.no_grad()
def judge_images(images: Tensor, judge, progress: bool = False) -> Judged:
    """Images in [0, 1], (N, 1, 28, 28), as a classifier sees them that is in eval mode, ``zoo.load("classifier")``."""
    batches = tracked(images.split(500), "judging images", "batch", show=progress)
    features = torch.cat([judge.features(x.to(judge.device)) for x in batches])
    return Judged(features.cpu().double(), judge.head(features).softmax(-1).cpu())


def confident(judged: Judged) -> float:
    """The share of images that the judge is more than 0.9 sure of."""
    return in_float64(judged.probabilities.max(-1).values > CONFIDENT).mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr( C_a + C_b - 2 (C_a C_b)^(1/2) ) of two sets of vectors, (N, F) and (M, F), N, M at least 2.

    The squared 2-Wasserstein distance of the Gaussians with their means and covariances. The eigenvalues of C_a C_b are
    those of the symmetric C_a^(1/2) C_b C_a^(1/2).
    """
    (mu_a, C_a), (mu_b, C_b) = ((x.mean(0), torch.atleast_2d(torch.cov(x.T))) for x in (a, b))
    values, vectors = torch.linalg.eigh(C_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ C_b @ root).clamp(min=0).sqrt().sum()
    return float((mu_a - mu_b).square().sum() + C_a.trace() + C_b.trace() - 2 * cross)


def frechet_standard_error(a: Tensor, b: Tensor, resamples: int = 50, seed: int = 0) -> float:
    """The standard deviation of :func:`frechet_distance` over bootstrap resamples of both sets.

    Of their mean nothing is made: a resample has fewer distinct vectors, and so a higher bias.
    """
    distances = []
    for k in range(resamples):
        generator = chunk_generator(seed, k)
        again = [x[torch.randint(len(x), (len(x),), generator=generator)] for x in (a, b)]
        distances.append(frechet_distance(*again))
    return float(torch.tensor(distances).std())


def judged_samples(
    model, real: Tensor, judge, n: int = 10_000, seed: int = 0, conditions=None, progress: bool = False
) -> dict[str, float]:
    """What the classifier says of ``n`` samples, beside real images.

    Args:
        model: anything with ``sample(n, *, generator)``; put it in eval mode first.
        real: features of real images by the same judge, (N, F).
        judge: the classifier, in eval mode.
        n: samples, drawn in the chunks of zoo/sampling/chunks.py.
        seed: of the noise.
        conditions: of the samples, by name.
        progress: show a bar.

    Returns:
        ``classifier_fid`` and ``classifier_fid_error``, its standard error; ``rarest_digit`` and ``commonest_digit``,
        the shares of samples taken for them; ``confident``, the share of which the judge is more than 0.9 sure.
    """
    fake = judge_images(sample_chunks(model, n, seed, progress=progress, **(conditions or {})), judge, progress)
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
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of two sets of points, (N, D) and (M, D), N, M at least 2.

    Szekely & Rizzo 2013: 0 for equal distributions and positive else. Unbiased, so that estimates of 0 lie on
    both sides of it.
    """
    a, b = in_float64(a), in_float64(b)
    within = lambda x: torch.pdist(x).mean()  # noqa: E731
    return float(2 * torch.cdist(a, b).mean() - within(a) - within(b))


class Modes(NamedTuple):
    """``covered``: how many modes have 1 % of the samples near them, or more; ``near``: the share near any mode."""

    covered: int
    near: float


def modes(x: Tensor, mu: Tensor, sigma: float) -> Modes:
    """Which modes of a mixture samples (N, 2) reach; near is within 3 sigma, where its own samples are in 98.9 %.

    Args:
        x: samples.
        mu: centres, (K, 2).
        sigma: of each mode.
    """
    distance, which = torch.cdist(in_float64(x), in_float64(mu)).min(-1)
    near = distance < 3 * sigma
    counts = which[near].bincount(minlength=len(mu))
    return Modes(int((counts >= len(x) / 100).sum()), in_float64(near).mean().item())


class Yardstick:
    """The distance that suits a datamodule, with the data's side of it prepared once; the less the better.

    ``kl`` in nats, enumerated, for sequences of a known chain and a model of their probability; ``energy_distance`` for
    points; ``classifier_fid`` for images.

    Args:
        data: a datamodule, set up.
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
            judge = zoo.load("classifier")
            features = judge_images(real[:, None].float() / 255, judge).features
            self.measure = lambda _, samples: frechet_distance(judge_images(samples, judge).features, features)

    def __call__(self, model, samples: Tensor) -> float:
        """The distance of ``samples`` of ``model`` from the data; of a model of sequences itself."""
        return self.measure(model, samples)
