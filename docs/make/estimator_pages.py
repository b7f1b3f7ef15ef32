"""Pages of the gradient estimators: ``estimators/<name>.md`` for each name, and ``estimators/index.md``.

    python docs/make/estimator_pages.py FOLDER     # write the pages into a folder, to read them

The names come from ``gradient_estimators()`` of the ten models, with all of their options. The measured values come
from docs/results/estimators-*.csv. The equations and the texts are in estimators.yaml.
"""

import inspect
import itertools
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin

import yaml
from reference import ROOT, command, line_with_link, link, sentence, table

sys.path.insert(0, str(ROOT))

import zoo
from zoo.checks.errors import UserError
from zoo.commands.parser import parser
from zoo.estimators import by_name
from zoo.evaluation.results import Table, read_results, with_separators
from zoo.functional.diffusion import TIMESTEPS

TEXTS = Path(__file__).with_name("estimators.yaml")

# Options that decide which estimators a model has, where the signature does not list their values with Literal.
CHOICES = {
    "vae": {"estimator": ["auto", *sorted({name for names in by_name.ESTIMATORS.values() for name in names})]},
    "ddpm": {"timesteps": list(TIMESTEPS), "steps": [20, 1000]},
    "score": {"objective": ["denoising", "sliced", "explicit"], "shape": [[2], [1, 28, 28]]},
}
# Small models with all estimators. The sizes do not add options.
SMALL = {
    "vae": {"latent_dim": 4, "num_categories": 3, "hidden": [4], "num_samples": 2, "latent": "gaussian"},
    "cvae": {"latent_dim": 2, "hidden": [4]},
    "vade": {"latent_dim": 2, "hidden": [4]},
    "rbm": {"num_hidden": 8},
    "gan": {"width": 2, "features": 4, "generator_features": 4},
    "wgan": {"width": 2, "features": 4, "generator_features": 4},
    "infogan": {"width": 2, "features": 4},
    "ddpm": {"widths": [8]},
    "score": {"widths": [8], "hidden": [4]},
    "skipgram": {"dim": 4},
}
# Options that change no estimator. Leaving them out keeps the number of combinations small.
UNRELATED = {"likelihood", "net", "activation", "network", "relaxation", "optimiser", "binarisation", "prior"}
UNRELATED |= {"initial_mixture"}


class Offer(NamedTuple):
    """A model that offers an estimator, and the first options with which it does."""

    model: str
    options: dict[str, object]


def slug(name: str) -> str:
    """Return the name of the page: lower case, with "-" for each run of characters that are no letters or digits."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


# What the models offer.


def choices(model: str) -> dict[str, list]:
    """Return the options of a model that have a list of values, {option: values}, with the default first."""
    found = dict(CHOICES.get(model, {}))
    for name, parameter in inspect.signature(kind(model).__init__).parameters.items():
        if get_origin(parameter.annotation) is Literal and name not in UNRELATED:
            found[name] = sorted(get_args(parameter.annotation), key=lambda value, p=parameter: value != p.default)
    return found


def kind(model: str) -> type:
    """Return the class of a model."""
    module, _, name = zoo.MODELS[model].rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


@cache
def offers() -> dict[str, list[Offer]]:
    """Return the models that offer each estimator, {name of the estimator: offers}."""
    found: dict[str, list[Offer]] = {}
    for model in zoo.MODELS:
        options = choices(model)
        for values in itertools.product(*options.values()):
            chosen = dict(zip(options, values, strict=True))
            try:
                built = kind(model)(**SMALL[model] | chosen)
            except UserError:  # the options do not go together
                continue
            for name in built.gradient_estimators():
                if model not in [offer.model for offer in found.setdefault(name, [])]:
                    found[name].append(Offer(model, chosen))
    return found


@cache
def texts() -> dict[str, dict]:
    """Return the texts of all estimators, {name: {field: value}}."""
    return yaml.safe_load(TEXTS.read_text(encoding="utf-8"))


# Measurements.


class Measured(NamedTuple):
    """A results file: its name, its table with separators of thousands, and how it was measured."""

    name: str
    table: Table
    about: dict[str, str]

    def names(self) -> list[str]:
        """Return the names in backticks in the first column. ``option=value`` stands for its value."""
        return [re.findall(r"`(?:[\w.]+=)?([^`]+)`", row[0])[0] for row in self.table.rows]


@cache
def measured() -> list[Measured]:
    """Return the measurements of estimators, from docs/results/estimators-*.csv."""
    found = []
    for file in sorted((ROOT / "docs" / "results").glob("estimators-*.csv")):
        read, about = read_results(file)
        found.append(Measured(file.stem, with_separators(read), about))
    return found


DEFAULTS = {"draws": 256, "batch_size": 64}  # of zoo compare, for images


def how(about: dict[str, str]) -> str:
    """Return how a results file was measured: command, model, probe and hardware. All follow from its first lines."""
    words, _, before = about["command"].partition(", ")
    said = [f"Command: `{words}`{f', {before}' if before else ''}."]
    if words.startswith("zoo compare "):
        args = parser().parse_args(shlex.split(words.removeprefix("zoo ")))
        model = "a run of the command that comes first" if before else f"the pretrained `{args.source}`"
        examples = "rows of words" if "skipgram" in before else "validation images"
        size, draws = args.batch_size or DEFAULTS["batch_size"], args.draws or DEFAULTS["draws"]
        said += [f"Model: {model}.", f"Probe: one batch of {size} {examples}, with {draws} draws and seed {args.seed}."]
    else:
        said += [
            "Model: a run for each row.",
            "Probe: the fixed batch of [EstimatorVariance](../callbacks/estimator_variance.md), during training.",
        ]
    return "\n".join(f"- {line}" for line in [*said, f"Hardware: {about['hardware']}."])


UNITS = {
    "variance": "trace of the covariance of one draw of the gradient, in squared units of the gradient",
    "signal-to-noise": "norm of the expected gradient, divided by the square root of the variance",
    "ms per draw": "milliseconds for one draw",
    "variance x ms": "product of the two, the cost of a given precision",
    "bias, %": "norm of the difference from the reference gradient, as a percentage of the norm of the reference",
    "test ELBO, nats": "evidence lower bound of the test images, in nats per image",
}


def measurements(name: str) -> str:
    """Return the measured values of an estimator next to those of its alternatives, or the command that measures it."""
    found = [one for one in measured() if name in one.names()]
    if not found:
        words = texts()[name]["compare"]
        where = " RUN is the folder of a run of a model that offers it." if words.startswith("RUN ") else ""
        said = f"No committed results file has this estimator. The command measures it.{where}"
        return f"{said}\n\n{command(f'zoo compare {words}')}"
    blocks = []
    for one in found:
        picture = f"variance-{one.name.removeprefix('estimators-')}"
        if (ROOT / "docs" / "pictures" / f"{picture}.png").is_file():
            blocks.append(f"![Gradient estimators of the table below, lowest variance first](picture:{picture})")
        rows = [
            [f"**{cell}**" if listed == name and cell else cell for cell in row]
            for row, listed in zip(one.table.rows, one.names(), strict=True)
        ]
        blocks += [
            table(list(one.table.columns), rows),
            how(one.about),
            "Columns:",
            "\n".join(f"- {column}: {UNITS[column]}." for column in one.table.columns if column in UNITS),
            f"The numbers come from [docs/results/{one.name}.csv](repo:docs/results/{one.name}.csv).",
        ]
    return "\n\n".join(blocks)


# Pages.

BIAS = {"unbiased": "Unbiased.", "biased": "Biased.", "exact": "Exact."}
PRECISE = "The page [Read the variance figure](../variance.md) explains variance and signal-to-noise ratio."


def models_table(name: str) -> str:
    """Return the table of the models that offer an estimator, with the command that trains with it."""
    train = texts()[name].get("train", {})
    rows = []
    for offer in offers()[name]:
        trains = f"`zoo train {train[offer.model]}`" if offer.model in train else "no option; it is only measured"
        rows.append([f"[{offer.model}](../models/{offer.model}.md)", trains])
    return table(["model", "command that trains with it"], rows)


def page(name: str) -> str:
    """Return the page of one estimator."""
    text = texts()[name]
    blocks = [
        f"# `{name}`",
        sentence(text["sentence"]),
        "$$\n" + text["equation"].strip() + "\n$$",
        sentence(text["symbols"]),
        f"Source: {sentence(text['source'])}.",
        "## Bias",
        f"**{BIAS[text['bias']]}** {sentence(text['about_bias'])}",
        "Tests of the equation or of the bias:",
        "\n".join(f"- {link(spec)}" for spec in text["tests"]),
        "## Code",
        "\n".join(f"- {line_with_link(spec)}" for spec in text["code"]),
        "## Models",
        models_table(name),
        "## Variance and cost",
        measurements(name),
    ]
    if "evaluations" in text:
        blocks.append(f"Values of z at which one estimate evaluates f, for each example: {text['evaluations']}.")
    blocks += [PRECISE, "## When to use it", sentence(text["when"]), "## Reference", sentence(text["reference"])]
    return "\n\n".join(blocks) + "\n"


def index() -> str:
    """Return the page that lists all estimators by family."""
    families: dict[str, list[str]] = {}
    for name, text in texts().items():
        families.setdefault(text["family"], []).append(name)
    blocks = [
        "# Gradient estimators",
        "A gradient estimator approximates the gradient of an expectation with random draws. "
        "Each estimator has a page with its equation, its code, its tests and its measured variance.",
        "The page [Gradient estimators](../estimators.md) compares them. " + PRECISE,
    ]
    for family, names in families.items():
        rows = [
            [
                f"[`{name}`]({slug(name)}.md)",
                texts()[name]["bias"],
                ", ".join(f"[{offer.model}](../models/{offer.model}.md)" for offer in offers()[name]),
                sentence(texts()[name]["sentence"]),
            ]
            for name in names
        ]
        blocks += [f"## {family}", table(["estimator", "bias", "models", "what it is"], rows)]
    return "\n\n".join(blocks) + "\n"


def pages() -> dict[str, str]:
    """Return the pages, {path in the site: Markdown}."""
    return {"estimators/index.md": index()} | {f"estimators/{slug(name)}.md": page(name) for name in texts()}


if __name__ == "__main__":
    for path, text in pages().items():
        target = Path(sys.argv[1]) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
