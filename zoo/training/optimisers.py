"""Learning rates of optimisers over a run, and their states."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from zoo.training.schedules import half_cosine


def scheduled(optimiser: Optimizer, factor: Callable[[int], float]) -> dict[str, Any]:
    """Return what ``configure_optimizers`` returns for a learning rate that changes at every optimiser step.

    Args:
        optimiser: the optimiser, with the learning rate at a factor of 1.
        factor: optimiser step, counted from 0 -> factor of the learning rate.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def with_half_cosine(optimiser: Optimizer, trainer: Any, warmup: int = 0, decays: bool = True) -> dict[str, Any]:
    """Return what ``configure_optimizers`` returns for :func:`half_cosine` over the run of ``trainer``.

    If ``decays`` is false, the learning rate is constant after the warm-up.
    """
    # The estimate is infinite for max_epochs=-1.
    steps = max(1, trainer.estimated_stepping_batches) if decays else math.inf
    return scheduled(optimiser, lambda step: half_cosine(step, steps, warmup))


@torch.no_grad()
def reset_adam(optimisers: Iterable[Optimizer]) -> None:
    """Set the moments and the step counts of Adam to 0, their initial values.

    They change in place, because CUDA graphs hold these tensors.
    """
    for optimiser in optimisers:
        for state in optimiser.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()
