"""Networks of an example and a step index or noise level: a U-Net for images, layers for points."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checks.errors import UserError
from zoo.checks.values import check_whole, check_widths
from zoo.nets.layers import mlp


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sines and cosines of ``t`` at the frequencies 10000^(-2 i / dim), i < dim/2; Vaswani et al. 2017, sec. 3.5.

    Args:
        t: step indices or noise levels, (B,).
        dim: size of the embedding, even.

    Returns:
        (B, dim).
    """
    frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a shift by the embedding of the step; Ho et al. 2020, appendix B."""

    def __init__(self, c_in: int, c_out: int, embedding_dim: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.shift = nn.Linear(embedding_dim, c_out)
        self.norm2 = nn.GroupNorm(8, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # every block starts as the identity
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, c_out, H, W)
        h = h + self.shift(embedding)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class SelfAttention(nn.Module):
    """Attention over the H W positions of a feature map, with a residual connection."""

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).flatten(2)  # (B, 3 C, H W)
        q, k, v = qkv.view(B, 3, self.heads, C // self.heads, H * W).transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, H W, C / heads)
        return x + self.out(h.transpose(-1, -2).reshape(B, C, H, W))


class PointNet(nn.Module):
    """Points and a step index or noise level to points, by layers with smooth activations, of which derivatives exist.

    Args:
        dim: D.
        hidden: widths of the hidden layers.
    """

    def __init__(self, dim: int = 2, hidden: Sequence[int] = (128, 128, 128)):
        super().__init__()
        self.time_dim = 16
        self.layers = mlp([dim + self.time_dim, *hidden, dim], nn.SiLU)
        nn.init.zeros_(self.layers[-1].weight)  # the first prediction is zero
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict for points ``x`` (B, D) at ``t`` (B,); (B, D)."""
        return self.layers(torch.cat([x, timestep_embedding(t, self.time_dim)], 1))


def check_unet(widths: object, blocks: object, patch: object) -> None:
    """Refuse what are no sizes of a :class:`UNet`."""
    check_widths("widths", widths, (32, 96))
    if any(width % 8 for width in widths):
        raise UserError(f"widths must be multiples of 8, one per level, got {list(widths)}")
    check_whole("blocks", blocks)
    check_whole("patch", patch)


class UNet(nn.Module):
    """Images and a step index to images of the same shape, by a U-Net on patches.

    Pixels are folded into channels first (``patch`` x ``patch`` blocks, pixel-unshuffle) and unfolded last, so that a
    28 x 28 image costs what a 14 x 14 one does. Each level has ``blocks`` residual blocks on the way down and one more
    on the way up; the lowest level, 7 x 7 by default, has attention.

    Args:
        channels: of the images.
        widths: channels of each level, the highest resolution first; multiples of 8.
        blocks: residual blocks per level.
        patch: side of the folded blocks in pixels; 1 folds nothing.
        num_classes: of labels that the prediction may depend on, or None; the network then knows one more, number
            ``num_classes``, which stands for no label.
        side: of the images that it is for, in pixels; others that divide as well will do.

    Raises:
        UserError: for widths that are not multiples of 8, ``blocks`` or ``patch`` below 1, or a side that does not
            divide by patch * 2^(levels - 1).
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (64, 128),
        blocks: int = 2,
        patch: int = 2,
        num_classes: int | None = None,
        side: int = 28,
    ):
        super().__init__()
        check_unet(widths, blocks, patch)
        self.patch, self.multiple = patch, patch * 2 ** (len(widths) - 1)
        if side % self.multiple:
            raise UserError(
                f"{side} pixels do not divide by patch * 2^(levels - 1) = {self.multiple}: take fewer widths or "
                "another patch"
            )
        dim = 4 * widths[0]
        self.time_dim = widths[0]
        self.time = nn.Sequential(nn.Linear(widths[0], dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.label = None if num_classes is None else nn.Embedding(num_classes + 1, dim)
        self.conv_in = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)

        self.down = nn.ModuleList()
        skips, c = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            if level > 0:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                skips.append(c)
            for _ in range(blocks):
                self.down.append(ResidualBlock(c, width, dim))
                c = width
                skips.append(c)
        self.middle = nn.ModuleList([ResidualBlock(c, c, dim), SelfAttention(c), ResidualBlock(c, c, dim)])
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(ResidualBlock(c + skips.pop(), width, dim))
                c = width
            if level > 0:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, c, 3, padding=1)))
        self.out = nn.Sequential(nn.GroupNorm(8, c), nn.SiLU(), nn.Conv2d(c, channels * patch**2, 3, padding=1))
        nn.init.zeros_(self.out[-1].weight)  # the first prediction is zero, whatever the input
        nn.init.zeros_(self.out[-1].bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict for images ``x`` (B, C, H, W) at steps or noise levels ``t`` (B,), given labels ``y`` (B,).

        H and W must divide by patch * 2^(levels - 1).
        """
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise UserError(f"image sides must be multiples of {self.multiple}, got {tuple(x.shape[-2:])}")
        if not len(x):
            return x  # there is nothing to fold
        x, embedding = x.to(self.conv_in.weight.dtype), timestep_embedding(t, self.time_dim)
        embedding = self.time(embedding.to(x.dtype))  # (B, dim)
        if y is not None:
            embedding = embedding + self.label(y)
        h = self.conv_in(F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, ResidualBlock) else layer(h)
            skips.append(h)
        block1, attention, block2 = self.middle
        h = block2(attention(block1(h, embedding)), embedding)
        for layer in self.up:
            if isinstance(layer, ResidualBlock):
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
            else:
                h = layer(h)
        return F.pixel_shuffle(self.out(h), self.patch)
