"""Benchmark of the RBM in Lightning, in a bare loop, and of scikit-learn's BernoulliRBM: training images per second.

    python tests/benchmarks/rbm_training.py

The RBM has 784 x 500 units. Batches have 100 of scikit-learn's digits. Training is persistent contrastive divergence
with one Gibbs step, 100 chains and float32. Lightning also runs with ``trainer.precision=bf16-mixed``. The RBM of the
zoo and the bare loop binarise images at each use, and are trained in the centred form. scikit-learn does neither. The
programs alternate in one process. The benchmark prints the median, the smallest and the largest rate of each program.
"""

import statistics
import time

import lightning as L
import torch
from sklearn.neural_network import BernoulliRBM
from tqdm.auto import tqdm

from zoo.datamodules import Images
from zoo.rbm import RBM
from zoo.training.trainer import quiet_lightning

OURS = "zoo.rbm.RBM in Lightning"
BATCH, HIDDEN, PASSES, ROUNDS, LR = 100, 500, 7, 7, 0.1


class Timer(L.Callback):
    """Callback that measures the seconds from the first batch to the last."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds = time.perf_counter() - self.start


def in_lightning(data: Images, precision: str = "32-true") -> float:
    timer = Timer()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    quiet |= {"enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[timer], precision=precision, **quiet)
    trainer.fit(RBM(HIDDEN, lr=LR), datamodule=data)
    return timer.seconds


@torch.no_grad()
def bare(data: Images) -> float:
    """Measure a bare loop with the update of Tieleman 2008 in the centred form of Melchior et al. 2016."""
    W, b, c = 0.01 * torch.randn(784, HIDDEN), torch.zeros(784), torch.zeros(HIDDEN)
    mu, h = torch.full((784,), 0.2), torch.rand(BATCH, HIDDEN).round()
    begin = time.perf_counter()
    for x, _ in data.train_dataloader():
        v = (torch.rand(BATCH, 784) < x.flatten(1)).float()
        p = ((v - mu) @ W + c).sigmoid()
        v_model = (torch.rand(BATCH, 784) < ((h - 0.5) @ W.T + b).sigmoid()).float()
        p_model = ((v_model - mu) @ W + c).sigmoid()
        h = (torch.rand(BATCH, HIDDEN) < p_model).float()
        W += LR / BATCH * ((v - mu).T @ (p - 0.5) - (v_model - mu).T @ (p_model - 0.5))
        b += LR * (v.mean(0) - v_model.mean(0))
        c += LR * (p.mean(0) - p_model.mean(0))
    return time.perf_counter() - begin


def scikit_learn(images) -> float:
    machine = BernoulliRBM(HIDDEN, learning_rate=LR, batch_size=BATCH, n_iter=1, random_state=0)
    begin = time.perf_counter()
    machine.fit(images)
    return time.perf_counter() - begin


def main() -> None:
    torch.manual_seed(0)
    quiet_lightning()
    data = Images("digits", batch_size=BATCH, digits_repeat=PASSES)
    data.setup()
    images = torch.cat([x for x, _ in data.train_dataloader()]).flatten(1).numpy()
    contenders = {
        OURS: lambda: in_lightning(data),
        f"{OURS}, bfloat16": lambda: in_lightning(data, "bf16-mixed"),
        "bare PyTorch": lambda: bare(data),
        "scikit-learn BernoulliRBM": lambda: scikit_learn(images),
    }
    seconds = {name: [] for name in contenders}
    for i in tqdm(range(ROUNDS + 1)):
        for name, contender in contenders.items():
            took = contender()
            if i:  # the first round is a warm-up and does not count
                seconds[name].append(took)
    for name, took in seconds.items():
        rate = [len(images) / t for t in sorted(took, reverse=True)]
        print(f"{name:36} {statistics.median(rate):8,.0f} images/s ({rate[0]:,.0f} to {rate[-1]:,.0f})")
    for name in [name for name in seconds if name != OURS]:
        ratios = sorted(theirs / ours for ours, theirs in zip(seconds[OURS], seconds[name], strict=True))
        print(f"ours / {name}: {statistics.median(ratios):.2f}, round by round {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
