"""Benchmark of EstimatorVariance: time per draw, time on several processes, and fraction of the training time.

    python tests/benchmarks/estimator_variance.py [draws] [processes] [share MODEL ...]

``draws`` prints the milliseconds per draw of small networks, through vmap and in a loop. Rounds with vmap and with the
loop alternate. ``processes`` prints the seconds for 64 draws of each estimator, on one process and on two. Each process
has one core. ``share`` trains each MODEL by its recipe for 90 seconds, with EstimatorVariance and its default options.
The program then prints the fraction of the time spent on measuring.
"""

import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from zoo.callbacks import EstimatorVariance
from zoo.cvae import CVAE
from zoo.estimators import GradientMoments, chunk_size, gradient_moments, gradients
from zoo.rbm import RBM
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


def draws_at_once(rounds=7, n=16):
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


def processes(n=64):
    context = multiprocessing.get_context("spawn")
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


class StopAfter(EstimatorVariance):
    """EstimatorVariance that ends the run after ``limit`` seconds and prints the fraction spent on measuring."""

    limit = 90.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trained = time.monotonic() - self._started
        if trained > self.limit:
            steps = [row["step"] for row in self.history]
            print(
                f"{type(pl_module).__name__}: {self._seconds:.2f} of {trained:.1f} s, {self._seconds / trained:.1%}, "
                f"in {len(steps)} measurements at {steps[:4]}... of {trainer.fit_loop.total_batch_idx} steps",
                flush=True,
            )
            trainer.should_stop = True
            raise KeyboardInterrupt


def share(models):
    for name in models:
        data = "pydocs" if name == "skipgram" else "mnist_or_digits"
        with initialize_config_dir(str(Path(__file__).parents[2] / "configs"), version_base="1.3"):
            cfg = compose("train", [f"model={name}", f"data={data}", "trainer=cpu", "trainer.max_epochs=1000000"])
            cfg.run_dir = "none"
        node = OmegaConf.to_container(cfg.callbacks.estimator_variance, resolve=True)
        del node["_target_"]
        callback = StopAfter(**node)
        trainer = instantiate(
            cfg.trainer,
            _convert_="all",
            callbacks=[callback],
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            check_val_every_n_epoch=1000,
            num_sanity_val_steps=0,
        )
        torch.manual_seed(0)
        try:
            data, model = (instantiate(node, _convert_="all") for node in (cfg.data, cfg.model))
            trainer.fit(model, datamodule=data)
        except SystemExit:  # Lightning raises it on KeyboardInterrupt
            continue


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = sys.argv[1:] or ["draws", "processes"]
    if asked[0] == "share":
        share(asked[1:])
    else:
        for what in asked:
            {"draws": draws_at_once, "processes": processes}[what]()
