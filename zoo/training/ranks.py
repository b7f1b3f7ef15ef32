"""Gather rows from the n processes of a run. Row i belongs to process i mod n."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from zoo.functional.precision import has_float64


def shows_progress(trainer) -> bool:
    """Return whether this process shows progress: it is the first, and the trainer has a progress bar callback."""
    return trainer.is_global_zero and trainer.progress_bar_callback is not None


def interleave(parts: Sequence[Tensor]) -> Tensor:
    """Return the tensor x for which ``parts`` is ``[x[r::n] for r in range(n)]``."""
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def gathered(mine: Tensor, trainer) -> Tensor:
    """Return the rows of all processes in order, on the CPU, for checkpoints.

    Processes may hold different numbers of rows.

    Args:
        mine: the rows of this process, (n, ...), on the CPU.
        trainer: the Trainer of the run, or None outside a run.
    """
    if trainer is None or trainer.world_size == 1:
        return mine
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, mine)
    return interleave(parts)


def all_rows(mine: Tensor, trainer) -> Tensor:
    """Return the rows of all processes in order, on every process. All processes must call it.

    If processes hold unequal numbers of rows, each process contributes only the smallest of these numbers.

    Args:
        mine: the rows of this process, (n, ...), on its device.
        trainer: the Trainer of the run.
    """
    if trainer.world_size == 1:
        return mine
    fewest = int(trainer.strategy.reduce(torch.tensor(len(mine), device=mine.device), reduce_op="min"))
    return equal_rows(mine[:fewest].contiguous(), trainer)


def exact_sum(mine: Tensor, trainer) -> Tensor:
    """Return the sum of ``mine`` over all processes in float64, on the CPU. All processes must call it.

    Devices without float64 exchange pairs of float32 numbers, which keep 48 of the 53 bits of a float64.

    Args:
        mine: float64 tensor on the CPU, of the same shape on every process.
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
    """Return the rows of all processes in order, like :func:`all_rows`, for equal numbers of rows.

    Processes do not exchange the numbers of rows, so no value is read from the device.
    """
    return mine if trainer.world_size == 1 else interleave(trainer.strategy.all_gather(mine))
