"""Generators and discriminators: convolutional networks as in DCGAN, fully connected and recurrent networks.

Networks with labels follow two papers. A generator receives a one-hot label with its noise (Mirza & Osindero 2014,
arXiv:1411.1784). A discriminator adds the projection of its features on a vector of the label (Miyato & Koyama 2018,
arXiv:1802.05637).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.checks.errors import UserError
from zoo.checks.values import check_integer, check_widths
from zoo.functional.densities import at_least_float32
from zoo.functional.latents import one_hot
from zoo.nets.layers import Layers, mlp
from zoo.nets.sizes import crop, halvings, pad_to_multiple, smallest_sides


def check_networks(network: str, shape: Sequence[int], width: int, hidden: Sequence[int], z_dim: int) -> None:
    """Check the sizes of a generator and a discriminator.

    Raises:
        UserError: if a size is not allowed.
    """
    check_widths("shape", shape, [1, 28, 28])
    check_widths("hidden", hidden, [256, 256])
    check_integer("width", width)
    check_integer("z_dim", z_dim)
    if network == "conv" and not is_image(shape):
        raise UserError(
            f"network=conv makes images (C, H, W); for examples of shape {list(shape)} set model.network=mlp"
        )


def make_generator(
    network: str,
    z_dim: int,
    shape: Sequence[int],
    width: int,
    hidden: Sequence[int],
    features: int = 256,
    num_classes: int | None = None,
) -> nn.Module:
    """Return a generator that maps noise (B, z_dim) to examples (B, *shape).

    Images are in [-1, 1]. Other examples are unbounded. ``features`` is the size of the first hidden layer of ``conv``,
    which is fully connected. 0 leaves out this layer, as in DCGAN. With ``num_classes``, the noise has the additional
    entries of :func:`with_label`.
    """
    inputs = z_dim + (num_classes or 0)
    if network == "conv":
        return ConvGenerator(inputs, width, shape, features)
    layers = mlp([inputs, *hidden, math.prod(shape)])
    return Layers(*layers, nn.Unflatten(1, tuple(shape)), nn.Tanh() if is_image(shape) else nn.Identity())


def make_discriminator(
    network: str,
    shape: Sequence[int],
    width: int,
    hidden: Sequence[int],
    norm: str = "layer",
    features: int = 256,
    num_classes: int | None = None,
) -> nn.Module:
    """Return a discriminator that maps examples (B, *shape) to one unbounded number each, (B, 1).

    The number is the logit of a discriminator or the score of a critic. ``norm``, ``layer`` or ``batch``, is the
    normalisation of ``conv``. Fully connected networks have none. ``features`` is the size of the last hidden layer of
    ``conv``, which is fully connected. 0 leaves out this layer, as in DCGAN.

    With ``num_classes``, the discriminator also takes labels (B,).
    """
    if network != "conv":
        layers = Layers(nn.Flatten(), *mlp([math.prod(shape), *hidden, 1], lambda: nn.LeakyReLU(0.2)))
    else:
        trunk = ConvTrunk(width, norm, shape)
        if features:
            normalise = nn.BatchNorm1d(features) if norm == "batch" else nn.LayerNorm(features)
            hidden_layer = [nn.Linear(trunk.out_features, features), normalise, nn.LeakyReLU(0.2)]
            layers = nn.Sequential(trunk, *hidden_layer, nn.Linear(features, 1))
        else:
            layers = nn.Sequential(trunk, nn.Linear(trunk.out_features, 1))
    return layers if num_classes is None else ProjectionDiscriminator(layers, num_classes)


def with_label(z: Tensor, y: Tensor | None, num_classes: int | None) -> Tensor:
    """Return noise (B, D) with the one-hot labels ``y`` (B,) after it, (B, D + K), or ``z`` if there are no labels."""
    return z if y is None or num_classes is None else torch.cat([z, one_hot(y, num_classes, z.dtype)], -1)


def is_image(shape: Sequence[int]) -> bool:
    """Return whether examples of this shape are images (C, H, W), which the networks need in [-1, 1]."""
    return len(shape) == 3


def centre(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return images scaled from [0, 1] to [-1, 1]. Return other examples unchanged."""
    return 2 * x - 1 if is_image(shape) else x


def uncentre(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return images scaled from [-1, 1] to [0, 1] and clipped, and other examples unchanged; at least float32."""
    x = at_least_float32(x)
    return (x / 2 + 0.5).clamp(0, 1) if is_image(shape) else x


class ProjectionDiscriminator(nn.Module):
    """Discriminator of examples x and labels y: psi(phi(x)) + v_y . phi(x), as in Miyato & Koyama 2018, eq. 3.

    phi is a network, psi is a linear layer, and v_y is a vector that is learned for each label.

    Args:
        layers: a discriminator without labels. Its last layer is psi, and the layers before it are phi.
        num_classes: number of classes.
    """

    def __init__(self, layers: nn.Sequential, num_classes: int):
        super().__init__()
        self.features, self.head = layers[:-1], layers[-1]
        self.label_vectors = nn.Embedding(num_classes, self.head.in_features)
        nn.init.normal_(self.label_vectors.weight, std=0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        phi = self.features(x)
        return self.head(phi) + (self.label_vectors(y) * phi).sum(-1, keepdim=True)


class ConvGenerator(nn.Module):
    """Generator of images (B, C, H, W) in [-1, 1] from noise (B, D), after DCGAN (Radford et al. 2016).

    The first hidden layer is fully connected. A linear layer then makes a feature map whose longer side is at most
    7 pixels. Transposed convolutions double the sides: 7 -> 14 -> 28, or 4 -> 8 -> 16 -> 32 -> 64. The number of
    channels is halved each time. If a side of the images is not a multiple, the network makes larger images and
    crops them. BatchNorm comes before each ReLU. The last operation is tanh. Weights of convolutions are
    initialised from N(0, 0.02^2).

    Args:
        in_features: D.
        width: channels at half the sides of the images.
        shape: shape of an image, (C, H, W).
        features: units of the hidden layer, or 0 for no such layer, as in DCGAN.
    """

    def __init__(self, in_features: int, width: int = 32, shape: Sequence[int] = (1, 28, 28), features: int = 0):
        super().__init__()
        first = [nn.Linear(in_features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()] if features else []
        self.hidden = nn.Sequential(*first)
        self.shape, times = tuple(shape), max(1, halvings(shape))
        channels, sides = width * 2 ** (times - 1), smallest_sides(shape, times)
        self.project = nn.Sequential(
            nn.Linear(features or in_features, channels * math.prod(sides), bias=False),
            nn.BatchNorm1d(channels * math.prod(sides)),
            nn.ReLU(),
            nn.Unflatten(1, (channels, *sides)),
        )
        layers: list[nn.Module] = []
        for _ in range(times - 1):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels // 2),
                nn.ReLU(),
            ]
            channels //= 2
        layers += [nn.ConvTranspose2d(width, shape[0], 4, stride=2, padding=1), nn.Tanh()]
        self.upsample = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        _normal_convolutions(self)

    def forward(self, z: Tensor) -> Tensor:
        return crop(self.upsample(self.project(self.hidden(z.to(self.project[0].weight.dtype)))), self.shape)


class ConvTrunk(nn.Module):
    """Network from images (B, C, H, W) to features (B, F): DCGAN's discriminator without its last layer.

    Strided convolutions halve the sides until the longer one is at most 7 pixels: 28 -> 14 -> 7. The number of channels
    doubles each time. Images whose sides are not multiples are padded with zeros. A leaky ReLU follows each
    convolution. Normalisation comes before each leaky ReLU but the first.

    Args:
        width: channels at half the sides of the images.
        norm: ``layer`` normalises each image separately. ``batch`` is BatchNorm. With BatchNorm, the output for one
            image depends on the other images of the batch. Do not combine BatchNorm with a gradient penalty, because
            the penalty needs a separate gradient for each image.
        shape: shape of an image, (C, H, W).

    Attributes:
        out_features: F.
    """

    def __init__(self, width: int = 32, norm: Literal["layer", "batch"] = "layer", shape: Sequence[int] = (1, 28, 28)):
        super().__init__()
        times = max(1, halvings(shape))
        layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for _ in range(times - 1):
            layers += [
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.BatchNorm2d(2 * width) if norm == "batch" else nn.GroupNorm(1, 2 * width),
                nn.LeakyReLU(0.2),
            ]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.Flatten()).to(memory_format=torch.channels_last)
        self.multiple, self.out_features = 2**times, width * math.prod(smallest_sides(shape, times))
        _normal_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(pad_to_multiple(x, self.multiple).to(self.layers[0].weight.dtype))


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
