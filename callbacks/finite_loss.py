"""A run that has diverged stops, and says where."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from zoo.checks.errors import UserError
from zoo.training.shell import pasted


class NotFinite(UserError):
    """A loss or weights that are infinite or no numbers; the message says when, which, and from where to go on."""


def later(flag: torch.Tensor) -> Callable[[], bool]:
    """What ``flag`` is, to be asked for later: of a GPU, without waiting for more than has made it."""
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
    """The places of tensors with infinite values or no numbers in nested dictionaries and lists."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point() and not state.isfinite().all():
            yield path
    elif isinstance(state, dict | list):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from not_finite(value, f"{path}.{key}" if path else str(key))


class FiniteLoss(L.Callback):
    """Stop where a term of the loss is infinite or not a number, before any checkpoint holds what came of it.

    Terms are those that ``training_step`` returns, by name. They are looked at one batch later, so that a GPU is not
    waited for, and before every checkpoint, whose weights, averages and optimisers are looked at, too.

    Args:
        folder: the run folder, whose ``checkpoints/last.ckpt`` is the last good one.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self._seen: tuple[int, int, dict[str, torch.Tensor], Callable[[], bool]] | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._look()
        terms = {k: v.detach() for k, v in (outputs or {}).items() if isinstance(v, torch.Tensor)}
        if terms:
            finite = torch.stack([v.isfinite().all() for v in terms.values()]).all()
            self._seen = (trainer.fit_loop.total_batch_idx, trainer.current_epoch, terms, later(finite))

    def on_train_epoch_end(self, trainer, pl_module):
        self._look()

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self._look()
        # Averages, what they are of, and the moments of optimisers: an infinite one holds its weight for ever.
        states = {key: checkpoint.get(key) for key in ("state_dict", "current_model_state", "optimizer_states")}
        wrong = [path.removeprefix("state_dict.") for path in not_finite(states)]
        if wrong:
            self._seen = None
            raise NotFinite(
                f"after step {trainer.fit_loop.total_batch_idx} (epoch {trainer.current_epoch}) what would be saved "
                f"is not finite: {', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}. {self._advice()}"
            )

    def _look(self) -> None:
        if self._seen is None or self._seen[3]():
            return
        step, epoch, terms, _ = self._seen
        self._seen = None  # what is left to do on the way out is no further news
        wrong = [f"{k} = {v.float().mean().item():g}" for k, v in terms.items() if not v.isfinite().all()]
        right = [f"{k} = {v.float().mean().item():g}" for k, v in terms.items() if v.isfinite().all()]
        others = f" (beside {', '.join(right)})" if right else ""
        raise NotFinite(f"at step {step} (epoch {epoch}) {', '.join(wrong)}{others}. {self._advice()}")

    def _advice(self) -> str:
        last = self.folder / "checkpoints" / "last.ckpt"
        good = f"the last good checkpoint is {pasted(last)}" if last.is_file() else "there is no checkpoint yet"
        return f"Training has diverged; {good}. A lower learning rate helps most often"
