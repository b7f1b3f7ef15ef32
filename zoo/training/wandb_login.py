"""Find the credentials, settings and folders of Weights & Biases without a question to the user."""

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
    """Return whether the environment or the netrc file of ``wandb login`` has a key for Weights & Biases."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    base = os.environ.get("WANDB_BASE_URL")
    # Some versions of wandb have another default address.
    urls = [base] if base else [wandb.Settings().base_url, "https://api.wandb.ai"]
    for path in [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]:
        try:
            # Without a home folder, expanduser returns the path unchanged. Path.home would raise.
            path = path and os.path.expanduser(path)
            if path and any(netrc.netrc(path).authenticators(urllib.parse.urlsplit(url).netloc) for url in urls):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def wandb_settings(**values: Any) -> "wandb.Settings":
    """Return the settings ``values`` of Weights & Biases, after a check of them and of the variables ``WANDB_*``.

    Args:
        values: settings by name.

    Raises:
        UserError: if the service does not allow a value.
    """
    import wandb
    from wandb.errors import UsageError

    settings = wandb.Settings()
    try:
        settings.update_from_env_vars(os.environ)  # wandb.init would check these only later, during the set-up
        for key in ("entity", "run_group", "run_name"):
            name = {**settings.model_dump(), **values}.get(key)
            if isinstance(name, str) and (not name.strip() or len(name) > 128 or (key == "entity" and "/" in name)):
                raise UsageError(f"{key} {name!r} must have 1 to 128 characters, and an entity must not contain /")
        return wandb.Settings(**values)
    except (UsageError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"Weights & Biases does not allow a value in logger.wandb or WANDB_*: {why}") from error


def keep_wandb_out_of_home(folder: Path) -> None:
    """Let Weights & Biases keep its files in ``folder`` if there is no writable home folder.

    Environment variables that already name the folders of Weights & Biases keep their values.
    """
    home = os.path.expanduser("~")
    try:
        if home == "~":  # there is no home folder, but libraries of wandb always need one
            os.environ["HOME"] = str((folder / "wandb" / "home").absolute())
            raise FileNotFoundError
        os.environ.setdefault("HOME", home)  # the background service of wandb reads HOME only
        check_writable(Path(home, ".config", "wandb"))
    except OSError:
        for name in ("DATA", "CACHE", "CONFIG"):
            os.environ.setdefault(f"WANDB_{name}_DIR", str(folder / "wandb" / name.lower()))
