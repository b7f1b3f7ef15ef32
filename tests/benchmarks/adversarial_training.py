"""Benchmark of GAN, WGAN and InfoGAN: training steps per second in Lightning, and in a bare loop.

    python tests/benchmarks/adversarial_training.py

The benchmark uses the networks of the recipes, float32, and batches of 64 of scikit-learn's digits. A step is one
batch. Each step trains the discriminator or critic, and then the generator. WGAN trains the generator only in every
``n_critic``-th step. The bare loops have the same draws, losses and updates, and log nothing. Lightning and the loop
alternate in one process. The benchmark prints the median, the smallest and the largest rate of each.
"""

import statistics
import time

import lightning as L
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from zoo.datamodules import Images
from zoo.functional.deformation import deform
from zoo.gan import GAN
from zoo.infogan import InfoGAN
from zoo.training.trainer import quiet_lightning
from zoo.wgan import WGAN

BATCH, PASSES, ROUNDS = 64, 1, 7


class Timer(L.Callback):
    """Callback that measures the seconds from the first batch to the last."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds = time.perf_counter() - self.start


def in_lightning(model, data: Images) -> float:
    timer = Timer()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    quiet |= {"enable_model_summary": False}
    L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[timer], **quiet).fit(model, datamodule=data)
    return timer.seconds


def take(optimiser, loss, others) -> None:
    """Train one network for a step. The backward pass skips the parameters of the other network."""
    for p in others:
        p.requires_grad_(False)
    optimiser.zero_grad()
    loss().backward()
    optimiser.step()
    for p in others:
        p.requires_grad_(True)


def bare_gan(data: Images) -> float:
    model = GAN()
    G, D = model.generator, model.discriminator
    d_optimiser, g_optimiser = model.configure_optimizers()

    def d_loss(x):
        with torch.no_grad():
            fake = G(torch.randn(BATCH, 64))
        return F.softplus(-D(2 * x - 1)).mean() + F.softplus(D(fake)).mean()

    begin = time.perf_counter()
    for x, _ in data.train_dataloader():
        take(d_optimiser, lambda x=x: d_loss(x), list(G.parameters()))
        take(g_optimiser, lambda: F.softplus(-D(G(torch.randn(BATCH, 64)))).mean(), list(D.parameters()))
    return time.perf_counter() - begin


def bare_wgan(data: Images) -> float:
    model = WGAN()
    G, f = model.generator, model.critic
    f_optimiser, g_optimiser = model.configure_optimizers()

    def f_loss(x):
        with torch.no_grad():
            fake = G(torch.randn(BATCH, 64))
        real, u = 2 * x - 1, torch.rand(BATCH, 1, 1, 1)
        between = (u * real + (1 - u) * fake).requires_grad_()
        (g,) = torch.autograd.grad(f(between).sum(), between, create_graph=True)
        return f(fake).mean() - f(real).mean() + 10 * (g.flatten(1).norm(dim=1) - 1).square().mean()

    begin = time.perf_counter()
    for i, (x, _) in enumerate(data.train_dataloader()):
        take(f_optimiser, lambda x=x: f_loss(x), list(G.parameters()))
        if (i + 1) % 5 == 0:
            take(g_optimiser, lambda: -f(G(torch.randn(BATCH, 64))).mean(), list(f.parameters()))
    return time.perf_counter() - begin


def bare_infogan(data: Images) -> float:
    model = InfoGAN()
    G, trunk, head, Q = model.generator, model.trunk, model.head, model.code
    d_optimiser, g_optimiser = model.configure_optimizers()
    discriminator, generator = [*trunk.parameters(), *head.parameters()], [*G.parameters(), *Q.parameters()]

    def draw():
        c, u = torch.randint(10, (BATCH,)), 2 * torch.rand(BATCH, 2) - 1
        return c, u, G(torch.cat([torch.randn(BATCH, 62), F.one_hot(c, 10), u], -1))

    def d_loss(x):
        with torch.no_grad():
            _, _, fake = draw()
        return F.softplus(-head(trunk(2 * x - 1))).mean() + F.softplus(head(trunk(fake))).mean()

    def g_loss():
        c, u, fake = draw()
        h = trunk(fake)
        _, mu, logvar = Q(h).split([10, 2, 2], -1)
        bent = deform(fake / 2 + 0.5, torch.randn(BATCH, 2, 3), torch.randn(BATCH, 2, 4, 4), 0.15)
        logits = Q(trunk(2 * bent - 1))[:, :10]
        numbers = 0.5 * (logvar + (u - mu).square() * (-logvar).exp()).sum(-1).mean()
        return F.softplus(-head(h)).mean() + F.cross_entropy(logits, c) + 0.1 * numbers

    begin = time.perf_counter()
    for x, _ in data.train_dataloader():
        take(d_optimiser, lambda x=x: d_loss(x), generator)
        take(g_optimiser, g_loss, discriminator)
    return time.perf_counter() - begin


def main() -> None:
    torch.manual_seed(0)
    quiet_lightning()
    data = Images("digits", batch_size=BATCH, digits_repeat=PASSES)
    data.setup()
    steps = len(data.train_dataloader())
    for model, bare in ((GAN, bare_gan), (WGAN, bare_wgan), (InfoGAN, bare_infogan)):
        seconds = {"in Lightning": [], "bare": []}
        for i in tqdm(range(ROUNDS + 1), desc=model.__name__):
            for name, took in (("in Lightning", in_lightning(model(), data)), ("bare", bare(data))):
                if i:  # the first round is a warm-up and does not count
                    seconds[name].append(took)
        for name, took in seconds.items():
            rate = [steps / t for t in sorted(took, reverse=True)]
            print(f"{model.__name__} {name}: {statistics.median(rate):.1f} steps/s ({rate[0]:.1f} to {rate[-1]:.1f})")
        ratios = sorted(b / ours for ours, b in zip(seconds["in Lightning"], seconds["bare"], strict=True))
        print(f"ours / bare: {statistics.median(ratios):.2f}, round by round {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
