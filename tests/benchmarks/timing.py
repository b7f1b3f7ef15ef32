"""Clocks, CUDA graphs, medians, results files and names of the hardware, for the benchmarks in this folder.

With ``--csv FOLDER``, a benchmark also writes its tables to FOLDER as results files. ``zoo report`` reads the files of
docs/results.
"""

import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from zoo.evaluation.results import write_results


class Stopwatch:
    """Clock that can pause. It waits for the GPU before it reads the time.

    ``wall`` is the measured wall-clock time, and ``cpu`` is the CPU time of all threads of the process, in seconds.
    """

    def __init__(self):
        self.wall = self.cpu = 0.0
        self._began: tuple[float, float] | None = None

    def start(self) -> None:
        self._began = self._now()

    def stop(self) -> None:
        """Add the time since ``start``. Without a ``start``, the time does not change."""
        if self._began is not None:
            wall, cpu = self._now()
            self.wall, self.cpu = self.wall + wall - self._began[0], self.cpu + cpu - self._began[1]
            self._began = None

    def _now(self) -> tuple[float, float]:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def beside(run: Callable[[], Any]) -> None:
    """Call ``run`` on a side stream, which PyTorch requires before a capture. Later work on the GPU waits for it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)


def captured(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Return a function that replays ``run`` as one CUDA graph, and the result of ``run``.

    The capture only records ``run``. Each replay overwrites the tensors of the result.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    state, graph = generator.clone_state(), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = run()
    except BaseException:
        generator.graphsafe_set_state(state)  # a failed capture would leave the generator in its capture state
        raise
    return graph.replay, result


def spread(values: list[float], digits: int | None = None) -> str:
    """Return the median, the smallest and the largest value, such as ``0.98 (0.97 to 0.99)``.

    Args:
        values: one value for each round.
        digits: number of decimals. None selects 2 for a median below 10, 1 below 100, and 0 otherwise.
    """
    middle = statistics.median(values)
    if digits is None:
        digits = 2 if middle < 10 else 1 if middle < 100 else 0
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), middle, max(values)))
    return f"{middle} ({low} to {high})"


def line(cells: list[str]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(map(line, [columns, ["---"] * len(columns), *rows]))


def take_csv(words: list[str]) -> Path | None:
    """Remove ``--csv FOLDER`` from the words of a command line. Return the folder, or None without it."""
    if "--csv" not in words:
        return None
    place = words.index("--csv")
    if place + 1 == len(words):
        raise SystemExit("--csv needs a folder, such as docs/results")
    folder = Path(words[place + 1])
    del words[place : place + 2]
    return folder


def write_csv(
    folder: Path | None, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], device: str = "cpu"
) -> None:
    """Write the results file ``name`` with the command and the hardware of this benchmark. None writes nothing."""
    if folder is None:
        return
    words = list(sys.argv[1:])
    take_csv(words)
    command = shlex.join(["python", f"tests/benchmarks/{Path(sys.argv[0]).name}", *words])
    write_results(
        folder / f"{name}.csv", {"command": command, "hardware": hardware(torch.device(device))}, columns, rows
    )


def hardware(device: torch.device) -> str:
    """Return the processor or GPU, the number of threads and the version of PyTorch."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        models = [entry.split(":")[1].strip() for entry in _lines(info) if entry.startswith("model name")]
        name = models[0] if models else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
