"""Sums in float64 on every device, and buffers that stay in float32 or float64 if the model changes to 16 bits."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

C = TypeVar("C", bound=type[nn.Module])

WITHOUT_FLOAT64 = {"mps"}  # device types without float64: Apple's GPU


def has_float64(device: torch.device) -> bool:
    """Return whether ``device`` supports float64."""
    return device.type not in WITHOUT_FLOAT64


def in_float64(x: Tensor) -> Tensor:
    """Return ``x`` in float64. The result is on the CPU if the device of ``x`` has no float64."""
    return x.double() if has_float64(x.device) else x.cpu().double()


def float64_device(device: torch.device) -> torch.device:
    """Return the device for float64 sums: ``device`` itself, or the CPU if ``device`` has no float64."""
    return device if has_float64(device) else torch.device("cpu")


def keep_float32(*names: str) -> Callable[[C], C]:
    """Return a decorator of module classes. It keeps the buffers ``names`` in float32 or float64.

    ``bfloat16()``, ``half()`` and similar methods then do not round these buffers to 16 bits. The buffers still move to
    other devices with the module, and ``double()`` converts them to float64. Names without a buffer are ignored.
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
