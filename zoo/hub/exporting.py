"""Publish a training checkpoint: write its weights, a card, and a picture."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

import zoo
from zoo.checks import capabilities
from zoo.checks.sources import check_name, check_source
from zoo.evaluation.protocol import Protocol, check_protocol, evaluate, measure
from zoo.evaluation.words import word_map
from zoo.hub.loading import (
    CheckpointError,
    best_of,
    class_outside,
    data_of,
    from_training,
    from_weights,
    read_training_checkpoint,
)
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
    shape = model.hparams.get("shape", [1, 28, 28])
    batch = [torch.rand(16, *shape, generator=generator), torch.zeros(16, dtype=torch.long)]
    if isinstance(model, capabilities.Loss):
        return {name: float(term) for name, term in model.loss(batch, generator=generator).items()}
    opponent = model.critic_loss if isinstance(model, capabilities.Critic) else model.discriminator_loss
    networks = {
        "opponent": opponent(batch, generator=generator),
        "generator": model.generator_loss(batch, generator=generator),
    }
    return {f"{network}/{name}": float(term) for network, terms in networks.items() for name, term in terms.items()}


def export(
    source: str | Path, name: str, force: bool = False, protocol: Protocol | None = None, progress: bool = False
) -> Path:
    """Publish a training checkpoint: write ``zoo/weights/<name>.safetensors``, its card, and a picture of samples.

    For word vectors, the picture is a map of the words. The metrics of the card are measured on the test set
    that belongs to the training data.

    Args:
        source: path of a checkpoint or of a run folder. From a run folder, the best checkpoint is published.
        name: name of the published checkpoint: lower-case letters, digits and hyphens.
        force: replace an existing checkpoint with this name.
        protocol: measurements in addition to the test loop. None uses the default protocol.
        progress: show progress bars.

    Returns:
        path of the weights.

    Raises:
        CheckpointError: for an invalid or existing name, or a checkpoint that does not record its run.
        UserError: if the protocol does not suit the model or the data.
    """
    check_name(name, force)
    path = Path(check_source(source))
    path = best_of(path) if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
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

    metadata = {"model": checkpoint["model"], "hyper_parameters": json.dumps(checkpoint["hyper_parameters"])}
    words = isinstance(model, capabilities.Words)
    tensors = {k: v.contiguous() for k, v in (model.published() if words else model.state_dict()).items()}
    data = save_tensors(tensors, metadata=metadata)
    published = from_weights(data, hashlib.sha256(data).hexdigest(), name)  # the model that zoo.load(name) returns
    data_module = data_of(record)
    data_module.setup()
    metrics, evidence = measure(published if words else model, data_module, protocol or Protocol(), progress)
    card = {
        "name": name,
        "model": checkpoint["model"],
        "hyper_parameters": checkpoint["hyper_parameters"],
        "parameters": sum(t.numel() for t in tensors.values() if t.is_floating_point()),
        "data": record["data"],
        "train_on": record["config"].get("data", {}).get("train_on", "train"),
        "preprocessing": "words in lower case"
        if words
        else "images (B, 1, 28, 28) in [0, 1] from the datamodule; the model does all other preprocessing",
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
        else f"the model's test_step on all {len(data_module.splits['test'].images):,} test examples of "
        f"{record['data']}, with noise seeded by batch index; units in zoo/{checkpoint['model']}.py",
        "log_likelihood": evidence.get("log_likelihood"),
        "bound": evidence.get("bound"),
        "samples": evidence.get("samples"),
        "whole_model": evaluate(model, data_module) if words else None,
        "golden": golden_terms(published),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    zoo.WEIGHTS.mkdir(exist_ok=True)
    weights = zoo.WEIGHTS / f"{name}.safetensors"
    if words:
        save_figure(word_map(published), weights.with_suffix(".png"), dpi=80)
    elif isinstance(model, capabilities.Samples):
        n, conditions, columns = picture(model, 2000 if checkpoint["hyper_parameters"].get("shape") == [2] else 64, {})
        save_grid(sample_chunks(model, n, seed=0, **conditions), weights.with_suffix(".png"), columns)
    # The card is written last, because a checkpoint counts as published if its card exists.
    for target, content in [(weights, data), (weights.with_suffix(".json"), _json(card))]:
        with atomic_write(target) as file:
            file.write(content)
    return weights


def _json(card: dict[str, Any]) -> bytes:
    return (json.dumps(card, indent=2) + "\n").encode()
