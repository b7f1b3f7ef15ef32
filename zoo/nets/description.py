"""The first lines of ``repr(model)``: what the model is, its hyperparameters and its size."""

import inspect
import reprlib
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=type[nn.Module])

WIDTH = 100  # characters in a line


def described(cls: M) -> M:
    """Return the class of models ``cls``, changed to begin ``repr(model)`` with :func:`description`."""
    cls.extra_repr = description
    return cls


def description(self: nn.Module) -> str:
    """Return the first line of the class docstring, the hyperparameters, and the number of parameters.

    If the constructor of the model has raised an error, some parts are missing.
    """
    about = inspect.cleandoc(type(self).__doc__ or "").partition("\n")[0]
    hparams = vars(self).get("_hparams") or {}
    arguments = _wrapped([f"{name}={_SHORT.repr(value)}" for name, value in hparams.items()])
    return "\n".join(line for line in (about, *arguments, _size(self)) if line)


def _wrapped(parts: list[str]) -> list[str]:
    """Return lines of ``parts`` with commas between them. A line is longer than WIDTH only if one part is longer."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 3 <= WIDTH:
            lines[-1] += f", {part}"
        else:
            lines = [*(line if line.endswith(",") else f"{line}," for line in lines), part]
    return lines


def _size(model: nn.Module) -> str:
    if "_parameters" not in vars(model):  # nn.Module.__init__ has not run
        return ""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)
    return f"{total:,} parameters" + (f", {trained:,} of them trained" if trained != total else "")


_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8
_SHORT.maxstring = _SHORT.maxother = 60
