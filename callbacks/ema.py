"""Exponential moving average of the weights, used for validation, samples, tests and published checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from zoo.checks.errors import UserError


def ema_update(averaged: Tensor, current: Tensor, num_averaged: Tensor, decay: float) -> Tensor:
    """One step of the average with a decay that warms up, min(decay, (1 + n) / (10 + n)), n counting the updates.

    Without the warm-up the first weights, which are noise, keep a share of decay^n: a third after 1,000 steps at 0.999.
    """
    warm = (1 + num_averaged) / (10 + num_averaged)
    return torch.lerp(current, averaged, warm.clamp(max=decay).to(current.dtype))


@contextmanager
def judged(trainer, pl_module) -> Iterator[None]:
    """In training, the module as validation has it: averaged weights, where there are any, and eval mode."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, EMA)]
    training = pl_module.training
    for callback in averages:
        callback._swap_models(pl_module)
    pl_module.eval()
    try:
        yield
    finally:
        pl_module.train(training)
        for callback in averages:
            callback._swap_models(pl_module)


class EMA(WeightAveraging):
    """Keep an exponential moving average of the parameters and let Lightning swap it in where models are judged.

    Training itself is untouched; checkpoints hold both sets of weights. Buffers are not averaged: they are schedules
    and counters.

    Args:
        decay: per optimiser step, 0 to 1 exclusive; 0.999 averages over about 1,000 steps.

    Raises:
        UserError: for a ``decay`` outside that; at the start of training, for weights of 16 bits, where an average
            that moves by a thousandth a step does not move at all.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 < decay < 1:
            raise UserError(f"decay must lie between 0 and 1, got {decay}")
        self.decay = decay
        super().__init__(use_buffers=False, avg_fn=lambda a, c, n: ema_update(a, c, n, decay))

    def on_train_start(self, trainer, pl_module):
        if narrow := {p.dtype for p in pl_module.parameters() if p.dtype in (torch.bfloat16, torch.float16)}:
            raise UserError(
                f"weights of {narrow.pop()} cannot hold an average of decay {self.decay}: use precision bf16-mixed, "
                "or callbacks=default to train without averages"
            )
