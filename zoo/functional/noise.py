"""Random numbers as functions of a generator: drawn where it lives, and the same on every device and process."""

import torch
from torch import Tensor


def randn(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Standard normal noise drawn where ``generator`` lives, then moved to ``device``; (*shape)."""
    where = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=where).to(device)


def rand(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform noise in [0, 1) drawn where ``generator`` lives, then moved to ``device``; (*shape)."""
    where = device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=where).to(device)


def chunk_generator(seed: int, chunk: int) -> torch.Generator:
    """The CPU generator of one chunk (or of one draw, or of one batch), keyed by ``(seed, chunk)``."""
    # Consecutive integer seeds of one Mersenne Twister are independent streams for every practical purpose; the
    # multiplier keeps (seed 0, chunk 1) and (seed 1, chunk 0) apart. Seeds are taken modulo 2^63.
    return torch.Generator().manual_seed((seed * 1_000_003 + chunk) % 2**63)
