"""Images per second in training: the default U-Net bare, inside Lightning, and diffusers' UNet2DModel beside them.

    pip install -e ".[bench]" && python tests/benchmarks/unet_training.py

Batch 32, Adam, 28 x 28 images, noise prediction; the peer has block_out_channels 32, 64, 64 with attention at 14 x 14.
The contenders take turns in one process, on the CPU or on the GPU if there is one.
"""

import statistics
import time

import lightning as L
import torch
from diffusers import UNet2DModel
from tqdm.auto import tqdm

from zoo.ddpm import DDPM, simple_loss

BATCH, STEPS, ROUNDS = 32, 16, 5
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bare(eps_model, parameters, abar):
    """A training step of the plainest kind."""
    optimiser = torch.optim.Adam(parameters, lr=1e-4)
    x0 = torch.rand(BATCH, 1, 28, 28, device=device) * 2 - 1

    def run() -> None:
        for _ in range(STEPS):
            t = torch.randint(1000, (BATCH,), device=device)
            loss = simple_loss(x0, t, torch.randn_like(x0), abar, eps_model).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


class Batches:
    """The same batch, ``STEPS`` times."""

    batch = (torch.rand(BATCH, 1, 28, 28, device=device), torch.zeros(BATCH, device=device))

    def __len__(self) -> int:
        return STEPS

    def __iter__(self):
        return iter([self.batch] * STEPS)


class Timer(L.Callback):
    """Seconds from the first batch to the last."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds = time.perf_counter() - self.start


def in_lightning() -> float:
    timer = Timer()
    trainer = L.Trainer(
        max_epochs=1,
        callbacks=[timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(DDPM(), Batches())
    return timer.seconds


def main() -> None:
    torch.manual_seed(0)
    ours = DDPM().to(device)
    peer = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    ).to(device)
    for name, net in (("zoo", ours.net), ("diffusers", peer)):
        print(f"{name:22} {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters")
    steps = {
        "zoo, bare loop": bare(ours, ours.parameters(), ours.abar),
        "diffusers, bare loop": bare(lambda x, t: peer(x, t).sample, peer.parameters(), ours.abar),
    }
    rates = {name: [] for name in [*steps, "zoo, in Lightning"]}
    for step in steps.values():
        step()
    for _ in tqdm(range(ROUNDS), desc="rounds"):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            rates[name].append(BATCH * STEPS / (time.perf_counter() - start))
        rates["zoo, in Lightning"].append(BATCH * STEPS / in_lightning())
    for name, values in rates.items():
        print(f"{name:22} {statistics.median(values):8.0f} images/s (median of {ROUNDS}, {min(values):.0f} lowest)")


if __name__ == "__main__":
    main()
