"""Callbacks look and write; what is learnt does not know of them."""

import csv
import re
import signal
from urllib.parse import urlsplit

import lightning as L
import pytest
import torch
import wandb
from helpers import TINY, Pixel, assert_same, checkpoint, config, run
from torch import nn
from torch.testing import assert_close

import zoo
from zoo.callbacks import EMA, CSVLogger, EstimatorVariance, ExactResume, LogLikelihood, Samples, TimeEstimate
from zoo.callbacks.cadence import due
from zoo.callbacks.ema import ema_update
from zoo.callbacks.run_record import commit, hardware
from zoo.checks.errors import UserError
from zoo.datamodules import Images, Text
from zoo.functional.noise import chunk_generator
from zoo.training.wandb_login import wandb_credentials

SHORT = ["trainer.max_epochs=2", "trainer.log_every_n_steps=1", "trainer.limit_train_batches=4", "test=false"]


@pytest.mark.parametrize("name", sorted(TINY))
def test_training_is_bit_identical_with_and_without_them(name, tmp_path):
    often = ["callbacks.estimator_variance.every_n_steps=1", "callbacks.estimator_variance.draws=2"]
    if name != "skipgram":
        often += ["callbacks.samples.n=5", "callbacks.samples.every_n_epochs=1"]
    if name in ("vae", "cvae", "vade"):
        often += ["callbacks.latents.every_n_epochs=1", "callbacks.log_likelihood.every_n_epochs=1"]
    run(tmp_path / "with", *TINY[name], *SHORT, *often)
    without = [o for o in TINY[name] if "callbacks" not in o] + ["callbacks=none", "logger=none"]
    without += [
        f"~callbacks.{c}"
        for c in ("best", "sample_distance", "codes", "loss_per_step")
        if c in config("/", *TINY[name]).callbacks
    ]
    run(tmp_path / "without", *without, *SHORT)
    a, b = checkpoint(tmp_path / "with"), checkpoint(tmp_path / "without")
    # EMA keeps the trained weights there. Without it validation takes their running statistics anew, which no weight
    # ever depends on.
    anew = ("running_", "num_batches", "real_statistics")
    weights = lambda state: {k: v for k, v in state.items() if not any(part in k for part in anew)}  # noqa: E731
    assert_same(weights(a.get("current_model_state", a["state_dict"])), weights(b["state_dict"]))
    assert_same(a["optimizer_states"], b["optimizer_states"])
    assert_same(a["random_state"], b["random_state"])
    if "ema" in config("/", *TINY[name]).callbacks:
        assert any(not torch.equal(v, a["state_dict"][k]) for k, v in b["state_dict"].items())


def test_ema_is_the_recursion_with_a_warm_decay():
    averaged = torch.tensor(0.0, dtype=torch.float64)
    weight, expected = 0.0, 0.0
    for n in range(1, 60):
        weight = float(n)
        decay = min(0.8, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
        averaged = ema_update(averaged, torch.tensor(weight, dtype=torch.float64), torch.tensor(n), 0.8)
        assert_close(averaged.item(), expected)


def test_ema_averages_parameters_and_copies_buffers():
    class Counter(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.0))
            self.register_buffer("count", torch.zeros((), dtype=torch.long))

        def training_step(self, batch, batch_idx):
            self.count += 1
            return (self.w - 10.0) ** 2

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model, ema = Counter(), EMA(decay=0.5)
    trainer = L.Trainer(
        max_epochs=1,
        callbacks=[ema],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.zeros(8), batch_size=1))
    w, averaged = 0.0, None
    for n in range(8):
        w = w - 0.2 * (w - 10)
        decay = min(0.5, (1 + n) / (10 + n))
        averaged = w if averaged is None else decay * averaged + (1 - decay) * w
    assert_close(model.w.item(), averaged, rtol=1e-5, atol=0)  # the average is what training ends with
    assert ema._average_model.module.count.dtype == torch.long
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        EMA(decay=1)
    with pytest.raises(ValueError, match=r"weights of torch.bfloat16 cannot hold an average of decay 0.5"):
        ema.on_train_start(trainer, Counter().bfloat16())


def fit(model, *callbacks):
    trainer = L.Trainer(
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(c, L.pytorch.callbacks.Checkpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        log_every_n_steps=1,
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 1), torch.zeros(4)))
    trainer.fit(model, loader, loader)
    return trainer


class Trainable(Pixel):
    def training_step(self, batch, batch_idx):
        return self.grey**2

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Plain(Trainable):
    sample = None


def test_a_missing_capability_fails_at_set_up_with_both_names(tmp_path):
    with pytest.raises(ValueError, match="Plain has no method sample"):
        fit(Plain(), Samples(tmp_path))
    with pytest.raises(ValueError, match="Pixel.sample takes no steps|Trainable.sample takes no steps"):
        fit(Trainable(), Samples(tmp_path, conditions={"steps": 3}))
    with pytest.raises(ValueError, match="Trainable has no method gradient_estimators"):
        fit(Trainable(), EstimatorVariance(tmp_path))
    wrong = "VAE has no gradient estimator pathwize; it has pathwise, pathwise\\+antithetic"
    with pytest.raises(UserError, match=wrong):  # which the command line prints without a traceback
        run(tmp_path, *TINY["vae"], "debug=fast", "callbacks.estimator_variance.compare=[pathwize]")
    wrong = r"callbacks.samples.conditions={'num_steps': 51}: .* between 1 and the model's 50 steps, got 51"
    with pytest.raises(ValueError, match=wrong):
        run(tmp_path / "steps", *TINY["ddpm"], "callbacks.samples.conditions.num_steps=51")
    with pytest.raises(ValueError, match="contrast must be one value, or a list of one for each of 64 samples; got 2"):
        fit(Trainable(), Samples(tmp_path, conditions={"contrast": [0.1, 0.2]}))
    with pytest.raises(ValueError, match="seed must be a whole number from 0"):
        run(tmp_path / "seed", *TINY["vae"], "seed=-1")
    with pytest.raises(ValueError, match="draws must be a whole number of at least 2, got 1"):
        EstimatorVariance(tmp_path, draws=1)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_what_is_due_at_which_epochs():
    trainer = L.Trainer(max_epochs=5, logger=False, enable_checkpointing=False)
    found = []
    for epoch in range(5):
        trainer.fit_loop.epoch_progress.current.completed = epoch
        found.append(due(trainer, 2))
    assert found == [False, True, False, True, True]
    trainer.sanity_checking = True
    assert not due(trainer, 2)


def test_samples_cadence(tmp_path):
    run(tmp_path, *TINY["vae"], "trainer.max_epochs=5", "callbacks.samples.every_n_epochs=2", "test=false")
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [f"epoch_00{e}.png" for e in (1, 3, 4)]


@pytest.mark.parametrize("callbacks", ["default", "ema"])
def test_samples_within_epochs_are_of_the_weights_that_are_judged(callbacks, tmp_path):
    """The last batch of the run leaves the weights that the last validation judges: the same picture."""
    few = ["trainer.max_epochs=2", "callbacks.samples.every_n_steps=11", "callbacks.samples.n=5", "test=false"]
    without = [o for o in TINY["ddpm"] if "callbacks" not in o] + [f"callbacks={callbacks}"]
    run(tmp_path, *without, *few, "callbacks.samples.conditions.num_steps=2", "~callbacks.loss_per_step")
    pictures = {p.name: p.read_bytes() for p in (tmp_path / "samples").iterdir()}
    assert set(pictures) == {"step_000011.png", "step_000022.png", "epoch_001.png"}
    assert pictures["step_000022.png"] == pictures["epoch_001.png"] != pictures["step_000011.png"]
    with pytest.raises(ValueError, match="every_n_steps, where it is not null, must be a whole number"):
        Samples(tmp_path, every_n_steps=0)


def test_csv_continues_in_the_same_folder(tmp_path):
    for step, metrics in enumerate([{"a": 1.0}, {"b": 2.0}]):
        logger = CSVLogger(tmp_path)
        logger.log_metrics(metrics, step=step)
        logger.finalize("success")
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"a": "1.0", "b": "", "step": "0"}, {"a": "", "b": "2.0", "step": "1"}]


def test_the_time_to_go_is_said_once(tmp_path, caplog):
    import logging

    with caplog.at_level(logging.INFO, logger="zoo.callbacks.time_estimate"):
        run(tmp_path, *TINY["vae"], "trainer.max_epochs=2", "callbacks.time_estimate.after=7", "test=false")
    (said,) = [r.getMessage() for r in caplog.records if r.name == "zoo.callbacks.time_estimate"]
    assert said.startswith("About ") and "2 epochs of 1,408 images (digits)" in said
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        assert sum(bool(row["train/images_per_second"]) for row in csv.DictReader(file)) == 2
    assert TimeEstimate().after == 30


def test_of_a_text_words_are_counted(tmp_path, caplog):
    import logging

    with caplog.at_level(logging.INFO, logger="zoo.callbacks.time_estimate"):
        run(tmp_path, *TINY["skipgram"], "trainer.max_epochs=2", "callbacks.time_estimate.after=7", "test=false")
    (said,) = [r.getMessage() for r in caplog.records if r.name == "zoo.callbacks.time_estimate"]
    words = int(re.search(r"2 epochs of ([\d,]+) words \(pydocs\)", said)[1].replace(",", ""))
    raw = Text("pydocs", min_count=20)
    raw.setup()
    # All of the text but for what does not fill a batch of 60 rows, and the spread of what is left out.
    assert 0.88 * raw.corpus.raw_words < words < 1.02 * raw.corpus.raw_words
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        assert sum(bool(row["train/words_per_second"]) for row in csv.DictReader(file)) == 2


def test_tensorboard_gets_metrics_and_samples(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, *TINY["vae"], "debug=fast", "logger=tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "val/loss", "variance/pathwise/all"} <= set(events.Tags()["scalars"])
    assert events.Images("samples")[0].encoded_image_string.startswith(b"\x89PNG")


def test_wandb_credentials_are_found_where_wandb_keeps_them(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert not wandb_credentials()
    for host in ("api.wandb.ai", urlsplit(wandb.Settings().base_url).netloc):
        (tmp_path / ".netrc").write_text(
            f"machine {host}\n  login user\n  password " + "0" * 40 + "\n", encoding="utf-8"
        )
        (tmp_path / ".netrc").chmod(0o600)
        assert wandb_credentials()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert not wandb_credentials()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_credentials()


def test_the_run_says_where_it_ran():
    assert "threads of" in hardware(torch.device("cpu")) and torch.__version__ in hardware(torch.device("cpu"))
    assert len(commit().removesuffix("+changes")) in (40, len("unknown"))


def test_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(Trainable(), ExactResume(tmp_path))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_log_likelihood_is_that_of_the_first_validation_images(tmp_path):
    run(tmp_path, *TINY["vae"], "trainer.max_epochs=3", "callbacks.log_likelihood.every_n_epochs=2", "test=false")
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        values = [float(r["val/log_likelihood"]) for r in csv.DictReader(file) if r["val/log_likelihood"]]
    assert len(values) == 2  # after epochs 2 and 3
    data = Images("digits")
    data.setup()
    x, _ = next(iter(data.val_dataloader()))
    model = zoo.load(tmp_path / "checkpoints" / "last.ckpt")
    measured = model.log_likelihood(x, num_samples=100, generator=chunk_generator(0, 0))
    assert_close(values[-1], measured.mean().item(), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="num_samples must be a whole number of at least 1, got 0"):
        LogLikelihood(num_samples=0)
    with pytest.raises(ValueError, match="Pixel has no log_likelihood to measure"):
        LogLikelihood().setup(None, Pixel(), "fit")
