"""Untrained models by name: ``zoo.create("vae")``."""

import inspect
from pathlib import Path
from typing import Any

from lightning import LightningModule

import zoo
from zoo.checks.errors import UserError
from zoo.checks.names import did_you_mean
from zoo.hub.loading import class_at

RECIPES = zoo.CONFIGS / "experiment"
FROM_DATA = ("shape", "num_classes")  # options that recipes may set to ``auto``


def create(name: str, /, **options: Any) -> LightningModule:
    """Return an untrained model. :func:`zoo.create` calls this function and explains it.

    Args:
        name: name of a model, or of a recipe in configs/experiment.
        options: options of the model, which replace those of the recipe.

    Raises:
        UserError: if a name, an option or a value is not allowed. The message suggests similar names.
    """
    path, recipe = recipe_of(name)
    kind = class_at(path)
    known = inspect.signature(kind).parameters
    for key in options:
        if key not in known:
            suggestion = did_you_mean(key, known)
            raise UserError(f"{name} has no option {key!r}; its options are {', '.join(known)}.{suggestion}")
    chosen = recipe | options
    for key in FROM_DATA:
        if chosen.get(key) == "auto":
            del chosen[key]
            if known[key].default is None:
                raise UserError(f"{name} takes {key} from its data: give it a value, such as {key}=10")
    return kind(**chosen)


def recipe_of(name: str) -> tuple[str, dict[str, Any]]:
    """Return the dotted name of the class of a model or recipe, and the options of the recipe."""
    if name in zoo.MODELS:
        return zoo.MODELS[name], {}  # the recipes of models have the default options of their classes
    recipes = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if name in recipes:
        options = _options(RECIPES / f"{name}.yaml")
        return options.pop("_target_"), options
    known = [*zoo.list_models(), *recipes]
    instead = f" zoo.load({name!r}) loads the pretrained checkpoint." if name in zoo.list_checkpoints() else ""
    raise UserError(
        f"there is no model or recipe {name!r}; the models are {', '.join(zoo.list_models())}, and the recipes are "
        f"{', '.join(recipes)}.{instead}{did_you_mean(str(name), known)}"
    )


def _options(recipe: Path) -> dict[str, Any]:
    """Return the options of the model in a recipe, with the dotted name of the class as ``_target_``."""
    from omegaconf import OmegaConf

    written: Any = OmegaConf.to_container(OmegaConf.load(recipe), resolve=False)
    found: dict[str, Any] = {}
    for default in written.get("defaults", []):
        if isinstance(default, str):  # another recipe, which this recipe changes
            found |= _options(recipe.with_stem(default))
        elif (model := default.get("override /model")) is not None:
            found["_target_"] = zoo.MODELS[model]
    return found | written.get("model", {})
