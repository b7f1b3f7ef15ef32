"""Generators and discriminators: convolutional networks as in DCGAN, fully connected and recurrent networks."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.checks.errors import UserError
from zoo.checks.values import check_integer, check_widths
from zoo.functional.densities import at_least_float32
from zoo.nets.layers import Layers, mlp

IMAGE = [1, 28, 28]


def check_networks(network: str, shape: Sequence[int], width: int, hidden: Sequence[int], z_dim: int) -> None:
    """Check the sizes of a generator and a discriminator.

    Raises:
        UserError: if a size is not allowed.
    """
    check_widths("shape", shape, IMAGE)
    check_widths("hidden", hidden, [256, 256])
    check_integer("width", width)
    check_integer("z_dim", z_dim)
    if network == "conv" and list(shape) != IMAGE:
        raise UserError(
            f"network=conv makes images of shape {IMAGE}; for examples of shape {list(shape)} set model.network=mlp"
        )


def make_generator(network: str, z_dim: int, shape: Sequence[int], width: int, hidden: Sequence[int]) -> nn.Module:
    """Return a generator that maps noise (B, z_dim) to examples (B, *shape).

    Images are in [-1, 1]. Other examples are unbounded.
    """
    if network == "conv":
        return ConvGenerator(z_dim, width)
    layers = mlp([z_dim, *hidden, math.prod(shape)])
    return Layers(*layers, nn.Unflatten(1, tuple(shape)), nn.Tanh() if is_image(shape) else nn.Identity())


def make_discriminator(
    network: str, shape: Sequence[int], width: int, hidden: Sequence[int], norm: str = "layer"
) -> nn.Module:
    """Return a discriminator that maps examples (B, *shape) to one unbounded number each, (B, 1).

    The number is the logit of a discriminator or the score of a critic. ``norm``, ``layer`` or ``batch``, is the
    normalisation of ``conv``. Fully connected networks have none.
    """
    if network == "conv":
        trunk = ConvTrunk(width, norm)
        normalise = nn.BatchNorm1d(256) if norm == "batch" else nn.LayerNorm(256)
        return nn.Sequential(trunk, nn.Linear(trunk.out_features, 256), normalise, nn.LeakyReLU(0.2), nn.Linear(256, 1))
    return Layers(nn.Flatten(), *mlp([math.prod(shape), *hidden, 1], lambda: nn.LeakyReLU(0.2)))


def is_image(shape: Sequence[int]) -> bool:
    """Return whether examples of this shape are images, which the networks need in [-1, 1]."""
    return list(shape) == IMAGE


def centre(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return images scaled from [0, 1] to [-1, 1]. Return other examples unchanged."""
    return 2 * x - 1 if is_image(shape) else x


def uncentre(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return images scaled from [-1, 1] to [0, 1] and clipped, and other examples unchanged; at least float32."""
    x = at_least_float32(x)
    return (x / 2 + 0.5).clamp(0, 1) if is_image(shape) else x


class ConvGenerator(nn.Module):
    """Generator of images (B, 1, 28, 28) in [-1, 1] from noise (B, D), after DCGAN (Radford et al. 2016).

    A linear layer makes 7 x 7 pixels. Two transposed convolutions double the side: 7 -> 14 -> 28. BatchNorm comes
    before each ReLU. The last operation is tanh. Weights of convolutions are initialised from N(0, 0.02^2).
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
        return self.upsample(self.project(z.to(self.project[0].weight.dtype)))


class ConvTrunk(nn.Module):
    """Network from images (B, 1, 28, 28) to features (B, 98 width): DCGAN's discriminator without its last layer.

    Two strided convolutions halve the side: 28 -> 14 -> 7. A leaky ReLU follows each convolution. Normalisation comes
    before the second leaky ReLU.

    Args:
        width: channels at 14 x 14 pixels.
        norm: ``layer`` normalises each image separately. ``batch`` is BatchNorm. With BatchNorm, the output for one
            image depends on the other images of the batch. Do not combine BatchNorm with a gradient penalty, because
            the penalty needs a separate gradient for each image.
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
        return self.layers(x.to(self.layers[0].weight.dtype))


class SequenceGenerator(nn.Module):
    """Recurrent generator that maps uniform noise (B, T, K) to sequences of T symbols, each one of K; [Xu18a].

    At step t a gated recurrent unit reads v_{t-1}. A linear layer returns the logits mu_t of a symbol
    K_t ~ softmax(mu_t). The Gumbel-max trick draws K_t. v_t is the one-hot vector of K_t or a relaxation of it.

    Args:
        symbols: number of symbols K.
        length: length of a sequence T.
        width: size of the recurrent state.
    """

    def __init__(self, symbols: int, length: int, width: int = 64):
        super().__init__()
        self.symbols, self.length, self.width = symbols, length, width
        self.cell = nn.GRUCell(symbols, width)
        self.head = nn.Linear(width, symbols)

    def unroll(self, B: int, symbol: Callable[[int, Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sequences v and the logits of each symbol, (B, T, K) each.

        Args:
            B: number of sequences.
            symbol: function of t and logits (B, K) that returns v_t (B, K).
            like: tensor with the device and dtype of v.
        """
        dtype = self.head.weight.dtype
        h, v = like.new_zeros(B, self.width, dtype=dtype), like.new_zeros(B, self.symbols)
        drawn, logits = [], []
        for t in range(self.length):
            h = self.cell(v.to(dtype), h)
            logits.append(at_least_float32(self.head(h)))
            v = symbol(t, logits[-1])
            drawn.append(v)
        return torch.stack(drawn, 1), torch.stack(logits, 1)

    def forward(self, u: Tensor, symbol: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return sequences (B, T, K) from uniform noise ``u`` (B, T, K).

        ``symbol`` maps logits (B, K) and the noise of one step (B, K) to v_t (B, K).
        """
        return self.unroll(len(u), lambda t, logits: symbol(logits, u[:, t]), u)[0]

    def log_probability(self, v: Tensor) -> Tensor:
        """Return log p(v) of one-hot sequences v (B, T, K), (B,) nats."""
        _, logits = self.unroll(len(v), lambda t, _: v[:, t], v)
        return (v * logits.log_softmax(-1)).sum((-2, -1))


def _normal_convolutions(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(m.weight, std=0.02)
