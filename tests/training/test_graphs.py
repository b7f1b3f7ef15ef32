"""Tests that steps replayed from a graph train as steps without one, also if numbers, keys or tensors change.

tests/recorded_graph.py replaces CUDA. Its captures follow the same rules. Tests with a GPU are in tests/gpu.
"""

import math
from types import SimpleNamespace
from unittest.mock import patch

import lightning as L
import pytest
import torch
from helpers import assert_same, assert_same_run, logged, run, tiers
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from recorded_graph import Recorded
from short_runs import One, fitted, of, runs

import zoo.training.executions as executions
import zoo.training.graphs as graphs
from zoo.callbacks import EMA, FiniteLoss
from zoo.checks.errors import UserError
from zoo.skipgram import SkipGram


@pytest.fixture
def recorded(monkeypatch):
    """Make every run replay its steps from recorded graphs. Return the list of the StepGraphs of all runs."""
    made, prepare = [], executions.Executions._prepare

    def with_graphs(loop):
        if loop._optimisers is not loop.trainer.optimizers:
            loop._optimisers, module = loop.trainer.optimizers, loop.trainer.lightning_module
            if isinstance(module, SkipGram):
                for table in module.tables.values():
                    table.sparse = False  # as on a GPU
            for callback in loop.trainer.callbacks:
                if isinstance(callback, EMA):
                    callback.reads_count = False  # as on a GPU
            loop.graphs = graphs.StepGraphs(loop, Recorded())
            made.append(loop.graphs)
        prepare(loop)

    monkeypatch.setattr(executions.Executions, "_prepare", with_graphs)
    return made


ACCUMULATED = ("vae-clipped",)  # steps with accumulated gradients have no graph
FIRST_TIER = ("vae-annealed", "rbm-schedules", "skipgram", "experiment=wgan_ring")


@pytest.mark.parametrize("name", tiers([name for name in sorted(runs()) if name not in ACCUMULATED], FIRST_TIER))
def test_replayed_steps_train_as_steps_without_a_graph(name, recorded, tmp_path):
    """The optimisers are the same in both runs, so weights, averages, chains and logged rows are bitwise equal."""
    overrides = [*of(name), "trainer.steps_per_execution=16"]
    with patch.object(graphs, "WARM_UP", 10**9):
        expected = run(tmp_path / "eager", *overrides)
    found = run(tmp_path / "graph", *overrides)
    assert not recorded[0].graphs and recorded[1].graphs and not recorded[1].failed
    expected = {k: v for k, v in expected.items() if "second" not in k}
    assert_same_run(found, tmp_path / "graph", (expected, tmp_path / "eager"))
    assert logged(tmp_path / "graph") == logged(tmp_path / "eager")


@pytest.mark.parametrize(
    ("name", "number"), [("experiment=wgan_ring", 2), ("rbm-schedules", 2), ("vae-annealed", 1), ("vade", 2)]
)
def test_steps_with_other_operations_have_a_graph_of_their_own(name, number, recorded, tmp_path):
    run(tmp_path, *of(name), "trainer.steps_per_execution=16", "trainer.limit_train_batches=24")
    assert recorded[0].device.captured == number
    assert len({key for key, *_ in recorded[0].graphs}) == number


class Simple(One):
    """A module that logs no sums over an epoch. A graph can hold its steps."""

    reads = False

    def graph_key(self):
        return None

    def on_train_batch_start(self, batch, batch_idx):
        pass

    def training_step(self, batch, batch_idx):
        loss = (batch[0].mean() + 0.1 * torch.randn((), device=self.device) - self.weight).square()
        if self.reads and loss > -1:
            self.count.add_(1)
        self.log("train", loss)
        return {"loss": loss, "other": 1 / (self.weight.detach() - self.bad)}

    bad = 10.0


def test_a_capture_that_fails_is_said_once_and_training_goes_on_without_graphs(recorded, tmp_path, caplog):
    class Reads(Simple):
        reads = True

    with patch.object(graphs, "WARM_UP", 10**9):
        rows, state, _ = fitted(tmp_path / "eager", 16, module=Reads())
    again, after_failure, trainer = fitted(tmp_path / "failed", 16, module=Reads())
    assert recorded[1].failed and not recorded[1].graphs
    warned = [r.message for r in caplog.records if "a capture failed" in r.message]
    assert len(warned) == 1 and "waits for the device" in warned[0]
    assert again == rows and trainer.lightning_module.count.item() == 26
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "random", "global_step"):
        assert_same(after_failure[key], state[key], key)


def test_a_capture_refuses_sums_over_an_epoch(recorded, tmp_path, caplog):
    class Summed(Simple):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)["loss"]
            self.log("mean", loss, on_epoch=True)
            return loss

    fitted(tmp_path, 16, module=Summed())
    assert recorded[0].failed and "'mean'" in caplog.text


def test_a_replay_counts_logs_and_saves_as_a_step_does(recorded, tmp_path):
    """The checkpoint has Python numbers for the options of the optimiser, so a run can resume on any device."""
    with patch.object(graphs, "WARM_UP", 10**9):
        rows, state, _ = fitted(tmp_path / "eager", 16, module=Simple())
    again, replayed, _ = fitted(tmp_path / "graph", 16, module=Simple())
    assert recorded[1].device.captured == 1
    assert again == rows
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "random", "global_step"):
        assert_same(replayed[key], state[key], key)
    group = replayed["optimizer_states"][0]["param_groups"][0]
    assert type(group["lr"]) is float and not group["fused"] and not group["capturable"]


def test_graphs_are_captured_again_where_the_state_of_an_optimiser_is_new(recorded, tmp_path):
    class Forgets(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.optimizers[0].state.clear()

    fitted(tmp_path, 16, module=Simple(), callbacks=[Forgets()], max_epochs=3)
    assert recorded[0].device.captured == 3


def test_a_learning_rate_in_another_tensor_has_new_graphs(recorded, tmp_path):
    class Moves(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            group = trainer.optimizers[0].param_groups[0]
            group["lr"] = torch.as_tensor(group["lr"]).clone()

    with patch.object(graphs, "WARM_UP", 10**9):
        expected, *_ = fitted(tmp_path / "eager", 16, module=Simple(), callbacks=[Moves()])
    found, *_ = fitted(tmp_path / "graph", 16, module=Simple(), callbacks=[Moves()])
    assert recorded[1].device.captured == 2 and found == expected


def test_gradients_that_are_accumulated_from_some_epoch_on_have_no_graphs_from_there(recorded, tmp_path):
    found = {}
    for k in (1, 16):
        later = GradientAccumulationScheduler({1: 2})
        _, state, trainer = fitted(tmp_path / str(k), k, module=Simple(), callbacks=[later])
        found[k] = trainer.global_step, state["state_dict"]["weight"].item()
    assert recorded[0].graphs and found[16][0] == found[1][0] == 13 + 7
    assert found[16][1] == pytest.approx(found[1][1], rel=1e-5)


def test_a_module_may_keep_the_outputs_of_its_steps(recorded, tmp_path):
    """Every replay writes the same tensors, so the hook of the module gets copies."""

    class Keeps(Simple):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.kept = [*getattr(self, "kept", []), outputs["loss"]]

    kept = []
    for warm_up in (10**9, 3):
        with patch.object(graphs, "WARM_UP", warm_up):
            _, _, trainer = fitted(tmp_path / str(warm_up), 16, module=Keeps())
        kept.append([loss.item() for loss in trainer.lightning_module.kept])
    assert recorded[1].device.captured == 1 and kept[0] == kept[1]


def test_a_failed_capture_leaves_out_no_update_of_an_average(recorded, tmp_path):
    """The capture fails after the average was updated in it. The step is then taken once more, without a graph."""

    class Reads(L.Callback):
        def after_step(self, trainer, pl_module, outputs):
            assert outputs["loss"] > -1

    ema = EMA(0.9)
    _, _, trainer = fitted(tmp_path, 16, module=Simple(), callbacks=[ema, Reads()])
    assert recorded[0].failed and int(ema._average_model.n_averaged) == trainer.global_step == 26


def test_a_failed_capture_leaves_parameters_trainable(recorded, tmp_path):
    class Toggles(Simple):
        reads = True

        def __init__(self):
            super().__init__()
            self.spare = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            self.spare.requires_grad_(False)
            found = super().training_step(batch, batch_idx)  # a capture fails here
            self.spare.requires_grad_(True)
            return found

    before, seen, module = executions.Executions.eager_step, [], Toggles()

    def eager_step(loop, batch, batch_idx):
        seen.append(module.spare.requires_grad)
        return before(loop, batch, batch_idx)

    with patch.object(executions.Executions, "eager_step", eager_step):
        fitted(tmp_path, 16, module=module)
    assert recorded[0].failed and all(seen) and len(seen) == 27  # one step begins twice


def test_gradients_of_earlier_steps_are_dropped_before_a_capture(recorded, tmp_path, monkeypatch):
    """The memory of gradients then belongs to the graph."""
    capture, found = Recorded.capture, []

    def checked(device, run):
        found.append([p.grad for p in recorded[0].loop.trainer.lightning_module.parameters()])
        return capture(device, run)

    monkeypatch.setattr(Recorded, "capture", checked)
    fitted(tmp_path, 16, module=Simple())
    assert found == [[None]]


def test_a_failed_capture_leaves_the_stream_as_it_was_and_its_first_error_is_known(monkeypatch):
    """The end of a failed capture raises an error too. ``torch.cuda.graph`` then leaves its own stream as current."""
    streams = ["stream of the run"]

    class Graph:
        def __init__(self, graph, **options):
            pass

        def __enter__(self):
            streams.append("stream of the capture")

        def __exit__(self, *error):
            raise RuntimeError("capture was invalidated")

    generator = SimpleNamespace(clone_state=lambda: "before", graphsafe_set_state=lambda state: streams.append(state))
    replaced = {"current_device": lambda: 0, "default_generators": [generator], "CUDAGraph": object, "graph": Graph}
    replaced |= {"current_stream": lambda: streams[-1], "set_stream": streams.append}
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def wait():
        raise RuntimeError("the step waits")

    with pytest.raises(RuntimeError, match="invalidated") as raised:
        graphs.CUDA.capture(object.__new__(graphs.CUDA), wait)
    assert streams[-1] == "stream of the run" and "before" in streams
    assert str(raised.value.__context__) == "the step waits"


def test_another_buffer_has_new_graphs(recorded, tmp_path):
    class Moves(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.count = torch.full((), float(trainer.current_epoch))

    class Shifted(Simple):
        def training_step(self, batch, batch_idx):
            loss = (batch[0].mean() + self.count - self.weight).square()
            self.log("train", loss)
            return loss

    with patch.object(graphs, "WARM_UP", 10**9):
        expected, *_ = fitted(tmp_path / "eager", 16, module=Shifted(), callbacks=[Moves()])
    found, *_ = fitted(tmp_path / "graph", 16, module=Shifted(), callbacks=[Moves()])
    assert recorded[1].device.captured == 2 and found == expected


def test_other_numbers_of_an_optimiser_have_a_graph_of_their_own(recorded, tmp_path):
    class Decays(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.5 * trainer.current_epoch

    with patch.object(graphs, "WARM_UP", 10**9):
        expected, *_ = fitted(tmp_path / "eager", 16, module=Simple(), callbacks=[Decays()])
    found, *_ = fitted(tmp_path / "graph", 16, module=Simple(), callbacks=[Decays()])
    assert recorded[1].device.captured == 2 and found == expected


def test_batches_of_another_size_have_a_graph_of_their_own(recorded, tmp_path):
    class Ragged(Simple):
        number = 0

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.number += 1
            return [batch[0][: 2 if self.number % 3 == 0 else 4]]

    with patch.object(graphs, "WARM_UP", 10**9):
        expected, *_ = fitted(tmp_path / "eager", 16, module=Ragged())
    found, *_ = fitted(tmp_path / "graph", 16, module=Ragged())
    assert recorded[1].device.captured == 2 and found == expected


def test_a_replay_does_not_write_the_batch_of_the_capture(recorded, tmp_path):
    class Keeps(L.Callback):
        seen = ()

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen = (*self.seen, (batch[0], batch[0].clone()))

    kept = Keeps()
    fitted(tmp_path, 16, module=Simple(), callbacks=[kept])
    assert recorded[0].device.captured == 1 and len(kept.seen) == 26
    assert all(torch.equal(now, before) for now, before in kept.seen)


def test_executions_take_half_a_second_of_a_device_that_is_slower_than_python(recorded, tmp_path, monkeypatch):
    """Python queues a step in 30 microseconds, and the device takes 10 milliseconds for it."""
    clock = SimpleNamespace(now=0.0, busy=0.0, before=0.0)
    sizes = []

    class Slow(Simple):
        def on_train_batch_start(self, batch, batch_idx):
            clock.now += 30e-6
            clock.busy = max(clock.busy, clock.now) + 0.01

    def wait(device):
        clock.now, clock.before = max(clock.now, clock.before), clock.busy
        sizes.append(recorded[0].loop.size)

    monkeypatch.setattr(executions, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(Recorded, "wait_for_previous_execution", wait)
    few = {"batches": 280, "max_epochs": 1, "log_every_n_steps": 0, "limit_val_batches": 0}
    fitted(tmp_path, "auto", module=Slow(), **few)
    assert sizes[:2] == [1, 8] and len(sizes) > 6 and all(45 < size <= 50 for size in sizes[2:])


def test_an_infinite_term_of_a_replayed_step_is_named_with_its_step(recorded, tmp_path):
    """The term 1 / (weight - bad) becomes infinite at the step that begins with the weight ``bad``."""
    weights = []

    class Noted(Simple):
        def on_train_batch_start(self, batch, batch_idx):
            weights.append(self.weight.item())

    torch.manual_seed(0)
    fitted(tmp_path / "first", 16, module=Noted())
    Noted.bad = weights[9]
    with pytest.raises(UserError, match=r"at step 9 \(epoch 0\) other = -?inf"):
        fitted(tmp_path / "second", 16, module=Noted(), callbacks=[FiniteLoss(tmp_path)])
    assert recorded[1].device.captured == 1


class Inner(L.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pass


@pytest.mark.parametrize(
    ("options", "module", "callbacks", "reason"),
    [
        ({}, Simple, [], None),
        ({}, One, [], "One has no method graph_key"),
        ({"accumulate_grad_batches": 2}, Simple, [], "accumulated"),
        ({}, Simple, [Inner()], "the callback Inner has the hook on_before_optimizer_step"),
    ],
)
def test_the_reason_against_graphs_is_named(options, module, callbacks, reason, tmp_path):
    _, _, trainer = fitted(tmp_path, 16, module=module(), callbacks=callbacks, **options)
    found = graphs.reason_against_graphs(trainer.fit_loop.epoch_loop)
    assert (found is None) == (reason is None) and (reason or "") in (found or "")


def test_compiled_networks_and_other_optimisers_have_no_graphs(tmp_path):
    _, _, trainer = fitted(tmp_path, 16, module=Simple())
    loop, module = trainer.fit_loop.epoch_loop, trainer.lightning_module
    trainer.strategy.optimizers = [torch.optim.LBFGS(module.parameters())]
    assert "LBFGS" in graphs.reason_against_graphs(loop)
    trainer.strategy.optimizers = [torch.optim.Adagrad(module.parameters())]
    assert "the optimiser Adagrad cannot be captured" in graphs.reason_against_graphs(loop)
    trainer.strategy.optimizers = [torch.optim.SGD(module.parameters(), lr=1)]
    module.part = torch.nn.Linear(1, 1)
    module.part.compile(backend="eager")
    assert graphs.reason_against_graphs(loop) == "the networks are compiled"


def test_the_decay_of_an_average_is_the_same_as_a_number_and_as_a_tensor():
    from zoo.callbacks.ema import decay_at, decay_tensor

    for n in (0, 1, 7, 10_000):
        assert decay_tensor(torch.tensor(n), 0.99).item() == pytest.approx(decay_at(n, 0.99), abs=1e-7)
    assert math.isclose(decay_at(10_000, 0.99), 0.99) and decay_at(0, 0.99) == 0
