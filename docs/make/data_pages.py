"""Pages of the data recipes: ``data/<name>.md`` for each file of configs/data, and ``data/index.md``.

    python docs/make/data_pages.py FOLDER     # write the pages into a folder, to read them

Keys and comments come from the recipes, and arguments come from the data modules. The other facts are in data.yaml.
``PICTURES`` has pictures of the data sets that come with the package. They need no files and no network.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import yaml
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from reference import ROOT, Recipe, command, definition, key_rows, recipe, sentence, table

sys.path.insert(0, str(ROOT))

import torch
from torchvision.utils import make_grid

from zoo.datamodules import toy
from zoo.datamodules.files import data_root
from zoo.datamodules.images import load_split

TEXTS = Path(__file__).with_name("data.yaml")
MODULES = {"Images": "images.py", "Toy": "toy.py", "Text": "text.py", "OwnImages": "own_images.py"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#5B4FB0", "#6b6b6b")
INK_ON = {colour: "black" if colour in ("#E69F00", "#CC79A7", "#56B4E9") else "white" for colour in COLOURS}
SHOWN = 2000  # points in a picture


@cache
def texts() -> dict[str, dict]:
    """Return the texts of all recipes, {name: {field: value}}."""
    return yaml.safe_load(TEXTS.read_text(encoding="utf-8"))


@cache
def recipes() -> dict[str, Recipe]:
    """Return the recipes of configs/data, {name: recipe}."""
    return {
        file.stem: recipe(f"configs/data/{file.name}") for file in sorted((ROOT / "configs" / "data").glob("*.yaml"))
    }


def module(name: str) -> str:
    """Return the name of the data module of a recipe, such as ``Images``."""
    return next(key.value for key in recipes()[name].keys if key.name == "_target_").rpartition(".")[2]


# Pictures.


class Picture(NamedTuple):
    """One picture: the function that draws it, and its caption."""

    draw: Callable[[], Figure]
    caption: str


def figure(width: float, height: float) -> tuple[Figure, object]:
    """Return a figure of the given size in inches, and its axes."""
    drawn = Figure(figsize=(width, height), layout="constrained")
    return drawn, drawn.subplots()


def draw_points(name: str) -> Figure:
    """Draw validation points of a known distribution in the plane."""
    data = toy.Toy(name)
    data.setup()
    points, labels = (tensor[:SHOWN] for tensor in data.splits["val"])
    drawn, axes = figure(4.5, 4.5)
    axes.scatter(*points.T.numpy(), c=[COLOURS[label] for label in labels.tolist()], s=4, linewidths=0)
    axes.set(xlabel="first coordinate", ylabel="second coordinate", aspect="equal")
    if name == "line":
        axes.set(xlim=(-0.25, 1.25))
    return drawn


def draw_sequences(name: str) -> Figure:
    """Draw validation sequences of symbols, a row for each sequence and a colour for each symbol."""
    data = toy.Toy(name)
    data.setup()
    symbols = data.splits["val"].images[:20].argmax(-1).numpy()
    drawn, axes = figure(3.5, 5.5)
    axes.imshow(symbols, cmap=ListedColormap(COLOURS[: data.shape[1]]), vmin=-0.5, vmax=data.shape[1] - 0.5)
    for row, sequence in enumerate(symbols.tolist()):
        for column, symbol in enumerate(sequence):
            axes.text(column, row, str(symbol), ha="center", va="center", color=INK_ON[COLOURS[symbol]])
    axes.grid(False)
    axes.set(xlabel="position", ylabel="sequence", xticks=range(data.shape[0]), yticks=[])
    return drawn


def draw_digits() -> Figure:
    """Draw the digits of scikit-learn, a row for each class."""
    split = load_split("digits", data_root())["train"]
    chosen = torch.cat([split.images[split.labels == digit][:12] for digit in range(10)])
    drawn, axes = figure(4, 3.4)
    axes.imshow(make_grid(chosen, nrow=12, padding=2, pad_value=255).permute(1, 2, 0).numpy())
    axes.grid(False)
    axes.set_axis_off()
    return drawn


PICTURES = {
    f"data-{name}": Picture(
        partial(draw_sequences if name == "markov_chain" else draw_points, name), texts()[name]["picture"]
    )
    for name in toy.DISTRIBUTIONS
}
PICTURES["data-digits"] = Picture(draw_digits, "Training images of the data set. Each row has one digit.")


def pictures() -> dict[str, Figure]:
    """Return the pictures, {name: figure}."""
    return {name: picture.draw() for name, picture in PICTURES.items()}


# Pages.

FOLDER = "The data folder is `data/`, or the folder that the environment variable `ZOO_DATA` names."
OFFLINE = {
    "nothing": "The data need no download.",
    "replaced": "Without the files and a network, the run uses the replacement, and a warning says so. "
    "`config.yaml` in the run folder records which data were used.",
    "local": "Give `data.name` the path of a local folder that the package `datasets` can load.",
}


def facts(name: str) -> str:
    """Return the table of the numbers of examples, the shape and the labels."""
    text = texts()[name]
    splits = [f"{n:,}" for n in toy.SIZES.values()] if module(name) == "Toy" else text["splits"]
    rows = list(zip(("training", "validation", "test"), splits, strict=True)) if splits else []
    rows += [("shape of an example", sentence(text["shape"])), ("labels", sentence(text["labels"]))]
    return table(["fact", "value"], [list(row) for row in rows])


def offline(name: str) -> str:
    """Return what to do without a network."""
    text = texts()[name]
    if text["offline"] != "files":
        return OFFLINE[text["offline"]]
    files = "\n".join(f"- `{file}`" for file in text["files"])
    said = "The command stops with one line if the files are missing and cannot be downloaded."
    return f"{said} {FOLDER} Put these files into it:\n\n{files}"


def page(name: str) -> str:
    """Return the page of one recipe."""
    text, found = texts()[name], recipes()[name]
    path = f"datamodules/{MODULES[module(name)]}"
    picture = PICTURES.get(f"data-{name}")
    commands = "\n".join(f"zoo train {quoted(words)}" for words in text["models"])
    blocks = [f"# {name}", sentence(text["what"])]
    if picture:
        size = "" if name == "markov_chain" else "{ width=450 }"  # text as large as in other pictures
        blocks += [f"![{picture.caption}](picture:data-{name}){size}", f"*{picture.caption}*"]
    blocks += [
        facts(name),
        f"See {text['guide']}." if "guide" in text else "",
        "## Use it",
        command(commands),
        "## Recipe",
        found.about,
        f"File: [{found.path}](repo:{found.path}).",
        table(
            ["key", "value", "meaning"],
            key_rows([key._replace(name=f"data.{key.name}") for key in found.keys if key.name != "_target_"]),
        ),
        "## Without a network",
        offline(name),
        "## Source and licence",
        f"Source: {sentence(text['source'])}",
        f"Licence: {sentence(text['licence'])}",
        "## Code",
        f"- [`{module(name)}` in {path}](repo:{path}#L{definition(path, module(name)).lineno}) is the data module.",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def quoted(overrides: str) -> str:
    """Return overrides for a shell, with quotation marks where the shell needs them."""
    return " ".join(f'"{word}"' if "[" in word else word for word in overrides.split())


def index() -> str:
    """Return the page that lists all recipes by their data module."""
    titles = {
        "Images": "Published images",
        "Toy": "Known distributions",
        "Text": "Text",
        "OwnImages": "Your own images",
    }
    blocks = [
        "# Data",
        "Each recipe of `configs/data` has a page. `data=NAME` selects a recipe, as in "
        "`zoo train model=vae data=digits`. The page [Your own data module](../own_data_module.md) explains how to "
        "add data.",
    ]
    for kind, title in titles.items():
        rows = [
            [f"[{name}]({name}.md)", sentence(texts()[name]["what"]), sentence(texts()[name]["shape"])]
            for name in recipes()
            if module(name) == kind
        ]
        blocks += [f"## {title}", table(["recipe", "what it is", "shape of an example"], rows)]
    return "\n\n".join(blocks) + "\n"


def pages() -> dict[str, str]:
    """Return the pages, {path in the site: Markdown}."""
    return {"data/index.md": index()} | {f"data/{name}.md": page(name) for name in recipes()}


if __name__ == "__main__":
    for path, text in pages().items():
        target = Path(sys.argv[1]) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
