"""Benchmark of training steps: train.py, a bare loop and, on a GPU, a CUDA graph of the whole step.

    python tests/benchmarks/steps.py MODEL [MODEL ...] [--device cuda] [--threads 1] [--callbacks none default]

The benchmark trains MODEL by its recipe, on MNIST if it is on disk and on scikit-learn's digits if not. Skip-gram reads
text8 if it is on disk and Python's documentation if not. The contenders take turns in one process:

- The bare loop has the same batches, losses, optimisers, schedules and weight average as train.py, and nothing else.
- The CUDA graph holds the whole step of the bare loop. One graph is captured for each kind of step.
- train.py trains as on the command line, with one batch in an execution, and with several if that is possible.

``--callbacks none`` leaves only the weight average and the callbacks that write checkpoints. ``--callbacks default``
has all callbacks of the recipe. The benchmark does not time the first ``--warm-up`` steps and the work at the end of
an epoch, such as checkpoints. No run is validated.

The table gives medians over the rounds, and the smallest and largest value. A ratio is the rate of a contender over the
rate of the bare loop in the same round. For one thread on a shared machine, compare CPU time, not wall-clock time.

The last column compares the weights and averages after the last step with those of the bare loop. The difference is a
fraction of the distance that the weights of the bare loop have moved. It must be close to 0, because all contenders
train the same model. On a GPU, different rounding can make it large after many steps.
"""

import argparse
import contextlib
import gc
import inspect
import itertools
import math
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from timing import Stopwatch, beside, captured, hardware, spread, table, write_csv  # noqa: E402

from zoo.callbacks import EMA  # noqa: E402
from zoo.callbacks.ema import evaluation_weights  # noqa: E402
from zoo.checks import capabilities  # noqa: E402
from zoo.checks.calls import called_by_the_model  # noqa: E402
from zoo.commands.training import train  # noqa: E402
from zoo.datamodules.files import data_root  # noqa: E402
from zoo.evaluation.results import significant  # noqa: E402
from zoo.training.trainer import make_trainer  # noqa: E402

BARE, GRAPH = "bare loop", "bare loop as CUDA graphs"
# Callbacks that remain with --callbacks none. Adversarial recipes choose checkpoints by the metric of sample_distance.
KEPT = ("best", "last", "finite_loss", "exact_resume", "ema", "sample_distance", "measure")
AVERAGE = "average of "  # precedes the name of a parameter
# Contenders in the results file, with their columns. They count CPU time, as a fraction of the bare loop.
SHOWN = {
    "train.py, steps_per_execution=1": "K = 1",
    "train.py, steps_per_execution=auto": "K = auto",
    "train.py, steps_per_execution=auto, default callbacks": "K = auto, all callbacks",
}
TOLERANCE = 1e-3  # a larger difference of weights is marked


@dataclass
class Measured:
    """Result of one run.

    Attributes:
        state: parameters and buffers after the last step, and averages of the parameters.
        rows: size of a training step in ``unit``, such as images or words.
        memory: peak memory of the GPU, MB.
        kernels: seconds of GPU kernels, None if the run was not profiled.
        start: parameters and buffers of the bare loop before the first step.
    """

    steps: int
    watch: Stopwatch
    state: dict[str, Tensor]
    rows: float
    unit: str
    about: str
    memory: float = 0.0
    kernels: float | None = None
    start: dict[str, Tensor] = field(default_factory=dict)


def copied(model) -> dict[str, Tensor]:
    """Return copies of the floating-point parameters and buffers, by name, on the CPU."""
    return {k: v.to("cpu", copy=True) for k, v in model.state_dict().items() if v.is_floating_point()}


class Finished(Exception):
    """Ends a run after the last measured step."""

    def __init__(self, measured: Measured):
        super().__init__("the run was measured")
        self.measured = measured


class Meter:
    """Measures the steps ``first`` + 1 to ``last`` of a run, without the time between epochs."""

    def __init__(self, first: int, last: int, profiled: bool):
        self.first, self.last, self.watch = first, last, Stopwatch()
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) if profiled else None

    def begin_epoch(self, done: int) -> None:
        if self.first <= done < self.last:
            self.watch.start()

    def end_epoch(self) -> None:
        self.watch.stop()

    def after(self, done: int) -> bool:
        """Take the time after ``done`` batches, and return whether the run is measured."""
        if done == self.first:
            if self.profiler is not None:
                self.profiler.start()
            self.watch.start()
        elif done == self.last:
            self.watch.stop()
            if self.profiler is not None:
                self.profiler.stop()
        return done == self.last

    def finished(self, trainer, model, averages: dict[str, Tensor]) -> Finished:
        data = trainer.datamodule
        unit, per_row = data.unit if isinstance(data, capabilities.CountedData) else ("images", 1.0)
        state = copied(model) | {f"{AVERAGE}{name}": value.to("cpu", copy=True) for name, value in averages.items()}
        batch = data.train_dataloader().batch_size
        measured = Measured(self.last - self.first, self.watch, state, batch * per_row, unit, "")
        measured.about = f"data={data.used}, batches of {batch}, precision {trainer.precision}"
        if torch.cuda.is_initialized():
            measured.memory = torch.cuda.max_memory_allocated() / 1e6
        if self.profiler is not None:
            measured.kernels = sum(e.self_device_time_total for e in self.profiler.key_averages()) / 1e6
        return Finished(measured)


class Lightning(L.Callback):
    """Callback that measures the steps of train.py, and then ends the run. It must be the last callback."""

    def __init__(self, first: int, last: int, profiled: bool = False):
        self.meter = Meter(first, last, profiled)

    def batches_until_due(self, trainer) -> float:
        done = trainer.fit_loop.total_batch_idx + 1
        return (self.meter.first if done < self.meter.first else self.meter.last) - done

    def on_train_epoch_start(self, trainer, pl_module):
        self.meter.begin_epoch(trainer.fit_loop.total_batch_idx + 1)

    def on_train_epoch_end(self, trainer, pl_module):
        self.meter.end_epoch()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not self.meter.after(trainer.fit_loop.total_batch_idx + 1):
            return
        averages: dict[str, Tensor] = {}
        if any(isinstance(callback, EMA) for callback in trainer.callbacks):
            with evaluation_weights(trainer, pl_module):
                averages = {name: p.detach().clone() for name, p in pl_module.named_parameters()}  # swapped back below
        raise self.meter.finished(trainer, pl_module, averages)


class Bare(L.Callback):
    """Callback that runs a bare loop in place of Lightning's, and then ends the run."""

    def __init__(self, first: int, last: int, profiled: bool = False, graph: bool = False):
        self.meter, self.graph = Meter(first, last, profiled), graph

    def on_train_epoch_start(self, trainer, pl_module):
        with called_by_the_model():  # the bare loop checks no arguments
            raise bare_loop(trainer, pl_module, self.meter, self.graph)


def bare_loop(trainer, model, meter: Meter, graph: bool) -> Finished:
    """Train ``model``, which Lightning has set up, and return the measurement."""
    model.log = model.log_dict = lambda *args, **kwargs: None
    average = next((Average(model, c.decay, graph) for c in trainer.callbacks if isinstance(c, EMA)), None)
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    train_step = (adversarial_step if len(trainer.optimizers) > 1 else plain_step)(model, trainer)
    run = Graphs(train_step, model, trainer.optimizers, average) if graph else train_step
    loader, done, start = trainer.datamodule.train_dataloader(), 0, copied(model)
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        trainer.fit_loop.epoch_progress.current.completed = epoch  # the model's current_epoch
        model.on_train_epoch_start()
        meter.begin_epoch(done)
        for batch in indices(loader) if graph else loader:
            model.on_train_batch_start(batch, done)
            if isinstance(run, Graphs):
                run(batch, done, loader)
            else:
                run(batch, done)
                if average is not None:
                    average.update()
            for schedule in schedules:
                schedule.step()
            done += 1
            if meter.after(done):
                finished = meter.finished(trainer, model, {} if average is None else average.by_name())
                finished.measured.start = start
                return finished
        meter.end_epoch()
    raise AssertionError


class Average:
    """Exponential moving average of the parameters of ``model``, as in ``zoo.callbacks.EMA``.

    Args:
        model: the model.
        decay: largest decay of an update.
        on_device: whether the number of updates is a tensor, so that a CUDA graph can hold the update.
    """

    def __init__(self, model, decay: float, on_device: bool):
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = [p.detach() for p in model.parameters()]
        self.values = [p.clone() for p in self.parameters]
        self.decay, self.on_device = decay, on_device
        self.count = torch.zeros((), device=self.values[0].device) if on_device else 0

    def update(self) -> None:
        warm = (1 + self.count) / (10 + self.count)
        if self.on_device:
            new = torch.where(self.count > 0, 1 - warm.clamp(max=self.decay), 1.0)  # the first update copies
            change = torch._foreach_sub(self.parameters, self.values)
            torch._foreach_mul_(change, new)
            torch._foreach_add_(self.values, change)
        else:
            new = 1 - min(self.decay, warm) if self.count else 1.0
            torch._foreach_lerp_(self.values, self.parameters, new)
        self.count += 1

    def by_name(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.values, strict=True))


def autocast(trainer) -> Callable[[], contextlib.AbstractContextManager]:
    """Return a function that returns the autocast context for the precision of the run."""
    if trainer.precision != "bf16-mixed":
        return contextlib.nullcontext
    device = trainer.strategy.root_device.type
    return lambda: torch.autocast(device, torch.bfloat16)


def plain_step(model, trainer) -> Callable:
    """Return the training step of a model with one optimiser, as a function of a batch and the number of the step."""
    (optimiser,), precision = trainer.optimizers, autocast(trainer)

    def step(batch, i: int) -> None:
        with precision():
            out = model.training_step(batch, i)
        loss = out if isinstance(out, Tensor) else out["loss"]
        optimiser.zero_grad()
        loss.backward()
        model.on_before_optimizer_step(optimiser)
        optimiser.step()

    step.kind = lambda i: model.graph_key() if isinstance(model, capabilities.CapturedSteps) else None
    return step


def adversarial_step(model, trainer) -> Callable:
    """Return the training step of an adversarial model, as a function of a batch and the number of the step."""
    (first, second), precision, options = trainer.optimizers, autocast(trainer), model.hparams
    every = options.get("n_critic") or options.get("discriminator_steps") or 1
    first_loss = model.critic_loss if isinstance(model, capabilities.Critic) else model.discriminator_loss

    def take(optimiser, other, loss: Callable, batch) -> None:
        others = [p for group in other.param_groups for p in group["params"]]
        for p in others:
            p.requires_grad_(False)
        with precision():
            value = loss(batch)["loss"]
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        for p in others:
            p.requires_grad_(True)

    def step(batch, i: int) -> None:
        take(first, second, first_loss, batch)
        if options.get("lipschitz") == "clip":
            model.clip()
        if step.kind(i):
            take(second, first, model.generator_loss, batch)

    step.kind = lambda i: (i + 1) % every == 0
    return step


def indices(loader) -> Iterator:
    """Yield an object for each batch on the device: the indices of its images, or the batch itself."""
    if hasattr(loader, "examples"):
        yield from torch.stack(loader.indices()).to(loader.split.images.device)
    else:
        yield from loader


class Graphs:
    """The step of a bare loop as CUDA graphs, one for each kind of step.

    A graph holds the look-up of the images, the losses, the optimiser steps and the weight average. The schedule of the
    learning rate writes to a tensor on the device. The first three steps of each kind run without a graph.
    """

    def __init__(self, step: Callable, model, optimisers, average: Average | None):
        self.step, self.average = step, average
        self.replays: dict[Hashable, Callable[[], None]] = {}
        self.static: list[Tensor] = []
        self._eager_steps: Counter[Hashable] = Counter()
        options = {"fused": True, "capturable": model.device.type == "cuda"}
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group |= {name: value for name, value in options.items() if name in group}
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=model.device)

    def __call__(self, selected, i: int, loader) -> None:
        tensors = [selected] if isinstance(selected, Tensor) else list(selected)
        if not self.static:
            self.static = [t.clone() for t in tensors]
        for static, t in zip(self.static, tensors, strict=True):
            static.copy_(t)

        def body() -> None:
            self.step(loader.examples(*self.static) if hasattr(loader, "examples") else self.static, i)
            if self.average is not None:
                self.average.update()

        kind = self.step.kind(i)
        if kind not in self.replays and self._eager_steps[kind] < 3:
            self._eager_steps[kind] += 1
            beside(body)
            return
        if kind not in self.replays:
            self.replays[kind], _ = captured(body)
        self.replays[kind]()


def stored(*patterns: str) -> bool:
    return any(True for pattern in patterns for _ in data_root().glob(pattern))


def data_of(model: str) -> str:
    """Return the data set of a benchmark: the published one if it is on disk, and one that needs no download if not."""
    if model == "skipgram":
        return "text8" if stored("text8*", "text8/*") else "pydocs"
    return "mnist" if stored("MNIST/raw/*", "train-images*") else "digits"


def run(model: str, folder: Path, callbacks: str, measure: dict[str, object], options: list[str]) -> Measured:
    """Run train.py with a callback that measures steps.

    Args:
        model: name of a recipe.
        folder: folder of the run.
        callbacks: ``none`` or ``default``.
        measure: class of the callback, ``_target_``, and its arguments.
        options: overrides of the configuration.
    """
    overrides = [f"model={model}", "logger=csv", "test=false", f"run_dir={folder}"]
    overrides += ["trainer.num_sanity_val_steps=0", "trainer.enable_progress_bar=false"]
    overrides += ["trainer.check_val_every_n_epoch=1000000"]
    if not any(option.startswith("data=") for option in options):
        overrides.append(f"data={data_of(model)}")
    overrides += [f"+callbacks.measure.{key}={value}" for key, value in measure.items()]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", [*overrides, *options])
    if callbacks == "none":
        cfg.callbacks = {name: node for name, node in cfg.callbacks.items() if name in KEPT}
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        train(cfg)
    except Finished as finished:
        return finished.measured
    finally:
        gc.collect()
    raise SystemExit(f"{model}: the recipe ends before the last step to measure. Choose fewer --steps")


def contenders(args: argparse.Namespace) -> dict[str, Callable[[str, Path, bool], Measured]]:
    """Return {name of a contender: function (model, folder, profiled) that measures one run}."""
    options = [f"trainer={'gpu' if args.device == 'cuda' else 'cpu'}", *args.set]

    def contender(kind: type, callbacks: str = "none", extra: tuple[str, ...] = (), **arguments: object) -> Callable:
        def measured(model: str, folder: Path, profiled: bool) -> Measured:
            measure = {"_target_": f"{__name__}.{kind.__name__}", "first": args.warm_up}
            measure |= {"last": args.warm_up + args.steps, "profiled": profiled, **arguments}
            return run(model, folder, callbacks, measure, [*options, *extra])

        return measured

    several = "steps_per_execution" in inspect.signature(make_trainer).parameters
    single = ("++trainer.steps_per_execution=1",) if several else ()
    found = {BARE: contender(Bare, extra=single)}
    if args.device == "cuda":
        found[GRAPH] = contender(Bare, extra=single, graph=True)
    for callbacks in args.callbacks:
        for executions in (1, "auto") if several else (None,):
            extra = () if executions is None else (f"++trainer.steps_per_execution={executions}",)
            name = "train.py" if executions is None else f"train.py, steps_per_execution={executions}"
            name += ", default callbacks" if callbacks == "default" else ""
            found[name] = contender(Lightning, callbacks, extra)
    return found


def difference(run: Measured, bare: Measured) -> float:
    """Return the distance between the weights of two runs, divided by the distance that those of ``bare`` moved."""
    assert run.state.keys() == bare.state.keys(), run.state.keys() ^ bare.state.keys()
    apart = moved = 0.0
    for name, expected in bare.state.items():
        apart += float((run.state[name] - expected).double().square().sum())
        moved += float((bare.start[name.removeprefix(AVERAGE)] - expected).double().square().sum())
    return math.sqrt(apart / moved)


def benchmark(model: str, args: argparse.Namespace, shown: list[list[str]]) -> dict[str, float]:
    """Measure all contenders on ``model``, and print a table.

    Args:
        model: name of a recipe.
        args: the arguments of the command line.
        shown: the row of the results file is appended to this list.

    Returns:
        the largest :func:`difference` of each contender from the bare loop.
    """
    runs: dict[str, list[Measured]] = defaultdict(list)
    differences: dict[str, float] = defaultdict(float)
    kernels: dict[str, float] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.rounds + (args.device == "cuda")):
            profiled = i == args.rounds  # one more round measures the time of kernels
            for number, (name, contender) in enumerate(contenders(args).items()):
                if name in failed:
                    continue
                try:
                    one = contender(model, Path(folder) / f"{i}-{number}", profiled)
                except RuntimeError as error:
                    if name != GRAPH:
                        raise
                    failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                    continue
                if profiled:
                    kernels[name] = one.kernels / one.steps
                    continue
                runs[name].append(one)
                if name == BARE:
                    bare = one
                differences[name] = max(differences[name], difference(one, bare))
                if name != BARE:
                    one.state.clear()
    one = runs[BARE][0]
    print(f"\n{model}: {one.about}, {' '.join(args.set) or 'default recipe'}; {hardware(torch.device(args.device))}")
    print(f"steps {args.warm_up + 1} to {args.warm_up + args.steps}, {args.rounds} rounds\n")
    columns = ["contender", "steps/s", f"{one.unit}/s", "ratio", "steps per CPU second", "ratio of CPU time"]
    columns += ["GPU busy", "peak memory, MB"] if args.device == "cuda" else []
    rows, short = [], {}
    for name, measured in runs.items():
        wall = [m.steps / m.watch.wall for m in measured]
        cpu = [m.steps / m.watch.cpu for m in measured]
        ratios = [b.watch.wall / m.watch.wall for m, b in zip(measured, runs[BARE], strict=True)]
        of_cpu = [b.watch.cpu / m.watch.cpu for m, b in zip(measured, runs[BARE], strict=True)]
        row = [name, spread(wall), spread([rate * one.rows for rate in wall]), spread(ratios, 2)]
        row += [spread(cpu), spread(of_cpu, 2)]
        short[name] = significant(statistics.median(cpu)) if name == BARE else f"{statistics.median(of_cpu):.2f}"
        if args.device == "cuda":
            row += [f"{kernels[name] * sorted(wall)[len(wall) // 2]:.0%}", f"{max(m.memory for m in measured):,.0f}"]
        rows.append([*row, f"{differences[name]:.1e}{'' if differences[name] < TOLERANCE else ' DIFFERS'}"])
    print(table([*columns, "difference of weights"], rows), flush=True)
    shown.append([f"`{model}`", short[BARE], *(short.get(name, "") for name in SHOWN)])
    for name, reason in failed.items():
        print(f"{name} failed: {reason}", flush=True)
    return differences


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name of a file in configs/model")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="number of threads of PyTorch")
    parser.add_argument("--steps", type=int, default=200, help="number of measured steps")
    parser.add_argument("--warm-up", type=int, default=50, help="number of steps before the measured ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callbacks", nargs="+", choices=("none", "default"), default=["none", "default"])
    parser.add_argument("--set", nargs="+", default=[], metavar="OVERRIDE", help="overrides, as for train.py")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="also write a results file, for zoo report")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    rows: list[list[str]] = []
    differences = {model: benchmark(model, args, rows) for model in args.models}
    write_csv(args.csv, "speed-steps", ["model", "bare loop, steps/s", *SHOWN.values()], rows, args.device)
    return differences


if __name__ == "__main__":
    main()
