"""Checkpoints that are written whole or not at all."""

import io
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from zoo.checks.errors import UserError
from zoo.training.files import written_whole

log = logging.getLogger(__name__)


class CheckpointNotWritten(UserError):
    """A checkpoint that the disk did not take; the message says which, and what it lacks."""


def clear_unfinished(folder: Path) -> None:
    """Remove from ``folder`` what a process that was killed while it wrote has left."""
    for left in folder.glob(".*.ckpt-????????"):
        left.unlink(missing_ok=True)


def take_best_along(checkpoint: dict[str, Any], callback: ModelCheckpoint, resumed: Path, writes: bool) -> None:
    """Let ``callback``, which saves to another folder than when it was saved, go on from the best score so far.

    The best checkpoints are copied to the new folder. Where one is gone, a line says that the best is chosen anew.

    Args:
        checkpoint: that is resumed from; the state of ``callback`` in it is changed.
        callback: whose state in ``checkpoint`` has another ``dirpath``.
        resumed: the file of ``checkpoint``, beside which a best one is looked for, too.
        writes: whether this process copies.
    """
    state = (checkpoint.get("callbacks") or {}).get(callback.state_key)
    if not state or callback.dirpath is None or state.get("dirpath") in (None, callback.dirpath):
        return
    folder, moved = Path(callback.dirpath), {"": ""}
    for path in (state["best_model_path"], state["last_model_path"], *state["best_k_models"]):
        moved[path] = str(folder / Path(path).name) if path else ""
    kept = [path for path in dict.fromkeys([state["best_model_path"], *state["best_k_models"]]) if path]
    for path in kept if callback.monitor is not None else []:
        places = [p for p in (Path(path), resumed.parent / Path(path).name, Path(moved[path])) if p.is_file()]
        if not places:
            if writes:
                log.warning(
                    "The best checkpoint so far, %s, is gone: the best is chosen among the epochs to come", path
                )
            state |= {"best_model_path": "", "best_model_score": None, "best_k_models": {}, "kth_value": None}
            state |= {"kth_best_model_path": "", "last_model_path": "", "dirpath": callback.dirpath}
            state["kth_value"] = callback.kth_value
            return
        if writes and places[0].resolve() != Path(moved[path]).resolve():
            with places[0].open("rb") as old, written_whole(Path(moved[path])) as new:
                shutil.copyfileobj(old, new)
    for key in ("best_model_path", "last_model_path", "kth_best_model_path"):
        state[key] = moved.get(state[key], state[key])
    state["best_k_models"] = {moved[path]: score for path, score in state["best_k_models"].items()}
    state["dirpath"] = callback.dirpath


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
