"""Accept calls in the form of the previous version for one more version. Each such call gives a DeprecationWarning."""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import TypeVar, cast

from zoo.checks.values import check_integer

C = TypeVar("C")
F = TypeVar("F", bound=Callable)


def old_form(function: F, renamed: Mapping[str, str] = MappingProxyType({}), positional: bool = True) -> F:
    """Return a function that also accepts the arguments of the previous version, with a warning.

    The returned function raises TypeError if a call gives the old and the new name of one argument.

    Args:
        function: the function of this version.
        renamed: {old name: new name} of keyword arguments.
        positional: whether keyword-only arguments can also be given by position, in the order of the signature.
    """
    parameters = inspect.signature(function).parameters.values()
    first = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    @functools.wraps(function)
    def call(*args, **kwargs):
        if positional and len(first) < len(args) <= len(first) + len(named):
            given = dict(zip(named, args[len(first) :], strict=False))
            if not given.keys() & kwargs.keys():
                names = ", ".join(f"{name}=" for name in given)
                warnings.warn(f"give {names} of {function.__qualname__} by name", DeprecationWarning, stacklevel=2)
                args, kwargs = args[: len(first)], given | kwargs
        for old in renamed.keys() & kwargs.keys():
            new = renamed[old]
            if new in kwargs:
                raise TypeError(
                    f"{function.__qualname__} got {old}= and {new}=, which are the same argument; give {new}="
                )
            warnings.warn(f"{old}= of {function.__qualname__} is {new}= now", DeprecationWarning, stacklevel=2)
            kwargs[new] = kwargs.pop(old)
        return function(*args, **kwargs)

    vars(call)["renamed"] = renamed
    return cast(F, call)


def earlier_names(function: Callable) -> Mapping[str, str]:
    """Return {old name: new name} of the renamed arguments of ``function``."""
    return getattr(function, "renamed", {})


def accepts_old_form(*methods: str, **renamed: str) -> Callable[[type[C]], type[C]]:
    """Return a class decorator. The class then also accepts calls in the form of the previous version.

    Args:
        methods: methods whose keyword-only arguments can also be given by position.
        renamed: {old name: new name} of arguments of ``sample``.
    """

    def decorate(cls: type[C]) -> type[C]:
        for name in methods:
            setattr(cls, name, old_form(vars(cls)[name]))
        for name in ["sample"] if renamed else []:
            setattr(cls, name, old_form(vars(cls)[name], renamed, positional=False))
        return cls

    return decorate


def forwards_to(**names: str) -> Callable[[type[C]], type[C]]:
    """Return a class decorator for moved attributes, ``old="part.new"``. The old names still work, with a warning."""

    def leading(old: str, new: str) -> property:
        def find(self: object) -> object:
            warnings.warn(f"{type(self).__name__}.{old} is .{new} now", DeprecationWarning, stacklevel=2)
            return attrgetter(new)(self)

        return property(find)

    def decorate(cls: type[C]) -> type[C]:
        for old, new in names.items():
            setattr(cls, old, leading(old, new))
        return cls

    return decorate


def shape_of_pixels(num_visible: int) -> list[int]:
    """Return the shape that ``num_visible`` of RBM means: [1, 28, 28] for 784, and vectors [V] for other numbers.

    Old checkpoints have this argument. It gives no warning, because published cards have it too.
    """
    check_integer("num_visible", num_visible)
    return [1, 28, 28] if num_visible == 28 * 28 else [num_visible]
