"""Whether Weights & Biases can be logged in to without asking anybody."""

import netrc
import os
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checks.errors import UserError
from zoo.training.outputs import check_writable

if TYPE_CHECKING:
    import wandb


def wandb_credentials() -> bool:
    """Whether Weights & Biases has a key: in the environment, or from ``wandb login`` (a netrc file)."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    base = os.environ.get("WANDB_BASE_URL")
    urls = [base] if base else [wandb.Settings().base_url, "https://api.wandb.ai"]  # the service, by both its names
    for path in [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]:
        try:
            # expanduser leaves the path as it is where there is no home folder; Path.home would raise.
            path = path and os.path.expanduser(path)
            if path and any(netrc.netrc(path).authenticators(urllib.parse.urlsplit(url).netloc) for url in urls):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def wandb_settings(**values: Any) -> "wandb.Settings":
    """Return settings of Weights & Biases that are ``values`` and those of its environment variables.

    Raises:
        UserError: for a name that the service forbids.
    """
    import wandb
    from wandb.errors import UsageError

    settings = wandb.Settings()
    try:
        settings.update_from_env_vars(os.environ)  # looked at now; wandb.init would, in the middle of the set-up
        for key in ("entity", "run_group", "run_name"):
            name = settings.model_dump().get(key)
            if isinstance(name, str) and (not name.strip() or len(name) > 128 or (key == "entity" and "/" in name)):
                raise UsageError(f"{key} {name!r} must have 1 to 128 characters, and an entity no /")
        return wandb.Settings(**values)
    except (UsageError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"Weights & Biases forbids what logger.wandb or WANDB_* names: {why}") from error


def keep_wandb_out_of_home(folder: Path) -> None:
    """Let Weights & Biases keep its files in ``folder`` where there is no home folder, or none that can be written to.

    Directories that its environment variables name are left alone.
    """
    home = os.path.expanduser("~")
    try:
        if home == "~":  # which libraries of its ask for even where all directories are named
            os.environ["HOME"] = str((folder / "wandb" / "home").absolute())
            raise FileNotFoundError
        os.environ.setdefault("HOME", home)  # its service looks at the environment alone
        check_writable(Path(home, ".config", "wandb"))
    except OSError:
        for name in ("DATA", "CACHE", "CONFIG"):
            os.environ.setdefault(f"WANDB_{name}_DIR", str(folder / "wandb" / name.lower()))
