"""Noise for output, and samples drawn in fixed chunks so that a seed means the same pixels everywhere.

A layer gives bitwise different rows for different batch sizes, and what a generator draws later depends on how much it
drew before. So samples come in chunks of 16, the last one padded, each with a CPU generator of its own: the pixels
depend on the seed and on nothing else, not on how many are asked for nor on how many processes draw them.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.old_forms import earlier_names
from zoo.checks.values import check_whole
from zoo.functional.noise import chunk_generator
from zoo.functional.progress import tracked

CHUNK = 16


def check_conditions(model: object, conditions: dict[str, Any]) -> dict[str, Any]:
    """``conditions`` of the model's ``sample``, by the names that it has for them today.

    Raises:
        UserError: for a model that cannot sample, or for conditions that its ``sample`` does not take.
    """
    name = type(model).__name__
    if not isinstance(model, capabilities.Samples):
        words = isinstance(model, capabilities.Words)
        instead = "; for words there is callbacks=words, or python -m zoo nearest" if words else ""
        raise UserError(f"{name} has no method sample(n, generator=...), so there is nothing to draw{instead}")
    renamed = earlier_names(model.sample)
    for old, new in renamed.items():
        if old in conditions and new in conditions:
            raise UserError(f"{old} and {new} are one condition of {name}.sample; give {new} alone")
    conditions = {renamed.get(key, key): value for key, value in conditions.items()}
    takes = set(inspect.signature(model.sample).parameters) - {"n", "generator"}
    if unknown := set(conditions) - takes:
        raise UserError(
            f"{name}.sample takes no {', '.join(sorted(unknown))}; it takes {', '.join(sorted(takes)) or 'nothing'}"
        )
    return conditions


def check_lengths(n: int, conditions: dict[str, Any]) -> None:
    """Refuse a condition that is a list of another length than ``n``, the number of samples."""
    for name, value in conditions.items():
        if isinstance(value, list) and len(value) != n:
            raise UserError(f"{name} must be one value, or a list of one for each of {n} samples; got {len(value)}")


def try_conditions(model, n: int, conditions: dict[str, Any]) -> Tensor:
    """The first of ``n`` samples, (1, ...), drawn so that conditions that do not fit fail now and not after hours.

    Raises:
        UserError: as ``model.sample`` does, or for a list of another length than ``n``.
    """
    conditions = check_conditions(model, conditions)
    check_lengths(n, conditions)
    first = {k: v[:1] if isinstance(v, list) else v for k, v in conditions.items()}
    with torch.no_grad():
        return model.sample(1, generator=chunk_generator(0, 0), **first)


@torch.no_grad()
def sample_chunks(
    model, n: int, seed: int, rank: int = 0, world_size: int = 1, progress: bool = False, **conditions
) -> Tensor:
    """This rank's part of ``n`` samples; summed over the ranks, the parts are the samples.

    Chunk c belongs to rank c mod ``world_size``; samples of other ranks are zero, so that a sum over ranks is exact.

    Args:
        model: anything with ``sample(n, *, generator, **conditions)``; put it in eval mode first.
        n: how many samples, at least 1.
        seed: any integer; the same one gives the same samples.
        progress: show a bar over the chunks, where they take more than two seconds.
        conditions: handed on to ``model.sample``; a list has one value per sample.

    Returns:
        (n, ...): as ``model.sample`` returns them, on the CPU.
    """
    check_whole("the number of samples", n)
    check_lengths(n, conditions)

    def draw(c: int) -> Tensor:
        padded = [min(i, n - 1) for i in range(c * CHUNK, (c + 1) * CHUNK)]
        own = {k: [v[i] for i in padded] if isinstance(v, list) else v for k, v in conditions.items()}
        return model.sample(CHUNK, generator=chunk_generator(seed, c), **own)

    chunks = -(-n // CHUNK)
    mine = range(rank, chunks, world_size)
    drawn = {c: draw(c).cpu() for c in tracked(mine, "samples", "chunk", show=progress)}
    # More ranks than chunks: the shape is found by drawing what nobody asked for.
    shape = next(iter(drawn.values())).shape if drawn else draw(0).shape
    return torch.cat([drawn[c] if c in drawn else torch.zeros(shape) for c in range(chunks)])[:n]
