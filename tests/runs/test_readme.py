"""What the README and the pages of docs/ say: commands can be typed, links lead somewhere, numbers are the cards'."""

import json
import re
import shlex
from pathlib import Path

import pytest
from helpers import TINY, config, run

import zoo
from zoo.__main__ import _conditions, parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page: page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "CONTRIBUTING.md"]}
README = TEXT[ROOT / "README.md"]


def blocks(page, *kinds):
    found = re.findall(r"^```(\w*)\n(.*?)^```", TEXT[page], re.MULTILINE | re.DOTALL)
    return [block for kind, block in found if kind in kinds]


def commands(page):
    """Return the commands of a page: the lines of its shell blocks, and the code in its text and tables."""
    lines = [line for block in blocks(page, "", "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(python (?:train\.py|-m zoo)[^`]*)`", TEXT[page])
    return {part.strip() for line in lines for part in re.split(r"&&|;|#", line)}


COMMANDS = sorted(set().union(*map(commands, PAGES)))
TRAIN = [c for c in COMMANDS if c.startswith("python train.py ") and "--help" not in c and "..." not in c]
ZOO = [c for c in COMMANDS if c.startswith("python -m zoo ") and "--help" not in c]


def test_there_are_commands():
    assert len(TRAIN) >= 40 and len(ZOO) >= 20


@pytest.mark.parametrize("command", TRAIN)
def test_training_commands_compose(command):
    overrides = [o for o in shlex.split(command)[2:] if "=" in o and not o.startswith("hydra.")]
    if "-m" in shlex.split(command):  # a sweep: its first job
        overrides = [o.split(",")[0] for o in overrides]
    config("/nowhere", *overrides)


@pytest.mark.parametrize("command", ZOO)
def test_zoo_commands_parse(command):
    args = parser().parse_args(shlex.split(command)[3:])
    for condition in getattr(args, "condition", []):
        assert _conditions(condition)


def anchors(page):
    """Return the anchors of a page's headings, as hosts of Markdown make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", TEXT[page], flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXT, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", TEXT, ids=lambda page: page.name)
def test_tables_have_at_most_five_columns(page):
    for line in TEXT[page].splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) <= 6, line


def test_the_readme_is_one_screen():
    assert len(README.splitlines()) <= 150
    assert len(re.findall(r"^!\[", README, re.MULTILINE)) == 1


# Where a card holds the number of README's row, and how the row writes it.
NUMBERS = {
    "vae": lambda m: f"{m['test/log_likelihood']:.2f}",
    "cvae": lambda m: f"{100 * m['judged_accuracy']:.2f}",
    "vade": lambda m: f"{100 * m['test/accuracy']:.2f}",
    "rbm": lambda m: f"{-m['test/loss']:.2f}",
    "gan": lambda m: f"{m['classifier_fid']:.2f}",
    "wgan": lambda m: f"{m['classifier_fid']:.2f}",
    "infogan": lambda m: f"{100 * (1 - m['test/accuracy']):.1f}",
    "ddpm": lambda m: f"{m['bits_per_dim']:.2f}",
    "score": lambda m: f"{m['classifier_fid']:.2f}",
    "skipgram": lambda m: f"{100 * m['analogies']:.1f}",
}


@pytest.mark.parametrize("name", zoo.list_models())
def test_every_model_has_its_row_with_the_number_of_its_card(name):
    (row,) = re.findall(rf"^\| `{name}` \|.*$", README, re.MULTILINE)
    assert f"[zoo/{name}.py](zoo/{name}.py)" in row
    if name not in zoo.list_checkpoints():  # its row has an empty number
        return
    metrics = json.loads((zoo.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))["metrics"]
    assert f"[{NUMBERS[name](metrics)}](docs/results.md#{name})" in row


def test_every_checkpoint_has_its_section_of_results():
    assert set(zoo.list_checkpoints()) <= anchors(ROOT / "docs" / "results.md")


def test_the_lines_of_python_run():
    (block,) = blocks(ROOT / "README.md", "python")
    names = {}
    exec(block, names)
    assert names["images"].shape == (8, 1, 28, 28) and 0 <= names["images"].min() <= names["images"].max() <= 1


def test_the_callback_of_the_page_on_training_runs(tmp_path, monkeypatch, capsys):
    (block,) = blocks(ROOT / "docs" / "running.md", "python")
    (tmp_path / "my_callbacks.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = (c for c in COMMANDS if "my_callbacks" in c)
    added = [o for o in shlex.split(line) if o.startswith("+")]
    run(
        tmp_path / "run",
        *TINY["vae"],
        "callbacks=none",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        *added,
    )
    assert re.search(r"^epoch 0: [\d.]+ nats$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
def test_the_python_of_the_page_of_pretrained_models_runs():
    names = {}
    for block in blocks(ROOT / "docs" / "pretrained.md", "python"):
        exec(re.sub(r'.*"wandb:.*', "", block), names)  # needs the service
    assert names["posterior"].mu.shape == (16, 50) and names["log_px"].shape == (16,)
    assert len(names["words"]) == 5 and names["digits"].shape == (8, 1, 28, 28)
