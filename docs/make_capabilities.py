"""Write ``docs/capabilities.md``: the ten models by what each can do, made from zoo/checks/capabilities.py.

python docs/make_capabilities.py
"""

import importlib
import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import zoo  # noqa: E402
from zoo.checks import capabilities  # noqa: E402

# What a column says, and which options give a model a capability that it lacks by default.
WITH = {
    ("gan", "LogLikelihood"): "network=sequence",
    ("ddpm", "SampleRows"): "num_classes=10",
}
OF_DATA = {"TextData", "DrawnData", "NamedData", "SplitData", "CountedData", "Batched", "KnownScore", "Enumerable"}
OF_DATA |= {"LogsImages", "LogsTables"}


def protocols() -> dict[str, type]:
    """The capabilities of models, in the order of their file."""
    return {
        name: kind
        for name, kind in vars(capabilities).items()
        if inspect.isclass(kind) and kind.__module__ == capabilities.__name__ and name not in OF_DATA
    }


def models() -> dict[str, object]:
    """One of each model, with default options."""
    found = {}
    for name, path in zoo.MODELS.items():
        module, _, kind = path.rpartition(".")
        found[name] = getattr(importlib.import_module(module), kind)()
    return found


def has(model: object, name: str, kind: type) -> bool:
    """Whether a model has a capability by default: the methods, and a number where it is one."""
    if not isinstance(model, kind):
        return False
    if name == "LogLikelihood":
        return capabilities.has_log_likelihood(model)
    return name != "SampleRows" or model.rows() is not None


def table() -> str:
    """The document."""
    ours, kinds = models(), protocols()
    lines = [
        "# What each model can do",
        "",
        "Made by `python docs/make_capabilities.py` from `zoo/checks/capabilities.py`. A test keeps it so. Callbacks,",
        "the command line and evaluation ask for these, all but `Encodes` and `Decodes`, which are for people. `yes`",
        "is said of a model with default options; where an option is needed, it is named.",
        "",
        "| capability | asks for | " + " | ".join(ours) + " |",
        "| --- " * (len(ours) + 2) + "|",
    ]
    for name, kind in kinds.items():
        members = [m for m in vars(kind) if not m.startswith("_")] + list(inspect.get_annotations(kind))
        cells = []
        for model_name, model in ours.items():
            missing = WITH.get((model_name, name), "") if isinstance(model, kind) else ""
            cells.append("yes" if has(model, name, kind) else f"`{missing}`" if missing else "")
        asked = ", ".join(f"`{m}`" for m in members)
        lines.append(f"| {name} | {asked} | " + " | ".join(cells) + " |")
    lines += ["", "How each model computes log p(x), and what a capability means:", ""]
    for model_name, model in ours.items():
        if capabilities.has_log_likelihood(model):
            lines.append(f"- `{model_name}`: {model.log_likelihood_by}")
        elif option := WITH.get((model_name, "LogLikelihood")):
            lines.append(f"- `{model_name}` with `{option}`: {capabilities.EXACT}")
    lines.append("")
    lines += [f"- {name}: {inspect.getdoc(kind)}" for name, kind in kinds.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "capabilities.md").write_text(table(), encoding="utf-8")
