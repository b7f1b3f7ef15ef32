"""Begin a new run from the weights of a checkpoint: ``zoo train model=ddpm init=ddpm``.

The recipe gives the options of the model, and the checkpoint gives the weights: all parameters and all buffers, such as
the BatchNorm statistics. All of them must have the names and shapes of the new model. The data, the learning rate and
other options may differ. If a training checkpoint has averaged weights, the run begins from them. Optimisers,
schedules, random numbers and the persistent chains of an RBM start again.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

import zoo
from zoo.checks import capabilities
from zoo.checks.errors import CheckpointError, UserError
from zoo.checks.sources import SAFETENSORS, check_source
from zoo.hub.loading import best_of, card_of, from_training, load, name_of_class, read_training_checkpoint
from zoo.training.shell import shareable

log = logging.getLogger(__name__)


def begin_from(model: LightningModule, source: str | Path) -> dict[str, Any]:
    """Give ``model`` the weights of a checkpoint. Log a line that names the checkpoint and the options that differ.

    Args:
        model: the model of the new run.
        source: any source of ``zoo.load``.

    Returns:
        the record of the run's beginning, plain values: the ``source``, the name of the ``file``, its ``sha256`` or
        None, whether the weights are ``averaged``, and the options of the model that ``changed``, with the value of the
        checkpoint and the new value.

    Raises:
        CheckpointError: if there is no such checkpoint, if it holds a model of another class, or if names or shapes of
            weights differ. The message names every difference.
    """
    with isolate_rng():  # the constructor of the other model draws random weights
        found, about = _read(model, source)
    if type(found) is not type(model):
        raise CheckpointError(
            f"init={source} holds the model {name_of_class(type(found))}, and this run trains "
            f"{name_of_class(type(model))}: choose a checkpoint of that model"
        )
    changed = changed_options(found, model)
    if not (isinstance(model, capabilities.Words) and not model.words):  # the weights bring the vocabulary
        check_weights(found, model, changed, source)
    try:
        model.load_state_dict(found.state_dict())
    except (UserError, RuntimeError) as error:  # a model of words checks here
        raise CheckpointError(f"init={source} does not fit this model: {error}") from error
    kind = "averaged weights" if about["averaged"] else "weights"
    options = ", ".join(f"model.{key} was {was!r} and is {now!r}" for key, (was, now) in changed.items())
    log.info("The run begins from the %s of %s%s", kind, source, f". Options that differ: {options}" if options else "")
    return {
        "source": shareable(str(source)),
        **about,
        "changed": {key: list(values) for key, values in changed.items()},
    }


def _read(model: LightningModule, source: str | Path) -> tuple[LightningModule, dict[str, Any]]:
    """Return the model of a checkpoint, and what is recorded about its file."""
    text = check_source(source)
    path = Path(text)
    if text in zoo.list_checkpoints() or text.endswith(SAFETENSORS) or not path.exists():
        found = load(source)
        card = card_of(text)
        digest = card["sha256"] if card else None
        digest = text.rpartition("#")[2].removeprefix("sha256=") if "#" in text else digest
        return found, {"file": None, "sha256": digest, "averaged": False}
    path = best_of(path) if path.is_dir() else path
    checkpoint = read_training_checkpoint(path)
    outside = not name_of_class(type(model)).startswith("zoo.")
    found = from_training(checkpoint, path, type(model) if outside else None)
    averaged = "current_model_state" in checkpoint
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return found, {"file": str(path.absolute()), "sha256": digest, "averaged": averaged}


def changed_options(found: LightningModule, model: LightningModule) -> dict[str, tuple[Any, Any]]:
    """Return the options of two models of a class that differ: the value of ``found`` and the value of ``model``."""
    before, now = dict(found.hparams), dict(model.hparams)
    pairs = {key: (before.get(key), now.get(key)) for key in [*now, *(key for key in before if key not in now)]}
    return {key: pair for key, pair in pairs.items() if _plain(pair[0]) != _plain(pair[1])}


def check_weights(
    found: LightningModule, model: LightningModule, changed: Mapping[str, tuple[Any, Any]], source: str | Path
) -> None:
    """Check that two models have weights of equal names and shapes.

    Raises:
        CheckpointError: if they have not. The message names the options that cause it, and the overrides that fit the
            checkpoint. It lists each weight that is missing, unexpected or of another shape.
    """
    theirs, ours = shapes_of(found), shapes_of(model)
    lines = [f"missing: {key} {list(ours[key])}" for key in ours if key not in theirs]
    lines += [f"unexpected: {key} {list(theirs[key])}" for key in theirs if key not in ours]
    lines += [
        f"other shape: {key} {list(theirs[key])} in the checkpoint, {list(ours[key])} in this model"
        for key in ours
        if key in theirs and ours[key] != theirs[key]
    ]
    if not lines:
        return
    causes = {key: pair for key, pair in changed.items() if _changes_weights(model, key, pair[0])} or dict(changed)
    options = "".join(f"\n  model.{key} was {was!r} and is {now!r}" for key, (was, now) in causes.items())
    fit = " ".join(f"model.{key}={_written(was)}" for key, (was, _) in causes.items())
    advice = f". These options fit the checkpoint: {fit}" if fit else ""
    advice += ", with data of this shape" if "shape" in causes else ""
    weights = "".join(f"\n  {line}" for line in lines)
    raise CheckpointError(f"init={source} does not fit this model{advice}{options}{weights}")


def shapes_of(model: LightningModule) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter and each saved buffer."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def _changes_weights(model: LightningModule, key: str, value: Any) -> bool:
    """Return whether the weights of ``model`` have other names or shapes if its option ``key`` has another value."""
    with isolate_rng():
        try:
            other = type(model)(**{**model.hparams, key: value})
        except (UserError, TypeError, RuntimeError):  # the value does not suit the other options
            return True
    return shapes_of(other) != shapes_of(model)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _written(value: Any) -> str:
    """Return a value as Hydra reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(_plain(value)).replace(" ", "")
