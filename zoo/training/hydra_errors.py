"""Turn errors of Hydra and OmegaConf into messages of one line."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def hydra_raises() -> Iterator[None]:
    """Let Hydra raise its errors within this context. By default, Hydra prints them in many lines and exits."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def is_refused_by_hydra(error: Exception) -> bool:
    """Return whether ``error`` says that Hydra or OmegaConf rejected the configuration."""
    if "omegaconf" not in sys.modules:
        return False
    from hydra.errors import HydraException
    from omegaconf.errors import GrammarParseError, InterpolationResolutionError, MissingMandatoryValue

    return isinstance(error, HydraException | InterpolationResolutionError | GrammarParseError | MissingMandatoryValue)


def line_of_hydra(error: Exception) -> str:
    """Return the message of one line for an error of Hydra or OmegaConf."""
    from hydra.errors import InstantiationException, MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and name.startswith("submitit_"):
            return f"{group}={name} needs the package hydra-submitit-launcher: pip install 'generative-zoo[sweeps]'"
        return f"{group or 'the configuration'} has no {name!r}; {choices(name, error.options)}"
    if isinstance(error, OverrideParseException):
        return unreadable(error.override, str(error))
    if isinstance(error, InstantiationException):
        return _cannot_be_made(error)
    message = str(error)
    if error.__cause__ is not None and str(error.__cause__) not in message:
        message += f"\n{error.__cause__}"
    return _one_line(message)


def choices(name: str, known: Sequence[str]) -> str:
    """Return a text that lists the ``known`` names. If one of them is similar to ``name``, the text suggests it."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    meant = f". Did you mean {close[0]}?" if close else ""
    return f"choose one of {', '.join(sorted(known))}{meant}" if known else "there are no choices"


def unreadable(argument: str, why: str = "") -> str:
    """Return the message for an argument that Hydra cannot parse.

    Args:
        argument: the argument.
        why: the message of Hydra.
    """
    from zoo.training.shell import override, pasted

    key, equals, value = argument.partition("=")
    if not argument.strip():
        return "an argument is empty: write key=value, such as model=ddpm"
    if not equals or not re.fullmatch(r"(\+\+?|~)?[\w./@:-]+", key):
        return f"{argument!r} is not an override: write key=value, such as model=ddpm"
    if "(" in value and (found := re.search(r"while evaluating '[^']*': (.*)", why)):
        return f"the value in {argument!r} cannot be read: {found.group(1)}"
    return (
        f"the value in {argument!r} cannot be read: close its brackets and quotes, or quote it as a string, "
        f"{pasted(override(key, value))}"
    )


def _cannot_be_made(error: Exception) -> str:
    """Return the message for a ``_target_`` that cannot be imported, or that does not accept its arguments."""
    message, cause = str(error), error.__cause__
    key = found.group(1) if (found := re.search(r"full_key: (\S+)", message)) else ""
    if found := re.search(r"Error (?:locating|loading) target '([^']*)'|Error loading '([^']*)'", message):
        why = re.search(r"No module named '[^']*'|has no attribute '[^']*'|Empty path", f"{cause}")
        target, place = found.group(1) or found.group(2), f"{key}._target_" if key else "_target_"
        return (
            f"{place}={target} cannot be imported{f' ({why.group()})' if why else ''}: name a class or function, "
            "and the folder of its file in PYTHONPATH"
        )
    if isinstance(cause, TypeError):
        return f"{key or 'the configuration'} has wrong arguments: {cause}"
    return _one_line(message)


def _one_line(message: str) -> str:
    """Return ``message`` in one line, without Hydra's advice for programmers."""
    message = re.sub(r"(?s)\nConfig search path:.*", "", message)
    message = re.sub(r"\nSee https://\S+ for details|\n\s*(object_type|reference_type)=\S+", "", message)
    message = re.sub(r", set env var HYDRA_FULL_ERROR=1 to see chained exception\.", "", message)
    message = re.sub(r"\n\s*full_key: (\S*)", r" (at \1)", message)
    return re.sub(r"\s*\n\s*", "; ", message.strip())
