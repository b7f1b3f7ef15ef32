"""Networks that take an example and a step index or noise level: a U-Net for images, an MLP for points."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checks.errors import UserError
from zoo.checks.values import check_fraction, check_integer, check_widths
from zoo.nets.layers import mlp
from zoo.nets.sizes import crop, pad_to_multiple


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Return cosines and sines of ``t`` at the frequencies 10000^(-2 i / dim), i < dim/2; (B, dim).

    See Vaswani et al. 2017, sec. 3.5.

    Args:
        t: step indices or noise levels, (B,).
        dim: size of the embedding, even.
    """
    frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResidualBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions; Ho et al. 2020, appendix B.

    Between the convolutions, a linear function of the step embedding is added to each channel.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        embedding_dim: size of the step embedding.
        dropout: fraction of the inputs of the second convolution that training sets to 0.
        attention: whether self-attention follows the block.
    """

    def __init__(self, c_in: int, c_out: int, embedding_dim: int, dropout: float = 0.0, attention: bool = False):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.shift = nn.Linear(embedding_dim, c_out)
        self.norm2 = nn.GroupNorm(8, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # every block starts as its skip connection
        nn.init.zeros_(self.conv2.bias)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.attention = SelfAttention(c_out) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, c_out, H, W)
        h = h + self.shift(embedding)[:, :, None, None]
        return self.attention(self.skip(x) + self.conv2(self.dropout(F.silu(self.norm2(h)))))


class SelfAttention(nn.Module):
    """Self-attention over the H W positions of a feature map, with a residual connection."""

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
    """Fully connected network that maps points (B, D) and step indices or noise levels (B,) to points (B, D).

    Its activations are smooth, because the explicit and sliced score-matching losses differentiate the network with
    respect to its input.

    Args:
        dim: dimension of the points, D.
        hidden: widths of the hidden layers.
        num_classes: number of labels, as for :class:`UNet`.
    """

    def __init__(self, dim: int = 2, hidden: Sequence[int] = (128, 128, 128), num_classes: int | None = None):
        super().__init__()
        self.time_dim = 16
        label_dim = 0 if num_classes is None else self.time_dim
        self.layers = mlp([dim + self.time_dim + label_dim, *hidden, dim], nn.SiLU)
        nn.init.zeros_(self.layers[-1].weight)  # an untrained network predicts zero
        nn.init.zeros_(self.layers[-1].bias)
        self.label = None if num_classes is None else nn.Embedding(num_classes + 1, label_dim)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the prediction (B, D) for points ``x`` (B, D) at steps or noise levels ``t`` (B,).

        ``y`` (B,) are the labels of a conditional network, and None for other networks.
        """
        found = [x, timestep_embedding(t, self.time_dim)]
        return self.layers(torch.cat(found if y is None else [*found, self.label(y)], 1))


def check_unet(
    widths: object,
    blocks: object,
    patch: object,
    attention: object = (),
    dropout: object = 0.0,
    shape: Sequence[int] | None = None,
) -> None:
    """Check the sizes of a :class:`UNet`, and that it fits images of ``shape`` (C, H, W).

    Raises:
        UserError: if a size is not allowed. Also if padding would at least double the longer side of the images.
    """
    check_widths("widths", widths, (32, 96))
    if any(width % 8 for width in widths):
        raise UserError(f"widths must be multiples of 8, one per level, got {list(widths)}")
    check_integer("blocks", blocks)
    check_integer("patch", patch)
    levels = isinstance(attention, list | tuple) and all(type(n) is int and 0 <= n < len(widths) for n in attention)
    if not levels or len(set(attention)) < len(attention):
        raise UserError(
            f"attention must be a list of different levels from 0 to {len(widths) - 1}, one level for each of the "
            f"{len(widths)} widths, got {attention!r}"
        )
    check_fraction("dropout", dropout)
    multiple = patch * 2 ** (len(widths) - 1)
    if shape is not None and multiple >= 2 * max(shape[-2:]):
        raise UserError(
            f"patch={patch} and {len(widths)} widths need a side of more than {multiple // 2} pixels, the images "
            f"have {shape[-2]} x {shape[-1]}: choose fewer widths or a smaller patch"
        )


class UNet(nn.Module):
    """U-Net that maps images and a step index or noise level to images of the same shape.

    The first operation folds each ``patch`` x ``patch`` block of pixels into channels (pixel-unshuffle). The last
    operation turns channels into blocks again. A 28 x 28 image with ``patch`` = 2 takes about as long as a 14 x 14
    image with ``patch`` = 1. Each level has ``blocks`` residual blocks in the downward half and ``blocks`` + 1 in the
    upward half.

    Images can have any sides. Sides that are not multiples of patch * 2^(levels - 1) are padded with zeros, and the
    output is cropped. Self-attention is always between the two blocks at the lowest resolution, which is 7 x 7 for
    28 x 28 images by default.

    Args:
        channels: channels of the images.
        widths: channels of each level, highest resolution first, multiples of 8. Residual blocks of 8 channels ignore
            the step and the label, because GroupNorm then removes every constant from a channel.
        blocks: residual blocks of each level.
        patch: side of the folded blocks in pixels. 1 turns folding off.
        num_classes: number of labels of a conditional network. None makes the network unconditional. The label
            ``num_classes``, one more than the last label, means "no label".
        attention: levels where self-attention also follows every residual block. Level 0 has the highest resolution.
            Level l of images of side S has the side S / (patch 2^l).
        dropout: dropout rate of the residual blocks, at least 0 and below 1.

    Raises:
        UserError: if an argument has a value that is not allowed.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (64, 128),
        blocks: int = 2,
        patch: int = 2,
        num_classes: int | None = None,
        attention: Sequence[int] = (),
        dropout: float = 0.0,
    ):
        super().__init__()
        check_unet(widths, blocks, patch, attention, dropout)
        self.patch, self.multiple = patch, patch * 2 ** (len(widths) - 1)
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
                self.down.append(ResidualBlock(c, width, dim, dropout, level in attention))
                c = width
                skips.append(c)
        self.middle = nn.ModuleList(
            [ResidualBlock(c, c, dim, dropout), SelfAttention(c), ResidualBlock(c, c, dim, dropout)]
        )
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(ResidualBlock(c + skips.pop(), width, dim, dropout, level in attention))
                c = width
            if level > 0:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, c, 3, padding=1)))
        self.out = nn.Sequential(nn.GroupNorm(8, c), nn.SiLU(), nn.Conv2d(c, channels * patch**2, 3, padding=1))
        nn.init.zeros_(self.out[-1].weight)  # an untrained network predicts zero for every input
        nn.init.zeros_(self.out[-1].bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the prediction (B, C, H, W) for images ``x`` at steps or noise levels ``t`` (B,).

        Args:
            x: images, (B, C, H, W).
            t: step indices or noise levels, (B,).
            y: labels, (B,), or None.
        """
        if not len(x):
            return x  # pixel_unshuffle does not fold an empty batch
        shape, x = x.shape, pad_to_multiple(x, self.multiple)
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
        return crop(F.pixel_shuffle(self.out(h), self.patch), shape)
