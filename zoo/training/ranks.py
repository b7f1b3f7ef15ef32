"""What the processes of a run hold in turns, row i with process i mod n, put together in its order."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from zoo.functional.precision import has_float64


def shows_progress(trainer) -> bool:
    """Whether this process shows how far work is that takes long: the first one, unless bars are turned off."""
    return trainer.is_global_zero and trainer.progress_bar_callback is not None


def interleave(parts: Sequence[Tensor]) -> Tensor:
    """x from ``[x[r::n] for r in range(n)]``."""
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def gathered(mine: Tensor, trainer) -> Tensor:
    """The rows of all processes in their order, of which they may hold unequal numbers; on the CPU, for checkpoints.

    Args:
        mine: this process's rows, (n, ...), on the CPU.
        trainer: the Trainer of the run; None outside one.
    """
    if trainer is None or trainer.world_size == 1:
        return mine
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, mine)
    return interleave(parts)


def all_rows(mine: Tensor, trainer) -> Tensor:
    """The rows of all processes in their order, on each of them; where they have unequal numbers, the last are left
    out. All processes must call it.

    Args:
        mine: this process's rows, (n, ...), on its device.
        trainer: the Trainer of the run.
    """
    if trainer.world_size == 1:
        return mine
    fewest = int(trainer.strategy.reduce(torch.tensor(len(mine), device=mine.device), reduce_op="min"))
    return equal_rows(mine[:fewest].contiguous(), trainer)


def exact_sum(mine: Tensor, trainer) -> Tensor:
    """The sum of ``mine`` over processes in float64, on the CPU. All processes must call it.

    A device without float64 exchanges pairs of float32, which hold 48 of its 53 bits.

    Args:
        mine: float64, on the CPU, of the same shape on every process.
        trainer: the Trainer of the run.
    """
    if trainer.world_size == 1:
        return mine
    device = trainer.strategy.root_device
    if has_float64(device):
        return trainer.strategy.reduce(mine.to(device), reduce_op="sum").cpu()
    pair = torch.stack([mine.float(), (mine - mine.float()).float()])
    return trainer.strategy.all_gather(pair.to(device)).cpu().double().sum((0, 1))


def equal_rows(mine: Tensor, trainer) -> Tensor:
    """:func:`all_rows` where all processes hold equally many, as in training: no value is read back."""
    return mine if trainer.world_size == 1 else interleave(trainer.strategy.all_gather(mine))
