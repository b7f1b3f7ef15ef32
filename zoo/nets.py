"""Networks that two or more models use."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checks.errors import UserError
from zoo.checks.values import check_whole, check_widths


def mlp(widths: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of the given widths, input first, with ``activation`` between them and none after the last."""
    layers = []
    for d_in, d_out in pairwise(widths):
        layers += [nn.Linear(d_in, d_out), activation()]
    return nn.Sequential(*layers[:-1])


class ConvEncoder(nn.Module):
    """Images (B, 1, 28, 28) to features (B, out_features): two strided convolutions, 28 -> 14 -> 7, and a layer."""

    def __init__(self, out_features: int, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1),  # (B, width, 14, 14)
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),  # (B, 2 width, 7, 7)
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 49, out_features),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ConvDecoder(nn.Module):
    """Latents (..., D) to one value per pixel (..., 1, 28, 28): the mirror image of :class:`ConvEncoder`."""

    def __init__(self, in_features: int, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, 2 * width * 49),
            nn.ReLU(),
            nn.Unflatten(1, (2 * width, 7, 7)),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),  # (B, width, 14, 14)
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),  # (B, 1, 28, 28)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z.flatten(0, -2)).unflatten(0, z.shape[:-1])


class ConvGenerator(nn.Module):
    """Noise (B, D) to images (B, 1, 28, 28) in [-1, 1], as DCGAN has it (Radford et al. 2016), for 28 pixels a side.

    A layer to 7 x 7, then transposed convolutions 7 -> 14 -> 28, batch normalisation before each rectifier, tanh last;
    convolutions begin at N(0, 0.02^2).
    """

    def __init__(self, in_features: int, width: int = 32):
        super().__init__()
        self.project = nn.Sequential(
            nn.Linear(in_features, 2 * width * 49, bias=False),
            nn.BatchNorm1d(2 * width * 49),
            nn.ReLU(),
            nn.Unflatten(1, (2 * width, 7, 7)),
        )
        self.upsample = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),  # (B, width, 14, 14)
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),  # (B, 1, 28, 28)
            nn.Tanh(),
        ).to(memory_format=torch.channels_last)
        _normal_convolutions(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.upsample(self.project(z))


class ConvTrunk(nn.Module):
    """Images (B, 1, 28, 28) to features (B, 98 width): DCGAN's discriminator without its last layer.

    Strided convolutions 28 -> 14 -> 7 and leaky rectifiers, the second after normalisation.

    Args:
        width: channels at 14 x 14 pixels.
        norm: over each image by itself, ``layer``; or over the ``batch``, which makes what is said of one image depend
            on the others, so that it has no place where the gradient of each is penalised.
    """

    def __init__(self, width: int = 32, norm: Literal["layer", "batch"] = "layer"):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1),  # (B, width, 14, 14)
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),  # (B, 2 width, 7, 7)
            nn.BatchNorm2d(2 * width) if norm == "batch" else nn.GroupNorm(1, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        ).to(memory_format=torch.channels_last)
        self.out_features = 98 * width
        _normal_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SequenceGenerator(nn.Module):
    """Uniform noise (B, T, K) to sequences of T symbols out of K, one after the other (seed 001's recurrent network).

    A gated recurrent unit reads v_{t-1} and gives the logits mu_t of K_t ~ softmax(mu_t); v_t is K_t's one-hot vector
    by the Gumbel-max trick, or its relaxation at a temperature.

    Args:
        symbols: K.
        length: T.
        width: of the recurrent state.
    """

    def __init__(self, symbols: int, length: int, width: int = 64):
        super().__init__()
        self.symbols, self.length, self.width = symbols, length, width
        self.cell = nn.GRUCell(symbols, width)
        self.head = nn.Linear(width, symbols)

    def unroll(self, B: int, symbol: Callable[[int, Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences v and the logits that each symbol was drawn from, (B, T, K) both; ``symbol(t, logits)`` is v_t."""
        h, v = like.new_zeros(B, self.width), like.new_zeros(B, self.symbols)
        drawn, logits = [], []
        for t in range(self.length):
            h = self.cell(v, h)
            logits.append(self.head(h))
            v = symbol(t, logits[-1])
            drawn.append(v)
        return torch.stack(drawn, 1), torch.stack(logits, 1)

    def forward(self, u: Tensor, symbol: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Sequences (B, T, K) from uniform noise (B, T, K); ``symbol(logits, u)``: (B, K) each to v_t."""
        return self.unroll(len(u), lambda t, logits: symbol(logits, u[:, t]), u)[0]

    def log_probability(self, v: Tensor) -> Tensor:
        """log p(v) of one-hot sequences (B, T, K), nats; (B,)."""
        _, logits = self.unroll(len(v), lambda t, _: v[:, t], v)
        return (v * logits.log_softmax(-1)).sum((-2, -1))


def _normal_convolutions(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(m.weight, std=0.02)


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
        embedding = self.time(timestep_embedding(t, self.time_dim))  # (B, dim)
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
