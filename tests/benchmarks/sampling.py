"""Benchmark of sampling from the published weights: samples per second, eager and as a CUDA graph.

    python tests/benchmarks/sampling.py [SAMPLER ...] [--device cuda] [--threads 1] [--samples 64]

The samplers are:

- ``ddpm-50``: 50 steps of DDIM, the default of ``ddpm``.
- ``ddpm-1000``: all 1,000 steps of ancestral sampling.
- ``score``: annealed Langevin chains of ``score``, with the default number of steps per noise level.
- ``rbm``: Gibbs chains of ``rbm``, 1,000 steps from random pixels.

On a GPU, one CUDA graph holds the whole sampler. Eager sampling and the graph alternate, with the same noise in each
round. The last column is the largest difference of their samples, in grey values from 0 to 1. The other columns have
the median over the rounds, the smallest value and the largest value.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timing import Stopwatch, beside, captured, hardware, line, spread, table, write_csv
from torch import Tensor

import zoo
from zoo.checks.calls import called_by_the_model
from zoo.functional.langevin import annealed_langevin_steps, best_step_size, largest_ratio


def annealed_chains(model, n: int) -> Callable[[], Tensor]:
    """Return a function that draws as ``Score.sample`` does by default, but reads no value from the GPU."""
    sigmas, steps = model.sigmas.cpu(), model._default_steps
    start = float((1 + sigmas[0] ** 2).sqrt())
    size = best_step_size(largest_ratio(sigmas), steps, consistent=True)

    def draw() -> Tensor:
        x = start * torch.randn(n, *model.hparams.shape, device=model.device)
        for state, _ in annealed_langevin_steps(model, x, sigmas, steps, size, consistent=True):
            x = state
        return (x / 2 + 0.5).clamp(0, 1)

    return draw


def sampler(name: str, n: int, device: torch.device) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return two functions that draw ``n`` samples: the method ``sample``, and a version that a graph can hold."""
    model = zoo.load(name.split("-")[0]).to(device)
    if name == "score":
        return partial(model.sample, n), annealed_chains(model, n)
    steps = {"ddpm-50": {"num_steps": 50}, "ddpm-1000": {"num_steps": None}, "rbm": {"steps": 1000}}[name]
    draw = partial(model.sample, n, **steps)
    return draw, draw


def as_graph(draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a function that replays ``draw`` as one CUDA graph, and returns its samples."""
    with torch.no_grad(), called_by_the_model():  # checks of arguments would read values
        beside(draw)
        replay, samples = captured(draw)

    def run() -> Tensor:
        replay()
        return samples

    return run


def measure(draw: Callable[[], Tensor], seed: int) -> tuple[Stopwatch, Tensor]:
    """Draw once with the noise of ``seed``. Return the time and the samples."""
    torch.manual_seed(seed)
    watch = Stopwatch()
    watch.start()
    samples = draw()
    watch.stop()
    return watch, samples.clone()


def benchmark(name: str, args: argparse.Namespace) -> list[list[str]]:
    """Return the rows of one sampler in the table."""
    draw, capturable = sampler(name, args.samples, torch.device(args.device))
    ways, failed = {"eager": draw}, ""
    if args.device == "cuda":
        try:
            ways["one CUDA graph"] = as_graph(capturable)
        except RuntimeError as error:
            failed = str(error).splitlines()[0]
    watches: dict[str, list[Stopwatch]] = {way: [] for way in ways}
    differences = dict.fromkeys(ways, 0.0)
    for i in range(-1, args.rounds):  # the first round is a warm-up and does not count
        for way, run in ways.items():
            watch, samples = measure(run, i + 1)
            if way == "eager":
                expected = samples
            differences[way] = max(differences[way], float((samples - expected).abs().max()))
            if i >= 0:
                watches[way].append(watch)
    rows = []
    for way, measured in watches.items():
        wall, cpu = ([args.samples / getattr(w, clock) for w in measured] for clock in ("wall", "cpu"))
        ratios = [eager.wall / w.wall for w, eager in zip(measured, watches["eager"], strict=True)]
        rows.append([name, way, spread(wall), spread(ratios, 2), spread(cpu), f"{differences[way]:.1e}"])
    return rows + ([[name, f"one CUDA graph: {failed}", *["-"] * 4]] if failed else [])


def main(arguments: list[str] | None = None) -> None:
    names = ("ddpm-50", "ddpm-1000", "score", "rbm")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samplers", nargs="*", metavar="SAMPLER", help=f"{', '.join(names)}; by default all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="number of threads of PyTorch")
    parser.add_argument("--samples", type=int, default=64, help="number of samples that are drawn together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="also write a results file, for zoo report")
    args = parser.parse_args(arguments)
    if unknown := set(args.samplers) - set(names):
        parser.error(f"SAMPLER must be one of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    if args.threads:
        torch.set_num_threads(args.threads)
    columns = ["sampler", "method", "samples/s", "ratio to eager", "samples per CPU second", "largest difference"]
    print(f"{args.samples} samples, {args.rounds} rounds; {hardware(torch.device(args.device))}\n")
    print(table(columns, []), flush=True)
    rows: list[list[str]] = []
    for name in args.samplers or names:
        rows += (of_sampler := benchmark(name, args))
        print("\n".join(map(line, of_sampler)), flush=True)
    kept = slice(0, 5)  # a page shows at most five columns
    write_csv(args.csv, "speed-sampling", columns[kept], [row[kept] for row in rows], args.device)


if __name__ == "__main__":
    main()
