"""What two players need besides their objectives: networks to choose from, one count of steps, and judgement.

A model of two players is trained by hand (Lightning's manual optimisation): each batch is a step of the discriminator,
every k-th one of the generator, too; ``trainer.global_step``, checkpoints, loggers and averages count batches.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo.checks.errors import UserError
from zoo.checks.values import check_whole, check_widths
from zoo.nets import ConvGenerator, ConvTrunk, mlp

IMAGE = [1, 28, 28]


def check_networks(network: str, shape: Sequence[int], width: int, hidden: Sequence[int], z_dim: int) -> None:
    """Refuse sizes that make no network.

    Raises:
        UserError: saying which, and what is allowed.
    """
    check_widths("shape", shape, IMAGE)
    check_widths("hidden", hidden, [256, 256])
    check_whole("width", width)
    check_whole("z_dim", z_dim)
    if network == "conv" and list(shape) != IMAGE:
        raise UserError(
            f"network=conv makes images of shape {IMAGE}; for examples of shape {list(shape)} set model.network=mlp"
        )


def make_generator(network: str, z_dim: int, shape: Sequence[int], width: int, hidden: Sequence[int]) -> nn.Module:
    """Noise (B, z_dim) to examples (B, *shape) as the players see them: images in [-1, 1], others unbounded."""
    if network == "conv":
        return ConvGenerator(z_dim, width)
    layers = mlp([z_dim, *hidden, math.prod(shape)])
    return nn.Sequential(*layers, nn.Unflatten(1, tuple(shape)), nn.Tanh() if is_image(shape) else nn.Identity())


def make_discriminator(
    network: str, shape: Sequence[int], width: int, hidden: Sequence[int], norm: str = "layer"
) -> nn.Module:
    """Examples (B, *shape) to one unbounded number each, (B, 1): a logit, or what a critic says.

    ``norm`` is that of ``conv``; any other network has an mlp, which does not normalise.
    """
    if network == "conv":
        trunk = ConvTrunk(width, norm)
        normalise = nn.BatchNorm1d(256) if norm == "batch" else nn.LayerNorm(256)
        return nn.Sequential(trunk, nn.Linear(trunk.out_features, 256), normalise, nn.LeakyReLU(0.2), nn.Linear(256, 1))
    return nn.Sequential(nn.Flatten(), *mlp([math.prod(shape), *hidden, 1], lambda: nn.LeakyReLU(0.2)))


def is_image(shape: Sequence[int]) -> bool:
    """Whether examples of this shape are images, in [0, 1] outside the model and in [-1, 1] inside."""
    return list(shape) == IMAGE


def centre(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Examples as the players see them: images from [0, 1] to [-1, 1], others as they are."""
    return 2 * x - 1 if is_image(shape) else x


def uncentre(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The way back; images are cut off to [0, 1]."""
    return (x / 2 + 0.5).clamp(0, 1) if is_image(shape) else x


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor) -> Tensor:
    """What ``generator`` makes of ``z`` by its running statistics, which stay as they are, whatever its mode."""
    training = generator.training
    generator.eval()
    try:
        return generator(z)
    finally:
        generator.train(training)


@torch.no_grad()
def restate(module: nn.Module, forward: Callable[[int], object], batches: int = 20) -> None:
    """Take the running statistics of batch normalisation anew, as means over ``batches`` batches.

    Those of training are of weights that have moved on since, and averaged weights never had any of their own: an
    InfoGAN read digits right 74 % of the time by the former, and 82 % by its own.

    Args:
        module: whose statistics these are.
        forward: makes ``module`` see batch number i, from 0 on.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    training, momentum = module.training, [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain mean
    module.train()
    for i in range(batches if norms else 0):
        forward(i)
    module.train(training)
    for m, value in zip(norms, momentum, strict=True):
        m.momentum = value


def step(module, optimiser, loss: Tensor, counts: bool) -> None:
    """One step of one player down ``loss``; the other's parameters are left out of the backward pass.

    Args:
        module: the LightningModule.
        optimiser: one of ``module.optimizers()``.
        loss: made while the parameters of the other player were switched off (``toggle_optimizer``).
        counts: whether it is this step that ``trainer.global_step`` counts; Lightning counts those of every optimiser,
            so that averages, ``max_steps`` and checkpoints would run ahead of the batches.
    """
    optimiser.zero_grad()
    module.manual_backward(loss)
    if not counts:
        before, after = optimiser._on_before_step, optimiser._on_after_step  # set anew by Lightning before each batch
        optimiser._on_before_step = optimiser._on_after_step = _nothing
    optimiser.step()
    if not counts:
        optimiser._on_before_step, optimiser._on_after_step = before, after


def _nothing() -> None:
    pass
