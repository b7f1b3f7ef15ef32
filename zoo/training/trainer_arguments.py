"""Check those arguments of Lightning's Trainer for which Lightning has no check, or no error message of one line."""

import inspect
import re

import lightning as L
import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from zoo.checks.errors import UserError
from zoo.checks.values import check_integer, check_not_negative
from zoo.training.hydra_errors import choices


def check_arguments(arguments: dict) -> None:
    """Check the arguments of Lightning's Trainer.

    Raises:
        UserError: if Lightning does not have or ignores an argument, or if this machine lacks the hardware. The message
            names the allowed values. If an allowed name is similar, the message suggests it.
    """
    known = sorted(set(inspect.signature(L.Trainer.__init__).parameters) - {"self"})
    for key in arguments:
        if key not in known:
            raise UserError(f"the trainer has no {key!r}; {choices(key, known)}")
    _check_numbers(arguments)
    if arguments.get("barebones") and (arguments.get("callbacks") or arguments.get("logger")):
        raise UserError(
            "trainer.barebones=true does not allow callbacks, loggers and checkpoints, and every run has them. "
            "Leave barebones out, or use Lightning's own Trainer(barebones=True).fit(model, data)"
        )
    if arguments.get("deterministic") not in (None, True, False, "warn"):
        raise UserError(f"trainer.deterministic must be true, false or warn, got {arguments['deterministic']!r}")
    _check_accelerator(arguments.get("accelerator", "auto"))
    strategy, strategies = arguments.get("strategy", "auto"), ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(strategy, str) and strategy not in strategies:
        raise UserError(f"trainer.strategy has no {strategy!r}; {choices(strategy, strategies)}")


def _check_numbers(arguments: dict) -> None:
    least = {"max_epochs": -1, "check_val_every_n_epoch": 1, "accumulate_grad_batches": 1, "log_every_n_steps": 0}
    for key, bound in (least | {"num_sanity_val_steps": -1}).items():
        if arguments.get(key) is not None:
            check_integer(f"trainer.{key}", arguments[key], bound)
    if arguments.get("gradient_clip_val") is not None:
        check_not_negative("trainer.gradient_clip_val", arguments["gradient_clip_val"])
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if not isinstance(arguments.get(key, 1), int | float | None):
            raise UserError(f"trainer.{key} must be a number of batches or a fraction of them, got {arguments[key]!r}")
    devices = arguments.get("devices", "auto")
    numbers = r"auto|-1|0*[1-9][0-9]*|[0-9]+(,[0-9]+)+"
    if not isinstance(devices, list | tuple) and not re.fullmatch(numbers, str(devices)):
        raise UserError(f"trainer.devices must be auto, a number of at least 1, or a list of GPUs, got {devices!r}")


def _check_accelerator(accelerator: object) -> None:
    if accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError(
            "trainer.accelerator=gpu needs a GPU, and this machine has none: use trainer=cpu or trainer=auto"
        )
    if not isinstance(accelerator, str) or accelerator in ("auto", "gpu"):
        return
    known = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    if accelerator not in known:
        raise UserError(f"trainer.accelerator has no {accelerator!r}; {choices(accelerator, known)}")
    if not AcceleratorRegistry[accelerator]["accelerator"].is_available():
        raise UserError(f"trainer.accelerator={accelerator} is not available on this machine: use trainer=auto")
