"""Set the environment variables of the tests. A cluster, a proxy or a login of the user does not change them."""

import os
import signal
import tempfile
from pathlib import Path

# Schedulers, launchers and services set variables that would change the tests. FOREIGN has the beginnings of their
# names, and NAMES has whole names. Both are in capitals.
FOREIGN = ("SLURM_", "PMI", "OMPI_", "LSB_", "JSM_", "TORCHELASTIC_", "TORCH_DISTRIBUTED_", "NCCL_", "GLOO_", "PL_")
FOREIGN += ("WANDB_", "HYDRA_", "ZOO_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "XDG_", "MPL", "MATPLOTLIB")
FOREIGN += ("HF_", "HUGGINGFACE", "TORCH_HOME", "TORCH_HUB")
NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
NAMES += ("MASTER_ADDR", "MASTER_PORT", "NETRC", "COLUMNS", "LINES", "FORCE_COLOR", "CLICOLOR_FORCE", "PYTHONWARNINGS")

# Environment variable that multiplies all time limits, such as ZOO_TEST_PATIENCE=10 for a very slow or busy machine.
PATIENCE = "ZOO_TEST_PATIENCE"


def foreign(name: str) -> bool:
    """Return whether the variable ``name`` of the user must be hidden from the tests."""
    capitals = name.upper()
    own = capitals in (PATIENCE, "ZOO_DATA")
    return not own and (capitals.startswith(FOREIGN) or capitals in NAMES or capitals.endswith("_PROXY"))


def settle(folder: Path, gpu: bool) -> None:
    """Turn ``os.environ`` into the environment of the tests, and let Ctrl-C reach the programs that tests start.

    Call this function before torch is imported.

    Args:
        folder: an empty folder. The home folder and the data folder are made inside it.
        gpu: whether the tests may see GPUs.
    """
    for name in [name for name in os.environ if foreign(name)]:
        del os.environ[name]
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # shells start background jobs with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # On busy cores, two OpenMP threads are slower than one. The number of threads also changes the rounding of results.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ |= {"WANDB_MODE": "offline", "MPLBACKEND": "Agg"}
    if Path("/sys/class/net/lo").exists():
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # by default gloo uses the interface of the host name
    if gpu:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic products of matrices; cuBLAS reads it once
    else:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DISABLE_MPS": "1"}
    os.environ["HOME"] = str(folder / "home")  # a home folder that is writable and has no logins or settings
    Path(os.environ["HOME"]).mkdir()
    os.environ["ZOO_DATA"] = str(_data(folder / "data", os.environ.get("ZOO_DATA")))


def _data(folder: Path, named: str | None) -> Path:
    """Fill ``folder`` with links to the files in ``named``, so that tests do not write to the data of the user."""
    folder.mkdir()
    for path in Path(named).resolve().iterdir() if named and Path(named).is_dir() else ():
        if path.name != "encoded":  # do not link this folder, because runs write to it
            (folder / path.name).symlink_to(path)
    return folder


def temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="zoo-tests-", ignore_cleanup_errors=True)
