"""Benchmark of the loader of the zoo and of torchvision's MNIST with ToTensor in a DataLoader: images per second.

    ZOO_DATA=<folder with MNIST> python tests/benchmarks/image_loading.py [--csv FOLDER]

Both loaders give shuffled batches of 128 float images in [0, 1] with labels. They alternate in one process.
"""

import gzip
import statistics
import sys
import tempfile
import time
from pathlib import Path

from timing import take_csv, write_csv
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor
from tqdm.auto import tqdm

from zoo.datamodules import Images
from zoo.datamodules.files import data_root
from zoo.datamodules.images import MD5
from zoo.evaluation.results import significant


def rate(loader, batches: int) -> float:
    """Return the images per second over the first ``batches`` batches, including the time to start the loader."""
    start, images = time.perf_counter(), 0
    for _, (x, _) in zip(range(batches), loader, strict=False):
        images += len(x)
    return images / (time.perf_counter() - start)


def main() -> None:
    raw = data_root() / "MNIST" / "raw"
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch) / "MNIST" / "raw"  # torchvision needs decompressed files
        unpacked.mkdir(parents=True)
        for file in MD5["mnist"]:
            plain = raw / file
            data = plain.read_bytes() if plain.is_file() else gzip.decompress((raw / f"{file}.gz").read_bytes())
            (unpacked / file).write_bytes(data)
        theirs = DataLoader(MNIST(scratch, transform=ToTensor()), batch_size=128, shuffle=True)
        data = Images("mnist", batch_size=128)
        data.setup()
        ours = data.train_dataloader()
        rates = {"zoo": [], "torchvision": []}
        for _ in tqdm(range(5), desc="rounds"):
            rates["zoo"].append(rate(ours, 429))
            rates["torchvision"].append(rate(theirs, 60))
    rows = [[name, significant(statistics.median(values))] for name, values in rates.items()]
    write_csv(take_csv(sys.argv[1:]), "speed-images", ["loader", "images/s"], rows)
    for name, values in rates.items():
        print(f"{name:12} {statistics.median(values):>12,.0f} images/s (median of 5, {min(values):,.0f} lowest)")
    print(f"ratio        {statistics.median(rates['zoo']) / statistics.median(rates['torchvision']):>12.1f}")


if __name__ == "__main__":
    main()
