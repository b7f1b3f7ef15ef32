"""The learned scale of a likelihood of pixels. It is a parameter of the model itself, not of a network."""

import torch
from torch import Tensor, nn

from zoo.functional.likelihoods import LIKELIHOODS, Likelihood


def add_likelihood(model: nn.Module, name: str) -> type[Likelihood]:
    """Return the likelihood with this name, and give ``model`` its learned scale, if it has one."""
    likelihood = LIKELIHOODS[name]
    if likelihood.scale is not None:
        model.register_parameter(likelihood.scale, nn.Parameter(torch.tensor(likelihood.initial)))
    return likelihood


def pixels_given(model, out: Tensor, fixed: bool = False) -> Likelihood:
    """Return p(x | z) of a model's images, from the output of its decoder.

    Args:
        model: a model with :func:`add_likelihood`. Its hyperparameters are ``likelihood`` and ``variance_floor``.
        out: output of the decoder, (..., C, H, W).
        fixed: whether the result has no gradient with respect to the learned scale.
    """
    likelihood = LIKELIHOODS[model.hparams.likelihood]
    scale = None if likelihood.scale is None else getattr(model, likelihood.scale)
    if scale is not None and fixed:
        scale = scale.detach()
    return likelihood.of(out, scale, model.hparams.variance_floor)
