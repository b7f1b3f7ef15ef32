"""Exponential moving average of the weights, used for validation, samples, tests and published checkpoints."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.training.executions import takes_executions


def decay_at(n: float, decay: float) -> float:
    """Return the decay of the next update after ``n`` earlier updates: min(decay, (1 + n) / (10 + n)), and 0 for n = 0.

    The smaller decay of the first updates is a warm-up. Without the warm-up, the random initial weights would
    have weight decay^n in the average after n updates. With decay 0.999, this is 0.37 after 1,000 updates.
    """
    return min(decay, (1 + n) / (10 + n)) if n else 0.0


def decay_tensor(n: Tensor, decay: float) -> Tensor:
    """Return :func:`decay_at` as a tensor on the device of ``n``, (), without reading ``n``."""
    return (n > 0) * ((1 + n) / (10 + n)).clamp(max=decay)


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
        super().__init__(use_buffers=False)
        self._tensors: tuple[list[Tensor], ...] = ([], [], [], [])
        self.reads_count = False  # whether updates read the number of earlier updates, which is fast on a CPU only

    def on_train_start(self, trainer, pl_module):
        if narrow := {p.dtype for p in pl_module.parameters() if p.dtype in (torch.bfloat16, torch.float16)}:
            raise UserError(
                f"the weights are {narrow.pop()}, which is too coarse for an average with decay {self.decay}: use "
                "trainer.precision=bf16-mixed, or callbacks=default to train without an average"
            )
        assert self._average_model is not None
        average, self.reads_count = self._average_model.module, pl_module.device.type == "cpu"
        pairs = ((average.parameters(), pl_module.parameters()), (average.buffers(), pl_module.buffers()))
        self._tensors = tuple([t.detach() for t in tensors] for pair in pairs for tensors in pair)

    def batches_until_due(self, trainer) -> float:
        return math.inf

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not takes_executions(trainer):
            self.after_step(trainer, pl_module, outputs)

    def after_step(self, trainer, pl_module, outputs):
        """Update the average, unless gradients are still accumulated."""
        if trainer.global_step > self._latest_update_step:
            self.update()
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current parameters, and copy the current buffers."""
        assert self._average_model is not None
        averaged, current, own_buffers, buffers = self._tensors
        n = self._average_model.n_averaged
        if self.reads_count:
            torch._foreach_lerp_(averaged, current, 1 - decay_at(int(n), self.decay))
        else:  # a CUDA graph refuses _foreach_lerp_ with a tensor as weight
            change = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(change, 1 - decay_tensor(n, self.decay))
            torch._foreach_add_(averaged, change)
        if buffers:
            torch._foreach_copy_(own_buffers, buffers)
        n.add_(1)
