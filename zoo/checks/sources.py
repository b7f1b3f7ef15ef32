"""What names a trained model, told apart before anything is imported or read."""

import os
import re
from pathlib import Path

import zoo
from zoo.checks.errors import CheckpointError

ADDRESS = r"(file|https?):"
DIGEST = r"[0-9a-f]{64}"
ARTIFACT = r"[\w.-]+/[\w.-]+/[\w.-]+:[\w.-]+"


def check_source(source: object) -> str:
    """Return ``source`` as text, if it can name a trained model; ``~`` is the home folder.

    Raises:
        CheckpointError: saying what names one.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise CheckpointError(f"a checkpoint is named by text or a path, got {source!r}")
    text = str(source)
    if re.match(ADDRESS, text):
        url, _, fragment = text.partition("#")
        if not re.fullmatch(DIGEST, fragment.removeprefix("sha256=")):
            raise CheckpointError(f"an address needs the digest of its file: {url}#sha256=<64 hexadecimal digits>")
    elif text.startswith("wandb:"):
        if not re.fullmatch(ARTIFACT, text.removeprefix("wandb:")):
            raise CheckpointError(f"an artifact is wandb:entity/project/name:alias, such as :best; got {text}")
    elif text not in zoo.list_checkpoints():
        text = os.path.expanduser(text)
        _check_path(text)
    return text


def _check_path(text: str) -> None:
    try:
        os.stat(text)
    except FileNotFoundError:
        from difflib import get_close_matches

        known = zoo.list_checkpoints()
        close = get_close_matches(text, known, n=1)
        raise CheckpointError(
            f"{text!r} is neither a file nor a pretrained checkpoint; the pretrained ones are: "
            f"{', '.join(known) or 'none yet'}{f'. Did you mean {close[0]}?' if close else ''}"
        ) from None
    except (OSError, ValueError) as error:  # the latter for a null character
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{text!r} cannot be read: {why}") from error


def check_name(name: str, force: bool) -> None:
    """Refuse what a published checkpoint cannot be called, or, without ``force``, what one is called already.

    Raises:
        CheckpointError: saying which.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise CheckpointError(f"a name is lower-case letters, digits and hyphens, such as vae-bernoulli; got {name!r}")
    if name in zoo.list_checkpoints() and not force:
        raise CheckpointError(f"there is a checkpoint named {name} already; --force replaces it")
