"""The command ``zoo resume``: a run continues from its newest checkpoint, with the settings that it recorded."""

import argparse
import os
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from zoo.checks.errors import UserError
from zoo.training.processes import end_with_parent, number
from zoo.training.shell import override, pasted, resume_command
from zoo.training.threads import prepare_threads

RUNS = Path("runs")  # the folder of all runs, in the working folder
RECORD = "config.yaml"  # a run writes this file when its training begins or resumes
CHECKPOINTS = ("interrupted.ckpt", "last.ckpt")
WITHOUT_RUNS = {"checkpoints", "wandb", "tensorboard"}


class Run(NamedTuple):
    """A run to resume: its folder, which is None for a checkpoint outside run folders, and its checkpoint."""

    folder: Path | None
    checkpoint: Path
    why: str  # a part of the printed sentence


def resume(args: argparse.Namespace) -> None:
    """Resume the last run, or the run that RUN names."""
    end_with_parent()
    prepare_threads()
    name, overrides = split(args.named, args.overrides)
    run = last_run(RUNS) if name is None else named_run(name)
    checkpoint = read(run.checkpoint)
    if (said := finished(run, checkpoint)) and not overrides:
        print(said)
        return
    if (before := folder_of(run)) is not None and (before / "data").is_dir():
        os.environ.setdefault("ZOO_DATA", str(before / "data"))  # the data folder of the run
    folder = [f"--config-dir={args.config_dir}"] if args.config_dir else []
    arguments = [*folder, *arguments_of(run, checkpoint, overrides, bool(folder))]
    if number() == 0:
        place = pasted(run.folder or run.checkpoint)
        print(f"Resuming {place}, {run.why}, from {run.checkpoint.name}{progress(checkpoint)}", file=sys.stderr)
    train(arguments)


def train(arguments: list[str]) -> None:
    """Train as ``zoo train`` with ``arguments``. Lightning starts the other processes of the run by ``sys.argv``."""
    from zoo.commands import training

    sys.argv[1:] = ["train", *arguments]
    training.main(arguments)


def split(run: str | None, overrides: list[str]) -> tuple[str | None, list[str]]:
    """Return the name of the run, or None without a name, and the overrides. The first word can be an override."""
    if run is None or os.path.exists(os.path.expanduser(run)) or not re.match(r"[+~]*[\w.@/:-]+=|~\w", run):
        return run, overrides
    return None, [run, *overrides]


def run_folders(root: Path) -> list[Path]:
    """Return the run folders below ``root``. The run that began or resumed last comes first."""
    found = []
    for folder, inner, files in os.walk(root):
        if RECORD in files:
            found.append(Path(folder))
        inner[:] = [] if RECORD in files else [n for n in inner if not n.startswith(".") and n not in WITHOUT_RUNS]
    return sorted(found, key=lambda run: ((run / RECORD).stat().st_mtime_ns, str(run)), reverse=True)


def last_run(root: Path) -> Run:
    """Return the run below ``root`` that began or resumed last.

    Raises:
        UserError: if there is no run, or if this run has no checkpoint.
    """
    found = run_folders(root)
    if not found:
        raise UserError(f"there is no run in {root.absolute()}: start one with zoo train, or name the folder of a run")
    why = "the only run" if len(found) == 1 else f"the last of {len(found)} runs"
    return Run(found[0], newest_checkpoint(found[0]), f"{why} in {pasted(root)}")


def named_run(name: str) -> Run:
    """Return the run whose folder or checkpoint file has the path ``name``.

    Raises:
        UserError: if there is no such file, or if the folder holds no run or no checkpoint.
    """
    path = Path(os.path.expanduser(name))
    if path.is_file():
        folder = path.absolute().parent.parent
        known = (folder / RECORD).is_file()
        return Run(folder if known else None, path, "as named" if known else "which is in no run folder, in a new run")
    if not path.is_dir():
        raise UserError(f"there is no run {name}: give the folder of a run, or a checkpoint file in it")
    if path.name == "checkpoints" and (path.parent / RECORD).is_file():
        path = path.parent
    if not (path / RECORD).is_file():
        inside = run_folders(path)
        hint = f"the last run in it is {pasted(inside[0])}" if inside else "give a folder that holds one"
        raise UserError(f"{pasted(path)} is no run folder, because it has no {RECORD}: {hint}")
    return Run(path, newest_checkpoint(path), "as named")


def newest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that the run wrote last.

    Raises:
        UserError: if there is none. The message has the command that starts the run again.
    """
    files = [file for name in CHECKPOINTS if (file := folder / "checkpoints" / name).is_file()]
    if not files:
        command = recorded(folder).get("command")
        again = f"start it again: {command}" if command else "start it again with zoo train"
        raise UserError(f"{pasted(folder)} has no checkpoint, because its first epoch did not end; {again}")
    return max(files, key=lambda file: file.stat().st_mtime_ns)


def recorded(folder: Path) -> dict:
    """Return what a run recorded in its folder."""
    import yaml

    try:
        found = yaml.safe_load((folder / RECORD).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    return found if isinstance(found, dict) else {}


def read(path: Path) -> dict:
    """Return a checkpoint of a run that ``zoo train`` started.

    Raises:
        CheckpointError: if the file is not a training checkpoint.
        UserError: if another program wrote the checkpoint.
    """
    from zoo.hub import read_training_checkpoint

    checkpoint = read_training_checkpoint(path)
    if not {"model", "data", "trainer"} <= checkpoint.get("record", {}).get("config", {}).keys():
        raise UserError(f"{pasted(path)} has no record of zoo train: resume it with the program that wrote it")
    return checkpoint


def finished(run: Run, checkpoint: dict) -> str | None:
    """Return a sentence if the run has trained for all its epochs or steps, and None otherwise."""
    place = run.folder or run.checkpoint
    trainer = (recorded(run.folder) if run.folder else {}).get("trainer") or checkpoint["record"]["config"]["trainer"]
    for key, done, what in (
        ("max_epochs", epochs(checkpoint), "epochs"),
        ("max_steps", checkpoint["global_step"], "steps"),
    ):
        most = trainer.get(key)
        if most not in (None, -1) and done >= most:
            longer = resume_command(place, f"trainer.{key}={2 * most}")
            said = f"{most} {what if most != 1 else what[:-1]}"
            return f"{pasted(place)} is finished: it has trained for {said}. To train longer: {longer}"
    return None


def epochs(checkpoint: dict) -> int:
    """Return the number of complete epochs."""
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def progress(checkpoint: dict) -> str:
    """Return how many epochs the run has trained, as a part of a sentence."""
    most = checkpoint["record"]["config"]["trainer"].get("max_epochs")
    of_all = f" of {most}" if most not in (None, -1) else ""
    return f" (complete epochs: {epochs(checkpoint)}{of_all})"


def arguments_of(run: Run, checkpoint: dict, overrides: list[str], elsewhere: bool) -> list[str]:
    """Return the words after ``zoo train`` that resume a run in its folder.

    Args:
        run: the run.
        checkpoint: the content of its checkpoint.
        overrides: overrides of the user, which replace those of the record.
        elsewhere: whether the user names the folder of the configurations. The folder in the record is left out then.
    """
    command = (recorded(run.folder) if run.folder else {}).get("command") or checkpoint["record"]["command"]
    words = shlex.split(command)
    start = next((i for i, word in enumerate(words) if word == "train" or Path(word).name == "train.py"), -1) + 1
    given = [word for word in words[start:] if not (elsewhere and word.startswith("--config-dir"))]
    if (folder := folder_of(run)) is not None:
        given = [with_path_from(folder, word) for word in given]
    given = merged(given, [override("ckpt", run.checkpoint)])
    if run.folder is not None:
        given = merged(given, [override("hydra.run.dir", run.folder)])
        if any(_key(word) == "run_dir" for word in given):
            given = merged(given, [override("run_dir", run.folder)])
    return merged(given, overrides)


def folder_of(run: Run) -> Path | None:
    """Return the working folder of the run if it exists and is not the present one, and None otherwise."""
    before = Path(str(recorded(run.folder).get("working_folder"))) if run.folder else Path()
    return before if before.is_absolute() and before.is_dir() and not before.samefile(Path.cwd()) else None


def with_path_from(folder: Path, word: str) -> str:
    """Return an override of the run for another working folder. A path that exists in ``folder`` becomes absolute."""
    from zoo.training.command_line import PATHS  # imported late, because it is slow

    key, _, value = word.partition("=")
    text = value.strip("'\"")
    if key.rpartition(".")[2] not in PATHS or not text or not (folder / text).exists():
        return word
    return override(key, folder / text)


def merged(given: list[str], overrides: list[str]) -> list[str]:
    """Return ``given`` with ``overrides``. An override replaces an earlier one of the same key, and keeps its ``+``."""
    found = list(given)
    for word in overrides:
        place = next((i for i, earlier in enumerate(found) if _key(earlier) == _key(word)), None)
        if place is None:
            found.append(word)
        elif word[0] in "+~" or not found[place].startswith("+"):
            found[place] = word
        else:
            found[place] = f"+{word}"
    return found


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
