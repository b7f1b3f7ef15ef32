"""Pages of the notebooks. Each notebook is executed, and its outputs become a part of its page.

    pages()   Markdown texts by their path in the site: notebooks/index.md and notebooks/<name>.md
    files()   bytes by their path in the site: notebooks/<name>-<k>.png, the pictures that the cells draw, and
              notebooks/<name>.ipynb, the notebooks without outputs for the download

`python docs/make/notebook_pages.py` executes all notebooks. Executed notebooks are kept in build/notebooks. They are
executed again only if the notebook, the version of the zoo or a card of its pretrained checkpoints changes.
"""

import base64
import functools
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import zoo  # noqa: E402
from zoo.checks.errors import UserError  # noqa: E402

NOTEBOOKS = ROOT / "notebooks"
CACHE = ROOT / "build" / "notebooks"
ORDER = {  # the notebooks, each with its content
    "ten_models": "what each model makes, with one line of its mathematics",
    "why_variance_matters": "five estimators of one gradient, their variances in closed form, and training with each",
    "noise_to_digits": "the steps of a diffusion model, and Langevin dynamics with a known score",
    "energies": "energies and Gibbs chains, and estimates of log Z from below and from above",
    "words": "nearest words and analogies, and noise-contrastive estimation against the exact softmax",
}
INLINE = "module://matplotlib_inline.backend_inline"  # figures become outputs of cells
TIMEOUT = 1800  # seconds for one cell; a busy machine is slow
INDEX = """# Notebooks

The notebooks need no network. Together they take less than four minutes on one free CPU core.
Each notebook compares its results with closed forms, so that a wrong result is an error. The pages here show executed
notebooks. Each page has a link to the notebook itself.

| notebook | content |
| --- | --- |
{rows}

To run a notebook yourself, install the zoo and a program for notebooks:

```bash
pip install -e . jupyterlab
jupyter lab notebooks/
```
"""


def read(path: Path):
    """Return a notebook file as an object of nbformat.

    Raises:
        UserError: if nbformat is not installed.
    """
    return _needed("nbformat").read(path, as_version=4)


def execute(notebook, folder: Path, progress: bool = False, name: str = "the notebook") -> None:
    """Execute ``notebook`` in place, in a new kernel of this interpreter, with ``folder`` as its working directory.

    Args:
        notebook: an object of nbformat.
        folder: an existing folder. The kernel imports the zoo of this checkout in any folder.
        progress: whether to print a dot for each cell.
        name: what messages call the notebook.

    Raises:
        UserError: if a cell raises an error, takes too long or ends the kernel, or if nbclient or ipykernel is not
            installed.
        KeyboardInterrupt: after Ctrl-C, which nbclient handles as the end of the kernel.
    """
    _needed("ipykernel")
    begun: list[Any] = []  # the code cells so far
    client = _needed("nbclient").NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        extra_arguments=["--log-level=CRITICAL"],
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=lambda cell, **_: begun.append(cell),
        on_cell_executed=lambda **_: print(".", end="", flush=True) if progress else None,
    )
    client.create_kernel_manager()
    client.km.kernel_spec_manager.kernel_dirs = []  # so that python3 is this interpreter, not an installed kernel
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    errors = _needed("nbclient").exceptions
    try:
        client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": INLINE})
    except Exception as error:
        if hasattr(client, "_async_cleanup_kernel_future"):  # nbclient has received SIGINT or SIGTERM
            raise KeyboardInterrupt from error
        if begun and isinstance(error, errors.CellControlSignal | errors.DeadKernelError):
            raise UserError(_failure(name, begun, error)) from error
        raise


def _failure(name: str, begun: list[Any], error: Exception) -> str:
    """Return which cell of a notebook fails, with which error, and what to do."""
    first, *_ = [*begun[-1].source.strip().split("\n"), ""]
    if hasattr(error, "ename"):  # the cell has raised an error
        *_, last = ["", *str(error.evalue).strip().split("\n")]
        reason = f"{error.ename}: {last.strip()}".removesuffix(": ")
    else:
        reason, *_ = str(error).split("\n")
    return (
        f"{name}: code cell {len(begun)} fails. Its first line is: {first}\n{reason}\n"
        f"Correct the cell, for example in jupyter lab {name}, and run this command again."
    )


def _needed(name: str) -> Any:
    try:
        return __import__(name)
    except ModuleNotFoundError:
        raise UserError(f'{name} is not installed. It is a part of the docs extra: pip install -e ".[docs]"') from None


def digest(path: Path) -> str:
    """Return a digest of a notebook, the version of the zoo, and the cards of the pretrained checkpoints."""
    found = hashlib.sha256(path.read_bytes() + zoo.__version__.encode())
    for card in sorted((ROOT / "zoo" / "weights").glob("*.json")):  # a card has the digest of its weights
        found.update(card.read_bytes())
    return found.hexdigest()[:16]


def executed(name: str):
    """Return the executed notebook, from ``build/notebooks`` if it is there. If not, execute it and keep it there."""
    path = NOTEBOOKS / f"{name}.ipynb"
    kept = CACHE / f"{name}-{digest(path)}.ipynb"
    if kept.is_file():
        return read(kept)
    notebook, began = read(path), time.monotonic()
    print(f"executing notebooks/{path.name} ", end="", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            execute(notebook, Path(folder), progress=True, name=f"notebooks/{path.name}")
        except BaseException:
            print(flush=True)  # ends the line of dots
            raise
    print(f" {time.monotonic() - began:.0f} s", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(f"{name}-*.ipynb"):
        old.unlink()
    part = kept.with_suffix(".part")  # a killed process leaves no incomplete notebook under the final name
    _needed("nbformat").write(notebook, part)
    part.replace(kept)
    return notebook


def rendered(name: str, notebook) -> tuple[str, dict[str, bytes]]:
    """Return an executed notebook as Markdown, and its pictures by their file names.

    Messages on the error stream, such as progress bars, are left out.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    section = title(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            section = (re.findall("^#+ (.*)$", cell.source, re.MULTILINE) or [section])[-1]
            continue
        parts.append(f"```python\n{cell.source}\n```")
        text = ""
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "stream" and output.name == "stdout":
                text += output.text
            elif "image/png" in data:
                if text:
                    parts, text = [*parts, fenced(text)], ""
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![Picture of the section: {section}]({file})")
            elif "text/plain" in data:
                text += data["text/plain"] + "\n"
        if text:
            parts.append(fenced(text))
    first, *rest = parts
    download = f"[Download this notebook]({name}.ipynb). The outputs below are from its last execution."
    heading, _, introduction = first.partition("\n")
    return "\n\n".join([heading, download, introduction.strip(), *rest]) + "\n", pictures


def fenced(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def title(notebook) -> str:
    """Return the title of a notebook, the heading of its first cell."""
    return notebook.cells[0].source.split("\n")[0].removeprefix("# ")


@functools.cache
def _everything() -> tuple[dict[str, str], dict[str, bytes]]:
    made: dict[str, str] = {}
    written: dict[str, bytes] = {}
    rows = []
    for name, about in ORDER.items():
        notebook = executed(name)
        made[f"notebooks/{name}.md"], pictures = rendered(name, notebook)
        written |= {f"notebooks/{file}": png for file, png in pictures.items()}
        written[f"notebooks/{name}.ipynb"] = (NOTEBOOKS / f"{name}.ipynb").read_bytes()
        rows.append(f"| [{title(notebook)}]({name}.md) | {about} |")
    made["notebooks/index.md"] = INDEX.format(rows="\n".join(rows))
    return made, written


def pages() -> dict[str, str]:
    """Return the pages, Markdown by path in the site."""
    return dict(_everything()[0])


def files() -> dict[str, bytes]:
    """Return the pictures and the notebooks, bytes by path in the site."""
    return dict(_everything()[1])


if __name__ == "__main__":
    try:
        print(f"{len(pages())} pages, {len(files())} files")
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: the notebooks executed so far are kept in build/notebooks")
