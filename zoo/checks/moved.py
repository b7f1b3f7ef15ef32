"""Names of an earlier version, which lead on to today's for one version more, with a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # as type checkers read it; typing itself would be most of what `import zoo` takes
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

MOVED = {
    "zoo.boltzmann": "zoo.functional.boltzmann",
    "zoo.classifier": "zoo.evaluation.classifier",
    "zoo.contrastive": "zoo.functional.contrastive",
    "zoo.deformation": "zoo.functional.deformation",
    "zoo.diffusion": "zoo.functional.diffusion",
    "zoo.diffusion_bound": "zoo.functional.diffusion_bound",
    "zoo.distances": "zoo.evaluation.distances",
    "zoo.features": "zoo.evaluation.features",
    "zoo.fields": "zoo.evaluation.fields",
    "zoo.hardware": "zoo.training.trainer",
    "zoo.langevin": "zoo.functional.langevin",
    "zoo.latents": "zoo.functional.latents",
    "zoo.words": "zoo.evaluation.words",
}
INSIDE = ("callbacks", "datamodules")  # packages that were beside zoo and are in it


def current_name(target: str) -> str:
    """The dotted name of today for ``target``, as configurations and checkpoints of an earlier version write it."""
    if target.split(".")[0] in INSIDE:
        return f"zoo.{target}"
    module, _, name = target.rpartition(".")
    return f"{MOVED[module]}.{name}" if module in MOVED else target


def names_in(package: str, *modules: str) -> Callable[[str], object]:
    """A ``__getattr__`` for ``package``, once a module, whose names are in ``modules`` today."""

    def find(name: str) -> object:
        for module in modules if not name.startswith("_") else ():
            if hasattr(import_module(module), name):
                warnings.warn(f"{package}.{name} is {module}.{name} now", DeprecationWarning, stacklevel=2)
                return getattr(import_module(module), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


class MovedModules:
    """Finds modules by their earlier names, for the import system."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, MovedModules()) if name in MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        warnings.warn(f"{name} is {MOVED[name]} now", DeprecationWarning, stacklevel=2)
        sys.modules[name] = import_module(MOVED[name])  # one module under both names, not two
