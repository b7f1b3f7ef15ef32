"""Measure published weights again, and write the metrics to their card."""

import json
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

import zoo
from zoo.checks import capabilities
from zoo.checks.errors import CheckpointError, UserError
from zoo.checks.inputs import shape_of
from zoo.checks.sources import SAFETENSORS, check_source
from zoo.datamodules import by_name
from zoo.datamodules.access import make_ready, name_of
from zoo.evaluation.errors import measure_with_errors
from zoo.evaluation.protocol import Protocol, check_protocol
from zoo.hub.cards import measurements, protocol_of
from zoo.hub.loading import read_card, read_card_file
from zoo.training.files import atomic_write
from zoo.training.outputs import check_writable


def refresh(
    source: str | Path,
    protocol: Protocol | None = None,
    progress: bool = False,
    data: LightningDataModule | str | None = None,
) -> dict[str, Any]:
    """Measure published weights again, and write the metrics to their card. Every other entry of the card stays.

    This adds metrics that did not exist when the weights were published.

    Args:
        source: name of a pretrained checkpoint, or path of an exported file.
        protocol: see :func:`zoo.hub.exporting.export`. None uses the protocol of the card.
        progress: show progress bars.
        data: the data of the run: a datamodule, a name, or a path. None takes the name on the card.

    Returns:
        the new card.

    Raises:
        CheckpointError: if ``source`` is neither of these.
        UserError: if the protocol does not suit the model, if these are other data than those of the card, or if the
            card cannot be written.
    """
    text = check_source(source)
    if text in zoo.list_checkpoints():
        card, path = read_card(text), zoo.WEIGHTS / f"{text}.json"
    elif text.endswith(SAFETENSORS) and Path(text).is_file():
        card, path = read_card_file(text), Path(text).with_suffix(".json")
    else:
        raise CheckpointError(f"{source} has no card to write to: give a pretrained checkpoint or an exported file")
    model: Any = zoo.load(text)
    protocol = protocol or protocol_of(card)
    check_protocol(protocol, model)
    words = isinstance(model, capabilities.Words)
    if words and data is not None:
        raise UserError(f"the metrics of {source} are those of published word sets, and need no data: leave out --data")
    check_writable(path)  # before the work begins
    used = None if words else _ready(model, card, data)
    found = measure_with_errors(model, used, protocol, progress)
    card |= measurements(found, model, card["model"], used)
    with atomic_write(path) as file:
        file.write((json.dumps(card, indent=2) + "\n").encode())
    return card


def _ready(model: Any, card: dict[str, Any], data: LightningDataModule | str | None) -> Any:
    """Return the data module of a card, ready for use.

    Raises:
        UserError: if ``data`` are other data.
    """
    shape = shape_of(model)
    if not isinstance(data, LightningDataModule):
        data = by_name(data or card["data"], shape if len(shape) == 3 else None)
    if (used := name_of(make_ready(data))) != card["data"]:
        raise UserError(f"the card is about the data {card['data']}, got {used}: name those data with --data")
    return data
