"""Tests of EstimatorVariance: values, several processes, memory, and other options of training."""

from dataclasses import replace

import lightning as L
import pytest
import torch
import torch.distributed as dist
from helpers import QUIET, TINY, checkpoint, config, model_of, run, tiers
from processes import together
from torch import nn
from torch.func import grad
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

from zoo.callbacks import EstimatorVariance
from zoo.callbacks.measurement import Measurement
from zoo.estimators import (
    GradientEstimator,
    GradientMoments,
    call_with,
    chunk_size,
    gradient_moments,
    gradients,
    split_variance,
)
from zoo.estimators.figures import measurements, plot, table
from zoo.functional.noise import chunk_generator
from zoo.training.tables import read_rows
from zoo.vae import VAE


def measured(folder):
    return measurements(read_rows(folder / "estimator_variance.csv"))


# Chunks: several draws in one call of the surrogate.


@pytest.mark.parametrize("name", sorted(set(TINY) - {"skipgram"}))
def test_draws_at_once_are_those_of_the_loop(name, generator):
    """Draws in chunks equal draws in a loop up to float32 rounding. The test covers all models except SkipGram."""
    torch.manual_seed(0)
    model = model_of(config("/", *TINY[name], *QUIET))
    with torch.no_grad():  # change the layers that start at zero
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = [torch.rand(6, 1, 28, 28, generator=generator).round(), torch.arange(6)]
    for estimator in model.gradient_estimators().values():
        if estimator.name.endswith("_chain"):  # chains of 50 steps are slow
            continue
        params = {k: p.detach() for k, p in estimator.params.items()}
        for k, g in enumerate(gradients(estimator, batch, range(3), seed=2)):
            alone = grad(estimator.surrogate)(params, batch, estimator.noise(batch, chunk_generator(2, k)))
            scale = torch.cat([p.flatten() for p in alone.values()]).norm()
            for key, p in alone.items():
                assert (g[key] - p).norm() <= 1e-4 * scale, (estimator.name, key)


def linear(draw=lambda batch, g: {"eps": torch.randn(3, generator=g)}, n=3, **kwargs):
    """Return an estimator with gradient g = x + eps, from the surrogate theta'(x + eps)."""
    surrogate = lambda p, batch, noise: (p["theta"] * (batch + noise["eps"])).sum()  # noqa: E731
    return GradientEstimator("linear", {"theta": torch.zeros(n)}, draw, surrogate, **kwargs)


def test_chunks_are_of_small_networks_and_of_the_same_draws():
    seen = []

    def draw(batch, g):
        seen.append(None)
        return {"eps": torch.randn(3, generator=g)}

    assert chunk_size(linear()) == 8 and chunk_size(linear(batched=False)) == 1
    assert chunk_size(linear(n=1_000_000)) == 1
    stream = gradients(linear(draw), torch.zeros(3), range(5, 20))
    numbers = []
    for g in stream:  # the chunks have draws 5 to 7, 8 to 15, and 16 to 19
        numbers.append(len(seen))
        assert_close(g["theta"], torch.randn(3, generator=chunk_generator(0, 4 + len(numbers))))
    assert numbers == [3] * 3 + [11] * 8 + [15] * 4


def test_a_chunk_is_one_call_and_noise_may_be_none():
    """Eight draws of a small network call the surrogate once, through vmap. Without vmap, they call it eight times."""
    for e, batch in (
        (linear(), torch.zeros(3)),
        (VAE(latent_dim=2, hidden=[8]).gradient_estimators()["pathwise"], None),
    ):
        batch = [torch.zeros(4, 1, 28, 28)] if batch is None else batch
        for batched, expected in ((True, 1), (False, 8)):
            calls = []
            counted = lambda p, b, n, e=e, calls=calls: calls.append(1) or e.surrogate(p, b, n)  # noqa: E731
            found = list(gradients(replace(e, surrogate=counted, batched=batched), batch, range(8)))
            assert (len(found), len(calls)) == (8, expected)
    sure = GradientEstimator("sure", {"theta": torch.ones(3)}, lambda b, g: {}, lambda p, b, n: p["theta"].sum())
    assert gradient_moments(sure, None, range(9))[0].statistics()["all"]["snr"] == float("inf")


def test_what_vmap_cannot_take_goes_one_by_one(generator):
    norm = nn.BatchNorm1d(2)

    def surrogate(params, batch, noise):
        return call_with(norm, params, lambda: (norm(noise["eps"]) ** 3).sum())

    draw = lambda batch, g: {"eps": torch.randn(5, 2, generator=g)}  # noqa: E731
    estimator = GradientEstimator("normed", dict(norm.named_parameters()), draw, surrogate)
    moments, _ = gradient_moments(estimator, None, range(10))
    assert moments.n == 10 and moments.statistics()["all"]["variance"] > 0
    broken = GradientEstimator("broken", dict(norm.named_parameters()), draw, lambda p, b, n: n["nothing"])
    with pytest.raises(KeyError, match="nothing"):
        gradient_moments(broken, None, range(2))


def test_memory_is_one_gradient_and_its_mean(generator):
    """The float32 gradient and the float64 mean gradient take three times the bytes of the float32 weights.

    Temporary slices take a few per cent more.
    """
    x = torch.randn(8000, generator=generator)
    weight = torch.zeros(1000, 8000)
    noise = lambda batch, g: {"eps": torch.randn(1000, generator=g)}  # noqa: E731
    estimator = GradientEstimator("linear", {"w": weight}, noise, lambda p, b, n: ((p["w"] @ x) * n["eps"]).sum())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        moments, _ = gradient_moments(estimator, None, range(4))
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert moments.n == 4
    assert 2.9 < peak / (4 * weight.numel()) < 3.15


# Several processes.


def merged(parts):
    """Return the number, mean and variance of all draws. Each process adds the draws of one of the ``parts``."""
    dist.init_process_group("gloo")

    def total(value):
        dist.all_reduce(value)
        return value

    moments = GradientMoments()
    for draw in parts[dist.get_rank()]:
        moments.update(draw)
    moments.merge(total, {"w": torch.zeros(3)})
    return moments.n, moments.mean["w"].tolist(), moments.statistics()["all"]["variance"]


def test_moments_merged_over_processes_are_those_of_all_draws(generator):
    """The draws have a large mean, and one process has no draws."""
    draws = [{"w": 1e6 + torch.randn(3, generator=generator, dtype=torch.float64)} for _ in range(7)]
    whole = GradientMoments()
    for draw in draws:
        whole.update(draw)
    for n, mean, variance in together(3, merged, [draws[:1], [], draws[1:]]):
        assert n == 7
        assert_close(mean, whole.mean["w"].tolist(), rtol=1e-14, atol=0)
        assert_close(variance, whole.statistics()["all"]["variance"], rtol=1e-8, atol=0)


def one_measurement(folder, world_size, name, overrides):
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={world_size}", "trainer.max_epochs=1"]
    once = ["trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "test=false", "logger=csv"]
    others = [c for c, node in config("/", *TINY[name]).callbacks.items() if "_target_" in node]
    drop = [f"~callbacks.{c}" for c in others if c != "estimator_variance"]
    run(folder, *[o for o in TINY[name] if not o.startswith("callbacks.")], *ddp, *once, *drop, *overrides)


def assert_same_measurement(folder, world_sizes, name, *overrides):
    few = [f"callbacks.estimator_variance.{o}" for o in ("every_n_steps=1", *overrides)]
    for n in world_sizes:
        together(n, one_measurement, folder / str(n), n, name, few)
    (one,) = measured(folder / "1")
    keys = [k for k in one if k.startswith(("variance/", "snr/", "data_variance/", "total_variance/")) and one[k]]
    for n in world_sizes[1:]:
        (other,) = measured(folder / str(n))
        for key in keys:
            assert_close(float(other[key]), float(one[key]), rtol=1e-9, atol=1e-12, msg=key)
    return keys


@pytest.mark.parametrize("name", tiers(sorted(TINY), ("vae", "rbm", "ddpm", "skipgram")))
def test_two_processes_measure_what_one_does(name, tmp_path):
    """One and two processes measure three draws of every estimator of every model. Results are equal up to rounding."""
    assert assert_same_measurement(tmp_path, (1, 2), name, "draws=3", "batch_size=8")


ONE_AND_FOUR = pytest.param(3, (1, 4))
OTHERS = [pytest.param(*case, marks=pytest.mark.slow) for case in ((1, (1, 2, 4)), (3, (1, 2)))]


@pytest.mark.parametrize(("batches", "world_sizes"), [ONE_AND_FOUR, *OTHERS])
def test_the_result_does_not_depend_on_how_draws_are_spread(batches, world_sizes, tmp_path):
    """21 draws form chunks of 8, 8 and 5. One, two or four processes share the chunks. One of the four has none."""
    few = ["draws=21", "batch_size=20", f"batches={batches}"]
    assert len(assert_same_measurement(tmp_path, world_sizes, "vae", *few)) == (42 if batches == 1 else 84)


# The variance within a batch and the variance between batches.


def test_noise_of_the_data_and_of_the_draws_by_hand():
    """Three batches have two scalar draws each. The means of the batches are 0, 3, 6 and the variances 2, 8, 2."""
    per_batch = []
    for low, high in ((-1.0, 1.0), (1.0, 5.0), (5.0, 7.0)):
        moments = GradientMoments()
        for value in (low, high):
            moments.update({"theta": torch.tensor([value])})
        per_batch.append(moments)
    split = split_variance(per_batch)["all"]
    assert_close(split.variance, 4.0)
    assert_close(split.data_variance, 9 - 4 / 2)
    assert_close(split.snr, ((9 - 9 / 3) / 4) ** 0.5)
    with pytest.raises(ValueError, match="at least two batches, got 1"):
        split_variance(per_batch[:1])


def test_the_split_is_unbiased(generator):
    """The gradient is x + eps in three dimensions, with data x ~ N(1, 4) and noise eps ~ N(0, 9).

    The test uses 2,000 batches of 4 draws, and allows 4.5 standard errors.
    """
    e = linear(lambda batch, g: {"eps": 3 * torch.randn(3, generator=g)})
    batches = 1 + 2 * torch.randn(2000, 3, generator=generator)
    split = split_variance(gradient_moments(e, x, range(4 * i, 4 * i + 4))[0] for i, x in enumerate(batches))
    one = split["all"]
    assert abs(one.variance - 27) < 4.5 * 27 * (2 / (3 * 3 * 2000)) ** 0.5
    of_means = 4 + 9 / 4  # variance of the mean gradients of batches, for each of three coordinates
    assert abs(one.data_variance - 12) < 4.5 * 3 * of_means * (2 / (3 * 2000)) ** 0.5 < 1.6
    assert abs(one.snr**2 * one.variance - 3) < 4.5 * 2 * (of_means / 2000) ** 0.5 * 3**0.5 + 0.05


def test_probe_batches_have_the_given_size_and_different_noise():
    """All images are equally grey. Noise with the keys (seed, -1) and (seed, -2) binarises the two batches."""
    torch.manual_seed(0)
    model, callback = VAE(latent_dim=2, hidden=[4]), EstimatorVariance("x", draws=2, batch_size=3, batches=2, seed=5)
    grey = torch.utils.data.TensorDataset(torch.full((8, 1, 28, 28), 0.5), torch.zeros(8))
    loader = torch.utils.data.DataLoader(grey, batch_size=4)
    trainer = L.Trainer(max_epochs=1, limit_train_batches=1, num_sanity_val_steps=0, callbacks=[callback], logger=False,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                        accelerator="cpu")  # fmt: skip
    callback.on_train_end = lambda *_: None  # draw no figure
    trainer.fit(model, loader, loader)
    for i, (x, y) in enumerate(callback.probes):
        u = torch.rand(3, 1, 28, 28, generator=chunk_generator(5, -1 - i))
        assert torch.equal(x, (u < 0.5).float()) and y.shape == (3,)
    assert len(callback.probes) == 2


def test_the_draws_of_each_batch_begin_with_a_whole_chunk():
    """A chunk has eight draws. With five draws per batch, batch 0 uses draws 0 to 4, and batch 1 uses draws 8 to 12."""
    e = linear(lambda batch, g: {"eps": torch.randn(3, generator=g)})
    assert chunk_size(e) == 8
    batches = [torch.ones(3), torch.tensor([1.0, 2.0, 4.0])]
    measurement = Measurement({"e": e}, batches, draws=5, seed=3)
    while not measurement.done:
        measurement.advance()
        measurement.end_batch()
    moments = [gradient_moments(e, x, range(8 * i, 8 * i + 5), 3)[0] for i, x in enumerate(batches)]
    assert measurement.values()["variance/e/all"] == split_variance(moments)["all"].variance


def test_both_kinds_are_logged_on_request(tmp_path):
    more = ["callbacks.estimator_variance.batches=4", "callbacks.estimator_variance.batch_size=40"]
    run(tmp_path, *TINY["vae"], "debug=fast", *more, "test=false")
    (row,) = measured(tmp_path)
    for group in ("all", "encoder", "decoder"):
        data, total = (float(row[f"{kind}/pathwise/{group}"]) for kind in ("data_variance", "total_variance"))
        assert data > 0
        assert_close(total, data + float(row[f"variance/pathwise/{group}"]))
    with pytest.raises(ValueError, match="data have 4 whole batches of 40 examples, fewer than batches=5"):
        run(tmp_path / "b", *TINY["vae"], "debug=fast", *more, "callbacks.estimator_variance.batches=5")


# Times of measurements.


def test_values_are_written_at_every_measurement(tmp_path):
    every = ["callbacks.estimator_variance.every_n_steps=4", "callbacks.estimator_variance.draws=3"]
    run(tmp_path, *TINY["vae"], "trainer.max_epochs=1", *every, "test=false")
    rows = measured(tmp_path)
    assert [int(row["step"]) for row in rows] == [0, 4, 8]
    for row in rows:
        total, encoder, decoder = (float(row[f"variance/pathwise/{g}"]) for g in ("all", "encoder", "decoder"))
        assert_close(total, encoder + decoder)
        assert float(row["variance/score_function/encoder"]) > 10 * encoder
        assert float(row["ms_per_draw/pathwise"]) > 0


def test_measurements_at_fractions_of_the_run(tmp_path):
    share = ["callbacks.estimator_variance.every_n_steps=0.3", "callbacks.estimator_variance.draws=2"]
    run(tmp_path, *TINY["vae"], "trainer.max_epochs=2", *share, "test=false")
    assert [int(row["step"]) for row in measured(tmp_path)] == [0, 6, 12, 18]  # the run has 22 steps
    for wrong in (0, 1.5, True, "often"):
        with pytest.raises(ValueError, match="every_n_steps .*must be an integer"):
            EstimatorVariance("x", every_n_steps=wrong)
    with pytest.raises(ValueError, match=r"every_n_steps=0.3 is a fraction of the run, and this run has no end"):
        run(tmp_path / "endless", *TINY["vae"], "trainer.max_epochs=-1", *share)


# Other options of training.


@pytest.mark.parametrize(
    "options",
    [
        ["callbacks=ema", "trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed"],
        ["compile=aot_eager"],
    ],
)
def test_averages_accumulation_half_precision_and_compilation_do_not_change_it(options, tmp_path):
    """With every option, the first measurement has the same float32 weights, and therefore the same values."""
    both = [*TINY["vae"], "trainer.max_epochs=1", "callbacks.estimator_variance.every_n_steps=5", "test=false"]
    both = [o for o in both if not o.startswith("callbacks.l")]
    both += ["callbacks.estimator_variance.batch_size=16", "callbacks.estimator_variance.draws=3"]
    run(tmp_path / "plain", *both)
    run(tmp_path / "other", *both, *options)
    plain, other = measured(tmp_path / "plain"), measured(tmp_path / "other")
    accumulated = "trainer.accumulate_grad_batches=2" in options
    steps = ["0", "2", "5"] if accumulated else ["0", "5", "10"]  # optimiser steps
    assert [row["step"] for row in other] == steps
    for key, value in plain[0].items():
        if key.startswith(("variance/", "snr/")) and value:
            assert_close(float(other[0][key]), float(value), rtol=1e-4, atol=1e-5)
    assert not any("_orig_mod" in key for key in checkpoint(tmp_path / "other")["state_dict"])


# The figure and the table.


def test_the_plot_and_the_table_take_any_history():
    row = {"step": 0, "variance/a/all": 1.0, "snr/a/all": 0.0, "ms_per_draw/a": 2.0}
    for history in ([], [row], [row | {"data_variance/a/all": 2.0, "total_variance/a/all": 3.0}]):
        assert len(plot(history).axes) == 2
        columns, rows = table(history)
        assert len(rows) == len(history) and all(len(r) == len(columns) for r in rows)
    assert rows == [[0, "a", "all", 1.0, 2.0, 3.0, 0.0, 2.0, None]]
