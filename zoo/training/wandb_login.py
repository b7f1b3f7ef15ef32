"""Find the credentials, settings and folders of Weights & Biases without a question to the user."""

import io
import logging
import os
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checks.errors import UserError
from zoo.training.outputs import check_writable

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)


def wandb_credentials() -> bool:
    """Return whether Weights & Biases has credentials, as ``wandb.login(prompt=False)`` finds them.

    The places are the environment, the netrc file of ``wandb login``, and the settings of Weights & Biases. No question
    is asked, and no server is contacted. Credentials in a wrong form cause a warning and do not count.
    """
    import wandb
    from wandb.sdk import wandb_setup

    if wandb.run is not None:  # login() always returns False during a run
        return not wandb.run.offline
    with redirect_stderr(io.StringIO()):
        settings = wandb_setup.singleton().settings
        before = settings.silent, settings.mode
        # If it is not silent, login() asks the server for the name of the user. In mode "offline", it finds nothing.
        settings.silent, settings.mode = True, "online"
        try:
            return wandb.login(prompt=False, verify=False)
        except (wandb.errors.AuthenticationError, RuntimeError) as error:  # RuntimeError without a home folder
            problem = error
        finally:
            settings.silent, settings.mode = before
    log.warning("Weights & Biases cannot use the credentials: %s", problem)
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
