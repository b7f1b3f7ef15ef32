"""Callback that draws the effect of each continuous code of a model on its samples."""

from pathlib import Path

import torch

from zoo.callbacks.cadence import AtEpochs
from zoo.callbacks.grids import write_grid
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.values import check_integer
from zoo.functional.noise import chunk_generator


class Codes(AtEpochs):
    """Draw a grid of samples for each continuous code: ``code0_epoch_000.png``, ``code1_epoch_000.png``, ...

    Each column has one category. Each row has one value of the code, from -2 to 2. The noise is the same in every
    epoch. The callback does not affect training.

    Args:
        folder: folder of the pictures.
        every_n_epochs: epochs between pictures. The last epoch is always drawn.
        seed: seed of the noise, at least 0.

    Raises:
        UserError: if a number is too small. ``setup`` raises it if the model has no ``vary``.
    """

    def __init__(self, folder: str, every_n_epochs: int = 5, seed: int = 0):
        super().__init__(every_n_epochs)
        check_integer("seed", seed, least=0)
        self.folder, self.seed = Path(folder), seed

    def setup(self, trainer, pl_module, stage):
        if not isinstance(pl_module, capabilities.Codes):
            raise UserError(
                f"{type(pl_module).__name__} has no method vary(code), which Codes needs: remove the callback"
            )

    @torch.no_grad()
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx != 0 or not self.due(trainer) or not trainer.is_global_zero:
            return
        for code in range(pl_module.hparams.num_continuous):
            grid = pl_module.vary(code, generator=chunk_generator(self.seed, 0)).cpu()
            path = self.folder / f"code{code}_epoch_{trainer.current_epoch:03d}.png"
            caption = "one category for each column, and one value of the code for each row, from -2 to 2"
            write_grid(trainer, grid.flatten(0, 1), path, f"code{code}", grid.shape[1], caption)
