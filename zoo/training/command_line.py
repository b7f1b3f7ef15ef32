"""Check the command line of ``zoo train`` and its configuration, with one-line errors."""

import os
from difflib import get_close_matches
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.moved import current_name
from zoo.checks.values import check_choice, check_flag
from zoo.training.added_callbacks import with_added
from zoo.training.error_lines import SHOW_ALL
from zoo.training.hydra_errors import line_of_hydra
from zoo.training.own_data import shape_of_examples
from zoo.training.shell import override, pasted, quoted, training_command

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig, ListConfig

# Keys that have paths as values.
PATHS = ("path", "ckpt", "init", "dir", "run_dir", "folder", "save_dir", "resume_from")


def readable_arguments(arguments: list[str], config_dir: Path) -> list[str]:
    """Return the command line of ``zoo train`` in the form that Hydra reads, after a check that Hydra can compose it.

    ``~`` becomes the home folder. Paths are quoted if Hydra's grammar needs quotes.

    Args:
        arguments: the words of the command line after ``zoo train``.
        config_dir: the folder of ``train.yaml``.

    Raises:
        UserError: if Hydra cannot compose the configuration. The message names the argument. If a valid name is
            similar, the message suggests it.
        SystemExit: if a flag is unknown.
    """
    options = _options(arguments)
    sweep = options.multirun or "hydra.mode=MULTIRUN" in arguments
    overrides = [with_added(_readable(a, sweep), config_dir) for a in options.overrides]
    flags = [_with_home(a) for a in arguments if a not in options.overrides]
    own = Path(os.path.expanduser(options.config_dir)).absolute() if options.config_dir else None
    elsewhere = (options.config_name, options.config_path, options.info, options.experimental_rerun)
    missing = own is not None and not own.is_dir()  # Hydra then reports the missing folder
    if not (any(elsewhere) or missing or options.help or options.hydra_help or options.shell_completion):
        cfg = _composed(overrides, config_dir, sweep, own)
        if sweep and not options.cfg:
            _prepare_plugins(cfg)
    if options.config_path and "://" not in options.config_path:  # Hydra would search next to its main function
        flags.append(f"--config-path={Path(os.path.expanduser(options.config_path)).absolute()}")
    if options.help:
        overrides.append(override("hydra.help.app_name", pasted(*training_command())))
    return [*flags, *overrides]


def _prepare_plugins(cfg: "DictConfig") -> None:
    """Let Hydra find the sweeper of a search, and check that a launcher can submit jobs.

    Raises:
        UserError: if jobs go to SLURM, and this machine has no ``sbatch``, or if Optuna is not installed.
    """
    if str(cfg.hydra.launcher._target_).endswith(".SlurmLauncher") and which("sbatch") is None:
        raise UserError(
            "hydra/launcher=submitit_slurm needs the command sbatch of SLURM, and this machine has none: use a "
            "login node of a cluster, or hydra/launcher=submitit_local"
        )
    if str(cfg.hydra.sweeper._target_).endswith(".StudySweeper"):
        from zoo.training.search import register

        register()


def _options(arguments: list[str]):
    """Return Hydra's flags and the overrides, as Hydra's own parser reads them. They can be in any order."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def error(message: str):
        if message.startswith("unrecognized arguments"):  # argparse also lists the settings after the flag
            unknown = " ".join(a for a in arguments if a.startswith("-") and a in message)
            message = f"unrecognized arguments: {unknown}" if unknown else message
        flag = next((a for a in arguments if a.startswith("--") and a in message), "")
        hint = f"; write settings without dashes, such as {flag.lstrip('-').partition('=')[0]}=..." if flag else ""
        parser.exit(2, f"error: {message}{hint}; {pasted(*training_command())} --hydra-help lists the flags\n")

    parser.error = error  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(arguments)
    modes = {"--run": options.run, "--multirun": options.multirun, "--cfg": options.cfg, "--info": options.info}
    if len(given := [flag for flag, value in modes.items() if value]) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: give only one of {', '.join(modes)}")
    if options.resolve and not (options.cfg or options.help):
        raise UserError(f"--resolve needs --cfg: use {pasted(*training_command())} --cfg job --resolve")
    return options


def _readable(argument: str, sweep: bool) -> str:
    """Return an override. ``~`` becomes the home folder, and paths get quotes if Hydra's grammar needs quotes."""
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
        except HydraException:  # Lightning adds quotes to the run folder when it starts other processes
            value = value[1:-1] if value[-1] == value[0] else value
    return override(key, os.path.expanduser(value))


def _with_home(argument: str) -> str:
    """Return a flag with ``~`` replaced by the home folder. Shells do not replace it in ``--config-dir=~/configs``."""
    flag, equals, value = argument.partition("=")
    return f"{flag}{equals}{os.path.expanduser(value)}" if equals else os.path.expanduser(argument)


def _overrides(arguments: list[str]) -> "list[Override]":
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(arguments)


def _composed(arguments: list[str], config_dir: Path, sweep: bool, own: Path | None = None) -> "DictConfig":
    """Return the configuration. In a sweep, it has the first values.

    Args:
        arguments: the overrides.
        config_dir: the folder of ``train.yaml``.
        sweep: whether keys can have several values.
        own: a second folder of configurations, from the user.

    Raises:
        UserError: if Hydra cannot compose the configuration.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    if not (config_dir / "train.yaml").is_file():
        raise UserError(f"there is no {config_dir / 'train.yaml'}: install the zoo again, or use a complete checkout")
    try:
        overrides = _overrides(arguments)
        if not sweep and (several := [o.input_line for o in overrides if o.is_sweep_override()]):
            raise UserError(
                f"{several[0]} has several values: add -m to run each of them, or write one list, key=[a,b], or one "
                "string, 'key=\"a,b\"'"
            )
        lines = [line for o in overrides if (line := _first_value(o))]
        search = [f"hydra.searchpath=[{quoted(f'file://{own}')}]"] if own else []
        folders = [config_dir, own] if own else [config_dir]
        with initialize_config_dir(str(config_dir.absolute()), version_base="1.3"):
            try:
                return compose("train", [*lines, *search], return_hydra_config=True)
            except (HydraException, ValueError):
                choices = [o for o in overrides if any(_is_choice(o, folder) for folder in folders)]
                lines = [line for o in choices if (line := _first_value(o))]
                _check_keys(overrides, choices, compose("train", [*lines, *search], return_hydra_config=True))
                raise
    except UserError:
        raise
    except (HydraException, ValueError) as error:  # OmegaConf raises ValueError for a value that it cannot convert
        if SHOW_ALL:
            raise
        raise UserError(line_of_hydra(error)) from error


def _first_value(given: "Override") -> str | None:
    """Return the override with the first of its values in a sweep, or None if only Hydra can list the values."""
    if not given.is_sweep_override():
        return given.input_line
    if not given.is_discrete_sweep() or "glob(" in (given.input_line or ""):
        return None
    return f"{given.get_key_element()}={next(iter(given.sweep_string_iterator()))}"


def _is_choice(given: "Override", config_dir: Path) -> bool:
    key = given.key_or_group
    return (config_dir / key).is_dir() or "/" in key or bool(given.package)


def _check_keys(overrides: "list[Override]", choices: "list[Override]", cfg) -> None:
    """Raise UserError if a key is not in the configuration. The message lists the allowed keys."""
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
            raise UserError(f"unknown key {given.key_or_group}: {parent} has a value and no keys. Set {parent}=...")
        known = sorted(str(k) for k in node if k != "_target_")
        close = get_close_matches(key, known, n=1)
        hint = f" Did you mean {'.'.join([*path, close[0]])}?" if close else ""
        if not known:  # users add their own keys here, such as the conditions of samples
            raise UserError(f"{parent} has no key {key} yet: add it with +{given.input_line}")
        if parent == "trainer":  # all other configurations list every argument
            hint += f" Add another argument of Lightning's Trainer with +{given.input_line}"
        raise UserError(f"unknown key {given.key_or_group}: {parent} has {', '.join(known)}.{hint}")


def named_class(name: str) -> type:
    """Return the class of a model, imported by its dotted name, which the user has typed.

    Raises:
        UserError: if there is no such LightningModule.
    """
    from importlib import import_module

    from lightning import LightningModule

    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute, None)
    except (ImportError, ValueError) as error:  # ValueError for an empty name of a module
        raise UserError(f"--class {name} cannot be imported: {error}. PYTHONPATH must name its folder") from error
    if not (isinstance(found, type) and issubclass(found, LightningModule)):
        raise UserError(f"--class {name} is no LightningModule: write module.Class, such as my_package.made.MADE")
    return found


def with_home(node: "DictConfig | ListConfig") -> None:
    """Replace ``~`` by the home folder in every path of a configuration."""
    from omegaconf import DictConfig, ListConfig

    for key in range(len(node)) if isinstance(node, ListConfig) else node:
        value = node._get_node(key)
        if isinstance(value, DictConfig | ListConfig):
            with_home(value)
        elif value is not None and str(value._value()).startswith("~/"):
            node[key] = os.path.expanduser(value._value())


def with_current_names(node: "DictConfig | ListConfig") -> None:
    """Replace every ``_target_`` in a configuration by its name in this version."""
    from omegaconf import DictConfig, ListConfig

    for key in range(len(node)) if isinstance(node, ListConfig) else node:
        value = node._get_node(key)
        if isinstance(value, DictConfig | ListConfig):
            with_current_names(value)
        elif key == "_target_":
            node[key] = current_name(node[key])


def check_values(cfg: "DictConfig") -> None:
    """Check the values at the top level of the configuration.

    The classes of the model, the data, the trainer and the callbacks check their own arguments.

    Raises:
        UserError: if a value is not allowed. The message names the key, the value and the allowed values.
    """
    from omegaconf import OmegaConf

    for key in ("data", "model", "trainer"):
        if OmegaConf.select(cfg, f"{key}._target_") is None:
            raise UserError(f"the configuration has no {key}: choose one with {key}=...")
    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed must be an integer from 0 to 2^32 - 1, got {cfg.seed!r}")
    check_flag("test", cfg.test)
    if cfg.init is not None and not isinstance(cfg.init, str):
        raise UserError(f"init must be the name or the path of a checkpoint, got {cfg.init!r}")
    if cfg.compile is not False:
        check_choice("compile, if it is not false,", cfg.compile, ("inductor", "cudagraphs", "aot_eager", "eager"))


def with_shape_of(model: "DictConfig", data) -> None:
    """Replace ``auto`` in the model's options ``shape`` and ``num_classes`` by the values of the data.

    Data without the attribute ``shape`` are prepared, and one training batch shows the shape. The number of classes is
    the attribute ``num_classes`` of the data.

    Args:
        model: configuration of the model.
        data: the data module.

    Raises:
        UserError: if ``num_classes`` is ``auto`` and the data have no labels.
    """
    if model.get("shape") == "auto":
        model.shape = shape_of_examples(data)
    if model.get("num_classes") == "auto":
        model.num_classes = data.num_classes if isinstance(data, capabilities.KnownClasses) else None
        if model.num_classes is None and isinstance(data, capabilities.KnownClasses):
            raise UserError(
                f"model.num_classes=auto needs data with labels, and {name_of_data(data)} has no labels. Sort the "
                "images into a folder for each class, or choose other data or a model without labels"
            )
        if model.num_classes is None:
            raise UserError(
                f"model.num_classes=auto needs data with labels, and {name_of_data(data)} has no num_classes: choose "
                "other data, or set model.num_classes=..."
            )


def name_of_data(data) -> str:
    """Return the name of the data set, or the name of the class if the data module is the user's."""
    chosen = data.used if isinstance(data, capabilities.NamedData) else None
    return chosen or data.hparams.get("name") or type(data).__qualname__


def check_kind(model, data, option: str = "data=...") -> None:
    """Check that the data fit the model.

    Args:
        model: the model.
        data: the data.
        option: what chooses the data on the command line, for the error.

    Raises:
        UserError: if a model of words gets images or points, or if another model gets text.
    """
    words = isinstance(model, capabilities.Words)
    if words != isinstance(data, capabilities.TextData):
        kinds = ("text", "images or points") if words else ("images or points", "text")
        advice = "" if isinstance(data, capabilities.NamedData) else " (a data module of text has the attribute corpus)"
        raise UserError(
            f"{type(model).__name__} trains on {kinds[0]}, and {name_of_data(data)} is {kinds[1]}: choose other data "
            f"with {option}{advice}"
        )
