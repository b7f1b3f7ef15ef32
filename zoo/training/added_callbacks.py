"""Options of the group ``callbacks`` that are added to the callbacks of the recipe, such as ``early_stopping``."""

from pathlib import Path

from zoo.checks.errors import UserError

GROUP = "callbacks"
ADD = f"+{GROUP}@_global_.{GROUP}="  # Hydra adds options to a group only in this form


def with_added(argument: str, config_dir: Path) -> str:
    """Return the override with which Hydra adds callbacks to those of the recipe, or ``argument`` itself.

    A file of ``configs/callbacks`` without a defaults list has one callback, which is added. The other files replace
    the callbacks of the recipe. A list with such a file, such as ``callbacks=[ema,early_stopping]``, is complete.

    Args:
        argument: an argument of the command line.
        config_dir: the folder of ``train.yaml``.

    Raises:
        UserError: if a sweep has a single callback among several values.
    """
    key, equals, value = argument.partition("=")
    if key != GROUP or not equals:
        return argument
    several = "," in value and not value.startswith("[")
    names = [name.strip() for name in value.strip("[]").split(",")]
    single = [_is_single(config_dir / GROUP / f"{name}.yaml") for name in names]
    if several and any(single):
        lists = ",".join(f"[vae,{name}]" if one else f"[{name}]" for name, one in zip(names, single, strict=True))
        raise UserError(f"{argument} has an option that is added to a recipe: write complete lists, such as {lists}")
    return f"{ADD}[{','.join(names)}]" if all(single) else argument


def as_typed(given: str) -> str:
    """Return an override in the form in which users type it."""
    if not given.startswith(ADD):
        return given
    names = given.removeprefix(ADD)
    return f"{GROUP}={names if ',' in names else names.strip('[]')}"


def _is_single(path: Path) -> bool:
    return path.is_file() and path.stem != "checkpoints" and "\ndefaults:" not in path.read_text(encoding="utf-8")
