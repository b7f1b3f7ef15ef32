"""Sums in float64 on every device, and buffers that no change of a model's precision rounds."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

C = TypeVar("C", bound=type[nn.Module])

WITHOUT_FLOAT64 = {"mps"}  # types of devices: Apple's GPU


def has_float64(device: torch.device) -> bool:
    """Whether ``device`` computes in float64."""
    return device.type not in WITHOUT_FLOAT64


def in_float64(x: Tensor) -> Tensor:
    """``x`` in float64: where it is, or on the CPU if its device has no float64."""
    return x.double() if has_float64(x.device) else x.cpu().double()


def float64_device(device: torch.device) -> torch.device:
    """Where sums in float64 are kept of what is on ``device``: there, or on the CPU."""
    return device if has_float64(device) else torch.device("cpu")


def never_rounded(*names: str) -> Callable[[C], C]:
    """Decorate a module's class so that ``bfloat16()``, ``half()`` and the like leave its buffers ``names`` alone.

    They move with the module, and ``double()`` makes them float64: what a model computes with is never less precise
    than what it was made with. Names that a module lacks are passed over.
    """

    def decorate(cls: C) -> C:
        apply = cls._apply

        def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
            before = {name: buffer for name in names if (buffer := self._buffers.get(name)) is not None}
            apply(self, fn, *args, **kwargs)
            for name, exact in before.items():
                now = self.get_buffer(name)
                if now.dtype.itemsize < torch.float32.itemsize:
                    self._buffers[name] = exact.to(now.device, torch.float32)
            return self

        setattr(cls, "_apply", _apply)  # noqa: B010, a method is assigned
        return cls

    return decorate
