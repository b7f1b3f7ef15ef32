"""Samples drawn in fixed chunks. A seed gives the same pixels for any number of samples and any number of processes.

Without fixed chunks, two effects would change the pixels. A layer rounds a row differently in batches of different
sizes. The output of a random generator depends on the numbers that it drew before.

Samples are therefore drawn in chunks of 16. The last chunk is padded. Each chunk has a separate CPU generator.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.old_forms import earlier_names
from zoo.checks.values import check_integer
from zoo.functional.noise import chunk_generator
from zoo.functional.progress import tracked

CHUNK = 16


def check_conditions(model: object, conditions: dict[str, Any]) -> dict[str, Any]:
    """Return ``conditions`` under the current names of the arguments of ``model.sample``.

    Raises:
        UserError: for a model without ``sample``, or for conditions that are not arguments of its ``sample``.
    """
    name = type(model).__name__
    if not isinstance(model, capabilities.Samples):
        words = isinstance(model, capabilities.Words)
        instead = "; for words use callbacks=words, or zoo nearest" if words else ""
        raise UserError(f"{name} has no method sample(n, generator=...), so it cannot draw samples{instead}")
    renamed = earlier_names(model.sample)
    for old, new in renamed.items():
        if old in conditions and new in conditions:
            raise UserError(f"{old} and {new} name the same condition of {name}.sample; give only {new}")
    conditions = {renamed.get(key, key): value for key, value in conditions.items()}
    takes = set(inspect.signature(model.sample).parameters) - {"n", "generator"}
    if unknown := set(conditions) - takes:
        allowed = f"it takes {', '.join(sorted(takes))}" if takes else "it has no conditions"
        raise UserError(f"{name}.sample takes no {', '.join(sorted(unknown))}; {allowed}")
    return conditions


def check_lengths(n: int, conditions: dict[str, Any]) -> None:
    """Raise if a condition is a list and its length is not ``n``, the number of samples."""
    for name, value in conditions.items():
        if isinstance(value, list) and len(value) != n:
            raise UserError(
                f"{name} has {len(value)} values for {n} samples; give one value, or a list with one for each sample"
            )


def try_conditions(model, n: int, conditions: dict[str, Any]) -> Tensor:
    """Return one sample, (1, ...), under the conditions that the first of ``n`` samples has.

    If this is called before a long run, invalid conditions raise an error at once.

    Raises:
        UserError: if ``model.sample`` raises UserError, or if the length of a list is not ``n``.
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
    """Return ``n`` samples, (n, ...), on the CPU. Samples that belong to other ranks are zero.

    Rank r draws chunks r, r + ``world_size``, r + 2 ``world_size``, ... The sum of the results of all ranks is
    therefore exactly the tensor of all samples.

    Args:
        model: model in eval mode with ``sample(n, *, generator, **conditions)``.
        n: number of samples, at least 1.
        seed: any integer. Equal seeds give equal samples.
        rank: rank of this process.
        world_size: number of processes.
        progress: show a progress bar if drawing takes more than two seconds.
        conditions: arguments of ``model.sample``. A list has one value for each sample.
    """
    check_integer("the number of samples", n)
    check_lengths(n, conditions)

    def draw(c: int) -> Tensor:
        padded = [min(i, n - 1) for i in range(c * CHUNK, (c + 1) * CHUNK)]
        own = {k: [v[i] for i in padded] if isinstance(v, list) else v for k, v in conditions.items()}
        return model.sample(CHUNK, generator=chunk_generator(seed, c), **own)

    chunks = -(-n // CHUNK)
    mine = range(rank, chunks, world_size)
    drawn = {c: draw(c).cpu() for c in tracked(mine, "samples", "chunk", show=progress)}
    # A rank without chunks draws chunk 0, only to find the shape of a sample.
    shape = next(iter(drawn.values())).shape if drawn else draw(0).shape
    return torch.cat([drawn[c] if c in drawn else torch.zeros(shape) for c in range(chunks)])[:n]
