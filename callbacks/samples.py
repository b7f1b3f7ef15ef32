"""Callback that writes grids of samples to the run folder and to every logger that accepts images."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from zoo.callbacks.cadence import AtEpochs, logged_step
from zoo.callbacks.ema import evaluation_weights
from zoo.callbacks.grids import log_samples, write_grid
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.values import check_integer
from zoo.sampling.chunks import check_conditions, sample_chunks, try_conditions
from zoo.sampling.pictures import picture
from zoo.training.ranks import shows_progress


class Samples(AtEpochs):
    """Draw a grid of samples during validation.

    Samples use averaged weights if the run has EMA. The noise is the same in every epoch, so the pictures differ only
    because the model changes. The processes share the work. The pixels do not depend on the number of processes. On
    CPUs, this requires the same number of threads in each process. The callback does not affect training.

    At the end of the run, Weights & Biases receives a table of the last samples with their labels.

    Args:
        folder: folder of the pictures, ``epoch_000.png``, ``epoch_001.png``, ...
        n: samples per grid. Models with classes draw a few more samples, because each class has a full row.
        every_n_epochs: epochs between grids. The last epoch always has one.
        every_n_steps: training batches between additional grids ``step_000500.png``, ``step_001000.png``, ... If it is
            None, there are no additional grids. Additional grids also use averaged weights. In these grids, BatchNorm
            uses its running statistics.
        seed: seed of the noise, at least 0.
        conditions: arguments of ``model.sample``, such as ``{num_steps: 50}``.

    Raises:
        UserError: if a number is too small. ``setup`` raises it if the model has no ``sample``, or if
            ``sample`` does not accept a condition.
    """

    def __init__(
        self,
        folder: str,
        n: int = 64,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        seed: int = 0,
        conditions: dict[str, Any] | None = None,
    ):
        check_integer("n", n)
        super().__init__(every_n_epochs)
        if every_n_steps is not None:
            check_integer("every_n_steps, where it is not null,", every_n_steps)
        check_integer("seed", seed, least=0)
        if not isinstance(conditions or {}, Mapping):
            raise UserError(
                f"conditions is {conditions!r}, but must be a mapping of names to values, such as {{num_steps: 50}}"
            )
        self.folder, self.n, self.seed = Path(folder), n, seed
        self.every_n_steps, self.conditions = every_n_steps, dict(conditions or {})
        self._last: tuple[Tensor, list[Any] | None, int] | None = None  # samples, labels and step of the last picture

    def setup(self, trainer, pl_module, stage):
        self.conditions = check_conditions(pl_module, self.conditions)

    def on_train_start(self, trainer, pl_module):
        # Try the conditions now, so that a wrong one raises before the first epoch.
        n, conditions, _ = picture(pl_module, self.n, self.conditions)
        try:
            with isolate_rng():
                try_conditions(pl_module, n, conditions)
        except UserError as error:
            raise UserError(f"callbacks.samples.conditions={self.conditions}: {error}") from error

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0 and self.due(trainer):
            self._draw(trainer, pl_module, f"epoch_{trainer.current_epoch:03d}.png")

    def batches_until_due(self, trainer) -> float:
        every = self.every_n_steps
        return math.inf if every is None else every - (trainer.fit_loop.total_batch_idx + 1) % every

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        step = trainer.fit_loop.total_batch_idx + 1
        if self.every_n_steps is not None and step % self.every_n_steps == 0:
            with evaluation_weights(trainer, pl_module):
                self._draw(trainer, pl_module, f"step_{step:06d}.png")

    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        if self._last is not None:
            samples, labels, step = self._last
            log_samples(trainer, samples, labels, step, self.seed)

    def _draw(self, trainer, pl_module, name: str) -> None:
        n, conditions, columns = picture(pl_module, self.n, self.conditions)
        progress, rank, world_size = shows_progress(trainer), trainer.global_rank, trainer.world_size
        with isolate_rng():
            part = sample_chunks(pl_module, n, self.seed, rank, world_size, progress, **conditions)
        images = trainer.strategy.reduce(part.to(pl_module.device), reduce_op="sum").cpu()
        if trainer.is_global_zero:
            labels, caption = _labels(pl_module, n, conditions, columns)
            self._last = images, labels, logged_step(trainer)
            write_grid(trainer, images, self.folder / name, "samples", columns, caption)


def _labels(model, n: int, conditions: dict[str, Any], columns: int) -> tuple[list[Any] | None, str]:
    """Return the labels of ``n`` samples, and a text that names the label of each row of the picture.

    A label is the value of the condition that ``rows()`` of the model names. The labels are None, and the text is
    empty, if the model has no labels or draws them at random.
    """
    rows = model.rows() if isinstance(model, capabilities.SampleRows) else None
    value = conditions.get(rows[0]) if rows else None
    if rows is None or value is None:
        return None, ""
    labels = list(value) if isinstance(value, list | tuple) else [value] * n
    firsts = labels[::columns]
    same = all(label == firsts[i // columns] for i, label in enumerate(labels))  # one label for each row
    shown = firsts if same else labels
    return labels, f"{rows[0]} {'of the rows' if same else 'row by row'}: {' '.join(map(str, shown))}"
