"""Tests of the LaTeX formulas of the models. Each equation of a header has one, and it fits into a Markdown table."""

import re
import sys

import pytest
from processes import ROOT

sys.path.append(str(ROOT / "docs" / "make"))

import equations
from formulas import FORMULAS

LATEX = [pytest.param(text, id=f"{model}: {key}") for model, all_of in FORMULAS.items() for key, text in all_of.items()]


def test_the_formulas_are_those_of_all_models():
    assert sorted(FORMULAS) == sorted(equations.MODELS)


@pytest.mark.parametrize("model", equations.MODELS)
def test_every_equation_has_a_formula_and_every_formula_an_equation(model):
    assert list(FORMULAS[model]) == [equation.key for equation in equations.of(model)]


@pytest.mark.parametrize("latex", LATEX)
def test_a_formula_is_closed_and_safe_in_markdown(latex):
    """Braces and brackets match. No character ends a cell of a table, begins HTML or closes the formula."""
    assert not set(latex) & set("|$<>`") and latex.isascii() and latex == latex.strip()
    pairs, open_ones = {"}": "{", ")": "(", "]": "["}, []
    for bracket in re.findall(r"[{}()\[\]]", latex.replace(r"\{", "(").replace(r"\}", ")")):
        if bracket in pairs:
            assert open_ones and open_ones.pop() == pairs[bracket], bracket
        else:
            open_ones.append(bracket)
    assert not open_ones
    for left, right in ((r"\bigl", r"\bigr"), (r"\Bigl", r"\Bigr"), (r"\lVert", r"\rVert")):
        assert latex.count(left) == latex.count(right)
