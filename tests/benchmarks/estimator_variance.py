"""Benchmark of EstimatorVariance: time per draw, time on several processes, and fraction of the training time.

    python tests/benchmarks/estimator_variance.py [--csv FOLDER] [draws] [processes] \
        [fraction SECONDS [MODEL ...]]

``draws`` prints the milliseconds per draw of small networks, through vmap and in a loop. Rounds with vmap and with the
loop alternate. ``processes`` prints the seconds for 64 draws of each estimator, on one process and on two. Each process
has one core. ``fraction`` trains each MODEL, by default all, by its recipe for SECONDS, with EstimatorVariance as its
only callback. The program then prints the fraction of the training time spent on measuring, and the longest pause of
training. It also prints the number of measurements and of steps, and the step and draws of the first measurements.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from timing import take_csv, write_csv

import zoo
from zoo.callbacks import EstimatorVariance
from zoo.cvae import CVAE
from zoo.estimators import GradientMoments, chunk_size, gradient_moments, gradients
from zoo.rbm import RBM
from zoo.training.command_line import with_shape_of
from zoo.vae import VAE

NETWORKS = {
    "vae 784-64-8": lambda: VAE(latent_dim=8, hidden=[64]),
    "vae 784-200-200-20": lambda: VAE(latent_dim=20, hidden=[200, 200]),
    "vae 784-64-16, binary latents": lambda: VAE(latent="bernoulli", latent_dim=16, hidden=[64]),
    "cvae 784-64-8": lambda: CVAE(latent_dim=8, hidden=[64]),
    "rbm 784-50": lambda: RBM(num_hidden=50),
}


def probe(n=64):
    return [torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)).round(), torch.arange(n) % 10]


def draws_at_once(csv=None, rounds=7, n=16):
    ratios = []
    print(f"{'network':32}{'estimator':30}{'loop':>8}{'vmap':>8}  ms per draw, medians of {rounds} interleaved rounds")
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        for e in make().gradient_estimators().values():
            if chunk_size(e) == 1:
                continue
            ways = {"loop": lambda e=e: [next(gradients(e, probe(), [k])) for k in range(n)]}
            ways["vmap"] = lambda e=e: list(gradients(e, probe(), range(n)))
            times = {way: [] for way in ways}
            for _ in range(rounds + 1):
                for way, run in ways.items():
                    start = time.perf_counter()
                    run()
                    times[way].append((time.perf_counter() - start) / n * 1000)
            loop, vmap = (statistics.median(times[way][1:]) for way in ("loop", "vmap"))
            print(f"{name:32}{e.name:30}{loop:8.2f}{vmap:8.2f}   {loop / vmap:.2f} x", flush=True)
            ratios.append([name, f"`{e.name}`", f"{loop / vmap:.1f} times"])
    write_csv(csv, "speed-draws", ["network", "estimator", "speed-up"], ratios)


def share_of_draws(rank, world_size, make, n, port, out):
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    estimators = make().gradient_estimators().values()

    def total(value):
        torch.distributed.all_reduce(value)
        return value

    def measure():
        for e in estimators:
            size = chunk_size(e)
            mine = [k for k in range(n) if k // size % world_size == rank]
            moments = gradient_moments(e, probe(), mine)[0] if mine else GradientMoments()
            moments.merge(total, e.params)

    measure()
    for _ in range(3):
        torch.distributed.barrier()
        start = time.perf_counter()
        measure()
        if rank == 0:
            out.put(time.perf_counter() - start)
    torch.distributed.destroy_process_group()


def processes(csv=None, n=64):
    context, rows = multiprocessing.get_context("spawn"), []
    for name, make in {"vae, the default": VAE, "rbm, the default": RBM}.items():
        seconds = {}
        for world_size in (1, 2):
            out, port = context.SimpleQueue(), 29400 + os.getpid() % 500 + world_size
            ranks = [
                context.Process(target=share_of_draws, args=(rank, world_size, make, n, port, out))
                for rank in range(world_size)
            ]
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join()
            seconds[world_size] = statistics.median(out.get() for _ in range(3))
        one, two = seconds.values()
        print(f"{name}: {n} draws of each estimator, {one:.2f} s on one process, {two:.2f} s on two: {two / one:.2f}")
        rows.append([name, f"{two / one:.2f}"])
    write_csv(csv, "speed-processes", ["model", "time on two processes / time on one"], rows)


class Timed(EstimatorVariance):
    """EstimatorVariance that records the seconds for which each call stops training."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.began, self.pauses = time.monotonic(), []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        before = time.monotonic()
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.pauses.append(time.monotonic() - before)


class StopAfter(Callback):
    """Callback that ends a run after ``seconds`` of training."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_train_start(self, trainer, pl_module):
        self.began = time.monotonic()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if time.monotonic() - self.began > self.seconds:
            trainer.should_stop = True


def fraction(seconds, models, csv=None):
    rows = []
    print(f"{'model':12}{'fraction':>9}{'pause':>9}{'rows':>8}{'steps':>8}  (step, draws) of the first measurements")
    for name in models or zoo.list_models():
        data = "pydocs" if name == "skipgram" else "mnist_or_digits"
        with initialize_config_dir(str(Path(zoo.__file__).resolve().parents[1] / "configs"), version_base="1.3"):
            cfg = compose("train", [f"model={name}", f"data={data}", "trainer=cpu", "trainer.max_epochs=1000000"])
        with tempfile.TemporaryDirectory() as cfg.run_dir:
            node = OmegaConf.to_container(cfg.callbacks.estimator_variance, resolve=True)
            del node["_target_"]
            callback = Timed(**node)
            trainer = instantiate(
                cfg.trainer,
                _convert_="all",
                callbacks=[callback, StopAfter(seconds)],
                logger=False,
                enable_progress_bar=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                check_val_every_n_epoch=1000,
                num_sanity_val_steps=0,
            )
            torch.manual_seed(0)
            data = instantiate(cfg.data, _convert_="all")
            with_shape_of(cfg.model, data)
            model = instantiate(cfg.model, _convert_="all")
            trainer.fit(model, datamodule=data)
        measuring = sum(callback.pauses)
        first = [(row["step"], row["estimator_draws"]) for row in callback.history[:4]]
        print(
            f"{name:12}{measuring / (seconds - measuring):9.1%}{max(callback.pauses):8.2f}s{len(callback.history):8}"
            f"{trainer.fit_loop.total_batch_idx:8}  {first}",
            flush=True,
        )
        part, pause = measuring / (seconds - measuring), max(callback.pauses)
        steps = trainer.fit_loop.total_batch_idx
        rows.append([f"`{name}`", f"{100 * part:.1f} %", f"{pause:.2f} s", str(len(callback.history)), str(steps)])
    write_csv(csv, "speed-fraction", ["model", "fraction", "longest pause", "measurements", "steps"], rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = sys.argv[1:]
    folder = take_csv(given)
    asked = given or ["draws", "processes"]
    if asked[0] == "fraction":
        fraction(float(asked[1]), asked[2:], folder)
    else:
        for what in asked:
            {"draws": draws_at_once, "processes": processes}[what](folder)
