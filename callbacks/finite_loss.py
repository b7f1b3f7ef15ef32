"""Stop a run that has diverged, with an error that names the step and the values that are NaN or infinite."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from zoo.checks.errors import UserError
from zoo.training.shell import pasted


class NotFinite(UserError):
    """Error for a NaN or infinite loss or weight. The message names the step, the values and the last checkpoint."""


def deferred_bool(flag: torch.Tensor) -> Callable[[], bool]:
    """Return a function that returns ``bool(flag)``.

    A flag on a GPU is copied in the background. The returned function waits for this copy only, and not for later work.
    """
    if not flag.is_cuda:
        return lambda: bool(flag)
    here, copied = torch.empty_like(flag, device="cpu", pin_memory=True), torch.cuda.Event()
    here.copy_(flag, non_blocking=True)
    copied.record()

    def value() -> bool:
        copied.synchronize()
        return bool(here)

    return value


def not_finite(state: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted paths of tensors with NaN or infinite values in nested dictionaries and lists."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point() and not state.isfinite().all():
            yield path
    elif isinstance(state, dict | list):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from not_finite(value, f"{path}.{key}" if path else str(key))


class FiniteLoss(L.Callback):
    """Stop the run when a term of the loss or a weight becomes NaN or infinite, before a checkpoint is saved.

    The terms are the named tensors that ``training_step`` returns. The callback checks the terms of a batch after the
    next batch, so that training does not wait for the GPU. Before every checkpoint, the callback also checks the
    weights, the averaged weights and the state of the optimisers.

    Args:
        folder: the run folder. The error names its file ``checkpoints/last.ckpt`` as the last good checkpoint.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self._seen: tuple[int, int, dict[str, torch.Tensor], Callable[[], bool]] | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._look()
        terms = {k: v.detach() for k, v in (outputs or {}).items() if isinstance(v, torch.Tensor)}
        if terms:
            finite = torch.stack([v.isfinite().all() for v in terms.values()]).all()
            self._seen = (trainer.fit_loop.total_batch_idx, trainer.current_epoch, terms, deferred_bool(finite))

    def on_train_epoch_end(self, trainer, pl_module):
        self._look()

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self._look()
        # Check the averaged weights, the trained weights, and the moments of the optimisers. Adam would never again
        # change a weight with an infinite second moment.
        states = {key: checkpoint.get(key) for key in ("state_dict", "current_model_state", "optimizer_states")}
        wrong = [path.removeprefix("state_dict.") for path in not_finite(states)]
        if wrong:
            self._seen = None
            raise NotFinite(
                f"the checkpoint after step {trainer.fit_loop.total_batch_idx} (epoch {trainer.current_epoch}) would "
                f"have NaN or infinite values in {', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}. "
                f"{self._advice()}"
            )

    def _look(self) -> None:
        if self._seen is None or self._seen[3]():
            return
        step, epoch, terms, _ = self._seen
        self._seen = None  # report the values once, although more hooks call this method while the run ends
        wrong = [f"{k} = {v.float().mean().item():g}" for k, v in terms.items() if not v.isfinite().all()]
        right = [f"{k} = {v.float().mean().item():g}" for k, v in terms.items() if v.isfinite().all()]
        others = f" ({', '.join(right)})" if right else ""
        raise NotFinite(f"at step {step} (epoch {epoch}) {', '.join(wrong)}{others}. {self._advice()}")

    def _advice(self) -> str:
        last = self.folder / "checkpoints" / "last.ckpt"
        good = f"The last good checkpoint is {pasted(last)}." if last.is_file() else "There is no checkpoint yet."
        return f"Training has diverged. {good} Try a lower learning rate"
