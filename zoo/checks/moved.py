"""Keep names of the previous version importable for one more version. Each import gives a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

TYPE_CHECKING = False  # type checkers treat it as True; importing typing would take most of the time of `import zoo`
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

MOVED = {
    "zoo.checkpoint_files": "zoo.training.checkpoint_files",
    "zoo.classifier": "zoo.evaluation.classifier",
    "zoo.comparison": "zoo.evaluation.comparison",
    "zoo.contrastive": "zoo.functional.contrastive",
    "zoo.curves": "zoo.evaluation.curves",
    "zoo.deformation": "zoo.functional.deformation",
    "zoo.diffusion_bound": "zoo.functional.diffusion_bound",
    "zoo.distances": "zoo.evaluation.distances",
    "zoo.features": "zoo.evaluation.features",
    "zoo.fields": "zoo.evaluation.fields",
    "zoo.hardware": "zoo.training.trainer",
    "zoo.labels": "zoo.checks.labels",
    "zoo.langevin": "zoo.functional.langevin",
    "zoo.latents": "zoo.functional.latents",
    "zoo.processes": "zoo.training.processes",
}
SPLIT = {  # modules of the previous version whose names are now in several modules
    "zoo.adversarial": ("zoo.nets.adversarial", "zoo.training.adversarial"),
    "zoo.boltzmann": ("zoo.functional.boltzmann", "zoo.functional.gibbs", "zoo.functional.partition"),
    "zoo.configuration": ("zoo.checks.values", "zoo.training.command_line"),
    "zoo.diffusion": ("zoo.functional.diffusion", "zoo.functional.diffusion_samplers"),
    "zoo.words": ("zoo.evaluation.words", "zoo.training.files"),
}
RENAMED = {  # functions of the modules above that have a new name
    "check_share": "check_fraction",
    "check_whole": "check_integer",
    "restate": "recompute_batch_norm",
}
INSIDE = ("callbacks", "datamodules")  # packages of the previous version that are now inside zoo


def current_name(target: str) -> str:
    """Return the current dotted name of ``target``. It can be a name of this or of the previous version."""
    if target.split(".")[0] in INSIDE:
        return f"zoo.{target}"
    module, _, name = target.rpartition(".")
    if module in SPLIT:
        new = RENAMED.get(name, name)
        holder = _holder(new, SPLIT[module])
        return f"{holder}.{new}" if holder else target
    return f"{MOVED[module]}.{name}" if module in MOVED else target


def _holder(name: str, modules: tuple[str, ...]) -> str | None:
    return next((module for module in modules if hasattr(import_module(module), name)), None)


def _is_module(package: str, name: str) -> bool:
    """Return whether ``package`` is a folder that holds the module ``name``."""
    folder = "__path__" in vars(sys.modules[package]) and not name.startswith("_")
    return folder and find_spec(f"{package}.{name}") is not None


def names_in(package: str, *modules: str) -> Callable[[str], object]:
    """Return a ``__getattr__`` for ``package``, which was one module before. Its names are now in ``modules``.

    If ``package`` is a folder, its modules are imported when they are first used.
    """

    def find(name: str) -> object:
        if _is_module(package, name):
            return import_module(f"{package}.{name}")
        new = RENAMED.get(name, name)
        module = None if name.startswith("_") else _holder(new, modules)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # `from package import name` calls this twice, first from the import system. Only the second call warns.
        if sys._getframe(1).f_code.co_filename != "<frozen importlib._bootstrap>":
            warnings.warn(f"{package}.{name} is {module}.{new} now", DeprecationWarning, stacklevel=2)
        return getattr(import_module(module), new)

    return find


class MovedModules:
    """Import hook that finds modules by the names of the previous version."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, MovedModules()) if name in MOVED or name in SPLIT else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name in SPLIT:
            vars(module)["__getattr__"] = names_in(name, *SPLIT[name])  # warns when a name is used
            return
        warnings.warn(f"{name} is {MOVED[name]} now", DeprecationWarning, stacklevel=2)
        sys.modules[name] = import_module(MOVED[name])  # both names give the same module object
