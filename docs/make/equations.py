"""The equations of the models, the lines that compute them and the tests that check them.

    python docs/make/equations.py

prints a table of the equations of all models, and what is missing. Nothing is imported: files are read with ``ast``.

The docstring of a model's module holds its equations, up to the line "Symbols:". An equation is a row that is indented
by four spaces. Two or more spaces separate its columns: left side, formula, source, code. Lines that are indented
deeper continue the row. The key of an equation is the text before the first relation, or the first column if that
column has no relation. The last column of a line names the code, such as ``VAE.encode`` or ``diffusion.simple_loss``.
It is one or more functions of the model's file, or of zoo/functional, zoo/nets and zoo/estimators.

In such a function, the line of an equation has a comment with its key, or follows a comment line with its key. Without
such a comment it is the last ``return``. A test names its equation: ``@pytest.mark.equation("vae", "ELBO(x)")``.
"""

import argparse
import ast
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("vae", "cvae", "vade", "gan", "wgan", "infogan", "ddpm", "score", "rbm", "skipgram")
FOLDERS = ("functional", "nets", "estimators")  # folders of zoo that hold code of equations, besides the model's file
RELATION = re.compile(r"(?:^| )(?:=|<=|>=|~|<-)(?: |$)")
NAMES = re.compile(r"[A-Za-z_][\w.]*(?:, [A-Za-z_][\w.]*)*")
SOURCE = re.compile(
    r"\b(?:eq|eqs|alg|sec|prop)\. ?\d|\b(?:algorithm|theorem|table|technique) \d|\[[A-Z]\w*|\b(?:19|20)\d\d\b"
)
Function = ast.FunctionDef | ast.AsyncFunctionDef
# The main equation of each model: its key, and what training with the recipe of the model does with it. In backquotes
# are keys of other equations, and settings of the recipe.
MAIN = {
    "vae": ("ELBO(x)", "Training maximises this bound, averaged over the images of a batch."),
    "cvae": ("L(x, y)", "Training maximises this bound, averaged over the images of a batch."),
    "vade": (
        "mean field",
        "After the epochs of pretraining, training maximises this form of the bound, averaged over the images of a "
        "batch.",
    ),
    "gan": ("V(G, D)", "The discriminator maximises this value. The generator minimises `non_saturating`."),
    "wgan": ("critic_loss", "The critic minimises this loss. The generator minimises `generator_loss`."),
    "infogan": (
        "V_InfoGAN",
        "The discriminator maximises V, the first term. The generator and Q minimise the whole value, with the "
        "non-saturating loss of the generator in place of V.",
    ),
    "ddpm": (
        "L_v",
        "Training minimises this loss, because the recipe has `predict: v`. With `predict=eps`, training minimises "
        "`L_simple`, the loss of the paper.",
    ),
    "score": (
        "L(s)",
        "Training minimises this mean over noise levels of `J_sigma`, because the recipe has `objective: denoising`.",
    ),
    "rbm": (
        "log p(v)",
        "Training follows an estimate of this gradient. The states v' come from `pcd`, because the recipe has "
        "`learning: pcd`.",
    ),
    "skipgram": (
        "nce",
        "Training minimises this loss, summed over the pairs of a batch. The logged loss is the mean over the pairs.",
    ),
}


class EquationError(ValueError):
    """A model's equations cannot be read."""


@dataclass(frozen=True)
class Equation:
    """One equation of a model.

    Attributes:
        model: name of the model, such as ``vae``.
        key: left side, or the name of a row in words.
        text: the formula as in the docstring, with its left side. A row in words has no left side.
        source: where the papers have it, or "".
        code: names of the functions as in the docstring, or "" if no column names a function.
        path: file of the line, relative to the repository, or None.
        line: number of the line that computes the equation, or None.
        tests: (path, line, function) of each marked test.
        places: (path, line, function) for each function of ``code``.
    """

    model: str
    key: str
    text: str
    source: str
    code: str
    path: str | None
    line: int | None
    tests: list[tuple[str, int, str]] = field(default_factory=list)
    places: list[tuple[str, int, str]] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """Return what this equation lacks: "code and line", "test", both, or nothing."""
        return (["code and line"] if self.line is None else []) + ([] if self.tests else ["test"])


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstring(model: str, root: Path = ROOT) -> str:
    """Return the docstring of the module of ``model``."""
    return ast.get_docstring(_tree(root / "zoo" / f"{model}.py")) or ""


def rows(text: str) -> list[list[str]]:
    """Return the rows of a docstring before "Symbols:", as lists of lines."""
    found: list[list[str]] = []
    continues = False
    for line in re.split(r"^Symbols\b", text, maxsplit=1, flags=re.M)[0].splitlines():
        indent = len(line) - len(line.lstrip())
        if indent == 4 and line.strip():
            found.append([line.strip()])
        elif indent > 4 and continues:
            found[-1].append(line.strip())
        continues = indent >= 4
    return found


def functions(path: Path) -> Iterator[tuple[str, Function]]:
    """Yield (name, definition) of the functions and methods of a file. Methods are named ``Class.method``."""
    for node in _tree(path).body:
        if isinstance(node, Function):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{item.name}", item) for item in node.body if isinstance(item, Function))


def find(name: str, model: str, root: Path = ROOT) -> tuple[Path, Function] | None:
    """Return the file and the definition of function ``name``, or None.

    The model's own file comes first. Then come the modules of zoo/functional, zoo/nets and zoo/estimators, with
    or without their name: ``simple_loss`` or ``diffusion.simple_loss``.

    Raises:
        EquationError: if several modules have a function of this name.
    """
    own = root / "zoo" / f"{model}.py"
    others = [path for folder in FOLDERS for path in sorted((root / "zoo" / folder).glob("*.py"))]
    for paths in ([own], others):
        found = [(p, f) for p in paths for known, f in functions(p) if name in (known, f"{p.stem}.{known}")]
        if len(found) > 1:
            files = ", ".join(str(p.relative_to(root)) for p, _ in found)
            raise EquationError(f"{own.name}: {name!r} is in {files}; put the name of the module before it")
        if found:
            return found[0]
    return None


@cache
def comments(path: Path) -> list[tuple[int, int, str]]:
    """Return (its line, line of code, text) of each comment. A comment without code before it names the next line."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code = sorted({token.start[0] for token in tokens if token.type not in empty})
    return [
        (token.start[0], next((n for n in code if n >= token.start[0]), token.start[0]), token.string.lstrip("# "))
        for token in tokens
        if token.type == tokenize.COMMENT
    ]


def line_of(key: str, path: Path, function: Function) -> tuple[int, bool]:
    """Return the line of ``key`` in ``function``, and whether a comment names it. Without a comment: the return."""
    named = re.compile(rf"(?<!\w){re.escape(key)}(?!\w)")
    for place, line, text in comments(path):
        if function.lineno <= place and line <= function.end_lineno and named.search(text):
            return line, True
    returns = [node.lineno for node in ast.walk(function) if isinstance(node, ast.Return)]
    return max(returns, default=function.body[-1].lineno), False


def _equation(model: str, lines: list[str], root: Path) -> Equation:
    """Return the equation of one row, without its tests."""
    columns = [re.split(r" {2,}", line) for line in lines]
    head, _, rest = RELATION.sub("\0", columns[0][0], count=1).partition("\0")
    key, words = head.strip(), not rest and not (len(columns[0]) > 1 and RELATION.match(columns[0][1]))
    if words:
        key, columns[0] = columns[0][0], columns[0][1:]
    names: list[str] = []
    for line in columns:
        if line and NAMES.fullmatch(line[-1]) and all(find(name, model, root) for name in line[-1].split(", ")):
            names += line.pop().split(", ")
    sources = [column for line in columns for column in line if not RELATION.search(column) and SOURCE.search(column)]
    text = " ".join(column for line in columns for column in line if column not in sources)
    places, marked = [], None
    for name in names:
        path, function = find(name, model, root)
        line, has_comment = line_of(key, path, function)
        places.append((path.relative_to(root).as_posix(), line, name))
        if has_comment and marked is None:
            marked = places[-1]
    path, line, _ = marked or (places[0] if places else (None, None, None))
    source = ", ".join(re.sub(r"^\((.*)\)$", r"\1", column).rstrip(",") for column in sources)
    return Equation(model, key, text, source, ", ".join(names), path, line, places=places)


@cache
def marks(root: Path = ROOT) -> list[tuple[str, str, str, int, str]]:
    """Return (model, key, path, line, function) of each mark ``equation`` in the tests."""
    found = []
    for path in sorted((root / "tests").rglob("*.py")):
        if "mark.equation" not in path.read_text(encoding="utf-8"):
            continue
        for function in (node for node in ast.walk(_tree(path)) if isinstance(node, Function)):
            for call in (node for decorator in function.decorator_list for node in ast.walk(decorator)):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.equation":
                    model, key = (ast.literal_eval(argument) for argument in call.args)
                    found.append((model, key, path.relative_to(root).as_posix(), function.lineno, function.name))
    return found


def of(model: str, root: Path = ROOT) -> list[Equation]:
    """Return the equations of ``model``, in the order of its docstring.

    Raises:
        EquationError: if two equations have the same key, or the name of a function is ambiguous.
    """
    found: list[Equation] = []
    for lines in rows(docstring(model, root)):
        equation = _equation(model, lines, root)
        if equation.key in (other.key for other in found):
            raise EquationError(f"zoo/{model}.py: two equations have the key {equation.key!r}; change one left side")
        equation.tests.extend(mark[2:] for mark in marks(root) if mark[:2] == (model, equation.key))
        found.append(equation)
    return found


def strays(root: Path = ROOT) -> list[tuple[str, str, str, int, str]]:
    """Return the marks of tests that name no equation of a model."""
    known = {(model, equation.key) for model in MODELS for equation in of(model, root)}
    return [mark for mark in marks(root) if mark[:2] not in known]


def main() -> None:
    """Print all equations with their line and tests, and what is missing."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    lacking = 0
    for model in MODELS:
        print(f"\n{model}")
        for equation in of(model):
            line = f"{equation.path}:{equation.line}" if equation.line else "-"
            tests = ", ".join(f"{Path(path).name}:{line}" for path, line, _ in equation.tests) or "-"
            gap = f"   MISSING: {', '.join(equation.missing)}" if equation.missing else ""
            print(f"  {equation.key:<24} {line:<36} {tests}{gap}")
            lacking += bool(equation.missing)
    for model, key, path, line, _ in strays():
        print(f"\n{path}:{line} marks an unknown equation: {model}, {key}")
    print(f"\n{lacking} equations lack something, {len(strays())} marks name no equation")


if __name__ == "__main__":
    main()
