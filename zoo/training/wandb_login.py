"""Whether Weights & Biases can be logged in to without asking anybody."""

import netrc
import os
import urllib.parse
from pathlib import Path


def wandb_credentials() -> bool:
    """Whether Weights & Biases has a key: in the environment, or from ``wandb login`` (a netrc file)."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    base = os.environ.get("WANDB_BASE_URL")
    urls = [base] if base else [wandb.Settings().base_url, "https://api.wandb.ai"]  # the service, by both its names
    home = Path.home()
    for path in [os.environ.get("NETRC"), home / ".netrc", home / "_netrc"]:
        try:
            if path and any(netrc.netrc(path).authenticators(urllib.parse.urlsplit(url).netloc) for url in urls):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
