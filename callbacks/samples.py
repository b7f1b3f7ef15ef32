"""A grid of samples, as a picture in the run folder and in every logger that takes images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng

from zoo.callbacks.cadence import AtEpochs
from zoo.callbacks.ema import judged
from zoo.callbacks.grids import write_grid
from zoo.checks.errors import UserError
from zoo.checks.values import check_whole
from zoo.sampling.chunks import check_conditions, sample_chunks, try_conditions
from zoo.sampling.pictures import picture
from zoo.training.ranks import shows_progress


class Samples(AtEpochs):
    """Draw samples during validation, where averaged weights are in place, and leave training as it was.

    The same seed gives the same noise in every epoch, so that pictures show the model changing and nothing else, and
    the same pixels on any number of processes, which share the work (on CPUs, if each has as many threads).

    Args:
        folder: where ``epoch_000.png``, ... go.
        n: samples per grid, or a few more where the model draws whole rows, one for each of its classes.
        every_n_epochs: how often; the last epoch is always drawn.
        every_n_steps: None, or draw also after every so many batches, ``step_000500.png``, ... with the weights that
            validation would judge. Batch normalisation then has the statistics of training.
        seed: of the noise.
        conditions: handed on to ``model.sample``, such as ``{num_steps: 50}``.

    Raises:
        UserError: for ``n``, ``every_n_epochs`` or ``every_n_steps`` below 1; at set-up, for a model without
            ``sample`` or a condition that it does not take.
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
        check_whole("n", n)
        super().__init__(every_n_epochs)
        if every_n_steps is not None:
            check_whole("every_n_steps, where it is not null,", every_n_steps)
        check_whole("seed", seed, least=0)
        if not isinstance(conditions or {}, Mapping):
            raise UserError(f"conditions must be names with values, such as {{num_steps: 50}}, got {conditions!r}")
        self.folder, self.n, self.seed = Path(folder), n, seed
        self.every_n_steps, self.conditions = every_n_steps, dict(conditions or {})

    def setup(self, trainer, pl_module, stage):
        self.conditions = check_conditions(pl_module, self.conditions)

    def on_train_start(self, trainer, pl_module):
        # Conditions that do not fit, such as more steps than the model has, fail here and not after an epoch.
        n, conditions, _ = picture(pl_module, self.n, self.conditions)
        try:
            with isolate_rng():
                try_conditions(pl_module, n, conditions)
        except UserError as error:
            raise UserError(f"callbacks.samples.conditions={self.conditions}: {error}") from error

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0 and self.due(trainer):
            self._draw(trainer, pl_module, f"epoch_{trainer.current_epoch:03d}.png")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        step = trainer.fit_loop.total_batch_idx + 1
        if self.every_n_steps is not None and step % self.every_n_steps == 0:
            with judged(trainer, pl_module):
                self._draw(trainer, pl_module, f"step_{step:06d}.png")

    def _draw(self, trainer, pl_module, name: str) -> None:
        n, conditions, columns = picture(pl_module, self.n, self.conditions)
        progress, rank, world_size = shows_progress(trainer), trainer.global_rank, trainer.world_size
        with isolate_rng():
            part = sample_chunks(pl_module, n, self.seed, rank, world_size, progress, **conditions)
        images = trainer.strategy.reduce(part.to(pl_module.device), reduce_op="sum").cpu()
        if trainer.is_global_zero:
            write_grid(trainer, images, self.folder / name, "samples", columns)
