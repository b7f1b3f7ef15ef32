"""A stand-in for CUDA graphs on the CPU. A capture records operations, and a replay repeats them.

As in a CUDA graph, a replay uses the tensors and the Python numbers of the capture. It runs no Python code of the step.
A capture changes no value. It fails at an operation for which the CPU would wait for a GPU.
"""

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
# Operations after which Python needs values or a shape that depends on values. A CUDA capture fails at them.
WAITS = {
    ATEN._local_scalar_dense.default,
    ATEN.nonzero.default,
    ATEN.masked_select.default,
    ATEN.equal.default,
    ATEN._unique2.default,
    ATEN.is_nonzero.default,
}


def _tensors(tree):
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, torch.Tensor)]


class _Recorder(TorchDispatchMode):
    """Records operations. Also stores the values of tensors before the first operation that changes them."""

    def __init__(self):
        super().__init__()
        self.operations, self.before, self._own = [], {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        indices = args[1] if func in (ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default) else ()
        if func in WAITS or any(i is not None and i.dtype == torch.bool for i in indices):
            raise RuntimeError(f"a capture does not permit {func}, which waits for the device")
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            if (written or argument.name in ("running_mean", "running_var")) and argument.name in given:
                for t in _tensors(given[argument.name]):
                    if t.untyped_storage().data_ptr() not in self._own and id(t) not in self.before:
                        self.before[id(t)] = (t, t.detach().clone())
        result = func(*args, **kwargs)
        inputs = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        self._own |= {t.untyped_storage().data_ptr() for t in _tensors(result)} - inputs
        self.operations.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.operations:
            if torch.Tag.inplace_view in func.tags:  # the capture has already changed the shape
                continue
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.numel() and old.data_ptr() != new.data_ptr():
                    old.copy_(new.reshape(old.shape))


class Recorded:
    """Replacement of zoo.training.graphs.CUDA that counts captures."""

    fused, capturable = True, False  # the CPU has fused optimisers, which take a tensor as learning rate

    def __init__(self):
        self.captured = 0

    def warm_up(self, run):
        return run()

    def capture(self, run):
        random, recorder = torch.get_rng_state(), _Recorder()
        try:
            with recorder:
                result = run()
        finally:
            with torch.no_grad():
                for t, value in recorder.before.values():
                    t.copy_(value)
            torch.set_rng_state(random)
        self.captured += 1
        return recorder.replay, result

    def wait_for_previous_execution(self):
        pass
