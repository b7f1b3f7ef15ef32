"""Pieces that tests share: running the real train.py, a callback that sends signals, a model of three lines."""

import hashlib
import os

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from train import train

CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")

# Small enough that a whole run takes a second: 11 batches an epoch.
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
    + ["callbacks.sample_distance.n=20"],
    "wgan": ["model=wgan", "data=digits", "data.digits_repeat=1", "data.batch_size=128", "model.width=4"]
    + ["model.n_critic=2", "callbacks.sample_distance.n=20"],
    "infogan": ["model=infogan", "data=digits", "data.digits_repeat=1", "data.batch_size=128", "model.width=4"]
    + ["model.features=16", "callbacks.sample_distance.n=20"],
    "ddpm": ["model=ddpm", "data=digits", "data.digits_repeat=1", "data.batch_size=128"]
    + ["model.widths=[8,16]", "model.steps=50", "callbacks.samples.conditions.num_steps=2"],
    "score": ["model=score", "data=digits", "data.digits_repeat=1", "data.batch_size=128"]
    + ["model.widths=[8,16]", "model.num_sigmas=3", "callbacks.samples.conditions.steps=1"],
    "skipgram": ["model=skipgram", "data=pydocs", "data.batch_size=60", "data.min_count=20", "model.dim=4"],
}
QUIET = ["logger=csv", "trainer=cpu", "trainer.enable_progress_bar=false", "trainer.num_sanity_val_steps=0"]


def config(run_dir, *overrides):
    """The configuration of ``python train.py ...`` with its run folder."""
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("train", [*overrides, f"run_dir={run_dir}"])


def run(run_dir, *overrides):
    """``python train.py ...`` in this process; its metrics."""
    return train(config(run_dir, *QUIET, *overrides))


def checkpoint(run_dir, name="last"):
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(a, b, path=""):
    """Bitwise equality of nested plain values and tensors."""
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


class SendSignal(L.Callback):
    """Send this process a signal at the start of batch number ``at``, counted over the run from 0."""

    def __init__(self, at: int, signum: int):
        self.at, self.signum = at, signum

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.at:
            os.kill(os.getpid(), self.signum)


class PrintDigest(L.Callback):
    """At the end of training, every process prints a digest of its parameters and buffers."""

    def on_train_end(self, trainer, pl_module):
        digest = hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in pl_module.state_dict().values()))
        print(f"rank {trainer.global_rank} digest {digest.hexdigest()}\n", end="", flush=True)


class NoiseOfTheRow(L.Callback):
    """Skip-gram's loss with a row's own first words for noise, the same however rows are split over processes."""

    def on_fit_start(self, trainer, pl_module):
        drawn = pl_module.noise  # as gradient estimators go on to ask for it, with their k

        def noise(batch, generator=None, k=None):
            return {"noise": batch[0][:, :7].clamp(min=0)} if k is None else drawn(batch, generator, k)

        pl_module.noise = noise


class Pixel(L.LightningModule):
    """The smallest model with samples: a grid of noise around a learned grey."""

    def __init__(self):
        super().__init__()
        self.grey = nn.Parameter(torch.tensor(0.5))

    def sample(self, n, *, generator=None, contrast=0.1):
        return (self.grey + contrast * torch.randn(n, 1, 28, 28, generator=generator)).clamp(0, 1).detach()
