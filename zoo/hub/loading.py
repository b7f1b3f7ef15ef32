"""Loading of pretrained checkpoints and training checkpoints.

A published checkpoint consists of two files in ``zoo/weights``. ``<name>.safetensors`` holds the weights. Its metadata
hold the name of the model and its constructor arguments. ``<name>.json`` is the card. The card records the origin of
the weights, their metrics with the protocol, and the SHA-256 digest of the weights file.

Loading never unpickles objects, because a pickle can run code. Weights are safetensors files, and training checkpoints
are read with ``weights_only=True``.
"""

import hashlib
import importlib
import inspect
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import torch
from lightning import LightningModule
from safetensors.torch import load as load_tensors

import zoo
from zoo.checks.errors import CheckpointError, UserError
from zoo.checks.sources import ADDRESS, SAFETENSORS, check_source
from zoo.hub.addresses import read_address
from zoo.hub.repositories import card_in, download, read_downloaded_card
from zoo.training.wandb_login import wandb_credentials

SECONDS_WITHOUT_AN_ANSWER = 60
# Options that were added later, with a default that changes the networks. Checkpoints without them have these values.
ABSENT = {"generator_features": 0}


def load(source: str | Path, model_class: type[LightningModule] | None = None) -> LightningModule:
    """Load a trained model, in eval mode and on the CPU. :func:`zoo.load` calls this function and lists all sources.

    Args:
        source: a pretrained checkpoint, run folder, checkpoint file, exported file, web address with a digest, artifact
            of Weights & Biases, or repository of the Hugging Face Hub.
        model_class: class of the model in a training checkpoint or a repository, if this class is not part of the zoo.

    Raises:
        CheckpointError: if there is no such checkpoint, its digest differs, or it holds no known model.
        UserError: if ``model_class`` is no class of a LightningModule.
    """
    text = check_source(source)
    if model_class is not None and not (isinstance(model_class, type) and issubclass(model_class, LightningModule)):
        raise UserError(
            f"model_class must be a class such as zoo.VAE, got {model_class!r}; a device is a keyword, device='cuda'"
        )
    if model_class is not None and (text in zoo.list_checkpoints() or re.match(ADDRESS, text)):
        raise CheckpointError(f"{text} holds published weights, whose class is known: leave out {model_class.__name__}")
    if text in zoo.list_checkpoints():
        weights = zoo.WEIGHTS / f"{text}.safetensors"
        if not weights.is_file():
            raise CheckpointError(f"the weights of {text} are missing; they belong at {weights}")
        return from_weights(weights.read_bytes(), read_card(text)["sha256"], text)
    if re.match(ADDRESS, text):
        return _from_address(text)
    if text.startswith("hf:"):
        found = download(text)
        return from_weights(found.weights, found.card["sha256"], text, model_class)
    if text.startswith("wandb:"):
        return _from_wandb(text.removeprefix("wandb:"), model_class)
    if text.endswith(SAFETENSORS):
        return from_weights(Path(text).read_bytes(), read_card_file(text)["sha256"], text, model_class)
    path = best_of(Path(text)) if Path(text).is_dir() else Path(text)
    return from_training(read_training_checkpoint(path), path, model_class)


def read_card(name: str) -> dict[str, Any]:
    """Return the card of a pretrained checkpoint."""
    return json.loads((zoo.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))


def read_card_file(weights: str) -> dict[str, Any]:
    """Return the card next to a file of weights that ``zoo export`` has written.

    Raises:
        CheckpointError: if there is no card with a digest.
    """
    path = Path(weights).with_suffix(".json")
    if not path.is_file():
        raise CheckpointError(f"{weights} has no card: put {path.name}, which zoo export wrote with it, next to it")
    return card_in(path, weights)


def card_of(source: str | Path) -> dict[str, Any] | None:
    """Return the card of a pretrained or exported checkpoint, or of a repository that was loaded.

    Other sources have no card.
    """
    text = str(source)
    if text in zoo.list_checkpoints():
        return read_card(text)
    if text.endswith(SAFETENSORS) and not re.match(ADDRESS, text):
        return read_card_file(os.path.expanduser(text))
    return read_downloaded_card(text) if text.startswith("hf:") else None


def best_of(run: Path) -> Path:
    """Return the newest best checkpoint of a run folder. Without a best checkpoint, return the last checkpoint."""
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    found = sorted(folder.glob("best-*.ckpt"), key=lambda p: p.stat().st_mtime) or list(folder.glob("last.ckpt"))
    if not found:
        raise CheckpointError(f"{folder} holds no best-*.ckpt and no last.ckpt; name a run folder that holds one")
    return found[-1]


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """Return a Lightning checkpoint as a dictionary of plain values and tensors.

    Raises:
        CheckpointError: for a file that torch cannot read with ``weights_only=True``.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any exception
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read safely. It is damaged, or it contains objects "
            "besides plain values and tensors. The zoo never unpickles objects"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a training checkpoint: it holds no state_dict")
    return checkpoint


def check_resumable(path: str | Path, model, seed: int | None = None, max_epochs: int | None = None) -> None:
    """Raise unless ``path`` is a training checkpoint from which a run of ``model`` can resume.

    The checkpoint must have the class and the constructor arguments of ``model``.

    Args:
        path: path of the checkpoint.
        model: model of the run.
        seed: seed of the run. It must equal the seed in the checkpoint. None skips this check.
        max_epochs: number of epochs of the run, at least the number of finished epochs. None and -1 skip this check.

    Raises:
        CheckpointError: if the run cannot resume from the checkpoint. The message names the difference.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint to resume from at {path}; use checkpoints/last.ckpt of a run folder, or "
            "checkpoints/interrupted.ckpt after an interruption"
        )
    checkpoint = read_training_checkpoint(path)
    name, outside = str(checkpoint.get("model")), class_outside(checkpoint)
    if (outside or (zoo.MODELS | zoo.CLASSIFIERS).get(name)) != name_of_class(type(model)):
        raise CheckpointError(
            f"{path} is a checkpoint of the model {outside or name!r}, but this run trains {type(model).__name__}; "
            "choose a checkpoint of that model"
        )
    # An older checkpoint lacks arguments that are new in this version. Its model had their defaults or those of ABSENT.
    before = _defaults(type(model)) | _complete(type(model), checkpoint.get("hyper_parameters", {}))
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
    done = progress.get("current", {}).get("processed", 0)
    if max_epochs not in (None, -1) and done > max_epochs:
        raise CheckpointError(
            f"{path} has already trained for {done} epochs: trainer.max_epochs must be at least {done}, "
            f"got {max_epochs}"
        )
    changed = [f"model.{k} was {before.get(k)!r} and is {v!r}" for k, v in model.hparams.items() if before.get(k) != v]
    began = checkpoint.get("record", {}).get("config", {}).get("seed", seed)
    if seed is not None and began != seed:
        changed.append(f"seed was {began} and is {seed}")
    if changed:
        raise CheckpointError(
            f"a run must resume with its original settings, but {'; '.join(changed)}; the checkpoint is {path}"
        )


def _defaults(kind: type) -> dict[str, Any]:
    """Return the default of each constructor argument, as ``hparams`` holds it: a list in place of a tuple."""
    found = {name: p.default for name, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _complete(kind: type, hyper_parameters: dict[str, Any]) -> dict[str, Any]:
    """Return constructor arguments with those of ``ABSENT`` that the class has and the checkpoint lacks."""
    known = inspect.signature(kind).parameters
    return {name: value for name, value in ABSENT.items() if name in known} | hyper_parameters


def name_of_class(kind: type) -> str:
    """Return the dotted name of a class, as ``zoo.MODELS`` and the records of runs write it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def class_outside(checkpoint: dict[str, Any]) -> str | None:
    """Return the class name in a training checkpoint if the class is outside the zoo. Return None otherwise."""
    record = checkpoint.get("record")
    name = record.get("class") if isinstance(record, dict) else None
    return name if isinstance(name, str) and not name.startswith("zoo.") else None


def from_training(
    checkpoint: dict[str, Any], path: Path, model_class: type[LightningModule] | None = None
) -> LightningModule:
    """Return the model of a training checkpoint that was read from ``path``, in eval mode.

    The class is ``model_class`` or a class of the zoo. The file cannot cause the import of any other class.
    """
    if model_class is None and (outside := class_outside(checkpoint)):
        raise CheckpointError(
            f"{path} holds a model of the class {outside!r}, which is not part of the zoo: give its class with "
            "--class module.Class on the command line, or with zoo.load(path, Class) in Python"
        )
    kind = model_class or _known_class(checkpoint.get("model"), path)
    model = _build(kind, checkpoint.get("hyper_parameters", {}), checkpoint["state_dict"], path)
    model.on_load_checkpoint(checkpoint)  # restores other state, such as persistent chains
    return model


def _from_address(address: str) -> LightningModule:
    url, _, fragment = address.partition("#")
    digest = fragment.removeprefix("sha256=")
    return from_weights(read_address(url, digest), digest, url)


def _from_wandb(name: str, model_class: type[LightningModule] | None = None) -> LightningModule:
    """Return the model in an artifact of Weights & Biases, after a check of the digests of its files."""
    import wandb

    if not wandb_credentials():
        raise CheckpointError(f"wandb:{name} needs a login; run wandb login, or set WANDB_API_KEY")
    with tempfile.TemporaryDirectory() as folder:
        try:
            artifact = wandb.Api(timeout=SECONDS_WITHOUT_AN_ANSWER).artifact(name, type="model")
            artifact.download(folder)
            artifact.verify(folder)
        except wandb.errors.Error as error:
            raise CheckpointError(f"wandb:{name} cannot be downloaded: {error}") from error
        except ValueError as error:
            raise CheckpointError(f"the files of wandb:{name} differ from the logged files: {error}") from error
        found = list(Path(folder).glob("*.ckpt"))
        if len(found) != 1:
            raise CheckpointError(
                f"wandb:{name} holds {len(found)} .ckpt files; an artifact of this zoo holds exactly one"
            )
        return from_training(read_training_checkpoint(found[0]), found[0], model_class)


def from_weights(
    data: bytes, digest: str, source: str, model_class: type[LightningModule] | None = None
) -> LightningModule:
    """Return the model in the bytes of a safetensors file, after a check of the digest.

    The class is ``model_class`` or a class of the zoo. The file cannot cause the import of any other class.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise CheckpointError(f"the weights of {source} are not the published ones: SHA-256 {found}, expected {digest}")
    try:
        tensors = load_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        hyper_parameters = json.loads(metadata.get("hyper_parameters", "{}"))
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{source} is not a safetensors file: {error}") from error
    return _build(model_class or _known_class(metadata.get("model"), source), hyper_parameters, tensors, source)


def _known_class(model: Any, source: str | Path) -> type[LightningModule]:
    """Return the class of the zoo with the name ``model``. No other class is imported."""
    known = zoo.MODELS | zoo.CLASSIFIERS
    if model not in known:
        raise CheckpointError(f"{source} holds a model named {model!r}; the known models are {', '.join(known)}")
    return class_at(known[model])


def class_at(path: str) -> type[LightningModule]:
    """Return the class of the zoo with the dotted name ``path``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _build(
    kind: type[LightningModule],
    hyper_parameters: dict[str, Any],
    state_dict: dict[str, torch.Tensor],
    source: str | Path,
) -> LightningModule:
    """Return the model with this class, these constructor arguments and these weights, in eval mode."""
    name = kind.__name__
    hyper_parameters = _complete(kind, hyper_parameters)
    try:
        inspect.signature(kind).bind(**hyper_parameters)
    except TypeError as error:
        raise CheckpointError(f"{source} does not fit {name} of this version: {error}") from error
    try:
        built = kind(**hyper_parameters)
    except UserError as error:
        raise CheckpointError(f"{source} does not fit {name} of this version: {error}") from error
    try:
        built.load_state_dict(state_dict)
    except (UserError, RuntimeError) as error:  # torch raises RuntimeError for missing, unexpected or misshapen weights
        raise CheckpointError(f"{source} does not fit {name} of this version: {error}") from error
    return built.eval()
