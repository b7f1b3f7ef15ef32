"""Networks whose features distances of images use: the classifiers of the zoo, and Inception."""

from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.checks.errors import UserError
from zoo.datamodules.splits import Split
from zoo.evaluation.distances import CLASSIFIERS
from zoo.evaluation.inception import InceptionFeatures
from zoo.functional.precision import in_float64
from zoo.functional.progress import tracked

FEATURES = (*CLASSIFIERS, "inception")
SIDE = 28  # height and width of the images of the classifiers
FIRST = 100  # images of a set whose colours are checked before models draw samples


class ClassifierFeatures(nn.Module):
    """The features of a classifier of the zoo: the activations of its last hidden layer.

    Args:
        checkpoint: name of the checkpoint, such as ``classifier``.

    Raises:
        UserError: if this version of the zoo has no such classifier.
    """

    images_at_once = 500

    def __init__(self, checkpoint: str):
        super().__init__()
        if checkpoint not in zoo.list_checkpoints():
            raise UserError(f"there is no checkpoint {checkpoint}, whose features are needed: choose other features")
        self.checkpoint = checkpoint
        self.classifier = zoo.load(checkpoint)
        self.num_features = self.classifier.hparams.num_features

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (B, F), of images (B, C, 28, 28) in [0, 1].

        Three channels must be equal, as in grey pictures that are stored with colours.

        Raises:
            UserError: if images have colours.
        """
        self.check_grey(images, "these images")
        return self.classifier.features(images[:, :1])

    def check_grey(self, images: Tensor, what: str) -> None:
        """Raise UserError if images have colours. ``what`` is their name in the error."""
        if not torch.equal(images[:, :1].expand_as(images), images):
            raise UserError(
                f"features of {self.checkpoint} need grey images, and there are colours in {what}: convert them with "
                "--grey, or use --features inception"
            )


def feature_network(name: str) -> ClassifierFeatures | InceptionFeatures:
    """Return the network with a name in ``FEATURES``.

    Raises:
        UserError: if the network is not available.
    """
    return InceptionFeatures() if name == "inception" else ClassifierFeatures(CLASSIFIERS[name])


def check_shape(network: nn.Module, shape: tuple[int, ...], what: str) -> None:
    """Check that a network takes images of a shape.

    Args:
        network: result of :func:`feature_network`.
        shape: shape of the examples of ``what``.
        what: name of the images in the error.

    Raises:
        UserError: if the examples are no images, or if their size is wrong.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(f"{what} has examples of shape {list(shape)}, which are no grey or coloured images")
    if isinstance(network, ClassifierFeatures) and tuple(shape[1:]) != (SIDE, SIDE):
        raise UserError(
            f"features of {network.checkpoint} need grey images of {SIDE} x {SIDE} pixels, and {what} has {shape[1]} x "
            f"{shape[2]}: resize all images with --size {SIDE}, or use --features inception"
        )


def check_images(network: nn.Module, images: Any, what: str) -> None:
    """Check that a network takes images of this shape, and that it takes the colours of the first of them.

    Args:
        network: result of :func:`feature_network`.
        images: images (N, C, H, W), as for :func:`features_of`.
        what: name of the images in the error.

    Raises:
        UserError: if the images do not suit the network.
    """
    check_shape(network, tuple(images.shape[1:]), what)
    if isinstance(network, ClassifierFeatures):
        network.check_grey(images[:FIRST], what)


@torch.no_grad()
def features_of(
    images: Any, network: nn.Module, device: torch.device | str = "cpu", what: str = "images", progress: bool = False
) -> Tensor:
    """Return the features of images, (N, F), float64, on the CPU.

    Args:
        images: images (N, C, H, W), bytes or floats in [0, 1]. They are a tensor, or an object that returns one for
            a slice.
        network: result of :func:`feature_network`, on ``device``.
        device: device of the network.
        what: name of the images in the progress bar.
        progress: show a progress bar.
    """
    size = network.images_at_once
    batches = tracked(
        Split(images, None).batches(size, device),
        f"features of {what}",
        "batch",
        total=-(-len(images) // size),
        show=progress,
    )
    return torch.cat([in_float64(network(x).cpu()) for x, _ in batches])
