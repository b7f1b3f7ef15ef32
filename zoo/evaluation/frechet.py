"""Frechet distance of two sets of vectors, and its standard error (Heusel et al. 2017, arXiv:1706.08500)."""

import torch
from torch import Tensor

from zoo.functional.noise import chunk_generator
from zoo.functional.progress import tracked


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


def frechet_standard_error(a: Tensor, b: Tensor, resamples: int = 50, seed: int = 0, progress: bool = False) -> float:
    """Return the standard deviation of :func:`frechet_distance` over bootstrap resamples of both sets.

    A resample has fewer distinct vectors than the original set. The bootstrap mean is therefore biased and not used.

    For equal or close distributions, the error is too large. For two sets of 1,000 features of digits, it was twice the
    standard deviation over 20 independent pairs of sets. For distant distributions, it agrees with the deviation.
    """
    distances = []
    for k in tracked(range(resamples), "standard error of the FID", "resample", show=progress):
        generator = chunk_generator(seed, k)
        again = [x[torch.randint(len(x), (len(x),), generator=generator)] for x in (a, b)]
        distances.append(frechet_distance(*again))
    return float(torch.tensor(distances).std())
