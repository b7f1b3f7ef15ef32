"""Checks of training on a GPU, as functions of the accelerator. ``tests/gpu`` runs them on a GPU.

``tests/runs/test_gpu_checks.py`` runs some of them on the CPU, where no graph is captured.
"""

import logging
import signal
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import lightning as L
import torch
from helpers import TINY, assert_same, assert_same_run, checkpoint, config, model_of, run, stop
from lightning.pytorch.strategies import DDPStrategy
from processes import together

from zoo.training.tables import read_rows

# Options for deterministic algorithms. On CUDA, the gradient of a deformation has no deterministic algorithm.
SAME = {name: ["trainer.deterministic=true"] for name in TINY}
SAME["infogan"] = [*SAME["infogan"], "model.deformation=0"]
FEW_CHAINS = ["model.ais_temperatures=9", "model.test_ais_temperatures=9", "model.ais_chains=4"]
SAME["rbm"] = [*SAME["rbm"], *FEW_CHAINS]
# Runs in which something changes from step to step: 55 steps, with a change in the middle.
CHANGES = {
    "vae-temperature": ["model.latent=bernoulli", "model.estimator=gumbel_softmax", "model.temperature_end=0.1"],
    "vae-baseline": ["model.latent=bernoulli", "model.estimator=score_function+moving_average"],
    "wgan-critic": ["model.n_critic=3"],
    "gan-discriminator": ["model.discriminator_steps=3"],
    "vade-phases": ["model.pretrain_epochs=2"],
    "rbm-schedules": ["model.k=[[0,1],[2,3]]", "model.momentum=[[0,0.5],[3,0.9]]"],
    "ddpm-importance": ["model.timesteps=importance"],
}
STATE = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "chains", "global_step")
PLAIN = ["callbacks=none", "logger=none", "test=false", "trainer.limit_val_batches=1"]


def executions(size, graphs=True):
    """Return the overrides for executions of ``size`` batches, with or without CUDA graphs."""
    return [f"trainer.steps_per_execution={size}", f"trainer.cuda_graphs={str(graphs).lower()}"]


def few_samples(name):
    return [] if name == "skipgram" else ["callbacks.samples.n=2"]


def on(accelerator):
    return [f"trainer.accelerator={accelerator}"]


class StrictSteps(L.Callback):
    """Callback that raises an error if a training step waits for the GPU. Logging may wait."""

    def on_train_start(self, trainer, pl_module):
        loop, log = trainer.fit_loop.epoch_loop, pl_module.log
        on_cuda = pl_module.device.type == "cuda"
        loop.step = _with_mode("error", loop.step, on_cuda)
        pl_module.log = _with_mode("default", log, on_cuda)


def _with_mode(mode, call, on_cuda):
    @contextmanager
    def set_mode():
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def called(*args, **kwargs):
        with set_mode() if on_cuda else nullcontext():
            return call(*args, **kwargs)

    return called


class CountGraphs(L.Callback):
    """Callback that stores the number of captured graphs of the last run in ``CountGraphs.found``."""

    found = 0

    def on_train_end(self, trainer, pl_module):
        graphs = trainer.fit_loop.epoch_loop.graphs
        CountGraphs.found = 0 if graphs is None else len(graphs.graphs)


COUNT = ["+callbacks.count._target_=gpu_checks.CountGraphs"]
STRICT = ["+callbacks.strict._target_=gpu_checks.StrictSteps"]


def without_capture():
    """Context in which steps use the kernels of a graph, but are never captured."""
    return patch("zoo.training.graphs.WARM_UP", 10**9)


def trains(name, accelerator, folder):
    """Train, validate, draw samples, measure estimators and test a recipe. No step may wait for the GPU."""
    more = [*few_samples(name), "callbacks.estimator_variance.every_n_steps=8", "callbacks.estimator_variance.draws=2"]
    found = run(folder, *TINY[name], *on(accelerator), *more, *STRICT, *COUNT, "trainer.max_epochs=2")
    assert all(torch.tensor(value).isfinite() for value in found.values()), found
    assert any(key.startswith("test/") for key in found) and any(key.startswith("val/") for key in found)
    assert read_rows(folder / "estimator_variance.csv"), "no estimator was measured"
    assert name == "skipgram" or list((folder / "samples").iterdir()), "no samples were drawn"
    assert accelerator == "cpu" or CountGraphs.found > 0, "no step was captured"


def resumes(name, accelerator, folder):
    """Stop a run within an epoch and resume it. The result must be bitwise equal to that of an uninterrupted run."""
    overrides = [*TINY[name], *SAME[name], *on(accelerator), "trainer.max_epochs=2", "trainer.limit_train_batches=8"]
    overrides += ["callbacks.estimator_variance.every_n_steps=6", "callbacks.estimator_variance.draws=2"]
    expected = together(1, run, folder / "whole", *overrides, timeout=300)[0]
    together(1, run, folder / "parts", *overrides, *stop(11, signal.SIGTERM), codes=(143,), timeout=300)
    interrupted = folder / "parts" / "checkpoints" / "interrupted.ckpt"
    metrics = together(1, run, folder / "parts", *overrides, f"ckpt={interrupted}", timeout=300)[0]
    # VaDE logs some metrics only in its first epoch, which the resumed run does not repeat.
    expected = {k: v for k, v in expected.items() if k in metrics and "second" not in k}
    assert_same_run(metrics, folder / "parts", (expected, folder / "whole"))


def equals_eager(name, accelerator, folder, *changes):
    """Train with graphs and without, with deterministic algorithms. All weights and states must be bitwise equal.

    Two runs without graphs must also be equal. Otherwise, an algorithm is not deterministic.
    """
    every = ["trainer.max_epochs=5", "trainer.limit_val_batches=1", "test=false", *few_samples(name)]
    every += ["callbacks.estimator_variance.every_n_steps=1000"]
    overrides = [*TINY[name], *SAME[name], *changes, *every, *on(accelerator)]
    for kind in ("eager", "again", "graph"):
        with without_capture() if kind != "graph" else nullcontext():
            run(folder / kind, *overrides, *executions(16), *COUNT)
    assert accelerator == "cpu" or CountGraphs.found > 0, "no step was captured"
    eager, again, graph = (checkpoint(folder / kind) for kind in ("eager", "again", "graph"))
    for key in STATE:
        assert_same(again.get(key), eager.get(key), key)
        assert_same(graph.get(key), eager.get(key), key)


def changes_mid_run(case, accelerator, folder):
    """Compare 55 steps with graphs and without, with the change ``case`` in the middle (see ``equals_eager``)."""
    equals_eager(case.partition("-")[0], accelerator, folder, *CHANGES[case])


def four_passes(name):
    """Return the overrides of ``TINY`` with four passes over the digits in an epoch, 44 batches."""
    return ["data.digits_repeat=4" if o == "data.digits_repeat=1" else o for o in TINY[name]]


def final_loss(name, accelerator, folder, precision, epochs):
    """Return the mean training loss of the last fifth of a run."""
    overrides = [*four_passes(name), f"trainer.max_epochs={epochs}", "trainer.log_every_n_steps=4"]
    run(folder, *overrides, *on(accelerator), "callbacks=none", "test=false", f"trainer.precision={precision}")
    losses = [float(row["train/loss"]) for row in read_rows(folder / "metrics.csv") if row.get("train/loss")]
    return sum(losses[-len(losses) // 5 :]) / len(losses[-len(losses) // 5 :])


def bfloat16_learns(name, accelerator, folder, epochs=7):
    """Train in float32 and in bf16-mixed with the same noise. The final losses may differ by 1 %."""
    full = final_loss(name, accelerator, folder / "full", "32-true", epochs)
    mixed = final_loss(name, accelerator, folder / "mixed", "bf16-mixed", epochs)
    assert abs(mixed - full) <= 0.01 * abs(full), (mixed, full)


def default_network(name):
    """Return the default network of a recipe on the digits, with few batches."""
    return [f"model={name}", "data=digits", "trainer.limit_train_batches=12"]


def peak_memory(name, accelerator, folder):
    """Return the peak memory of tensors on the GPU in a run, bytes. It is 0 on the CPU."""
    on_cuda = accelerator != "cpu"
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    run(folder, *default_network(name), *PLAIN, *on(accelerator), "trainer.max_epochs=1", *executions(16))
    return torch.cuda.max_memory_allocated() if on_cuda else 0


def uses_little_memory(name, accelerator, folder):
    """Compare the peak memory of a run with graphs and without.

    A graph has its own memory for everything that a step computes, because each replay writes to the same addresses.
    The steps before the capture use other memory. A run with graphs may therefore need 1.5 times the memory of a run
    without graphs, plus a copy of the weights and gradients.
    """
    model = model_of(config(folder, *default_network(name)))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    with without_capture():
        eager = peak_memory(name, accelerator, folder / "eager")
    graph = peak_memory(name, accelerator, folder / "graph")
    assert graph <= 1.5 * eager + 2 * weights, (graph, eager, weights)


FALLBACKS = {
    "16-mixed": ["trainer.precision=16-mixed"],
    "compile": ["compile=eager"],
    "accumulation": ["trainer.accumulate_grad_batches=2"],
}


def falls_back(case, accelerator, folder):
    """Return the messages of a run whose steps cannot be captured."""
    said = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("zoo.training.graphs")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        run(folder, *TINY["vae"], *FALLBACKS[case], *on(accelerator), *COUNT, "callbacks=none", "trainer.max_epochs=1")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert CountGraphs.found == 0
    return [text for text in said if "without CUDA graphs" in text]


def shared_device(device):
    """Return a strategy in which two processes share one device and communicate through gloo."""
    return DDPStrategy(parallel_devices=[torch.device(device)] * 2, process_group_backend="gloo")


def two_ranks_agree(name, accelerator, folder):
    """Train two processes on one device with executions of 1 and of 8 batches. The results must be bitwise equal."""
    device = "cpu" if accelerator == "cpu" else "cuda:0"
    strategy = f"trainer.strategy={{_target_: gpu_checks.shared_device, device: '{device}'}}"
    overrides = [*TINY[name], *SAME[name], *on("auto"), strategy, "trainer.devices=auto", "trainer.max_epochs=2"]
    for size in (1, 8):
        together(2, run, folder / str(size), *overrides, *executions(size), timeout=300)
    one, eight = (checkpoint(folder / str(size)) for size in (1, 8))
    for key in STATE:
        assert_same(eight.get(key), one.get(key), key)
