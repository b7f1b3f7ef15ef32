"""A mixture of Gaussians with diagonal covariances: densities, responsibilities, cost as a prior, and fit to points.

p(z)     = sum_c pi_c N(z | mu_c, diag exp(logvar_c))
p(c | z) = pi_c N(z | c) / sum_k pi_k N(z | k)                                     responsibilities
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


def log_q(eps: Tensor, logvar: Tensor) -> Tensor:
    """log q(z | x) at z = mu + sigma eps, from eps = (z - mu) / sigma without its rounding; (...) nats."""
    return log_normal(eps, torch.zeros_like(eps), torch.zeros_like(eps)) - logvar.sum(-1) / 2


def kl_terms(z: Tensor, log_q: Tensor, log_gamma: Tensor, mixture: Mixture) -> dict[str, Tensor]:
    """What the five terms have beside log p(x | z), at one z.

    Args:
        z: (B, D).
        log_q: log q(z | x), (B,).
        log_gamma: logarithms of any distribution over clusters, (B, K).

    Returns:
        ``kl_z`` = log q(z|x) - sum_c gamma_c log p(z|c), and ``kl_c`` = KL( gamma || pi ): nats, (B,) each.
    """
    gamma = log_gamma.exp()
    return {
        "kl_z": log_q - (gamma * log_p_z_given_c(z, mixture)).sum(-1),
        "kl_c": (gamma * (log_gamma - mixture.log_pi)).sum(-1),
    }


def negative_elbo(x: Tensor, eps: Tensor, encode: Callable, log_px: Callable, mixture: Mixture) -> dict[str, Tensor]:
    """The five terms with gamma = p(c | z), one draw of z: - log p(x|z) - log p(z) + log q(z|x), term by term.

    Args:
        x: binary images, (B, ...).
        eps: standard normal, (B, D).
        encode: x -> (mu, logvar) of q(z | x), (B, D) each.
        log_px: (x, z) -> log p(x | z), (B,).

    Returns:
        ``loss = nll + kl_z + kl_c``, ``nll``, ``kl_z``, ``kl_c``: nats per example, (B,) each.
    """
    mu, logvar = encode(x)
    z = reparameterise(mu, logvar, eps)
    terms = {"nll": -log_px(x, z), **kl_terms(z, log_q(eps, logvar), log_responsibilities(z, mixture), mixture)}
    return {"loss": sum(terms.values()), **terms}


def log_importance_weight(x: Tensor, eps: Tensor, encode: Callable, log_px: Callable, mixture: Mixture) -> Tensor:
    """log w = log p(x|z) + log p(z) - log q(z|x) at z = mu + sigma eps; (B,) nats. E_q[w] = p(x)."""
    mu, logvar = encode(x)
    z = reparameterise(mu, logvar, eps)
    return log_px(x, z) + log_gmm(z, mixture) - log_q(eps, logvar)


def cost_at_a_fixed_draw(
    x: Tensor, eps: Tensor, encode: Callable, log_px: Callable, mixture: Mixture
) -> tuple[Tensor, Tensor]:
    """f = -log p(x|z) - log p(z) + log q(z|x) at a z that is held fixed, and log q(z | x); (B,) nats each.

    The encoder's gradient of E_q[f] is E_q[ f grad log q(z|x) ] (the gradient of f's own log q has mean zero and is
    left out), the decoder's and the mixture's are those of f: the two are what a score-function estimator takes.
    """
    mu, logvar = encode(x)
    z = reparameterise(mu, logvar, eps).detach()
    log_qz = log_normal(z, mu, logvar)
    return -log_px(x, z) - log_gmm(z, mixture) + log_qz.detach(), log_qz


def check_images(images: float, num_clusters: int) -> None:
    """Refuse fewer ``images`` than clusters; their number may be infinite where it is not known.

    Raises:
        UserError: saying so.
    """
    if images < num_clusters:
        raise UserError(
            f"{images:,} training images make no {num_clusters:,} clusters: lower model.num_clusters, or train on more "
            "images"
        )


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
    if (distinct := len(z.unique(dim=0))) < num_clusters:
        raise UserError(
            f"{len(z):,} images have {distinct:,} different latents, fewer than the {num_clusters} clusters: lower "
            "num_clusters, or where the autoencoder has collapsed, lr"
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

    with threadpool_limits(1):  # several threads would add up in another order each time
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
