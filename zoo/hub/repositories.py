"""Models in repositories of the Hugging Face Hub: ``hf:user/repo``, and how errors of the Hub read in one line.

A repository holds ``model.safetensors`` and its card ``model.json``, as ``zoo push`` writes them. A repository of
several models holds such a pair for each name. The package huggingface_hub keeps downloaded files in its cache.
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from zoo.checks.errors import CheckpointError
from zoo.checks.sources import HUB
from zoo.training.error_lines import FULL_DISK

log = logging.getLogger(__name__)

SECONDS_WITHOUT_AN_ANSWER = 10
TOO_MANY_REQUESTS = 429  # status of an answer to a user, or to users of one network, who asked too often
NAME = "model"  # name of the files, if a source gives no name
LOGIN = "run hf auth login, or set HF_TOKEN"


class Place(NamedTuple):
    """A model on the Hub: its repository, the name of its files, and a branch, tag or commit."""

    repo: str
    name: str
    revision: str


class Downloaded(NamedTuple):
    """A model of the Hub on this machine: the content of its safetensors file, and its card."""

    weights: bytes
    card: dict[str, Any]


def library() -> Any:
    """Return the package huggingface_hub.

    Raises:
        CheckpointError: if it is not installed.
    """
    try:
        import_module("huggingface_hub.errors")
        return import_module("huggingface_hub")
    except ImportError as error:
        raise CheckpointError(
            "the Hugging Face Hub needs the package huggingface_hub: pip install 'generative-zoo[hf]'"
        ) from error


def place_of(source: str) -> Place:
    """Return the place that a valid source ``hf:...`` names."""
    found = re.fullmatch(HUB, source)
    assert found
    return Place(found["repo"], found["name"] or NAME, found["revision"] or "main")


def download(source: str) -> Downloaded:
    """Return the weights and the card of a model on the Hub, at one commit. Kept files are not downloaded again.

    If the Hub does not answer, the kept files are used, and a line says so.

    Raises:
        CheckpointError: if there is no such model. The message says what is missing.
    """
    hub, place = library(), place_of(source)
    with in_one_line(source):
        offline = not _answers(hub, place, source)
        options = {"revision": place.revision, "local_files_only": offline}
        card = Path(hub.hf_hub_download(place.repo, f"{place.name}.json", **options))
        options["revision"] = card.parent.name  # the commit, so that the weights belong to the card
        weights = Path(hub.hf_hub_download(place.repo, f"{place.name}.safetensors", **options))
    if offline:
        log.warning("the Hugging Face Hub does not answer, so the files of %s in the cache are used", source)
    return Downloaded(weights.read_bytes(), card_in(card, source))


def read_downloaded_card(source: str) -> dict[str, Any]:
    """Return the card of a model on the Hub that was downloaded before, without a request.

    Raises:
        CheckpointError: if it was not downloaded.
    """
    hub, place = library(), place_of(source)
    with in_one_line(source):
        file = f"{place.name}.json"
        path = hub.hf_hub_download(place.repo, file, revision=place.revision, local_files_only=True)
    return card_in(Path(path), source)


def card_in(path: Path, source: str) -> dict[str, Any]:
    """Return the card in the file ``path``, which belongs to ``source``.

    Raises:
        CheckpointError: if the file is not a card with a model and a digest.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        card = None
    if not isinstance(card, dict) or not {"model", "sha256"} <= set(card):
        raise CheckpointError(
            f"{source} is not a model of the zoo: its {path.name} is no card with a model and a digest"
        )
    return card


def _answers(hub: Any, place: Place, source: str) -> bool:
    """Return whether the Hub answers.

    Raises:
        CheckpointError: if the Hub says that the repository has no such model.
    """
    try:
        info = hub.HfApi().model_info(place.repo, revision=place.revision, timeout=SECONDS_WITHOUT_AN_ANSWER)
    except hub.errors.HfHubHTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        if status < 500 and status != TOO_MANY_REQUESTS:
            raise
    except (OSError, ValueError, hub.errors.HTTPError) as error:  # ValueError if another server answers
        log.debug("%s", error)
    else:
        _check_files({file.rfilename for file in info.siblings or []}, place, source)
        return True
    return False


def _check_files(files: set[str], place: Place, source: str) -> None:
    """Raise unless the repository holds the two files of the model. The message names the models that it holds."""
    if {f"{place.name}.json", f"{place.name}.safetensors"} <= files:
        return
    names = sorted(file.removesuffix(".json") for file in files if file.endswith(".json"))
    models = [f"hf:{place.repo}/{name}" for name in names if f"{name}.safetensors" in files]
    advice = f"its models are {', '.join(models)}" if models else "zoo push makes a repository that has both"
    raise CheckpointError(f"{source} has no {place.name}.safetensors with its card {place.name}.json: {advice}")


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Raise errors of the Hub as a CheckpointError of one line about ``what``, a source or a repository."""
    errors = library().errors
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{what} has no such revision: name a branch, a tag or a commit") from error
    except errors.RepositoryNotFoundError as error:  # also raised for repositories with conditions
        raise CheckpointError(
            f"{what} does not exist, or it is private: correct its name, or log in ({LOGIN}) with access to it"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{what} cannot be read: the Hugging Face Hub does not answer, and the cache has no copy"
        ) from error
    except errors.HfHubHTTPError as error:
        status = f"status {error.response.status_code}" if error.response is not None else "no answer"
        why = " ".join((error.server_message or status).split())
        advice = f". Log in with a token that allows this: {LOGIN}" if status in ("status 401", "status 403") else ""
        raise CheckpointError(f"the Hugging Face Hub refuses {what}: {why}{advice}") from error
    except (errors.HFValidationError, errors.EntryNotFoundError, errors.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise
        raise CheckpointError(f"{what} cannot be used: {' '.join(str(error).split())}") from error
