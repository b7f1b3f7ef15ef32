"""Tests that K batches in one execution train bitwise as one batch at a time does, and cross nothing that is due."""

import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers import CONFIGS, TINY, assert_same, assert_same_run, config, logged, run, tiers
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torchmetrics import MeanMetric

from zoo.callbacks import EMA, FiniteLoss
from zoo.checks.errors import UserError
from zoo.training.executions import Executions, use_executions
from zoo.training.trainer import make_trainer, quiet_lightning

# An experiment in a small size. The rows are the options that make it small.
IMAGES = ["data=digits", "data.digits_repeat=1", "data.batch_size=128"]
EXPERIMENTS = {
    "ddpm_bound": [*IMAGES, "model.widths=[8,16]", "model.steps=50"],
    "ddpm_guided": [*IMAGES, "model.widths=[8,16]", "model.steps=50"],
    "ddpm_ho": [*IMAGES, "model.widths=[8,16]", "model.steps=50"],
    "gan_discrete": ["model.width=8", "data.batch_size=64", "model.discriminator_steps=3"],
    "iwae_burda": [*IMAGES, "model.hidden=[16]", "model.latent_dim=2", "model.num_samples=3"],
    "rbm_features": [*IMAGES, "model.num_hidden=8"],
    "score_mixture": ["model.hidden=[8]"],
    "vae_bernoulli": [*IMAGES, "model.hidden=[16]", "model.latent_dim=4"],
    "vae_burda": [*IMAGES, "model.hidden=[16]", "model.latent_dim=2"],
    "vae_gaussian": [*IMAGES, "model.hidden=[16]", "model.latent_dim=2"],
    "wgan_clip": [*IMAGES, "model.width=4", "model.n_critic=2"],
    "wgan_ring": ["model.hidden=[8]", "model.n_critic=3"],
}
# Other options of models that change numbers or branches from step to step.
OPTIONS = {
    "vae-annealed": ["model=vae", *IMAGES, "model.hidden=[16]", "model.latent=categorical", "model.latent_dim=3"]
    + ["model.estimator=gumbel_softmax", "model.temperature=1.0", "model.temperature_end=0.1"],
    "vae-moving-average": ["model=vae", *IMAGES, "model.hidden=[16]", "model.latent=bernoulli", "model.latent_dim=3"]
    + ["model.estimator=score_function+moving_average"],
    "vae-relax": ["model=vae", *IMAGES, "model.hidden=[16]", "model.latent=bernoulli", "model.latent_dim=3"]
    + ["model.estimator=relax"],
    "ddpm-importance": [*TINY["ddpm"], "model.timesteps=importance", "model.steps=4"],
    "gan-three": [*TINY["gan"], "model.discriminator_steps=3"],
    "rbm-schedules": [*TINY["rbm"], "model.k=[[0,1],[1,2]]", "model.momentum=[[0,0.5],[1,0.9]]"],
    "vae-clipped": [*TINY["vae"], "trainer.gradient_clip_val=0.1", "trainer.accumulate_grad_batches=2"],
}
FIRST_TIER = ("vae-annealed", "gan-three", "experiment=wgan_clip")
COMPARED = ("best", "last", "finite_loss", "exact_resume", "ema", "estimator_variance", "sample_distance")


def runs():
    """Return the overrides of every run to compare, by name: all recipes, all experiments, and more options."""
    return TINY | OPTIONS | {f"experiment={name}": [f"experiment={name}", *o] for name, o in EXPERIMENTS.items()}


def of(name):
    """Return the overrides of a run of two short epochs, without callbacks that only draw."""
    overrides = [*runs()[name], "trainer.max_epochs=2", "trainer.log_every_n_steps=7", "trainer.limit_train_batches=11"]
    overrides += ["callbacks.estimator_variance.every_n_steps=9", "callbacks.estimator_variance.draws=2", "test=false"]
    overrides += ["callbacks.estimator_variance.batch_size=8", "trainer.limit_val_batches=1"]
    composed = config("/", *runs()[name]).callbacks
    drawn = [c for c, node in composed.items() if node and "_target_" in node and c not in COMPARED]
    kept = [o for o in overrides if not any(f"callbacks.{c}." in o for c in drawn)]
    if "estimator_variance" not in composed:
        kept = [o for o in kept if "estimator_variance" not in o]
    return [*kept, *(f"~callbacks.{c}" for c in drawn)]


def test_every_experiment_is_compared():
    found = {path.stem for path in (Path(CONFIGS) / "experiment").glob("*.yaml")}
    assert found - {"classifier"} == set(EXPERIMENTS)  # the classifier is no generative model


@pytest.mark.parametrize("name", tiers(sorted(runs()), FIRST_TIER))
def test_sixteen_batches_in_one_execution_train_as_one_at_a_time(name, tmp_path):
    """The weights, averages, optimisers, chains, baselines, random state and all logged rows are bitwise equal."""
    found = {k: run(tmp_path / k, *of(name), f"trainer.steps_per_execution={k}") for k in ("1", "16")}
    expected = {k: v for k, v in found["1"].items() if "second" not in k}
    assert_same_run(found["16"], tmp_path / "16", (expected, tmp_path / "1"))
    assert logged(tmp_path / "16") == logged(tmp_path / "1")


# The loop, with a module of one weight.


class Noted(L.Callback):
    """Notes what each batch looked like, in the hooks of a callback that says nothing about its cadence."""

    def __init__(self, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(("start", batch_idx, trainer.global_step))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        shown = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.seen.append(("end", batch_idx, trainer.global_step, float(outputs["loss"]), shown))
        if trainer.fit_loop.total_batch_idx == self.stop_at:
            trainer.should_stop = True

    def on_validation_start(self, trainer, pl_module):
        self.seen.append(("validation", trainer.fit_loop.total_batch_idx, float(pl_module.weight)))


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


class Spoiled(One):
    """A module whose loss is infinite in one batch. Its weight stays finite."""

    def training_step(self, batch, batch_idx):
        infinite = torch.tensor(torch.inf if self.trainer.fit_loop.total_batch_idx == 5 else 0.0)
        return {"loss": self.weight.square(), "other": infinite}


def fitted(folder, k, *, module=None, callbacks=(), batches=13, **options):
    """Train with K = ``k``. Return the rows that were logged, the final state, and the module."""
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
    rows = (folder / "metrics.csv").read_text() if (folder / "metrics.csv").exists() else ""
    state = torch.load(folder / "last" / "last.ckpt", weights_only=True) if (folder / "last").exists() else {}
    return rows, {**state, "random": torch.get_rng_state()}, trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_epochs": 1, "max_steps": 9},
        {"val_check_interval": 4},
        {"val_check_interval": 6, "check_val_every_n_epoch": None},
        {"val_check_interval": 0.5},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.01},
        {"limit_train_batches": 7},
        {"log_every_n_steps": 1},
        {"fast_dev_run": True},
    ],
    ids=str,
)
def test_no_option_of_the_trainer_makes_executions_differ(options, tmp_path):
    found = {}
    for k in (1, 16, "auto"):
        noted = Noted()
        rows, state, _ = fitted(tmp_path / str(k), k, callbacks=[noted, LearningRateMonitor()], **options)
        found[k] = rows, noted.seen, {key: state.get(key) for key in COMPARED_STATE}
    for k in (16, "auto"):
        assert found[k][0] == found[1][0]
        assert found[k][1] == found[1][1]
        assert_same(found[k][2], found[1][2])
    assert found[1][1]


COMPARED_STATE = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "random", "global_step", "epoch")


@pytest.mark.parametrize("what", ["skip", "plateau", "should_stop", "checkpoint every 3 steps"])
def test_what_a_module_or_a_callback_asks_for_ends_an_execution(what, tmp_path):
    found = {}
    for k in (1, 16):
        module = One(skip_at=5 if what == "skip" else None, plateau=what == "plateau")
        callbacks = [Noted(stop_at=8 if what == "should_stop" else None)]
        if what.startswith("checkpoint"):
            folder = tmp_path / str(k) / "steps"
            callbacks.append(ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1))
        rows, state, _ = fitted(tmp_path / str(k), k, module=module, callbacks=callbacks)
        saved = {p.name: torch.load(p, weights_only=True) for p in sorted((tmp_path / str(k)).rglob("step*/*.ckpt"))}
        kept = {name: {key: c[key] for key in ("state_dict", "loops", "global_step")} for name, c in saved.items()}
        found[k] = rows, callbacks[0].seen, {key: state.get(key) for key in COMPARED_STATE}, kept
    assert found[16][:2] == found[1][:2]
    assert_same(found[16][2:], found[1][2:])
    assert not what.startswith("checkpoint") or len(found[1][3]) == 8


def test_hooks_of_a_callback_that_names_its_cadence_run_when_they_are_due_only(tmp_path):
    class EveryFifth(L.Callback):
        seen = ()

        def batches_until_due(self, trainer):
            return 5 - (trainer.fit_loop.total_batch_idx + 1) % 5

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen = (*self.seen, trainer.fit_loop.total_batch_idx)

    callback = EveryFifth()
    fitted(tmp_path, 100, callbacks=[callback], log_every_n_steps=0, max_epochs=1, batches=23)
    assert callback.seen == (4, 9, 14, 19, 22)  # 22 is the last batch of the epoch


def test_an_average_of_weights_is_the_same_in_both_loops(tmp_path):
    averages = []
    for k in (1, 16):
        ema = EMA(0.9)
        fitted(tmp_path / str(k), k, callbacks=[ema])
        averages.append((ema._average_model.module.weight.item(), int(ema._average_model.n_averaged)))
    assert averages[0] == averages[1] and averages[0][1] == 26
    assert averages[0][0] != 0


@pytest.mark.parametrize("k", [1, 4, 16])
def test_a_value_that_was_infinite_within_an_execution_is_named_with_its_step(k, tmp_path):
    with pytest.raises(UserError, match=r"at step 5 \(epoch 0\) other = inf \(loss = 0\)"):
        fitted(tmp_path, k, module=Spoiled(), callbacks=[FiniteLoss(tmp_path)])


def test_a_signal_ends_an_execution_with_its_batch(tmp_path):
    class Signalled(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.fit_loop.total_batch_idx == 3:
                signal.raise_signal(signal.SIGTERM)

    from zoo.callbacks import ExactResume

    with pytest.raises(SystemExit):
        fitted(tmp_path, 100, callbacks=[Signalled(), ExactResume(tmp_path)])
    saved = torch.load(tmp_path / "checkpoints" / "interrupted.ckpt", weights_only=True)
    assert saved["global_step"] == 4


def test_executions_grow_with_auto_and_stay_below_the_largest(tmp_path, monkeypatch):
    import zoo.training.executions as module

    monkeypatch.setattr(module, "MOST", 40)
    _, _, trainer = fitted(tmp_path, "auto", batches=400, max_epochs=1, log_every_n_steps=0)
    loop = trainer.fit_loop.epoch_loop
    assert isinstance(loop, Executions) and 1 < loop.size <= loop.most == 40


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "many", True])
def test_a_wrong_number_of_batches_is_refused_at_the_start(wrong):
    with pytest.raises(UserError, match=r"steps_per_execution.*auto"):
        make_trainer(steps_per_execution=wrong, accelerator="cpu", logger=False)
