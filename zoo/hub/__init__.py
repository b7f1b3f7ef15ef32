"""Load checkpoints with ``load``, and publish them with ``export`` in zoo/hub/exporting.py."""

from zoo.checks.moved import names_in
from zoo.hub.creating import create
from zoo.hub.loading import (
    CheckpointError,
    card_of,
    check_resumable,
    load,
    name_of_class,
    read_card,
    read_training_checkpoint,
)
from zoo.hub.placing import load_on
from zoo.hub.recorded_data import check_unchanged, data_of, record_of

__all__ = [
    "CheckpointError",
    "card_of",
    "check_resumable",
    "check_unchanged",
    "create",
    "data_of",
    "load",
    "load_on",
    "name_of_class",
    "read_card",
    "read_training_checkpoint",
    "record_of",
]

__getattr__ = names_in("zoo.hub", "zoo.hub.exporting", "zoo.training.wandb_login")
