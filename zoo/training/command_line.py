"""Readable answers to what is wrong with a command line."""

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.moved import current_name
from zoo.checks.values import check_choice, check_flag

if TYPE_CHECKING:
    from omegaconf import DictConfig, ListConfig


def check_overrides(arguments: list[str], config_dir: Path) -> None:
    """Stop with the list of the keys there are, where an override such as ``model.latentdim=8`` names none of them.

    Everything else that can be wrong with the command line Hydra says well itself, and is left to it.

    Args:
        arguments: the command line after the script's name.
        config_dir: the folder of ``train.yaml``.

    Raises:
        UserError: saying so.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if "=" in a and a[0] != "-"])
        choices = [o for o in overrides if (config_dir / o.key_or_group).is_dir() or "/" in o.key_or_group or o.package]
        if any(o.is_sweep_override() for o in choices):
            return
        with initialize_config_dir(str(config_dir.absolute()), version_base="1.3"):
            cfg = compose("train", [o.input_line for o in choices], return_hydra_config=True)
    except HydraException:
        return
    for override in overrides:
        if override in choices or override.is_add() or override.is_force_add() or override.is_delete():
            continue
        node, path = cfg, []
        for key in override.key_or_group.split("."):
            if not isinstance(node, DictConfig) or key not in node:
                break
            node, path = node._get_node(key), [*path, key]
        else:
            continue
        parent = ".".join(path) or "the configuration"
        if not isinstance(node, DictConfig):
            raise UserError(f"unknown key {override.key_or_group}: {parent} is a value and has no keys")
        known = sorted(str(k) for k in node if k != "_target_")
        close = get_close_matches(key, known, n=1)
        hint = f" Did you mean {'.'.join([*path, close[0]])}?" if close else ""
        if not known:  # a place for keys of the user's own, such as the conditions of samples
            raise UserError(f"{parent} has no key {key} yet: add it with +{override.input_line}")
        raise UserError(f"unknown key {override.key_or_group}: {parent} has {', '.join(known)}.{hint}")


def with_names_of_today(node: "DictConfig | ListConfig") -> None:
    """Write every ``_target_`` in a configuration as this version names it."""
    from omegaconf import DictConfig, ListConfig

    for key in range(len(node)) if isinstance(node, ListConfig) else node:
        value = node._get_node(key)
        if isinstance(value, DictConfig | ListConfig):
            with_names_of_today(value)
        elif key == "_target_":
            node[key] = current_name(node[key])


def check_values(cfg) -> None:
    """Refuse values of the configuration's own keys that do not fit; those of its groups check theirs themselves.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
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
