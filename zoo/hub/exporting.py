"""Publish a training checkpoint: write its weights, a card, and a picture."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from safetensors.torch import save as save_tensors

import zoo
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.inputs import shape_of
from zoo.checks.sources import SAFETENSORS, check_name, check_source, export_folder
from zoo.datamodules import OwnImages, by_name
from zoo.datamodules.access import make_ready, name_of, size_of
from zoo.evaluation.protocol import Protocol, check_protocol, evaluate, measure, measure_all_samples
from zoo.evaluation.words import word_map
from zoo.hub.loading import (
    CheckpointError,
    best_of,
    class_outside,
    from_training,
    from_weights,
    read_training_checkpoint,
)
from zoo.hub.recorded_data import check_unchanged, data_of
from zoo.sampling.chunks import sample_chunks
from zoo.sampling.pictures import picture, save_figure, save_grid
from zoo.training.files import atomic_write

WORDS_PROTOCOL = (
    "metrics: scores of the published vectors on public sets of analogies and similarities (zoo/evaluation/words.py). "
    "whole_model: metrics of the test loop with all trained words and output vectors (units in zoo/skipgram.py)"
)


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
) -> Path:
    """Publish a training checkpoint: write ``<name>.safetensors``, its card, and a picture of samples.

    For word vectors, the picture is a map of the words. The metrics of the card are measured on the test set
    that belongs to the training data.

    Args:
        source: path of a checkpoint or of a run folder. From a run folder, the best checkpoint is published.
        name: name of the published checkpoint: lower-case letters, digits and hyphens.
        force: replace an existing checkpoint with this name.
        protocol: measurements in addition to the test loop. None uses the default protocol.
        progress: show progress bars.
        data: the data of the run: a datamodule, or the present path of images or text of the user. None builds the data
            module that the checkpoint records (see :func:`zoo.hub.data_of`).
        trust: whether the record may name code that is imported for the data.
        folder: the folder of the files. None writes to ``zoo/weights`` in a checkout, and to the working folder if the
            zoo is installed as a package.

    Returns:
        path of the weights.

    Raises:
        CheckpointError: for an invalid or existing name, or a checkpoint that does not record its run.
        UserError: if the protocol does not suit the model, or the data are gone, have changed or are other data.
    """
    check_name(name, force, export_folder(folder))
    return publish(source, export_folder(folder) / f"{name}{SAFETENSORS}", name, protocol, progress, data, trust)


def publish(
    source: str | Path,
    weights: Path,
    name: str,
    protocol: Protocol | None = None,
    progress: bool = False,
    data: LightningDataModule | str | None = None,
    trust: bool = False,
) -> Path:
    """Write the weights of a training checkpoint to ``weights``, and its card and picture to the same folder.

    Args:
        source: path of a checkpoint or of a run folder. From a run folder, the best checkpoint is published.
        weights: path of the safetensors file to write.
        name: name in the card.
        protocol: see :func:`export`, also for the other arguments.

    Returns:
        ``weights``.

    Raises:
        CheckpointError: for a checkpoint that does not record its run.
        UserError: if the protocol does not suit the model, or the data are gone, have changed or are other data.
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
    check_protocol(protocol or Protocol(), model)
    data_module: Any = data if isinstance(data, LightningDataModule) else data_of(record, data, trust)
    make_ready(data_module)
    if (used := name_of(data_module)) != (record["data"] or used):
        raise UserError(f"the card of this run needs its data, {record['data']}; got {used}")
    check_unchanged(data_module, record)

    metadata = {"model": checkpoint["model"], "hyper_parameters": json.dumps(checkpoint["hyper_parameters"])}
    words = isinstance(model, capabilities.Words)
    tensors = {k: v.contiguous() for k, v in (model.published() if words else model.state_dict()).items()}
    packed = save_tensors(tensors, metadata=metadata)
    published = from_weights(packed, hashlib.sha256(packed).hexdigest(), name)  # the model that zoo.load(name) returns
    metrics, evidence = measure(published if words else model, data_module, protocol or Protocol(), progress)
    card = {
        "name": name,
        "model": checkpoint["model"],
        "hyper_parameters": checkpoint["hyper_parameters"],
        "parameters": sum(t.numel() for t in tensors.values() if t.is_floating_point()),
        **({} if words else _shape_and_classes(model, data_module)),
        "data": used,
        "data_digest": record.get("data_digest"),
        "train_on": record["config"].get("data", {}).get("train_on", "train"),
        "init": record.get("init"),
        "preprocessing": "words in lower case" if words else _preprocessing(model),
        "command": record["command"],
        "commit": record["commit"],
        "seed": record["config"].get("seed"),
        "epochs": checkpoint["epoch"] + 1,
        "steps": checkpoint["global_step"],
        "seconds": round(record["seconds"]),
        "hardware": record["hardware"],
        "earlier": record.get("earlier", []),
        "metrics": metrics,
        "protocol": WORDS_PROTOCOL
        if words
        else f"the model's test_step on all {size_of(data_module, 'test'):,} test examples of "
        f"{used}, with noise seeded by batch index; units in zoo/{checkpoint['model']}.py",
        "log_likelihood": evidence.get("log_likelihood"),
        "bound": evidence.get("bound"),
        "samples": evidence.get("samples"),
        "counts": evidence.get("counts"),
        "whole_model": evaluate(model, data_module) if words else None,
        "golden": golden_terms(published),
        "sha256": hashlib.sha256(packed).hexdigest(),
    }
    weights.parent.mkdir(parents=True, exist_ok=True)
    draw(published if words else model, weights.with_suffix(".png"))
    # The card is written last, because a checkpoint counts as published if its card exists.
    for target, content in [(weights, packed), (weights.with_suffix(".json"), _json(card))]:
        with atomic_write(target) as file:
            file.write(content)
    return weights


def remeasure_samples(name: str, folder: Path | None = None, progress: bool = False) -> dict[str, Any]:
    """Measure the samples of an exported model again, and write the metrics to its card. Return the new card.

    The number of samples and their conditions are those of the card. The weights, the picture and the other metrics
    do not change. Use this function for cards that were written before a metric of samples existed.

    Args:
        name: name of the checkpoint.
        folder: the folder of the files, as for :func:`export`.
        progress: show progress bars.

    Raises:
        CheckpointError: if no samples were measured for the card.
    """
    path = export_folder(folder) / f"{name}.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    model: Any = zoo.load(str(path.with_suffix(SAFETENSORS)))
    drawn = card.get("samples") or {"n": 10_000 if isinstance(model, capabilities.Adversarial) else 0}
    if not drawn["n"]:
        raise CheckpointError(f"the card of {name} has no metrics of samples: export the run with --samples")
    data = by_name(card["data"])
    make_ready(data)
    protocol = Protocol(samples=drawn["n"], conditions=tuple(drawn.get("conditions") or [{}]))
    metrics, card["samples"], counts = measure_all_samples(model, data, protocol, progress)
    card["metrics"] |= metrics
    card["counts"] = (card.get("counts") or {}) | counts
    with atomic_write(path) as file:
        file.write(_json(card))
    return card


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


def _preprocessing(model) -> str:
    """Return the sentence of a card about the examples that the model takes."""
    shape = shape_of(model)
    kind = {1: "points", 2: "one-hot sequences"}.get(len(shape), "images")
    allowed = " in [0, 1]" if kind == "images" else ""
    examples = f"{kind} (B, {', '.join(map(str, shape))}){allowed}"
    return f"{examples} from the datamodule; the model does all other preprocessing"


def _json(card: dict[str, Any]) -> bytes:
    return (json.dumps(card, indent=2) + "\n").encode()
