"""A simulated device that computes on the CPU and counts the operations for which the CPU would wait for a GPU.

The device wraps CPU tensors and uses PrivateUse1, torch's key for external devices. Use the device in a separate
process, because its set-up cannot be undone. Operations that mix tensors of the device and of the CPU raise an error.
The device has float64, as CUDA has, or no float64, as Apple's GPUs have none.

A GPU runs kernels later than Python calls them. Python waits for them if it needs values: a number, a shape that
depends on values, or a copy to the CPU. It also waits for a copy from the CPU, because the source may change later.
:func:`watched` lists both.
"""

import sys
import traceback
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.functional import precision
from zoo.training.trainer import quiet_lightning

ROOT = Path(__file__).parents[1]
ATEN = torch.ops.aten
INDEXED = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_, ATEN._unsafe_index}
COPIES = {ATEN._to_copy, ATEN.copy_, ATEN.copy}
# The CUDA kernels of these operations read values on the CPU. ``normal`` reads whether the deviations are positive.
WAITS = {ATEN._local_scalar_dense, ATEN.nonzero, ATEN.nonzero_static, ATEN.equal, ATEN.masked_select, ATEN.bincount}
WAITS |= {ATEN._unique, ATEN._unique2, ATEN.unique_dim, ATEN.unique_consecutive, ATEN.unique_dim_consecutive}
WAITS |= {ATEN._linalg_check_errors, ATEN._coalesce, ATEN.normal.Tensor_Tensor, ATEN.normal.float_Tensor}
WAITS |= {ATEN.allclose, ATEN.histc, ATEN._linalg_eigh, ATEN._linalg_svd}


@dataclass
class Crossings:
    """Data transfers between the CPU and the simulated device, as texts "operation (file:line)"."""

    waits: list[str] = field(default_factory=list)  # values that Python needs from the device
    moves: list[str] = field(default_factory=list)  # tensors of the CPU that are copied to the device


_watching: list[Crossings] = []
_settings = {"float64": False}


@contextmanager
def watched():
    """Yield the :class:`Crossings` that happen inside the context."""
    found = Crossings()
    _watching.append(found)
    try:
        yield found
    finally:
        _watching.remove(found)


def _found(kind, operation):
    if _watching:
        entry = f"{operation} ({_place()})"
        for found in _watching:
            getattr(found, kind).append(entry)


def _place():
    """Return file and line of the innermost code of the project, and of the library that this code called."""
    frame, library = sys._getframe(2), ""
    while frame is not None:
        path, line = Path(frame.f_code.co_filename), frame.f_lineno
        if path.is_relative_to(ROOT) and path.parent != ROOT / "tests":
            return f"{path.relative_to(ROOT)}:{line}{library and f', which calls {library}'}"
        if not library and ("lightning" in path.as_posix() or path.parent.name == "optim"):
            library = f"{path.parent.name}/{path.name}:{line}"
        frame = frame.f_back
    return library or "elsewhere"  # the backward pass has its own thread


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
        if not _settings["float64"] and inner.dtype in (torch.float64, torch.complex128):
            raise TypeError("the simulated device has no float64")
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "layout": inner.layout}
        device = torch.device("pretend", 0)
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, device=device, **layout)

    def __init__(self, inner):
        self.inner = inner

    def __setitem__(self, index, value):
        # CUDA keeps a number on the CPU. A boolean mask then needs no wait.
        value = torch.tensor(value, dtype=self.dtype) if isinstance(value, bool | int | float) else value
        super().__setitem__(index, value)

    def tolist(self):
        _found("waits", "tolist")
        return self.inner.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("numpy() needs a tensor on the CPU")

    def __reduce_ex__(self, protocol):
        return self.inner.__reduce_ex__(protocol)  # checkpoints are loaded on the CPU

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


def _is_one_of(func, operations):
    return func in operations or func.overloadpacket in operations


def _elsewhere(x):
    return isinstance(x, torch.Tensor) and not isinstance(x, OnDevice)


def _check_one_device(func, args, kwargs, tensors):
    """Raise RuntimeError if ``func`` mixes tensors of the device and of the CPU in a way that CUDA refuses."""
    if _is_one_of(func, INDEXED) and isinstance(args[0], OnDevice):  # the indices may be on the CPU
        tensors = [args[0], *(x for x in args[2:3] if isinstance(x, torch.Tensor))]
    if not _is_one_of(func, COPIES) and any(_elsewhere(x) and x.dim() > 0 for x in tensors):
        raise RuntimeError(f"tensors of {func} are on the simulated device and on the CPU")
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{func} draws on the simulated device with a generator of the CPU")


def _record(func, args, kwargs):
    """Add the transfers of ``func`` to the crossings. At least one tensor of ``func`` is on the device."""
    name = str(func)
    if _is_one_of(func, WAITS) or (func is ATEN.repeat_interleave.Tensor and kwargs.get("output_size") is None):
        _found("waits", name)
    elif func is ATEN._to_copy.default and isinstance(args[0], OnDevice) and not _on(kwargs.get("device", "pretend")):
        _found("waits", f"{name} to the CPU")
    elif func is ATEN._to_copy.default and _elsewhere(args[0]):
        _found("moves", name)
    elif _is_one_of(func, COPIES) and func is not ATEN._to_copy.default and _elsewhere(args[0]):
        _found("waits", f"{name} to the CPU")
    elif _is_one_of(func, COPIES) and func is not ATEN._to_copy.default and _elsewhere(args[1]):
        _found("moves", name)
    elif _is_one_of(func, INDEXED):
        indices = [x for x in args[1] if x is not None]
        number = len(args) > 2 and _elsewhere(args[2]) and args[2].numel() == 1  # this is masked_fill
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices) and not (number and len(indices) == 1):
            _found("waits", f"{name} with a mask")
        if any(_elsewhere(x) for x in indices):
            _found("moves", f"{name} with indices of the CPU")


def _change_shape(func, args, kwargs):
    """Apply ``func``, such as ``squeeze_``, also to the shape that torch stores for the wrapper."""
    before = torch._C._meta_in_tls_dispatch_include()
    torch._C._set_meta_in_tls_dispatch_include(True)
    try:
        with no_dispatch():
            func(*args, **kwargs)
    finally:
        torch._C._set_meta_in_tls_dispatch_include(before)


def _run(func, args, kwargs):
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here = any(isinstance(x, OnDevice) for x in tensors)
    device = kwargs.get("device")
    if here or _on(device):
        _check_one_device(func, args, kwargs, tensors)
        _record(func, args, kwargs)
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
    if torch.Tag.inplace_view in func.tags:
        _change_shape(func, args, kwargs)
        return args[0]
    if func._schema.is_mutable and "out" in kwargs:
        return kwargs["out"]
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
    _found("moves" if _elsewhere(source) else "waits", "copy")  # torch.tensor(..., device=...) comes here
    _plain(target).copy_(_plain(source))
    return target


_LIBRARY = torch.library.Library("aten", "IMPL")


def set_up(float64=False):
    """Register ``torch.device("pretend")`` in this process, with or without ``float64``. Return the device."""
    _settings["float64"] = float64
    backend_registration._setup_privateuseone_for_python_backend("pretend", backend_module=_Backend())
    for name, kernel in {"empty_strided": _empty_strided, "empty.memory_format": _empty, "_copy_from": _copy}.items():
        _LIBRARY.impl(name, kernel, "PrivateUse1")
    # When a module moves, torch now swaps its parameters for new ones. By default, torch assigns to parameter.data.
    # That cannot change the class of a tensor.
    torch.__future__.set_swap_module_params_on_conversion(True)
    return torch.device("pretend", 0)


class Accelerator(CPUAccelerator):
    """Accelerator for the simulated device. ``setup_device`` of CPUAccelerator rejects a device that is not a CPU."""

    def setup_device(self, device):
        pass


def trainer_arguments(device):
    """Return arguments with which ``make_trainer`` trains on ``device``."""
    strategy = SingleDeviceStrategy(device=device, accelerator=Accelerator())
    return {"accelerator": "auto", "devices": "auto", "strategy": strategy, "inference_mode": False}


def on_the_device(work, names, float64=False):
    """Run ``work(name, device)`` for each of ``names``. Return a dict from each name that fails to its traceback."""
    device, wrong = set_up(float64), {}
    quiet_lightning()
    without = nullcontext() if float64 else patch.object(precision, "WITHOUT_FLOAT64", {"pretend"})
    with Pretended(), without:
        for name in names:
            torch.manual_seed(0)
            try:
                work(name, device)
            except Exception:
                wrong[name] = traceback.format_exc()
    return wrong
