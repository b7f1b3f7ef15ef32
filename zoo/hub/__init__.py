"""Load checkpoints with ``load``, and publish them with ``export`` in zoo/hub/exporting.py."""

from zoo.checks.moved import names_in
from zoo.hub.loading import (
    CheckpointError,
    check_resumable,
    data_of,
    load,
    name_of_class,
    read_card,
    read_training_checkpoint,
    record_of,
)

__all__ = [
    "CheckpointError",
    "check_resumable",
    "data_of",
    "load",
    "name_of_class",
    "read_card",
    "read_training_checkpoint",
    "record_of",
]

__getattr__ = names_in("zoo.hub", "zoo.hub.exporting", "zoo.training.wandb_login")
