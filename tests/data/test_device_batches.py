"""Tests that a loader makes its batches on the device of its examples, without a copy for each batch."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.datamodules.loaders import ImageLoader
from zoo.datamodules.splits import Split
from zoo.datamodules.toy import PointLoader

ATEN = torch.ops.aten
EXAMPLES = {ImageLoader: (28, 28), PointLoader: (2,)}


class Moves(TorchDispatchMode):
    """Count the copies to or from the device ``meta``."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += func in (ATEN._to_copy.default, ATEN.copy_.default) and args[0].device != out.device
        return out


@pytest.mark.parametrize(("shuffle", "moves"), [(True, 1), (False, 0)])
@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_order_of_an_epoch_is_moved_to_the_device_once(kind, shuffle, moves):
    dtype = torch.uint8 if kind is ImageLoader else torch.float32
    split = Split(torch.empty(100, *EXAMPLES[kind], dtype=dtype, device="meta"), torch.empty(100, device="meta"))
    for rank, size in ((0, 10), (1, 5)):
        with Moves() as moved:
            batches = list(kind(split, 10, shuffle, rank=rank, world_size=1 + rank))
        assert moved.count == moves and [len(x) for x, _ in batches] == 10 * [size]
        assert all(t.device.type == "meta" for batch in batches for t in batch)
