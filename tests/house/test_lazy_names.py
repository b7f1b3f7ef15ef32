"""Tests of ``import zoo``: it is light, and its classes and packages are imported when they are first used."""

import ast
import copy
import importlib
import pickle
import pydoc
import subprocess
import sys

import pytest
import torch
from processes import ROOT, done

import zoo
from zoo.checks import lazy
from zoo.hub import creating, read_card

STUB = ast.parse((ROOT / "zoo" / "__init__.pyi").read_text(encoding="utf-8"))

SCRIPT = """
import sys
import zoo
zoo.list_models(), zoo.list_checkpoints("wgan*", model="wgan"), dir(zoo)
assert "torch" not in sys.modules and not hasattr(zoo, "nothing") and "torch" not in sys.modules
sys.argv = ["zoo", "list", "--format", "csv"]
import zoo.__main__
zoo.__main__.main()
assert "torch" not in sys.modules
from zoo import *
assert "torch" not in sys.modules
print(load is zoo.load, create is zoo.create, "callbacks" in vars())
"""


def test_nothing_imports_torch_before_a_model_is_used():
    ended = done("-c", SCRIPT)
    assert ended.stdout.splitlines()[-1:] == ["True True False"], ended.stderr


@pytest.mark.parametrize("path", ["callbacks", "datamodules", "hub", "score", "evaluation.distances", "checks.errors"])
def test_packages_and_modules_are_imported_when_they_are_first_used(path, monkeypatch):
    *outer, name = ["zoo", *path.split(".")]
    expected, package = importlib.import_module(f"zoo.{path}"), sys.modules[".".join(outer)]
    monkeypatch.delitem(vars(package), name)  # as if the module had not been imported
    assert getattr(package, name) is expected


def test_the_classes_are_those_of_the_models():
    for name, path in zoo.MODELS.items():
        kind = getattr(zoo, path.rpartition(".")[2])
        assert f"{kind.__module__}.{kind.__name__}" == path and getattr(zoo, name) is importlib.import_module(
            f"zoo.{name}"
        )


def test_every_listed_name_is_there():
    assert {"VAE", "vae", "callbacks", "load", "__doc__"} <= set(dir(zoo)) and "sys" not in dir(zoo)
    assert all(hasattr(zoo, name) for name in dir(zoo))


def test_help_is_short():
    text = pydoc.render_doc(zoo, renderer=pydoc.plaintext)
    assert "load(source" in text and "create(name" in text and text.count("\n") < 300


@pytest.mark.parametrize(
    ("name", "suggestion"), [("VEA", "VAE"), ("Skipgram", "SkipGram"), ("laod", "load"), ("calbacks", "callbacks")]
)
def test_a_misspelt_attribute_suggests_the_nearest(name, suggestion):
    with pytest.raises(AttributeError, match=rf"module 'zoo' has no attribute '{name}'. Did you mean {suggestion}\?"):
        getattr(zoo, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
        exec(f"from zoo import {name}")


def test_the_suggestion_is_printed_once():
    ended = subprocess.run([sys.executable, "-c", "import zoo; zoo.calbacks"], cwd=ROOT, capture_output=True, text=True)
    assert ended.stderr.count("Did you mean") == 1 and ended.returncode == 1


def test_a_loaded_model_is_copied_and_pickled():
    model = zoo.load("wgan-ring", dtype="float64")
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again) is zoo.WGAN
        how = [m.sample(2, generator=torch.Generator().manual_seed(0)) for m in (model, again)]
        assert torch.equal(*how) and again.dtype == torch.float64


TYPED = """
import zoo
reveal_type(zoo.load("vae"))
reveal_type(zoo.load("runs/vae", zoo.DDPM, device="cpu", dtype="float64"))
reveal_type(zoo.load("runs/vae"))
reveal_type(zoo.create("ddpm_ho", shape=(3, 32, 32)).sample(2))
reveal_type(zoo.VAE)
reveal_type(zoo.callbacks.EstimatorVariance)
zoo.VEA
"""
REVEALED = [
    '"zoo.vae.VAE"',
    '"zoo.ddpm.DDPM"',
    'core.module.LightningModule"',
    '"torch._tensor.Tensor"',
    "-> zoo.vae.VAE",
    "EstimatorVariance",
    'Module has no attribute "VEA"',
]


@pytest.mark.slow
def test_type_checkers_see_the_public_names(tmp_path):
    (tmp_path / "user.py").write_text(TYPED, encoding="utf-8")
    options = ["--follow-imports=silent", "--ignore-missing-imports", "--cache-dir", tmp_path / "cache"]
    ended = done("-m", "mypy", *options, tmp_path / "user.py", cwd=tmp_path)
    lines = [line for line in ended.stdout.splitlines() if "user.py" in line]
    assert [kind for kind, line in zip(REVEALED, lines, strict=True) if kind not in line] == [], ended.stdout


def overloads(function):
    """Return the names in the overloads of a function of zoo/__init__.pyi, with their classes."""
    found = {}
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            first = (node.args.posonlyargs + node.args.args)[0].annotation
            if isinstance(first, ast.Subscript):
                names = ast.literal_eval(first.slice)
                kind = ast.unparse(node.returns).lstrip("_")
                found |= dict.fromkeys([names] if isinstance(names, str) else names, kind)
    return found


def test_type_checkers_are_told_of_every_class_and_package():
    imports = {alias.asname for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {*lazy.class_paths(), *lazy.module_names()} - set(zoo.MODELS) <= imports
    defined = {node.name for node in STUB.body if isinstance(node, ast.FunctionDef)}
    assert set(zoo.__all__) == defined


def test_type_checkers_are_told_the_classes_of_names():
    created, loaded = overloads("create"), overloads("load")
    assert {name: creating.recipe_of(name)[0].rpartition(".")[2] for name in created} == created
    classes = {name: path.rpartition(".")[2] for name, path in (zoo.MODELS | zoo.CLASSIFIERS).items()}
    assert {name: classes[read_card(name)["model"]] for name in loaded} == loaded
    assert len(created) > 20 and len(loaded) > 15


@pytest.mark.parametrize("name", ["create", "load", "list_models", "list_checkpoints"])
def test_type_checkers_are_told_the_arguments_of_functions(name):
    """The last overload has all arguments, with their defaults."""
    told = [node for node in STUB.body if isinstance(node, ast.FunctionDef) and node.name == name][-1]
    module = ast.parse((ROOT / "zoo" / "__init__.py").read_text(encoding="utf-8"))
    (real,) = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name]
    for node in (told, real):
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
    assert ast.dump(told.args) == ast.dump(real.args)
