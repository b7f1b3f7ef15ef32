"""Tests that steps replayed from a graph train as steps without one, across everything that changes between steps.

tests/recorded_graph.py takes the place of CUDA. Its captures follow the same rules. Tests with a GPU are in tests/gpu.
"""

from unittest.mock import patch

import lightning as L
import pytest
import torch
from helpers import TINY, assert_same_run, logged, run, tiers
from recorded_graph import Recorded
from test_executions import OPTIONS, EXPERIMENTS, One, fitted, of

import zoo.training.executions as executions
import zoo.training.graphs as graphs
from zoo.callbacks import EMA, FiniteLoss
from zoo.checks.errors import UserError


@pytest.fixture
def recorded(monkeypatch):
    """Let every run replay its steps from recorded graphs. Return the StepGraphs of all runs."""
    made, prepare = [], executions.Executions._prepare

    def with_graphs(loop):
        if not loop._decided:
            loop._decided = True
            loop.graphs = graphs.StepGraphs(loop, Recorded())
            made.append(loop.graphs)
            for callback in loop.trainer.callbacks:
                if isinstance(callback, EMA):
                    callback.reads_count = False  # as on a GPU
            for optimiser in loop.trainer.optimizers:
                assert not any(group["lr"] is None for group in optimiser.param_groups)
        prepare(loop)

    monkeypatch.setattr(executions.Executions, "_prepare", with_graphs)
    return made
