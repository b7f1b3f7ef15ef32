"""Fully connected networks, and convolutional encoders and decoders."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from zoo.checks.errors import UserError
from zoo.checks.values import check_choice, check_widths
from zoo.nets.sizes import crop, halvings, pad_to_multiple, smallest_sides


class Layers(nn.Sequential):
    """Layers in sequence. ``forward`` first converts the input to the precision of the weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(next(self.parameters()).dtype))


def mlp(widths: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> Layers:
    """Return linear layers of the given widths, input first, with ``activation`` between them.

    There is no activation after the last layer.
    """
    layers = []
    for d_in, d_out in pairwise(widths):
        layers += [nn.Linear(d_in, d_out), activation()]
    return Layers(*layers[:-1])


def image_networks(
    net: str, shape: Sequence[int], outputs: int, features: int, hidden: Sequence[int], activation: type[nn.Module]
) -> tuple[nn.Module, nn.Module]:
    """Return an encoder of images (B, C, H, W) to (B, outputs), and a decoder of (..., features) to images.

    Args:
        net: type of the networks, ``mlp`` or ``conv``.
        shape: shape of an image, (C, H, W).
        outputs: size of the encoder's output.
        features: size of the decoder's input.
        hidden: for ``mlp``, widths of the encoder's hidden layers. The decoder reverses their order. For ``conv``,
            a list of one number, the channels of the first convolution.
        activation: activation of the hidden layers of an ``mlp``.
    """
    if net == "conv":
        return ConvEncoder(shape, outputs, hidden[0]), ConvDecoder(shape, features, hidden[0])
    pixels = math.prod(shape)
    encoder = nn.Sequential(nn.Flatten(), mlp([pixels, *hidden, outputs], activation))
    decoder = nn.Sequential(mlp([features, *hidden[::-1], pixels], activation), nn.Unflatten(-1, tuple(shape)))
    return encoder, decoder


def check_network(net: object, hidden: Sequence[int], example: Sequence[int]) -> None:
    """Check the options ``net`` and ``hidden`` of :func:`image_networks`.

    Args:
        net: type of the networks.
        hidden: widths of the networks.
        example: widths of an ``mlp``, for the error message.

    Raises:
        UserError: if an option has a value that is not allowed.
    """
    check_choice("net", net, ("mlp", "conv"))
    check_widths("hidden", hidden, example)
    if net == "conv" and len(hidden) != 1:
        raise UserError(f"hidden must be one number of channels for net=conv, such as [32], got {list(hidden)}")


def last_layer(encoder: nn.Module) -> nn.Linear:
    """Return the last linear layer of an encoder, which computes its output."""
    return [module for module in encoder.modules() if isinstance(module, nn.Linear)][-1]


def _widths(shape: Sequence[int], width: int) -> list[int]:
    """Return the channels of images (C, H, W) and of their feature maps. The images are halved at least once."""
    return [shape[0], *(width * 2**i for i in range(max(1, halvings(shape))))]


class ConvEncoder(nn.Module):
    """Convolutional encoder of images (B, C, H, W) to features (B, out_features).

    Strided convolutions halve the sides of the images until the longer side is at most 7 pixels, such as
    28 -> 14 -> 7. Each convolution after the first doubles the number of channels. A linear layer follows. Sides that
    cannot be halved so often are padded with zeros.
    """

    def __init__(self, shape: Sequence[int], out_features: int, width: int = 32):
        super().__init__()
        widths = _widths(shape, width)
        self.multiple = 2 ** (len(widths) - 1)  # the padded sides are multiples of this number
        convolutions = []
        for c_in, c_out in pairwise(widths):
            convolutions += [nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), nn.ReLU()]
        smallest = math.prod(smallest_sides(shape, len(widths) - 1))
        self.layers = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(widths[-1] * smallest, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(pad_to_multiple(x.to(next(self.parameters()).dtype), self.multiple))


class ConvDecoder(nn.Module):
    """Convolutional decoder of latents (..., D) to one value for each pixel of each channel, (..., C, H, W).

    It has the layers of :class:`ConvEncoder` in reverse order, with transposed convolutions. It crops the padding.
    """

    def __init__(self, shape: Sequence[int], in_features: int, width: int = 32):
        super().__init__()
        self.shape = tuple(shape)
        widths = _widths(shape, width)[::-1]
        smallest = (widths[0], *smallest_sides(shape, len(widths) - 1))
        layers: list[nn.Module] = [nn.Linear(in_features, math.prod(smallest)), nn.ReLU(), nn.Unflatten(1, smallest)]
        for c_in, c_out in pairwise(widths):
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor) -> Tensor:
        out = self.layers(z.flatten(0, -2).to(next(self.parameters()).dtype))
        return crop(out, self.shape).unflatten(0, z.shape[:-1])
