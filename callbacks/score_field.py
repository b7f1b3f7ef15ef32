"""Callback that compares the learned score of points in the plane with the true score."""

from pathlib import Path

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from zoo.callbacks.cadence import AtEpochs
from zoo.callbacks.grids import write_grid
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.values import check_integer
from zoo.evaluation import fields
from zoo.sampling.pictures import as_image


class ScoreField(AtEpochs):
    """Log ``val/fisher_divergence`` and ``val/log_density_gap``, and draw ``field/epoch_000.png``.

    zoo/evaluation/fields.py defines both values.

    Args:
        folder: the run folder.
        every_n_epochs: epochs between measurements. The last epoch always has one.
        samples: number of samples for ``val/log_density_gap``.

    Raises:
        UserError: if a number is below 1. ``setup`` raises it if the model has no score of all data, or if the score
            of the data is unknown.
    """

    def __init__(self, folder: str, every_n_epochs: int = 10, samples: int = 1000):
        super().__init__(every_n_epochs)
        check_integer("samples", samples)
        self.folder, self.samples = Path(folder), samples

    def setup(self, trainer, pl_module, stage):
        data, hparams = trainer.datamodule, pl_module.hparams
        known = isinstance(data, capabilities.DrawnData) and isinstance(data.distribution, capabilities.KnownScore)
        if not known or not isinstance(pl_module, capabilities.ScoreChains):
            raise UserError(
                "ScoreField needs a score model and points with a known density: use model=score with data=mixture, "
                "ring, moons or swiss_roll"
            )
        if hparams.get("num_classes") is not None and hparams.get("label_dropout") == 0:
            raise UserError(
                "ScoreField compares the score of all data, and label_dropout is 0, so the model never learns it: set "
                "model.label_dropout=0.1"
            )

    @torch.no_grad()
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx != 0 or not self.due(trainer):
            return
        distribution = trainer.datamodule.distribution
        with isolate_rng():
            measured = fields.measure_field(pl_module, distribution, samples=self.samples)
        found = {"fisher_divergence": measured.fisher_divergence, "log_density_gap": measured.log_density_gap}
        for name, number in found.items():
            value = torch.tensor(number)  # all processes have the same value
            pl_module.log(f"val/{name}", value, on_epoch=True, batch_size=1, sync_dist=True)
        if trainer.is_global_zero:
            image = as_image(fields.figure(pl_module, distribution))
            write_grid(trainer, image, self.folder / "field" / f"epoch_{trainer.current_epoch:03d}.png", "field", 1)
