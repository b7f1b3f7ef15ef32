"""Random numbers, drawn on the device of their generator. A CPU generator gives equal numbers for all devices."""

import torch
from torch import Tensor


def randn(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Return standard normal noise (*shape), drawn on the device of ``generator`` and moved to ``device``."""
    where = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=where).to(device)


def rand(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Return uniform noise in [0, 1), (*shape), drawn on the device of ``generator`` and moved to ``device``."""
    where = device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=where).to(device)


def uniform_labels(
    n: int, num_classes: int | None, *, generator: torch.Generator | None, device: torch.device
) -> Tensor | None:
    """Return ``n`` labels drawn uniformly from 0 to ``num_classes`` - 1, (n,). Return None if there are no classes."""
    if num_classes is None:
        return None
    return (num_classes * rand(n, generator=generator, device=device)).long().clamp(max=num_classes - 1)


def chunk_generator(seed: int, chunk: int) -> torch.Generator:
    """Return a CPU generator for the chunk, draw or batch with number ``chunk`` of a run with ``seed``."""
    # Consecutive seeds of the Mersenne Twister give streams that are independent in practice. With the multiplier,
    # (seed 0, chunk 1) and (seed 1, chunk 0) have different streams.
    return torch.Generator().manual_seed((seed * 1_000_003 + chunk) % 2**63)
