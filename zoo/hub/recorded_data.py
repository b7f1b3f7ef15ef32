"""The data of a recorded run: the record in a checkpoint, and the data module that the record describes.

A checkpoint can come from somebody else. Its record therefore must not decide which code is imported. Only four classes
of data modules are built without the user's consent, and only without the option ``dataset``, which names a function.
They read files and run no code from them.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import zoo
import zoo.datamodules
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.moved import current_name
from zoo.checks.sources import SAFETENSORS
from zoo.datamodules import DISTRIBUTIONS, Text, by_name, holds_images
from zoo.datamodules.access import name_of
from zoo.datamodules.images import NAMES
from zoo.datamodules.text import TEXTS
from zoo.hub.loading import best_of, read_training_checkpoint

KNOWN = ("Images", "OwnImages", "Text", "Toy")  # classes of zoo.datamodules that are built from any record
OWN = "zoo.datamodules.OwnImages"
# Options of the user's images that are measured and not trained on.
MEASURED = {"train_on": "train", "batch_size": 1, "flip": False}
OTHER_PLACES = ("dataset", "name", "subset", "image_column", "label_column")  # options that exclude ``path``
# Options that concern training. ``train_on`` would also put test images into the training images.
OF_TRAINING = ("name", "batch_size", "eval_batch_size", "seed", "digits_repeat", "train_on", "flip")


def record_of(source: str | Path) -> dict[str, Any] | None:
    """Return the record of the run in a training checkpoint, or in the best checkpoint of a run folder.

    Return None if ``source`` is neither.
    """
    if str(source) in zoo.list_checkpoints() or str(source).endswith(SAFETENSORS):
        return None
    path = Path(source).expanduser()
    path = best_of(path) if path.is_dir() else path
    return read_training_checkpoint(path).get("record") if path.is_file() else None


def data_of(record: dict[str, Any], name: str | None = None, trust: bool = False, shape: Sequence[int] | None = None):
    """Return the datamodule of a recorded run, before ``setup``.

    A text and images of the user have the options of the run. Published images have default options, because their
    options concern training.

    Args:
        record: record of the run.
        name: name or path of other data. If the run and these data are both texts, or both images of the user, the
            other data have the options of the run. None uses the data of the run.
        trust: whether the record may name a class outside the zoo, or a function, that is imported and called. Use this
            only for checkpoints from people you trust.
        shape: shape to which images at the path ``name`` are converted (see ``by_name``). A run with ``data.size``
            keeps its own size. None keeps the shape of the images.

    Raises:
        UserError: if there are no such data, or if the record needs ``trust``.
    """
    config, used = record["config"].get("data", {}), record["data"]
    target = current_name(config.get("_target_", ""))
    options = {key: value for key, value in config.items() if key != "_target_"}
    if name is not None:
        of_tables = {key: None for key in options if key == "column"}  # another table has other columns
        if used in TEXTS and name in TEXTS:
            return Text(**options | {"name": name, "path": None} | of_tables)
        if used in TEXTS and name not in (*NAMES, *DISTRIBUTIONS) and Path(name).expanduser().exists():
            return Text(**options | {"name": "textfile", "path": name} | of_tables)
        if target == OWN and holds_images(name):
            kept = {key: value for key, value in options.items() if key not in OTHER_PLACES}
            if shape is not None and shape[0] in (1, 3):
                fitting = {"size": list(shape[1:]), "channels": shape[0]}  # changes nothing in images of this shape
                kept |= {key: value for key, value in fitting.items() if kept.get(key) is None}
            return zoo.datamodules.OwnImages(**kept | {"path": name, **MEASURED})
        return by_name(name, shape)
    if used in TEXTS:
        return Text(**options | {"name": used})
    if used == "line":
        return by_name("line") if config.get("theta") is None else zoo.datamodules.Toy("line", config["theta"])
    if used in DISTRIBUTIONS:
        return by_name(used)
    if used in NAMES:
        return zoo.datamodules.Images(used, **{k: v for k, v in options.items() if k not in OF_TRAINING})
    kind = _class_of(target, options, trust)
    if (path := options.get("path")) is not None and not Path(path).expanduser().exists():
        raise UserError(
            f"the data of this run are gone: {path} does not exist in {Path.cwd()}. Give their present path with "
            "--data PATH, or in Python as the argument name of data_of"
        )
    return kind(**options | (MEASURED if target == OWN else {}))


def needs_trust(data: Any) -> bool:
    """Return whether a record of the data module ``data`` is built only with the user's consent."""
    kind = type(data)
    known = kind.__name__ in KNOWN and getattr(zoo.datamodules, kind.__name__) is kind
    return not known or data.hparams.get("dataset") is not None


def _class_of(target: str, options: dict[str, Any], trust: bool) -> type:
    """Return the class of a data module with the dotted name ``target``.

    Raises:
        UserError: if the record names no class, or one that needs ``trust``, or one that cannot be imported.
    """
    package, _, name = target.rpartition(".")
    if not target:
        raise UserError("this run does not record its data: name them with --data, or in Python build the data module")
    known, function = name in KNOWN and package == "zoo.datamodules", options.get("dataset")
    if not trust and (function is not None or not known):
        raise UserError(
            f"the data of this run come from {target if function is None else function}. A checkpoint may not choose "
            "what is imported: add --trust-data if you trust it, or name other data with --data"
        )
    if known:
        return getattr(zoo.datamodules, name)
    try:
        return getattr(import_module(package), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"the data of this run need {target}, which cannot be imported: {error}. PYTHONPATH must name its folder"
        ) from error


def check_unchanged(data: Any, record: dict[str, Any]) -> None:
    """Check that the data of a run are those that it was trained on.

    Args:
        data: the datamodule of the run, from :func:`data_of`.
        record: record of the run.

    Raises:
        UserError: if the digests differ. Test images of today may then be training images of the run.
    """
    before = record.get("data_digest")
    place = data.hparams.get("path") or name_of(data)
    if before is None or not isinstance(data, capabilities.DigestedData) or data.digest == before:
        return
    raise UserError(
        f"{place} has changed since the run: its digest is {data.digest[:12]} and was {before[:12]}. Its test images "
        "may be training images of the run. Restore the data, or name them with --data to measure them as they are"
    )
