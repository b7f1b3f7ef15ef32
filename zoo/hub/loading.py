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


def load(source: str | Path, model_class: type[LightningModule] | None = None) -> LightningModule:
    """A trained model in eval mode, on the CPU.

    Args:
        source: the name of a pretrained checkpoint (``zoo.list_checkpoints()``); the path of a training checkpoint
            or of a run folder (its best checkpoint); the address of a safetensors file with its digest,
            ``file:///.../x.safetensors#sha256=<64 hexadecimal digits>``, or ``https:`` likewise; or an artifact that a
            run has left in Weights & Biases, ``wandb:entity/project/vae-1a2b3c4d:best``.
        model_class: class of the model, for a training checkpoint of a class that is not part of the zoo. The file
            alone never decides which class is imported.

    Returns:
        the LightningModule.

    Raises:
        CheckpointError: if there is none, its digest differs, or it is not a checkpoint of a known model.
    """
    text = check_source(source)
    if model_class is not None and (text in zoo.list_checkpoints() or re.match(ADDRESS, text)):
        raise CheckpointError(f"{text} holds published weights, whose class is known: leave out {model_class.__name__}")
    if text in zoo.list_checkpoints():
        weights = zoo.WEIGHTS / f"{text}.safetensors"
        if not weights.is_file():
            raise CheckpointError(f"the weights of {text} are missing: {weights}")
        return from_weights(weights.read_bytes(), read_card(text)["sha256"], text)
    if re.match(ADDRESS, text):
        return _from_address(text)
    if text.startswith("wandb:"):
        return _from_wandb(text.removeprefix("wandb:"), model_class)
    path = best_of(Path(text)) if Path(text).is_dir() else Path(text)
    return from_training(read_training_checkpoint(path), path, model_class)


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
    name, outside = str(checkpoint.get("model")), class_outside(checkpoint)
    if (outside or (zoo.MODELS | zoo.JUDGES).get(name)) != name_of_class(type(model)):
        raise CheckpointError(
            f"{path} is a checkpoint of the model {outside or name!r}, and this run trains another one"
        )
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


def name_of_class(kind: type) -> str:
    """Return the dotted name of a class, as ``zoo.MODELS`` and the records of runs write it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def class_outside(checkpoint: dict[str, Any]) -> str | None:
    """Return the name of the class in a training checkpoint if its run trained one outside the zoo, else None."""
    record = checkpoint.get("record")
    name = record.get("class") if isinstance(record, dict) else None
    return name if isinstance(name, str) and not name.startswith("zoo.") else None


def from_training(
    checkpoint: dict[str, Any], path: Path, model_class: type[LightningModule] | None = None
) -> LightningModule:
    if model_class is None and (outside := class_outside(checkpoint)):
        raise CheckpointError(
            f"{path} holds a model of the class {outside!r}, which is not part of the zoo: give its class yourself, "
            "--class module.Class on the command line or zoo.load(path, Class) in Python"
        )
    kind = model_class or _known_class(checkpoint.get("model"), path)
    model = _build(kind, checkpoint.get("hyper_parameters", {}), checkpoint["state_dict"], path)
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


def _from_wandb(name: str, model_class: type[LightningModule] | None = None) -> LightningModule:
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
        return from_training(read_training_checkpoint(found[0]), found[0], model_class)


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
    return _build(_known_class(metadata.get("model"), source), hyper_parameters, tensors, source)


def _known_class(model: Any, source: str | Path) -> type[LightningModule]:
    """Return the class of a known name. Only these classes are imported."""
    known = zoo.MODELS | zoo.JUDGES
    if model not in known:
        raise CheckpointError(f"{source} holds a model named {model!r}; the known ones are {', '.join(known)}")
    module, _, name = known[model].rpartition(".")
    return getattr(importlib.import_module(module), name)


def _build(
    kind: type[LightningModule],
    hyper_parameters: dict[str, Any],
    state_dict: dict[str, torch.Tensor],
    source: str | Path,
) -> LightningModule:
    """The module with these constructor arguments and weights, in eval mode."""
    name = kind.__name__
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
