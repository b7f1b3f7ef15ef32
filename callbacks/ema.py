"""Exponential moving average of the weights, used for validation, samples, tests and published checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from zoo.checks.errors import UserError


def ema_update(averaged: Tensor, current: Tensor, num_averaged: Tensor, decay: float) -> Tensor:
    """Return the average after one more update.

    The decay of this update is min(decay, (1 + n) / (10 + n)), where n = ``num_averaged`` is the number of earlier
    updates. The smaller decay of the first updates is a warm-up. Without the warm-up, the random initial weights would
    have weight decay^n in the average after n updates. With decay 0.999, this is 0.37 after 1,000 updates.
    """
    warm = (1 + num_averaged) / (10 + num_averaged)
    return torch.lerp(current, averaged, warm.clamp(max=decay).to(current.dtype))


@contextmanager
def evaluation_weights(trainer, pl_module) -> Iterator[None]:
    """Context in which ``pl_module`` is in eval mode and has its averaged weights, as in validation.

    If the run has no EMA, the model keeps its trained weights.
    """
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
    """Exponential moving average of the parameters. Lightning uses it for validation and tests.

    The average does not affect training itself. Checkpoints hold both sets of weights. Buffers are not averaged,
    because they hold schedules and counters.

    Args:
        decay: decay per optimiser step, between 0 and 1, both excluded. A decay of 0.999 averages
            over about 1,000 steps.

    Raises:
        UserError: if ``decay`` is out of range. ``on_train_start`` raises it if the weights have 16 bits. Rounding to
            16 bits would discard the small updates of the average.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 < decay < 1:
            raise UserError(f"decay is {decay}, but must lie between 0 and 1, both excluded")
        self.decay = decay
        super().__init__(use_buffers=False, avg_fn=lambda a, c, n: ema_update(a, c, n, decay))

    def on_train_start(self, trainer, pl_module):
        if narrow := {p.dtype for p in pl_module.parameters() if p.dtype in (torch.bfloat16, torch.float16)}:
            raise UserError(
                f"the weights are {narrow.pop()}, which is too coarse for an average with decay {self.decay}: use "
                "trainer.precision=bf16-mixed, or callbacks=default to train without an average"
            )
