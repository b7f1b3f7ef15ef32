"""Benchmark of the RBM in train.py, in a bare loop, and of scikit-learn's BernoulliRBM: training images per second.

    python tests/benchmarks/rbm_training.py [THREADS] [--csv FOLDER]

The RBM has 784 x 500 units. Batches have 100 of scikit-learn's digits. Training is persistent contrastive divergence
with one Gibbs step, 100 chains and float32. train.py runs without callbacks, with averaged weights as in its recipe,
and with ``trainer.precision=bf16-mixed``. The bare loop also runs with and without the average. The RBM of the zoo and
the bare loop binarise images at each use, and are trained in the centred form. scikit-learn does neither.

The programs alternate in one process. With one thread (the default), the benchmark measures CPU time, so that other
programs disturb it less. With more threads, it measures wall-clock time. It prints the median, the smallest and the
largest rate of each program, and the ratios of the programs in each round.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from sklearn.neural_network import BernoulliRBM
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from timing import take_csv, write_csv  # noqa: E402

from zoo.commands.training import train  # noqa: E402
from zoo.datamodules import Images  # noqa: E402
from zoo.evaluation.results import significant  # noqa: E402
from zoo.training.trainer import quiet_lightning  # noqa: E402

OURS = "train.py"
BATCH, HIDDEN, PASSES, ROUNDS, LR, DECAY = 100, 500, 28, 5, 0.1, 0.999
AVERAGE = ("+callbacks.ema._target_=zoo.callbacks.EMA", f"+callbacks.ema.decay={DECAY}")


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Timer(L.Callback):
    """Callback that measures the seconds from the first batch to the last."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = clock()

    def on_train_epoch_end(self, trainer, pl_module):
        Timer.seconds = clock() - self.start


def in_train(*overrides: str) -> float:
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        few = ["model=rbm", f"model.num_hidden={HIDDEN}", f"model.lr={LR}", "data=digits", f"data.batch_size={BATCH}"]
        few += [f"data.digits_repeat={PASSES}", "trainer=cpu", "trainer.max_epochs=1", "trainer.limit_val_batches=0"]
        few += ["trainer.enable_progress_bar=false", "trainer.num_sanity_val_steps=0", "logger=none", "test=false"]
        few += ["~callbacks.best", "~callbacks.last", "+callbacks.timer._target_=rbm_training.Timer"]
        train(compose("train", [*few, *overrides, f"run_dir={folder}"]))
    return sys.modules["rbm_training"].Timer.seconds


@torch.no_grad()
def bare(data: Images, averaged: bool = False) -> float:
    """Measure a bare loop with the update of Tieleman 2008 in the centred form of Melchior et al. 2016."""
    W, b, c = 0.01 * torch.randn(784, HIDDEN), torch.zeros(784), torch.zeros(HIDDEN)
    average = [t.clone() for t in (W, b, c)]
    mu, h = torch.full((784,), 0.2), torch.rand(BATCH, HIDDEN).round()
    begin = clock()
    for x, _ in data.train_dataloader():
        v = (torch.rand(BATCH, 784) < x.flatten(1)).float()
        p = ((v - mu) @ W + c).sigmoid()
        v_model = (torch.rand(BATCH, 784) < ((h - 0.5) @ W.T + b).sigmoid()).float()
        p_model = ((v_model - mu) @ W + c).sigmoid()
        h = (torch.rand(BATCH, HIDDEN) < p_model).float()
        W += LR / BATCH * ((v - mu).T @ (p - 0.5) - (v_model - mu).T @ (p_model - 0.5))
        b += LR * (v.mean(0) - v_model.mean(0))
        c += LR * (p.mean(0) - p_model.mean(0))
        if averaged:
            for mean, now in zip(average, (W, b, c), strict=True):
                mean.lerp_(now, 1 - DECAY)
    return clock() - begin


def scikit_learn(images) -> float:
    machine = BernoulliRBM(HIDDEN, learning_rate=LR, batch_size=BATCH, n_iter=1, random_state=0)
    begin = clock()
    machine.fit(images)
    return clock() - begin


def main(threads: int = 1, csv: Path | None = None) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    quiet_lightning()
    data = Images("digits", batch_size=BATCH, digits_repeat=PASSES)
    data.setup()
    images = torch.cat([x for x, _ in data.train_dataloader()]).flatten(1).numpy()
    contenders: dict[str, Callable[[], float]] = {
        OURS: lambda: in_train("callbacks=none"),
        f"{OURS}, average": lambda: in_train("callbacks=none", *AVERAGE),
        f"{OURS}, bfloat16": lambda: in_train("callbacks=none", "trainer.precision=bf16-mixed"),
        "bare PyTorch": lambda: bare(data),
        "bare PyTorch, average": lambda: bare(data, averaged=True),
        "scikit-learn BernoulliRBM": lambda: scikit_learn(images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in tqdm(range(ROUNDS + 1)):
        for name, contender in contenders.items():
            took = contender()
            if i:  # the first round is a warm-up and does not count
                seconds[name].append(took)
    print(f"{threads} threads, {'CPU' if threads == 1 else 'wall-clock'} time")
    rates = [[name, significant(len(images) / statistics.median(spent))] for name, spent in seconds.items()]
    write_csv(csv, "speed-rbm", ["implementation", "images/s"], rates)
    for name, spent in seconds.items():
        rate = [len(images) / t for t in sorted(spent, reverse=True)]
        print(f"{name:28} {statistics.median(rate):8,.0f} images/s ({rate[0]:,.0f} to {rate[-1]:,.0f})")
    for name in [name for name in seconds if name != OURS]:
        ratios = sorted(theirs / ours for ours, theirs in zip(seconds[OURS], seconds[name], strict=True))
        print(f"{OURS} / {name}: {statistics.median(ratios):.2f}, round by round {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    words = sys.argv[1:]
    folder = take_csv(words)
    main(*map(int, words), csv=folder)
