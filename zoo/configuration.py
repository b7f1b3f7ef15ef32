"""Readable answers to what is wrong with a command line: keys that do not exist, values that do not fit."""

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path


def check_overrides(arguments: list[str], config_dir: Path) -> None:
    """Stop with the list of the keys there are, where an override such as ``model.latentdim=8`` names none of them.

    Everything else that can be wrong with the command line Hydra says well itself, and is left to it.

    Args:
        arguments: the command line after the script's name.
        config_dir: the folder of ``train.yaml``.

    Raises:
        SystemExit: with the message.
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
            raise SystemExit(f"unknown key {override.key_or_group}: {parent} is a value and has no keys")
        known = sorted(str(k) for k in node if k != "_target_")
        close = get_close_matches(key, known, n=1)
        hint = f" Did you mean {'.'.join([*path, close[0]])}?" if close else ""
        if not known:  # a place for keys of the user's own, such as the conditions of samples
            raise SystemExit(f"{parent} has no key {key} yet: add it with +{override.input_line}")
        raise SystemExit(f"unknown key {override.key_or_group}: {parent} has {', '.join(known)}.{hint}")


def check_values(cfg) -> None:
    """Refuse values of the configuration's own keys that do not fit; those of its groups check theirs themselves.

    Raises:
        ValueError: naming the key, the value and what is allowed.
    """
    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2^32 - 1, got {cfg.seed!r}")
    if not isinstance(cfg.test, bool):
        raise ValueError(f"test must be true or false, got {cfg.test!r}")
    if cfg.compile is not False:
        check_choice("compile, where it is not false,", cfg.compile, ("inductor", "cudagraphs", "aot_eager", "eager"))


def check_whole(key: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key} must be a whole number of at least {least}, got {value!r}")


def check_positive(key: str, value: object) -> None:
    """Refuse what is no positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{key} must be a positive number, got {value!r}")


def check_not_negative(key: str, value: object) -> None:
    """Refuse what is no finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{key} must be a number of at least 0, got {value!r}")


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is none of ``choices``."""
    if value not in choices:
        raise ValueError(f"{key} must be {', '.join(choices[:-1])} or {choices[-1]}, got {value!r}")


def check_widths(key: str, value: object, example: Sequence[int]) -> None:
    """Refuse what is no list of whole numbers of at least 1, one per layer."""
    whole = isinstance(value, list | tuple) and all(type(n) is int and n >= 1 for n in value)
    if not whole or not value:
        raise ValueError(f"{key} must be a list of whole numbers of at least 1, such as {list(example)}, got {value!r}")


def check_schedule(key: str, schedule: object, check_value: Callable[[str, object], None]) -> None:
    """Refuse what is neither a value that ``check_value(key, value)`` lets pass nor a list of [epoch, value] from 0 on.

    Raises:
        ValueError: saying what is allowed.
    """
    if not isinstance(schedule, list | tuple):
        return check_value(key, schedule)
    pairs = all(isinstance(p, list | tuple) and len(p) == 2 and type(p[0]) is int for p in schedule)
    epochs = [p[0] for p in schedule] if pairs else []
    if not epochs or epochs[0] != 0 or epochs != sorted(set(epochs)):
        raise ValueError(
            f"{key} must be one value, or a list of [epoch, value] with rising epochs from 0 on, such as "
            f"[[0, 1], [20, 5]]; got {schedule!r}"
        )
    for _, value in schedule:
        check_value(key, value)
    return None


def check_share(key: str, value: object) -> None:
    """Refuse what is no number of at least 0 and below 1."""
    check_not_negative(key, value)
    if value >= 1:
        raise ValueError(f"{key} must be below 1, got {value!r}")


def check_kind(model, data) -> None:
    """Refuse text for a model of images, and images for one of words.

    Raises:
        ValueError: saying which.
    """
    if hasattr(model, "nearest") != hasattr(data, "corpus"):
        kinds = ("text", "images or points") if hasattr(model, "nearest") else ("images or points", "text")
        name, chosen = type(model).__name__, data.used or data.hparams.name
        raise ValueError(f"{name} is made for {kinds[0]}, and {chosen} is {kinds[1]}: choose other data")


def raised_by_the_zoo(error: BaseException) -> bool:
    """Whether the line that raised ``error`` is one of this project's, so that its message was written for people."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals["__name__"].split(".")[0] in ("zoo", "datamodules", "callbacks")
