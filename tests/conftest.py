import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("WANDB_MODE", "offline")
torch.set_num_threads(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def mnist_root():
    """The folder of the real MNIST, where there is one."""
    root = os.environ.get("ZOO_DATA")
    if not root or not (Path(root) / "MNIST" / "raw").is_dir():
        pytest.skip("no real MNIST: ZOO_DATA names no folder with MNIST/raw in it")
    return Path(root)


LONG = (
    "test_two_processes",
    "test_hub",
    "test_resume",
    "test_callbacks",
    "test_rbm",
    "test_one_and_two",
    "test_estimator_variance",
    "test_faults",
)  # minutes, where others take seconds


def pytest_collection_modifyitems(items):
    """Files of many minutes first, so that no core waits for the last of them."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONG) if name in item.nodeid), len(LONG)))
