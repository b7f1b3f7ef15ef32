"""Tests of docs/own_model.md. They write the files that the page shows, and run the commands of the page."""

import json
import os
import re
import shlex
import shutil
import sys

import pytest
import torch
from helpers import assert_same, checkpoint
from processes import ROOT, done
from safetensors.torch import load_file

import zoo
from zoo.checks.errors import UserError
from zoo.hub import CheckpointError, check_resumable
from zoo.hub.exporting import export
from zoo.training.command_line import named_class, readable_arguments

PAGE = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)}
INSIDE, OUTSIDE = SECTIONS["A new model in an hour"], SECTIONS["A module outside the repository"]
OF_FILE = re.compile(r"^`([^`\n]+)`[^`\n]*:\n\n```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BASH = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
CLASS = "my_package.autoregression.Autoregression"
SAME = ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "epoch", "global_step")
INTERRUPT = ["+callbacks.stop._target_=helpers.SendSignal", "+callbacks.stop.at=15", "+callbacks.stop.signum=2"]


def blocks(section):
    """Return the code blocks of a section as a dict from the path of a file to (language, text)."""
    return {path: (kind, text) for path, kind, text in OF_FILE.findall(section)}


def commands(section):
    """Return the commands of a section as lists of words."""
    lines = "".join(BASH.findall(section)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def write(section, folder):
    """Write the blocks of a section into their files below ``folder``. A diff changes a file. Other files are new."""
    for path, (kind, text) in blocks(section).items():
        file = folder / path
        if kind == "diff":
            before = "".join(line[1:] for line in text.splitlines(keepends=True) if line[0] == " ")
            after = "".join(line[1:] for line in text.splitlines(keepends=True) if line[0] in " +")
            whole = file.read_text(encoding="utf-8")
            assert whole.count(before) == 1 and "\n-" not in text, path
            file.write_text(whole.replace(before, after), encoding="utf-8")
        else:
            assert not file.exists(), path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Return a copy of this checkout that contains the new model. Published weights are links."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "weights", "made_by_*", "benchmarks")
    for name in ("zoo", "callbacks", "configs", "datamodules", "docs", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    shutil.copytree(ROOT / "zoo" / "weights", folder / "zoo" / "weights", copy_function=os.symlink)
    for name in ("train.py", "pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    write(INSIDE, folder)
    return folder


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Return a folder with the outside module and its configuration."""
    folder = tmp_path_factory.mktemp("outside")
    write(OUTSIDE, folder)
    return folder


def ran(words, folder, path, code=0):
    """Run a command of the page in ``folder``, with PYTHONPATH set to ``path``. Return its output."""
    arguments = ["-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *words[1:]] if words[0] == "pytest" else words[1:]
    ended = done(*arguments, cwd=folder, PYTHONPATH=path, timeout=240)
    assert ended.returncode == code, f"{shlex.join(words)}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout + ended.stderr


# Program that runs commands of ``zoo`` and ``python -c`` in turn. Modules are imported only once.
DRIVER = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = words[2:]
    exec(words[2], {}) if words[1] == "-c" else runpy.run_module(words[2], run_name="__main__", alter_sys=True)
"""


def ran_together(several, folder, path):
    """Run several commands of the page in one process, and return their output."""
    return ran(["python", "-P", "-c", DRIVER, json.dumps(several)], folder, path)


def without_callbacks(train, folder):
    """Return the command ``train`` in ``folder``, with checkpoints as the only callbacks, no logger and no test."""
    words = [word for word in train if not word.startswith(("callbacks.", "hydra.run.dir="))]
    return [*words, f"hydra.run.dir={folder}", "callbacks=none", "logger=none", "test=false"]


def starting(section, *words):
    """Return the commands of a section that begin with ``words``."""
    found = [command for command in commands(section) if command[: len(words)] == list(words)]
    assert found, words
    return found


# Statements and blocks of the page.


def test_the_table_of_places_is_complete():
    places = re.findall(r"^\| `([^`]+)` \|", INSIDE.partition("### The model")[0], re.MULTILINE)
    assert set(places) == {*blocks(INSIDE), "docs/capabilities.md"}
    assert set(blocks(OUTSIDE)) == {"my_package/autoregression.py", "my_configs/model/my_autoregression.yaml"}


def test_every_block_of_code_is_used():
    for section in (INSIDE, OUTSIDE):
        kinds = re.findall(r"^```(\w+)$", section, re.MULTILINE)
        shown = ["python"] if section is OUTSIDE else []  # the block with zoo.load, which the last test runs
        assert len(kinds) == len(blocks(section)) + len(BASH.findall(section)) + len(shown)


def test_paths_of_the_page_are_there():
    text = re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    paths = set(re.findall(r"`((?:zoo|callbacks|configs|datamodules|docs|tests)/[\w/.]*)`", text)) - set(blocks(INSIDE))
    made = {"zoo/weights/made.safetensors"}
    missing = [path for path in paths - made if not (ROOT / path).exists()]
    assert len(paths) > 20 and not missing
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "docs" / link).is_file(), link


def test_the_blocks_are_formatted(copy, outside):
    written = [path for path in blocks(INSIDE) if path.endswith(".py")]
    ran(["python", "-m", "ruff", "check", "--no-cache", *written], copy, copy)
    ran(["python", "-m", "ruff", "format", "--no-cache", "--check", *written], copy, copy)
    style = ["--no-cache", "--config", str(copy / "pyproject.toml"), "my_package"]
    # In this folder, zoo is a library, so ruff would want another order of the imports (I001).
    ran(["python", "-m", "ruff", "check", "--ignore", "I001", *style], outside, outside)
    ran(["python", "-m", "ruff", "format", "--check", *style], outside, outside)


def test_the_new_model_passes_its_test_and_has_its_recipe(copy):
    (own,) = starting(INSIDE, "pytest", "tests/models/test_made.py")
    chosen = "test_made or test_layers and made or names_every_argument and made or without_a_test"
    said = ran([*own, "tests/house/test_layers.py", "tests/runs/test_recipes.py", "-k", chosen], copy, copy)
    assert int(re.search(r"(\d+) passed", said)[1]) >= 13 and "failed" not in said, said


def test_the_tables_of_the_documentation_agree_with_the_new_model(copy):
    """The row that the page adds to the README is the row that ``zoo report --write`` would write."""
    assert "tables agree with their sources" in ran(["python", "-m", "zoo", "report", "--check"], copy, copy)


@pytest.mark.slow
def test_the_tests_that_the_page_names_find_the_new_model(copy):
    """For the new model, pytest collects the tests that the page lists. The tests of the recipe pass."""
    (every,) = starting(INSIDE, "pytest", "-k", "made")
    named = re.findall(r"^\| `(tests/[\w/]+\.py)` \|", INSIDE, re.MULTILINE)
    said = ran([*every, *named, "-m", "", "--collect-only", "-q"], copy, copy)  # the other files take half a minute
    found = {line.partition("::")[0] for line in said.splitlines() if "made" in line.partition("::")[2]}
    together = {"tests/hub/test_hub.py", "tests/models/test_devices.py"}  # one test for all models
    assert len(named) >= 9 and set(named) - together - set(blocks(INSIDE)) <= found, set(named) - found
    some = ["tests/runs/test_recipes.py", "tests/models/test_wrong_input.py", "-k", "made or or_a_name or all_models"]
    said = ran(["pytest", *some], copy, copy)
    assert int(re.search(r"(\d+) passed", said)[1]) > 15 and "failed" not in said, said


@pytest.mark.slow
def test_the_new_model_trains_resumes_samples_is_measured_and_exported(copy):
    trial, path = copy / "runs" / "trial", f"{copy}:{copy / 'tests'}"
    ran(*starting(INSIDE, "python", "docs/make/capabilities.py"), copy, path)
    assert "skipgram, made |" in (copy / "docs" / "capabilities.md").read_text(encoding="utf-8")
    (train,) = starting(INSIDE, "python", "train.py")
    (resume,) = starting(INSIDE, "python", "-m", "zoo", "resume")
    ran(without_callbacks(train, "runs/whole"), copy, path)
    assert "zoo resume runs/trial" in ran([*train, *INTERRUPT], copy, path, code=130)
    ran(resume, copy, path)
    whole, resumed = checkpoint(copy / "runs" / "whole"), checkpoint(trial)
    assert whole["global_step"] == 22 and whole["model"] == "made"
    for key in SAME:
        assert_same(whole[key], resumed[key], key)
    for file in ("samples/epoch_001.png", "estimator_variance.csv", "estimator_variance.png", "metrics.csv"):
        assert (trial / file).stat().st_size > 0, file
    after = [words for words in starting(INSIDE, "python", "-m", "zoo") if words != resume]
    said = ran_together(after + starting(INSIDE, "python", "-c"), copy, path)
    assert re.search(r"^test/loss: \d", said, re.MULTILINE) and "binarised+antithetic" in said
    assert "made.safetensors" in said and "[1, 1, 28, 28]" in said
    assert (copy / "samples.png").is_file() and (copy / "comparison.png").is_file()
    published, best = load_file(copy / "zoo" / "weights" / "made.safetensors"), next(trial.glob("checkpoints/best-*"))
    assert_same(
        dict(sorted(published.items())), dict(sorted(torch.load(best, weights_only=True)["state_dict"].items()))
    )


# The outside module.


@pytest.fixture
def strange(outside, tmp_path, monkeypatch):
    """Return the path of a checkpoint of the outside module. The module can be imported."""
    monkeypatch.syspath_prepend(outside)
    state = {"weight": torch.full((784, 784), 0.25), "bias": torch.zeros(784)}
    saved = {"state_dict": state, "hyper_parameters": {"lr": 0.5}, "record": {"class": CLASS, "data": "digits"}}
    torch.save(saved, tmp_path / "last.ckpt")
    yield tmp_path / "last.ckpt"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.mark.parametrize("model", [None, "vae", CLASS])
def test_a_checkpoint_does_not_choose_the_class_that_is_imported(strange, model):
    """The record in a checkpoint names a class outside the zoo. The key ``model`` can contradict the record."""
    torch.save(torch.load(strange, weights_only=True) | {"model": model}, strange)
    for source in (strange, strange.parent):
        with pytest.raises(CheckpointError, match=f"class '{CLASS}', which is not part of the zoo: give its class"):
            zoo.load(source)
    with pytest.raises(CheckpointError, match=f"only models of the zoo are exported.*'{CLASS}'"):
        export(strange, "strange")
    assert "my_package" not in sys.modules


def test_a_class_that_the_user_gives_is_loaded(strange):
    kind = named_class(CLASS)
    model = zoo.load(strange.parent, kind)
    assert type(model) is kind and not model.training and model.hparams.lr == 0.5 and (model.weight == 0.25).all()
    check_resumable(strange, kind(lr=0.5))
    with pytest.raises(CheckpointError, match=r"model.lr was 0.5 and is 0.1"):
        check_resumable(strange, kind(lr=0.1))
    saved = torch.load(strange, weights_only=True)
    torch.save(saved | {"record": {"class": "my_package.other.Other"}}, strange)
    with pytest.raises(
        CheckpointError, match="of the model 'my_package.other.Other', but this run trains Autoregression"
    ):
        check_resumable(strange, kind(lr=0.5))
    with pytest.raises(CheckpointError, match="vae holds published weights, whose class is known: leave out"):
        zoo.load("vae", kind)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_package.nothing.Model", "cannot be imported: No module named 'my_package.nothing'"),
        ("Model", "cannot be imported: Empty module name"),
        ("my_package.autoregression.Model", "is no LightningModule"),
        ("os.system", "is no LightningModule"),
        ("os.PathLike", "is no LightningModule"),
    ],
)
def test_a_name_that_is_no_class_of_a_model_is_refused(strange, name, message):
    with pytest.raises(UserError, match=f"--class {name} {message}"):
        named_class(name)


def test_keys_are_checked_in_the_folder_of_the_user_too(outside):
    folder = f"--config-dir={outside / 'my_configs'}"
    read = lambda *arguments: readable_arguments([folder, *arguments], ROOT / "configs")  # noqa: E731
    assert read("model=my_autoregression") == [folder, "model=my_autoregression"]
    with pytest.raises(UserError, match="unknown key model.lt: model has lr."):
        read("model=my_autoregression", "model.lt=1")
    with pytest.raises(UserError, match=r"model has no 'my_autoregresion'.* Did you mean my_autoregression\?"):
        read("model=my_autoregresion")


@pytest.mark.slow
def test_an_outside_module_trains_resumes_samples_and_is_measured(outside):
    mine, path = outside / "runs" / "mine", f"{outside}:{ROOT}:{ROOT / 'tests'}"
    (train,) = starting(OUTSIDE, "python", "~/zoo/train.py")
    (resume,) = starting(OUTSIDE, "python", "-m", "zoo", "resume")
    train = [word.replace("~/zoo/", f"{ROOT}/") for word in train]
    often = "callbacks.estimator_variance.every_n_steps=10"
    ran(without_callbacks(train, "runs/whole"), outside, path)
    said = ran([*train, often, *INTERRUPT], outside, path, code=130)
    assert "zoo resume runs/mine" in said
    assert f"zoo sample runs/mine --class {CLASS}" in ran(resume, outside, path)
    whole, resumed = checkpoint(outside / "runs" / "whole"), checkpoint(mine)
    assert whole["record"]["class"] == CLASS and whole["global_step"] == 22
    for key in SAME:
        assert_same(whole[key], resumed[key], key)
    for file in ("samples/epoch_001.png", "estimator_variance.csv", "estimator_variance.png"):
        assert (mine / file).stat().st_size > 0, file
    *_, code = re.findall(r"^```python\n(.*?)^```", OUTSIDE, re.MULTILINE | re.DOTALL)
    after = [words for words in starting(OUTSIDE, "python", "-m", "zoo") if words != resume]
    ran_together([*after, ["python", "-c", code]], outside, path)
    assert (outside / "samples.png").is_file() and (outside / "comparison.png").is_file()
