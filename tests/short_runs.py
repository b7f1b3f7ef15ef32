"""Short runs of all recipes, experiments and options, and of a module with one weight, for tests of the loop."""

import lightning as L
import torch
from helpers import TINY, config
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torchmetrics import MeanMetric

from zoo.training.executions import use_executions
from zoo.training.trainer import quiet_lightning

# Options that make each experiment small.
IMAGES = ["data=digits", "data.digits_repeat=1", "data.batch_size=128"]
EXPERIMENTS = {
    "ddpm_bound": [*IMAGES, "model.widths=[8,16]", "model.steps=4", "callbacks.samples.conditions.num_steps=2"],
    "ddpm_cifar10": [*IMAGES, "model.widths=[8,16]", "model.attention=[1]", "model.steps=50", "model.patch=4"],
    "ddpm_guided": [*IMAGES, "model.widths=[8,16]", "model.steps=50"],
    "ddpm_ho": [*IMAGES, "model.widths=[8,16]", "model.steps=50"],
    "gan_celeba64": [*IMAGES, "model.width=4"],
    "gan_discrete": ["model.width=8", "data.batch_size=64", "model.discriminator_steps=3"],
    "iwae_burda": [*IMAGES, "model.hidden=[16]", "model.latent_dim=2", "model.num_samples=3"],
    "rbm_features": [*IMAGES, "model.num_hidden=8"],
    "rbm_gaussian": [*IMAGES, "model.num_hidden=8"],
    "score_mixture": ["model.hidden=[8]"],
    "vae_bernoulli": [*IMAGES, "model.hidden=[16]", "model.latent_dim=4"],
    "vae_burda": [*IMAGES, "model.hidden=[16]", "model.latent_dim=2"],
    "vae_cifar10": [*IMAGES, "model.hidden=[4]", "model.latent_dim=2"],
    "vae_gaussian": [*IMAGES, "model.hidden=[16]", "model.latent_dim=2"],
    "wgan_clip": [*IMAGES, "model.width=4", "model.n_critic=2"],
    "wgan_ring": ["model.hidden=[8]", "model.n_critic=3"],
}
# Colour images of a function, in place of digits.
COLOURS = ["data=images", "data.dataset=short_runs:colours", "data.batch_size=64"]
OF_DIGITS = ("data=digits", "data.digits_repeat=1", "data.batch_size=128")


def in_colour(name):
    return [*(option for option in TINY[name] if option not in OF_DIGITS), *COLOURS]


# Runs with options that change numbers or branches of the code from step to step.
OPTIONS = {
    "vae-annealed": ["model=vae", *IMAGES, "model.hidden=[16]", "model.latent=categorical", "model.latent_dim=3"]
    + ["model.estimator=gumbel_softmax", "model.temperature=1.0", "model.temperature_end=0.1"],
    "vae-moving-average": ["model=vae", *IMAGES, "model.hidden=[16]", "model.latent=bernoulli", "model.latent_dim=3"]
    + ["model.estimator=score_function+moving_average"],
    "vae-relax": ["model=vae", *IMAGES, "model.hidden=[16]", "model.latent=bernoulli", "model.latent_dim=3"]
    + ["model.estimator=relax"],
    "ddpm-importance": [*TINY["ddpm"], "model.timesteps=importance", "model.steps=4"],
    "score-labels": [*TINY["score"], "model.num_classes=auto", "model.dropout=0.1"],
    "gan-three": [*TINY["gan"], "model.discriminator_steps=3"],
    "gan-labels": [*TINY["gan"], "model.discriminator_steps=3", "model.num_classes=auto"],
    "wgan-labels": [*TINY["wgan"], "model.num_classes=auto"],
    "rbm-schedules": [*TINY["rbm"], "model.k=[[0,1],[1,2]]", "model.momentum=[[0,0.5],[1,0.9]]"],
    "vae-logistic": [*TINY["vae"], "model.likelihood=discretised_logistic"],
    "vae-dequantised": [*TINY["vae"], "model.likelihood=gaussian_dequantised"],
    "vade-conv": [*TINY["vade"], "model.net=conv", "model.hidden=[4]"],
    "rbm-gaussian": [*TINY["rbm"], "model.visible=gaussian", "model.lr=0.005"],
    "ddpm-attention": [*TINY["ddpm"], "model.attention=[1]", "model.dropout=0.1"],
    "ddpm-colours": [*in_colour("ddpm"), "model.num_classes=auto"],
    "infogan-colours": in_colour("infogan"),
    "vae-colours-on-disk": [*in_colour("vae"), "data.memory_limit=0", "data.workers=0", "data.flip=true"],
    "vae-clipped": [*TINY["vae"], "trainer.gradient_clip_val=0.1", "trainer.accumulate_grad_batches=2"],
}
COMPARED = ("best", "last", "finite_loss", "exact_resume", "ema", "estimator_variance", "sample_distance")


def colours():
    """Return 500 colour images of 12 x 15 pixels with labels of three classes."""
    images = torch.randint(256, (500, 3, 12, 15), generator=torch.Generator().manual_seed(0)).byte()
    return torch.utils.data.TensorDataset(images, torch.arange(500) % 3)


def runs():
    """Return the overrides of every run to compare, by name: all recipes, all experiments, and more options."""
    return TINY | OPTIONS | {f"experiment={name}": [f"experiment={name}", *o] for name, o in EXPERIMENTS.items()}


def of(name):
    """Return the overrides of a run of two short epochs, without callbacks that only draw."""
    overrides = [*runs()[name], "trainer.max_epochs=2", "trainer.log_every_n_steps=7", "trainer.limit_train_batches=9"]
    overrides += ["callbacks.estimator_variance.every_n_steps=9", "callbacks.estimator_variance.draws=2", "test=false"]
    overrides += ["callbacks.estimator_variance.batch_size=8", "trainer.limit_val_batches=1"]
    composed = config("/", *runs()[name]).callbacks
    drawn = [c for c, node in composed.items() if node and "_target_" in node and c not in COMPARED]
    kept = [o for o in overrides if not any(f"callbacks.{c}." in o for c in drawn)]
    if "estimator_variance" not in composed:
        kept = [o for o in kept if "estimator_variance" not in o]
    return [*kept, *(f"~callbacks.{c}" for c in drawn)]


class One(L.LightningModule):
    """One weight that follows the mean of the data."""

    def __init__(self, skip_at=None, plateau=False):
        super().__init__()
        self.weight, self.skip_at, self.plateau = nn.Parameter(torch.zeros(())), skip_at, plateau
        self.mean = MeanMetric()
        self.register_buffer("count", torch.zeros(()))

    def on_train_batch_start(self, batch, batch_idx):
        self.log("by_hook", float(batch_idx))
        return -1 if batch_idx == self.skip_at else None

    def training_step(self, batch, batch_idx):
        loss = (batch[0].mean() + 0.1 * torch.randn(()) - self.weight).square()
        self.count.add_(1)
        self.log("train", loss)
        self.log("count", self.count)
        self.log("parameter", self.weight)
        self.log("epoch_mean", loss, on_step=True, on_epoch=True)
        if batch_idx % 3 == 2:
            self.log("third", loss, prog_bar=True)
        self.mean(loss.detach())
        self.log("metric", self.mean, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", (batch[0].mean() - self.weight).square(), batch_size=1)

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=0.1)
        if self.plateau:
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=1)
            return {
                "optimizer": optimiser,
                "lr_scheduler": {"scheduler": schedule, "monitor": "train", "interval": "step"},
            }
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.9**step)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fitted(folder, k, *, module=None, callbacks=(), batches=13, **options):
    """Train with K = ``k``. Return the logged rows, the final state and the Trainer."""
    quiet_lightning()
    torch.manual_seed(0)
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.linspace(-1, 1, 4 * batches)[:, None]), batch_size=4
    )
    options = {"max_epochs": 2, "log_every_n_steps": 5, "num_sanity_val_steps": 0} | options
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=CSVLogger(folder, name="", version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, ModelCheckpoint(folder / "last", save_last=True, save_weights_only=False)],
        **options,
    )
    use_executions(trainer, k, graphs=True)
    module = module or One()
    trainer.fit(module, data, data)
    rows = (folder / "metrics.csv").read_text(encoding="utf-8") if (folder / "metrics.csv").exists() else ""
    state = torch.load(folder / "last" / "last.ckpt", weights_only=True) if (folder / "last").exists() else {}
    return rows, {**state, "random": torch.get_rng_state()}, trainer
