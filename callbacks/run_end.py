"""The text at the end of a run: test metrics, files, and the commands to type next."""

import json
import textwrap
from pathlib import Path

import lightning.pytorch.loggers as lightning_loggers
from lightning import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint, Timer

from zoo.checks import capabilities
from zoo.evaluation.units import with_unit
from zoo.evaluation.words import LONG, WordFileError, find_word_sets
from zoo.hub.loading import name_of_class
from zoo.hub.recorded_data import needs_trust
from zoo.training.shell import pasted, resume_command, short, without_password, zoo_command
from zoo.training.tables import read_rows

COLUMNS = 100  # largest width of the lines with metrics, in characters
OTHER_FOLDERS = {"checkpoints", "wandb", "tensorboard"}  # folders in which the callbacks write no pictures or tables
LABELS = {
    "loss_per_step": "loss per step",
    "field": "score field",
    "estimator_variance.png": "gradient estimators",
    "words.png": "map of words",
    "metrics.csv": "metrics",
}
ANALOGY = ["man", "king", "woman"]


def run_end(trainer, model, folder: str | Path, metrics: dict[str, float]) -> str:
    """Return the text that a run prints at its end.

    Args:
        trainer: the trainer after ``fit``, and after ``test`` if the run has a test.
        model: the trained model.
        folder: the run folder.
        metrics: metrics by name. The text has the test metrics. Without a test, it has the metrics of the last
            validation.
    """
    folder = Path(folder)
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)
    stops = [c for c in trainer.early_stopping_callbacks if c.stopped_epoch]
    lines = [f"Stopped in epoch {stop.stopped_epoch + 1}: {stop.stopping_reason_message}" for stop in stops]
    lines += _scores(metrics, best)
    if files := _files(trainer, folder, best, metrics):
        width = max(len(label) for label, _ in files)
        lines += ["", f"Files in {_path(folder)}:", *(f"    {label:{width}}  {text}" for label, text in files)]
    # The commands are not indented, because Python rejects a pasted line that begins with spaces.
    if commands := _commands(trainer, model, folder, best):
        lines += ["", "Next, in the shell:", *commands]
    lines += _longer(trainer, folder)
    if source := _source(folder, best):
        lines += ["", "Or in Python:", *_in_python(model, source)]
    return "\n".join(lines).lstrip("\n")


def known_word(words: list[str]) -> str:
    """Return the word for the example commands: "music" if it is in the vocabulary.

    Without "music", return the most frequent word of at least five letters. If all words are shorter, return the most
    frequent word.
    """
    return "music" if "music" in words else next((word for word in words if len(word) >= LONG), words[0])


def _scores(metrics: dict[str, float], best: ModelCheckpoint | None) -> list[str]:
    stage = next((stage for stage in ("test", "val") if any(name.startswith(f"{stage}/") for name in metrics)), None)
    if stage is None:
        return []
    shown = {name: value for name, value in metrics.items() if name.startswith(f"{stage}/")}
    parts = [f"{name.removeprefix(f'{stage}/')} {with_unit(name, v, set(shown))}" for name, v in shown.items()]
    tested = "the best checkpoint" if best and best.best_model_path else "the last weights"
    # No-break spaces keep each number with its name and its unit.
    text = textwrap.fill(", ".join(part.replace(" ", "\xa0") for part in parts), COLUMNS, break_on_hyphens=False)
    title = f"Test of {tested}:" if stage == "test" else "Last validation:"
    return [title, *(f"    {line}" for line in text.replace("\xa0", " ").splitlines())]


def _files(trainer, folder: Path, best: ModelCheckpoint | None, metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Return the newest file of each kind in the run folder, as (label, path)."""
    found: list[tuple[str, str]] = []
    if best and best.best_model_path:
        value = ""
        if best.best_model_score is not None:
            # If a finished run is resumed, ``metrics`` has only test metrics. The names of the test
            # metrics then determine the unit of the validation metric.
            known = {*metrics, *(name.replace("test/", "val/", 1) for name in metrics)}
            value = f"  ({best.monitor} {with_unit(str(best.monitor), float(best.best_model_score), known)})"
        found.append(("best checkpoint", _path(best.best_model_path) + value))
    if (last := folder / "checkpoints" / "last.ckpt").is_file():
        found.append(("last checkpoint", _path(last)))
    for part in sorted(folder.glob("[!.]*/"), key=lambda part: (part.name != "samples", part.name)):
        written = [file for file in part.iterdir() if file.suffix in (".png", ".csv")]
        if written and part.name not in OTHER_FOLDERS:
            newest = max(written, key=lambda file: (file.stat().st_mtime_ns, file.name))
            found.append((LABELS.get(part.name, part.name), _path(newest)))
    for name in ("estimator_variance.png", "words.png", "metrics.csv"):
        if (folder / name).is_file():
            found.append((LABELS[name], _path(folder / name)))
    for logger in trainer.loggers:
        if isinstance(logger, lightning_loggers.TensorBoardLogger):
            found.append(("TensorBoard", _path(logger.log_dir)))
        elif isinstance(logger, lightning_loggers.MLFlowLogger):
            found.append(("MLflow", f"run {logger.version} in {without_password(logger._tracking_uri)}"))
        elif isinstance(logger, lightning_loggers.WandbLogger):
            found += [("Weights & Biases", place)] if (place := _place(logger.experiment, folder)) else []
    return found


def _place(run, folder: Path) -> str | None:
    """Return the address of an online Weights & Biases run, or the folder of an offline run.

    Return None if the offline run did not write to the run folder.
    """
    if not run.offline:
        return run.url
    parts = Path(run.dir).parent
    return _path(parts) if parts.is_relative_to(folder.absolute()) else None


def _commands(trainer, model, folder: Path, best: ModelCheckpoint | None) -> list[str]:
    """Return the shell commands to type next, with the paths of this run."""
    commands = []
    if source := _source(folder, best):
        commands = _of_words(model, source) if isinstance(model, capabilities.Words) else _of_images(model, source)
        if not isinstance(model, capabilities.Words):
            data = trainer.datamodule
            trust = ["--trust-data"] if isinstance(data, LightningDataModule) and needs_trust(data) else []
            commands.append(pasted(*zoo_command(), "evaluate", source, *_class(model), *trust))
        elif _has_word_sets():  # the command needs the published word sets
            commands.append(pasted(*zoo_command(), "evaluate", source))
    metric = (best and best.monitor) or "val/loss"
    if any(row.get(metric) for row in read_rows(folder / "metrics.csv")):
        commands.append(pasted(*zoo_command(), "curves", _unlike_a_name(folder), "--metric", metric))
    return commands


def _longer(trainer, folder: Path) -> list[str]:
    """Return the command that trains longer, with its heading, if the run has a last checkpoint.

    It has twice as many epochs, or twice the time if trainer.max_time has ended the run.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file() and (limit := _time_limit_reached(trainer)) is not None:
        hours, seconds = divmod(round(2 * limit), 3600)
        time = f"{hours // 24:02d}:{hours % 24:02d}:{seconds // 60:02d}:{seconds % 60:02d}"
        longer = resume_command(folder.absolute(), f"trainer.max_time={time}")
        return ["", "The time in trainer.max_time is used up. To continue this run for as long again:", longer]
    if not last.is_file() or trainer.max_epochs in (None, -1):
        return []
    epochs = 2 * trainer.max_epochs
    longer = resume_command(folder.absolute(), f"trainer.max_epochs={epochs}")
    return ["", f"To continue this run to {epochs} epochs:", longer]


def _time_limit_reached(trainer) -> float | None:
    """Return the seconds of training after which trainer.max_time has ended the run, or None."""
    limits = [(c._duration, c.time_elapsed()) for c in trainer.callbacks if isinstance(c, Timer)]
    return next((limit for limit, elapsed in limits if limit and elapsed >= limit), None)


def _of_images(model, source: str) -> list[str]:
    if not isinstance(model, capabilities.Samples):
        return []
    sample = [*zoo_command(), "sample", source, *_class(model)]
    commands = [pasted(*sample, "-o", "samples.png")]
    if kind := _one_kind(model):
        commands.append(pasted(*sample, "-c", "=".join(kind), "-o", "samples.png"))
    return commands


def _of_words(model, source: str) -> list[str]:
    commands = [pasted(*zoo_command(), "nearest", source, known_word(model.words))]
    if set(ANALOGY) <= set(model.words):
        commands.append(pasted(*zoo_command(), "analogy", source, *ANALOGY))
    return commands


def _in_python(model, source: str) -> list[str]:
    lines, path = ["import zoo"], json.dumps(source, ensure_ascii=False)
    if _class(model):
        module, _, name = name_of_class(type(model)).rpartition(".")
        lines += [f"from {module} import {name}", f"model = zoo.load({path}, {name})"]
    else:
        lines.append(f"model = zoo.load({path})")
    if isinstance(model, capabilities.Words):
        lines.append(f"model.nearest({json.dumps(known_word(model.words), ensure_ascii=False)})")
    elif isinstance(model, capabilities.Samples):
        kind = _one_kind(model)
        lines.append(f"samples = model.sample(16{', ' + '='.join(kind) if kind else ''})")
    return lines


def _class(model) -> list[str]:
    """Return the option ``--class`` for a model outside the zoo, and no option for a model of the zoo."""
    name = name_of_class(type(model))
    return [] if name.startswith("zoo.") else ["--class", name]


def _one_kind(model) -> tuple[str, str] | None:
    """Return a condition of ``sample`` with one of its values, such as ("y", "3"), or None if the model has none."""
    rows = model.rows() if isinstance(model, capabilities.SampleRows) else None
    return rows and (rows[0], str(rows[1][min(3, len(rows[1]) - 1)]))


def _source(folder: Path, best: ModelCheckpoint | None) -> str | None:
    """Return the path to give to ``zoo.load``: the run folder, or the best checkpoint if it is in another folder.

    Return None if the run wrote no checkpoint.
    """
    checkpoints = folder / "checkpoints"
    if any(checkpoints.glob("best-*.ckpt")) or (checkpoints / "last.ckpt").is_file():
        return _unlike_a_name(folder)
    return _unlike_a_name(best.best_model_path) if best and best.best_model_path else None


def _unlike_a_name(path: str | Path) -> str:
    text = short(Path(path).absolute())
    return text if "/" in text else f"./{text}"  # without "./", "vae" would name a pretrained checkpoint


def _path(path: str | Path) -> str:
    return pasted(Path(path).absolute())


def _has_word_sets() -> bool:
    try:
        find_word_sets()
    except WordFileError:
        return False
    return True
