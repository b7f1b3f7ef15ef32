"""Benchmark of data=images on a folder of PNG files, next to torchvision's ImageFolder in a DataLoader.

    python tests/benchmarks/own_images.py [--images 50000] [--workers 2]

The files are grey images of 28 x 28 pixels in ten class folders. The benchmark prints the seconds of the first and of
the second start, and images per second in memory and from disk. All loaders give shuffled batches of 128 float images
in [0, 1] with labels. The CPU seconds include those of worker processes that have ended.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Grayscale, ToTensor

from zoo.datamodules import OwnImages


def write(folder: Path, n: int) -> None:
    """Write ``n`` PNG files in ten folders. Their pixels are a smooth random image, as of a digit."""
    generator = np.random.default_rng(0)
    for i in range(n):
        path = folder / str(i % 10) / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(generator.integers(0, 256, (7, 7), dtype=np.uint8))
        small.resize((28, 28), Image.Resampling.BICUBIC).save(path)


def timed(what: str, action: Callable[[], Any]) -> Any:
    """Run ``action`` and print its wall-clock and CPU seconds. Return its result, and the seconds."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    result = action()
    seconds, used = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
    print(f"{what:44} {seconds:8.2f} s wall, {used:8.2f} s CPU", flush=True)
    return result, seconds, used


def rate(what: str, loader: Iterable[Any], batches: int) -> None:
    """Print the images per second of the first ``batches`` batches, including the time to start the loader."""

    def read() -> int:
        return sum(len(x) for _, (x, _) in zip(range(batches), loader, strict=False))

    images, seconds, used = timed(what, read)
    print(
        f"{'':44} {images / seconds:8,.0f} images/s, {images / max(used, 0.01):8,.0f} images per CPU second", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        timed(f"writing {given.images:,} files", lambda: write(folder, given.images))
        os.environ["ZOO_DATA"] = str(Path(scratch) / "data")

        def start(**options: Any) -> OwnImages:
            data = OwnImages(str(folder), workers=given.workers, **options)
            data.setup()
            return data

        timed("first start of data=images", start)
        memory, *_ = timed("second start of data=images", start)
        disk = start(memory_limit=0)
        files = start(memory_limit=0, cache=False)
        transform = Compose([Grayscale(), ToTensor()])
        theirs, *_ = timed("start of ImageFolder", lambda: ImageFolder(str(folder), transform))
        batches = given.images // 2 // 128
        rate("data=images in memory", memory.train_dataloader(), batches)
        rate(f"data=images from disk, {given.workers} workers", disk.train_dataloader(), batches)
        rate(f"data=images from the files, {given.workers} workers", files.train_dataloader(), batches)
        for workers in (0, given.workers):
            loader = DataLoader(theirs, batch_size=128, shuffle=True, num_workers=workers)
            rate(f"ImageFolder and DataLoader, {workers} workers", loader, batches // 2)
        print(f"load of the machine during the last minute: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
