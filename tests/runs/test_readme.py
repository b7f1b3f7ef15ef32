"""Tests of the README and of docs/. Commands are valid, and links have targets.

tests/house/test_report.py compares the numbers with their sources."""

import json
import re
import shlex
from pathlib import Path

import pytest
from helpers import TINY, config, run

import zoo
from zoo.commands.conditions import parse_conditions
from zoo.commands.parser import parser
from zoo.evaluation.distances import classify_images

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page: page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]}
README = TEXT[ROOT / "README.md"]


def blocks(page, *kinds):
    found = re.findall(r"^```(\w*)\n(.*?)^```", TEXT[page], re.MULTILINE | re.DOTALL)
    return [block for kind, block in found if kind in kinds]


def commands(page):
    """Return the commands of a page: the lines of its shell blocks, and the code in its text and tables."""
    lines = [line for block in blocks(page, "", "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:python (?:train\.py|-m zoo)|zoo) [^`]*)`", TEXT[page])
    return {part.strip() for line in lines for part in re.split(r"&&|;|#", line)}


# Cards record the commands of docs/reproducibility.md, together with the commit of the program that ran them.
RECORDED = ROOT / "docs" / "reproducibility.md"
# The page adds a model. tests/house/test_new_model.py runs its commands.
OWN_MODEL = ROOT / "docs" / "own_model.md"
COMMANDS = sorted(set().union(*(commands(page) for page in PAGES if page not in (RECORDED, OWN_MODEL))))
WORDS = {command: re.sub(r"^(python -m zoo|zoo) ", "", command) for command in COMMANDS}  # the words after the program
TRAIN = [c for c in COMMANDS if re.match(r"python train\.py |train\b", WORDS[c]) and not re.search(r"--help|\.\.\.", c)]
ZOO = [c for c in COMMANDS if re.match(r"(python -m )?zoo (?!train\b)", c) and "--help" not in c]


def test_there_are_commands():
    assert len(TRAIN) >= 40 and len(ZOO) >= 20


@pytest.mark.parametrize("command", TRAIN)
def test_training_commands_compose(command):
    overrides = [o for o in shlex.split(WORDS[command]) if "=" in o and not o.startswith(("hydra.", "hydra/"))]
    if "-m" in shlex.split(command):  # the command is a sweep: compose its first job only
        overrides = [o.split(",")[0] for o in overrides if "(" not in o]
    config("/nowhere", *overrides)


@pytest.mark.parametrize("command", ZOO)
def test_zoo_commands_parse(command):
    if WORDS[command] in parser().commands:  # prose names the command without its arguments
        return
    args = parser().parse_args(shlex.split(WORDS[command]))
    for condition in getattr(args, "condition", []):
        assert parse_conditions(condition)


def without_code(page):
    """Return the text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", TEXT[page], flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Return the anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Folders of the site whose pages are generated. tests/house/test_site.py checks the links to them.
GENERATED = ("models/", "estimators/", "callbacks/", "data/", "notebooks/")


@pytest.mark.parametrize("page", TEXT, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        if page.parent == ROOT / "docs" and path.startswith(GENERATED):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", TEXT, ids=lambda page: page.name)
def test_tables_have_at_most_five_columns(page):
    for line in TEXT[page].splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) <= 6, line


def test_the_readme_is_one_screen():
    assert len(README.splitlines()) <= 110
    assert len(re.findall(r"^!\[", README, re.MULTILINE)) == 1


def section(name):
    """Return the section of docs/results.md on a checkpoint."""
    (text,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", TEXT[ROOT / "docs" / "results.md"], re.MULTILINE | re.DOTALL)
    return text


@pytest.mark.parametrize("name", zoo.list_checkpoints())
def test_the_command_of_results_has_the_seed_and_the_epochs_of_the_card(name):
    card = json.loads((zoo.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    block = re.search(r"^```bash\n(.*?)^```", section(name), re.MULTILINE | re.DOTALL).group(1)
    command = re.findall(r"^python train\.py .*$", block, re.MULTILINE)[-1]  # earlier commands made its first weights
    seeds = re.findall(r"\bseed=(\d+)", command) or ["0"]
    assert {*seeds, *re.findall(r"[Tt]he seed is (\d+)", section(name))} == {str(card["seed"])}
    assert set(re.findall(r"trainer\.max_epochs=(\d+)", command)) <= {str(card["epochs"])}


def precision(command):
    words = [w for w in shlex.split(command) if re.match(r"(model|experiment|trainer\.precision)=", w)]
    return config("/nowhere", *words).trainer.precision


@pytest.mark.parametrize("name", zoo.list_checkpoints())
def test_the_command_of_results_has_the_precision_of_the_card(name):
    card = json.loads((zoo.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    command = re.findall(r"^python train\.py .*$", section(name), re.MULTILINE)[-1]
    assert precision(command) == precision(card["command"])


def test_the_table_of_settings_has_the_default_of_each_group():
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    defaults = (ROOT / "configs" / "train.yaml").read_text(encoding="utf-8")
    for group in ("model", "trainer", "logger"):
        (default,) = re.findall(rf"^\| `{group}` \|.*\| `(\w+)` \|$", text, re.MULTILINE)
        assert f"- {group}: {default} " in defaults


def test_every_checkpoint_has_its_section_of_results():
    assert set(zoo.list_checkpoints()) <= anchors(ROOT / "docs" / "results.md")


def test_the_lines_of_python_run():
    (block,) = blocks(ROOT / "README.md", "python")
    names = {}
    exec(block, names)
    sevens = names["sevens"]
    assert sevens.shape == (8, 1, 28, 28) and 0 <= sevens.min() <= sevens.max() <= 1
    assert classify_images(sevens, zoo.load("classifier")).probabilities.argmax(-1).tolist() == [7] * 8


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
    assert re.search(r"^epoch 1: [\d.]+ nats$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
def test_the_python_of_the_pages_on_pretrained_models_and_sharing_runs():
    names = {}
    for block in [b for page in ("pretrained", "sharing") for b in blocks(ROOT / "docs" / f"{page}.md", "python")]:
        # Lines that need a service are left out.
        exec(re.sub(r'.*"(?:wandb|hf|https):.*', "", block).replace('"cuda"', '"cpu"'), names)
    assert names["posterior"].mu.shape == (16, 50) and names["log_px"].shape == (16,)
    assert len(names["words"]) == 5 and names["digits"].shape == (8, 1, 28, 28)
    assert type(names["model"]) is zoo.WGAN and names["pipeline"].steps
