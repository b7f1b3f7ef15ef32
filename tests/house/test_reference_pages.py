"""Tests of the generated pages of estimators, callbacks and data. The pages are complete, and agree with code and data.

The scripts in docs/make read docstrings, recipes and results files. These tests read them in other ways: by the csv and
yaml modules, by ast, and by models, callbacks and data modules.
"""

import ast
import csv
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import config, tiers
from hydra.utils import instantiate
from omegaconf import OmegaConf

import zoo
import zoo.callbacks
from zoo.commands.parser import parser
from zoo.datamodules import colour, images
from zoo.datamodules.images import load_split
from zoo.datamodules.toy import Toy
from zoo.estimators import by_name
from zoo.functional.diffusion import TIMESTEPS
from zoo.functional.diffusion_bound import drawn_forms
from zoo.functional.latents import Bernoulli, Gaussian
from zoo.gan import GENERATOR_LOSSES
from zoo.skipgram import OBJECTIVES

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "make"))
sys.path.insert(1, str(ROOT / "tests"))

import callback_pages  # noqa: E402
import data_pages  # noqa: E402
import estimator_pages  # noqa: E402
import prose  # noqa: E402
import reference  # noqa: E402

NAMES = sorted(estimator_pages.texts())
CALLBACKS = sorted(zoo.callbacks.__all__)
DATA = sorted(file.stem for file in (ROOT / "configs" / "data").glob("*.yaml"))
RECIPES = sorted(file.stem for file in (ROOT / "configs" / "callbacks").glob("*.yaml"))
TRAINED = [(name, model) for name in NAMES for model in estimator_pages.texts()[name].get("train", {})]


@pytest.fixture(scope="module")
def pages():
    return estimator_pages.pages() | callback_pages.pages() | data_pages.pages()


def tables(text):
    """Return the tables of a page as lists of rows of cells. A bar within a cell is escaped."""
    found, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            found, rows = [*found, rows[:1] + rows[2:]], []
    return found


def section(text, title):
    """Return the section of a page with a title."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL).group(1)


# All pages.


def test_pages_have_one_title_narrow_tables_and_plain_sentences(pages):
    problems = []
    for path, text in pages.items():
        without_code = re.sub(r"^```.*?^```|^\$\$.*?^\$\$", "", text, flags=re.MULTILINE | re.DOTALL)
        assert re.findall(r"^# .*", without_code, re.MULTILINE) == [text.splitlines()[0]], path
        for rows in tables(text):
            assert 2 <= len(rows[0]) <= 5 and {len(row) for row in rows} == {len(rows[0])}, path
        problems += prose.findings(Path(path), list(prose.markdown(without_code)))[1]
    assert not problems


def test_links_lead_to_lines_of_code_to_tests_and_to_pages(pages):
    hand_written = {file.name for file in (ROOT / "docs").glob("*.md")}
    for path, text in pages.items():
        for label, target in re.findall(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", text):
            place, _, anchor = target.partition("#")
            if place.startswith("repo:"):
                file = ROOT / place.removeprefix("repo:")
                assert file.is_file(), (path, target)
                if anchor:
                    line = file.read_text(encoding="utf-8").splitlines()[int(anchor.removeprefix("L")) - 1]
                    name = re.match(r"`([\w.]+)`", label).group(1)
                    if name.startswith("test_"):
                        assert line.startswith(f"def {name}("), (path, target)
                    else:
                        assert line.strip() and not line.strip().startswith("#"), (path, target)
            elif place.startswith("picture:"):
                stem = place.removeprefix("picture:")
                found = [ROOT / "docs" / "pictures" / f"{stem}.png", ROOT / "zoo" / "weights" / f"{stem}.png"]
                assert any(file.is_file() for file in found), (path, target)
            elif place:
                folder, name = (Path(path).parent / place).parts[-2:]
                if (Path(path).parent / place).parts[-2:-1] == ("..",):
                    continue_to = name in hand_written or name in ("variance.md", "own_text.md")
                    assert continue_to, (path, target)
                elif folder == "models":
                    assert name.removesuffix(".md") in zoo.MODELS, (path, target)
                else:
                    assert f"{folder}/{name}" in pages, (path, target)
            else:
                assert f"## {anchor}\n" in text, (path, target)


def test_a_place_that_does_not_exist_is_named():
    for spec, message in {
        "zoo/no_such_file.txt::f": "no file zoo/no_such_file.txt",
        "zoo/vae.py::no_such_function": "defines no no_such_function",
        "zoo/vae.py::wake | no such text": "no line of wake contains",
    }.items():
        with pytest.raises(reference.NotFound, match=message):
            reference.place(spec)
    path, line = reference.place("zoo/vae.py::wake")
    assert (ROOT / path).read_text(encoding="utf-8").splitlines()[line - 1] == "    return -log_px(x, z.detach())"


# Estimators.


def test_every_estimator_of_every_model_has_a_page(pages):
    offered = estimator_pages.offers()
    assert set(offered) == set(NAMES)
    assert len({estimator_pages.slug(name) for name in NAMES}) == len(NAMES)
    for name in NAMES:
        slug = estimator_pages.slug(name)
        assert re.fullmatch(r"[a-z0-9-]+", slug) and f"]({slug}.md)" in pages["estimators/index.md"]
        shown = {row[0] for row in tables(section(pages[f"estimators/{slug}.md"], "Models"))[0][1:]}
        assert shown == {f"[{offer.model}](../models/{offer.model}.md)" for offer in offered[name]}


def test_no_option_of_a_model_is_forgotten():
    """The names that the code lists are among the pages, and so are those of models with default options."""
    known = {name for names in by_name.ESTIMATORS.values() for name in names} | {"wake_sleep"}
    known |= {*TIMESTEPS, *drawn_forms(20), *GENERATOR_LOSSES, *({*OBJECTIVES} - {"nce"})}
    for model in zoo.MODELS:
        known |= set(estimator_pages.kind(model)(**estimator_pages.SMALL[model]).gradient_estimators())
    assert known <= set(NAMES)


def trains(model):
    """Return the names of the estimators that train a model, from its settings."""
    h = model.hparams
    return {
        "VAE": lambda: {model.estimator},
        "CVAE": lambda: {"pathwise"},
        "VaDE": lambda: {"mean_field"},
        "RBM": lambda: {f"cd-{h.k}" if h.learning == "cd" else h.learning},
        "GAN": lambda: {h.generator_loss, "discriminator"},
        "WGAN": lambda: {"generator", "critic"},
        "InfoGAN": lambda: {"generator", "discriminator"},
        "DDPM": lambda: {h.timesteps},
        "Score": lambda: {"sliced_reduced" if h.objective == "sliced" and h.variance_reduced else h.objective},
        "SkipGram": lambda: {f"nce_{h.num_noise}" if h.objective == "nce" else h.objective},
    }[type(model).__name__]()


@pytest.mark.parametrize(("name", "model"), TRAINED)
def test_the_command_trains_with_the_estimator(name, model):
    words = shlex.split(estimator_pages.texts()[name]["train"][model])
    cfg = OmegaConf.to_container(config("/nowhere", *words).model)
    cfg |= {"shape": [1, 28, 28]} if cfg.get("shape") == "auto" else {}
    cfg |= {"num_classes": 10} if cfg.get("num_classes") == "auto" else {}
    built = instantiate(cfg, _convert_="all")
    assert zoo.MODELS[model].rpartition(".")[2] == type(built).__name__
    assert name in trains(built) and name in built.gradient_estimators()


def test_estimators_that_no_option_trains_with():
    untrained = {name for name in NAMES if "train" not in estimator_pages.texts()[name]}
    assert untrained == {"exact_samples", "bound", *drawn_forms(20)}


@pytest.mark.parametrize("name", [n for n in NAMES if "evaluations" in estimator_pages.texts()[n]])
def test_evaluations_of_the_cost_are_counted(name, generator):
    """One estimate evaluates f at as many z as the page says, for the fewest draws that the estimator can have."""
    B, D, counted = 2, 4, []

    def f(z):
        counted.append(z.reshape(-1, B, D).shape[0])
        return z.square().sum(-1)

    gaussian = name.startswith("pathwise")
    q = Gaussian(torch.zeros(B, D), torch.zeros(B, D)) if gaussian else Bernoulli(torch.zeros(B, D))
    draw = lambda n: (torch.randn if gaussian else torch.rand)(n, B, D, generator=generator)  # noqa: E731
    noise = by_name.draw_noise(name, draw, 1)
    by_name.surrogate(name, f, q, noise, control=lambda s: f(q.soften(s, 1.0)))
    said = estimator_pages.texts()[name]["evaluations"]
    assert sum(counted) == (D + 1 if said == "D + 1" else said)


FILES = sorted((ROOT / "docs" / "results").glob("estimators-*.csv"))


def rows_of(file):
    """Return the rows of a results file, with the header first."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return list(csv.reader(line for line in lines if not line.startswith("#")))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_numbers_are_those_of_the_results_files(file, pages):
    """The page of each estimator of the file has the whole table. Its row is bold, and no number differs."""
    header, *rows = rows_of(file)
    for row in rows:
        (name,) = [n for n in NAMES if re.search(rf"`(?:model\.objective=)?{re.escape(n)}`", row[0])]
        text = section(pages[f"estimators/{estimator_pages.slug(name)}.md"], "Variance and cost")
        (shown,) = [table for table in tables(text) if table[0] == header]
        plain = [[re.sub(r"(?<=\d),(?=\d{3})", "", cell).replace("**", "") for cell in line] for line in shown[1:]]
        assert plain == [[re.sub(r"(?<=\d),(?=\d{3})", "", cell) for cell in line] for line in rows]
        bold = [line for line in shown[1:] if line[0].startswith("**")]
        assert [line[0].strip("*") for line in bold] == [row[0]]
        assert f"(repo:docs/results/{file.name})" in text


def test_no_number_has_another_source(pages):
    """Numbers in the section on variance are those of the results file, of its command, or of the code."""
    for name in NAMES:
        text = section(pages[f"estimators/{estimator_pages.slug(name)}.md"], "Variance and cost")
        named = [file.read_text(encoding="utf-8") for file in FILES if f"repo:docs/results/{file.name}" in text]
        allowed = {"64", "256", "0", str(estimator_pages.texts()[name].get("evaluations"))}
        allowed |= set(re.findall(r"\d[\d.e]*", " ".join(named)))
        prose_and_tables = re.sub(r"`[^`]*`|\([^)]*\)|```.*?```", "", text, flags=re.DOTALL)
        for number in re.findall(r"\d[\d.,e]*", prose_and_tables):
            plain = number.replace(",", "").rstrip(".")
            assert plain in allowed or estimator_pages.texts()[name].get("evaluations") == "D + 1", (name, number)


def test_the_defaults_of_compare_are_those_of_its_help(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["compare", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    draws, size = estimator_pages.DEFAULTS["draws"], estimator_pages.DEFAULTS["batch_size"]
    assert f"(default: {draws}; for toy" in said and f"(default: {size} images" in said


@pytest.mark.parametrize("name", [n for n in NAMES if "compare" in estimator_pages.texts()[n]])
def test_commands_that_measure_name_estimators_of_one_model(name):
    args = parser().parse_args(["compare", *shlex.split(estimator_pages.texts()[name]["compare"])])
    asked = args.estimators.split(",")
    assert name in asked
    if args.source == "RUN":
        common = set.intersection(*({o.model for o in estimator_pages.offers()[n]} for n in asked))
        assert common
    else:
        assert set(asked) <= set(zoo.load(args.source).gradient_estimators())


# Callbacks.


def of_callback(name, pages):
    return pages[f"callbacks/{callback_pages.slug(name)}.md"]


def test_every_callback_and_every_recipe_of_callbacks_has_its_place(pages):
    assert set(callback_pages.texts()) == set(CALLBACKS)
    assert len({callback_pages.slug(name) for name in CALLBACKS}) == len(CALLBACKS)
    for name in CALLBACKS:
        assert of_callback(name, pages).startswith(f"# {name}\n")
        assert f"]({callback_pages.slug(name)}.md)" in pages["callbacks/index.md"]
    assert re.findall(r"^## (\w+)", pages["callbacks/recipes.md"], re.MULTILINE) == RECIPES


@pytest.mark.parametrize("name", CALLBACKS)
def test_every_argument_has_a_row_with_its_default_and_meaning(name, pages):
    parameters = dict(list(inspect.signature(getattr(zoo.callbacks, name).__init__).parameters.items())[1:])
    rows = {row[0].strip("`"): row[1:] for row in tables(section(of_callback(name, pages), "Arguments"))[0][1:]}
    assert list(rows) == list(parameters)
    for argument, (kind, default, meaning) in rows.items():
        given = parameters[argument].default
        assert default == ("required" if given is inspect.Parameter.empty else f"`{given!r}`")
        assert kind.strip("`") and len(meaning.split()) >= 2, argument


# Modules that log for a callback, besides its own.
HELPERS = {"EstimatorVariance": ["measurement"], "Samples": ["grids"]}
PLACES = {"log": 0, "log_table": 0, "log_picture": 1, "write_grid": 3}  # the argument with the name


def logged(path):
    """Yield a pattern for each name that a module logs, from its calls, and from keys of dicts named ``found``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            arguments = node.args[PLACES[called] :][:1] if called in PLACES else []
            if called == "log_metrics" and node.args and isinstance(node.args[0], ast.Dict):
                arguments = node.args[0].keys
            yield from (pattern for argument in arguments if (pattern := pattern_of(argument)))
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            (target,) = node.targets if isinstance(node, ast.Assign) else [node.target]
            name = target.id if isinstance(target, ast.Name) else ""
            if name in ("found", "row", "pictures"):
                before = "val/" if name == "found" else ""
                yield from (before + pattern for key in node.value.keys if (pattern := pattern_of(key)))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith(("row[", "pictures[")):
            yield pattern_of(node.targets[0].slice)


def pattern_of(node):
    """Return a regular expression for a string or an f-string, or None for another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in node.values)
    return None


@pytest.mark.parametrize("name", CALLBACKS)
def test_everything_that_a_callback_logs_is_on_its_page(name, pages):
    text = section(of_callback(name, pages), "What it logs")
    rows = [row for table in tables(text) for row in table[1:]]
    shown = {part for row in rows for part in row[0].strip("`").split(", ")}
    assert all(all(row) for row in rows)
    modules = [callback_pages.module(name), *HELPERS.get(name, [])]
    patterns = {p for m in modules for p in logged(ROOT / "callbacks" / f"{m}.py")} - {None}
    if name in callback_pages.LOGGERS:
        assert not shown
        return
    for pattern in patterns:
        assert any(re.fullmatch(pattern, one) for one in shown), f"{pattern} is not on the page"
    if name == "RunRecord":
        return
    for one in shown - {"..."}:
        assert any(re.fullmatch(pattern, one) for pattern in patterns), f"nothing logs {one}"


def test_the_distances_by_kind_of_data_are_named(pages):
    source = (ROOT / "zoo" / "evaluation" / "distances.py").read_text(encoding="utf-8")
    names = set(re.findall(r'self\.name = "(\w+)"', source))
    assert len(names) >= 3
    for name in names:
        assert f"`val/{name}`" in section(of_callback("SampleDistance", pages), "What it logs")


def flat(value, prefix=""):
    """Return the keys of a recipe without keys below them, {dotted key: value}."""
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}


def loaded(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def comments_at(path):
    """Return the comment on the line of each key that has one, {dotted key: first line of the comment}."""
    found, above = {}, []
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"( *)(\w+):(?:[^#]|#(?<! #))*(?: #\s*(.+))?$", line):
            indent, key, comment = match.groups()
            above = [(depth, name) for depth, name in above if depth < len(indent)] + [(len(indent), key)]
            found |= {".".join(name for _, name in above): " ".join(comment.split())} if comment else {}
    return found


def agrees(rows, keys, said, strip=""):
    """Check rows of a table of keys: no key is missing, values are equal, and comments are kept."""
    shown = {row[0].strip("`").removeprefix(strip): row[1:] for row in rows}
    assert {key for key, (value, _) in shown.items() if value} == set(keys)
    assert set(said) <= set(shown)
    for key, (value, meaning) in shown.items():
        assert not value or yaml.safe_load(value.strip("`")) == keys[key], key
        assert meaning.startswith(said[key]) if key in said else not meaning, key


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_of_a_recipe_of_callbacks_has_a_row(name, pages):
    path = ROOT / "configs" / "callbacks" / f"{name}.yaml"
    keys = {key: value for key, value in flat(loaded(path)).items() if key != "defaults"}
    text = section(pages["callbacks/recipes.md"], name)
    rows = [row for table in tables(text) for row in table[1:]]
    agrees(rows, keys, comments_at(path))
    for part in loaded(path).get("defaults", []):
        assert part == "_self_" or f"[{part}](#{part})" in text


def targets(value):
    """Yield the dicts of a recipe that have a ``_target_``, with their dotted keys."""
    for key, inner in value.items() if isinstance(value, dict) else []:
        if isinstance(inner, dict) and "_target_" in inner:
            yield key, inner
        yield from ((f"{key}.{below}", found) for below, found in targets(inner))


def test_every_recipe_that_makes_a_callback_is_on_its_page(pages):
    seen = set()
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        for key, part in targets(loaded(path) or {}):
            package, _, name = str(part["_target_"]).rpartition(".")
            if package != "zoo.callbacks":
                continue
            seen.add(name)
            text = section(of_callback(name, pages), "Recipes")
            assert f"(repo:{path.relative_to(ROOT).as_posix()})" in text, (name, path)
            rows = {row[0].strip("`") for table in tables(text) for row in table[1:]}
            wanted = {k for k in flat(part) if k != "_target_" and not k.startswith("pruner")}
            last = key.rpartition(".")[2]
            assert {f"{last}.{k}" for k in wanted} <= {".".join(row.split(".")[-2:]) for row in rows}, (name, path)
    assert seen == set(CALLBACKS) - {"RunRecord"}


@pytest.mark.parametrize("name", CALLBACKS)
def test_commands_turn_a_callback_on_and_off(name):
    text = callback_pages.texts()[name]

    def made(overrides):
        # Hydra composes one job without -m. `callbacks=ONE` is written in Hydra's form, as zoo train does.
        words = [word for word in shlex.split(overrides) if word != "-m"]
        cfg = config("/nowhere", *words)
        parts = [*(cfg.callbacks or {}).values(), *(cfg.logger or {}).values()]
        return f"zoo.callbacks.{name}" in [part._target_ for part in parts]

    if name == "RunRecord":
        assert text["turn_off"] is None
        return
    assert made(text["turn_on"]) and not made(text["turn_off"])


@pytest.mark.parametrize("name", tiers(CALLBACKS, {*CALLBACKS} - {"MLFlowLogger"}))  # a new database takes seconds
def test_lines_for_a_script_make_the_callback(name, tmp_path, monkeypatch, pages):
    text = callback_pages.texts()[name]["script"]
    if text is None:
        assert name == "Pruning"
        return
    for package in {"MLFlowLogger": ["mlflow"], "TensorBoardLogger": ["tensorboard"]}.get(name, []):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    assert text in section(of_callback(name, pages), "In a script")
    assert type(eval(text, {"zoo": zoo})).__name__ == name


# Data.


@pytest.mark.parametrize("name", DATA)
def test_every_data_recipe_has_a_page_with_all_of_its_keys(name, pages):
    path = ROOT / "configs" / "data" / f"{name}.yaml"
    keys = {key: value for key, value in flat(loaded(path)).items() if key != "_target_"}
    text = pages[f"data/{name}.md"]
    (rows,) = tables(section(text, "Recipe"))
    agrees(rows[1:], keys, comments_at(path), "data.")
    assert f"]({name}.md)" in pages["data/index.md"]
    about = path.read_text(encoding="utf-8").split("\n_target_")[0].replace("# ", "")
    assert " ".join(about.split()) in text


def test_there_is_no_page_without_a_recipe(pages):
    assert set(data_pages.texts()) == set(DATA)
    assert {path for path in pages if path.startswith("data/")} == {"data/index.md", *(f"data/{n}.md" for n in DATA)}


def counts(name, pages):
    """Return the numbers of examples and the shape that a page states."""
    (rows,) = tables(pages[f"data/{name}.md"].split("\n## ")[0])
    said = dict(rows[1:])
    return [said[part] for part in ("training", "validation", "test")], said["shape of an example"]


@pytest.mark.parametrize("name", ["ring", "line", "markov_chain"])
def test_counts_and_shapes_of_known_distributions(name, pages):
    data = Toy(name)
    data.setup()
    numbers, shape = counts(name, pages)
    assert numbers == [f"{len(data.splits[part].images):,}" for part in ("train", "val", "test")]
    assert shape.startswith(str(list(data.splits["train"].images.shape[1:])))


def test_counts_and_shape_of_the_digits(pages):
    splits = load_split("digits", Path("unused"))
    numbers, shape = counts("digits", pages)
    assert numbers == [f"{len(splits[part].images):,}" for part in ("train", "val", "test")]
    assert shape.startswith(str(list(splits["train"].images.shape[1:])))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", *colour.SHAPES])
def test_counts_of_published_images_are_those_of_the_code(name, pages):
    """The numbers stand in the docstrings of the functions that split the images, and the files in the code."""
    numbers, shape = counts(name, pages)
    said = inspect.getdoc((images if name in images.MD5 else colour).load_split)
    known = re.findall(r"\d[\d,]*\d", said)
    assert all(number in known for number in numbers)
    assert shape.startswith(str(list(colour.SHAPES.get(name, (1, 28, 28)))))
    for file in data_pages.texts()[name]["files"]:
        assert f"- `{file}`" in pages[f"data/{name}.md"]
        source = inspect.getsource(images) + inspect.getsource(colour)
        assert file in source


@pytest.mark.parametrize("name", DATA)
def test_commands_of_data_compose(name):
    for words in data_pages.texts()[name]["models"]:
        chosen = config("/nowhere", *shlex.split(words)).data
        recipe = loaded(ROOT / "configs" / "data" / f"{name}.yaml")
        assert chosen._target_ == recipe["_target_"]
        assert chosen.get("name") == recipe.get("name") or name == "hf"


def test_pictures_of_data_are_drawn_without_files(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    for name, picture in data_pages.PICTURES.items():
        assert (ROOT / "docs" / "pictures" / f"{name}.png").is_file() and len(picture.caption.split()) >= 4
    for name in ("data-moons", "data-markov_chain", "data-digits"):
        (axes,) = data_pages.PICTURES[name].draw().axes
        assert axes.has_data()
    assert not list(tmp_path.iterdir())
