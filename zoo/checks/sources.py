"""Check the name, path or address of a checkpoint before anything is imported or read."""

import os
import re
from pathlib import Path

import zoo
from zoo.checks.errors import CheckpointError

ADDRESS = r"(file|https?):"
DIGEST = r"[0-9a-f]{64}"
SAFETENSORS = ".safetensors"  # ending of a file of weights; its card has the ending .json
MOST_NAMES = 5  # of a folder in a message
ARTIFACT = r"[\w.-]+/[\w.-]+/[\w.-]+:[\w.-]+"
# A repository of the Hugging Face Hub, the name of one of its models, and a branch, tag or commit.
HUB = r"hf:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<name>[\w.-]+))?(@(?P<revision>[\w./-]+))?"


def check_source(source: object) -> str:
    """Return ``source`` as text, with ``~`` replaced by the home folder.

    Args:
        source: name of a published checkpoint, path, address with a digest, artifact of Weights & Biases, or repository
            of the Hugging Face Hub.

    Raises:
        CheckpointError: if ``source`` has none of these forms, or if the file does not exist.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise CheckpointError(f"a checkpoint must be a name, path or address, got {source!r}")
    text = str(source)
    if re.match(ADDRESS, text):
        url, _, fragment = text.partition("#")
        if not re.fullmatch(DIGEST, fragment.removeprefix("sha256=")):
            raise CheckpointError(
                f"{text} has no SHA-256 digest of the file: write {url}#sha256=<64 hexadecimal digits>"
            )
    elif text.startswith("wandb:"):
        if not re.fullmatch(ARTIFACT, text.removeprefix("wandb:")):
            raise CheckpointError(
                f"an artifact must be wandb:entity/project/name:alias, with an alias such as best; got {text}"
            )
    elif text.startswith("hf:"):
        if not re.fullmatch(HUB, text):
            raise CheckpointError(
                "a repository of the Hugging Face Hub must be hf:user/repo, hf:user/repo@revision or "
                f"hf:user/repo/name@revision; got {text}"
            )
    elif text not in zoo.list_checkpoints():
        text = os.path.expanduser(text)
        _check_path(text)
    return text


def _check_path(text: str) -> None:
    try:
        os.stat(text)
    except FileNotFoundError:
        raise CheckpointError(f"{text!r} is neither a file nor a pretrained checkpoint; {_instead(text)}") from None
    except (OSError, ValueError) as error:  # ValueError if the path contains a null character
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{text!r} cannot be read: {why}") from error


def _instead(text: str) -> str:
    """Return what can be loaded instead of ``text``: pretrained checkpoints, or what the nearest folder holds."""
    from zoo.checks.names import did_you_mean

    path = Path(text)
    folder = next(parent for parent in path.parents if parent.is_dir())
    if len(path.parts) == 1:
        known = zoo.list_checkpoints()
        suggestion = did_you_mean(text, known)
        return f"the pretrained ones are: {', '.join(known) or 'none yet'}{suggestion and f'.{suggestion}'}"
    missing = path.relative_to(folder).parts[0]
    try:
        inside = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:  # the folder may not be listed
        inside = []
    # The names of runs begin with their time, so the last names are the newest.
    shown = ", ".join(inside[-MOST_NAMES:]) or "nothing that can be read"
    return f"the folder {folder.absolute()} has no {missing} and holds {shown}.{did_you_mean(missing, inside)}"


def export_folder(folder: Path | None = None) -> Path:
    """Return the folder that ``zoo export`` writes to.

    It is ``folder``, if given. Otherwise it is ``zoo/weights`` in a checkout, and the working folder if the zoo is
    installed as a package.
    """
    if folder is not None:
        return folder
    checkout = Path(zoo.__file__).parent.parent
    return zoo.WEIGHTS if (checkout / "pyproject.toml").is_file() else Path()


def check_name(name: str, force: bool, folder: Path) -> None:
    """Check the name of a new published checkpoint in ``folder``.

    Raises:
        CheckpointError: if ``name`` is not a valid name, or if it exists already and ``force`` is false.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise CheckpointError(
            f"a name must begin with a letter and have only lower-case letters, digits and hyphens, such as "
            f"vae-bernoulli; got {name!r}"
        )
    existing = any((folder / f"{name}{ending}").exists() for ending in (SAFETENSORS, ".json", ".png"))
    if existing and not force:
        raise CheckpointError(
            f"a checkpoint named {name} exists already: choose another name, or replace it with --force"
        )
