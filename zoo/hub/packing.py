"""The bytes of a safetensors file: the weights of a model in float32 or in float16, and its constructor arguments."""

import hashlib
import json
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.names import did_you_mean
from zoo.hub.loading import from_weights

STORED_AS = {"float32": torch.float32, "float16": torch.float16}


class Packed(NamedTuple):
    """The content of a safetensors file.

    Attributes:
        data: bytes of the file.
        digest: SHA-256 of the bytes.
        parameters: number of floating-point values in the file.
        stored_as: type of the parameters in the file.
        kept: names of the networks whose parameters are in float32 although ``stored_as`` is float16.
        model: the model that ``zoo.load`` returns from this file.
    """

    data: bytes
    digest: str
    parameters: int
    stored_as: str
    kept: tuple[str, ...]
    model: Any


def default_type(model) -> str:
    """Return the type in which the parameters of a model are stored, if the user names none."""
    return "float16" if isinstance(model, capabilities.Words) else "float32"


def pack(model: Any, checkpoint: dict[str, Any], name: str, stored_as: str, kept: tuple[str, ...] = ()) -> Packed:
    """Return the content of the file of weights of ``model``.

    Args:
        model: the trained model.
        checkpoint: its training checkpoint, with the name and the constructor arguments of the model.
        name: name of the checkpoint in errors.
        stored_as: ``float32``, or ``float16`` for matrices and kernels in half precision. Biases and scales keep their
            types, because they are small and their rounding moves all outputs in one direction. Buffers keep theirs,
            because they hold statistics and counts. ``zoo.load`` returns float32 from both.
        kept: names of networks of the model that stay in float32 if ``stored_as`` is float16, such as ``critic``.

    Raises:
        UserError: if ``stored_as`` is another type, or a matrix has a value outside the range of float16. Also if
            ``kept`` has a name that is no network of the model, or is not empty and ``stored_as`` is float32.
    """
    if stored_as not in STORED_AS:
        raise UserError(f"weights are stored as {' or '.join(STORED_AS)}, got {stored_as!r}")
    networks = [network for network, module in model.named_children() if any(True for _ in module.parameters())]
    for network in kept:
        if network not in networks:
            known = ", ".join(networks) or "none"
            raise UserError(f"{network!r} is no network of {name}, which has {known}.{did_you_mean(network, networks)}")
        if stored_as == "float32":
            raise UserError(f"{network} stays in float32 only if the others are stored as float16: add --dtype float16")
    metadata = {"model": checkpoint["model"], "hyper_parameters": json.dumps(checkpoint["hyper_parameters"])}
    words = isinstance(model, capabilities.Words)
    tensors = (model.published if words else model.state_dict)()
    matrices = {
        key
        for key, p in model.named_parameters(remove_duplicate=False)
        if p.ndim > 1 and key.partition(".")[0] not in kept
    }
    stored = {
        key: _converted(key, tensor, STORED_AS[stored_as]) if key in matrices else tensor.contiguous()
        for key, tensor in tensors.items()
    }
    data = _in_one_order(save_tensors(stored, metadata=metadata))
    digest, size = hashlib.sha256(data).hexdigest(), sum(t.numel() for t in stored.values() if t.is_floating_point())
    return Packed(data, digest, size, stored_as, kept, from_weights(data, digest, name))


def _in_one_order(data: bytes) -> bytes:
    """Return the content of a safetensors file with sorted metadata, so that equal weights have one digest.

    safetensors writes metadata in a random order. A file is the length of its header in 8 bytes, the header in JSON,
    padded with spaces, and the tensors.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _converted(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a parameter in ``dtype``.

    Raises:
        UserError: if a finite value becomes infinite.
    """
    converted = tensor.to(dtype).contiguous()
    if (converted.isinf() & ~tensor.isinf()).any():
        raise UserError(
            f"{key} has a value of {float(tensor.abs().max()):.4g}, and float16 ends at "
            f"{torch.finfo(dtype).max:,.0f}: store these weights as float32"
        )
    return converted
