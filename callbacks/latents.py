"""What the latents of a model mean, as pictures: reconstructions, traversals, and the manifold of two latents."""

import inspect
from pathlib import Path

import lightning as L
import torch

from zoo.callbacks.grids import write_grid
from zoo.checks.errors import UserError
from zoo.checks.values import check_whole


class Latents(L.Callback):
    """Draw validation images beside their reconstructions, and what each latent changes.

    ``reconstructions/epoch_000.png``: originals, each with the mean of p(x | z) under it. ``traversals/epoch_000.png``,
    where the model has ``traverse``: a row for each latent that is varied. ``manifold/epoch_000.png``: the plane of two
    Gaussian latents. Nothing here is random, and training is not touched.

    Args:
        folder: the run folder.
        n: images to reconstruct.
        every_n_epochs: how often; the last epoch is always drawn.

    Raises:
        UserError: for ``n`` or ``every_n_epochs`` below 1; at set-up, for a model without ``reconstruct``.
    """

    def __init__(self, folder: str, n: int = 40, every_n_epochs: int = 5):
        check_whole("n", n)
        check_whole("every_n_epochs", every_n_epochs)
        self.folder, self.n, self.every_n_epochs = Path(folder), n, every_n_epochs

    def setup(self, trainer, pl_module, stage):
        if not callable(getattr(pl_module, "reconstruct", None)):
            raise UserError(f"{type(pl_module).__name__} has no method reconstruct(x), so there is nothing to draw")

    @torch.no_grad()
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        epoch = trainer.current_epoch + 1
        due = epoch == trainer.max_epochs or epoch % self.every_n_epochs == 0
        if trainer.sanity_checking or batch_idx != 0 or not due or not trainer.is_global_zero:
            return
        pictures = {"reconstructions": beside(*reconstructions(pl_module, batch, self.n))}
        if hasattr(pl_module, "traverse"):
            rows = pl_module.traverse(batch[0])
            pictures["traversals"] = (rows.flatten(0, 1), rows.shape[1])
        if hasattr(pl_module, "manifold") and pl_module.latent_shape == (2,) and pl_module.hparams.latent == "gaussian":
            pictures["manifold"] = (pl_module.manifold(20), 20)
        for name, (images, columns) in pictures.items():
            write_grid(trainer, images.cpu(), self.folder / name / f"epoch_{epoch - 1:03d}.png", name, columns)


def reconstructions(model, batch, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``n`` images of a batch and their reconstructions, given their labels where the model wants them."""
    x, y = batch[0][:n], batch[1][:n]
    takes_labels = "y" in inspect.signature(model.reconstruct).parameters
    return x, model.reconstruct(x, y) if takes_labels else model.reconstruct(x)


def beside(originals: torch.Tensor, reconstructed: torch.Tensor, columns: int = 10) -> tuple[torch.Tensor, int]:
    """Rows of originals, each followed by a row of reconstructions: images (n, ...) each to (2 n, ...)."""
    rows = [part for pair in zip(originals.split(columns), reconstructed.split(columns), strict=True) for part in pair]
    if len(originals) % columns and len(originals) > columns:  # the last two rows are short: keep whole ones
        rows = rows[:-2]
    return torch.cat(rows), min(columns, len(originals))
