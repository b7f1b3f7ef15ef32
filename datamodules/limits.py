"""Check the arguments of Lightning's Trainer that limit the data of a run."""

from collections.abc import Mapping, Sized

from zoo.checks.capabilities import ShapedData
from zoo.checks.inputs import shape_of
from zoo.datamodules.files import DataError

SPLITS = ("train", "val", "test")


def check_limits(trainer, loaders: Mapping[str, Sized], batch_size: int) -> None:
    """Raise if an argument of the Trainer does not suit the loaders. A run calls this function at its start.

    Args:
        trainer: Lightning's Trainer.
        loaders: the loader of each split in ``SPLITS``.
        batch_size: training examples per step, over all processes.

    Raises:
        DataError: in four cases. ``batch_size`` is not a multiple of the number of processes. A limit is a fraction
            that amounts to less than one batch. ``val_check_interval`` is more than the batches of an epoch.
            ``use_distributed_sampler`` is false and there are several processes.
    """
    if batch_size % trainer.world_size:
        raise DataError(
            f"batch_size {batch_size} does not divide evenly over {trainer.world_size} processes: use a multiple of "
            f"{trainer.world_size}"
        )
    sharing = trainer._accelerator_connector.use_distributed_sampler  # Lightning has no public attribute for it
    if trainer.world_size > 1 and not sharing:
        raise DataError(
            "trainer.use_distributed_sampler=false is not supported, because the processes always share each batch: "
            "remove this option"
        )
    for split in SPLITS:
        taken(trainer, split, len(loaders[split]))
    batches = taken(trainer, "train", len(loaders["train"]))
    interval = vars(trainer).get("val_check_interval")  # Lightning sets no value if the interval is a time
    validates = trainer.limit_val_batches > 0 and trainer.check_val_every_n_epoch is not None
    if validates and isinstance(interval, int) and interval > batches > 0:
        raise DataError(
            f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch: use at most "
            f"{batches}, or count batches across epochs with trainer.check_val_every_n_epoch=null"
        )


def check_model(model, data: ShapedData) -> None:
    """Check that a model takes the examples and the labels of ``data``. A run calls this function at its start.

    Raises:
        DataError: if the shapes differ, if the data have more classes than the model, or if the model needs labels and
            the data have none.
    """
    name, used = type(model).__name__, data.used
    shape, given = shape_of(model), list(data.shape)
    if list(shape) != given:
        advice = f"set model.shape={str(given).replace(' ', '')}, or " if "shape" in model.hparams else ""
        raise DataError(
            f"{name} takes examples of shape {list(shape)}, but examples of {used} have shape {given}: {advice}choose "
            "other data"
        )
    if (classes := model.hparams.get("num_classes")) is None:
        return
    if data.num_classes is None:
        raise DataError(
            f"{name} has model.num_classes={classes}, and {used} has no labels: choose data with labels, or a model "
            "without them"
        )
    if classes < data.num_classes:
        raise DataError(
            f"model.num_classes is {classes}, but {used} has {data.num_classes} classes: set {data.num_classes}, "
            "or choose other data"
        )


def taken(trainer, split: str, batches: int) -> int:
    """Return the number of batches of a split that the Trainer uses in an epoch.

    Args:
        trainer: Lightning's Trainer.
        split: a split in ``SPLITS``.
        batches: number of batches of the whole split.

    Raises:
        DataError: if the limit is a fraction that amounts to less than one batch.
    """
    limit = getattr(trainer, f"limit_{split}_batches")
    if isinstance(limit, int):
        return min(limit, batches)
    if limit > 0 and int(limit * batches) == 0 < batches:
        argument = "overfit_batches" if trainer.overfit_batches and split != "test" else f"limit_{split}_batches"
        least = f", or a fraction of at least {1 / batches:.3g}" if batches > 1 else ""
        raise DataError(
            f"trainer.{argument}={limit} is less than one of the {batches} batches of {split} data: use an integer "
            f"number of batches{least}"
        )
    return int(limit * batches)


def overfits(trainer) -> bool:
    """Return whether the run uses the same batches in every epoch (``overfit_batches``)."""
    return trainer is not None and trainer.overfit_batches > 0
