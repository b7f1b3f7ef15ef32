"""Random smooth deformations of images, to which the clusters of a network should be invariant."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.functional.densities import at_least_float32


def deform(x: Tensor, affine: Tensor, bumps: Tensor, strength: float) -> Tensor:
    """Return images after a smooth displacement of their pixels, (B, C, H, W).

    The displacement is a random affine map plus random bumps, interpolated between 4 x 4 points.

    Args:
        x: images, (B, C, H, W).
        affine: standard normal, (B, 2, 3).
        bumps: standard normal, (B, 2, 4, 4).
        strength: standard deviation of the entries of the affine map, which has the identity as its mean. The bumps
            have 2/3 of this standard deviation. Image coordinates run from -1 to 1 on both axes. A strength of 0
            returns the images unchanged.
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
