"""What two players need besides objectives and networks: one count of steps, and statistics to be judged by.

A model of two players is trained by hand (Lightning's manual optimisation): each batch is a step of the discriminator,
every k-th one of the generator, too; ``trainer.global_step``, checkpoints, loggers and averages count batches.
"""

from collections.abc import Callable, Mapping

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.pixels import as_batch
from zoo.training.ranks import all_rows


@torch.no_grad()
def generate(network: nn.Module, z: Tensor) -> Tensor:
    """A generator's samples for ``z`` in evaluation mode. Its running statistics and its mode stay as they were."""
    training = network.training
    network.eval()
    try:
        return network(z)
    finally:
        network.train(training)


def check_batches(module) -> None:
    """Refuse batches of one example on a process, which batch normalisation cannot normalise, before the first step.

    Args:
        module: the LightningModule, whose trainer has its training data.

    Raises:
        UserError: naming the size of the batches, and what helps.
    """
    if not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in module.modules()):
        return
    trainer = module.trainer
    loader, processes = trainer.train_dataloader, trainer.world_size
    size, left_over = loader.batch_size if isinstance(loader, capabilities.Batched) else None, 0
    if size is None:
        return
    if isinstance(loader, DataLoader):  # each process has batches of its own, and the last may be smaller
        left_over = 0 if loader.drop_last else len(loader.sampler) % size
    else:
        size //= processes
    if size == 1:
        raise UserError(
            f"{type(module).__name__} has batch normalisation, which needs at least 2 examples on each process, and "
            f"batches have 1: set data.batch_size to at least {2 * processes}"
        )
    if left_over == 1:
        raise UserError(
            f"{type(module).__name__} has batch normalisation, which needs at least 2 examples on each process, and "
            "the last batch of an epoch has 1: give the DataLoader drop_last=True, or another batch_size"
        )


def training_images(trainer, most: int) -> Tensor | None:
    """The first training images of a run, the same on all processes, (at most ``most``, 28, 28), uint8.

    They are those of the datamodule, or of the training loader where there is none; None where there is neither.
    """
    data = trainer.datamodule
    if isinstance(data, capabilities.SplitData):
        return data.splits["train"].images[:most]
    if trainer.train_dataloader is None:
        return None
    found: list[Tensor] = []
    with isolate_rng():
        for batch in trainer.train_dataloader:
            found.append(as_batch(batch)[0].to(trainer.strategy.root_device))
            if sum(map(len, found)) * trainer.world_size >= most:
                break
    return (all_rows(torch.cat(found), trainer)[:most, 0] * 255).round().byte()


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
