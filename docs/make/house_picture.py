"""The picture of the packages of the project and of the imports between them, found in the source files."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from drawing import BLUE, GREEN, GREY, INK, ORANGE, ROOT, Picture, canvas
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

PARTS = {"callbacks": ROOT / "callbacks", "datamodules": ROOT / "datamodules"}  # zoo/callbacks links to the first
MODELS = "the ten models"
NOTES = {
    "functional": "densities, bounds",
    "checks": "arguments, errors",
    "nets": "shared networks",
    "estimators": "gradients",
    "sampling": "pictures",
    "training": "loops, runs",
    "datamodules": "data sets",
    "evaluation": "metrics",
    "hub": "weights, cards",
    "callbacks": "during training",
    "commands": "zoo ...",
    "train": "train.py",
    "__main__": "the program zoo",
    MODELS: "vae ... skipgram",
}


def layers() -> list[set[str]]:
    """Return the groups of packages from the ground up, as tests/house/test_layers.py checks them."""
    tree = ast.parse((ROOT / "tests" / "house" / "test_layers.py").read_text(encoding="utf-8"))
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    return ast.literal_eval(values["ORDER"])


def files() -> Iterator[tuple[str, Path]]:
    """Yield the package and the path of every source file."""
    yield "train", ROOT / "train.py"
    for path in sorted((ROOT / "zoo").glob("*.py")):
        if path.stem != "__init__":
            yield ("__main__" if path.stem == "__main__" else MODELS), path
    for folder in sorted(path for path in (ROOT / "zoo").iterdir() if path.is_dir()):
        for path in sorted(PARTS.get(folder.name, folder).rglob("*.py")):
            yield folder.name, path


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a source file, except imports for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from nodes(node)


def imports() -> dict[str, set[str]]:
    """Return the packages that each package imports, without itself."""
    found: dict[str, set[str]] = {}
    models = {path.stem for name, path in files() if name == MODELS}
    for package, path in files():
        seen = found.setdefault(package, set())
        for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = (
                    [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "zoo" else [node.module]
                )
            for part in (name.split(".")[1] for name in names if name.startswith("zoo.")):
                seen.add(MODELS if part in models else part)
    known = set(found)
    return {package: (near & known) - {package} for package, near in found.items()}


def direct(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Return the imports (importer, imported) that do not follow from a chain of other imports."""
    reached: dict[str, set[str]] = {}
    for package in TopologicalSorter(graph).static_order():
        reached[package] = set().union(*(reached[near] | {near} for near in graph[package]))
    return {
        (package, near)
        for package, found in graph.items()
        for near in found
        if not any(near in reached[other] for other in found - {near})
    }


# Columns of the rooms that do not stand in the middle, chosen so that few arrows cross.
COLUMNS = {"nets": -1, "checks": 1, "estimators": -1, "sampling": 1, "train": -0.5, "__main__": 0.5}


def rooms() -> dict[str, tuple[float, float]]:
    """Return the middle of the room of each package, in inches. The models stand to the left of the third layer."""
    floors = {name: floor for floor, group in enumerate(layers()) for name in group}
    place = {name: (4.6 + 1.95 * COLUMNS.get(name, 0), 0.42 + 0.92 * floor) for name, floor in floors.items()}
    place[MODELS] = (1.9, place["datamodules"][1])
    return place


def house() -> Figure:
    figure, axes = canvas(7.2)
    place, width, height = rooms(), 1.62, 0.56
    axes.set(xlim=(1.0, 7.5), ylim=(0, 7.3), aspect="equal")
    axes.set_axis_off()
    for importer, imported in sorted(direct(imports())):
        (x0, y0), (x1, y1) = place[importer], place[imported]
        if y0 == y1:  # rooms on one floor
            side = 1 if x1 > x0 else -1
            start, end = (x0 + side * width / 2, y0), (x1 - side * width / 2, y1)
        else:
            most = width / 2 - 0.2  # arrows begin at the corner that is nearer to their end
            lean = max(-most, min(most, 0.5 * (x1 - x0)))
            start, end = (x0 + lean, y0 - height / 2), (x1 - lean / 4, y1 + height / 2)
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=GREY, linewidth=1.1, zorder=1)
        )
    for name, (x, y) in place.items():
        colour = ORANGE if name == MODELS else GREEN if name in ("train", "__main__", "commands") else BLUE
        look = {"boxstyle": "round,pad=0,rounding_size=0.08", "facecolor": "white", "linewidth": 1.8}
        corner = (x - width / 2, y - height / 2)
        axes.add_patch(FancyBboxPatch(corner, width, height, edgecolor=colour, zorder=2, **look))
        axes.text(x, y + 0.1, name, ha="center", va="center", weight="bold", fontsize=10.5, color=INK, zorder=3)
        axes.text(x, y - 0.13, NOTES[name], ha="center", va="center", fontsize=9, color=GREY, zorder=3)
    return figure


PICTURES = {
    "house": Picture(
        house,
        "The packages of the project in layers. An arrow points from a package to a package that it imports. Imports "
        "that follow from a chain of other arrows are left out.",
    )
}
