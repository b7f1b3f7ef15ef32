"""Benchmark of training steps for images of several shapes: images per second and peak memory of each model.

    python tests/benchmarks/shapes.py             # one thread; about ten minutes
    python tests/benchmarks/shapes.py ddpm gan    # only these models

Each row runs in a separate process, because a process cannot forget its peak memory. It makes a model with default
options, and trains it with ``Trainer.fit`` on batches of 64 images of uniform noise in memory. The rate counts CPU
time, which other programs change little. It is the median over the steps after the first ones. The memory is the peak
of the process minus the peak before the model was made.
"""

import argparse
import importlib
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import torch
from timing import hardware, line, table, write_csv
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo.training.trainer import quiet_lightning

BATCH, STEPS, WARM_UP = 64, 6, 2
SHAPES = ((1, 28, 28), (1, 32, 32), (3, 32, 32), (3, 30, 37), (3, 64, 64))
# Options of each row. Each network has a separate row.
NETWORKS: dict[str, list[dict[str, object]]] = {
    "vae": [{}, {"net": "conv", "hidden": [32]}],
    "cvae": [{}, {"net": "conv", "hidden": [32]}],
    "vade": [{}, {"net": "conv", "hidden": [32]}],
    "rbm": [{}, {"visible": "gaussian"}],
    "gan": [{}, {"network": "mlp"}],
    "wgan": [{}, {"network": "mlp"}],
    "infogan": [{}],
    "ddpm": [{}],
    "score": [{}],
}


class Times(L.Callback):
    """Callback that keeps the CPU time of each batch, in seconds."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args):
        self.began = time.process_time()

    def on_train_batch_end(self, *args):
        self.seconds.append(time.process_time() - self.began)


def measure(name: str, options: dict[str, object], shape: tuple[int, ...]) -> tuple[int, float, float]:
    """Return the number of parameters, images per second, and the peak memory in MB of training."""
    torch.set_num_threads(1)
    quiet_lightning()
    module, _, cls = zoo.MODELS[name].rpartition(".")
    images = TensorDataset(torch.rand(BATCH * (STEPS + WARM_UP), *shape), torch.arange(BATCH * (STEPS + WARM_UP)) % 10)
    kind = getattr(importlib.import_module(module), cls)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.manual_seed(0)
    model, times = kind(shape=list(shape), **options), Times()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[times], **quiet)
    trainer.fit(model, DataLoader(images, BATCH))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    size = sum(p.numel() for p in model.parameters())
    return size, BATCH / statistics.median(times.seconds[WARM_UP:]), memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=list(NETWORKS))
    parser.add_argument("--row", nargs=2, type=int, help=argparse.SUPPRESS)  # a network and a shape, in this process
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="also write a results file, for zoo report")
    args = parser.parse_args()
    if args.row:
        (name,), (network, shape) = args.models, args.row
        size, rate, memory = measure(name, NETWORKS[name][network], SHAPES[shape])
        print(line([f"{size / 1e6:,.2f}", f"{rate:,.0f}", f"{memory:,.0f}"]))
        return
    torch.set_num_threads(1)  # as in the processes of the rows
    columns, rows = ["model", "shape", "parameters, millions", "images/s", "memory, MB"], []
    print(hardware(torch.device("cpu")))
    print(table(columns, []))
    for name in args.models:
        for n, options in enumerate(NETWORKS[name]):
            own = "".join(f", {value}" for value in options.values() if isinstance(value, str))
            for i, shape in enumerate(SHAPES):
                command = [sys.executable, __file__, name, "--row", str(n), str(i)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                row = done.stdout.splitlines()[-1]
                print(f"| `{name}`{own} | {' x '.join(map(str, shape))} {row}", flush=True)
                numbers = row.replace(",", "").strip("| ").split(" | ")
                rows.append([f"`{name}`{own}", " x ".join(map(str, shape)), *numbers])
    write_csv(args.csv, "speed-shapes", columns, rows)


if __name__ == "__main__":
    main()
