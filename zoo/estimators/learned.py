"""Learned parts of gradient estimators: NVIL's baseline, a moving average of the cost, a control variate.

Each part implements the methods of :class:`Learned`. ``parts`` returns additional arguments of the estimator. ``loss``
returns the loss that trains the part. ``after_step`` updates the part after a training batch.

The gradient of a part's loss is added to the gradient of the model's loss. The value of the model's loss does not
change. The part's loss has no gradient with respect to the parameters of the model.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoo.estimators.moments import Noise
from zoo.estimators.relaxed import relax_variance
from zoo.functional.densities import at_least_float32
from zoo.nets.layers import mlp

Cost = Callable[[Tensor], Tensor]  # z -> cost, (k, B, ...) to (k, B) nats


def without_parameter_gradients(module: nn.Module, *args) -> Tensor:
    """Return ``module(*args)``, differentiable in the arguments but not in the parameters."""
    return functional_call(module, {name: p.detach() for name, p in module.named_parameters()}, args)


class Learned:
    """Base class of the learned parts of estimators. Its methods do nothing. Subclasses override some methods."""

    def parts(self, x: Tensor, q, f: Cost) -> dict[str, Any]:
        """Return additional arguments of :func:`zoo.estimators.by_name.surrogate`, by name.

        Args:
            x: B examples in the form that the likelihood takes.
            q: posteriors of the examples, from zoo.functional.latents.
            f: z -> cost, differentiable only in z.
        """
        return {}

    def loss(
        self, x: Tensor, noise: Noise, terms: dict[str, Tensor], encode: Callable[[Tensor], Any], f: Cost
    ) -> dict[str, Tensor]:
        """Return the scalar loss that trains this part, {logged name: loss}, or {} if there is none.

        Args:
            x: B examples in the form that the likelihood takes.
            noise: noise that the estimator drew.
            terms: terms of the objective, (B,) nats each, including ``nll``.
            encode: x -> q.
            f: z -> cost, differentiable only in z.
        """
        return {}

    def after_step(self, terms: dict[str, Tensor], gather: Callable[[Tensor], Tensor]) -> None:
        """Update this part after a training batch.

        Args:
            terms: batch means of the terms of the objective, nats, including ``nll``.
            gather: function that maps a tensor to the tensors of all processes, (processes, ...).
        """


class LearnedBaseline(nn.Sequential, Learned):
    """NVIL's learned baseline C_psi(x), an estimate of the mean cost of example x [Liao22, Control Variate].

    The output of the network is multiplied by D log 2 nats, the negative log likelihood of D fair coin flips. The
    training loss is the mean of (C_psi(x) - nll)^2, logged as ``baseline``. Here nll is -log p(x|z), nats.

    Args:
        pixels: number of pixels of an example, D.
    """

    def __init__(self, pixels: int):
        super().__init__(nn.Flatten(), mlp([pixels, 100, 1], nn.Tanh))
        self.coin_flips = pixels * math.log(2)  # nats

    def forward(self, x: Tensor) -> Tensor:
        """Return C_psi(x), (B,) nats, of examples (B, ...)."""
        return self.coin_flips * at_least_float32(super().forward(x)).squeeze(-1)

    def parts(self, x, q, f):
        return {"baseline": self(x)}

    def loss(self, x, noise, terms, encode, f):
        return {"baseline": (self(x) - terms["nll"].detach()).square().mean()}


class MovingAverage(nn.Module, Learned):
    """Exponential moving average of the mean cost of the previous batches.

    The first batch sets the average. Each later batch has the weight 0.01.
    """

    moving_cost: Tensor

    def __init__(self):
        super().__init__()
        # The value is 0 until the first step. The value is equal on all processes, because `after_step` averages over
        # processes.
        self.register_buffer("moving_cost", torch.zeros(()))

    def parts(self, x, q, f):
        return {"baseline": self.moving_cost}

    def after_step(self, terms, gather):
        cost = gather(terms["nll"].detach()).mean()
        self.moving_cost.copy_(torch.where(self.moving_cost == 0, cost, self.moving_cost.lerp(cost, 0.01)))


class ControlVariate(nn.Module, Learned):
    """Learned control variate c(s) of REBAR and RELAX.

        REBAR    c(s) = eta f(sigma_tau(s))
        RELAX    c(s) = eta f(sigma_tau(s)) + r(sigma_tau(s))    with a network r

    eta, tau and r are learned. Their loss is the mean squared norm of the gradient estimate with respect to the logits
    of q, logged as ``control``.

    Args:
        tau: initial temperature.
        features: number of values that r receives: D for binary latents, D K for categorical latents. None for REBAR.
    """

    def __init__(self, tau: float, features: int | None = None):
        super().__init__()
        self.eta = nn.Parameter(torch.tensor(1.0))
        self.log_tau = nn.Parameter(torch.tensor(tau).log())
        self.r = mlp([features, 128, 1], nn.Tanh) if features else None

    def forward(self, f: Cost, q, s: Tensor) -> Tensor:
        """Return c(s), (k, B), for perturbed logits s, (k, B, ...)."""
        soft = q.soften(s, self.log_tau.exp())
        c = self.eta * f(soft)
        return c if self.r is None else c + self.r(soft.flatten(c.dim())).squeeze(-1)

    def parts(self, x, q, f):
        return {"control": lambda s: without_parameter_gradients(self, f, q, s)}

    def loss(self, x, noise, terms, encode, f):
        if not torch.is_grad_enabled():  # relax_variance needs gradients to compute the loss
            return {}
        with torch.no_grad():
            q = encode(x)
        return {"control": relax_variance(f, lambda s: self(f, q, s), q, noise["z"], noise["v"]).mean()}


class FixedControl(Learned):
    """REBAR's control variate with eta = 1 and a fixed temperature, for models trained by another estimator.

    Args:
        tau: temperature.
    """

    def __init__(self, tau: float):
        self.tau = tau

    def parts(self, x, q, f):
        return {"control": lambda s: f(q.soften(s, self.tau))}


def learned_by(estimator: str, pixels: int, features: int, tau: float) -> dict[str, nn.Module]:
    """Return the learned part of an estimator, {name in the model: module}, or {} if it has none.

    Args:
        estimator: name of the estimator.
        pixels: number of pixels of an example.
        features: number of values of the latents: D if they are binary, D K if they are categorical.
        tau: initial temperature.
    """
    if estimator == "score_function+nvil":
        return {"baseline": LearnedBaseline(pixels)}
    if estimator == "score_function+moving_average":
        return {"baseline": MovingAverage()}
    if estimator in ("rebar", "relax"):
        return {"control": ControlVariate(tau, features if estimator == "relax" else None)}
    return {}


def earlier_keys(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Rename ``moving_cost``, the key of an earlier version, to ``baseline.moving_cost`` before weights are loaded."""
    if f"{prefix}moving_cost" in state_dict:
        state_dict[f"{prefix}baseline.moving_cost"] = state_dict.pop(f"{prefix}moving_cost")
