"""Callback that draws reconstructions, traversals of the latents, and the manifold of two Gaussian latents."""

import math
from pathlib import Path

import torch
from torch import Tensor

from zoo.callbacks.cadence import AtEpochs
from zoo.callbacks.grids import write_grid
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.pixels import as_batch
from zoo.checks.values import check_integer
from zoo.functional.latents import Categorical, Gaussian


class Latents(AtEpochs):
    """Draw validation images with their reconstructions, and the effect of each latent.

    - ``reconstructions/epoch_000.png`` shows originals, each with the mean of p(x | z) below it.
    - ``traversals/epoch_000.png`` has one row for each of at most ten latents. Along a row, only its latent varies.
      The picture is drawn if all latents of the model have the same prior.
    - ``manifold/epoch_000.png`` shows images on a grid in the plane of the latents. The picture is drawn if the model
      has exactly two Gaussian latents.

    The pictures use no random numbers. The callback does not affect training.

    Args:
        folder: the run folder.
        n: number of images to reconstruct.
        every_n_epochs: epochs between pictures. The last epoch is always drawn.

    Raises:
        UserError: if ``n`` or ``every_n_epochs`` is below 1. ``setup`` raises it if the model has no
            ``reconstruct``.
    """

    def __init__(self, folder: str, n: int = 40, every_n_epochs: int = 5):
        check_integer("n", n)
        super().__init__(every_n_epochs)
        self.folder, self.n = Path(folder), n

    def setup(self, trainer, pl_module, stage):
        if not isinstance(pl_module, capabilities.Reconstructs):
            raise UserError(
                f"{type(pl_module).__name__} has no method reconstruct(x), which Latents needs: remove the callback"
            )

    @torch.no_grad()
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx != 0 or not self.due(trainer) or not trainer.is_global_zero:
            return
        found = interleave_rows(*reconstructions(pl_module, batch, self.n))
        caption = f"rows of originals, each above its reconstructions{self._labels(pl_module, batch, len(found[0]))}"
        pictures = {"reconstructions": (*found, caption)}
        if isinstance(pl_module, capabilities.Traversable):
            rows = traverse(pl_module, as_batch(batch)[0])
            caption = "one latent varies in each row, and the first row has the largest KL"
            pictures["traversals"] = (rows.flatten(0, 1), rows.shape[1], caption)
            if pl_module.latents is Gaussian and pl_module.latent_shape == (2,):
                pictures["manifold"] = (manifold(pl_module, 20), 20, "quantiles of the two latents")
        for name, (images, columns, caption) in pictures.items():
            path = self.folder / name / f"epoch_{trainer.current_epoch:03d}.png"
            write_grid(trainer, images.cpu(), path, name, columns, caption)

    @staticmethod
    def _labels(model, batch, images: int) -> str:
        """Return a text with the labels of the originals, if the model uses labels. They are half of ``images``."""
        _, *labels = as_batch(batch)
        rows = model.rows() if isinstance(model, capabilities.SampleRows) else None
        if not labels or rows is None or rows[0] != "y":
            return ""
        return f", y row by row: {' '.join(map(str, labels[0][: images // 2].tolist()))}"


@torch.no_grad()
def traverse(model, x: Tensor, rows: int = 10, steps: int = 9) -> Tensor:
    """Return the means of p(x | z) while one latent varies and the others keep their most probable values.

    The most probable values come from q(z | x) of the first image. Gaussian latents vary from -3 to 3. Binary latents
    take the values 0 and 1. Categorical latents take each of their categories.

    Args:
        model: a VAE or another model that is Traversable (zoo/checks/capabilities.py).
        x: images in [0, 1], (B, C, H, W). The latents are ranked by their mean KL( q(z | x) || p(z) ) on these
            images.
        rows: number of latents to vary. These are the latents with the largest mean KL.
        steps: number of values for each Gaussian latent.

    Returns:
        (rows, values, C, H, W). A model with fewer than ``rows`` latents has one row for each latent.
    """
    q = model.encode(x)
    ranked = q.kls().mean(0).argsort(descending=True)[:rows]
    if model.latents is Gaussian:
        values = torch.linspace(-3, 3, steps, device=x.device)
    else:
        values = torch.tensor([0.0, 1.0], device=x.device)
    if model.latents is Categorical:
        values = torch.eye(model.latent_shape[1], device=x.device)
    z = q.mode()[0].repeat(len(ranked), len(values), *[1] * len(model.latent_shape))  # (rows, values, D) or (..., D, K)
    for row, latent in enumerate(ranked):
        z[row, :, latent] = values
    return model.decode(z)


@torch.no_grad()
def manifold(model, side: int = 20) -> Tensor:
    """Return the means of p(x | z) on a grid of two Gaussian latents, at quantiles of the prior.

    This is the manifold of Kingma & Welling, fig. 4.

    Args:
        model: a model with two Gaussian latents.
        side: number of quantiles of each latent.

    Returns:
        (side^2, C, H, W), row by row.

    Raises:
        UserError: unless the model has exactly two Gaussian latents.
    """
    if model.latents is not Gaussian or model.latent_shape != (2,):
        raise UserError(f"the model has latents of shape {model.latent_shape}; a manifold needs 2 Gaussian latents")
    quantiles = (torch.arange(side, device=model.device) + 0.5) / side
    z = math.sqrt(2) * torch.erfinv(2 * quantiles - 1)
    return model.decode(torch.cartesian_prod(-z, z).flip(-1))


def reconstructions(model, batch, n: int) -> tuple[Tensor, Tensor]:
    """Return the first ``n`` images of a batch and their reconstructions. Labels in the batch go to the model."""
    x, *labels = (t[:n] for t in as_batch(batch))
    return x, model.reconstruct(x, y=labels[0] if labels else None)


def interleave_rows(originals: Tensor, reconstructed: Tensor, columns: int = 10) -> tuple[Tensor, int]:
    """Return images in alternating rows of originals and reconstructions, (2 n, ...), and the number of columns.

    If the last row of originals is incomplete, it is left out together with its reconstructions. The result then has
    fewer than 2 n images. If there is only one row of originals, it is kept.

    Args:
        originals: images, (n, ...).
        reconstructed: their reconstructions, (n, ...).
        columns: images per row.
    """
    rows = [part for pair in zip(originals.split(columns), reconstructed.split(columns), strict=True) for part in pair]
    if len(originals) % columns and len(originals) > columns:  # the last two rows are incomplete
        rows = rows[:-2]
    return torch.cat(rows), min(columns, len(originals))
