"""Gradient estimators of the log likelihood of a restricted Boltzmann machine."""

from functools import cache

import torch
from torch import Tensor

from zoo.estimators import GradientEstimator, Noise
from zoo.functional import gibbs, partition


def likelihood_estimators(model, chains: Tensor | None) -> dict[str, GradientEstimator]:
    """Return gradient estimators by name: ``cd-1``, ``cd-10``, and ``pcd`` for models with ``learning=pcd``.

    If a binary layer has at most 16 units, there are two more. ``exact_samples`` draws one v' per image from p.
    ``exact`` has no noise but that of the states of the images.

    Args:
        model: a :class:`zoo.rbm.RBM`.
        chains: hidden states of all persistent chains, (n, H). ``pcd`` draws one of them per image, with replacement.
            None draws from 100 new chains after 1,000 Gibbs steps from random pixels.
    """
    params, pcd = dict(model.named_parameters()), model.hparams.learning == "pcd"
    pool = cache(lambda: gibbs.burned_in_states(model.machine) if chains is None else chains)

    def estimator(name: str, learning: str, k: int) -> GradientEstimator:
        def noise(batch, *, generator: torch.Generator | None = None) -> Noise:
            n = len(batch[0])
            begin = gibbs.pick(pool(), n, model.machine, generator=generator) if learning == "pcd" else None
            return model.noise(batch, generator=generator, learning=learning, k=k, chains=begin)

        def loss(batch, noise: Noise) -> Tensor:
            return model.objective(model.observe(batch[0], noise["u"]), noise, learning)[0]

        return GradientEstimator.of(model, name, params, noise, loss)

    kinds = {"cd-1": ("cd", 1), "cd-10": ("cd", 10)}
    kinds |= {"pcd": ("pcd", 1)} if pcd else {}
    kinds |= {kind: (kind, 1) for kind in ("exact_samples", "exact") if partition.quick(model.weights(), model.units)}
    return {name: estimator(name, *kind) for name, kind in kinds.items()}
