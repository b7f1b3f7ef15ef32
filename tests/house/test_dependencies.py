"""Tests that pyproject.toml declares every imported distribution, and that every declared distribution is imported."""

import ast
import functools
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Modules whose names differ from the names of their distributions.
IMPORTED_AS = {"_pytest": "pytest", "hydra": "hydra-core", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
IMPORTED_AS |= {"torch_fidelity": "torch-fidelity"}
# Distributions that no file imports: commands, a plugin of pytest, a dependency of Lightning's TensorBoardLogger, the
# kernel of the notebooks, and MathJax.
TOOLS = {"hatchling", "mypy", "pytest-xdist", "ruff", "tensorboard", "ipykernel", "sphinx-mathjax-offline", "zensical"}
TOOLS |= {"nbclient", "nbformat"}
MAKE = ROOT / "docs" / "make"
BENCHMARKS = ROOT / "tests" / "benchmarks"

PACKAGES = [ROOT / "zoo", ROOT / "callbacks", ROOT / "datamodules"]
CODE = [ROOT / "train.py", *(file for package in PACKAGES for file in package.rglob("*.py"))]
TESTS = [file for file in (ROOT / "tests").rglob("*.py") if BENCHMARKS not in file.parents]
OWN = {"zoo", "train", *(file.stem for folder in (ROOT / "tests", BENCHMARKS, MAKE) for file in folder.glob("*.py"))}
OPTIONAL = (
    "completion",
    "hf",
    "metrics",
    "mlflow",
    "parquet",
    "rich",
    "sweeps",
)  # extras whose packages the zoo may import
ALLOWED = {  # for each group: the files that import, and the extra that declares their dependencies
    "dependencies": (CODE, None),
    "test": (TESTS, "test"),
    "bench": (list(BENCHMARKS.glob("*.py")), "bench"),
    "docs": ([*MAKE.glob("*.py"), *(ROOT / "tests" / "notebooks").glob("*.py")], "docs"),
}


def declared(extra=None):
    """Return the distributions that ``extra`` declares. If ``extra`` is None, return the required dependencies."""
    requirements = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}


def imported(source):
    """Return the distributions that ``source`` imports, also through functions of pytest and importlib."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "importorskip", "find_spec"):
                names.add(node.args[0].value)
    packages = {name.split(".")[0] for name in names} - sys.stdlib_module_names - OWN
    return {IMPORTED_AS.get(package, package).lower() for package in packages}


@functools.cache
def imported_by(who):
    """Return the distributions that the files of group ``who`` import, each with one file that imports it."""
    files, _ = ALLOWED[who]
    return {name: file for file in files for name in imported(file.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("who", ALLOWED)
def test_what_is_imported_is_declared(who):
    found, extra = imported_by(who), ALLOWED[who][1]
    # gensim and the packages of some extras are used only if they are installed
    optional = {"gensim"}.union(*map(declared, OPTIONAL)) if extra is None else declared(extra)
    optional |= declared("docs") if extra == "test" else declared("test") if extra == "docs" else set()
    missing = found.keys() - declared() - optional
    assert not missing, {name: str(found[name].relative_to(ROOT)) for name in missing}


@pytest.mark.parametrize("who", ALLOWED)
def test_what_is_declared_is_imported(who):
    assert declared(ALLOWED[who][1]) - TOOLS <= imported_by(who).keys()


def test_every_dependency_has_a_lowest_version():
    for requirement in [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]:
        assert re.match(r"[\w.-]+>=\d", requirement), requirement


def test_every_way_to_import_is_seen():
    source = "import yaml, os.path\nfrom sklearn import svm\ndef f():\n    find_spec('gensim')\n    from . import a"
    assert imported(source) == {"pyyaml", "scikit-learn", "gensim"}
    assert imported("pytest.importorskip('PIL.Image')\nimport helpers, zoo.vae") == {"pillow"}
