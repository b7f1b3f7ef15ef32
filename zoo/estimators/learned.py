"""What an estimator learns besides the model: NVIL's baseline, a moving average of the cost, a control variate.

All of them answer the same three questions, those of :class:`Learned`: what they give to the estimator, what loss they
are trained by, and what they do after a training batch. Their loss is added to the gradient of the model's, not to its
value, and has no gradient for the model.
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


def held_fixed(module: nn.Module, *args) -> Tensor:
    """``module(*args)``, differentiable in the arguments and not in the parameters."""
    return functional_call(module, {name: p.detach() for name, p in module.named_parameters()}, args)


class Learned:
    """What an estimator learns: nothing. Those that learn something define some of these three methods."""

    def parts(self, x: Tensor, q, f: Cost) -> dict[str, Any]:
        """What :func:`zoo.estimators.by_name.surrogate` is given besides, by the names of its arguments.

        Args:
            x: B examples, as the likelihood sees them.
            q: their posteriors, one of zoo.functional.latents.
            f: the cost, differentiable in z alone.
        """
        return {}

    def loss(
        self, x: Tensor, noise: Noise, terms: dict[str, Tensor], encode: Callable[[Tensor], Any], f: Cost
    ) -> dict[str, Tensor]:
        """The loss that trains it, a scalar, by the name it is logged by; empty without one.

        Args:
            x: as above.
            noise: what the estimator drew.
            terms: of the objective, ``nll`` among them, (B,) nats each.
            encode: x -> q.
            f: as above.
        """
        return {}

    def after_step(self, terms: dict[str, Tensor], gather: Callable[[Tensor], Tensor]) -> None:
        """Take in a training batch.

        Args:
            terms: of the objective, ``nll`` among them, nats, means over the batch.
            gather: a tensor -> that of each process, (processes, ...).
        """


class LearnedBaseline(nn.Sequential, Learned):
    """C_psi(x), NVIL's learned baseline (003): what the cost is on average for this example.

    The network's output is in units of D log 2 nats, the cost of D pixels that are fair coins. It minimises its
    squared error, logged as ``baseline``.

    Args:
        pixels: of an example.
    """

    def __init__(self, pixels: int):
        super().__init__(nn.Flatten(), mlp([pixels, 100, 1], nn.Tanh))
        self.coin_flips = pixels * math.log(2)  # nats

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B,) nats."""
        return self.coin_flips * at_least_float32(super().forward(x)).squeeze(-1)

    def parts(self, x, q, f):
        return {"baseline": self(x)}

    def loss(self, x, noise, terms, encode, f):
        return {"baseline": (self(x) - terms["nll"].detach()).square().mean()}


class MovingAverage(nn.Module, Learned):
    """The mean cost of the batches before: the first one sets it, then it forgets over a hundred."""

    moving_cost: Tensor

    def __init__(self):
        super().__init__()
        # The same on every process, since each takes in the mean over all of them; 0 until the first step.
        self.register_buffer("moving_cost", torch.zeros(()))

    def parts(self, x, q, f):
        return {"baseline": self.moving_cost}

    def after_step(self, terms, gather):
        cost = gather(terms["nll"].detach()).mean()
        self.moving_cost.copy_(torch.where(self.moving_cost == 0, cost, self.moving_cost.lerp(cost, 0.01)))


class ControlVariate(nn.Module, Learned):
    """c(s) = eta f(sigma_tau(s)) for REBAR, and + r(sigma_tau(s)) with a network r for RELAX; eta, tau, r are learned.

    They minimise the mean squared gradient by q's logits, logged as ``control``.

    Args:
        tau: the temperature to begin with.
        features: D, or D K: width of r's input; None for REBAR.
    """

    def __init__(self, tau: float, features: int | None = None):
        super().__init__()
        self.eta = nn.Parameter(torch.tensor(1.0))
        self.log_tau = nn.Parameter(torch.tensor(tau).log())
        self.r = mlp([features, 128, 1], nn.Tanh) if features else None

    def forward(self, f: Cost, q, s: Tensor) -> Tensor:
        """c(s), (k, B), for perturbed logits (k, B, ...)."""
        soft = q.soften(s, self.log_tau.exp())
        c = self.eta * f(soft)
        return c if self.r is None else c + self.r(soft.flatten(c.dim())).squeeze(-1)

    def parts(self, x, q, f):
        return {"control": lambda s: held_fixed(self, f, q, s)}

    def loss(self, x, noise, terms, encode, f):
        if not torch.is_grad_enabled():  # it is made of gradients
            return {}
        with torch.no_grad():
            q = encode(x)
        return {"control": relax_variance(f, lambda s: self(f, q, s), q, noise["z"], noise["v"]).mean()}


class FixedControl(Learned):
    """REBAR's control variate with eta = 1 and a fixed temperature, for a model that another estimator trained.

    Args:
        tau: the temperature.
    """

    def __init__(self, tau: float):
        self.tau = tau

    def parts(self, x, q, f):
        return {"control": lambda s: f(q.soften(s, self.tau))}


def learned_by(estimator: str, pixels: int, features: int, tau: float) -> dict[str, nn.Module]:
    """The module that an estimator learns besides, by the name it has in the model; empty for most.

    Args:
        pixels: of an example.
        features: D, or D K, of its latents.
        tau: the temperature to begin with.
    """
    if estimator == "score_function+nvil":
        return {"baseline": LearnedBaseline(pixels)}
    if estimator == "score_function+moving_average":
        return {"baseline": MovingAverage()}
    if estimator in ("rebar", "relax"):
        return {"control": ControlVariate(tau, features if estimator == "relax" else None)}
    return {}


def earlier_keys(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Before weights are loaded: ``moving_cost``, as an earlier version called it, becomes ``baseline.moving_cost``."""
    if f"{prefix}moving_cost" in state_dict:
        state_dict[f"{prefix}baseline.moving_cost"] = state_dict.pop(f"{prefix}moving_cost")
