"""Attributes of the package ``zoo`` that are imported when they are first used, such as ``zoo.VAE``."""

from importlib import import_module

import zoo
from zoo.checks.names import did_you_mean


def attribute(name: str) -> object:
    """Return the attribute ``name`` of the package ``zoo``: the class of a model, or a module or package inside.

    Raises:
        AttributeError: if there is no such attribute. If a name is similar, the message suggests it.
    """
    if name in (classes := class_paths()):
        return getattr(import_module(classes[name].rpartition(".")[0]), name)
    if name in module_names():
        return import_module(f"zoo.{name}")
    known = list(classes) if name[0].isupper() else [key for key in names() if not key.startswith("_")]
    # Without ``name``, Python does not add another suggestion to the message.
    raise AttributeError(f"module 'zoo' has no attribute {name!r}.{did_you_mean(name, known)}", name=None, obj=zoo)


def names() -> list[str]:
    """Return the names of all public attributes of the package ``zoo``, sorted. Imported modules are included."""
    special = [name for name in vars(zoo) if name.startswith("__")]
    return sorted({*zoo.__all__, *class_paths(), *module_names(), *special})


def class_paths() -> dict[str, str]:
    """Return the dotted name of the class of each model, by the name of the class."""
    return {path.rpartition(".")[2]: path for path in zoo.MODELS.values()}


def module_names() -> list[str]:
    """Return the names of the modules and packages inside ``zoo``, except ``__init__`` and ``__main__``."""
    inside = zoo.WEIGHTS.parent.iterdir()
    found = [path.stem for path in inside if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return [name for name in found if not name.startswith("_")]
