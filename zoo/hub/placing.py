"""The device and the precision of a loaded model: ``zoo.load("ddpm", device="cuda", dtype="bfloat16")``."""

from pathlib import Path

import torch
from lightning import LightningModule

from zoo.checks.errors import UserError
from zoo.checks.names import did_you_mean
from zoo.functional.precision import has_float64
from zoo.hub.loading import load

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_on(
    source: str | Path,
    model_class: type[LightningModule] | None = None,
    device: str | int | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
) -> LightningModule:
    """Load a trained model onto a device, in a precision. :func:`zoo.load` calls this function and explains it.

    Raises:
        UserError: if there is no such device, or if the device has no such precision. No file has been read then.
        CheckpointError: if the model cannot be loaded.
    """
    where, precision = as_device(device), None if dtype is None else as_dtype(dtype)
    if precision is torch.float64 and not has_float64(where):
        raise UserError(f"{where} has no float64: give dtype=float32, or device=cpu")
    model = load(source, model_class)
    return model.to(where) if precision is None else model.to(where, precision)


def as_device(device: str | int | torch.device) -> torch.device:
    """Return a device of this machine.

    Raises:
        UserError: if ``device`` is not the CPU or an accelerator that this machine has. The message names these.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind, number = (accelerator.type, torch.accelerator.device_count()) if accelerator else ("", 0)
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):  # torch raises both for a device that it does not know
        found = None
    if found is not None and (str(found) in ("cpu", "cpu:0") or (found.type == kind and (found.index or 0) < number)):
        return found
    known = {0: "cpu", 1: f"cpu or {kind}"}.get(number, f"cpu, {kind}, or {kind}:0 to {kind}:{number - 1}")
    raise UserError(f"on this machine, device must be {known}; got {str(device)!r}")


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the type of floating-point numbers with a name such as ``bfloat16`` or ``torch.bfloat16``.

    Raises:
        UserError: if the type is not one of ``DTYPES``.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}; got {name!r}.{did_you_mean(name, DTYPES)}")
    return DTYPES[name]
