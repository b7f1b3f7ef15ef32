"""Tests of the notebooks: their form and links, their pages in the site, and in the second tier their execution."""

import ast
import base64
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import zoo
from zoo.checks.errors import UserError

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
NAMES = ["ten_models", "why_variance_matters", "noise_to_digits", "energies", "words"]
LONGEST_CELL = 25  # lines of code
DRAWS = {"rand", "randn", "randint", "randperm", "multinomial", "sample", "vary"}  # functions that draw random numbers


def notebook_pages():
    """Return the module docs/make/notebook_pages.py."""
    spec = importlib.util.spec_from_file_location("notebook_pages", ROOT / "docs" / "make" / "notebook_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def content(name):
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))


def cells(name, kind):
    """Return the sources of the cells of one kind, ``code`` or ``markdown``."""
    return ["".join(cell["source"]) for cell in content(name)["cells"] if cell["cell_type"] == kind]


def test_every_notebook_is_a_page_of_the_site():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(NAMES) == set(notebook_pages().ORDER)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_valid(name):
    found = content(name)
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in found["cells"]]
    assert len(set(ids)) == len(ids)
    pytest.importorskip("nbformat").validate(found)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_have_no_outputs(name):
    for cell in content(name)["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_compile(name):
    for source in cells(name, "code"):
        compile(source, name, "exec")
        assert len(source.split("\n")) <= LONGEST_CELL, source


@pytest.mark.parametrize("name", NAMES)
def test_random_numbers_have_a_generator(name):
    for node in ast.walk(ast.parse("\n".join(cells(name, "code")))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DRAWS:
            assert "generator" in [keyword.arg for keyword in node.keywords], ast.unparse(node)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_begin_with_a_title_and_end_with_three_questions(name):
    first, *others = cells(name, "markdown")
    assert re.match(r"# \w", first)
    assert not any(re.search("^# ", text, re.MULTILINE) for text in others)
    assert content(name)["cells"][-1]["cell_type"] == "markdown"
    assert others[-1].startswith("## Three questions to try\n")
    assert re.findall(r"^(\d)\. ", others[-1], re.MULTILINE) == ["1", "2", "3"]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_have_equations_checks_and_links_to_models(name):
    text, code = "\n".join(cells(name, "markdown")), "\n".join(cells(name, "code"))
    assert text.count("$$") >= 4
    assert len(re.findall("^ *assert ", code, re.MULTILINE)) >= 4
    assert "../models/" in text


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_pages_of_the_site(name):
    pages = {f"../models/{model}.md" for model in zoo.MODELS} | {f"{other}.md" for other in NAMES}
    pages |= {"../estimators/index.md", "../callbacks/index.md"}
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(cells(name, "markdown")))
    assert links and set(links) <= pages, set(links) - pages


def test_the_first_notebook_links_to_all_models():
    text = "\n".join(cells("ten_models", "markdown"))
    assert all(f"](../models/{model}.md)" in text for model in zoo.MODELS)


def test_pages_show_text_and_pictures_in_order():
    png = base64.b64encode(b"a picture").decode()
    stream = lambda name, text: SimpleNamespace(  # noqa: E731
        output_type="stream", name=name, text=text, get=lambda key, other: other
    )
    shown = {"image/png": png, "text/plain": "<Figure>"}
    picture = SimpleNamespace(output_type="display_data", get=lambda key, other: shown)
    outputs = [stream("stderr", "a warning"), stream("stdout", "before\n"), picture, stream("stdout", "after\n")]
    made = SimpleNamespace(
        cells=[
            SimpleNamespace(cell_type="markdown", source="# Title\n\nIntroduction."),
            SimpleNamespace(cell_type="code", source="draw()", outputs=outputs),
        ]
    )
    page, pictures = notebook_pages().rendered("made", made)
    assert pictures == {"made-1.png": b"a picture"}
    parts = ["# Title", "(made.ipynb)", "Introduction.", "```python\ndraw()\n```", "before", "(made-1.png)", "after"]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "warning" not in page and "<Figure>" not in page


def test_a_changed_notebook_is_executed_again(tmp_path):
    first, second = tmp_path / "a.ipynb", tmp_path / "b.ipynb"
    first.write_text("{}", encoding="utf-8")
    second.write_text("{ }", encoding="utf-8")
    digest = notebook_pages().digest
    assert digest(first) != digest(second)
    second.write_text("{}", encoding="utf-8")
    assert digest(first) == digest(second)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebooks_run_in_an_empty_folder(name, tmp_path, tmp_path_factory, monkeypatch):
    for package in ("ipykernel", "nbclient", "nbformat"):
        pytest.importorskip(package)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path_factory.mktemp("data")))  # notebooks need no data
    pages = notebook_pages()
    notebook = pages.read(NOTEBOOKS / f"{name}.ipynb")
    pages.execute(notebook, tmp_path)  # raises the error of a cell, such as an assertion
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert not list(tmp_path.iterdir())
    page, pictures = pages.rendered(name, notebook)
    assert len(pictures) >= 3 and all(png.startswith(b"\x89PNG") for png in pictures.values())
    assert str(ROOT) not in page and str(tmp_path) not in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import zoo\nassert not zoo.list_models()", "Its first line is: import zoo\nAssertionError\n"),
        ("\nraise ValueError('one\\n  two')", "Its first line is: raise ValueError('one\\n  two')\nValueError: two\n"),
        ("import os\nos._exit(3)", "Its first line is: import os\nKernel died\n"),
    ],
)
def test_a_failed_cell_is_named_in_a_short_message(source, message, tmp_path, monkeypatch, capsys):
    """The message names the notebook, the cell, its error and what to do. The notebook is executed again later."""
    nbformat = pytest.importorskip("nbformat")
    for package in ("ipykernel", "nbclient"):
        pytest.importorskip(package)
    pages = notebook_pages()
    monkeypatch.setattr(pages, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(pages, "CACHE", tmp_path / "kept")
    made = [nbformat.v4.new_markdown_cell("# A"), *map(nbformat.v4.new_code_cell, ("x = 1", source, "x = 2"))]
    nbformat.write(nbformat.v4.new_notebook(cells=made), tmp_path / "a.ipynb")
    with pytest.raises(UserError) as error:
        pages.executed("a")
    todo = "Correct the cell, for example in jupyter lab notebooks/a.ipynb, and run this command again."
    assert str(error.value) == f"notebooks/a.ipynb: code cell 2 fails. {message}{todo}"
    assert re.fullmatch(r"executing notebooks/a\.ipynb \.+\n", capsys.readouterr().out)  # a dot for each cell
    assert not (tmp_path / "kept").exists()
