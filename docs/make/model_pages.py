"""The page of each model: ``models/vae.md`` and so on, and ``models/index.md``.

A page has parts of the header of the model's file, of its recipe, of the cards of its checkpoints, and of
``docs/results.md``. Marks in the tests say which test checks which equation. All numbers come from cards.
"""

import ast
import importlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import equations
import header
import logged
import yaml
from header import code, escaped, inline, table

import zoo
from zoo.commands.pages import Documentation
from zoo.evaluation import reproducibility
from zoo.evaluation.published import METRICS
from zoo.evaluation.results import Table, in_markdown
from zoo.evaluation.units import error_name

ROOT = equations.ROOT

# Lines of Python after ``model = zoo.load(NAME)``.
USES = {
    "vae": "images = model.sample(64)  # (64, 1, 28, 28), in [0, 1]",
    "cvae": "images = model.sample(64, y=7)  # (64, 1, 28, 28), in [0, 1]",
    "vade": "images = model.sample(10, clusters=list(range(10)))  # an image of each cluster",
    "gan": "images = model.sample(64)  # (64, 1, 28, 28), in [0, 1]",
    "wgan": "images = model.sample(64)  # (64, 1, 28, 28), in [0, 1]",
    "infogan": "images = model.sample(64, category=3)  # (64, 1, 28, 28), in [0, 1]",
    "ddpm": "images = model.sample(4, num_steps=50)  # (4, 1, 28, 28), in [0, 1]",
    "score": "images = model.sample(4)  # (4, 1, 28, 28), in [0, 1]",
    "rbm": "images = model.sample(16, steps=1000)  # (16, 1, 28, 28), after 1,000 Gibbs steps",
    "skipgram": 'words = model.nearest("music", 5)  # pairs of a word and its cosine',
}
# Meanings of settings that recipes of all models share.
SHARED = {
    "model._target_": "the class of the model",
    "defaults.data": "data, unless the command has ``data=``",
    "defaults.callbacks": "callbacks of a run",
    "data.batch_size": "examples of a batch",
    "trainer.max_epochs": "passes over the training data",
    "trainer.check_val_every_n_epoch": "epochs between validations",
    "trainer.precision": "precision of the layers",
    "trainer.two_players": "whether two networks train in turns, as in adversarial models",
    "callbacks.samples.n": "samples of a picture",
    "callbacks.samples.every_n_epochs": "epochs between pictures of samples",
    "callbacks.best.monitor": "metric that selects the best checkpoint",
}
# Pictures of ideas. Their names do not have the name of the model.
IDEAS = {"iwae-bound": "vae", "ais-two-sides": "rbm", "schedule": "ddpm"}
# Who made the data of the checkpoints, and the licence. Data without an entry are drawn from a formula.
DATA = {
    "mnist": "MNIST, CC BY-SA 3.0",
    "fashion_mnist": "Fashion-MNIST, MIT",
    "digits": "digits of scikit-learn (UCI), CC BY 4.0",
    "textfile": "English Wikipedia, CC BY-SA 3.0",
}


def slug(name: str) -> str:
    """Return the name of the page of a gradient estimator, without ``.md``, or the anchor of an equation."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def indented(text: str) -> str:
    """Return ``text`` as the content of a box."""
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


def box(kind: str, title: str, text: str, folded: bool = False) -> str:
    """Return a box with a title. A folded box shows its text after a click."""
    return f'{"???" if folded else "!!!"} {kind} "{title}"\n\n{indented(text)}'


def source(path: str, line: int, text: str) -> str:
    """Return a link to a line of a file of the repository."""
    return f"[{code(text)}](repo:{path}#L{line})"


# What the repository has.


@cache
def documentation() -> Documentation:
    """Return the cards and the results files."""
    return Documentation()


def cards(model: str) -> dict[str, dict[str, Any]]:
    """Return the cards of the checkpoints of ``model``. The card with the name of the model is the first."""
    found = {name: card for name, card in documentation().cards.items() if card["model"] == model}
    return {name: found[name] for name in sorted(found, key=lambda name: (name != model, name))}


@cache
def sections() -> dict[str, str]:
    """Return the sections of ``docs/results.md`` by their titles."""
    parts = re.split(r"^## (.+)$", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(checkpoint: str) -> list[str]:
    """Return the commands of the first block of ``docs/results.md`` that train a checkpoint, the last one last."""
    block = re.search(r"^```bash\n(.*?)^```", sections()[checkpoint], re.M | re.S)[1]
    return re.findall(r"^python train\.py .*$", block, re.M)


def pictures(checkpoint: str) -> dict[str, str]:
    """Return {name: caption} of the pictures of a checkpoint in ``docs/results.md``."""
    found = re.findall(r"!\[(.*?)\]\(\S*?([\w-]+)\.png\)", sections().get(checkpoint, ""))
    return {name: caption for caption, name in found}


@cache
def captions() -> dict[str, str]:
    """Return {name: caption} of the pictures in ``docs/pictures``."""
    return {} if (pictures := module("pictures")) is None else pictures.CAPTIONS


def first_picture(model: str) -> tuple[str, str]:
    """Return the name and the caption of the picture with which the page of ``model`` begins."""
    name = f"first-{model}"
    if name in captions() and (ROOT / "docs" / "pictures" / f"{name}.png").is_file():
        return name, captions()[name]
    return model, pictures(model).get(model, f"What {model} makes")


def image(name: str, caption: str, width: int | None = None) -> str:
    """Return a picture with its caption below."""
    size = f"{{ width={width} }}" if width else ""
    return f"![{escaped(caption)}](picture:{name}){size}\n\n*{escaped(caption)}*"


def formulas(model: str) -> dict[str, str]:
    """Return {key: LaTeX} of the equations of ``model``."""
    return {} if (found := module("formulas")) is None else found.FORMULAS.get(model, {})


def module(name: str) -> ModuleType | None:
    """Return a module of this folder, or None if the folder does not have it."""
    return importlib.import_module(name) if (ROOT / "docs" / "make" / f"{name}.py").is_file() else None


@cache
def estimators(model: str) -> list[str]:
    """Return the names of the gradient estimators of ``model`` under all of its options."""
    if (pages := module("estimator_pages")) is None:
        return list(zoo.create(model).gradient_estimators())
    return [name for name, offers in pages.offers().items() if model in [offer.model for offer in offers]]


@cache
def pages_of_data() -> set[str]:
    """Return the paths of the pages of data."""
    return set() if (pages := module("data_pages")) is None else set(pages.pages())


# Recipes.


def _leaves(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yield (dotted key, key, value) of the settings of a mapping. Values in braces count as one setting."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, key, value


def _comment(lines: Sequence[str], first: int, last: int, indent: int) -> str:
    """Return the comment on a setting in lines ``first`` to ``last``, with comment lines above and below it."""
    found = [part for line in lines[first : last + 1] for part in re.findall(r"(?:^|\s)# ?(.*)$", line)]
    above = first - 1
    while above >= 0 and re.match(rf" {{{indent}}}# ", lines[above]):
        found.insert(0, lines[above].strip("# "))
        above -= 1
    below = last + 1
    while found and below < len(lines) and re.match(rf" {{{indent + 1},}}# ", lines[below]):
        found.append(lines[below].strip("# "))
        below += 1
    return " ".join(found)


def settings(model: str) -> list[tuple[str, str, str]]:
    """Return (key, default, comment) of each setting in the recipe of ``model``."""
    text = (ROOT / "configs" / "model" / f"{model}.yaml").read_text(encoding="utf-8")
    lines, found = text.splitlines(), []
    for name, key, value in _leaves(yaml.compose(text)):
        if name == "defaults":
            for item in yaml.safe_load(text)["defaults"]:
                for group, choice in item.items():
                    found.append((f"defaults.{group.removeprefix('override /')}", str(choice), ""))
            continue
        default = text[value.start_mark.index : value.end_mark.index].strip()
        last = max(value.start_mark.line, value.end_mark.line - (value.end_mark.column == 0))
        found.append((name, default, _comment(lines, key.start_mark.line, last, key.start_mark.column)))
    return found


def arguments(target: str) -> dict[str, str]:
    """Return the meanings of the arguments of a class, from its docstring.

    Args:
        target: ``_target_`` of a recipe, such as ``zoo.vae.VAE`` or ``zoo.callbacks.LossPerStep``.
    """
    module, _, name = target.rpartition(".")
    folder = "callbacks" if module == "zoo.callbacks" else "zoo"
    files = sorted((ROOT / folder).glob("*.py")) if folder == "callbacks" else [ROOT / f"{module.replace('.', '/')}.py"]
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                part = (ast.get_docstring(node) or "").partition("Args:\n")[2].partition("\n\n")[0]
                found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", part, re.M)
                return {key: " ".join(text.split()) for key, text in found}
    return {}


def meanings(model: str) -> dict[str, str]:
    """Return meanings of settings that the recipe of ``model`` does not comment, by key."""
    text = (ROOT / "configs" / "model" / f"{model}.yaml").read_text(encoding="utf-8")
    found = dict(SHARED)
    for name, _, value in _leaves(yaml.compose(text)):
        if name.endswith("._target_"):
            group = name.removesuffix("._target_")
            of_class = {f"{group}.{key}": meaning for key, meaning in arguments(value.value).items()}
            found = of_class | {name: "the class of the callback"} | found
    return found


def experiments(model: str) -> dict[str, str]:
    """Return {name: first paragraph of the comment} of the recipes in ``configs/experiment`` that train ``model``."""
    texts = {p.stem: p.read_text(encoding="utf-8") for p in sorted((ROOT / "configs" / "experiment").glob("*.yaml"))}

    def trained(name: str) -> str | None:
        for item in yaml.safe_load(texts[name])["defaults"]:
            if isinstance(item, str):
                return trained(item)
            if "override /model" in item:
                return item["override /model"]
        return None

    comment = re.compile(r"^# @package _global_\n((?:# .*\n)*)")
    return {
        name: " ".join(line.removeprefix("# ") for line in comment.match(text)[1].splitlines())
        for name, text in texts.items()
        if trained(name) == model
    }


# Parts of a page.


def in_a_minute(model: str) -> str:
    """Return the box with the commands, the lines of Python and the number."""
    number = reproducibility.rows_of(cards(model))[0]
    beside = {"standard error": number.number.error_text, "paper": number.published}
    listed = "; ".join(f"{name} {value}" for name, value in beside.items() if value)
    reached = f"It reaches **{number.number.text}** in {escaped(number.label)}" + (f" ({listed})." if listed else ".")
    *earlier, last = commands(model)
    trained = "".join(f"{command}  # run {k} of the pretrained checkpoint\n" for k, command in enumerate(earlier, 1))
    text = f"""```bash
zoo train model={model}  # the default settings
{trained}{last}  # the pretrained checkpoint
```

```python
import zoo
model = zoo.load("{model}")
{USES[model]}
```

{reached} [Protocol](../results.md#{model})"""
    return box("example", "In a minute", text)


def one_equation(equation: equations.Equation, formula: str | None, name: str = "") -> str:
    """Return an equation with its source, and links to its code and its tests.

    Args:
        equation: the equation.
        formula: its LaTeX, or None for the text of the header.
        name: Markdown after its key, such as an anchor.
    """
    title = f"**{code(equation.key)}**{name}" + (f" &nbsp; {inline(equation.source)}" if equation.source else "")
    shown = f"$$\n{formula.strip()}\n$$" if formula else f"```text\n{equation.text}\n```"
    places = dict.fromkeys([(equation.path, equation.line), *((path, line) for path, line, _ in equation.places)])
    names = {(path, line): name for path, line, name in equation.places}
    computed = ", ".join(source(path, line, names[path, line]) for path, line in places if path)
    checked = ", ".join(source(path, line, name) for path, line, name in equation.tests)
    links = f"- computed by {computed or 'no code yet'}\n- checked by {checked or 'no test yet'}"
    return f"{title}\n\n{shown}\n\n{links}"


def main_equation(model: str) -> str:
    """Return the box with the main equation of ``model``, and what training does with it."""
    known = {equation.key: equation for equation in equations.of(model)}
    key, role = equations.MAIN[model]
    linked = re.sub(r"`(.+?)`", lambda m: f"[{m[0]}](#eq-{slug(m[1])})" if m[1] in known else m[0], role)
    return box("abstract", "The main equation", f"{linked}\n\n{one_equation(known[key], formulas(model).get(key))}")


def equations_of(model: str) -> str:
    """Return the main equation, and then all equations with the text of the header between them."""
    known = iter(equations.of(model))
    parts = [main_equation(model), "All equations of the model, in the order of its file:"]
    for block in header.read(model).body:
        if block[0].startswith("    "):
            number = sum(1 for line in block if re.match(r" {4}\S", line))
            for _ in range(number):
                equation = next(known)
                anchor = f"{{ #eq-{slug(equation.key)} }}"
                parts.append(one_equation(equation, formulas(model).get(equation.key), anchor))
        else:
            parts.append(header.markdown(block))
    return "\n\n".join(parts)


def logged_by(model: str) -> str:
    """Return the table of logged metrics, and the text of the header about them."""
    stages = {("train", "val", "test"): "all"}
    rows = [
        (code(m.name), stages.get(m.stages, ", ".join(code(f"{stage}/") for stage in m.stages)), inline(m.meaning))
        for m in logged.of(model)
    ]
    notes = header.markdown(header.read(model).logged, ("metric", "meaning"), sentences=True)
    callbacks = "Callbacks log further metrics, such as `val/distance` and `val/log_likelihood`."
    return "\n\n".join(
        [
            "A metric is logged as `train/`, `val/` or `test/` and its name. The second column names its stages.",
            table(("metric", "stages", "meaning"), rows),
            callbacks,
            box("note", "More about these metrics", notes, folded=True),
        ]
    )


def settings_of(model: str) -> str:
    """Return the table of all settings of the recipe."""
    known = meanings(model)
    rows = []
    for name, default, comment in settings(model):
        meaning = comment or known.get(name, "")
        if name.startswith("callbacks.") and not comment:  # the page of the callback has all sentences
            meaning = header.SENTENCE_END.split(meaning)[0]
        key = name.removeprefix("defaults.") if name.startswith("defaults.") else name
        rows.append((code(key), code(default), inline(meaning)))
    path = f"configs/model/{model}.yaml"
    return "\n\n".join(
        [
            f"Every setting is a key on the command line: `zoo train model={model} model.KEY=VALUE`. The recipe is "
            f"[`{path}`](repo:{path}).",
            box("note", f"All {len(rows)} settings", table(("setting", "default", "meaning"), rows), folded=True),
        ]
    )


def experiments_of(model: str) -> str:
    """Return the table of the recipes of ``model`` in ``configs/experiment``."""
    rows = [
        (f"[`{name}`](repo:configs/experiment/{name}.yaml)", inline(comment))
        for name, comment in experiments(model).items()
    ]
    if not rows:
        return "There are no other recipes of this model."
    first = next(iter(experiments(model)))
    text = f"An experiment is a recipe for a variant: `zoo train experiment={first}`."
    return text + "\n\n" + table(("recipe", "what it is"), rows)


def number_text(value: float) -> str:
    """Return a number of a card with six significant digits."""
    return f"{value:.6g}"


def all_metrics(card: dict[str, Any]) -> str:
    """Return the table of all metrics on a card, with errors and numbers of examples."""
    metrics, errors, counts = card["metrics"], card.get("errors") or {}, card.get("counts") or {}
    known = {error_name(name) for name in metrics}
    rows = []
    for name, value in metrics.items():
        if name in known:
            continue
        error = metrics.get(error_name(name), errors.get(name))
        cells = (
            number_text(value),
            "" if error is None else number_text(error),
            f"{counts[name]:,}" if name in counts else "",
        )
        rows.append((code(name), *cells))
    return table(("metric", "value", "standard error", "examples"), rows)


def facts(name: str, card: dict[str, Any]) -> str:
    """Return the table of what is known about a checkpoint besides its metrics."""
    likelihood, bound, samples = (card.get(key) or {} for key in ("log_likelihood", "bound", "samples"))
    size = (ROOT / "zoo" / "weights" / f"{name}.safetensors").stat().st_size
    commands = [part["command"] for part in (*card.get("earlier", []), card)]
    place = f"data/{card['data']}.md"
    data = f"[{code(card['data'])}](../{place})" if place in pages_of_data() else code(card["data"])
    rows = [
        ("data", data),
        ("licence of the data", DATA.get(card["data"], "none: the data are drawn from a formula")),
        ("trained on", code(card["train_on"]) if card.get("train_on") else ""),
        ("parameters", f"{card['parameters']:,}" if card.get("parameters") else ""),
        ("file", f"{code(f'{name}.safetensors')}, {size / 1e6:.1f} MB, {card.get('stored_as') or 'float32'}"),
        ("seed", str(card["seed"])),
        ("epochs, steps", f"{card['epochs']:,}, {card['steps']:,}"),
        ("seconds of training", f"{card['seconds']:,.0f}"),
        ("hardware", escaped(card["hardware"])),
        ("commit", code(card["commit"]) if card.get("commit") else ""),
        ("importance samples", f"{likelihood['num_samples']:,}" if likelihood.get("num_samples") else ""),
        ("images of the bound", f"{bound['images']:,}" if bound.get("images") else ""),
        ("samples", f"{samples['n']:,}" if samples.get("n") else ""),
        *(("command" if i == len(commands) else "earlier command", code(c)) for i, c in enumerate(commands, start=1)),
        ("protocol", inline(card["protocol"])),
    ]
    return table(("what", "value"), [row for row in rows if row[1]])


def checkpoint(name: str, card: dict[str, Any], shown: set[str]) -> str:
    """Return the numbers, facts and pictures of one checkpoint. ``shown`` are pictures that the page has already."""
    numbers = reproducibility.checkpoint_table(name, {name: card})
    cells = [[escaped(cell) for cell in row] for row in numbers.rows]
    parts = [
        f"### {name}",
        f'Load it with `zoo.load("{name}")`. [Protocol and discussion](../results.md#{name})',
        in_markdown(Table(numbers.columns, cells)),
        box("note", f"Command, seed, hardware and size of {name}", facts(name, card), folded=True),
        box("note", f"All metrics on the card of {name}", all_metrics(card), folded=True),
    ]
    parts += [image(picture, caption) for picture, caption in pictures(name).items() if picture not in shown]
    return "\n\n".join(parts)


def pictures_of(model: str, shown: set[str]) -> str:
    """Return the pictures of ``model`` in ``docs/pictures`` that the page does not have yet."""
    found = [
        image(name, caption)
        for name, caption in captions().items()
        if model in (*name.split("-"), IDEAS.get(name))
        and name not in shown
        and (ROOT / "docs" / "pictures" / f"{name}.png").is_file()
    ]
    return "\n\n".join(found)


def estimators_of(model: str) -> str:
    """Return links to the pages of the gradient estimators of ``model``."""
    names = estimators(model)
    text = "Each name leads to a page about the estimator. Some of them need other settings than the default."
    return f"{text}\n\n" + "\n".join(f"- [`{name}`](../estimators/{slug(name)}.md)" for name in names)


def page(model: str) -> str:
    """Return the page of ``model``."""
    head, picture, strip = header.read(model), first_picture(model), f"training-{model}"
    shown = {picture[0], strip}
    boxes = "\n\n".join(checkpoint(name, card, shown) for name, card in cards(model).items())
    more = pictures_of(model, shown)
    path = f"zoo/{model}.py"
    parts = [
        f"# {head.name}: {METRICS[model].paper}",
        f"{inline(head.sentence)} The file is [`{path}`](repo:{path}).",
        image(*picture),
        in_a_minute(model),
        *(("## Over training", image(strip, captions()[strip])) if strip in captions() else ()),
        "## Equations",
        equations_of(model),
        "## Symbols",
        header.markdown(head.symbols, sentences=True),
        "## Logged metrics",
        logged_by(model),
        "## Settings",
        settings_of(model),
        "## Experiments",
        experiments_of(model),
        "## Checkpoints",
        boxes,
        "## Differs from the paper",
        header.markdown(head.differs),
        "## Gradient estimators",
        estimators_of(model),
        *(("## Pictures", more) if more else ()),
        "## Reference",
        header.markdown(head.papers),
    ]
    return "\n\n".join(parts) + "\n"


def index() -> str:
    """Return the page that lists the models."""
    cells = []
    for model in equations.MODELS:
        head, (picture, caption) = header.read(model), first_picture(model)
        number = reproducibility.rows_of(cards(model))[0]
        link = f"[![{escaped(caption)}](picture:{picture})]({model}.md)"
        about = f"{inline(head.sentence.partition('. ')[0].rstrip('.'))}. {METRICS[model].paper}."
        label = escaped(number.label)
        reached = f"{label[0].upper()}{label[1:]}: [{number.number.text}](../results.md#{model})"
        cells.append(
            f"-   **[{escaped(head.name)}]({model}.md)**\n\n{indented(f'{link}{chr(10) * 2}{about} {reached}')}"
        )
    listed = "\n\n".join(cells)
    return (
        "# Models\n\nTen generative models. Each page has the equations, with links to the line that computes each of "
        "them and to the test that checks it. It also has the settings, the checkpoints and their numbers.\n\n"
        f'<div class="grid cards" markdown>\n\n{listed}\n\n</div>\n'
    )


def pages() -> dict[str, str]:
    """Return the Markdown of all pages, by their path in the site."""
    return {"models/index.md": index()} | {f"models/{model}.md": page(model) for model in equations.MODELS}
