"""Pages of the callbacks: ``callbacks/<module>.md`` for each public callback, ``callbacks/index.md``, and
``callbacks/recipes.md``.

    python docs/make/callback_pages.py FOLDER     # write the pages into a folder, to read them

Arguments and meanings come from signatures and docstrings, and keys come from the recipes. What the callbacks log, cost
and need is in callbacks.yaml.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from reference import ROOT, Key, Recipe, command, definition, docstring, key_rows, link, parts, recipe, sentence, table

sys.path.insert(0, str(ROOT))

import zoo.callbacks
from zoo.training.added_callbacks import with_added

TEXTS = Path(__file__).with_name("callbacks.yaml")
GROUPS = (
    "callbacks",
    "logger",
    "model",
    "experiment",
    "hparams_search",
)  # folders of configs whose recipes have callbacks
LOGGERS = ("CSVLogger", "TensorBoardLogger", "WandbLogger", "MLFlowLogger")


class Use(NamedTuple):
    """A part of a recipe that makes a callback: the recipe, the key of the callback, and the keys of its arguments."""

    recipe: Recipe
    key: str
    keys: list[Key]


@cache
def texts() -> dict[str, dict]:
    """Return the texts of all callbacks, {class: {field: value}}."""
    return yaml.safe_load(TEXTS.read_text(encoding="utf-8"))


def kind(name: str) -> type:
    """Return the class of a callback."""
    return getattr(zoo.callbacks, name)


def module(name: str) -> str:
    """Return the name of the module of a callback, such as ``samples``."""
    return kind(name).__module__.rpartition(".")[2]


def slug(name: str) -> str:
    """Return the name of the page: the module, or such as ``csv_logger`` if the module has several loggers."""
    if [module(other) for other in zoo.callbacks.__all__].count(module(name)) == 1:
        return module(name)
    return f"{name.removesuffix('Logger').lower()}_logger"


# Recipes.


@cache
def recipes() -> dict[str, Recipe]:
    """Return the recipes of ``GROUPS``, {path: recipe}."""
    files = [file for group in GROUPS for file in sorted((ROOT / "configs" / group).glob("*.yaml"))]
    return {path: recipe(path) for path in (file.relative_to(ROOT).as_posix() for file in files)}


def uses(name: str) -> Iterator[Use]:
    """Yield the parts of recipes that make a callback. Their keys have the form of the command line."""
    for path, found in recipes().items():
        group = path.split("/")[1]
        for key in found.keys:
            if key.name.endswith("_target_") and key.value == f"zoo.callbacks.{name}":
                prefix = key.name.removesuffix("_target_")
                own = [k for k in found.keys if k.name.startswith(prefix) and k != key]
                full = f"{group}." if group in ("callbacks", "logger") else ""
                yield Use(found, f"{full}{prefix}".rstrip("."), [k._replace(name=f"{full}{k.name}") for k in own])


def included(path: str) -> list[str]:
    """Return the recipes that include the recipe ``path`` of their folder in their list of defaults."""
    folder, stem = path.rpartition("/")[0], Path(path).stem
    return [
        other for other in recipes() if other.rpartition("/")[0] == folder and stem in parts(other) and other != path
    ]


# Parts of pages.


def shown_type(parameter: inspect.Parameter) -> str:
    """Return the type of an argument in Markdown, such as "`int` or `None`"."""
    annotation = parameter.annotation
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"\b(?:typing|torchmetrics\.metric|collections\.abc)\.", "", text)
    return " or ".join(f"`{part}`" for part in text.split(" | "))


def arguments(name: str) -> str:
    """Return the table of the arguments: name, type, default and meaning."""
    meanings = docstring(inspect.getdoc(kind(name)) or "").arguments
    rows = []
    for argument, parameter in list(inspect.signature(kind(name).__init__).parameters.items())[1:]:
        default = "required" if parameter.default is inspect.Parameter.empty else f"`{parameter.default!r}`"
        rows.append([f"`{argument}`", shown_type(parameter), default, meanings.get(argument, "")])
    return table(["argument", "type", "default", "meaning"], rows)


def logs(name: str) -> str:
    """Return what a callback logs, as a table."""
    rows = texts()[name]["logs"]
    if rows:
        return table(["name", "unit or kind", "when"], [[f"`{row[0]}`", row[1], row[2]] for row in rows])
    return "It receives what the model and the callbacks log." if name in LOGGERS else "It logs nothing."


def recipes_of(name: str) -> str:
    """Return the recipes that turn on a callback, with its keys. Recipes with equal keys have one table."""
    tables: dict[tuple[str, ...], list[Use]] = {}
    for use in uses(name):
        tables.setdefault(tuple(map(str, use.keys)), []).append(use)
    blocks = []
    for alike in tables.values():
        for use in alike:
            path = use.recipe.path
            others = [f"[{other}](repo:{other})" for other in included(path)]
            also = f" These recipes include it: {', '.join(others)}." if others else ""
            blocks.append(f"[{path}](repo:{path}) has it as `{use.key}`.{also}")
            if use.recipe.about and path.split("/")[1] in ("callbacks", "logger"):
                blocks.append(f"> {use.recipe.about}")
        if alike[0].keys:
            blocks.append(table(["key", "value in the recipe", "meaning"], key_rows(alike[0].keys)))
    return "\n\n".join(blocks) or "No recipe has it. `zoo train` adds it to every run."


def switches(name: str) -> str:
    """Return the commands that turn a callback on and off."""
    text = texts()[name]
    lines = [f"zoo train {quoted(text['turn_on'])}"]
    if text["turn_off"] is not None:
        lines.append(f"zoo train {quoted(text['turn_off'])}   # without it")
    return command("\n".join(lines))


def quoted(overrides: str) -> str:
    """Return overrides for a shell, with quotation marks where the shell needs them."""
    return " ".join(f'"{word}"' if re.search(r"[\[\]*?(){}$]", word) else word for word in overrides.split())


def script(name: str) -> str:
    """Return the lines that use a callback in a script of the reader."""
    text = texts()[name]["script"]
    if text is None:
        return "A search of Optuna makes this callback. A script cannot use it."
    argument = "logger" if name in LOGGERS else "callbacks"
    lines = ["import lightning as L", "import zoo.callbacks", ""]
    lines += [f"added = [{text}]", f"trainer = L.Trainer(max_epochs=5, {argument}=added)"]
    more = "[Your own loop](../own_loop.md#callbacks-of-the-zoo-in-your-own-script) has a complete script."
    return "```python\n" + "\n".join(lines) + "\n```\n\n" + more


def page(name: str) -> str:
    """Return the page of one callback."""
    text, doc = texts()[name], docstring(inspect.getdoc(kind(name)) or "")
    path = f"callbacks/{module(name)}.py"
    picture = text.get("picture")
    blocks = [f"# {name}", doc.summary]
    if picture:
        blocks.append(f"![{picture['caption']}](picture:{picture['name']})")
        blocks.append(f"*{picture['caption']}*")
    blocks += [
        doc.body,
        "## Arguments",
        arguments(name),
        f"It raises an error {doc.raises}" if doc.raises else "",
        "## What it logs",
        logs(name),
        "## Recipes",
        recipes_of(name),
        "## Command line",
        switches(name),
        "## In a script",
        script(name),
        "## Cost",
        sentence(text["cost"]),
        "## Several processes",
        sentence(text["processes"]),
        "## Source and tests",
        f"- [`{name}` in {path}](repo:{path}#L{definition(path, name).lineno})",
        "\n".join(f"- {link(spec)}" for spec in text["tests"]),
    ]
    return "\n\n".join(block for block in blocks if block).replace(")\n\n- [`test_", ")\n- [`test_") + "\n"


def how_to_use(path: str) -> str:
    """Return the command that uses a recipe of configs/callbacks, and what it does to the callbacks of the model."""
    name = Path(path).stem
    argument = f"callbacks={name}"
    added = with_added(argument, ROOT / "configs") != argument
    what = "adds it to the callbacks of the model" if added else "replaces the callbacks of the model"
    return f"`zoo train {argument}` {what}."


def recipes_page() -> str:
    """Return the page of the recipes in configs/callbacks, with all of their keys."""
    blocks = [
        "# Recipes of callbacks",
        "Each file of `configs/callbacks` is a recipe. A recipe has one callback, several callbacks, or a list of "
        "recipes. The recipe of a model names the recipe of its callbacks.",
    ]
    for path, found in recipes().items():
        if not path.startswith("configs/callbacks/"):
            continue
        blocks += [f"## {Path(path).stem}", found.about, f"File: [{path}](repo:{path}). {how_to_use(path)}"]
        if names := parts(path):
            blocks.append(f"Includes: {', '.join(f'[{name}](#{name})' for name in names)}.")
        if found.keys:
            blocks.append(table(["key", "value", "meaning"], key_rows(found.keys)))
    return "\n\n".join(blocks) + "\n"


def index() -> str:
    """Return the page that lists all callbacks and loggers."""
    blocks = [
        "# Callbacks and loggers",
        "A callback acts while a model trains. It measures, draws or saves, and does not change the learned weights. "
        "A logger receives the metrics. [Recipes of callbacks](recipes.md) lists the files that turn callbacks on.",
    ]
    loggers = [name for name in sorted(zoo.callbacks.__all__) if name in LOGGERS]
    others = [name for name in sorted(zoo.callbacks.__all__, key=str.lower) if name not in LOGGERS]
    for title, names in (("Callbacks", others), ("Loggers", loggers)):
        rows = [
            [
                f"[{name}]({slug(name)}.md)",
                docstring(inspect.getdoc(kind(name)) or "").summary,
                ", ".join(f"`{use.recipe.path.removeprefix('configs/')}`" for use in uses(name)) or "every run",
            ]
            for name in names
        ]
        blocks += [f"## {title}", table([title.lower().rstrip("s"), "what it does", "recipes"], rows)]
    return "\n\n".join(blocks) + "\n"


def pages() -> dict[str, str]:
    """Return the pages, {path in the site: Markdown}."""
    made: dict[str, Any] = {"callbacks/index.md": index(), "callbacks/recipes.md": recipes_page()}
    return made | {f"callbacks/{slug(name)}.md": page(name) for name in zoo.callbacks.__all__}


if __name__ == "__main__":
    for path, text in pages().items():
        target = Path(sys.argv[1]) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
