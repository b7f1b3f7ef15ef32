"""A Lightning Trainer that uses the hardware it finds."""

import logging
import os
import warnings
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from zoo.checks.errors import UserError
from zoo.training.checkpoint_files import CheckpointFiles
from zoo.training.progress import ModelSize, progress_bar


def make_trainer(precision: str = "auto", two_players: bool = False, **kwargs) -> L.Trainer:
    """Lightning's Trainer, with matrix products in TF32 and ``precision="auto"`` resolved.

    Args:
        precision: ``auto`` is ``bf16-mixed`` on a GPU that has it and ``32-true`` elsewhere; or any of Lightning's.
        two_players: of a model that trains two networks in turns, by hand: several processes that average gradients
            (DDP) must then not wait for those of the player who does not move.
        kwargs: Lightning's arguments.

    Raises:
        UserError: for epochs that are no whole numbers; for gradient clipping or accumulation of two players; for a
            monitor that nothing measures; for other processes than torchrun or SLURM has started; for sharded weights
            on CPUs or beside callbacks that need them whole; and for several processes in a Hydra sweep, where each of
            them would start the whole sweep again.
    """
    quiet_lightning()
    torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it; nothing changes on a CPU
    allowed = ("auto", "32-true", "32", 32, "bf16-mixed", "16-mixed")
    if precision not in allowed:
        raise UserError(f"trainer.precision must be auto, 32-true, bf16-mixed or 16-mixed, got {precision!r}")
    if precision == "auto":
        gpu = kwargs.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        precision = "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"
    for key, least in (("max_epochs", -1), ("check_val_every_n_epoch", 1)):
        value = kwargs.get(key, least)
        if value is not None and (not isinstance(value, int) or value < least):
            raise UserError(f"trainer.{key} must be a whole number of at least {least}, got {value!r}")
    for key, value in (("gradient_clip_val", None), ("accumulate_grad_batches", 1)):
        if two_players and kwargs.get(key, value) != value:
            raise UserError(f"two players are trained with trainer.{key}={value or 'null'} alone, got {kwargs[key]!r}")
    epochs, every = kwargs.get("max_epochs"), kwargs.get("check_val_every_n_epoch")
    if epochs and every and 0 < epochs < every:
        kwargs["check_val_every_n_epoch"] = epochs  # a run that never validates has no best checkpoint and no samples
    kwargs["plugins"] = [*(kwargs.get("plugins") or []), CheckpointFiles()]
    if "fsdp" in str(kwargs.get("strategy")):
        _check_sharding(kwargs.get("accelerator", "auto"), kwargs.get("callbacks") or [])
    _check_monitors(kwargs.get("callbacks") or [])
    kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), *_shown(kwargs)]
    trainer = L.Trainer(precision=precision, **kwargs)
    _check_started(trainer.world_size)
    if two_players and isinstance(trainer.strategy, DDPStrategy):
        trainer = L.Trainer(precision=precision, **{**kwargs, "strategy": "ddp_find_unused_parameters_true"})
    if trainer.world_size > 1 and _in_sweep():
        raise UserError(
            f"a sweep (-m) cannot run jobs of {trainer.world_size} processes: start one command per job, "
            "for seed in 1 2 3; do python train.py seed=$seed ...; done"
        )
    return trainer


def _shown(kwargs: dict[str, Any]) -> list[L.Callback]:
    """What shows a run, in place of Lightning's table of the model and its bars; ``kwargs`` turn these off."""
    shown: list[L.Callback] = []
    if kwargs.setdefault("enable_model_summary", False) is False:
        shown.append(ModelSize())
    if kwargs.get("enable_progress_bar") is not False:
        shown.append(progress_bar())
    return shown


def quiet_lightning() -> None:
    """Keep Lightning's messages to what a user can act on, each said once."""
    if logging.getLogger().hasHandlers():  # it has a handler of its own beside the root's
        logging.getLogger("lightning").handlers.clear()
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # its own to mend
    warnings.filterwarnings("ignore", "Precision .* is not supported by the model summary")
    # Steps are counted over epochs: a short epoch is logged all the same. ModelSize says where a whole run is not.
    warnings.filterwarnings("ignore", "The number of training batches")
    warnings.filterwarnings("ignore", "torch.distributed.nn.functional.all_gather is deprecated")
    # Of convolutions of one channel, whose gradients may lie in either order.
    warnings.filterwarnings("ignore", r"(?s)Grad strides do not match bucket view strides")


def _check_sharding(accelerator: str, callbacks: list) -> None:
    """Refuse to shard the weights where there are no GPUs, or beside what asks each process for all of them.

    Raises:
        UserError: saying which.
    """
    if not torch.cuda.is_available() or accelerator == "cpu":
        raise UserError("trainer.strategy=fsdp shards weights over GPUs, and there are none here: trainer.strategy=ddp")
    kept = ("ModelCheckpoint", "FiniteLoss", "ExactResume", "RunRecord", "TimeEstimate", "LossPerStep")
    if whole := [name for c in callbacks if (name := type(c).__name__) not in kept]:
        raise UserError(
            f"{', '.join(whole)} cannot go with trainer.strategy=fsdp, where no process has all the weights: add "
            "callbacks=none"
        )


def _check_monitors(callbacks: list) -> None:
    """Refuse to choose the best checkpoint by a distance that nothing measures.

    Raises:
        UserError: saying so.
    """
    kinds = {type(c).__name__ for c in callbacks}
    monitors = {c.monitor for c in callbacks if isinstance(c, ModelCheckpoint | EarlyStopping)}
    if "val/distance" in monitors and "SampleDistance" not in kinds:
        raise UserError(
            "callbacks.best.monitor=val/distance asks for callbacks.sample_distance, which measures it: keep that, or "
            "choose another monitor"
        )


def _check_started(world_size: int) -> None:
    """Refuse to train once more in each process that torchrun or SLURM has started.

    Raises:
        UserError: where they have started another number of them than ``world_size``.
    """
    # In an interactive job of SLURM it is Lightning that starts processes.
    slurm = "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    by = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM" if slurm else None
    started = int(os.environ.get("WORLD_SIZE" if by == "torchrun" else "SLURM_NTASKS", 1)) if by else world_size
    if started != world_size:
        raise UserError(
            f"{by} has started {started} processes, and trainer.num_nodes times trainer.devices are {world_size}: set "
            "them to the numbers of machines and of processes on each, with trainer=ddp"
        )


def _in_sweep() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
