"""Completion of the command ``zoo`` in bash, zsh and fish, with the package argcomplete.

The shell runs ``zoo`` when the user presses Tab. The candidates come from names of files, so no library is imported.
The completion of Hydra itself takes seconds, and it cannot complete a program that has other commands.
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

import zoo
from zoo.checks.errors import UserError

SHELLS = ("bash", "zsh", "fish")
ASKED = "_ARGCOMPLETE"  # the shell sets this environment variable when it asks for candidates
NOT_GROUPS = {"hydra", "local", "sweeps"}


def print_script(args: argparse.Namespace) -> None:
    """Print a script that lets bash, zsh or fish complete commands, options and names."""
    try:
        from argcomplete import shellcode
    except ModuleNotFoundError:
        raise UserError("completion needs the package argcomplete: pip install 'generative-zoo[completion]'") from None
    print(shellcode(["zoo"], shell=args.shell))


def answer(arguments: argparse.ArgumentParser) -> None:
    """Give the shell the candidates for the word under the cursor, and end the program."""
    from argcomplete import autocomplete

    autocomplete(arguments, always_complete_options=False)


def sources(prefix: str, **kwargs) -> list[str]:
    """Return the names of pretrained checkpoints, run folders, and checkpoint files."""
    return [*zoo.list_checkpoints(), *runs(prefix), *files(prefix, "ckpt", "safetensors")]


def names(**kwargs) -> list[str]:
    """Return the names of the models and of the pretrained checkpoints."""
    return [*zoo.list_models(), *zoo.list_checkpoints()]


def tables(**kwargs) -> list[str]:
    """Return the names of the tables of results."""
    from zoo.commands.pages import WIDE, Documentation

    return [WIDE, *Documentation().sources]


def runs(prefix: str, **kwargs) -> list[str]:
    """Return the run folders in ``runs``, and other folders."""
    from zoo.commands.resuming import RUNS, run_folders

    return [*map(str, run_folders(RUNS)), *files(prefix, "ckpt")]


def files(prefix: str, *endings: str) -> list[str]:
    """Return folders, and files with one of these endings."""
    from argcomplete.completers import FilesCompleter

    return list(FilesCompleter(endings)(prefix))


def columns(parsed_args: argparse.Namespace, **kwargs) -> list[str]:
    """Return the metrics of the first run that the command line names."""
    for run in vars(parsed_args).get("runs") or []:
        if (table := Path(run, "metrics.csv")).is_file():
            with table.open(encoding="utf-8") as lines:
                return lines.readline().strip().split(",")
    return []


def run_or_overrides(prefix: str, parsed_args: argparse.Namespace, **kwargs) -> list[str]:
    """Return the runs that ``zoo resume`` can continue, and overrides."""
    return [*runs(prefix), *overrides(prefix, parsed_args)]


def overrides(prefix: str, parsed_args: argparse.Namespace, **kwargs) -> list[str]:
    """Return the groups of settings with their options, and the keys of the options that the command line chooses."""
    groups = sorted(path.name for path in zoo.CONFIGS.iterdir() if path.is_dir() and path.name not in NOT_GROUPS)
    group, equals, _ = prefix.partition("=")
    if equals:
        return [f"{group}={option}" for option in options_of(group)] if group in groups else []
    given = [*vars(parsed_args).get("overrides", []), vars(parsed_args).get("named") or ""]
    known = keys(dict(word.partition("=")[::2] for word in given))
    if "." in prefix:
        return sorted(f"{key}=" for key in known)
    first = {key.partition(".")[0] + ("." if "." in key else "=") for key in known}
    return sorted(first | {f"{name}=" for name in groups})


def options_of(group: str) -> list[str]:
    """Return the options of a group: the names of its files."""
    return sorted(path.stem for path in (zoo.CONFIGS / group).glob("*.yaml"))


def keys(chosen: dict[str, str]) -> Iterable[str]:
    """Yield the keys of the configuration, such as ``model.lr`` and ``seed``.

    Args:
        chosen: groups with their options. Other groups have the option of ``train.yaml``.
    """
    found = _read(zoo.CONFIGS / "train.yaml")
    defaults = {str(g): o for entry in found.pop("defaults", []) if isinstance(entry, dict) for g, o in entry.items()}
    found.pop("hydra", None)
    yield from found
    for group in ("model", "experiment", "data", "trainer"):
        for package, node in _packages(group, str(chosen.get(group, defaults.get(group)))):
            yield from _leaves(package, node)


def _leaves(place: str, node: dict) -> Iterable[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(f"{place}.{key}", value)
        elif not key.startswith("_"):
            yield f"{place}.{key}"


def _packages(group: str, option: str) -> Iterable[tuple[str, dict]]:
    """Yield the parts of the configuration that an option sets, each with its place."""
    file = zoo.CONFIGS / group / f"{option}.yaml"
    if not file.is_file():
        return
    found = _read(file)
    for entry in found.pop("defaults", []):
        if isinstance(entry, str):
            yield from _packages(group, entry)
        elif isinstance(entry, dict):
            for other, chosen in entry.items():
                yield from _packages(other.removeprefix("override ").strip().lstrip("/"), str(chosen))
    whole = file.read_text(encoding="utf-8").startswith("# @package _global_")
    yield from ((k, v) for k, v in (found if whole else {group: found}).items() if isinstance(v, dict))


def _read(file: Path) -> dict:
    import yaml

    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}


def asked() -> bool:
    """Return whether a shell asks for candidates."""
    return ASKED in os.environ
