"""Training steps as CUDA graphs.

A graph holds the operations of one whole step: loss, gradient, clipping, optimiser, weight averages, and updates of the
model's buffers. A replay starts all of them at once, so the GPU does not wait for Python.

A graph keeps every Python number and every branch of the step in which it was captured. Therefore each combination of
such values has its own graph. They are the ``graph_key`` of the module, the shapes of the batch, and the numbers of the
optimisers. A learning rate with a schedule is a tensor on the device. The graphs are captured again if a parameter, a
buffer or a state of an optimiser has moved to another address.

The first steps with a new key run without a graph. They are ordinary training steps.
Random numbers continue from replay to replay, because PyTorch registers the generator with the graph.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from zoo.checks.capabilities import CapturedSteps
from zoo.training.batch_hooks import reason_against_plain_steps

if TYPE_CHECKING:
    import lightning as L

log = logging.getLogger(__name__)

# Number of steps without a graph before a capture. Libraries then allocate memory, and optimisers create their state.
WARM_UP = 3


class CUDA:
    """Capture and replay on the current CUDA device."""

    fused = True  # whether optimisers use fused kernels
    capturable = True  # whether optimisers keep their step counts on the device

    def __init__(self):
        self._side = torch.cuda.Stream()
        self._event: torch.cuda.Event | None = None

    def warm_up(self, run: Callable[[], Any]) -> Any:
        """Return ``run()``, run on a side stream, as a capture needs."""
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            result = run()
        torch.cuda.current_stream().wait_stream(self._side)
        return result

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Return a function that replays ``run``, and the result of ``run``. Each replay overwrites its tensors.

        The capture only records ``run``. The tensors have no values before the first replay.
        """
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        stream, state, graph = torch.cuda.current_stream(), generator.clone_state(), torch.cuda.CUDAGraph()
        try:
            # Other threads may use CUDA during the capture, for example a thread that measures the GPU.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = run()
        except BaseException:
            # A failed capture leaves the generator in the state of a capture, and its own stream as the current one.
            generator.graphsafe_set_state(state)
            torch.cuda.set_stream(stream)
            raise
        return graph.replay, result

    def wait_for_previous_execution(self) -> None:
        """Wait until the GPU has finished the previous execution.

        The steps of the current execution are already in the GPU's queue, so the GPU does not run out of work.
        """
        event = torch.cuda.Event()
        event.record()
        if self._event is not None:
            self._event.synchronize()
        self._event = event


class Captured(NamedTuple):
    """One captured step.

    Attributes:
        replay: function that replays the graph.
        batch: tensors and other values of the batch. A new batch is copied into these tensors.
        outputs: what the step returns.
        logs: what the step logs, as in :class:`RecordedLogs`.
        counted: (object, name of the attribute, increase) for each counter that the step increases.
    """

    replay: Callable[[], None]
    batch: list[Any]
    outputs: dict[str, Any]
    logs: dict[tuple[str, str], tuple[Any, dict[str, Any]]]
    counted: list[tuple[Any, str, int]]


class StepGraphs:
    """The graphs of the steps of a run.

    Args:
        loop: the loop, whose method ``eager_step`` takes a step without a graph.
        device: object that captures and replays, with the methods of :class:`CUDA`. None selects CUDA.
    """

    def __init__(self, loop: Any, device: Any = None):
        self.loop = loop
        self.device = CUDA() if device is None else device
        self.graphs: dict[Hashable, Captured] = {}
        self._eager_steps: Counter[Hashable] = Counter()
        self._addresses: tuple[int, ...] = ()
        self.failed = False
        configure_for_capture(loop.trainer, self.device)

    def step(self, batch, batch_idx: int) -> dict[str, Any]:
        """Take one step: without a graph for the first steps with a key, then as the replay of a graph."""
        if self.failed:
            return self.loop.eager_step(batch, batch_idx)
        leaves, structure = pytree.tree_flatten(batch)
        key = self.key(leaves)
        if key in self.graphs:
            return self._replay(self.graphs[key], leaves)
        if self._eager_steps[key] < WARM_UP:
            self._eager_steps[key] += 1
            return self.device.warm_up(lambda: self.loop.eager_step(batch, batch_idx))
        return self._capture(key, leaves, structure, batch, batch_idx)

    def key(self, leaves: list[Any]) -> Hashable:
        """Return the key of the graph of the next step, whose batch has the ``leaves``."""
        trainer = self.loop.trainer
        shapes = tuple((t.shape, t.dtype) if isinstance(t, Tensor) else t for t in leaves)
        return trainer.lightning_module.graph_key(), shapes, tuple(map(_numbers, trainer.optimizers))

    def check(self) -> None:
        """Drop all graphs if a parameter, a buffer or a state of an optimiser has moved to another address."""
        if self.graphs and self._addresses != self._addresses_now():
            self.graphs.clear()
            self._eager_steps.clear()

    def wait_for_previous_execution(self) -> None:
        """Limit how far Python runs ahead of the device, to one execution."""
        self.device.wait_for_previous_execution()

    def _addresses_now(self) -> tuple[int, ...]:
        trainer = self.loop.trainer
        module = trainer.lightning_module
        tensors = [*module.parameters(), *module.buffers()]
        for optimiser in trainer.optimizers:
            numbers = [*optimiser.state.values(), *optimiser.param_groups]  # a learning rate may be a tensor
            tensors += [t for values in numbers for t in values.values() if isinstance(t, Tensor)]
        return tuple(t.data_ptr() for t in tensors)

    def _capture(self, key: Hashable, leaves: list[Any], structure, batch, batch_idx: int) -> dict[str, Any]:
        loop, module = self.loop, self.loop.trainer.lightning_module
        own = [t.clone() if isinstance(t, Tensor) else t for t in leaves]
        counters, logs = list(_counters(loop)), type(loop.logs)()
        before = [getattr(*counter) for counter in counters]
        trained = [p.requires_grad for p in module.parameters()]
        for optimiser in loop.trainer.optimizers:
            optimiser.zero_grad(set_to_none=True)  # the graph then has its own memory for gradients
        try:
            with logs.recording(module, in_graph=True):
                replay, outputs = self.device.capture(
                    lambda: loop.eager_step(pytree.tree_unflatten(own, structure), batch_idx)
                )
        except RuntimeError as error:
            for counter, value in zip(counters, before, strict=True):
                setattr(*counter, value)
            for p, value in zip(module.parameters(), trained, strict=True):
                p.requires_grad_(value)  # adversarial models turn off the gradients of one network within a step
            for optimiser in loop.trainer.optimizers:
                optimiser.zero_grad(set_to_none=True)
            self.failed = True
            self.graphs.clear()
            cause: BaseException = error  # the end of a failed capture raises another error
            while cause.__context__ is not None:
                cause = cause.__context__
            log.warning("Steps run without CUDA graphs, because a capture failed: %s", str(cause).partition("\n")[0])
            return loop.eager_step(batch, batch_idx)
        changed = [(*c, getattr(*c) - value) for c, value in zip(counters, before, strict=True)]
        captured = Captured(replay, own, outputs, logs.values, [c for c in changed if c[2]])
        self.graphs[key], self._addresses = captured, self._addresses_now()
        replay()  # the capture only recorded the operations
        loop.logs.values |= captured.logs
        return outputs

    def _replay(self, graph: Captured, leaves: list[Any]) -> dict[str, Any]:
        for own, given in zip(graph.batch, leaves, strict=True):
            if isinstance(own, Tensor):
                own.copy_(given, non_blocking=True)
        graph.replay()
        for counter, name, added in graph.counted:
            setattr(counter, name, getattr(counter, name) + added)
        self.loop.logs.values |= graph.logs
        return graph.outputs


def graphs_of(loop: Any, wanted: bool) -> StepGraphs | None:
    """Return the graphs of a run on CUDA, or None if its steps are not captured.

    If the run asks for graphs, the reason against them is logged once.

    Args:
        loop: the loop of the run.
        wanted: whether the run asks for graphs.
    """
    reason = reason_against_graphs(loop) if wanted else None
    if wanted and reason is None:
        return StepGraphs(loop)
    if reason and loop.trainer.is_global_zero:
        log.info("Steps run without CUDA graphs, because %s", reason)
    if reason_against_plain_steps(loop.trainer) is None and isinstance(loop.trainer.lightning_module, CapturedSteps):
        configure_for_capture(loop.trainer, CUDA)  # so that a step computes the same with a graph and without
    return None


def reason_against_graphs(loop: Any) -> str | None:
    """Return why the steps of a run cannot be captured, as a clause without a full stop, or None if they can."""
    trainer = loop.trainer
    module = trainer.lightning_module
    if reason := reason_against_plain_steps(loop.trainer):
        return reason
    if not isinstance(module, CapturedSteps):
        return f"{type(module).__name__} has no method graph_key (see CapturedSteps in zoo/checks/capabilities.py)"
    if any(m._compiled_call_impl is not None for m in module.modules()):
        return "the networks are compiled"
    for optimiser in trainer.optimizers:
        if not isinstance(optimiser, torch.optim.SGD) and "capturable" not in optimiser.defaults:
            return f"the optimiser {type(optimiser).__name__} cannot be captured"
    return None


def configure_for_capture(trainer: "L.Trainer", device: Any) -> None:
    """Set the options of the optimisers of a run so that a CUDA graph can hold their steps.

    Args:
        trainer: the Trainer of the run.
        device: :class:`CUDA` or a class like it. ``fused`` and ``capturable`` say which options to set.
    """
    for optimiser in trainer.optimizers:
        _configure_for_capture(optimiser, device, scheduled=bool(trainer.lr_scheduler_configs))


def _configure_for_capture(optimiser: Optimizer, device: Any, scheduled: bool) -> None:
    """Keep the step counts of an optimiser on the device of its parameters, also after it loads a state.

    If ``scheduled``, the learning rate becomes a tensor on this device. A saved state has the earlier options and a
    Python number as learning rate, so that a run can resume from it on any device.
    """
    options = {"capturable": device.capturable, "fused": device.fused}
    before = {name: optimiser.param_groups[0].get(name) for name in options}

    def prepare(optimiser: Optimizer) -> None:
        for group in optimiser.param_groups:
            group.update({name: value for name, value in options.items() if name in group and value})
            if scheduled and not isinstance(group["lr"], Tensor):
                group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)
            for p in group["params"]:
                state = optimiser.state.get(p, {})
                if isinstance(state.get("step"), Tensor):
                    state["step"] = state["step"].to(p.device, torch.float32)

    def plain(optimiser: Optimizer, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            group.update({name: value for name, value in before.items() if name in group})
            group["lr"] = float(group["lr"])

    prepare(optimiser)
    optimiser.register_load_state_dict_post_hook(prepare)
    optimiser.register_state_dict_post_hook(plain)


def _numbers(optimiser: Optimizer) -> tuple:
    """Return the options of an optimiser that are not tensors. A graph holds their values."""
    return tuple(
        (name, value)
        for group in optimiser.param_groups
        for name, value in group.items()
        if name not in ("params", "initial_lr") and not isinstance(value, Tensor)
    )


def _counters(loop: Any) -> Iterator[tuple[Any, str]]:
    """Yield the counters of Lightning and of callbacks that a step can change, as pairs (object, name of attribute)."""
    stack: list[Any] = [loop.automatic_optimization.optim_progress, loop.manual_optimization.optim_step_progress]
    while stack:
        progress = stack.pop()
        for field in dataclasses.fields(progress):
            value = getattr(progress, field.name)
            if dataclasses.is_dataclass(value):
                stack.append(value)
            elif isinstance(value, int):
                yield progress, field.name
    for callback in loop.step_callbacks:
        yield from ((callback, name) for name, value in vars(callback).items() if type(value) is int)
