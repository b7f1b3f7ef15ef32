"""SHA-256 digests of the data that a run uses."""

import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from zoo.checks import capabilities

BLOCK = 4096  # examples that are copied from the device at once


def digest_of(data: Any) -> str | None:
    """Return a SHA-256 digest of the examples of a data module after ``setup``, or None if it has no fixed examples.

    The digest covers the examples and labels of the training, validation and test set, with their shapes and types.
    The digest of a text covers the vocabulary and the encoded words. It does not depend on the device. A data module
    with an attribute ``digest`` gives its own.
    """
    if isinstance(data, capabilities.DigestedData):
        return data.digest
    digest = hashlib.sha256()
    if isinstance(data, capabilities.TextData):
        digest.update("\n".join(data.corpus.words).encode())
        for name, words in data.corpus.splits.items():
            _update(digest, name, words)
    elif isinstance(data, capabilities.SplitData) and all(isinstance(s.images, Tensor) for s in data.splits.values()):
        for name, split in data.splits.items():
            for part, values in (("examples", split.images), ("labels", split.labels)):
                if values is not None:
                    _update(digest, f"{name} {part}", values)
    else:
        return None
    return digest.hexdigest()


def _update(digest: Any, name: str, values: Tensor | np.ndarray) -> None:
    kind = str(values.dtype).removeprefix("torch.")
    digest.update(f"{name} {kind} {tuple(values.shape)}".encode())
    for begin in range(0, len(values), BLOCK):
        block = values[begin : begin + BLOCK]
        block = block.cpu().numpy() if isinstance(block, Tensor) else block
        digest.update(np.ascontiguousarray(block))
