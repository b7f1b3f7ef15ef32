"""A mixture of Gaussians with diagonal covariances: its densities, its responsibilities, and its fit to points.

p(z)     = sum_c pi_c N(z | mu_c, diag exp(logvar_c))
p(c | z) = pi_c N(z | c) / sum_k pi_k N(z | k)                                     responsibilities
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.functional.densities import kl_normal, log_normal


class Mixture(NamedTuple):
    """The prior p(c) p(z | c): ``log_pi`` (K,), ``mu_c`` and ``logvar_c`` (K, D)."""

    log_pi: Tensor
    mu_c: Tensor
    logvar_c: Tensor


def log_p_z_given_c(z: Tensor, mixture: Mixture) -> Tensor:
    """log N(z | mu_c, diag exp(logvar_c)) for every c; (..., D) to (..., K) nats."""
    return log_normal(z.unsqueeze(-2), mixture.mu_c, mixture.logvar_c)


def log_gmm(z: Tensor, mixture: Mixture) -> Tensor:
    """log p(z) = log sum_c pi_c N(z | c); (..., D) to (...) nats."""
    return (mixture.log_pi + log_p_z_given_c(z, mixture)).logsumexp(-1)


def log_responsibilities(z: Tensor, mixture: Mixture) -> Tensor:
    """log p(c | z), Bayes' rule; (..., D) to (..., K)."""
    return (mixture.log_pi + log_p_z_given_c(z, mixture)).log_softmax(-1)


def kl_components(mu: Tensor, logvar: Tensor, mixture: Mixture) -> Tensor:
    """KL( N(mu, diag exp(logvar)) || N(mu_c, diag exp(logvar_c)) ) for every c; (..., D) to (..., K) nats."""
    return kl_normal(mu.unsqueeze(-2), logvar.unsqueeze(-2), mixture.mu_c, mixture.logvar_c)


def invariance(z: Tensor, z_deformed: Tensor, mixture: Mixture) -> float:
    """Mutual information of the clusters of images and of the same images deformed, nats, at most log K.

    Ji et al. 2019, "Invariant Information Clustering", eq. 2-3: it is low for a digit cut in two by its slant, and for
    two digits in one cluster.
    """
    joint = log_responsibilities(z, mixture).exp().T @ log_responsibilities(z_deformed, mixture).exp() / len(z)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float((torch.xlogy(joint, joint) - torch.xlogy(joint, independent)).sum())


def fit_mixture(
    z: Tensor, z_deformed: Tensor, num_clusters: int, restarts: int, seed: int, method: str = "kmeans"
) -> Mixture:
    """Shares, means and variances of clusters of latents.

    Args:
        z: latents, (N, D).
        z_deformed: latents of the same images, deformed, (N, D).
        restarts: runs from other beginnings.
        method: ``kmeans``: of its optima, the one of the largest invariance; or ``em``: the mixture of Gaussians with
            diagonal covariances of the highest likelihood, which begins with k-means.

    Raises:
        UserError: for latents that do not fall into ``num_clusters`` clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    if (distinct := len(z.unique(dim=0))) < num_clusters:
        raise UserError(
            f"{len(z):,} images have {distinct:,} different latents, fewer than the {num_clusters} clusters: lower "
            "num_clusters, or where the autoencoder has collapsed, lr"
        )
    if method == "em":
        with threadpool_limits(1):  # several threads would add up in another order each time
            gmm = GaussianMixture(num_clusters, covariance_type="diag", n_init=restarts, random_state=seed)
            gmm.fit(z.double().numpy())
        share, mean, variance = (torch.from_numpy(a).float() for a in (gmm.weights_, gmm.means_, gmm.covariances_))
        return Mixture(share.log(), mean, variance.log())
    optima = []
    for i in range(restarts):
        with threadpool_limits(1):
            c = torch.from_numpy(KMeans(num_clusters, n_init=1, random_state=seed + i).fit(z.numpy()).labels_)
        clusters = [z[c == k] for k in range(num_clusters)]
        share = torch.tensor([len(cluster) / len(z) for cluster in clusters])
        mean = torch.stack([cluster.mean(0) for cluster in clusters])
        variance = torch.stack([cluster.var(0, correction=0) for cluster in clusters]).clamp(min=1e-6)
        optima.append(Mixture(share.log(), mean, variance.log()))
    return max(optima, key=lambda mixture: invariance(z, z_deformed, mixture))
