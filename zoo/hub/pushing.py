"""Publish a model in a repository of the Hugging Face Hub: its weights, our card, a card for readers, and a picture."""

import inspect
import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning import LightningDataModule, LightningModule

import zoo
from zoo.checks import capabilities
from zoo.checks.errors import CheckpointError
from zoo.checks.inputs import shape_of
from zoo.checks.sources import SAFETENSORS
from zoo.evaluation.protocol import Protocol
from zoo.evaluation.units import metric_texts
from zoo.hub.exporting import draw, publish
from zoo.hub.loading import from_weights
from zoo.hub.repositories import LOGIN, NAME, in_one_line, library
from zoo.training.files import atomic_write

TITLES = {  # of the entries of a card that the README shows, in its order
    "data": "data",
    "train_on": "trained on",
    "preprocessing": "input",
    "command": "command",
    "commit": "commit of the zoo",
    "seed": "seed",
    "epochs": "epochs",
    "steps": "steps",
    "seconds": "seconds",
    "hardware": "hardware",
    "parameters": "parameters",
    "sha256": "SHA-256 of the weights",
}


def push(
    source: str | Path,
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    folder: Path | None = None,
    protocol: Protocol | None = None,
    progress: bool = False,
    data: LightningDataModule | str | None = None,
    trust: bool = False,
) -> str:
    """Publish a model in the repository ``repo`` of the Hugging Face Hub, which is made if it does not exist.

    One commit writes ``model.safetensors``, its card ``model.json``, ``README.md``, and a picture of samples. The model
    then loads with ``zoo.load("hf:user/repo")``. A second push replaces the files.

    Args:
        source: run folder, path of a checkpoint, name of a pretrained checkpoint, or exported file. The metrics of a
            run are measured as in :func:`zoo.hub.exporting.export`. Pretrained and exported checkpoints keep their
            card.
        repo: name of the repository, ``user/repo``.
        private: make a private repository.
        license: identifier of the Hub, such as ``mit``, for ``README.md``. None names no license.
        folder: write the files into this folder, and upload nothing.
        protocol: see :func:`zoo.hub.exporting.export`, also for the other arguments.

    Returns:
        address of the commit, or the path of ``folder``.

    Raises:
        CheckpointError: if huggingface_hub is not installed, if there is no login, if the Hub refuses the upload, or if
            ``private`` is asked of a public repository. Also for the errors of :func:`zoo.hub.exporting.export`.
        UserError: see :func:`zoo.hub.exporting.export`.
    """
    hub = library()
    api = hub.HfApi()
    with in_one_line(repo):
        hub.utils.validate_repo_id(repo)
        if "/" not in repo:
            raise CheckpointError(f"a repository must be user/repo, got {repo!r}")
        if folder is None:
            _check_login(hub, api, repo, private)
        elif (folder / "README.md").exists() and not (folder / f"{NAME}.json").exists():
            raise CheckpointError(f"{folder} has another README.md, which would be replaced: choose a new folder")
    with TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        weights = Path(place) / f"{NAME}.safetensors"
        if (text := str(source)) in zoo.list_checkpoints():
            _copy(zoo.WEIGHTS / f"{text}{SAFETENSORS}", text, weights)
        elif text.endswith(SAFETENSORS):
            _copy(Path(text).expanduser(), text, weights)
        else:
            publish(source, weights, repo.partition("/")[2], protocol, progress, data, trust)
        _write_readme(hub, weights, repo, license)
        if folder is not None:
            return str(folder)
        with in_one_line(repo):
            api.create_repo(repo, private=private or None, exist_ok=True)
            try:
                commit = api.upload_folder(repo_id=repo, folder_path=place, commit_message="Upload a model of the zoo")
            except ValueError as error:  # for example, the Hub refuses the license
                raise CheckpointError(f"the Hugging Face Hub refuses {repo}: {' '.join(str(error).split())}") from error
            except RuntimeError as error:  # the upload of one file failed
                raise error.__cause__ or error from None
    return commit.commit_url


def _check_login(hub: Any, api: Any, repo: str, private: bool) -> None:
    """Raise unless there is a valid login, and unless ``repo`` has the visibility that is asked for."""
    if hub.get_token() is None:
        raise CheckpointError(f"a push to {repo} needs a login at the Hugging Face Hub: {LOGIN}")
    api.whoami()
    if not private:
        return
    try:
        public = not api.model_info(repo).private
    except hub.errors.RepositoryNotFoundError:
        return
    if public:
        raise CheckpointError(
            f"{repo} exists and is public, so --private has no effect: make it private on the Hub first"
        )


def _copy(found: Path, source: str, weights: Path) -> None:
    """Copy the files of a published checkpoint. Installed packages have no pictures, so a missing one is drawn.

    Args:
        found: the file of weights.
        source: its name or path for ``zoo.load``.
        weights: the new file.
    """
    model = zoo.load(source)  # checks the files
    weights.parent.mkdir(parents=True, exist_ok=True)
    for ending in (SAFETENSORS, ".json"):
        shutil.copyfile(found.with_suffix(ending), weights.with_suffix(ending))
    picture = found.with_suffix(".png")
    if picture.is_file():
        shutil.copyfile(picture, weights.with_suffix(".png"))
    else:
        draw(model, weights.with_suffix(".png"))


def _write_readme(hub: Any, weights: Path, repo: str, license: str | None) -> None:
    card = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    model = from_weights(weights.read_bytes(), card["sha256"], repo)
    has_picture = weights.with_suffix(".png").is_file()
    text = f"---\n{_metadata(hub, card, model, license).to_yaml()}\n---\n\n{_text(card, model, repo, has_picture)}"
    with atomic_write(weights.with_name("README.md")) as file:
        file.write(str(hub.ModelCard(text)).encode())


def _metadata(hub: Any, card: dict[str, Any], model: LightningModule, license: str | None) -> Any:
    """Return the metadata of a README, with a model index that holds every finite metric of the card."""
    task, words = task_of(model), isinstance(model, capabilities.Words)
    results = [
        hub.EvalResult(
            task_type=task,
            dataset_type="word-sets" if words else card["data"],
            dataset_name="published sets of words" if words else card["data"],
            dataset_split="test",
            metric_type=name,
            metric_name=name,
            metric_value=value,
        )
        for name, value in card["metrics"].items()
        if math.isfinite(value)
    ]
    return hub.ModelCardData(
        license=license,
        pipeline_tag=task,
        tags=["zoo", "lightning", card["model"]],
        model_name=card["name"],
        eval_results=results or None,
    )


def task_of(model: LightningModule) -> str:
    """Return the task of a model, as the Hub names it."""
    if isinstance(model, capabilities.Words):
        return "feature-extraction"
    if isinstance(model, capabilities.Samples) and len(shape_of(model)) == 3:
        return "unconditional-image-generation"
    if type(model).__name__ == "Classifier":
        return "image-classification"
    return "other"


def _text(card: dict[str, Any], model: LightningModule, repo: str, has_picture: bool) -> str:
    """Return the text of a README."""
    lines = [f"# {card['name']}", "", (inspect.getdoc(type(model)) or type(model).__name__).splitlines()[0], ""]
    if has_picture:
        lines += [f"![Picture of the model]({NAME}.png)", ""]
    lines += ["```python", "import zoo", "", f'model = zoo.load("hf:{repo}")', _use(model), "```", ""]
    lines += ["## Metrics", "", "| metric | value |", "| --- | --- |"]
    lines += [f"| {name} | {text} |" for name, text in metric_texts(card["metrics"], card.get("counts")).items()]
    lines += ["", f"Protocol: {card['protocol']}.", *_amounts(card), "", "## Training", "", "| | |", "| --- | --- |"]
    lines += [f"| {title} | {_cell(card[key])} |" for key, title in TITLES.items() if card.get(key) is not None]
    return "\n".join([*lines, "", f"`{NAME}.json` holds the full record.", ""])


def _use(model: LightningModule) -> str:
    if isinstance(model, capabilities.Words):
        return f'words = model.nearest("{model.words[0]}", 5)'
    return "samples = model.sample(16)" if isinstance(model, capabilities.Samples) else "print(model)"


def _amounts(card: dict[str, Any]) -> list[str]:
    """Return sentences about the amounts of data in the measurements of a card."""
    likelihood, bound, samples = (card.get(key) or {} for key in ("log_likelihood", "bound", "samples"))
    lines = (
        [f"The log likelihood uses {likelihood['num_samples']:,} importance samples per image."] if likelihood else []
    )
    lines += [f"The bound is the mean over {bound['images']:,} test images."] if bound else []
    return lines + ([f"{samples['n']:,} samples are measured under each condition."] if samples else [])


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|").replace("\n", " ")
