"""What the latents of a model mean, as pictures: reconstructions, traversals, and the manifold of two latents."""

import math
from pathlib import Path

import torch
from torch import Tensor

from zoo.callbacks.cadence import AtEpochs
from zoo.callbacks.grids import write_grid
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.pixels import as_batch
from zoo.checks.values import check_whole
from zoo.functional.latents import Categorical, Gaussian


class Latents(AtEpochs):
    """Draw validation images beside their reconstructions, and what each latent changes.

    ``reconstructions/epoch_000.png``: originals, each with the mean of p(x | z) under it. ``traversals/epoch_000.png``,
    where the model's latents have one prior for all: a row for each latent that is varied.
    ``manifold/epoch_000.png``: the plane of two Gaussian latents. Nothing here is random, and training is not touched.

    Args:
        folder: the run folder.
        n: images to reconstruct.
        every_n_epochs: how often; the last epoch is always drawn.

    Raises:
        UserError: for ``n`` or ``every_n_epochs`` below 1; at set-up, for a model without ``reconstruct``.
    """

    def __init__(self, folder: str, n: int = 40, every_n_epochs: int = 5):
        check_whole("n", n)
        super().__init__(every_n_epochs)
        self.folder, self.n = Path(folder), n

    def setup(self, trainer, pl_module, stage):
        if not isinstance(pl_module, capabilities.Reconstructs):
            raise UserError(f"{type(pl_module).__name__} has no method reconstruct(x), so there is nothing to draw")

    @torch.no_grad()
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx != 0 or not self.due(trainer) or not trainer.is_global_zero:
            return
        pictures = {"reconstructions": beside(*reconstructions(pl_module, batch, self.n))}
        if isinstance(pl_module, capabilities.Traversable):
            rows = traverse(pl_module, as_batch(batch)[0])
            pictures["traversals"] = (rows.flatten(0, 1), rows.shape[1])
            if pl_module.latents is Gaussian and pl_module.latent_shape == (2,):
                pictures["manifold"] = (manifold(pl_module, 20), 20)
        for name, (images, columns) in pictures.items():
            write_grid(
                trainer, images.cpu(), self.folder / name / f"epoch_{trainer.current_epoch:03d}.png", name, columns
            )


@torch.no_grad()
def traverse(model, x: Tensor, rows: int = 10, steps: int = 9) -> Tensor:
    """Means of p(x | z) as one latent at a time is varied, the others at the most probable z of the first image.

    Gaussian latents go from -3 to 3; binary ones from 0 to 1; categorical ones through their categories.

    Args:
        model: a VAE, or another model whose latents are Traversable (zoo/checks/capabilities.py).
        x: images in [0, 1], (B, 1, 28, 28); latents are ranked by their mean divergence from the prior over these.
        rows: latents to vary, those of the largest divergence.
        steps: values of each, for Gaussian latents.

    Returns:
        (rows, values, 1, 28, 28), rows at most D.
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
    """Means of p(x | z) over the plane of two Gaussian latents, at quantiles of the prior (Kingma & Welling, fig. 4).

    Returns:
        (side^2, 1, 28, 28), row by row.

    Raises:
        UserError: unless the latents are two Gaussians.
    """
    if model.latents is not Gaussian or model.latent_shape != (2,):
        raise UserError(f"a manifold is drawn of 2 Gaussian latents; this model has {model.latent_shape}")
    quantiles = (torch.arange(side, device=model.device) + 0.5) / side
    z = math.sqrt(2) * torch.erfinv(2 * quantiles - 1)
    return model.decode(torch.cartesian_prod(-z, z).flip(-1))


def reconstructions(model, batch, n: int) -> tuple[Tensor, Tensor]:
    """The first ``n`` images of a batch and their reconstructions, given their labels where the model wants them."""
    x, *labels = (t[:n] for t in as_batch(batch))
    return x, model.reconstruct(x, y=labels[0] if labels else None)


def beside(originals: Tensor, reconstructed: Tensor, columns: int = 10) -> tuple[Tensor, int]:
    """Rows of originals, each followed by a row of reconstructions: images (n, ...) each to (2 n, ...)."""
    rows = [part for pair in zip(originals.split(columns), reconstructed.split(columns), strict=True) for part in pair]
    if len(originals) % columns and len(originals) > columns:  # the last two rows are short: keep whole ones
        rows = rows[:-2]
    return torch.cat(rows), min(columns, len(originals))
