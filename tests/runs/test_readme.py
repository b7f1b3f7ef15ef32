"""Tests of the README and of docs/. Commands are valid, links have targets, and numbers agree with the cards."""

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
TEXT = {page: page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "CONTRIBUTING.md"]}
README = TEXT[ROOT / "README.md"]


def blocks(page, *kinds):
    found = re.findall(r"^```(\w*)\n(.*?)^```", TEXT[page], re.MULTILINE | re.DOTALL)
    return [block for kind, block in found if kind in kinds]


def commands(page):
    """Return the commands of a page: the lines of its shell blocks, and the code in its text and tables."""
    lines = [line for block in blocks(page, "", "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:python (?:train\.py|-m zoo)|zoo) [^`]*)`", TEXT[page])
    return {part.strip() for line in lines for part in re.split(r"&&|;|#", line)}


COMMANDS = sorted(set().union(*map(commands, PAGES)))
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
    args = parser().parse_args(shlex.split(WORDS[command]))
    for condition in getattr(args, "condition", []):
        assert parse_conditions(condition)


def anchors(page):
    """Return the anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", TEXT[page], flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXT, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if re.match(r"https?:", link) or link == "zoo/made.py":  # the model that CONTRIBUTING.md adds
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


# For each row of the table in the README, a function from the metrics of the card to the number in the row.
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
    if name not in zoo.list_checkpoints():  # without a checkpoint, the cell is empty
        return
    metrics = json.loads((zoo.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))["metrics"]
    assert f"[{NUMBERS[name](metrics)}](docs/results.md#{name})" in row


# For each section of docs/results.md, the numbers that are on the card: metric, factor and format.
DISTANCE = [("classifier_fid", 1, ".2f"), ("classifier_fid_error", 1, ".2f"), ("confident", 100, ".1f")]
LIKELIHOOD = ("test/log_likelihood", 1, ".2f")
SECTIONS = {
    "vae": [LIKELIHOOD],
    "iwae": [LIKELIHOOD],
    "vae-bernoulli": [LIKELIHOOD, ("test/loss", -1, ".2f")],
    "cvae": [LIKELIHOOD, ("judged_accuracy", 100, ".2f")],
    "vade": [("all/accuracy", 100, ".2f"), ("test/accuracy", 100, ".2f")],
    "rbm": [
        *(("test/loss", -1, ".2f"), ("feature_accuracy", 100, ".2f")),
        *((f"test/log_partition_{base}", 1, ".2f") for base in ("base_rate", "coins")),
    ],
    "rbm-features": [("feature_accuracy", 100, ".2f")],
    "gan": DISTANCE,
    "wgan": DISTANCE,
    "wgan-clip": DISTANCE,
    "wgan-ring": [("modes_covered", 1, ".0f"), ("near_a_mode", 100, ".1f")],
    "gan-discrete": [("kl", 1, ".4f")],
    "infogan": DISTANCE,
    "ddpm": [
        *(("bits_per_dim", 1, ".2f"), ("bits_per_dim_error", 1, ".3f")),
        *((f"{m}/{c}", *how) for m, *how in DISTANCE for c in ("num_steps=null", "num_steps=50", "num_steps=50/eta=1")),
    ],
    "ddpm-guided": [
        (f"{m}/{c}eta=1", *how)
        for m, *how in [*DISTANCE, ("judged_accuracy", 100, ".1f")]
        for c in ("", "guidance=0.5/", "guidance=2/")
    ],
    "score": DISTANCE,
    "score-mixture": [("fisher_divergence", 1, ".4f"), ("log_density_gap", 1, ".3f")],
    "skipgram": [("analogies", 100, ".1f"), ("wordsim353", 1, ".3f"), ("simlex999", 1, ".3f")],
    "classifier": [("test/accuracy", 100, ".2f")],
    "classifier-fashion": [("test/accuracy", 100, ".2f")],
}


def section(name):
    """Return the section of docs/results.md on a checkpoint."""
    (text,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", TEXT[ROOT / "docs" / "results.md"], re.MULTILINE | re.DOTALL)
    return text


@pytest.mark.parametrize("name", zoo.list_checkpoints())
def test_results_have_the_numbers_of_the_card(name):
    text = section(name) + (section("rbm-features") if name == "rbm" else "")
    metrics = json.loads((zoo.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))["metrics"]
    for metric, factor, digits in SECTIONS[name]:
        number = f"{factor * metrics[metric]:{digits}}"
        assert re.search(rf"(?<![\d.-]){re.escape(number)}(?![\d])", text), f"{metric} is {number} on the card"
    if name == "rbm":  # the interval of log Z
        at_zero = metrics["test/log_partition"] - metrics["test/loss"]  # log p(x) if log Z were 0
        for end in ("low", "high"):
            assert f"| {at_zero - metrics[f'test/log_partition_{end}']:.2f} |" in text, end


@pytest.mark.parametrize("name", zoo.list_checkpoints())
def test_the_command_of_results_has_the_seed_and_the_epochs_of_the_card(name):
    card = json.loads((zoo.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    command = re.search(r"^python train\.py .*$", section(name), re.MULTILINE).group()
    seeds = re.findall(r"\bseed=(\d+)", command) or ["0"]
    assert {*seeds, *re.findall(r"[Tt]he seed is (\d+)", section(name))} == {str(card["seed"])}
    assert set(re.findall(r"trainer\.max_epochs=(\d+)", command)) <= {str(card["epochs"])}


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
def test_the_python_of_the_page_of_pretrained_models_runs():
    names = {}
    for block in blocks(ROOT / "docs" / "pretrained.md", "python"):
        # Lines that need a service are left out.
        exec(re.sub(r'.*"(?:wandb|hf|https):.*', "", block).replace('"cuda"', '"cpu"'), names)
    assert names["posterior"].mu.shape == (16, 50) and names["log_px"].shape == (16,)
    assert len(names["words"]) == 5 and names["digits"].shape == (8, 1, 28, 28)
    assert type(names["model"]) is zoo.WGAN and names["pipeline"].steps
