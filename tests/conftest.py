"""What every test stands on: an environment, a device and random numbers that do not depend on the machine."""

import os
import random
import re
import zlib
from pathlib import Path

import environment
import pytest

# torch is imported after the environment is settled.


def pytest_configure(config):
    """Settle the environment once; the workers of pytest-xdist inherit it."""
    if not hasattr(config, "workerinput"):
        folder = environment.temporary()
        config.add_cleanup(folder.cleanup)
        environment.settle(Path(folder.name), gpu=_asks_for_gpus(config.option.markexpr))
    import torch

    torch.set_num_threads(1)


def _asks_for_gpus(expression):
    """Whether ``-m`` selects the tests of GPUs; all others run on the CPU."""
    return bool(re.search(r"(?<!not )\bgpu\b", expression or ""))


def _seed(text):
    """Give the global random streams a beginning that depends on ``text`` alone."""
    import numpy as np
    import torch

    number = zlib.crc32(text.encode())
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002, what libraries draw from
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    """Fixtures draw the same numbers whichever test asks for them first."""
    _seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Tests draw the same numbers whatever ran before them, and Lightning's seed of an earlier run is forgotten."""
    for name in [name for name in os.environ if name.startswith("PL_")]:
        del os.environ[name]
    _seed(f"{pyfuncitem.path.name}::{pyfuncitem.name}")


@pytest.fixture
def generator():
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def mnist_root():
    """The folder of the real MNIST, where there is one."""
    root = Path(os.environ["ZOO_DATA"])
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip("no real MNIST: ZOO_DATA names no folder with MNIST/raw in it")
    return root


# Files of minutes, where others take seconds; test_resume is the longest.
LONG = ("test_resume", "test_two_processes", "test_hub", "test_estimator_variance", "test_callbacks", "test_faults")
LONG += ("test_one_and_two", "test_recipes", "test_shipped", "test_rbm")


def pytest_collection_modifyitems(items):
    """Long files first, so that no core waits for the last of them."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
