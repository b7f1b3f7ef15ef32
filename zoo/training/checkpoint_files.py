"""Checkpoints that are written whole or not at all."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from zoo.checks.errors import UserError
from zoo.training.files import written_whole


class CheckpointNotWritten(UserError):
    """A checkpoint that the disk did not take; the message says which, and what it lacks."""


def clear_unfinished(folder: Path) -> None:
    """Remove from ``folder`` what a process that was killed while it wrote has left."""
    for left in folder.glob(".*.ckpt-????????"):
        left.unlink(missing_ok=True)


class CheckpointFiles(TorchCheckpointIO):
    """Write checkpoints beside their place, on the same disk, and move them there once they are on it.

    Whatever happens to the process or the machine meanwhile, what was there before is still there, or the new one is.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, which is in a folder of this machine.

        Raises:
            CheckpointNotWritten: if the disk is full, or cannot be written to.
        """
        path = Path(path)
        content = io.BytesIO()  # torch hides what goes wrong with a file
        torch.save(checkpoint, content)
        try:
            with written_whole(path) as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointNotWritten(
                f"{path} cannot be written, {len(content.getbuffer()) / 1e6:.1f} MB: {error.strerror}. Make room, or "
                "choose another folder with hydra.run.dir=...; what there was before is whole, so the run can go on "
                "from the last checkpoint in it"
            ) from error
