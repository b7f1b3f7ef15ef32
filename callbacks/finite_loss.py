"""Stop a run that has diverged, with an error that names the step and the values that are NaN or infinite."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch

from zoo.checks.errors import UserError
from zoo.training.executions import Executions, takes_executions
from zoo.training.shell import pasted


class NotFinite(UserError):
    """Error for a NaN or infinite loss or weight. The message names the step, the values and the last checkpoint."""


def deferred(tensors: list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    """Return a function that returns copies of ``tensors`` on the CPU.

    Copies from a GPU run in the background. The returned function waits for these copies, but not for later work of the
    GPU.
    """
    if not tensors or not tensors[0].is_cuda:
        copies = [t.detach().to("cpu", copy=True) for t in tensors]
        return lambda: copies
    here, copied = [torch.empty_like(t, device="cpu", pin_memory=True) for t in tensors], torch.cuda.Event()
    for own, there in zip(here, tensors, strict=True):
        own.copy_(there, non_blocking=True)
    copied.record()

    def values() -> list[torch.Tensor]:
        copied.synchronize()
        return here

    return values


def not_finite(state: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted paths of tensors with NaN or infinite values in nested dictionaries and lists."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point() and not state.isfinite().all():
            yield path
    elif isinstance(state, dict | list):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from not_finite(value, f"{path}.{key}" if path else str(key))


class Terms(NamedTuple):
    """Buffers for the terms of all steps whose terms have the same names.

    Attributes:
        rows: one row for each step, (n, 1 + number of names): number of the step, then the terms.
        steps: number of rows in use, (1,).
    """

    rows: torch.Tensor
    steps: torch.Tensor


class Pending(NamedTuple):
    """Terms of an execution that have not been checked yet.

    Attributes:
        first: number of the first batch.
        epoch: number of the epoch.
        names: names of the terms, for each :class:`Terms`.
        values: function that returns the tensors of all :class:`Terms` on the CPU.
    """

    first: int
    epoch: int
    names: list[tuple[str, ...]]
    values: Callable[[], list[torch.Tensor]]


class FiniteLoss(L.Callback):
    """Stop the run when a term of the loss or a weight becomes NaN or infinite, before a checkpoint is saved.

    The terms are the named tensors that ``training_step`` returns. The callback records the terms of every step on the
    device, and checks them after each execution. On a GPU, it checks them after the next execution, so that training
    does not wait for the copy. Before every checkpoint, the callback also checks the weights, the averaged weights and
    the state of the optimisers.

    Args:
        folder: the run folder. The error names its file ``checkpoints/last.ckpt`` as the last good checkpoint.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self._terms: dict[tuple[str, ...], Terms] = {}
        self._step = torch.zeros(())  # number of steps in ``_terms``, (), on the device
        self._rows = 1  # largest number of steps in ``_terms``
        self._looked_at = -1  # number of the last batch whose terms were passed to ``_pending``
        self._pending: Pending | None = None

    def on_train_start(self, trainer, pl_module):
        loop = trainer.fit_loop.epoch_loop
        self._rows = loop.most if isinstance(loop, Executions) else 1
        self._terms, self._step, self._pending = {}, torch.zeros((), device=pl_module.device), None
        self._looked_at = trainer.fit_loop.total_batch_idx

    def batches_until_due(self, trainer) -> float:
        return math.inf

    @torch.no_grad()
    def after_step(self, trainer, pl_module, outputs):
        """Record the terms of one step on the device. A term that is not a scalar is replaced by its mean."""
        named = {k: v for k, v in (outputs or {}).items() if isinstance(v, torch.Tensor)}
        if named:
            names = tuple(named)
            if names not in self._terms:
                self._terms[names] = Terms(
                    torch.zeros(self._rows, 1 + len(names), device=self._step.device),
                    torch.zeros(1, dtype=torch.long, device=self._step.device),
                )
            rows, count = self._terms[names]
            means = [(v if v.ndim == 0 else v.mean()).to(rows.device, rows.dtype) for v in named.values()]
            rows.index_copy_(0, count, torch.stack([self._step, *means])[None])
            count.add_(1)
        self._step.add_(1)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not takes_executions(trainer):
            self.after_step(trainer, pl_module, outputs)
        self._look()
        self._collect(trainer)
        if not self._step.is_cuda:
            self._look()

    def _collect(self, trainer) -> None:
        """Take the terms of the steps since the last call, and begin again with no steps."""
        tensors = [t for terms in self._terms.values() for t in terms]
        self._pending = Pending(self._looked_at + 1, trainer.current_epoch, list(self._terms), deferred(tensors))
        for _, count in self._terms.values():
            count.zero_()
        self._step.zero_()
        self._looked_at = trainer.fit_loop.total_batch_idx

    def on_train_epoch_end(self, trainer, pl_module):
        self._look()
        if trainer.fit_loop.total_batch_idx > self._looked_at:  # the model has skipped the rest of the epoch
            self._collect(trainer)
            self._look()

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self._look()
        # Check the averaged weights, the trained weights, and the moments of the optimisers. Adam would never again
        # change a weight with an infinite second moment.
        states = {key: checkpoint.get(key) for key in ("state_dict", "current_model_state", "optimizer_states")}
        wrong = [path.removeprefix("state_dict.") for path in not_finite(states)]
        if wrong:
            self._pending = None
            raise NotFinite(
                f"the checkpoint after step {trainer.fit_loop.total_batch_idx} (epoch {trainer.current_epoch}) would "
                f"have NaN or infinite values in {', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}. "
                f"{self._advice()}"
            )

    def _look(self) -> None:
        if self._pending is None:
            return
        first, epoch, names, values = self._pending
        self._pending = None  # report the values once, although more hooks call this method while the run ends
        found, bad = values(), []
        for names_of, rows, count in zip(names, found[::2], found[1::2], strict=True):
            rows = rows[: int(count)]
            bad += [(row, names_of) for row in rows[~rows.isfinite().all(1)][:1].tolist()]
        if bad:
            (step, *terms), names_of = min(bad)
            wrong = [f"{k} = {v:g}" for k, v in zip(names_of, terms, strict=True) if not math.isfinite(v)]
            right = [f"{k} = {v:g}" for k, v in zip(names_of, terms, strict=True) if math.isfinite(v)]
            others = f" ({', '.join(right)})" if right else ""
            raise NotFinite(f"at step {first + int(step)} (epoch {epoch}) {', '.join(wrong)}{others}. {self._advice()}")

    def _advice(self) -> str:
        last = self.folder / "checkpoints" / "last.ckpt"
        good = f"The last good checkpoint is {pasted(last)}." if last.is_file() else "There is no checkpoint yet."
        return f"Training has diverged. {good} Try a lower learning rate"
