"""Fully connected networks, and convolutional encoders and decoders."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


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
    net: str, outputs: int, features: int, hidden: Sequence[int], activation: type[nn.Module]
) -> tuple[nn.Module, nn.Module]:
    """Return an encoder of images (B, 1, 28, 28) to (B, outputs), and a decoder of (..., features) to images.

    Args:
        net: type of the networks, ``mlp`` or ``conv``.
        outputs: size of the encoder's output.
        features: size of the decoder's input.
        hidden: for ``mlp``, widths of the encoder's hidden layers. The decoder reverses their order. For ``conv``,
            a list of one number, the channels of the first convolution.
        activation: activation of the hidden layers of an ``mlp``.
    """
    if net == "conv":
        return ConvEncoder(outputs, hidden[0]), ConvDecoder(features, hidden[0])
    encoder = nn.Sequential(nn.Flatten(), mlp([28 * 28, *hidden, outputs], activation))
    decoder = nn.Sequential(mlp([features, *hidden[::-1], 28 * 28], activation), nn.Unflatten(-1, (1, 28, 28)))
    return encoder, decoder


class ConvEncoder(nn.Module):
    """Convolutional encoder of images (B, 1, 28, 28) to features (B, out_features).

    Two strided convolutions halve the side of the images, 28 -> 14 -> 7. A linear layer follows.
    """

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
        return self.layers(x.to(self.layers[0].weight.dtype))


class ConvDecoder(nn.Module):
    """Convolutional decoder of latents (..., D) to one value for each pixel, (..., 1, 28, 28).

    It has the layers of :class:`ConvEncoder` in reverse order, with transposed convolutions.
    """

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
        return self.layers(z.flatten(0, -2).to(self.layers[0].weight.dtype)).unflatten(0, z.shape[:-1])
