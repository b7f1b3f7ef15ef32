"""Publish a training checkpoint: write its weights, a card, and a picture."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule

import zoo
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.inputs import shape_of
from zoo.checks.sources import SAFETENSORS, check_name, check_source, export_folder
from zoo.datamodules import OwnImages
from zoo.datamodules.access import make_ready, name_of
from zoo.evaluation.errors import Moved, measure_with_errors, moved
from zoo.evaluation.protocol import Protocol, check_protocol, evaluate
from zoo.evaluation.results import card_at
from zoo.evaluation.words import word_map
from zoo.hub.cards import measurements, previous, protocol_of, storage
from zoo.hub.loading import (
    CheckpointError,
    best_of,
    class_outside,
    from_training,
    read_training_checkpoint,
)
from zoo.hub.packing import default_type, pack
from zoo.hub.recorded_data import check_unchanged, data_of
from zoo.sampling.chunks import sample_chunks
from zoo.sampling.pictures import picture, save_figure, save_grid
from zoo.training.files import atomic_write

log = logging.getLogger(__name__)


@torch.no_grad()
def golden_terms(model: Any) -> dict[str, float]:
    """Return values that identify the weights: the terms of the loss on 16 examples of uniform noise with a fixed seed.

    For an adversarial model, these are the terms of both networks. For word vectors, the values are the cosines of a
    few words with their nearest neighbours.
    """
    if isinstance(model, capabilities.Words):
        near = {word: model.nearest(word, 3) for word in model.words[:: max(1, len(model.words) // 10)]}
        return {f"{word}/{other}": cosine for word, found in near.items() for other, cosine in found}
    generator = torch.Generator().manual_seed(0)
    batch = [torch.rand(16, *shape_of(model), generator=generator), torch.zeros(16, dtype=torch.long)]
    if isinstance(model, capabilities.Loss):
        return {name: float(term) for name, term in model.loss(batch, generator=generator).items()}
    opponent = model.critic_loss if isinstance(model, capabilities.Critic) else model.discriminator_loss
    networks = {
        "opponent": opponent(batch, generator=generator),
        "generator": model.generator_loss(batch, generator=generator),
    }
    return {f"{network}/{name}": float(term) for network, terms in networks.items() for name, term in terms.items()}


def export(
    source: str | Path,
    name: str,
    force: bool = False,
    protocol: Protocol | None = None,
    progress: bool = False,
    data: LightningDataModule | str | None = None,
    trust: bool = False,
    folder: Path | None = None,
    stored_as: str | None = None,
    kept: tuple[str, ...] = (),
) -> Path:
    """Publish a training checkpoint: write ``<name>.safetensors``, its card, and a picture of samples.

    For word vectors, the picture is a map of the words. The metrics of the card are measured on the test set
    that belongs to the training data. They are those of the weights in the file.

    The card of a replaced checkpoint is not lost. The new card has its numbers under ``previous``, see
    :func:`previous`.

    Args:
        source: path of a checkpoint or of a run folder. From a run folder, the best checkpoint is published.
        name: name of the published checkpoint: lower-case letters, digits and hyphens.
        force: replace an existing checkpoint with this name.
        protocol: measurements in addition to the test loop. None uses the protocol of the card that is replaced, or the
            default protocol.
        progress: show progress bars.
        data: the data of the run: a datamodule, or the present path of images or text of the user. None builds the data
            module that the checkpoint records (see :func:`zoo.hub.data_of`).
        trust: whether the record may name code that is imported for the data.
        folder: the folder of the files. None writes to ``zoo/weights`` in a checkout, and to the working folder if the
            zoo is installed as a package.
        stored_as: ``float32``, or ``float16`` for half the size. If float16 moves a metric by more than a tenth of its
            standard error, the weights are stored as float32. None stores word vectors as float16 and other models as
            float32.
        kept: names of networks that stay in float32 if ``stored_as`` is float16, such as ``discriminator``.

    Returns:
        path of the weights.

    Raises:
        CheckpointError: for an invalid or existing name, or a checkpoint that does not record its run.
        UserError: if the protocol does not suit the model, or the data are gone, have changed or are other data. Also
            if a name in ``kept`` is no network of the model.
    """
    check_name(name, force, export_folder(folder))
    weights = export_folder(folder) / f"{name}{SAFETENSORS}"
    card = weights.with_suffix(".json")
    replaced = card_at(card) if card.is_file() else None
    return publish(source, weights, name, protocol, progress, data, trust, stored_as, kept, replaced)


def publish(
    source: str | Path,
    weights: Path,
    name: str,
    protocol: Protocol | None = None,
    progress: bool = False,
    data: LightningDataModule | str | None = None,
    trust: bool = False,
    stored_as: str | None = None,
    kept: tuple[str, ...] = (),
    replaced: dict[str, Any] | None = None,
) -> Path:
    """Write the weights of a training checkpoint to ``weights``, and its card and picture to the same folder.

    Args:
        source: path of a checkpoint or of a run folder. From a run folder, the best checkpoint is published.
        weights: path of the safetensors file to write.
        name: name in the card.
        protocol: see :func:`export`, also for the other arguments.
        replaced: card of the checkpoint that is replaced, None if there is none.

    Returns:
        ``weights``.

    Raises:
        CheckpointError: for a checkpoint that does not record its run.
        UserError: if the protocol does not suit the model, or the data are gone, have changed or are other data. Also
            if a name in ``kept`` is no network of the model.
    """
    path = Path(check_source(source))
    path = best_of(path) if path.is_dir() else path
    if not path.is_file():
        what = "is published already" if str(source) in zoo.list_checkpoints() else "is no run on this machine"
        raise CheckpointError(f"{source} {what}: give a run folder, or a checkpoint file in it")
    checkpoint = read_training_checkpoint(path)
    record = checkpoint.get("record")
    if not record:
        raise CheckpointError(
            f"{path} does not record the run that made it; train with the callback RunRecord, which adds this record"
        )
    if outside := class_outside(checkpoint):
        raise CheckpointError(f"only models of the zoo are exported, and {path} holds a model of the class {outside!r}")
    model: Any = from_training(checkpoint, path)
    if protocol is None:
        same_model = (replaced or {}).get("model") == checkpoint["model"]
        protocol = protocol_of(replaced if replaced and same_model else {})
    check_protocol(protocol, model)
    packed = pack(model, checkpoint, name, stored_as or default_type(model), kept)
    data_module: Any = data if isinstance(data, LightningDataModule) else data_of(record, data, trust)
    make_ready(data_module)
    if (used := name_of(data_module)) != (record["data"] or used):
        raise UserError(f"the card of this run needs its data, {record['data']}; got {used}")
    check_unchanged(data_module, record)

    words = isinstance(model, capabilities.Words)
    found, rounding = measure_with_errors(packed.model, data_module, protocol, progress), None
    if packed.stored_as != "float32":
        exact = pack(model, checkpoint, name, "float32")
        log.info("Measuring the float32 weights, which the weights in %s are compared with", packed.stored_as)
        exactly = measure_with_errors(exact.model, data_module, protocol, progress)
        rounding = moved(exactly, found)
        if not _is_close(rounding, packed.stored_as):
            packed, found = exact, exactly
    card = {
        "name": name,
        "model": checkpoint["model"],
        "hyper_parameters": checkpoint["hyper_parameters"],
        "parameters": packed.parameters,
        **({} if words else _shape_and_classes(model, data_module)),
        "data": used,
        "data_digest": record.get("data_digest"),
        "train_on": record["config"].get("data", {}).get("train_on", "train"),
        "init": _beginning(record.get("init")),
        "preprocessing": "words in lower case" if words else _preprocessing(model),
        "command": record["command"],
        "commit": record["commit"],
        "seed": record["config"].get("seed"),
        "epochs": checkpoint["epoch"] + 1,
        "steps": checkpoint["global_step"],
        "seconds": round(record["seconds"]),
        "hardware": record["hardware"],
        "earlier": record.get("earlier", []),
        **measurements(found, model, checkpoint["model"], data_module),
        "whole_model": evaluate(model, data_module) if words else None,
        "golden": golden_terms(packed.model),
        **storage(packed, rounding),
    }
    if replaced is not None:
        card["previous"] = previous(replaced, card)
        if gone := sorted(set(replaced["metrics"]) - set(found.metrics)):
            log.warning("The replaced card has metrics that were not measured now: %s", ", ".join(gone))
    weights.parent.mkdir(parents=True, exist_ok=True)
    draw(packed.model, weights.with_suffix(".png"))
    # The card is written last, because a checkpoint counts as published if its card exists.
    for target, content in [(weights, packed.data), (weights.with_suffix(".json"), _json(card))]:
        with atomic_write(target) as file:
            file.write(content)
    return weights


def _is_close(rounding: dict[str, Moved], stored_as: str) -> bool:
    """Return whether no metric moves too far. If one does, log which, and that the weights are stored as float32."""
    far = {name: found for name, found in rounding.items() if found.too_far}
    for name, found in far.items():
        error = "no known error" if found.error is None else f"standard error {found.error:.3g}"
        log.warning("%s: %.6g in float32, %.6g in %s, %s", name, found.exact, found.stored, stored_as, error)
    if far:
        log.warning("%s moves these metrics too far, so the weights are stored as float32", stored_as)
    return not far


def draw(model: Any, path: Path) -> None:
    """Write a picture of a model: its samples, or a map of its words. Models without both have no picture."""
    if isinstance(model, capabilities.Words):
        save_figure(word_map(model), path, dpi=80)
    elif isinstance(model, capabilities.Samples):
        n, conditions, columns = picture(model, 2000 if list(shape_of(model)) == [2] else 64, {})
        save_grid(sample_chunks(model, n, seed=0, **conditions), path, columns)


def _shape_and_classes(model, data) -> dict[str, Any]:
    """Return the entries of a card about the shape of an example and the classes of the training data."""
    shaped = isinstance(data, capabilities.ShapedData)
    return {
        "shape": list(shape_of(model)),
        "num_classes": data.num_classes if shaped else None,
        "class_names": data.source.classes if isinstance(data, OwnImages) else None,
    }


def _beginning(init: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the entry ``init`` of a card. Cards are published, so the file is named without the folders above it."""
    return init | {"file": Path(init["file"]).name} if init and init.get("file") else init


def _preprocessing(model) -> str:
    """Return the sentence of a card about the examples that the model takes."""
    shape = shape_of(model)
    kind = {1: "points", 2: "one-hot sequences"}.get(len(shape), "images")
    allowed = " in [0, 1]" if kind == "images" else ""
    examples = f"{kind} (B, {', '.join(map(str, shape))}){allowed}"
    return f"{examples} from the datamodule; the model does all other preprocessing"


def _json(card: dict[str, Any]) -> bytes:
    return (json.dumps(card, indent=2) + "\n").encode()
