"""A mixture of Gaussians with diagonal covariances, as the prior of a VAE: densities, loss terms and fitting.

The latents z have the density p(z), and the K clusters c have the responsibilities p(c | z):

    p(z)     = sum_c pi_c N(z | mu_c, diag exp(logvar_c))
    p(c | z) = pi_c N(z | c) / sum_k pi_k N(z | k),    N(z | c) = N(z | mu_c, diag exp(logvar_c))
"""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.functional.densities import kl_normal, log_normal, reparameterise
from zoo.functional.progress import counted, duration, tracked

log = logging.getLogger(__name__)


class Mixture(NamedTuple):
    """The prior p(c) p(z | c) with parameters ``log_pi`` (K,), ``mu_c`` (K, D) and ``logvar_c`` (K, D)."""

    log_pi: Tensor
    mu_c: Tensor
    logvar_c: Tensor


def log_p_z_given_c(z: Tensor, mixture: Mixture) -> Tensor:
    """Return log N(z | mu_c, diag exp(logvar_c)) for every c, (..., K) nats, for z (..., D)."""
    return log_normal(z.unsqueeze(-2), mixture.mu_c, mixture.logvar_c)


def log_gmm(z: Tensor, mixture: Mixture) -> Tensor:
    """Return log p(z) = log sum_c pi_c N(z | c), (...) nats, for z (..., D)."""
    return (mixture.log_pi + log_p_z_given_c(z, mixture)).logsumexp(-1)


def log_responsibilities(z: Tensor, mixture: Mixture) -> Tensor:
    """Return log p(c | z) by Bayes' rule, (..., K), for z (..., D)."""
    return (mixture.log_pi + log_p_z_given_c(z, mixture)).log_softmax(-1)  # p(c | z)


def kl_components(mu: Tensor, logvar: Tensor, mixture: Mixture) -> Tensor:
    """Return KL( N(mu, diag exp(logvar)) || N(mu_c, diag exp(logvar_c)) ) for every c, (..., K) nats."""
    return kl_normal(mu.unsqueeze(-2), logvar.unsqueeze(-2), mixture.mu_c, mixture.logvar_c)


def log_q(eps: Tensor, logvar: Tensor) -> Tensor:
    """Return log q(z | x) at z = mu + sigma eps, (...) nats.

    The argument is eps, because (z - mu) / sigma would have rounding errors.
    """
    return log_normal(eps, torch.zeros_like(eps), torch.zeros_like(eps)) - logvar.sum(-1) / 2


def kl_terms(z: Tensor, log_q: Tensor, log_gamma: Tensor, mixture: Mixture) -> dict[str, Tensor]:
    """Return the terms of the negative ELBO except -log p(x | z), (B,) nats each, at one z.

    Args:
        z: latents, (B, D).
        log_q: log q(z | x), (B,).
        log_gamma: log gamma of any distribution gamma over clusters, (B, K).
        mixture: the prior.

    Returns:
        ``kl_z`` = log q(z|x) - sum_c gamma_c log p(z|c), and ``kl_c`` = KL( gamma || pi ).
    """
    gamma = log_gamma.exp()
    return {
        "kl_z": log_q - (gamma * log_p_z_given_c(z, mixture)).sum(-1),  # with kl_c and nll: minus the five terms
        "kl_c": (gamma * (log_gamma - mixture.log_pi)).sum(-1),
    }


def negative_elbo(x: Tensor, eps: Tensor, encode: Callable, log_px: Callable, mixture: Mixture) -> dict[str, Tensor]:
    """Return the negative ELBO and its terms at one draw of z, (B,) nats each.

        loss = nll + kl_z + kl_c = - log p(x|z) - log p(z) + log q(z|x)

    The terms ``kl_z`` and ``kl_c`` come from :func:`kl_terms`, with the responsibilities p(c | z) as gamma.

    Args:
        x: binary images, (B, ...).
        eps: standard normal, (B, D).
        encode: x -> (mu, logvar) of q(z | x), (B, D) each.
        log_px: (x, z) -> log p(x | z), (B,).
        mixture: the prior.

    Returns:
        ``loss``, ``nll``, ``kl_z`` and ``kl_c``.
    """
    mu, logvar = encode(x)
    z = reparameterise(mu, logvar, eps)
    terms = {"nll": -log_px(x, z), **kl_terms(z, log_q(eps, logvar), log_responsibilities(z, mixture), mixture)}
    return {"loss": sum(terms.values()), **terms}


def mean_field_negative_elbo(
    x: Tensor, eps: Tensor, encode: Callable, log_px: Callable, mixture: Mixture, log_gamma: Tensor
) -> dict[str, Tensor]:
    """Return minus the mean field, eq. 12 of Jiang et al., with divergences in closed form.

    Args:
        log_gamma: log gamma, (B, K). Other arguments and the result are as for :func:`negative_elbo`.
    """
    mu, logvar = encode(x)
    gamma = log_gamma.exp()
    terms = {
        "nll": -log_px(x, reparameterise(mu, logvar, eps)),
        "kl_z": (gamma * kl_components(mu, logvar, mixture)).sum(-1),  # with kl_c and nll: minus the mean field
        "kl_c": (gamma * (log_gamma - mixture.log_pi)).sum(-1),
    }
    return {"loss": sum(terms.values()), **terms}


def log_importance_weight(x: Tensor, eps: Tensor, encode: Callable, log_px: Callable, mixture: Mixture) -> Tensor:
    """Return log w = log p(x|z) + log p(z) - log q(z|x) at z = mu + sigma eps, (B,) nats. E_q[w] = p(x)."""
    mu, logvar = encode(x)
    z = reparameterise(mu, logvar, eps)
    return log_px(x, z) + log_gmm(z, mixture) - log_q(eps, logvar)  # marginal form


def cost_at_a_fixed_draw(
    x: Tensor, eps: Tensor, encode: Callable, log_px: Callable, mixture: Mixture
) -> tuple[Tensor, Tensor]:
    """Return f = -log p(x|z) - log p(z) + log q(z|x) and log q(z|x), (B,) nats each, at a fixed z.

    A score-function estimator uses both. The gradient of E_q[f] with respect to the encoder is
    E_q[ f grad log q(z|x) ]. The decoder and the mixture receive the gradient of f. In f, log q(z|x) is
    detached, because the expectation of its gradient is zero.
    """
    mu, logvar = encode(x)
    z = reparameterise(mu, logvar, eps).detach()
    log_qz = log_normal(z, mu, logvar)
    return -log_px(x, z) - log_gmm(z, mixture) + log_qz.detach(), log_qz


def check_images(images: float, num_clusters: int) -> None:
    """Check that there are at least as many training images as clusters.

    Args:
        images: number of training images, infinite if it is unknown.
        num_clusters: K.

    Raises:
        UserError: if there are fewer images than clusters.
    """
    if images < num_clusters:
        raise UserError(
            f"{images:,} training images are too few for {num_clusters:,} clusters; lower model.num_clusters or train "
            "on more images"
        )


def invariance(z: Tensor, z_deformed: Tensor, mixture: Mixture) -> float:
    """Return the mutual information between the clusters of images and of their deformed copies, nats, at most log K.

    See Ji et al. 2019, "Invariant Information Clustering", eq. 2-3. The mutual information is low if the upright and
    the slanted images of a digit have different clusters, or if two digits share a cluster.

    Args:
        z: latents of images, (N, D).
        z_deformed: latents of the same images after a random deformation, (N, D).
        mixture: the clusters.
    """
    joint = log_responsibilities(z, mixture).exp().T @ log_responsibilities(z_deformed, mixture).exp() / len(z)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float((torch.xlogy(joint, joint) - torch.xlogy(joint, independent)).sum())


def fit_mixture(
    z: Tensor, z_deformed: Tensor, num_clusters: int, restarts: int, seed: int, method: str = "kmeans"
) -> Mixture:
    """Return a mixture fitted to latents: the weights, means and variances of the clusters.

    Args:
        z: latents, (N, D).
        z_deformed: latents of the same images after a random deformation, (N, D). Only ``kmeans`` uses them.
        num_clusters: K.
        restarts: number of runs from different initial values.
        seed: seed of the initial values.
        method: ``kmeans`` runs k-means and returns the run with the largest :func:`invariance`. ``em`` runs
            expectation-maximisation from k-means and returns the run with the highest likelihood.

    Raises:
        UserError: if there are fewer distinct latents than clusters.
    """
    if (distinct := len(z.unique(dim=0))) < num_clusters:
        raise UserError(
            f"{len(z):,} images have {distinct:,} different latents, but {num_clusters} clusters need at least "
            f"{num_clusters}; lower num_clusters, or lower lr if the autoencoder has collapsed"
        )
    started = time.monotonic()
    if method == "em":
        log.info(
            "Fitting a mixture of %d Gaussians to %s latents, %s", num_clusters, f"{len(z):,}", counted(restarts, "run")
        )
        fitted = _expectation_maximisation(z, num_clusters, restarts, seed)
    else:
        runs = tracked(range(restarts), "fitting the mixture", "run")
        optima = (_kmeans(z, num_clusters, seed + i) for i in runs)
        fitted = max(optima, key=lambda mixture: invariance(z, z_deformed, mixture))
    log.info(
        "Mixture of %d Gaussians fitted to %s latents in %s, weights %s",
        *(num_clusters, f"{len(z):,}", duration(time.monotonic() - started)),
        " ".join(f"{p:.2f}" for p in fitted.log_pi.exp().sort(descending=True).values.tolist()),
    )
    return fitted


def _expectation_maximisation(z: Tensor, num_clusters: int, restarts: int, seed: int) -> Mixture:
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # with several threads, the order of sums varies, so the result also varies
        gmm = GaussianMixture(num_clusters, covariance_type="diag", n_init=restarts, random_state=seed)
        gmm.fit(z.double().numpy())
    share, mean, variance = (torch.from_numpy(a).float() for a in (gmm.weights_, gmm.means_, gmm.covariances_))
    return Mixture(share.log(), mean, variance.log())


def _kmeans(z: Tensor, num_clusters: int, seed: int) -> Mixture:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        c = torch.from_numpy(KMeans(num_clusters, n_init=1, random_state=seed).fit(z.numpy()).labels_)
    clusters = [z[c == k] for k in range(num_clusters)]
    share = torch.tensor([len(cluster) / len(z) for cluster in clusters])
    mean = torch.stack([cluster.mean(0) for cluster in clusters])
    variance = torch.stack([cluster.var(0, correction=0) for cluster in clusters]).clamp(min=1e-6)
    return Mixture(share.log(), mean, variance.log())
