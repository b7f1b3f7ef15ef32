"""What two players need besides objectives and networks: one count of steps, and statistics to be judged by.

A model of two players is trained by hand (Lightning's manual optimisation): each batch is a step of the discriminator,
every k-th one of the generator, too; ``trainer.global_step``, checkpoints, loggers and averages count batches.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(network: nn.Module, z: Tensor) -> Tensor:
    """A generator's samples for ``z`` in evaluation mode. Its running statistics and its mode stay as they were."""
    training = network.training
    network.eval()
    try:
        return network(z)
    finally:
        network.train(training)


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


def running_statistics(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The running statistics of batch normalisation in ``modules``, by their names below these, in order; (F,) each."""
    norms = {
        f"{root}.{k}": m
        for root, module in modules.items()
        for k, m in module.named_modules()
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)
    }
    return {f"{k}.{name}": m.get_buffer(name) for k, m in norms.items() for name in ("running_mean", "running_var")}


def flat_statistics(statistics: Mapping[str, Tensor]) -> Tensor:
    """Statistics by name as one vector."""
    return torch.cat(list(statistics.values()))


def as_statistics(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: a vector split by the names and sizes of ``like``."""
    return dict(zip(like, flat.split([len(t) for t in like.values()]), strict=True))


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
