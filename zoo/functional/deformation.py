"""Images bent at random: what a network should not mind of an image, it is shown."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.functional.densities import at_least_float32


def deform(x: Tensor, affine: Tensor, bumps: Tensor, strength: float) -> Tensor:
    """Images bent by a smooth displacement: a random affine map and bumps between 4 x 4 points.

    Args:
        x: (B, 1, H, W).
        affine: standard normal, (B, 2, 3).
        bumps: standard normal, (B, 2, 4, 4).
        strength: standard deviation of the affine map's entries about the identity, where an image reaches from -1 to 1
            on both axes; the bumps have two thirds of it. 0 changes nothing.
    """
    if strength == 0 or not len(x):
        return x
    x = at_least_float32(x)
    affine, bumps = affine.to(x.dtype), bumps.to(x.dtype)
    grid = F.affine_grid(
        torch.eye(2, 3, dtype=x.dtype, device=x.device) + strength * affine, list(x.shape), align_corners=False
    )
    bumps = F.interpolate(bumps, size=x.shape[-2:], mode="bicubic", align_corners=True)
    return F.grid_sample(x, grid + strength * 2 / 3 * bumps.permute(0, 2, 3, 1), align_corners=False)
