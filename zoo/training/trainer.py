"""Make Lightning's Trainer for the hardware of this machine, and check its arguments."""

import logging
import math
import os
import warnings
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder, ModelCheckpoint, ProgressBar
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.parsing import lightning_getattr

from zoo.checks.errors import UserError
from zoo.checks.values import check_flag
from zoo.training.checkpoint_files import CheckpointFiles
from zoo.training.executions import use_executions
from zoo.training.interruption import signals_held
from zoo.training.progress import ModelSize, progress_bar
from zoo.training.shell import pasted, training_command
from zoo.training.sweeps import in_sweep
from zoo.training.trainer_arguments import check_arguments


def make_trainer(
    precision: str = "auto",
    two_players: bool = False,
    steps_per_execution: int | Literal["auto"] = "auto",
    cuda_graphs: bool = True,
    **kwargs,
) -> L.Trainer:
    """Return Lightning's Trainer, with the precision of this machine, the callbacks of a run and TF32 matrix products.

    Args:
        precision: ``auto``, ``32-true``, ``bf16-mixed`` or ``16-mixed``. ``auto`` is ``bf16-mixed`` on a GPU that
            supports it, and ``32-true`` elsewhere.
        two_players: whether the model is adversarial. DDP then does not wait for gradients of the network that is not
            updated.
        steps_per_execution: K, the largest number of batches that training takes in one execution, without Lightning's
            calls around each. With ``auto``, an execution takes about half a second. 1 keeps Lightning's loop. On the
            CPU, results are the same for every K (zoo/training/executions.py).
        cuda_graphs: whether steps on CUDA may be replays of graphs (zoo/training/graphs.py). K = 1 uses no graphs.
        kwargs: arguments of Lightning's Trainer.

    Raises:
        UserError: if an argument is not allowed. The reasons are:

            - Lightning does not have the argument, rejects its value, or ignores it.
            - The model is adversarial, and the arguments clip or accumulate gradients or use LearningRateFinder.
            - A callback monitors ``val/distance``, and no callback measures this metric.
            - The number of processes that torchrun or SLURM has started differs from the number in the arguments.
            - Weights are sharded on CPUs.
            - Weights are sharded, and a callback needs all weights on each process.
            - A Hydra sweep has jobs of several processes. Each process would start the whole sweep again.
    """
    quiet_lightning()
    torch.set_float32_matmul_precision("high")  # allows TF32 on GPUs; has no effect on CPUs
    allowed = ("auto", "32-true", "32", 32, "bf16-mixed", "16-mixed")
    if precision not in allowed:
        raise UserError(f"trainer.precision must be auto, 32-true, bf16-mixed or 16-mixed, got {precision!r}")
    if precision == "auto":
        gpu = kwargs.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        precision = "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"
    check_arguments(kwargs)
    if steps_per_execution != "auto" and (type(steps_per_execution) is not int or steps_per_execution < 1):
        raise UserError(
            f"trainer.steps_per_execution must be auto or an integer of at least 1, got {steps_per_execution!r}"
        )
    check_flag("trainer.cuda_graphs", cuda_graphs)
    for key, value in (("gradient_clip_val", None), ("accumulate_grad_batches", 1)):
        if two_players and kwargs.get(key, value) != value:
            raise UserError(f"trainer.{key} must be {value or 'null'} for adversarial models, got {kwargs[key]!r}")
    epochs, every = kwargs.get("max_epochs"), kwargs.get("check_val_every_n_epoch")
    if epochs and every and 0 < epochs < every:
        kwargs["check_val_every_n_epoch"] = epochs  # a run that never validates has no best checkpoint and no samples
    callbacks = list(kwargs.get("callbacks") or [])
    if two_players and any(isinstance(c, LearningRateFinder) for c in callbacks):
        raise UserError(
            "LearningRateFinder finds one learning rate, and adversarial models have two: leave the callback out"
        )
    if tuners := [c for c in callbacks if isinstance(c, LearningRateFinder | BatchSizeFinder)]:
        for tuner in tuners:
            _prepare_model_before(tuner)
        kwargs["callbacks"] = [*callbacks, FoundValues()]
    kwargs["plugins"] = [*(kwargs.get("plugins") or []), CheckpointFiles()]
    if "fsdp" in str(kwargs.get("strategy")):
        _check_sharding(kwargs.get("accelerator", "auto"), kwargs.get("callbacks") or [])
    _check_monitors(kwargs.get("callbacks") or [])
    kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), *_shown(kwargs)]
    trainer = _trainer(precision=precision, **kwargs)
    _check_started(trainer.world_size)
    if kwargs.get("sync_batchnorm") and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise UserError(
            "trainer.sync_batchnorm=true needs GPUs, because torch has no synchronised BatchNorm on CPUs: leave it out"
        )
    if two_players and isinstance(trainer.strategy, DDPStrategy):
        trainer = _trainer(precision=precision, **{**kwargs, "strategy": "ddp_find_unused_parameters_true"})
    if trainer.world_size > 1 and in_sweep():
        raise UserError(
            f"a sweep (-m) cannot run jobs of {trainer.world_size} processes. Start one command for each job: "
            f"for seed in 1 2 3; do {pasted(*training_command())} seed=$seed ...; done"
        )
    _hold_signals(trainer.strategy.launcher)
    use_executions(trainer, steps_per_execution, cuda_graphs)
    return trainer


def _hold_signals(launcher: object) -> None:
    """Let the processes that ``launcher`` starts begin with SIGINT and SIGTERM blocked (see ``signals_held``)."""
    if isinstance(launcher, _SubprocessScriptLauncher):
        start = launcher._call_children_scripts  # Lightning has no public name for it

        def held() -> None:
            with signals_held():
                start()

        launcher._call_children_scripts = held  # type: ignore[method-assign]


def _shown(kwargs: dict[str, Any]) -> list[L.Callback]:
    """Return the callbacks that show a run, in place of Lightning's model summary and bars.

    Args:
        kwargs: arguments of the Trainer. ``enable_model_summary`` becomes false if it is not given.
    """
    shown: list[L.Callback] = []
    if kwargs.setdefault("enable_model_summary", False) is False:
        shown.append(ModelSize())
    own = any(isinstance(callback, ProgressBar) for callback in kwargs.get("callbacks") or [])
    if kwargs.get("enable_progress_bar") is not False and not own:
        shown.append(progress_bar())
    return shown


def _prepare_model_before(tuner: LearningRateFinder | BatchSizeFinder) -> None:
    """Let ``tuner`` call the model's ``on_fit_start`` before its search. Lightning calls it only after the search.

    After the search, the weights are again those before ``on_fit_start``, which Lightning calls with the found value.
    """
    search = tuner.on_fit_start

    def on_fit_start(trainer, pl_module) -> None:
        if isinstance(tuner, BatchSizeFinder) and trainer.datamodule is not None:
            _keep_batches(tuner, trainer)
        before = {name: value.clone() for name, value in pl_module.state_dict().items()}
        pl_module.on_fit_start()
        search(trainer, pl_module)
        pl_module.load_state_dict(before)

    tuner.on_fit_start = on_fit_start  # type: ignore[method-assign]


def _keep_batches(tuner: BatchSizeFinder, trainer: L.Trainer) -> None:
    """Let ``tuner`` try only batch sizes for which a training epoch has at least one batch.

    Without a limit, Lightning doubles the size beyond the training data. The epoch then has no batch, so nothing fails.

    Raises:
        UserError: if the first size is too large.
    """
    size, batches = lightning_getattr(trainer.lightning_module, tuner._batch_arg_name), 1
    number, limit = sized_len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
    if not number:
        return
    if isinstance(limit, float) and limit > 0:
        batches = math.ceil(1 / limit)  # the epoch has one of these batches
    largest = size * number // batches
    if tuner._init_val > largest:
        raise UserError(
            f"BatchSizeFinder begins with init_val={tuner._init_val}. With trainer.limit_train_batches={limit}, an "
            f"epoch has a batch only for sizes up to {largest}. Set init_val to at most {largest}"
        )
    tuner._max_trials = min(tuner._max_trials, 1 + int(math.log2(largest / tuner._init_val)))


class FoundValues(L.Callback):
    """Callback that sets the model up again with the value that LearningRateFinder or BatchSizeFinder has found.

    A found learning rate changes only the optimiser, and the next step of a schedule would undo the change. A found
    batch size changes neither the length of the schedule nor what ``setup`` has computed from the size. So the model
    also gets a new optimiser and schedule.
    """

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step == 0:
            pl_module.setup("fit")
            trainer.strategy.setup_optimizers(trainer)


def _trainer(**arguments) -> L.Trainer:
    """Return Lightning's Trainer. Errors in its arguments are raised as UserError."""
    try:
        return L.Trainer(**arguments)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        # Users can fix one kind of RuntimeError: two callbacks save their state under the same name.
        if type(error) is RuntimeError and "stateful callback" not in str(error):
            raise
        raise UserError(f"Lightning's Trainer rejects its arguments: {' '.join(str(error).split())}") from error


def quiet_lightning() -> None:
    """Hide messages of Lightning that need no action, and show the others only once."""
    if logging.getLogger().hasHandlers():  # with its own handler, Lightning would print each message again
        logging.getLogger("lightning").handlers.clear()
    of_pytorch = ("pytorch.utilities.rank_zero", "pytorch.trainer.connectors.signal_connector")
    for name in (*of_pytorch, "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    # Lightning's own code causes this warning.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    warnings.filterwarnings("ignore", "Precision .* is not supported by the model summary")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a run resumes in its folder
    # Steps are counted over all epochs, so the loss of short epochs is logged. ModelSize warns if the run is too short.
    warnings.filterwarnings("ignore", "The number of training batches")
    warnings.filterwarnings("ignore", "torch.distributed.nn.functional.all_gather is deprecated")
    # Convolutions with one channel cause this warning. Their gradients may have either memory layout.
    warnings.filterwarnings("ignore", r"(?s)Grad strides do not match bucket view strides")


def _check_sharding(accelerator: str, callbacks: list) -> None:
    """Check that weights can be sharded over processes.

    Raises:
        UserError: if there are no GPUs, or if a callback needs all weights on each process.
    """
    if not torch.cuda.is_available() or accelerator == "cpu":
        raise UserError("trainer.strategy=fsdp needs GPUs, and this run has none: use trainer.strategy=ddp")
    kept = ("ModelCheckpoint", "FiniteLoss", "ExactResume", "RunRecord", "TimeEstimate", "LossPerStep")
    if whole := [name for c in callbacks if (name := type(c).__name__) not in kept]:
        raise UserError(
            f"trainer.strategy=fsdp shards the weights, and {', '.join(whole)} need all weights on each process: add "
            "callbacks=none"
        )


def _check_monitors(callbacks: list) -> None:
    """Check that a callback measures ``val/distance`` if checkpoints are chosen by it.

    Raises:
        UserError: if no callback measures this metric.
    """
    kinds = {type(c).__name__ for c in callbacks}
    monitors = {c.monitor for c in callbacks if isinstance(c, ModelCheckpoint | EarlyStopping)}
    if "val/distance" in monitors and "SampleDistance" not in kinds:
        raise UserError(
            "callbacks.best.monitor=val/distance needs callbacks.sample_distance, which measures it: keep this "
            "callback, or choose another monitor"
        )


def _check_started(world_size: int) -> None:
    """Check the number of processes that torchrun or SLURM has started.

    With another number, each process would train a separate run.

    Raises:
        UserError: if the number is not ``world_size``.
    """
    # In interactive jobs of SLURM, Lightning starts the processes.
    slurm = "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    by = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM" if slurm else None
    started = int(os.environ.get("WORLD_SIZE" if by == "torchrun" else "SLURM_NTASKS", 1)) if by else world_size
    if started != world_size:
        raise UserError(
            f"{by} has started {started} processes, and trainer.num_nodes times trainer.devices is {world_size}. "
            "Set num_nodes to the number of machines and devices to the processes per machine, with trainer=ddp"
        )
