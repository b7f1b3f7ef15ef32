"""Data modules of the user, from a configuration in a folder that ``--config-dir`` names (docs/own_data_module.md).

Any LightningDataModule can train a model of images.
"""

import inspect
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.checks.capabilities import KnownShape
from zoo.checks.errors import UserError
from zoo.training.processes import started_by_lightning

if TYPE_CHECKING:
    from omegaconf import DictConfig

BY_RECIPES = ("batch_size", "train_on", "flip")  # options of the data that the recipes of models and experiments set


def without_options_of_recipes(data: "DictConfig", given: Sequence[str] = ()) -> None:
    """Remove options that a recipe sets for the data of the zoo, and that the class of the data does not take.

    Args:
        data: configuration of the data.
        given: overrides of the command line. Their options are not removed.

    Raises:
        UserError: if the command line sets such an option.
    """
    from hydra._internal.utils import _locate  # get_object also logs the error, which is raised later
    from lightning import LightningDataModule
    from omegaconf import open_dict

    target = str(data.get("_target_"))
    if target.startswith("zoo."):
        return
    try:
        kind = _locate(target)
        parameters = dict(inspect.signature(kind).parameters)
    except Exception:  # the error of an unknown class is raised where the data are built
        return
    if isinstance(kind, type) and kind.__init__ is LightningDataModule.__init__:
        parameters = {}  # LightningDataModule itself takes any argument, and ignores it
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in [key for key in BY_RECIPES if key in data and key not in parameters]:
        if any(override.lstrip("+").startswith(f"data.{key}=") for override in given):
            raise UserError(f"data.{key} is given, but {target} takes no {key}: leave it out, or add it to the class")
        with open_dict(data):
            del data[key]


def check_module(data: Any, test: bool, monitor: str | None) -> None:
    """Check that ``data`` is a data module with the loaders of a run.

    Args:
        data: the data module.
        test: whether the run ends with a test.
        monitor: metric that selects the best checkpoint, or None.

    Raises:
        UserError: if ``data`` is no LightningDataModule or lacks a loader.
    """
    from lightning import LightningDataModule

    name = type(data).__qualname__
    if not isinstance(data, LightningDataModule):
        raise UserError(f"the data are a {name}, and must be a LightningDataModule: change data._target_")
    if not has_loader(data, "train"):
        raise UserError(f"{name} has no train_dataloader, from which the model learns: add this method")
    if monitor is not None and monitor.startswith("val/") and not has_loader(data, "val"):
        raise UserError(
            f"{name} has no val_dataloader, and the best checkpoint is chosen by {monitor}: add this method, or use "
            "callbacks=none test=false"
        )
    if test and not has_loader(data, "test"):
        raise UserError(f"{name} has no test_dataloader: add this method, or use test=false")


def has_loader(data: Any, split: str) -> bool:
    """Return whether a data module has its own method ``train_dataloader``, ``val_dataloader`` or similar."""
    from lightning.pytorch.utilities.model_helpers import is_overridden

    return is_overridden(f"{split}_dataloader", data)


def shape_of_examples(data: Any) -> list[int]:
    """Return the shape of an example of ``data``, such as [C, H, W].

    This is the attribute ``shape``. A data module without it prepares its data and gives one training batch. The random
    numbers of the run do not change.

    Raises:
        UserError: if the first batch has no known form, or if its images have the channels last. It is also raised if
            torchrun or SLURM has started several processes, because they would prepare the data at the same time.
    """
    from lightning.pytorch.utilities.seed import isolate_rng

    from zoo.checks.pixels import as_batch

    if isinstance(data, KnownShape) and data.shape is not None:
        return list(data.shape)
    name = type(data).__qualname__
    together = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    if together and int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1:
        raise UserError(f"{name} has no attribute shape, which several processes need: add it, or set model.shape=...")
    with isolate_rng():
        if not started_by_lightning():  # the first process has prepared the data before it started this one
            data.prepare_data()
        data.setup("fit")
        batch = next(iter(data.train_dataloader()), None)
    if batch is None:
        raise UserError(f"the train_dataloader of {name} has no batch: give it data, or a smaller batch size")
    shape = list(as_batch(batch)[0].shape[1:])
    if len(shape) == 3 and shape[2] in (1, 3) and shape[0] not in (1, 3) and shape[0] > shape[2]:
        raise UserError(
            f"the images of {name} have shape {shape}, and seem to have the channels last: give (B, C, H, W), with "
            f"x.permute(0, 3, 1, 2), or set model.shape=[{','.join(map(str, shape))}] if there are {shape[0]} channels"
        )
    return shape
