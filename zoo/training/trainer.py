"""A Lightning Trainer that uses the hardware it finds."""

import logging
import os
import warnings
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint, ProgressBar
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo.checks.errors import UserError
from zoo.training.checkpoint_files import CheckpointFiles
from zoo.training.progress import ModelSize, progress_bar
from zoo.training.sweeps import in_sweep
from zoo.training.trainer_arguments import check_arguments


def make_trainer(precision: str = "auto", two_players: bool = False, **kwargs) -> L.Trainer:
    """Lightning's Trainer, with matrix products in TF32 and ``precision="auto"`` resolved.

    Args:
        precision: ``auto`` is ``bf16-mixed`` on a GPU that has it and ``32-true`` elsewhere; or any of Lightning's.
        two_players: of a model that trains two networks in turns, by hand: several processes that average gradients
            (DDP) must then not wait for those of the player who does not move.
        kwargs: Lightning's arguments.

    Raises:
        UserError: for arguments that Lightning does not have, refuses, or takes and does not obey; for gradient
            clipping or accumulation, or a search of the learning rate, of two players; for a monitor that nothing
            measures; for other processes than torchrun or SLURM has started; for sharded weights on CPUs or beside
            callbacks that need them whole; and for several processes in a Hydra sweep, where each of them would start
            the whole sweep again.
    """
    quiet_lightning()
    torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it; nothing changes on a CPU
    allowed = ("auto", "32-true", "32", 32, "bf16-mixed", "16-mixed")
    if precision not in allowed:
        raise UserError(f"trainer.precision must be auto, 32-true, bf16-mixed or 16-mixed, got {precision!r}")
    if precision == "auto":
        gpu = kwargs.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        precision = "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"
    check_arguments(kwargs)
    for key, value in (("gradient_clip_val", None), ("accumulate_grad_batches", 1)):
        if two_players and kwargs.get(key, value) != value:
            raise UserError(f"two players are trained with trainer.{key}={value or 'null'} alone, got {kwargs[key]!r}")
    epochs, every = kwargs.get("max_epochs"), kwargs.get("check_val_every_n_epoch")
    if epochs and every and 0 < epochs < every:
        kwargs["check_val_every_n_epoch"] = epochs  # a run that never validates has no best checkpoint and no samples
    callbacks = list(kwargs.get("callbacks") or [])
    if any(isinstance(c, LearningRateFinder) for c in callbacks):
        if two_players:
            raise UserError(
                "LearningRateFinder searches one learning rate, and two players have two: leave the callback out"
            )
        kwargs["callbacks"] = [*callbacks, FoundLearningRate()]
    kwargs["plugins"] = [*(kwargs.get("plugins") or []), CheckpointFiles()]
    if "fsdp" in str(kwargs.get("strategy")):
        _check_sharding(kwargs.get("accelerator", "auto"), kwargs.get("callbacks") or [])
    _check_monitors(kwargs.get("callbacks") or [])
    kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), *_shown(kwargs)]
    trainer = _trainer(precision=precision, **kwargs)
    _check_started(trainer.world_size)
    if kwargs.get("sync_batchnorm") and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise UserError("trainer.sync_batchnorm=true is for GPUs: torch has no synchronised batch norm on CPUs")
    if two_players and isinstance(trainer.strategy, DDPStrategy):
        trainer = _trainer(precision=precision, **{**kwargs, "strategy": "ddp_find_unused_parameters_true"})
    if trainer.world_size > 1 and in_sweep():
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
    own = any(isinstance(callback, ProgressBar) for callback in kwargs.get("callbacks") or [])
    if kwargs.get("enable_progress_bar") is not False and not own:
        shown.append(progress_bar())
    return shown


class FoundLearningRate(L.Callback):
    """Make the optimiser and its schedule anew by the learning rate that LearningRateFinder has found.

    Lightning's callback sets that of the optimiser alone, which the next step of a schedule puts back.
    """

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step == 0:
            trainer.strategy.setup_optimizers(trainer)


def _trainer(**arguments) -> L.Trainer:
    """Lightning's Trainer; what it refuses is the user's to mend."""
    try:
        return L.Trainer(**arguments)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        if type(error) is RuntimeError and "stateful callback" not in str(error):  # two that save under one name
            raise
        raise UserError(f"Lightning's Trainer refuses its arguments: {' '.join(str(error).split())}") from error


def quiet_lightning() -> None:
    """Keep Lightning's messages to what a user can act on, each said once."""
    if logging.getLogger().hasHandlers():  # it has a handler of its own beside the root's
        logging.getLogger("lightning").handlers.clear()
    of_pytorch = ("pytorch.utilities.rank_zero", "pytorch.trainer.connectors.signal_connector")
    for name in (*of_pytorch, "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # its own to mend
    warnings.filterwarnings("ignore", "Precision .* is not supported by the model summary")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a run resumes in its folder
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
