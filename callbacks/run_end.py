"""What is said when a run has ended: its numbers, its files, and what to type next."""

import re
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint

from zoo.callbacks.run_record import run_command
from zoo.checks import capabilities
from zoo.evaluation.units import with_unit
from zoo.evaluation.words import LONG
from zoo.hub.loading import name_of_class
from zoo.training.shell import pasted


def run_end(trainer, model, folder: str | Path, metrics: dict[str, float]) -> str:
    """The last words of a run, several lines.

    Args:
        trainer: that has fitted ``model``, and tested it if there was a test.
        folder: the run folder.
        metrics: by name, those of the test or else of the last validation among them.
    """
    folder = Path(folder)
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)
    tested = {name: value for name, value in metrics.items() if name.startswith("test/")}
    lines = [f"Test of {'the best checkpoint' if best and best.best_model_path else 'the last weights'}:"]
    shown = tested or {name: value for name, value in metrics.items() if name.startswith("val/")}
    if not tested:
        lines = ["Last validation:"]
    width = max([len(name) for name in shown], default=0)
    lines = [*lines, *(f"    {name:{width}}  {with_unit(name, v, set(shown))}" for name, v in shown.items())]
    lines = lines if shown else []
    files = [("Run folder", folder)]
    if best and best.best_model_path:
        files.append(("Best checkpoint", Path(best.best_model_path)))
    if (last := folder / "checkpoints" / "last.ckpt").is_file():
        files.append(("Last checkpoint", last))
    said = [(what, pasted(path.absolute())) for what, path in files]
    if best and best.best_model_score is not None and best.monitor:
        # A finished run that is resumed has metrics of its test alone: they tell the unit of the validation, too.
        beside = {*metrics, *(name.replace("test/", "val/", 1) for name in metrics)}
        said.append((f"Best {best.monitor}", with_unit(best.monitor, float(best.best_model_score), beside)))
    width = max(len(what) for what, _ in said)
    lines += [f"{what:{width}}  {value}" for what, value in said]
    return "\n".join([*lines, "Next:", *(f"    {command}" for command in _next(trainer, model, folder, best, last))])


def _next(trainer, model, folder: Path, best: ModelCheckpoint | None, last: Path) -> list[str]:
    run, python = pasted(folder.absolute()), "python -m zoo"
    name = name_of_class(type(model))
    loaded = run if name.startswith("zoo.") else f"{run} --class {pasted(name)}"
    words = isinstance(model, capabilities.Words)
    word = pasted(known_word(model.words)) if words else ""
    commands = [f"{python} nearest {run} {word}" if words else f"{python} sample {loaded} -o samples.png"]
    data = trainer.datamodule
    named = isinstance(data, capabilities.NamedData) and not words  # words are evaluated on the run's own text
    commands.append(f"{python} evaluate {loaded}" + (f" --data {data.used}" if named else ""))
    if trainer.loggers and (folder / "metrics.csv").is_file():
        commands.append(f"{python} curves {run} --metric {(best and best.monitor) or 'val/loss'}")
    if last.is_file() and trainer.max_epochs not in (None, -1):
        command = re.sub(r" trainer\.max_epochs=\S+", "", run_command(folder, last))
        commands.append(f"{command} trainer.max_epochs={2 * trainer.max_epochs}")
    return commands


def known_word(words: list[str]) -> str:
    """Return a word of the vocabulary ``words`` to look up, the most frequent first: music, or the first long one."""
    return "music" if "music" in words else next((word for word in words if len(word) >= LONG), words[0])
