"""Write ``docs/capabilities.md``, the table of what each model can do, from zoo/checks/capabilities.py.

python docs/make/capabilities.py
"""

import importlib
import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import zoo  # noqa: E402
from zoo.checks import capabilities  # noqa: E402

# Options that give a model a capability that it lacks by default.
WITH = {
    ("gan", "LogLikelihood"): "network=sequence",
    ("gan", "SampleRows"): "num_classes=10",
    ("wgan", "SampleRows"): "num_classes=10",
    ("ddpm", "SampleRows"): "num_classes=10",
    ("score", "SampleRows"): "num_classes=10",
}
OF_DATA = {"TextData", "DrawnData", "NamedData", "SplitData", "CountedData", "Batched", "KnownScore", "Enumerable"}
OF_DATA |= {"LogsImages", "LogsTables", "ShortSanityCheck"}
OF_CALLBACKS = {"StepCallback", "CadencedCallback"}


def protocols() -> dict[str, type]:
    """Return the capabilities of models by name, in the order in which the file defines them."""
    return {
        name: kind
        for name, kind in vars(capabilities).items()
        if inspect.isclass(kind) and kind.__module__ == capabilities.__name__ and name not in OF_DATA | OF_CALLBACKS
    }


def models() -> dict[str, object]:
    """Return the models by name, each with default options."""
    found = {}
    for name, path in zoo.MODELS.items():
        module, _, kind = path.rpartition(".")
        found[name] = getattr(importlib.import_module(module), kind)()
    return found


def has(model: object, name: str, kind: type) -> bool:
    """Return whether a model has a capability with default options.

    It needs the methods. For ``LogLikelihood`` and ``SampleRows`` it also needs a value that is not None.
    """
    if not isinstance(model, kind):
        return False
    if name == "LogLikelihood":
        return capabilities.has_log_likelihood(model)
    return name != "SampleRows" or model.rows() is not None


def table() -> str:
    """Return the text of the document."""
    ours, kinds = models(), protocols()
    lines = [
        "# What each model can do",
        "",
        "`python docs/make/capabilities.py` makes this page from `zoo/checks/capabilities.py`.",
        "A capability is a set of methods and attributes. Callbacks, the command line and evaluation look for them.",
        "`Encodes` and `Decodes` are the exception: only users call them.",
        "A model with an option in brackets needs this option. The other models need no option.",
        "",
        "| capability | methods and attributes | models | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, kind in kinds.items():
        members = [m for m in vars(kind) if not m.startswith("_")] + list(inspect.get_annotations(kind))
        have = {model_name: has(model, name, kind) for model_name, model in ours.items()}
        found = [model_name for model_name, yes in have.items() if yes]
        found += [f"{m} (`{WITH[m, name]}`)" for m, yes in have.items() if not yes and (m, name) in WITH]
        asked = ", ".join(f"`{m}`" for m in members)
        meaning = " ".join((inspect.getdoc(kind) or "").replace("``", "`").split())
        lines.append(f"| {name} | {asked} | {'all' if len(found) == len(ours) else ', '.join(found)} | {meaning} |")
    lines += ["", "## How each model computes log p(x)", "", "| model | method |", "| --- | --- |"]
    for model_name, model in ours.items():
        if capabilities.has_log_likelihood(model):
            lines.append(f"| {model_name} | {model.log_likelihood_by} |")
        elif option := WITH.get((model_name, "LogLikelihood")):
            lines.append(f"| {model_name} (`{option}`) | {capabilities.EXACT} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "capabilities.md").write_text(table(), encoding="utf-8")
