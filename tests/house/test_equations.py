"""Tests of the pages of the models: each equation has a line and an oracle, and nothing is missing on a page."""

import contextlib
import io
import json
import re
import shlex
import shutil
import sys
from functools import cache

import lightning as L
import pytest
import yaml
from helpers import TINY, config, model_of, tiers
from processes import ROOT
from short_runs import EXPERIMENTS, OPTIONS

import zoo
from zoo.commands.training import build
from zoo.evaluation.published import PUBLISHED, numbers_of
from zoo.training.trainer import quiet_lightning

sys.path.append(str(ROOT / "docs" / "make"))

import equations
import logged
import model_pages

# Equations.


def test_the_pages_are_those_of_all_models():
    assert sorted(equations.MODELS) == zoo.list_models() == sorted(logged.LOGGED) == sorted(model_pages.USES)


@pytest.mark.parametrize("model", equations.MODELS)
def test_every_equation_has_a_line_and_an_oracle(model):
    found = equations.of(model)
    assert len(found) >= 3
    assert {equation.key: equation.missing for equation in found if equation.missing} == {}
    for equation in found:
        for path, line, _ in [(equation.path, equation.line, ""), *equation.places, *equation.tests]:
            assert (ROOT / path).read_text(encoding="utf-8").splitlines()[line - 1].strip(), (equation.key, path, line)


def test_every_mark_names_an_equation():
    assert equations.strays() == []


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the files that ``equations`` reads."""
    for folder in ("zoo", "zoo/functional", "zoo/nets", "zoo/estimators", "tests/models", "tests/functional"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for file in (ROOT / folder).glob("*.py"):
            shutil.copy(file, tmp_path / folder)
    return tmp_path


def replace(root, file, before, after):
    text = (root / file).read_text(encoding="utf-8")
    assert before in text
    (root / file).write_text(text.replace(before, after), encoding="utf-8")


def missing(root, model):
    return {equation.key: equation.missing for equation in equations.of(model, root) if equation.missing}


MARK = '@pytest.mark.equation("cvae", "L(x, y)")\n'
NO_LINE = {"L(x, y)": ["code and line"]}
REMOVED = [
    ("tests/models/test_cvae.py", MARK, "", {"L(x, y)": ["test"]}),
    ("tests/models/test_cvae.py", MARK, MARK.replace("L(x, y)", "L(x)"), {"L(x, y)": ["test"]}),
    ("zoo/cvae.py", "negative_elbo\n\nSymbols:", "\n\nSymbols:", NO_LINE),
    ("zoo/cvae.py", "    def prior(self", "    def prior_of(self", {"p(z | y)": ["code and line"]}),
]


@pytest.mark.parametrize(("file", "before", "after", "lacks"), REMOVED)
def test_a_mark_or_a_line_that_is_removed_is_missing(file, before, after, lacks, copy):
    assert missing(ROOT, "cvae") == {}
    replace(copy, file, before, after)
    assert missing(copy, "cvae") == lacks


def test_a_mark_with_an_unknown_key_is_found(copy):
    replace(copy, "tests/models/test_cvae.py", MARK, MARK.replace("L(x, y)", "L(x)"))
    assert [mark[:2] for mark in equations.strays(copy)] == [("cvae", "L(x)")]


def test_a_new_equation_without_a_test_is_missing(copy):
    replace(copy, "zoo/vae.py", "    sleep     draw", "    dream     x ~ p(x)    sleep\n    sleep     draw")
    assert missing(copy, "vae") == {"dream": ["test"]}


def test_equal_keys_and_ambiguous_names_are_errors(copy):
    replace(copy, "zoo/rbm.py", "E_gauss(v, h)", "E(v, h)")
    with pytest.raises(equations.EquationError, match="two equations have the key 'E\\(v, h\\)'; change one left side"):
        equations.of("rbm", copy)
    replace(copy, "zoo/vade.py", " mixture.log_importance_weight", "         log_importance_weight")
    expected = "'log_importance_weight' is in zoo/functional/importance.py, zoo/functional/mixture.py; put the name"
    with pytest.raises(equations.EquationError, match=expected):
        equations.of("vade", copy)


FUNCTION = '''"""A model.

    a    = b + c    code
    b    = 2 c
           if c > 0    Model.method
    wake    draw x ~ p    code

Symbols: c is a number.
    d    = not an equation
"""


# a: this comment names no line
def code(c):
    if c:
        return 1
    # wake, on the next line
    draw = c
    other = c  # a
    return other


class Model:
    def method(self):
        if self:
            return 0
        return 2
'''


def test_lines_are_those_of_comments_or_the_last_return(tmp_path):
    (tmp_path / "zoo").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "zoo" / "small.py").write_text(FUNCTION, encoding="utf-8")
    found = equations.of("small", tmp_path)
    assert [equation.key for equation in found] == ["a", "b", "wake"]
    assert [equation.text for equation in found] == ["a = b + c", "b = 2 c if c > 0", "draw x ~ p"]
    lines = [FUNCTION.splitlines()[equation.line - 1].strip() for equation in found]
    assert lines == ["other = c  # a", "return 2", "draw = c"]
    assert all(equation.path.endswith("small.py") and equation.missing == ["test"] for equation in found)


# Pages.


@pytest.fixture(scope="module")
def pages():
    """Return the pages of all models, {model: Markdown}."""
    return {model: model_pages.page(model) for model in equations.MODELS}


def plain(text):
    """Return Markdown with characters in place of their entities."""
    for character, entity in model_pages.header.SPECIAL.items():
        text = text.replace(entity, character)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").replace("<code>", "`").replace(
        "</code>", "`"
    )  # fmt: skip


def keys(node, prefix=""):
    """Return the dotted keys of a recipe. Its samples have conditions, which are one key."""
    found = []
    for key, value in node.items():
        inner = isinstance(value, dict) and key != "conditions"
        found += keys(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]
    return found


def recipe(model):
    return yaml.safe_load((ROOT / "configs" / "model" / f"{model}.yaml").read_text(encoding="utf-8"))


def cards(model):
    files = sorted((ROOT / "zoo" / "weights").glob("*.json"))
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    return {name: card for name, card in found.items() if card["model"] == model}


@cache
def targets():
    """Return the class of the model of each experiment, {experiment: class}."""
    names = sorted(file.stem for file in (ROOT / "configs" / "experiment").glob("*.yaml"))
    return {name: config("/nowhere", f"experiment={name}").model._target_ for name in names}


def experiments(model):
    return [name for name, target in targets().items() if target == zoo.MODELS[model]]


@cache
def expected(model):
    """Return the pieces of text that the page of a model must have, by kind."""
    pieces = {
        "equation": [f"**`{equation.key}`**" for equation in equations.of(model)],
        "line": [f"(repo:{e.path}#L{e.line})" for e in equations.of(model) if e.line],
        "test": [f"[`{name}`](repo:{path}#L{line})" for e in equations.of(model) for path, line, name in e.tests],
        "setting": [f"| `{key}` |" for key in keys(recipe(model)) if key != "defaults"],
        "checkpoint": [f"### {name}\n" for name in cards(model)],
        "metric of a card": [f"| `{key}` |" for card in cards(model).values() for key in card["metrics"]],
        "command": [f"`{card['command']}`" for card in cards(model).values()],
        "experiment": [f"[`{name}`](repo:configs/experiment/{name}.yaml)" for name in experiments(model)],
        "estimator": [f"[`{name}`](../estimators/" for name in zoo.create(model).gradient_estimators()],
    }
    error = re.compile(r"(\w)_error\b")
    of_cards = {key for card in cards(model).values() for key in card["metrics"]}
    errors = {f"| `{key}` |" for key in of_cards if error.sub(r"\1", key) in of_cards - {key}}  # in another column
    return pieces | {"metric of a card": [p for p in pieces["metric of a card"] if p not in errors]}


def lacking(model, text):
    """Return the kinds of pieces that a page lacks, with the pieces."""
    text = plain(text)
    return [(kind, piece) for kind, found in expected(model).items() for piece in found if piece not in text]


@pytest.mark.parametrize("model", equations.MODELS)
def test_a_page_has_all_equations_settings_checkpoints_and_experiments(model, pages):
    assert lacking(model, pages[model]) == []


KINDS = ("equation", "line", "test", "setting", "checkpoint", "metric of a card", "command", "experiment", "estimator")


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_that_is_removed_from_a_page_is_missed(kind, pages):
    text = plain(pages["rbm"])
    piece = expected("rbm")[kind][-1]
    assert tuple(expected("rbm")) == KINDS
    assert (kind, piece) in lacking("rbm", text.replace(piece, ""))


def on_the_page(text):
    """Return ``stage/name`` of the metrics in the table of logged metrics of a page."""
    part = plain(text).partition("## Logged metrics\n")[2].partition("???")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", part, re.M)
    stages = {"all": "`train/`, `val/`, `test/`"}
    return {f"{stage}/{name}" for name, of in rows for stage in re.findall(r"`(\w+)/`", stages.get(of, of))}


@cache
def metrics_of_a_run(*overrides):
    """Return the names of the metrics that a model logs in two short epochs and a test, without callbacks."""
    quiet_lightning()
    cfg = config("/nowhere", *overrides)
    data, model, names = build(cfg.data), model_of(cfg), set()
    log = model.log

    def record(name, *args, **kwargs):
        names.add(name)
        log(name, *args, **kwargs)

    model.log = record
    limits = {f"limit_{stage}_batches": 1 for stage in ("val", "test")}
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, limit_train_batches=2, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **limits,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    return names


@pytest.mark.parametrize("model", equations.MODELS)
def test_each_page_begins_its_equations_with_the_main_one(model, pages):
    known = [equation.key for equation in equations.of(model)]
    key, role = equations.MAIN[model]
    assert key in known
    section = plain(pages[model]).partition("## Equations\n")[2]
    assert section.startswith('\n!!! abstract "The main equation"\n')
    box = re.match(r"(?:\n|!!! .*\n| {4}.*\n)+", section)[0]
    assert f"**`{key}`**" in box and re.sub(r"[\[\]]|\(#.*?\)", "", box).count(role) == 1
    (main,) = (equation for equation in equations.of(model) if equation.key == key)
    assert all(f"(repo:{path}#L{line})" in box for path, line, _ in [(main.path, main.line, ""), *main.tests])
    for span in re.findall(r"`(.+?)`", role):
        name, colon, value = span.partition(": ")
        assert recipe(model)["model"][name] == value if colon else span in known or "=" in span, span
        assert span not in known or f"[`{span}`](#eq-{model_pages.slug(span)})" in box
    assert f"{{ #eq-{model_pages.slug(key)} }}" not in box  # the anchor is that of the equation in the list below


def test_every_model_has_a_main_equation():
    assert list(equations.MAIN) == list(equations.MODELS)


def computed_in_training(*overrides):
    """Return the (path, line) of the lines of code of equations that two short epochs of training execute."""
    quiet_lightning()
    cfg = config("/nowhere", *overrides)
    data, model, found = build(cfg.data), model_of(cfg), set()
    files = {str(ROOT / e.path): e.path for name in equations.MODELS for e in equations.of(name)}
    inner = lambda frame, event, _: found.add((files[frame.f_code.co_filename], frame.f_lineno)) or inner  # noqa: E731
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, limit_train_batches=2, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: inner if frame.f_code.co_filename in files else None)
    try:
        trainer.fit(model, datamodule=data)
    finally:
        sys.settrace(before)
    return found


@pytest.mark.parametrize("model", tiers(equations.MODELS, ("vae", "rbm", "skipgram")))
def test_training_computes_the_main_equation(model):
    found = computed_in_training(*TINY[model])
    computed = {
        equation.key
        for equation in equations.of(model)
        if found & {(path, line) for path, line, _ in [(equation.path, equation.line, ""), *equation.places]}
    }
    assert equations.MAIN[model][0] in computed
    others = {"vae": "wake", "rbm": "exact", "skipgram": "softmax", "wgan": "clip", "vade": "marginal"}
    assert others.get(model) not in computed  # training with the recipe does not compute every equation


FEW = ["model.ais_temperatures=5", "model.test_ais_temperatures=5", "model.ais_chains=5"]
# Runs with options that log more metrics.
FURTHER = {
    "vae": [
        OPTIONS["vae-relax"],
        OPTIONS["vae-logistic"],
        [*TINY["vae"], "model.latent=bernoulli", "model.estimator=score_function+nvil"],
        [*TINY["vae"], "model.objective=wake_sleep"],
    ],
    "cvae": [[*TINY["cvae"], "model.likelihood=discretised_logistic"]],
    "vade": [[*TINY["vade"], "model.likelihood=discretised_logistic"]],
    "gan": [["experiment=gan_discrete", *EXPERIMENTS["gan_discrete"]]],
    "rbm": [
        [*TINY["rbm"], *FEW, "model.num_hidden=17"],
        [*OPTIONS["rbm-gaussian"], *FEW, "model.num_hidden=17"],
    ],
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|have no `val_dataloader`|does not have a|GPU available)"
)


@pytest.mark.parametrize("model", tiers(equations.MODELS, ("vae", "rbm", "skipgram")))
def test_every_metric_of_a_short_run_is_on_the_page(model, pages):
    found = metrics_of_a_run(*TINY[model])
    assert found
    assert found <= on_the_page(pages[model])
    row = re.search(r"^\| `loss` \| .*\n|^\| `generator_loss` \| .*\n", pages[model], re.M)[0]
    assert not found <= on_the_page(pages[model].replace(row, ""))


@pytest.mark.slow
@pytest.mark.parametrize("model", equations.MODELS)
def test_every_metric_on_the_page_is_logged_by_a_run(model, pages):
    found = set().union(*(metrics_of_a_run(*run) for run in (TINY[model], *FURTHER.get(model, []))))
    assert found == on_the_page(pages[model])


# Numbers.


def unsourced(model, text):
    """Return the numbers in tables of metrics, and the number in the box, that no card or paper has."""
    known = [paper.value for name in cards(model) for paper in PUBLISHED.get(name, {}).values()]
    for card in cards(model).values():
        known += [n for key in ("metrics", "errors", "counts") for n in (card.get(key) or {}).values()]
        known += [n for number in numbers_of(card) for n in (number.value, number.error) if n is not None]
    known += [factor * n for n in known for factor in (-1, 100)]
    tables = re.findall(r"^ *\| metric \| (?:ours|value)\b.*\n(?:.*\|.*\n)*", text, re.M)
    cells = [cell for table in tables for row in table.splitlines()[2:] for cell in row.strip().split(" | ")[1:]]
    cells += re.findall(r"It reaches \*\*(.*?)\*\*", text) + re.findall(r"\((standard error .*|paper .*)\)\. \[", text)
    found = [n for cell in cells for n in re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?", cell)]
    assert found

    def shown(number):
        digits = number.partition(".")[2]
        if "e" in number:
            return any(f"{n:.6g}" == number for n in known)
        return any(f"{n:.{len(digits)}f}" == number.replace(",", "") for n in known)

    return [number for number in found if not shown(number)]


@pytest.mark.parametrize("model", equations.MODELS)
def test_every_number_comes_from_a_card_or_a_paper(model, pages):
    assert unsourced(model, pages[model]) == []


def test_a_digit_that_changes_is_found(pages):
    for before in re.findall(r"^\| test (?:log p\(x\)|bound), nats \| (-\d+\.\d+)", pages["vae"], re.M):
        after = before[:-1] + str((int(before[-1]) + 5) % 10)
        assert unsourced("vae", pages["vae"].replace(f"| {before} |", f"| {after} |")) == [after]
    box = re.search(r"It reaches \*\*(.*?)\*\*", pages["vae"])[1]
    assert unsourced("vae", pages["vae"].replace(f"**{box}**", "**-12.34**")) == ["-12.34"]


# What a reader types.


@pytest.mark.parametrize("model", tiers(equations.MODELS, ("vae", "skipgram")))
def test_the_lines_of_python_run(model, pages):
    block = re.search(r"^    ```python\n(.*?)^    ```", pages[model], re.M | re.S)[1]
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec("\n".join(line.strip() for line in block.splitlines()), found)  # the lines of the page
    if shape := re.search(r"# \(([\d, ]+)\)", block):
        assert tuple(found["images"].shape) == tuple(map(int, shape[1].split(", ")))
    elif model == "skipgram":
        assert len(found["words"]) == 5
    else:
        assert found["images"].shape[1:] == (1, 28, 28)


def test_the_commands_train_the_model(pages):
    for model, text in pages.items():
        command = re.search(r"\n    python train.py (.*)  # the pretrained checkpoint\n", text)[1]
        assert config("/nowhere", *shlex.split(command)).model._target_ == zoo.MODELS[model]


@pytest.mark.parametrize("model", equations.MODELS)
def test_links_lead_to_files_and_pictures(model, pages):
    for path, line in re.findall(r"\(repo:([^)#]+)(?:#L(\d+))?\)", pages[model]):
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        assert not line or int(line) <= len(lines)
    for name in re.findall(r"\(picture:([\w-]+)\)", pages[model] + model_pages.index()):
        assert any((ROOT / folder / f"{name}.png").is_file() for folder in ("docs/pictures", "zoo/weights")), name
    for name in re.findall(r"\]\(\.\./results\.md#([\w-]+)\)", pages[model]):
        assert f"\n## {name}\n" in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_headers_are_text_and_not_markdown():
    header = model_pages.header
    assert header.inline("a_b * [c] <d> $e$ f|g") == ("`a_b` &#42; &#91;c&#93; &lt;d&gt; &#36;e&#36; f&#124;g")
    assert header.inline("``x`` in zoo/vae.py, [DSL 12.1]") == (
        "`x` in [`zoo/vae.py`](repo:zoo/vae.py), [&#91;DSL 12.1&#93;](../references.md)"
    )
    assert header.code("p(x | z)") == "<code>p(x &#124; z)</code>"
    rows = ["    x        points (B, D),", "             scaled", "    v_c, u   vectors"]
    assert header.rows(rows) == [("x", "points (B, D), scaled"), ("v_c, u", "vectors")]
