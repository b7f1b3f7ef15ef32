"""Tests of the imports between packages of the zoo, and of the length of model files."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from processes import done

import zoo

ROOT = Path(__file__).parents[2]
MODELS = sorted(path.split(".")[1] for path in zoo.MODELS.values())
# A package can import packages of earlier groups and of the same group. Imports must have no cycles.
# A model can import the first two groups. InfoGAN can also import the module of GAN.
ORDER = [
    {"functional", "checks", "nets"},
    {"estimators", "sampling", "training"},
    {"datamodules"},
    {"evaluation"},
    {"hub"},
    {"callbacks"},
    {"commands"},
    {"train", "__main__"},
]
LONGEST_MODEL = 420  # a model file must have fewer lines, docstrings included


def modules():
    """Return a dict from the dotted name of every module to its file. train.py has the name ``zoo.train``."""
    found = {"zoo.train": ROOT / "train.py"}
    for folder, package in ((ROOT / "zoo", "zoo"), *((ROOT / p, f"zoo.{p}") for p in ("callbacks", "datamodules"))):
        for file in folder.rglob("*.py"):
            relative = file.relative_to(folder).with_suffix("")
            if relative.parts[0] not in ("callbacks", "datamodules", "configs") or folder != ROOT / "zoo":
                found[".".join([package, *relative.parts]).removesuffix(".__init__")] = file
    return found


MODULES = modules()


def package_of(module):
    return module.split(".")[1] if "." in module else "__init__"


def imports(file):
    """Yield the modules of the project that a file imports, except imports under TYPE_CHECKING."""
    for_types = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for_types |= {inner for part in node.body for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "zoo")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "zoo":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def allowed(importer, imported):
    """Return whether a module of package ``importer`` may import a module of package ``imported``."""
    rank = {name: place for place, group in enumerate(ORDER) for name in group}
    if imported in ("__init__", importer):
        return True
    if importer in MODELS:
        return rank.get(imported, 9) <= 1 or (importer, imported) == ("infogan", "gan")
    if importer == "__init__":
        return imported == "checks"
    return imported in rank and rank[imported] <= rank[importer]


def test_every_module_is_in_a_known_package():
    packages = {package_of(name) for name in MODULES}
    assert packages == {"__init__", *MODELS, *set().union(*ORDER)}
    assert {path.stem for path in (ROOT / "zoo").glob("*.py")} == {"__init__", "__main__", *MODELS}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_package_imports_what_stands_before_it(name):
    for imported in imports(MODULES[name]):
        if (name, imported) == ("zoo", "zoo.hub"):  # zoo.load imports it inside a function
            continue
        assert allowed(package_of(name), package_of(imported)), f"{name} imports {imported}"


def test_a_wrong_import_would_be_found(tmp_path):
    (tmp_path / "a.py").write_text(
        "def f():\n    from zoo import hub\n    from zoo.datamodules.files import data_root\n", encoding="utf-8"
    )
    found = list(imports(tmp_path / "a.py"))
    assert found == ["zoo.hub", "zoo.datamodules.files"]
    assert not any(allowed("vae", package_of(module)) for module in found)
    assert not allowed("functional", "estimators") and not allowed("gan", "infogan") and allowed("infogan", "gan")


@pytest.mark.parametrize("what", ["files", "packages"])
def test_no_circles(what):
    graph = {}
    for name, file in MODULES.items():
        near = {i for i in imports(file) if (name, i) != ("zoo", "zoo.hub") and i != "zoo"}
        key = name if what == "files" else package_of(name)
        graph.setdefault(key, set()).update(near if what == "files" else {package_of(i) for i in near} - {key})
    if what == "files":  # a module can import from its package, because Python imports the package first
        graph = {k: {i for i in v if not k.startswith(f"{i}.")} for k, v in graph.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' -> '.join(error.args[1])}")


def test_nothing_is_imported_without_the_prefix():
    for file in [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"callbacks", "datamodules", "configs"}, file


def test_a_model_loads_neither_data_nor_evaluation():
    script = "import sys, zoo.vae; print(*sorted(m for m in sys.modules if m.startswith('zoo')))"
    loaded = done("-c", script).stdout
    packages = {package_of(name) for name in loaded.split()}
    assert "vae" in packages and packages.isdisjoint({"datamodules", "evaluation", "hub", "callbacks"}), packages
    assert packages & set(MODELS) == {"vae"}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_reads_in_one_go(name):
    lines = MODULES[f"zoo.{name}"].read_text(encoding="utf-8").count("\n")
    assert lines < LONGEST_MODEL, f"zoo/{name}.py has {lines} lines: move some code to another package"
