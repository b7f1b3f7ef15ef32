"""Set the environment, the device and the random seeds, so that test results do not depend on the machine."""

import os
import random
import zlib
from collections import defaultdict
from pathlib import Path

import environment
import pytest

# torch is imported inside functions, because the environment must be set first.


def pytest_configure(config):
    """Set the environment once. The workers of pytest-xdist inherit it."""
    if not hasattr(config, "workerinput"):
        folder = environment.temporary()
        config.add_cleanup(folder.cleanup)
        environment.settle(Path(folder.name), gpu=_asks_for_gpus(config.option.markexpr))
    import torch

    torch.set_num_threads(1)


def _asks_for_gpus(expression):
    """Return whether the option ``-m`` selects only tests with the mark ``gpu``. All other tests run on the CPU."""

    def selects(mark):
        marks = defaultdict(bool, {mark: True})
        return eval(expression, {"__builtins__": {}}, marks)  # expressions of pytest have the syntax of Python

    try:
        return bool(expression) and selects("gpu") and not any(map(selects, ("slow", "train", "no_mark")))
    except (SyntaxError, TypeError):  # pytest reports the error
        return False


def _seed(text):
    """Seed the global random generators with a number that depends only on ``text``."""
    import numpy as np
    import torch

    number = zlib.crc32(text.encode())
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002, libraries use this generator
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    """Seed each fixture by its name, so that its numbers do not depend on the test that uses it first."""
    _seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Seed each test by its name, and remove environment variables that Lightning set in an earlier run."""
    for name in [name for name in os.environ if name.startswith("PL_")]:
        del os.environ[name]
    _seed(f"{pyfuncitem.path.name}::{pyfuncitem.name}")


@pytest.fixture
def generator():
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def mnist_root():
    """Return the data folder, which holds MNIST in ``MNIST/raw``. Skip the test if MNIST is missing."""
    root = Path(os.environ["ZOO_DATA"])
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip("no real MNIST: ZOO_DATA names no folder with MNIST/raw in it")
    return root


COLLECTED = pytest.StashKey[list[str]]()  # the names of all tests that this process has found
# Test files that take the most CPU time. The first two are the longest of the second tier, the others of the first.
LONG = ("test_shipped", "test_new_model", "test_resume", "test_recipes", "test_callbacks", "test_faults")
LONG += ("test_two_processes", "test_estimator_variance", "test_executions", "test_graphs", "test_devices", "test_hub")
LONG += ("test_one_and_two", "test_records", "test_rbm", "test_readme", "test_images_on_disk", "test_interruption")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out tests that ``-m`` and ``-k`` do not select
def pytest_collection_modifyitems(config, items):
    """Run long files first, so that no worker runs a long file alone at the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    config.stash[COLLECTED] = [item.nodeid for item in items]
