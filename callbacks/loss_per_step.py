"""Callback that draws the validation loss at each step of a diffusion, or at each noise level."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from zoo.callbacks.cadence import AtEpochs
from zoo.callbacks.grids import write_grid
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.values import check_integer
from zoo.sampling.pictures import as_image
from zoo.training.ranks import exact_sum


class LossPerStep(AtEpochs):
    """Draw the validation loss against the step of a diffusion, or against the noise level of a score model.

    The picture is ``loss_per_step/epoch_000.png``. The ``validation_step`` of the model returns
    ``{"step": (B,), "losses": (B,)}``. If it returns None, no picture is drawn. The steps are grouped into at most
    ``bins`` equal bins. Each point is the mean loss of one bin, over the examples of all processes.

    Args:
        folder: the run folder.
        every_n_epochs: epochs between pictures. The last epoch is always drawn.
        bins: largest number of bins, at least 1. A model with fewer steps has one bin for each step.

    Raises:
        UserError: if a number is below 1. ``setup`` raises it if the model has no ``num_steps``.
    """

    def __init__(self, folder: str, every_n_epochs: int = 2, bins: int = 50):
        super().__init__(every_n_epochs)
        check_integer("bins", bins)
        self.folder, self.bins = Path(folder), bins

    def setup(self, trainer, pl_module, stage):
        if not isinstance(pl_module, capabilities.ManySteps):
            raise UserError(
                f"{type(pl_module).__name__} has no num_steps, so LossPerStep cannot draw its loss: remove the callback"
            )

    def on_validation_epoch_start(self, trainer, pl_module):
        self.steps = pl_module.num_steps
        bins = min(self.bins, max(1, self.steps))
        self.sums = torch.zeros(2, bins, dtype=torch.float64)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if outputs is None:  # the model has no noise levels
            return
        which = outputs["step"].cpu() * self.sums.shape[1] // self.steps
        self.sums[0].scatter_add_(0, which, outputs["losses"].cpu().double())
        self.sums[1].scatter_add_(0, which, torch.ones(len(which), dtype=torch.float64))

    def on_validation_epoch_end(self, trainer, pl_module):
        if not self.due(trainer):
            return
        sums, counts = exact_sum(self.sums, trainer)
        if not trainer.is_global_zero or not counts.any():
            return
        path = self.folder / "loss_per_step" / f"epoch_{trainer.current_epoch:03d}.png"
        write_grid(trainer, as_image(_figure(sums / counts, self.steps)), path, "loss_per_step", 1)


def _figure(means: torch.Tensor, steps: int) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    width = steps / len(means)
    seen = [(k + 0.5) * width for k, mean in enumerate(means) if mean.isfinite()]
    means = means[means.isfinite()]
    axes.plot(seen, means.tolist(), marker=".")
    axes.set(xlabel="step", ylabel="validation loss", xlim=(0, steps), yscale="log" if means.min() > 0 else "linear")
    axes.grid(alpha=0.3)
    return figure
