"""Write checkpoints atomically: a checkpoint file is complete or does not exist."""

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
from zoo.training.files import atomic_write

log = logging.getLogger(__name__)


class CheckpointNotWritten(UserError):
    """A checkpoint could not be written. The message has its path and the reason."""


def clear_unfinished(folder: Path) -> None:
    """Remove the unfinished checkpoint files that a killed process has left in ``folder``."""
    for left in folder.glob(".*.ckpt-????????"):
        left.unlink(missing_ok=True)


def keep_best(checkpoint: dict[str, Any], callback: ModelCheckpoint, resumed: Path, writes: bool) -> None:
    """Keep the best score and the best checkpoints when a run resumes in another folder.

    The best checkpoints are copied to the new folder. If one of these files is missing, the function logs a warning,
    and the best checkpoint is chosen from the remaining epochs.

    Args:
        checkpoint: the checkpoint to resume from. The function changes the state of ``callback`` in ``checkpoint``.
        callback: the ModelCheckpoint of the new run.
        resumed: the file of ``checkpoint``. A best checkpoint that is not at its recorded path is searched in the
            folder of this file.
        writes: whether this process copies files and logs the warning.
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
                    "The best checkpoint so far, %s, is missing. The best one is chosen from the remaining epochs", path
                )
            state |= {"best_model_path": "", "best_model_score": None, "best_k_models": {}, "kth_value": None}
            state |= {"kth_best_model_path": "", "last_model_path": "", "dirpath": callback.dirpath}
            state["kth_value"] = callback.kth_value
            return
        if writes and places[0].resolve() != Path(moved[path]).resolve():
            with places[0].open("rb") as old, atomic_write(Path(moved[path])) as new:
                shutil.copyfileobj(old, new)
    for key in ("best_model_path", "last_model_path", "kth_best_model_path"):
        state[key] = moved.get(state[key], state[key])
    state["best_k_models"] = {moved[path]: score for path, score in state["best_k_models"].items()}
    state["dirpath"] = callback.dirpath


class CheckpointFiles(TorchCheckpointIO):
    """Write each checkpoint to a temporary file in its folder, then rename it.

    If the process or the machine stops during the write, ``path`` holds either the complete old checkpoint or the
    complete new one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to the local file ``path``.

        Raises:
            CheckpointNotWritten: if the disk is full or cannot be written to.
        """
        path = Path(path)
        content = io.BytesIO()  # torch.save to a file would hide the reason of an OSError
        torch.save(checkpoint, content)
        try:
            with atomic_write(path) as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointNotWritten(
                f"{path} ({len(content.getbuffer()) / 1e6:.1f} MB) cannot be written: {error.strerror}. "
                "Free disk space, or choose another folder with hydra.run.dir=... "
                "The earlier checkpoints are complete: resume from the last of them"
            ) from error
