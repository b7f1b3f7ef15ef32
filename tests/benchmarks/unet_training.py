"""Benchmark of the default U-Net and diffusers' UNet2DModel: training in a bare loop, and sampling.

    pip install -e ".[bench]" && python tests/benchmarks/unet_training.py [--csv FOLDER]

Training uses batches of 64 images of 28 x 28, Adam and noise prediction. Sampling draws 64 images with deterministic
DDIM in 10 steps, by the sampler of the zoo and by diffusers' scheduler. UNet2DModel has block_out_channels 32, 64, 64
with attention at 14 x 14. The programs alternate in one process, on a GPU if there is one and otherwise on the CPU.
"""

import statistics
import sys
import time

import torch
from diffusers import DDIMScheduler, UNet2DModel
from timing import take_csv, write_csv
from tqdm.auto import tqdm

from zoo.ddpm import DDPM, simple_loss
from zoo.evaluation.results import significant

BATCH, STEPS, ROUNDS, SAMPLER_STEPS = 64, 8, 5, 10
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bare(eps_model, parameters, chain):
    """Return a function that makes ``STEPS`` training steps in a bare loop."""
    optimiser = torch.optim.Adam(parameters, lr=1e-4)
    x0 = torch.rand(BATCH, 1, 28, 28, device=device) * 2 - 1

    def run() -> None:
        for _ in range(STEPS):
            t = torch.randint(1000, (BATCH,), device=device)
            loss = simple_loss(x0, t, torch.randn_like(x0), chain, "eps", eps_model).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def sampler(peer):
    """Return a function that samples 64 images with the DDIM scheduler of diffusers."""
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(SAMPLER_STEPS)

    @torch.no_grad()
    def draw():
        x = torch.randn(64, 1, 28, 28, device=device)
        for t in scheduler.timesteps:
            x = scheduler.step(peer(x, t).sample, t, x).prev_sample
        return x

    return draw


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
    sizes = {}
    for name, net in (("zoo", ours.net), ("diffusers", peer)):
        sizes[name] = f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} million"
        print(f"{name:22} {sizes[name]} parameters")
    steps = {
        "zoo, bare loop": bare(ours, ours.parameters(), ours.chain),
        "diffusers, bare loop": bare(lambda x, t: peer(x, t).sample, peer.parameters(), ours.chain),
    }
    rates = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in tqdm(range(ROUNDS), desc="rounds"):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            rates[name].append(BATCH * STEPS / (time.perf_counter() - start))
    folder, networks = take_csv(sys.argv[1:]), list(sizes)
    found = [significant(statistics.median(values)) for values in rates.values()]
    columns = ["network", "parameters", "training in a bare loop, images/s"]
    rows = [[n, sizes[n], rate] for n, rate in zip(networks, found, strict=True)]
    write_csv(folder, "speed-unet-training", columns, rows, device.type)
    for name, values in rates.items():
        print(f"{name:22} {statistics.median(values):8.0f} images/s (median of {ROUNDS}, {min(values):.0f} lowest)")
    ratio = [a / b for a, b in zip(*rates.values(), strict=True)]
    print(f"zoo against diffusers, round by round: {statistics.median(ratio):.2f}")

    samplers = {
        "zoo, 64 samples": lambda: ours.sample(64, num_steps=SAMPLER_STEPS),
        "diffusers, 64 samples": sampler(peer),
    }
    seconds = {name: [] for name in samplers}
    for _ in tqdm(range(ROUNDS), desc="rounds"):
        for name, draw in samplers.items():
            start = time.perf_counter()
            draw()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - start) / SAMPLER_STEPS)
    found = [significant(1000 * statistics.median(values)) for values in seconds.values()]
    columns = ["network", "one DDIM step of 64 samples, ms"]
    write_csv(folder, "speed-unet-sampling", columns, list(zip(networks, found, strict=True)), device.type)
    for name, values in seconds.items():
        ms = [1000 * v for v in values]
        print(f"{name:22} {statistics.median(ms):8.1f} ms a step (median of {ROUNDS}, {max(ms):.1f} highest)")


if __name__ == "__main__":
    main()
