"""Arguments of Lightning's Trainer that decide how much of the data a run takes: obeyed by the loaders, or refused."""

from collections.abc import Mapping, Sized

from zoo.datamodules.files import DataError

SPLITS = ("train", "val", "test")


def check_limits(trainer, loaders: Mapping[str, Sized], batch_size: int) -> None:
    """Refuse what cannot be obeyed, at the start of a run and not after its first epoch.

    Args:
        trainer: Lightning's.
        loaders: of each of ``SPLITS``.
        batch_size: of training, over all processes.

    Raises:
        DataError: for a batch that does not divide evenly over the processes, a fraction of the batches that is less
            than one, validation after more batches than an epoch has, and processes that are not to share the data.
    """
    if batch_size % trainer.world_size:
        raise DataError(f"batch_size {batch_size} does not divide evenly over {trainer.world_size} processes")
    sharing = trainer._accelerator_connector.use_distributed_sampler  # Lightning shows it nowhere else
    if trainer.world_size > 1 and not sharing:
        raise DataError(
            "trainer.use_distributed_sampler=false cannot be obeyed, since processes always share each batch here: "
            "leave it out"
        )
    for split in SPLITS:
        taken(trainer, split, len(loaders[split]))
    batches, interval = taken(trainer, "train", len(loaders["train"])), trainer.val_check_interval
    validates = trainer.limit_val_batches > 0 and trainer.check_val_every_n_epoch is not None
    if validates and isinstance(interval, int) and interval > batches > 0:
        raise DataError(
            f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch: take at most "
            "these, or let it count over epochs by trainer.check_val_every_n_epoch=null"
        )


def taken(trainer, split: str, batches: int) -> int:
    """How many of the ``batches`` of a split the Trainer takes in an epoch.

    Raises:
        DataError: for a fraction of them that is less than one.
    """
    limit = getattr(trainer, f"limit_{split}_batches")
    if isinstance(limit, int):
        return min(limit, batches)
    if limit > 0 and int(limit * batches) == 0 < batches:
        argument = "overfit_batches" if trainer.overfit_batches and split != "test" else f"limit_{split}_batches"
        least = f", or a fraction of at least {1 / batches:.3g}" if batches > 1 else ""
        raise DataError(
            f"trainer.{argument}={limit} is less than one batch of the {batches} of {split} data: take a whole number "
            f"of batches{least}"
        )
    return int(limit * batches)


def overfits(trainer) -> bool:
    """Whether the run takes the same batches in every epoch (``overfit_batches``)."""
    return trainer is not None and trainer.overfit_batches > 0
