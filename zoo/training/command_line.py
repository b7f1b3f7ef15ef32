"""Readable answers to what is wrong with a command line."""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.moved import current_name
from zoo.checks.values import check_choice, check_flag
from zoo.training.error_lines import SHOW_ALL
from zoo.training.hydra_errors import line_of_hydra
from zoo.training.shell import override, quoted

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig, ListConfig

PATHS = ("path", "ckpt", "dir", "run_dir", "folder", "save_dir", "resume_from")  # keys whose values are paths


def readable_arguments(arguments: list[str], config_dir: Path) -> list[str]:
    """Return the command line of train.py as Hydra reads it, where it can be composed; else stop and say what is wrong.

    ``~`` is the home folder, and paths are quoted where Hydra's grammar asks for it.

    Args:
        arguments: the command line after the script's name.
        config_dir: the folder of ``train.yaml``.

    Raises:
        UserError: naming the argument, what is allowed, and what was probably meant.
        SystemExit: for flags that are none.
    """
    options = _options(arguments)
    sweep = options.multirun or "hydra.mode=MULTIRUN" in arguments
    arguments = [_readable(a, sweep) if a in options.overrides else _with_home(a) for a in arguments]
    own = Path(os.path.expanduser(options.config_dir)).absolute() if options.config_dir else None
    elsewhere = (options.config_name, options.config_path, options.info, options.experimental_rerun)
    missing = own is not None and not own.is_dir()  # Hydra says so
    if not (any(elsewhere) or missing or options.help or options.hydra_help or options.shell_completion):
        _check_composition([_readable(a, sweep) for a in options.overrides], config_dir, sweep, own)
    return arguments


def _options(arguments: list[str]):
    """Hydra's flags and the overrides, as its parser has them."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def error(message: str):
        flag = next((a for a in arguments if a.startswith("--") and a in message), "")
        hint = (
            f"; settings are written without dashes, such as {flag.lstrip('-').partition('=')[0]}=..." if flag else ""
        )
        parser.exit(2, f"error: {message}{hint}; python train.py --hydra-help lists the flags\n")

    parser.error = error  # type: ignore[method-assign]
    options = parser.parse_args(arguments)
    modes = {"--run": options.run, "--multirun": options.multirun, "--cfg": options.cfg, "--info": options.info}
    if len(given := [flag for flag, value in modes.items() if value]) > 1:
        raise UserError(f"only one of {', '.join(modes)} can be given, got {' and '.join(given)}")
    if options.resolve and not (options.cfg or options.help):
        raise UserError("--resolve belongs to --cfg: python train.py --cfg job --resolve")
    return options


def _readable(argument: str, sweep: bool) -> str:
    """An override in whose value ``~`` is the home folder, and a path is quoted where it must be."""
    key, equals, value = argument.partition("=")
    if not equals or not (key.rpartition(".")[2] in PATHS or value.startswith("~")):
        return argument
    if sweep and not value.startswith(("'", '"')):
        return f"{key}={','.join(_path(key, part).partition('=')[2] for part in value.split(','))}"
    return _path(key, value)


def _path(key: str, value: str) -> str:
    from hydra.errors import HydraException

    if value in ("", "null") or "${" in value:
        return f"{key}={value}"
    if value[0] in "'\"":
        try:
            _overrides([f"{key}={value}"])
            return f"{key}={value}"
        except HydraException:  # as Lightning hands a folder to the processes that it starts
            value = value[1:-1] if value[-1] == value[0] else value
    return override(key, os.path.expanduser(value))


def _with_home(argument: str) -> str:
    """A flag such as ``--config-dir=~/configs``, whose ``~`` no shell replaces."""
    flag, equals, value = argument.partition("=")
    return f"{flag}{equals}{os.path.expanduser(value)}" if equals else os.path.expanduser(argument)


def _overrides(arguments: list[str]) -> "list[Override]":
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(arguments)


def _check_composition(arguments: list[str], config_dir: Path, sweep: bool, own: Path | None = None) -> None:
    """Refuse what does not compose; of a sweep, with the first of its values.

    Args:
        own: a second folder of configurations, the user's.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    if not (config_dir / "train.yaml").is_file():
        raise UserError(f"there is no {config_dir / 'train.yaml'}: run train.py where it lies in its checkout")
    try:
        overrides = _overrides(arguments)
        if not sweep and (several := [o.input_line for o in overrides if o.is_sweep_override()]):
            raise UserError(
                f"{several[0]} has several values: add -m to run each of them, or write one list, key=[a,b], or one "
                "text, 'key=\"a,b\"'"
            )
        lines = [line for o in overrides if (line := _first_value(o))]
        search = [f"hydra.searchpath=[{quoted(f'file://{own}')}]"] if own else []
        folders = [config_dir, own] if own else [config_dir]
        with initialize_config_dir(str(config_dir.absolute()), version_base="1.3"):
            try:
                compose("train", [*lines, *search], return_hydra_config=True)
            except (HydraException, ValueError):
                choices = [o for o in overrides if any(_is_choice(o, folder) for folder in folders)]
                lines = [line for o in choices if (line := _first_value(o))]
                _check_keys(overrides, choices, compose("train", [*lines, *search], return_hydra_config=True))
                raise
    except UserError:
        raise
    except (HydraException, ValueError) as error:  # the latter of OmegaConf, for what it cannot convert
        if SHOW_ALL:
            raise
        raise UserError(line_of_hydra(error)) from error


def _first_value(given: "Override") -> str | None:
    """The override with the first of the values that it sweeps over; None where they are only known to Hydra."""
    if not given.is_sweep_override():
        return given.input_line
    if not given.is_discrete_sweep() or "glob(" in (given.input_line or ""):
        return None
    return f"{given.get_key_element()}={next(iter(given.sweep_string_iterator()))}"


def _is_choice(given: "Override", config_dir: Path) -> bool:
    key = given.key_or_group
    return (config_dir / key).is_dir() or "/" in key or bool(given.package)


def _check_keys(overrides: "list[Override]", choices: "list[Override]", cfg) -> None:
    """Refuse keys that are not there, with the list of those that are."""
    from omegaconf import DictConfig

    for given in overrides:
        if given in choices or given.is_add() or given.is_force_add() or given.is_delete():
            continue
        node, path = cfg, []
        for key in given.key_or_group.split("."):
            if not isinstance(node, DictConfig) or key not in node:
                break
            node, path = node._get_node(key), [*path, key]
        else:
            continue
        parent = ".".join(path) or "the configuration"
        if not isinstance(node, DictConfig):
            raise UserError(f"unknown key {given.key_or_group}: {parent} is a value and has no keys")
        known = sorted(str(k) for k in node if k != "_target_")
        close = get_close_matches(key, known, n=1)
        hint = f" Did you mean {'.'.join([*path, close[0]])}?" if close else ""
        if not known:  # a place for keys of the user's own, such as the conditions of samples
            raise UserError(f"{parent} has no key {key} yet: add it with +{given.input_line}")
        if parent == "trainer":  # the recipes of everything else list every argument
            hint += f" Other arguments of Lightning's Trainer are added: +{given.input_line}"
        raise UserError(f"unknown key {given.key_or_group}: {parent} has {', '.join(known)}.{hint}")


def named_class(name: str) -> type:
    """Import the class of a model by its dotted name, which the user has typed.

    Raises:
        UserError: if there is no such LightningModule.
    """
    from importlib import import_module

    from lightning import LightningModule

    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute, None)
    except (ImportError, ValueError) as error:  # the latter for an empty name of a module
        raise UserError(f"--class {name} cannot be imported: {error}. PYTHONPATH must name its folder") from error
    if not (isinstance(found, type) and issubclass(found, LightningModule)):
        raise UserError(f"--class {name} is no LightningModule: write module.Class, such as my_package.made.MADE")
    return found


def with_home(node: "DictConfig | ListConfig") -> None:
    """Write the home folder for the ``~`` of every path in a configuration, as people write it in a file."""
    from omegaconf import DictConfig, ListConfig

    for key in range(len(node)) if isinstance(node, ListConfig) else node:
        value = node._get_node(key)
        if isinstance(value, DictConfig | ListConfig):
            with_home(value)
        elif value is not None and str(value._value()).startswith("~/"):
            node[key] = os.path.expanduser(value._value())


def with_names_of_today(node: "DictConfig | ListConfig") -> None:
    """Write every ``_target_`` in a configuration as this version names it."""
    from omegaconf import DictConfig, ListConfig

    for key in range(len(node)) if isinstance(node, ListConfig) else node:
        value = node._get_node(key)
        if isinstance(value, DictConfig | ListConfig):
            with_names_of_today(value)
        elif key == "_target_":
            node[key] = current_name(node[key])


def check_values(cfg: "DictConfig") -> None:
    """Refuse values of the configuration's own keys that do not fit; those of its groups check theirs themselves.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    from omegaconf import OmegaConf

    for key in ("data", "model", "trainer"):
        if OmegaConf.select(cfg, f"{key}._target_") is None:
            raise UserError(f"the configuration has no {key} to make: choose one, {key}=..., and do not take it out")
    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed must be a whole number from 0 to 2^32 - 1, got {cfg.seed!r}")
    check_flag("test", cfg.test)
    if cfg.compile is not False:
        check_choice("compile, where it is not false,", cfg.compile, ("inductor", "cudagraphs", "aot_eager", "eager"))


def check_kind(model, data) -> None:
    """Refuse text for a model of images, and images for one of words.

    Raises:
        UserError: saying which.
    """
    words = isinstance(model, capabilities.Words)
    if words != isinstance(data, capabilities.TextData):
        kinds = ("text", "images or points") if words else ("images or points", "text")
        name, chosen = type(model).__name__, data.used or data.hparams.name
        raise UserError(f"{name} is made for {kinds[0]}, and {chosen} is {kinds[1]}: choose other data")
