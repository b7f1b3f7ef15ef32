"""Train one model of the zoo: ``zoo train model=ddpm data=mnist trainer.max_epochs=2``.

``python -m zoo train`` and train.py of a checkout run the same code.
"""

import logging
import math
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import zoo
from zoo.checks.errors import UserError
from zoo.training.command_line import (
    check_kind,
    check_values,
    readable_arguments,
    with_current_names,
    with_home,
    with_shape_of,
)
from zoo.training.error_lines import one_line_errors
from zoo.training.hydra_errors import hydra_raises
from zoo.training.interruption import ended_by_signals
from zoo.training.own_data import check_module, without_options_of_recipes
from zoo.training.processes import end_with_parent, leave_process_group, overrides_of_process
from zoo.training.sweeps import end_of_sweep, report_failed_job
from zoo.training.threads import prepare_threads

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra, torch and Lightning take seconds to import. Functions import them after the signal handlers are installed.
# Torch and Lightning are imported after the configuration is composed.


def build(node: "DictConfig", **kwargs):
    """Return the object that ``node`` describes. ``kwargs`` are additional arguments of its class."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    # With _convert_="all", checkpoints hold hyperparameters as plain lists and dicts, which weights_only=True can load.
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        # Hydra's errors about a class or its arguments are readable. An error from inside the call is raised unchanged.
        called, cause = "Error in call to target" in str(error), error.__cause__
        if called and cause is not None and cause.__traceback__.tb_next is not None:
            # torchmetrics raises this error with a message that says what to install, and without a module name.
            if isinstance(cause, ModuleNotFoundError) and cause.name is None:
                raise UserError(str(cause)) from None
            raise cause from None
        raise


def build_all(group: "DictConfig | None") -> list:
    """Return the objects of a group, such as all callbacks."""
    return [build(node) for node in (group or {}).values() if node and "_target_" in node]


def overrides_given() -> list[str]:
    """Return the overrides of the command line, or an empty list if Hydra's main function does not run."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def without_tuners(cfg: "DictConfig") -> None:
    """Give a run that resumes the values that Lightning's tuners found before, and leave the tuners out.

    They would search again, and the run would go on with other values.
    """
    from zoo.hub import read_training_checkpoint

    named = {key: str(node.get("_target_")).rpartition(".")[2] for key, node in (cfg.callbacks or {}).items() if node}
    tuners = {key: name for key, name in named.items() if name in ("LearningRateFinder", "BatchSizeFinder")}
    if not tuners or not Path(cfg.ckpt).is_file():
        return
    checkpoint = read_training_checkpoint(Path(cfg.ckpt))
    for key, name in tuners.items():
        cfg.callbacks[key] = None
        if name == "LearningRateFinder":
            cfg.model.lr = checkpoint.get("hyper_parameters", {}).get("lr", cfg.model.lr)
        else:
            state = checkpoint.get(cfg.data._target_.rpartition(".")[2], {})
            cfg.data.batch_size = state.get("batch_size", cfg.data.batch_size)


def train(cfg: "DictConfig") -> dict[str, float]:
    """Fit ``cfg.model`` on ``cfg.data``, test the best checkpoint, and return the last metrics by name."""
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint
    from omegaconf import OmegaConf

    from zoo.callbacks import Pruning, RunRecord
    from zoo.callbacks.run_end import run_end
    from zoo.hub import check_resumable
    from zoo.hub.initialising import begin_from

    check_values(cfg)
    with_current_names(cfg)
    with_home(cfg)
    if cfg.ckpt is not None:
        without_tuners(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    without_options_of_recipes(cfg.data, overrides_given())
    data = build(cfg.data)
    check_module(data, cfg.test, OmegaConf.select(cfg, "callbacks.best.monitor"))
    with_shape_of(cfg.model, data)
    model = build(cfg.model)
    check_kind(model, data)
    if cfg.compile:
        for network in model.children():
            if any(True for _ in network.parameters()):  # a metric has no parameters and is not compiled
                network.compile(backend=cfg.compile)  # weights keep their names in checkpoints
    begun = None
    if cfg.ckpt is not None:
        check_resumable(cfg.ckpt, model, cfg.seed, cfg.trainer.max_epochs)
        if cfg.init is not None:
            logging.getLogger(__name__).info("The run resumes from %s, so init=%s has no effect", cfg.ckpt, cfg.init)
    elif cfg.init is not None:
        begun = begin_from(model, cfg.init)
    record = RunRecord(cfg.run_dir, OmegaConf.to_container(cfg, resolve=True), begun)
    with closing(record):  # if the trainer cannot be built, no callback releases the lock of the run folder
        trainer = build(cfg.trainer, callbacks=[*build_all(cfg.callbacks), record], logger=build_all(cfg.logger))
        trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt, weights_only=True)
    metrics = dict(trainer.callback_metrics)
    pruned = any(isinstance(callback, Pruning) and callback.pruned for callback in trainer.callbacks)
    if cfg.test and not pruned:
        # test(ckpt_path=...) would make the averaging callback restore the raw weights. So a new model is loaded
        # instead.
        best = next((c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), "")
        model = type(model).load_from_checkpoint(best, weights_only=True) if best else model
        trainer.test(model, datamodule=data, verbose=False)
        metrics |= trainer.callback_metrics
    metrics = {name: float(value) for name, value in metrics.items()}
    if trainer.is_global_zero:
        logging.getLogger(__name__).info("%s", run_end(trainer, model, cfg.run_dir, metrics))
    return metrics


def job(cfg: "DictConfig") -> float | None:
    """Train, and return the metric that a sweep minimises, or NaN if the job has failed.

    The same metric selects the best checkpoint.
    """
    from omegaconf import OmegaConf

    from zoo.training.messages import log_above_bars

    with report_failed_job(), one_line_errors(cfg.run_dir), log_above_bars(), leave_process_group():
        return train(cfg).get(OmegaConf.select(cfg, "callbacks.best.monitor"))
    return math.nan


def main(arguments: list[str]) -> None:
    """Check the command line, and let Hydra run the job, or every job of a sweep.

    Args:
        arguments: the words of the command line after ``zoo train``.
    """
    import hydra

    typed = sys.argv.copy()

    def started_job(cfg: "DictConfig") -> float | None:
        sys.argv[:] = typed  # Lightning starts the other processes of the run with these words
        return job(cfg)

    arguments = readable_arguments(arguments, zoo.CONFIGS)
    sys.argv[1:] = arguments + overrides_of_process(arguments, os.environ)  # Hydra reads its arguments here
    with hydra_raises():
        hydra.main(config_path=str(zoo.CONFIGS), config_name="train", version_base="1.3")(started_job)()
    end_of_sweep()


def run(arguments: list[str]) -> None:
    """Run a training as a program, with its signal handlers and its number of threads.

    Args:
        arguments: the words of the command line after ``zoo train``.
    """
    end_with_parent()
    prepare_threads()
    with ended_by_signals(), one_line_errors():
        main(arguments)
