"""Tests of the callbacks. They measure, draw and save, and do not change the trained weights."""

import csv
import logging
import re
import signal
import time
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from helpers import TINY, Pixel, SendSignal, assert_same, checkpoint, config, run, tiers
from processes import together
from torch import nn
from torch.testing import assert_close

import zoo
from zoo.callbacks import (
    EMA,
    CSVLogger,
    EstimatorVariance,
    ExactResume,
    LogLikelihood,
    RunRecord,
    SampleDistance,
    Samples,
    TimeEstimate,
)
from zoo.callbacks.cadence import AtEpochs
from zoo.callbacks.ema import evaluation_weights
from zoo.callbacks.run_record import commit, hardware
from zoo.checks.errors import UserError
from zoo.datamodules import Images, Text, Toy
from zoo.ddpm import DDPM
from zoo.evaluation.distances import energy_distance
from zoo.functional.noise import chunk_generator
from zoo.sampling.chunks import sample_chunks
from zoo.sampling.pictures import picture, save_grid
from zoo.vae import VAE
from zoo.wgan import WGAN

SHORT = ["trainer.max_epochs=2", "trainer.log_every_n_steps=1", "trainer.limit_train_batches=4", "test=false"]


@pytest.mark.parametrize("name", tiers(sorted(TINY), ("ddpm", "gan", "rbm", "skipgram", "vade", "vae")))
def test_training_is_bit_identical_with_and_without_them(name, tmp_path):
    often = ["callbacks.estimator_variance.every_n_steps=2", "callbacks.estimator_variance.draws=2"]
    often += ["callbacks.estimator_variance.batch_size=8"]
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
    # With EMA, the trained weights are in current_model_state. The comparison leaves out the BatchNorm statistics.
    # Adversarial models recompute these statistics in validation, and only one of the two runs validates averaged
    # weights. No trained weight depends on the statistics.
    statistics = ("running_", "num_batches", "real_statistics")
    weights = lambda state: {k: v for k, v in state.items() if not any(part in k for part in statistics)}  # noqa: E731
    assert_same(weights(a.get("current_model_state", a["state_dict"])), weights(b["state_dict"]))
    assert_same(a["optimizer_states"], b["optimizer_states"])
    assert_same(a["random_state"], b["random_state"])
    if "ema" in config("/", *TINY[name]).callbacks:
        assert any(not torch.equal(v, a["state_dict"][k]) for k, v in b["state_dict"].items())


@pytest.mark.parametrize("reads_count", [True, False])
def test_ema_is_the_recursion_with_a_warm_decay(reads_count):
    """The first update copies the weight. A GPU computes the same average without reading the number of updates."""
    ema, weight = EMA(0.8), torch.zeros((), dtype=torch.float64)
    averaged, expected = torch.tensor(7.0, dtype=torch.float64), None
    ema._average_model = SimpleNamespace(n_averaged=torch.tensor(0))
    ema._tensors, ema.reads_count = ([averaged], [weight], [], []), reads_count
    for n in range(60):
        weight.fill_(n)
        decay = min(0.8, (1 + n) / (10 + n)) if n else 0.0
        expected = float(n) if n == 0 else decay * expected + (1 - decay) * n
        ema.update()
        assert averaged.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)  # the decay of a GPU is float32
    assert ema._average_model.n_averaged == 60


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
    assert_close(model.w.item(), averaged, rtol=1e-5, atol=0)  # after training the model has the average
    assert ema._average_model.module.count.dtype == torch.long
    with pytest.raises(ValueError, match="decay is 1, but must lie between 0 and 1"):
        EMA(decay=1)
    with pytest.raises(ValueError, match=r"weights are torch.bfloat16, which is too coarse for an average"):
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
    wrong = "VAE has no gradient estimator pathwize; choose from pathwise, pathwise\\+antithetic"
    with pytest.raises(UserError, match=wrong):  # the command line prints this error without a traceback
        run(tmp_path, *TINY["vae"], "debug=fast", "callbacks.estimator_variance.compare=[pathwize]")
    wrong = r"callbacks.samples.conditions={'num_steps': 51}: .* between 1 and the model's 50 steps, got 51"
    with pytest.raises(ValueError, match=wrong):
        run(tmp_path / "steps", *TINY["ddpm"], "callbacks.samples.conditions.num_steps=51")
    with pytest.raises(ValueError, match="contrast has 2 values for 64 samples; give one value"):
        fit(Trainable(), Samples(tmp_path, conditions={"contrast": [0.1, 0.2]}))
    with pytest.raises(ValueError, match="seed must be an integer from 0"):
        run(tmp_path / "seed", *TINY["vae"], "seed=-1")
    with pytest.raises(ValueError, match="draws must be an integer of at least 2, got 1"):
        EstimatorVariance(tmp_path, draws=1)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_what_is_due_at_which_epochs():
    trainer = L.Trainer(max_epochs=5, logger=False, enable_checkpointing=False)
    callback, progress, found = AtEpochs(2), trainer.fit_loop.epoch_progress.current, []
    for epoch in range(5):
        progress.ready, progress.completed = epoch + 1, epoch
        found.append(callback.due(trainer))
    assert found == [False, True, False, True, True]
    trainer.sanity_checking = True
    assert not callback.due(trainer)


def test_samples_cadence(tmp_path):
    run(tmp_path, *TINY["vae"], "trainer.max_epochs=5", "callbacks.samples.every_n_epochs=2", "test=false")
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [f"epoch_00{e}.png" for e in (1, 3, 4)]


@pytest.mark.parametrize("callbacks", tiers(["default", "ema"], ["ema"]))
def test_samples_within_epochs_use_the_weights_of_validation(callbacks, tmp_path):
    """The last batch and the last validation use the same weights and give the same picture."""
    few = ["trainer.max_epochs=2", "callbacks.samples.every_n_steps=11", "callbacks.samples.n=5", "test=false"]
    without = [o for o in TINY["ddpm"] if "callbacks" not in o] + [f"callbacks={callbacks}"]
    few += ["callbacks.estimator_variance=null"]
    run(tmp_path, *without, *few, "callbacks.samples.conditions.num_steps=2", "~callbacks.loss_per_step")
    pictures = {p.name: p.read_bytes() for p in (tmp_path / "samples").iterdir()}
    assert set(pictures) == {"step_000011.png", "step_000022.png", "epoch_001.png"}
    assert pictures["step_000022.png"] == pictures["epoch_001.png"] != pictures["step_000011.png"]
    with pytest.raises(ValueError, match="every_n_steps, where it is not null, must be an integer"):
        Samples(tmp_path, every_n_steps=0)


def test_averaged_weights_within_training_are_in_eval_mode_as_in_validation():
    """In ``evaluation_weights``, the model is in eval mode with averaged weights.

    After an error, the model is in training mode with its trained weights.
    """
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
            seen.append((model.training, model.grey.item()))
            with pytest.raises(RuntimeError, match="out of memory"):
                self.fail(trainer, model)
            seen.append((model.training, model.grey.item()))

        def fail(self, trainer, model):
            with evaluation_weights(trainer, model):
                seen.append((model.training, model.grey.item()))
                raise RuntimeError("out of memory")

    quiet_trainer(EMA(0.5), Look(), max_epochs=1).fit(Trainable(), examples(2), examples(1))
    (first, _, after), (second, averaged, again) = seen[:3], seen[3:]
    w = [0.5 * 0.98, 0.5 * 0.98**2]  # weights after one and after two gradient steps on w^2
    assert [t for t, _ in seen] == 2 * [True, False, True]
    assert_close([first[1], after[1], second[1], again[1]], [w[0], w[0], w[1], w[1]])
    decay = 2 / 11  # decay of the second update, during the warm-up
    assert_close(averaged[1], decay * w[0] + (1 - decay) * w[1])


def test_the_seed_of_samples_is_that_of_their_noise(tmp_path):
    for seed in (0, 5):
        model = Trainable()
        fit(model, Samples(tmp_path / str(seed), n=4, seed=seed))
        save_grid(sample_chunks(model, 4, seed), tmp_path / f"{seed}.png", 2)
        assert (tmp_path / str(seed) / "epoch_000.png").read_bytes() == (tmp_path / f"{seed}.png").read_bytes()
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "5.png").read_bytes()


def test_the_distance_that_is_logged_is_that_of_the_samples(tmp_path):
    """The distance is measured on ``n`` samples with the given seed. It is logged under two names."""
    torch.manual_seed(0)
    model, data = WGAN(network="mlp", shape=[2], hidden=[8], z_dim=4), Toy("ring", eval_batch_size=5000)
    for seed in (0, 5):
        (metrics,) = quiet_trainer(SampleDistance(n=50, seed=seed)).validate(model, datamodule=data, verbose=False)
        expected = energy_distance(sample_chunks(model, 50, seed), data.splits["val"].images[:50])
        assert_close([metrics["val/distance"], metrics["val/energy_distance"]], [expected] * 2, rtol=1e-5, atol=1e-6)


def test_csv_continues_in_the_same_folder(tmp_path):
    for step, metrics in enumerate([{"a": 1.0}, {"b": 2.0}]):
        logger = CSVLogger(tmp_path)
        logger.log_metrics(metrics, step=step)
        logger.finalize("success")
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"step": "0", "a": "1.0", "b": ""}, {"step": "1", "a": "", "b": "2.0"}]


# An execution with ``auto`` takes as many batches as fit into half a second, which depends on the machine.
ONE_AT_A_TIME = ["trainer.max_epochs=2", "trainer.steps_per_execution=1"]


def test_the_time_to_go_is_said_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="zoo.callbacks.time_estimate"):
        run(tmp_path, *TINY["vae"], *ONE_AT_A_TIME, "callbacks.time_estimate.after=7", "test=false")
    (said,) = [r.getMessage() for r in caplog.records if r.name == "zoo.callbacks.time_estimate"]
    assert said.startswith("About ") and "2 epochs of 1,408 images (digits)" in said
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        assert sum(bool(row["train/images_per_second"]) for row in csv.DictReader(file)) == 2
    assert TimeEstimate().after == 30


def said_of_the_time(folder):
    """Return the time estimates that a run of one epoch prints."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("zoo.callbacks.time_estimate")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    few = [o for o in TINY["vae"] if "batch_size" not in o] + [
        "callbacks=none",
        "trainer=ddp",
        "trainer.accelerator=cpu",
    ]
    after = ["+callbacks.estimate._target_=zoo.callbacks.TimeEstimate", "+callbacks.estimate.after=7"]
    run(folder, *few, *after, *ONE_AT_A_TIME, "trainer.devices=2", "trainer.max_epochs=1", "logger=none", "test=false")
    return said


def test_the_images_of_all_processes_are_counted(tmp_path):
    """Two processes share eleven batches of 128 images. Rank 0 prints one estimate."""
    first, second = together(2, said_of_the_time, tmp_path)
    assert len(first) == 1 and "1,408 images" in first[0] and second == []


def test_of_a_text_words_are_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="zoo.callbacks.time_estimate"):
        run(tmp_path, *TINY["skipgram"], *ONE_AT_A_TIME, "callbacks.time_estimate.after=7", "test=false")
    (said,) = [r.getMessage() for r in caplog.records if r.name == "zoo.callbacks.time_estimate"]
    words = int(re.search(r"2 epochs of ([\d,]+) words \(pydocs\)", said)[1].replace(",", ""))
    raw = Text("pydocs", min_count=20)
    raw.setup()
    # The number of words is not exact: an incomplete batch of 60 rows is not counted, and words are dropped at random.
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


def test_the_run_says_where_it_ran():
    assert "threads of" in hardware(torch.device("cpu")) and torch.__version__ in hardware(torch.device("cpu"))
    assert len(commit().removesuffix("+changes")) in (40, len("unknown"))


def test_the_seconds_of_all_parts_are_counted(tmp_path):
    """A resumed run adds its seconds to the 100 seconds in the record of the checkpoint."""
    record, trainer, found = RunRecord(tmp_path / "run"), quiet_trainer(), {}
    before = {"command": "python train.py", "commit": "abc", "hardware": "a machine", "seconds": 100.0}
    record.on_load_checkpoint(trainer, None, {"record": before | {"earlier": [{"seconds": 60.0}], "config": {}}})
    began = time.monotonic()
    record.on_train_start(trainer, None)
    record.on_fit_start(trainer, Trainable())
    record.on_save_checkpoint(trainer, None, found)
    assert 100 <= found["record"]["seconds"] <= 100 + time.monotonic() - began
    assert found["record"]["earlier"] == [{"seconds": 60.0}, before]


def test_log_likelihood_is_of_as_many_batches_as_asked_for(generator):
    """The callback uses the first two of three batches. The noise depends on the batch and on the process."""
    torch.manual_seed(0)
    model, logged = VAE(latent_dim=2, hidden=[4]).eval(), []
    model.log = lambda name, value, **how: logged.append((name, value.item(), how["batch_size"]))
    batches = [[torch.rand(n, 1, 28, 28, generator=generator), torch.zeros(n)] for n in (4, 3, 4)]
    callback, expected = LogLikelihood(every_n_epochs=1, num_samples=5, batches=2, seed=7), []
    for rank in (0, 1):
        kind = (L.Trainer, SecondOfTwo)[rank]
        trainer = kind(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
        for i, (x, y) in enumerate(batches):
            callback.on_validation_batch_end(trainer, model, None, [x, y], i)
            if i < 2:
                mean = model.log_likelihood(x, num_samples=5, generator=chunk_generator(7 + rank, i)).mean().item()
                expected.append(("val/log_likelihood", mean, len(x)))
    assert logged == expected and len({value for _, value, _ in logged}) == 4


class SecondOfTwo(L.Trainer):
    """Trainer of a single process that has rank 1."""

    global_rank = 1


def test_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(Trainable(), ExactResume(tmp_path))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def examples(n):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(n, 1), torch.zeros(n)))


def quiet_trainer(*callbacks, **kwargs):
    off = ("logger", "enable_progress_bar", "enable_model_summary")
    checkpoints = any(isinstance(c, L.pytorch.callbacks.Checkpoint) for c in callbacks)
    kwargs |= {"callbacks": list(callbacks), "accelerator": "cpu", "enable_checkpointing": checkpoints}
    return L.Trainer(**dict.fromkeys(off, False), **kwargs)


def test_each_resumption_on_another_number_of_processes_has_new_random_streams(tmp_path):
    """One process resumes from a checkpoint of two processes, first after epoch 0 and then after epoch 1.

    All random numbers differ.
    """
    seen = []

    class Draw(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(torch.rand(3))

    for epochs in (1, 2):
        trainer = quiet_trainer(ExactResume(tmp_path), max_epochs=epochs)
        trainer.fit(Trainable(), examples(4), examples(1))
        trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
        state = torch.load(tmp_path / "last.ckpt", weights_only=True)
        torch.save(state | {"random_state": 2 * state["random_state"]}, tmp_path / "last.ckpt")
        L.seed_everything(0, verbose=False)
        again = quiet_trainer(ExactResume(tmp_path), Draw(), max_epochs=epochs + 1)
        again.fit(Trainable(), examples(4), examples(1), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    torch.manual_seed(0)
    seen.append(torch.rand(3))  # seed 0 itself also gives other random numbers
    assert len(seen) == 9 and len({tuple(draw.tolist()) for draw in seen}) == 9


def test_a_signal_waits_for_the_step_that_gradients_are_gathered_for(tmp_path):
    """The signal arrives in batch 3 of 8. A step uses batches 3 and 4, so the checkpoint is written after batch 4."""
    trainer = quiet_trainer(SendSignal(2, signal.SIGTERM), ExactResume(tmp_path), max_epochs=1,
                            accumulate_grad_batches=2)  # fmt: skip
    with pytest.raises(SystemExit):
        trainer.fit(Trainable(), examples(8), examples(1))
    left = checkpoint(tmp_path, "interrupted")
    done = left["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    assert (done, left["global_step"]) == (4, 2)


def test_samples_take_conditions_by_their_earlier_names(tmp_path):
    """``setup`` replaces the earlier name ``labels`` of a condition by its current name ``y``."""
    callback = Samples(tmp_path, n=4, conditions={"labels": 1, "num_steps": 2})
    model = DDPM(steps=4, widths=[8], num_classes=3)
    callback.setup(quiet_trainer(), model, "fit")
    assert callback.conditions == {"y": 1, "num_steps": 2}
    # Without y, each of the three classes would have a full row, and n would be 6.
    assert picture(model, callback.n, callback.conditions).n == 4
    with pytest.raises(UserError, match="DDPM.sample takes no steps; it takes corrector_snr, .*, y"):
        Samples(tmp_path, conditions={"steps": 2}).setup(quiet_trainer(), model, "fit")


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
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1, got 0"):
        LogLikelihood(num_samples=0)
    with pytest.raises(ValueError, match="Pixel has no log_likelihood"):
        LogLikelihood().setup(None, Pixel(), "fit")
