"""Pretrained checkpoints and those of training: find, verify, load.

A published checkpoint is two files in ``zoo/weights``: ``<name>.safetensors``, whose metadata name the model and its
constructor arguments, and the card ``<name>.json``: where the weights come from, what they score under which protocol,
and the SHA-256 digest of the file. Nothing here unpickles what a stranger could have written: weights are safetensors,
and training checkpoints are read with ``weights_only=True``.
"""

import hashlib
import importlib
import inspect
import json
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import safetensors
import torch
from lightning import LightningModule
from safetensors.torch import load as load_tensors

import zoo
from zoo.checks.errors import CheckpointError, UserError
from zoo.checks.sources import ADDRESS, check_source
from zoo.training.wandb_login import wandb_credentials

SECONDS_TO_DOWNLOAD = 60
LARGEST_DOWNLOAD = 2**30  # bytes


def load(source: str | Path) -> LightningModule:
    """Load a trained model, in eval mode and on the CPU. :func:`zoo.load` is the same and documents it in full.

    Args:
        source: name of a pretrained checkpoint, run folder, checkpoint file, address with a digest, or artifact of
            Weights & Biases.

    Raises:
        CheckpointError: if there is no such checkpoint, its digest differs, or it holds no known model.
    """
    text = check_source(source)
    if text in zoo.list_checkpoints():
        weights = zoo.WEIGHTS / f"{text}.safetensors"
        if not weights.is_file():
            raise CheckpointError(f"the weights of {text} are missing: {weights}")
        return from_weights(weights.read_bytes(), read_card(text)["sha256"], text)
    if re.match(ADDRESS, text):
        return _from_address(text)
    if text.startswith("wandb:"):
        return _from_wandb(text.removeprefix("wandb:"))
    path = best_of(Path(text)) if Path(text).is_dir() else Path(text)
    return from_training(read_training_checkpoint(path), path)


def read_card(name: str) -> dict[str, Any]:
    """The card of a pretrained checkpoint."""
    return json.loads((zoo.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))


def best_of(run: Path) -> Path:
    """The newest best checkpoint of a run folder, else its last one."""
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    found = sorted(folder.glob("best-*.ckpt"), key=lambda p: p.stat().st_mtime) or list(folder.glob("last.ckpt"))
    if not found:
        raise CheckpointError(f"{run} holds no best-*.ckpt and no last.ckpt, in itself or in checkpoints/")
    return found[-1]


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint as a dictionary of plain values and tensors.

    Raises:
        CheckpointError: for anything that torch cannot read with ``weights_only=True``.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the broken bytes happen to cause
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read safely: it is damaged, or holds more than plain values and "
            "tensors, which are never unpickled here"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a training checkpoint: it holds no state_dict")
    return checkpoint


def check_resumable(path: str | Path, model, seed: int | None = None, max_epochs: int | None = None) -> None:
    """Refuse to resume ``model`` from what is not a training checkpoint of its class and with its arguments.

    Args:
        seed: of this run, which must be that of the checkpoint's; not looked at if None.
        max_epochs: of this run, which must be no fewer than are done; likewise, or if -1.

    Raises:
        CheckpointError: saying what it is instead.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint to resume from at {path}; a run's are its checkpoints/last.ckpt and, after an "
            "interruption, checkpoints/interrupted.ckpt"
        )
    checkpoint = read_training_checkpoint(path)
    name = str(checkpoint.get("model"))
    if (zoo.MODELS | zoo.JUDGES).get(name) != f"{type(model).__module__}.{type(model).__name__}":
        raise CheckpointError(f"{path} is a checkpoint of the model {name!r}, and this run trains another one")
    before = checkpoint.get("hyper_parameters", {})
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
    done = progress.get("current", {}).get("processed", 0)
    if max_epochs not in (None, -1) and done > max_epochs:
        raise CheckpointError(f"{path} has {done} epochs behind it: trainer.max_epochs must be more, got {max_epochs}")
    changed = [f"model.{k} was {before.get(k)!r} and is {v!r}" for k, v in model.hparams.items() if before.get(k) != v]
    began = checkpoint.get("record", {}).get("config", {}).get("seed", seed)
    if seed is not None and began != seed:
        changed.append(f"seed was {began} and is {seed}")
    if changed:
        raise CheckpointError(f"a run resumes with the settings it began with: in {path}, {'; '.join(changed)}")


def from_training(checkpoint: dict[str, Any], path: Path) -> LightningModule:
    model = _build(checkpoint.get("model"), checkpoint.get("hyper_parameters", {}), checkpoint["state_dict"], path)
    model.on_load_checkpoint(checkpoint)  # what is no parameter and no buffer, such as persistent chains
    return model


def _from_address(address: str) -> LightningModule:
    url, _, fragment = address.partition("#")
    digest = fragment.removeprefix("sha256=")
    try:
        with urllib.request.urlopen(url, timeout=SECONDS_TO_DOWNLOAD) as response:
            data = response.read(LARGEST_DOWNLOAD + 1)
    except (urllib.error.URLError, OSError) as error:
        raise CheckpointError(f"{url} cannot be read: {error}") from error
    if len(data) > LARGEST_DOWNLOAD:
        raise CheckpointError(f"{url} is larger than {LARGEST_DOWNLOAD:,} bytes, which no checkpoint of this zoo is")
    return from_weights(data, digest, url)


def _from_wandb(name: str) -> LightningModule:
    """The checkpoint in an artifact of Weights & Biases, whose files must be those that were logged."""
    import wandb

    if not wandb_credentials():
        raise CheckpointError(f"wandb:{name} asks for a login: wandb login, or set WANDB_API_KEY")
    with tempfile.TemporaryDirectory() as folder:
        try:
            artifact = wandb.Api(timeout=SECONDS_TO_DOWNLOAD).artifact(name, type="model")
            artifact.download(folder)
            artifact.verify(folder)
        except wandb.errors.Error as error:
            raise CheckpointError(f"wandb:{name} cannot be had: {error}") from error
        except ValueError as error:
            raise CheckpointError(f"wandb:{name} is not what was logged: {error}") from error
        found = list(Path(folder).glob("*.ckpt"))
        if len(found) != 1:
            raise CheckpointError(
                f"wandb:{name} is no artifact of this zoo: it holds {len(found)} files .ckpt, not one"
            )
        return from_training(read_training_checkpoint(found[0]), found[0])


def from_weights(data: bytes, digest: str, source: str) -> LightningModule:
    """The model in the bytes of a safetensors file, which must have the digest."""
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
    return _build(metadata.get("model"), hyper_parameters, tensors, source)


def _build(
    model: Any, hyper_parameters: dict[str, Any], state_dict: dict[str, torch.Tensor], source: str | Path
) -> LightningModule:
    """The module of a known name with these constructor arguments and weights, in eval mode."""
    known = zoo.MODELS | zoo.JUDGES
    if model not in known:
        raise CheckpointError(f"{source} holds a model named {model!r}; the known ones are {', '.join(known)}")
    module, _, name = known[model].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
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
    except (UserError, RuntimeError) as error:  # torch's, of weights that are missing, left over, or of another shape
        raise CheckpointError(f"{source} does not fit {name} of this version: {error}") from error
    return built.eval()


def record_of(source: str | Path) -> dict[str, Any] | None:
    """What a training checkpoint, or the best one of a run folder, records of its run; None of anything else."""
    path = Path(source).expanduser()
    path = best_of(path) if path.is_dir() else path
    return read_training_checkpoint(path).get("record") if path.is_file() else None


def data_of(record: dict[str, Any], name: str | None = None):
    """The data that a recorded run used, or with the options of its text another one, by its name or path.

    Images come with default options: those of a run are of its training.

    Raises:
        UserError: for a name that is none.
    """
    from zoo.datamodules import Text, Toy, by_name
    from zoo.datamodules.text import TEXTS

    config = record["config"].get("data", {})
    if record["data"] in TEXTS:
        options = {key: value for key, value in config.items() if key != "_target_"} | {"name": record["data"]}
        if name is not None:
            other = by_name(name)
            options |= {key: other.hparams.get(key) for key in ("name", "path")}
            return Text(**options) if isinstance(other, Text) else other
        return Text(**options)
    return Toy("line", config.get("theta")) if record["data"] == "line" else by_name(record["data"])
