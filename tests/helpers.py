"""Helpers of the tests. They run train.py in the test process, compare runs, and cause faults in runs."""

import itertools
import os
import resource
import signal
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from torch import nn

import zoo
from zoo.commands.training import build, train
from zoo.functional.diffusion import at
from zoo.functional.noise import chunk_generator
from zoo.rbm import RBM
from zoo.training.command_line import with_shape_of
from zoo.training.ranks import all_rows
from zoo.training.tables import read_rows

CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")

# Overrides for runs of about one second. On the digits, an epoch has 11 batches.
TINY = {
    "vae": ["model=vae", "data=digits", "data.digits_repeat=1", "model.hidden=[16]", "model.latent_dim=2"],
    "cvae": ["model=cvae", "data=digits", "data.digits_repeat=1", "model.hidden=[16]", "model.latent_dim=2"],
    "vade": ["model=vade", "data=digits", "data.digits_repeat=1", "data.batch_size=128", "model.hidden=[16]"]
    + ["model.latent_dim=2", "model.pretrain_epochs=1", "model.restarts=1"],
    "rbm": ["model=rbm", "data=digits", "data.digits_repeat=1", "data.batch_size=128", "model.num_hidden=8"]
    + [
        "trainer.check_val_every_n_epoch=1",
        "callbacks.samples.conditions.steps=3",
        "callbacks.samples.conditions.frames=3",
    ],
    "gan": ["model=gan", "data=digits", "data.digits_repeat=1", "data.batch_size=128", "model.width=4"]
    + ["model.features=16", "model.generator_features=8", "callbacks.sample_distance.n=20"],
    "wgan": ["model=wgan", "data=digits", "data.digits_repeat=1", "data.batch_size=128", "model.width=4"]
    + ["model.n_critic=2", "model.features=16", "model.generator_features=8", "callbacks.sample_distance.n=20"],
    "infogan": ["model=infogan", "data=digits", "data.digits_repeat=1", "data.batch_size=128", "model.width=4"]
    + ["model.features=16", "callbacks.sample_distance.n=20"],
    "ddpm": ["model=ddpm", "data=digits", "data.digits_repeat=1", "data.batch_size=128"]
    + ["model.widths=[8,16]", "model.steps=50", "callbacks.samples.conditions.num_steps=2"],
    "score": ["model=score", "data=digits", "data.digits_repeat=1", "data.batch_size=128"]
    + ["model.widths=[8,16]", "model.num_sigmas=3", "callbacks.samples.conditions.steps=1"],
    "skipgram": ["model=skipgram", "data=pydocs", "data.batch_size=60", "data.min_count=20", "model.dim=4"],
}
# A model that is not listed above is tested with the settings of its recipe.
TINY |= {
    name: [f"model={name}", "data=digits", "data.digits_repeat=1", "data.batch_size=128"]
    for name in zoo.list_models()
    if name not in TINY
}
FIGURE = "zoo.callbacks.estimator_variance.plot"
QUIET = ["logger=csv", "trainer=cpu", "trainer.enable_progress_bar=false", "trainer.num_sanity_val_steps=0"]


def tiers(names, first):
    """Return ``names`` as parameters of a test. All names except ``first`` are marked as slow."""
    names = list(names)
    assert set(first) <= set(names), set(first) - set(names)
    return [name if name in first else pytest.param(name, marks=pytest.mark.slow) for name in names]


def config(run_dir, *overrides):
    """Return the configuration of ``python train.py ...`` with the run folder ``run_dir``."""
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("train", [*overrides, f"run_dir={run_dir}"])


def model_of(cfg):
    """Return the model of a configuration, with the shape of its data."""
    with_shape_of(cfg.model, build(cfg.data))
    return build(cfg.model)


def run(run_dir, *overrides, figures=False):
    """Run ``python train.py ...`` in this process, and return its metrics.

    If ``figures`` is false, the figure of estimator variances is empty, because drawing it takes longer than a run.
    """
    with nullcontext() if figures else patch(FIGURE, lambda history: Figure(figsize=(1, 1))):
        return train(config(run_dir, *QUIET, *overrides))


def checkpoint(run_dir, name="last"):
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(a, b, path=""):
    """Assert that nested plain values and tensors are bitwise equal."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def stop(at, signum):
    return [
        "+callbacks.stop._target_=helpers.SendSignal",
        f"+callbacks.stop.at={at}",
        f"+callbacks.stop.signum={int(signum)}",
    ]


def assert_same_run(metrics, folder, reference):
    expected, reference_folder = reference
    assert {k: v for k, v in metrics.items() if "second" not in k} == expected
    ours, theirs = checkpoint(folder), checkpoint(reference_folder)
    keys = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    for key in (*keys, "chains", "random_state", "epoch", "global_step"):
        assert_same(ours.get(key), theirs.get(key), key)
    progress = "epoch_loop.batch_progress"
    assert_same(*(c["loops"]["fit_loop"][progress]["total"]["completed"] for c in (ours, theirs)))


def logged(folder):
    """Return every row of both tables, without the columns that measure time."""
    timed = ("second", "ms_per_draw")
    tables = read_rows(folder / "metrics.csv") + read_rows(folder / "estimator_variance.csv")
    rows = [{k: v for k, v in row.items() if v and not any(t in k for t in timed)} for row in tables]
    return [row for row in rows if set(row) != {"step"}]


def exact_x0(chain, s2):
    """Return the function (x_t, t) -> E[x_0 | x_t] for data N(0, s2).

    E[x_0 | x_t] = sqrt(abar) s2 x_t / (abar s2 + 1 - abar), with abar = ``chain.abar`` at step t
    """

    def x0_model(xt, t):
        a, rest = at(chain.abar, t, xt), at(chain.one_minus_abar, t, xt)
        return a.sqrt() * s2 * xt / (a * s2 + rest)

    return x0_model


class SendSignal(L.Callback):
    """Send this process a signal at the start of batch ``at``. Batches are numbered from 0 over the whole run."""

    def __init__(self, at: int, signum: int):
        self.at, self.signum = at, signum

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.at:
            os.kill(os.getpid(), self.signum)


class SignalInTest(L.Callback):
    """Send this process SIGTERM at the first batch of the test."""

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        os.kill(os.getpid(), signal.SIGTERM)


class Poison(L.Callback):
    """Set one weight to NaN at the start of batch number ``at``."""

    def __init__(self, at: int):
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.at:
            with torch.no_grad():
                next(pl_module.parameters()).view(-1)[0] = torch.nan


class KillProcess(L.Callback):
    """Kill process ``rank`` at the start of batch ``at``, as the operating system does when no memory is free."""

    def __init__(self, rank: int, at: int):
        self.rank, self.at = rank, at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.at and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


class FullDisk(L.Callback):
    """Simulate a full disk: from epoch ``epoch`` on, this process cannot write more than ``size`` bytes to a file."""

    def __init__(self, epoch: int, size: int):
        self.epoch, self.size = epoch, size

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


class NoiseOfTheExample(L.Callback):
    """Give every example the same noise on several processes as on one process.

    Every process draws the noise of the whole batch, with a generator seeded by the number of the draw. The process
    keeps only the rows of its examples. The noise of validation and of estimators does not change, because their calls
    pass a generator.
    """

    def on_fit_start(self, trainer, pl_module):
        drawn, rank, world_size = pl_module.noise, trainer.global_rank, trainer.world_size
        count = itertools.count()

        def own_rows(whole, mine):
            differ = [i for i, (a, b) in enumerate(zip(whole.shape, mine.shape, strict=True)) if a != b]
            assert world_size == 1 or len(differ) == 1 or not whole.numel()
            return whole[(slice(None),) * differ[0] + (slice(rank, None, world_size),)] if differ else whole

        def noise(batch, *, generator=None, **kwargs):
            if generator is not None:
                return drawn(batch, generator=generator, **kwargs)
            key = chunk_generator(1, next(count))
            everything = [all_rows(t, trainer) for t in batch]
            if not isinstance(pl_module, RBM) or pl_module.chains is None:
                whole = drawn(everything, generator=key, **kwargs)
            else:  # persistent chains are split over processes like the batch
                here, pl_module.chains = pl_module.chains, pl_module.all_chains()
                whole = drawn(everything, generator=key, **kwargs)
                pl_module.chains = here
            mine = drawn(batch, generator=chunk_generator(0, 0), **kwargs)
            return {name: own_rows(whole[name], mine[name]) for name in whole}

        pl_module.noise = noise


class NoBatchNorm(L.Callback):
    """Replace BatchNorm by GroupNorm, so that the result of an example does not depend on the other examples."""

    def setup(self, trainer, pl_module, stage):
        for module in list(pl_module.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                    setattr(module, name, nn.GroupNorm(1, child.num_features))


class KeepGradients(L.Callback):
    """At the end, save the state before and after training and all gradients to ``steps<rank>.pt`` in ``folder``."""

    def __init__(self, folder):
        self.folder, self.gradients = Path(folder), []

    def on_train_start(self, trainer, pl_module):
        self.before = {k: v.clone() for k, v in pl_module.state_dict().items()}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = {k: p.grad for k, p in pl_module.named_parameters() if p.grad is not None}
        self.gradients.append({k: (g.to_dense() if g.is_sparse else g).clone() for k, g in gradients.items()})

    def on_train_end(self, trainer, pl_module):
        kept = {"before": self.before, "gradients": self.gradients, "after": pl_module.state_dict()}
        kept["parameters"] = [name for name, _ in pl_module.named_parameters()]
        torch.save(kept, self.folder / f"steps{trainer.global_rank}.pt")


class Pixel(L.LightningModule):
    """The smallest model with samples: noise around a learned grey value."""

    def __init__(self):
        super().__init__()
        self.grey = nn.Parameter(torch.tensor(0.5))

    def sample(self, n, *, generator=None, contrast=0.1):
        return (self.grey + contrast * torch.randn(n, 1, 28, 28, generator=generator)).clamp(0, 1).detach()


class Quarters(nn.Module):
    """A small network of features of images of any size: the means of the four quarters of an image."""

    num_features = 4

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), 2).flatten(1)
