"""Names, groups and tags of runs for experiment trackers, made from the command line."""

import hashlib
import sys
from pathlib import PurePath
from typing import NamedTuple

from zoo.training.added_callbacks import as_typed
from zoo.training.sweeps import in_sweep, without_search

LONGEST = 100  # largest number of characters of a name. Weights & Biases allows 128
SHORTENED = ("model.", "trainer.")  # these prefixes are left out, because the rest of the key is clear without them
# Settings that do not change what is trained. A run has the same name on one process and on several.
LEFT_OUT = ("ckpt", "run_dir", "hydra", "logger", "trainer")
LEFT_OUT_OF_TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "steps_per_execution", "cuda_graphs")
LEFT_OUT_OF_TRAINER += ("enable_progress_bar", "num_sanity_val_steps", "log_every_n_steps")


class RunNames(NamedTuple):
    """Name of a run, name of its group, and its tags."""

    name: str
    group: str
    tags: list[str]


def names_of_run() -> RunNames | None:
    """Return the names of this run, or None if Hydra's main function does not run.

    The name has the recipe and the overrides of the command line, such as ``vae latent_dim=8 seed=1``. The recipe is
    the choice of ``experiment``, or of ``model``. The group is the name without the seed, so runs that differ only in
    the seed share a group. The jobs of a sweep share the group ``vae lr=1e-3,3e-4``, which has the values of the whole
    sweep. The tags are the choices of ``model``, ``data`` and ``experiment``. A choice such as ``mnist_or_digits`` does
    not name the data that the run uses, so it is no tag.
    """
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    config = HydraConfig.get()
    choices = config.runtime.choices
    overrides = [as_typed(given) for given in without_search(config.overrides.task)]
    recipe = choices.get("experiment") or choices.get("model") or "run"
    tags = [choices.get(key) for key in ("model", "data", "experiment")]
    group = [o for o in (_of_sweep(overrides) if in_sweep() else overrides) if _key(o) != "seed"]
    return RunNames(_name(recipe, overrides), _name(recipe, group), [tag for tag in tags if tag and "_or_" not in tag])


def _of_sweep(overrides: list[str]) -> list[str]:
    """Return the overrides of the command that started the sweep.

    Some launchers run a job in another program, which does not have this command line. The overrides of the job are
    returned then.
    """
    given = [a for a in sys.argv[1:] if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    return given or overrides


def _name(recipe: str, overrides: list[str]) -> str:
    parts = [_short(o) for o in overrides if not _left_out(_key(o)) and _value(o) != recipe]
    text = " ".join([recipe, *parts])
    if len(text) > LONGEST:
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        text = f"{text[: LONGEST - 8].rstrip()}… {digest}"  # the digest tells names with the same beginning apart
    return text


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _value(override: str) -> str:
    return override.partition("=")[2].strip("'\"")


def _left_out(key: str) -> bool:
    first, _, rest = key.partition(".")
    if first == "trainer":
        return not rest or rest in LEFT_OUT_OF_TRAINER
    return first.partition("/")[0] in LEFT_OUT


def _short(override: str) -> str:
    """Return an override without quotes, without the folders of a path, and without a prefix that is clear."""
    key, value = _key(override), _value(override)
    if override.startswith("~"):
        return f"~{key}"
    if key.endswith("._target_"):
        return f"{key.removesuffix('._target_')}={value.rpartition('.')[2]}"
    if "/" in value and "," not in value:
        value = PurePath(value).name
    for prefix in SHORTENED:
        key = key.removeprefix(prefix)
    return f"{key}={value}"
