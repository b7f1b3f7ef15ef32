"""Hooks around a batch and within a step: which of them callbacks, modules and data modules have, and when they act."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor, ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from zoo.checks.capabilities import CadencedCallback

# Lightning's callbacks that act only at logged steps, or that need to run only at the end of an execution.
AT_THE_END = (ProgressBar, LearningRateMonitor, DeviceStatsMonitor, Timer)
# Hooks of a callback that run within a step.
IN_THE_STEP = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
# Hooks of a module or a data module that change batches.
TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# Methods of a module that only Lightning's own optimisation calls.
BY_LIGHTNING = (*IN_THE_STEP[:3], "optimizer_step", "optimizer_zero_grad", "backward")


def lies_on(device: torch.device, batch: Any) -> bool:
    """Return whether a batch is a list or tuple of tensors that are all on ``device``."""
    return isinstance(batch, list | tuple) and all(isinstance(t, Tensor) and t.device == device for t in batch)


def overrides(instance: Any, hook: str, base: type) -> bool:
    """Return whether a class, or the instance itself, has its own method ``hook``."""
    return hook in vars(instance) or getattr(type(instance), hook) is not getattr(base, hook)


def cadence_of(callback: L.Callback, trainer: L.Trainer) -> float | None:
    """Return the number of batches until the batch hooks of a callback act, or None if they run at every batch.

    The number includes the batch at which they act. It is infinite if they need to run only at the end of an execution.
    """
    if isinstance(callback, CadencedCallback):
        return callback.batches_until_due(trainer)
    hooks = [h for h in ("on_train_batch_start", "on_train_batch_end") if overrides(callback, h, L.Callback)]
    of_lightning = [getattr(callback, h).__module__.startswith("lightning.") for h in hooks]
    at_the_end = isinstance(callback, (*AT_THE_END, ModelCheckpoint)) and all(of_lightning)
    return math.inf if at_the_end or not hooks else None


def reason_against_plain_steps(trainer: L.Trainer) -> str | None:
    """Return why Lightning's own code must take the step, as a clause without a full stop, or None if not."""
    module, precision = trainer.lightning_module, trainer.precision_plugin
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        return "the run has several processes"
    if type(precision) not in (Precision, MixedPrecision) or vars(precision).get("scaler") is not None:
        return f"the precision is {precision.precision}, and not 32-true or bf16-mixed"
    if trainer.accumulate_grad_batches != 1:
        return "gradients are accumulated over batches"
    for callback in trainer.callbacks:
        if hooks := [name for name in IN_THE_STEP if overrides(callback, name, L.Callback)]:
            return f"the callback {type(callback).__name__} has the hook {hooks[0]}"
    if module.automatic_optimization:
        if hooks := [name for name in BY_LIGHTNING if overrides(module, name, L.LightningModule)]:
            return f"{type(module).__name__} has the method {hooks[0]}"
        kind = type(trainer.optimizers[0])
        if not kind.__module__.startswith("torch.optim") or kind is torch.optim.LBFGS:
            return f"the optimiser {kind.__name__} is not a first-order optimiser of torch"
    return None
