"""A simulated device that computes on the CPU and has no float64, like Apple's GPU.

The device wraps CPU tensors and uses PrivateUse1, torch's key for external devices. Use the device in a separate
process, because its set-up cannot be undone. Operations that mix tensors of the device and of the CPU raise an error.
"""

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
INDEXED = {ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default, ATEN._index_put_impl_.default}
COPIES = {ATEN._to_copy.default, ATEN.copy_.default, ATEN.copy.default}


class _Backend(backend_registration._DummyBackendModule):
    """The functions that torch needs from a backend."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def is_autocast_enabled(self):
        return False

    def current_device(self):
        return 0

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass


def _on(device):
    return device is not None and torch.device(device).type == "pretend"


class OnDevice(torch.Tensor):
    """A tensor on the simulated device. ``inner`` is the CPU tensor with its values."""

    @staticmethod
    def __new__(cls, inner):
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError("the simulated device has no float64")
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "layout": inner.layout}
        device = torch.device("pretend", 0)
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, device=device, **layout)

    def __init__(self, inner):
        self.inner = inner

    def tolist(self):
        return self.inner.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("numpy() needs a tensor on the CPU")

    def __repr__(self):
        return f"OnDevice({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _wrapped(x):
    return OnDevice(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) else x


def _plain(x):
    if isinstance(x, OnDevice):
        return x.inner
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == "pretend" else x


def _run(func, args, kwargs):
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if isinstance(x, OnDevice)]
    elsewhere = [x for x in tensors if not isinstance(x, OnDevice) and x.dim() > 0]  # scalars may be on any device
    device = kwargs.get("device")
    if func not in COPIES and here and elsewhere and not (func in INDEXED and isinstance(args[0], OnDevice)):
        raise RuntimeError(f"tensors of {func} are on the simulated device and on the CPU")
    plain, named = pytree.tree_map(_plain, (args, kwargs))
    out = func(*plain, **named)
    if func is ATEN._to_copy.default:
        if _on(device) or (here and device is None):
            return OnDevice(out.clone() if out is plain[0] else out)
        return out
    if func is ATEN.copy_.default:
        return args[0]
    if not here and not _on(device):
        return out
    returns = func._schema.returns
    if func._schema.is_mutable and returns and returns[0].alias_info is not None and returns[0].alias_info.is_write:
        return args[0] if len(returns) == 1 else pytree.tree_map(_wrapped, out)
    return pytree.tree_map(_wrapped, out)


class Pretended(TorchDispatchMode):
    """Dispatch mode of torch. Within it, operations on ``torch.device("pretend")`` work."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        here = any(isinstance(x, OnDevice) for x in pytree.tree_leaves((args, kwargs)))
        return _run(func, args, kwargs) if here or _on(kwargs.get("device")) else func(*args, **kwargs)


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return OnDevice(torch.empty(size, dtype=dtype, device="cpu"))


def _copy(source, target, non_blocking=False):
    _plain(target).copy_(_plain(source))
    return target


_LIBRARY = torch.library.Library("aten", "IMPL")


def set_up():
    """Register ``torch.device("pretend")`` in this process, and return it."""
    backend_registration._setup_privateuseone_for_python_backend("pretend", backend_module=_Backend())
    for name, kernel in {"empty_strided": _empty_strided, "empty.memory_format": _empty, "_copy_from": _copy}.items():
        _LIBRARY.impl(name, kernel, "PrivateUse1")
    # When a module moves, torch now swaps its parameters for new ones. By default, torch assigns to parameter.data.
    # That cannot change the class of a tensor.
    torch.__future__.set_swap_module_params_on_conversion(True)
    return torch.device("pretend", 0)
