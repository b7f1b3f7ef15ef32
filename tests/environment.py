"""The environment of the tests: the same on a cluster, behind a proxy, beside a GPU, and with a login or without."""

import os
import signal
import tempfile
from pathlib import Path

# What schedulers, launchers, proxies and services leave in the environment of a user, in capitals.
FOREIGN = ("SLURM_", "PMI", "OMPI_", "LSB_", "JSM_", "TORCHELASTIC_", "TORCH_DISTRIBUTED_", "NCCL_", "GLOO_", "PL_")
FOREIGN += ("WANDB_", "HYDRA_", "ZOO_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "XDG_", "MPL", "MATPLOTLIB")
NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
NAMES += ("MASTER_ADDR", "MASTER_PORT", "NETRC", "COLUMNS", "LINES", "FORCE_COLOR", "CLICOLOR_FORCE", "PYTHONWARNINGS")

# Limits of seconds are multiplied by it: ZOO_TEST_PATIENCE=10 for a very slow or busy machine.
PATIENCE = "ZOO_TEST_PATIENCE"


def foreign(name: str) -> bool:
    """Whether a variable of the user must not reach the tests."""
    capitals = name.upper()
    own = capitals in (PATIENCE, "ZOO_DATA")
    return not own and (capitals.startswith(FOREIGN) or capitals in NAMES or capitals.endswith("_PROXY"))


def settle(folder: Path, gpu: bool) -> None:
    """Make ``os.environ`` the environment of the tests, and let Ctrl-C reach the programs that they start.

    It must run before torch is imported.

    Args:
        folder: an empty folder, in which home and data get folders of their own.
        gpu: whether GPUs may be seen.
    """
    for name in [name for name in os.environ if foreign(name)]:
        del os.environ[name]
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells leave it for background jobs and what they start
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Two OpenMP threads on busy cores are slower than one, and other numbers of threads give other bits.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ |= {"WANDB_MODE": "offline", "MPLBACKEND": "Agg"}
    if Path("/sys/class/net/lo").exists():
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # and not the interface of the host's name
    if not gpu:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DISABLE_MPS": "1"}
    os.environ["HOME"] = str(folder / "home")  # without logins and settings, and there to be written to
    Path(os.environ["HOME"]).mkdir()
    os.environ["ZOO_DATA"] = str(_data(folder / "data", os.environ.get("ZOO_DATA")))


def _data(folder: Path, named: str | None) -> Path:
    """A folder with what lies in the one that ZOO_DATA names, to which nothing is written."""
    folder.mkdir()
    for path in Path(named).resolve().iterdir() if named and Path(named).is_dir() else ():
        if path.name != "encoded":  # made by runs
            (folder / path.name).symlink_to(path)
    return folder


def temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="zoo-tests-", ignore_cleanup_errors=True)
