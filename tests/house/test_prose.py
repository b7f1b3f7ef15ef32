"""Tests that sentences are short and use the words of the field, and that references exist."""

import importlib
import re
from pathlib import Path

import prose
import pytest

import zoo
import zoo.functional

ROOT = prose.ROOT
REFERENCES = ROOT / "docs" / "references.md"
KEY = r"\[((?:[A-Z][a-z]+|[A-Z]{2,})\d{0,2}[a-z]?)(?=[\] ])[^\]]*\](?!\()"


def test_sentences_are_short_and_words_are_the_fields():
    """The failure message has a line for each sentence over 25 words, and for each word with a plainer alternative."""
    wrong = [finding for path in prose.sources() for finding in prose.findings(path)[1]]
    lines = [f"{f.path.relative_to(ROOT)}:{f.line}: {f.what}: {f.sentence}" for f in wrong]
    assert not lines, "\n".join(lines)


def keys(text):
    """Return keys of references in a text, such as [DSL 13.3.2] and [Xu18a]. [B, D] and [link](address) are no keys."""
    return set(re.findall(KEY, text))


def cited():
    """Return each key that prose cites, with a file that cites it."""
    found = {}
    for path in prose.sources():
        if path in (REFERENCES, Path(__file__)):
            continue
        texts = path.read_text(encoding="utf-8") if path.suffix == ".md" else "\n".join(t.text for t in cites(path))
        found |= {key: str(path.relative_to(ROOT)) for key in keys(re.sub(r"```.*?```|`[^`]*`", "", texts, flags=re.S))}
    return found


def cites(path):
    """Return the texts of a file that can cite references. Python files with docstrings are returned whole."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [prose.Text(0, source if '"""' in source else ""), *prose.texts(path)]
    return prose.texts(path)


def listed():
    return set(re.findall(r"^\| \[(\w+)\] \|", REFERENCES.read_text(encoding="utf-8"), re.MULTILINE))


def test_every_key_that_is_cited_is_listed_and_every_listed_key_is_cited():
    known, used = listed(), cited()
    assert known and known <= set(used), f"listed and not cited: {known - set(used)}"
    shaped = {key: path for key, path in used.items() if re.search(r"\d\d", key) or key in known}
    assert set(shaped) <= known, (
        f"cited and not listed in docs/references.md: { {k: shaped[k] for k in set(shaped) - known} }"
    )


def test_no_file_cites_lecture_notes_by_a_number():
    for path in prose.sources():
        if path not in (Path(__file__), Path(prose.__file__)):
            assert not re.search(r"\b[Ss]eeds? 00\d", path.read_text(encoding="utf-8")), path


def test_files_that_are_named_exist():
    optional = {"configs/local/default.yaml"}  # a file that users can write
    optional |= {"callbacks/index.md", "callbacks/recipes.md"}  # pages of the site, which docs/make/site.py generates
    # docs/own_model.md adds these files.
    optional |= {"zoo/made.py", "configs/model/made.yaml", "tests/models/test_made.py"}
    named = r"(?<![\w/.])((?:zoo|tests|configs|docs|callbacks|datamodules)/[\w/.-]*\w\.(?:py|md|yaml))"
    for path in prose.sources():
        for name in set(re.findall(named, path.read_text(encoding="utf-8"))) - optional:
            assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"


@pytest.mark.parametrize("model", zoo.list_models())
def test_functions_that_a_header_names_exist(model):
    """The equations of a header name the functions that compute them, in a column on the right."""
    module = importlib.import_module(f"zoo.{model}")
    equations = module.__doc__.split("\nSymbols:")[0]
    columns = re.findall(r"^ {4}.* {2}([A-Za-z_][\w.]*(?:, [\w.]+)*)$", equations, re.MULTILINE)
    names = {name for column in columns for name in column.split(", ")}
    files = sorted((ROOT / "zoo" / "functional").glob("[a-z]*.py"))
    functional = [importlib.import_module(f"zoo.functional.{file.stem}") for file in files]
    places = [module, getattr(module, zoo.MODELS[model].split(".")[-1]), zoo.functional, *functional]
    for name in names:
        assert any(found(place, name) for place in places), f"zoo/{model}.py names {name}"
    assert names


def found(place, name):
    """Return whether ``name``, which may contain dots, is an attribute of ``place``."""
    first, _, rest = name.partition(".")
    return hasattr(place, first) and (not rest or found(getattr(place, first), rest))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ('"""' + "word " * 25 + '."""', 0),
        ('"""' + "word " * 26 + '."""', 1),
        ('"""One. ' + "word " * 13 + ". " + "word " * 13 + '."""', 0),
        ('"""One.\n\n    ' + "word " * 30 + '\n\nTwo.\n"""', 0),  # code, or an equation
        ('"""One.\n\nArgs:\n    x: ' + "word " * 26 + '.\n"""', 1),
        ('"""Kingma et al. ' + "word " * 24 + '."""', 1),  # "al." does not end the sentence
        ("# " + "word " * 13 + "\n# " + "word " * 13, 1),  # a comment of two lines
        ("x = 1  # " + "word " * 13 + ".\ny = 2  # " + "word " * 13, 0),
        ('raise ValueError(f"{x} ' + "word " * 25 + '")', 1),
        ('"""p(x | z) q(z | x) ``a b c`` ' + "word " * 24 + '."""', 0),  # symbols do not count; code counts as one word
    ],
)
def test_long_sentences_are_counted(tmp_path, text, number):
    (tmp_path / "a.py").write_text(text, encoding="utf-8")
    assert [f.what.endswith(" words") for f in prose.findings(tmp_path / "a.py")[1]] == [True] * number


@pytest.mark.parametrize(
    "word", ["a whole number", "taken anew", "the share of images", "done likewise", "two players"]
)
def test_words_of_our_own_are_counted(tmp_path, word):
    for name, text in [
        ("a.py", f'"""It is {word}."""'),
        ("a.yaml", f"x: 1  # {word} here"),
        ("a.md", f"| {word} | b |"),
    ]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert len(prose.findings(tmp_path / name)[1]) == 1, name
    assert not prose.findings(tmp_path / "a.py", [prose.Text(1, "Processes share the weights.")])[1]
