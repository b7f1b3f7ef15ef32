"""Calls as an earlier version had them, which are taken for one version more, with a DeprecationWarning."""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import TypeVar, cast

C = TypeVar("C")
F = TypeVar("F", bound=Callable)


def old_form(function: F, renamed: Mapping[str, str] = MappingProxyType({}), positional: bool = True) -> F:
    """``function`` that also takes, with a DeprecationWarning, arguments as an earlier version had them.

    Args:
        renamed: earlier names of keyword arguments, and those of today.
        positional: whether positional arguments beyond those of its signature are its keyword-only ones in their order.

    Raises:
        TypeError: by the result, where an argument is given by both its names.
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
                raise TypeError(f"{function.__qualname__} got {old}= and {new}=, which are one argument; give {new}=")
            warnings.warn(f"{old}= of {function.__qualname__} is {new}= now", DeprecationWarning, stacklevel=2)
            kwargs[new] = kwargs.pop(old)
        return function(*args, **kwargs)

    vars(call)["renamed"] = renamed
    return cast(F, call)


def earlier_names(function: Callable) -> Mapping[str, str]:
    """The names that arguments of ``function`` had in an earlier version, and those of today."""
    return getattr(function, "renamed", {})


def accepts_old_form(*methods: str, **renamed: str) -> Callable[[type[C]], type[C]]:
    """Decorate a class so that ``methods`` take positional arguments as before, and ``sample`` those ``renamed``."""

    def decorate(cls: type[C]) -> type[C]:
        for name in methods:
            setattr(cls, name, old_form(vars(cls)[name]))
        for name in ["sample"] if renamed else []:
            setattr(cls, name, old_form(vars(cls)[name], renamed, positional=False))
        return cls

    return decorate


def leads_on(**names: str) -> Callable[[type[C]], type[C]]:
    """Decorate a class whose attributes ``names`` have moved to other places of an instance, ``old="part.new"``."""

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
