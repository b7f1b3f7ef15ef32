"""Tests of ``zoo report`` on the documentation: every table agrees with its source, and a difference is found."""

import csv
import json
import math
import re
import shutil
import statistics
import sys

import pytest
from processes import ROOT

import zoo
import zoo.__main__ as command_line
from zoo.checks.errors import UserError
from zoo.commands.pages import Documentation
from zoo.evaluation.published import METRICS, numbers_of, rounded_error
from zoo.evaluation.results import read_results, significant, write_results

PAGES_OF_NUMBERS = ("README.md", "docs/results.md", "docs/reproducibility.md", "docs/estimators.md", "docs/speed.md")


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the pages, the results files and the cards."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.png", "*.py", "__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "zoo" / "weights").mkdir(parents=True)
    for card in (ROOT / "zoo" / "weights").glob("*.json"):
        shutil.copy(card, tmp_path / "zoo" / "weights")
    return tmp_path


@pytest.fixture
def report(monkeypatch, capsys):
    """Return a function that runs ``zoo report`` with some words. It returns the exit status and the output."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["zoo", "report", *map(str, words)])
        try:
            command_line.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().out

    return run


def replace(file, before, after):
    text = file.read_text(encoding="utf-8")
    assert text.count(before) >= 1, f"{before} is not in {file}"
    file.write_text(text.replace(before, after, 1), encoding="utf-8")


def test_every_table_of_the_documentation_agrees_with_its_source(report):
    assert Documentation().problems() == []
    status, said = report("--check")
    assert status == 0 and re.fullmatch(r"\d\d tables agree with their sources\n", said)


def number(card, key):
    """Return a number of a card as the tables show it."""
    return next(number for number in numbers_of(card) if number.key == key)


def other(text):
    """Return a number whose last digit differs."""
    return text[:-1] + str((int(text[-1]) + 1) % 10)


CARDS = Documentation().cards
GAN, VAE = number(CARDS["gan"], "classifier_fid"), number(CARDS["vae"], "test/log_likelihood")
CELLS = f"| {GAN.text} | {GAN.error_text} |"
SEEDS = Documentation().seeds["gan"]["classifier_fid"]
DIGITS = [
    ("docs/results.md", CELLS, CELLS.replace(GAN.text, other(GAN.text)), "docs/results.md: the table gan differs"),
    ("docs/speed.md", "| `vae` | 56.3 |", "| `vae` | 56.4 |", "docs/speed.md: the table speed-steps differs"),
    ("docs/estimators.md", "| 4,620 |", "| 4,621 |", "docs/estimators.md: the table estimators-vae differs"),
    ("README.md", f"[{VAE.text}]", f"[{other(VAE.text)}]", "README.md: the table models differs"),
    ("docs/reproducibility.md", "3.7 to 4.0", "3.7 to 4.1", "docs/reproducibility.md: the table seeds differs"),
    ("docs/reproducibility.md", "| 6,423 |", "| 6,422 |", "docs/reproducibility.md: the table conditions differs"),
    ("docs/results/speed-rbm.csv", "15200", "15201", "docs/speed.md: the table speed-rbm differs"),
    ("docs/results/seeds/gan.csv", SEEDS["max"][:4], "9.99", "docs/reproducibility.md: the table seeds differs"),
]


@pytest.mark.parametrize(("file", "before", "after", "line"), DIGITS)
def test_one_changed_digit_is_found(file, before, after, line, copy, report):
    replace(copy / file, before, after)
    status, said = report("--check", "--folder", copy)
    assert status == 1
    assert said.startswith(line) and said.count("\n") == 1, said


def test_a_digit_that_changes_on_a_card_is_found_in_each_of_its_tables(copy, report):
    card = copy / "zoo" / "weights" / "vae.json"
    before = CARDS["vae"]["metrics"]["test/log_likelihood"]
    replace(card, f'"test/log_likelihood": {before}', f'"test/log_likelihood": {before + 1}')
    after = f"{before + 1:.{len(VAE.text.partition('.')[2])}f}"
    status, said = report("--check", "--folder", copy)
    assert status == 1
    assert re.findall(r"the table (\w+) differs", said) == ["models", "numbers", "before", "vae"]
    assert f"it has '| test log p(x), nats | {VAE.text} | {VAE.error_text} | -86.76 |'" in said
    assert f"the source gives '| test log p(x), nats | {after} | {VAE.error_text} | -86.76 |'" in said


def test_a_source_that_is_removed_is_found(copy, report):
    (copy / "zoo" / "weights" / "gan-discrete.json").unlink()
    (copy / "docs" / "results" / "speed-shapes.csv").unlink()
    status, said = report("--check", "--folder", copy)
    assert status == 1
    for page, name in (("results", "gan-discrete"), ("speed", "speed-shapes")):
        sources = f"neither zoo/weights/{name}.json nor docs/results/{name}.csv"
        assert f"docs/{page}.md: the table {name} has no source: there is {sources}" in said
    before = {page: (copy / page).read_bytes() for page in PAGES_OF_NUMBERS}
    assert report("--write", "--folder", copy)[0] != 0
    assert before == {page: (copy / page).read_bytes() for page in PAGES_OF_NUMBERS}


def test_results_over_seeds_that_are_removed_are_found(copy, report):
    shutil.rmtree(copy / "docs" / "results" / "seeds")
    status, said = report("--check", "--folder", copy)
    assert status == 1 and said.startswith("docs/reproducibility.md: the table seeds has no source"), said


MARKERS = [
    ("<!-- zoo report gan -->", "", "the table gan (zoo/weights/gan.json) is on no page"),
    ("<!-- zoo report gan -->", "<!-- zoo report gam -->", "docs/results.md: the table gam has no source"),
    (CELLS, f"{CELLS}\n<!-- zoo report vae -->", "docs/results.md: the table gan does not end"),
]


@pytest.mark.parametrize(("before", "after", "line"), MARKERS)
def test_a_comment_that_is_removed_or_misspelt_is_found(before, after, line, copy, report):
    replace(copy / "docs" / "results.md", before, after)
    status, said = report("--check", "--folder", copy)
    assert status == 1 and line in said, said


AGREE = f"{len(Documentation().shown())} tables agree with their sources\n"


def test_writing_changes_tables_and_nothing_else(copy, report):
    before = (copy / "docs" / "results.md").read_bytes()
    replace(copy / "docs" / "results.md", CELLS, f"| 3.99 | {GAN.error_text} |")
    assert report("--write", "--folder", copy) == (0, f"Wrote docs/results.md\n{AGREE}")
    assert (copy / "docs" / "results.md").read_bytes() == before
    assert report("--write", "--folder", copy) == (0, AGREE)


def test_a_new_card_enters_the_tables_without_a_change_of_code(copy, report):
    card = json.loads((copy / "zoo" / "weights" / "wgan.json").read_text(encoding="utf-8"))
    card |= {"name": "wgan-letters", "data": "fashion_mnist", "metrics": {**card["metrics"], "classifier_fid": 1.2345}}
    (copy / "zoo" / "weights" / "wgan-letters.json").write_text(json.dumps(card), encoding="utf-8")
    assert (
        "the table wgan-letters (zoo/weights/wgan-letters.json) is on no page" in report("--check", "--folder", copy)[1]
    )
    replace(copy / "docs" / "results.md", "## score\n", "<!-- zoo report wgan-letters -->\n<!-- end -->\n\n## score\n")
    assert report("--write", "--folder", copy)[0] == 0
    page = (copy / "docs" / "reproducibility.md").read_text(encoding="utf-8")
    shown = number(card, "classifier_fid")
    assert shown.text.startswith("1.23")
    row = f"| classifier-FID, 10,000 samples | {shown.text} | {shown.error_text} |"
    assert f"| `wgan-letters` {row} |" in page
    assert row in (copy / "docs" / "results.md").read_text(encoding="utf-8")
    assert report("--check", "--folder", copy)[0] == 0


def test_numbers_before_the_last_training_stand_next_to_the_new_ones(copy, report):
    file = copy / "zoo" / "weights" / "gan.json"
    card = json.loads(file.read_text(encoding="utf-8"))
    older = {"metrics": {"classifier_fid": 9.0}, "command": "python train.py model=gan"}
    without = {key: value for key, value in card["metrics"].items() if not key.startswith("recall")}
    newer = {"metrics": without, "command": card["command"], "samples": {"n": 10_000}}
    card |= {"previous": [older, newer], "metrics": {**card["metrics"], "classifier_fid": 1.1, "recall": 0.5}}
    now = number(card, "classifier_fid")
    file.write_text(json.dumps(card), encoding="utf-8")
    rows = report("before", "--folder", copy)[1].splitlines()
    ours = f"{GAN.text} ({GAN.error_text}) | {now.text} ({now.error_text})"
    assert f"| `gan` | classifier-FID, 10,000 samples | {ours} | |" in rows
    assert not any("`gan` | recall" in row for row in rows)  # the earlier weights have no recall
    assert report("gan", "--folder", copy)[1].count("| recall, 10,000 samples | 0.500 | 0.010 |") == 1
    _, said = report("reproducibility", "--format", "csv", "--folder", copy)
    (row,) = (r for r in csv.DictReader(said.splitlines()) if r["checkpoint"] == "gan" and "FID, 10" in r["metric"])
    assert (row["ours"], row["before"], row["before_standard_error"]) == ("1.1", f"{GAN.value:.6g}", f"{GAN.error:.6g}")
    assert [row[key] for key in ("mean", "smallest", "largest")] == [
        f"{float(SEEDS[key]):.6g}" for key in ("mean", "min", "max")
    ]
    assert (row["seed"], row["seconds"], row["hardware"]) == (str(card["seed"]), str(card["seconds"]), card["hardware"])


def test_tables_outside_the_comments_have_no_measured_numbers():
    """A number is allowed in definitions and in text. A cell that holds nothing else is a measurement."""
    for page in PAGES_OF_NUMBERS:
        text = re.sub(
            r"^<!-- zoo report \S+ -->$.*?^<!-- end -->$",
            "",
            (ROOT / page).read_text(encoding="utf-8"),
            flags=re.M | re.S,
        )
        cells = [cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")]
        assert not [cell for cell in cells if re.fullmatch(r"-?[\d.,e ]+%?", cell)], page


def test_every_checkpoint_has_numbers_and_every_model_a_paper():
    cards = Documentation().cards
    assert sorted(cards) == sorted(zoo.list_checkpoints())
    for name, card in cards.items():
        assert numbers_of(card), f"no metric of {name} is in METRICS"
    assert {name for name, measured in METRICS.items() if measured.paper} == set(zoo.list_models())


def test_standard_errors_are_those_of_their_formulas():
    cards = Documentation().cards
    of = {(name, number.key): number for name, card in cards.items() for number in numbers_of(card)}
    early = cards["cvae"] | {"metrics": {"judged_accuracy": 0.9}, "errors": None, "counts": None}
    early["samples"] = {"n": 900}
    assert numbers_of(early)[0].error == pytest.approx(1)  # the fraction of 900 samples has a binomial error
    early["metrics"]["judged_accuracy_error"] = 0.005
    assert numbers_of(early)[0].error == pytest.approx(0.5)
    parts = cards["vae"]["log_likelihood"]["of_each_hundred"]
    assert of["vae", "test/log_likelihood"].error == pytest.approx(statistics.stdev(parts) / 10)
    assert of["ddpm", "bits_per_dim"].error == cards["ddpm"]["metrics"]["bits_per_dim_error"]
    assert of["ddpm-guided", "judged_accuracy/guidance=2/eta=1"].error is None  # all samples are recognised
    measured_again = {"classifier_fid": 1.0, "judged_accuracy": 1.0, "judged_accuracy_error": 0.0}
    assert numbers_of(cards["ddpm-guided"] | {"metrics": measured_again})[1].error is None
    error = of["infogan", "test/accuracy"].error
    assert error == pytest.approx(100 * math.sqrt(0.9638 * 0.0362 / 10_000), rel=1e-6)
    assert of["infogan", "test/accuracy"].value == pytest.approx(3.62, abs=1e-5)
    terms = [of["ddpm", f"bound/L_{t}"].value for t in "0tT"]
    assert sum(terms) == pytest.approx(cards["ddpm"]["metrics"]["bits_per_dim"])
    assert terms[0] == pytest.approx(cards["ddpm"]["metrics"]["bound/L_0"] / 784 / math.log(2))
    blocks = [row[0] / 784 / math.log(2) for row in cards["ddpm"]["bound"]["of_each_five"]]
    assert of["ddpm", "bound/L_0"].error == pytest.approx(statistics.stdev(blocks) / len(blocks) ** 0.5)
    assert of["ddpm", "bound/L_T"].error is None
    assert rounded_error(0.1177) == "0.12" and rounded_error(1.4142) == "1.4" and rounded_error(12.3) == "12"


def test_a_value_has_the_decimals_of_its_error_and_details_are_on_one_page(report):
    assert [rounded_error(error) for error in (0.0996, 0.0004, 123.0)] == ["0.10", "0.00040", "123"]
    cards = Documentation().cards
    of = {(name, number.key): number for name, card in cards.items() for number in numbers_of(card)}
    early = CARDS["gan"] | {"metrics": {"confident": 0.6412}, "errors": None, "counts": None, "samples": {"n": 10_000}}
    assert [(n.text, n.error_text) for n in numbers_of(early)] == [("64.12", "0.48")]
    assert (of["wgan-ring", "energy_distance"].text, of["wgan-ring", "energy_distance"].error_text) == ("0.0040", "")
    details = ("floor of classifier-FID", "bound, prior", "log Z from fair coins", "lower end of test log p")
    assert not any(text in report("numbers")[1] + report("protocols")[1] for text in details)
    assert all(text in report("gan", "ddpm", "rbm")[1] for text in details)


def test_a_results_file_is_read_as_it_was_written(tmp_path):
    rows = [["`a`, with a comma", significant(15234.0)], ["b", significant(1.5e7)], ["c", significant(0.04512)]]
    write_results(tmp_path / "a.csv", {"command": "c", "seed": 0, "hardware": "h"}, ["name", "rate, x/s"], rows)
    table, about = read_results(tmp_path / "a.csv")
    assert table.rows == rows and about == {"command": "c", "seed": "0", "hardware": "h"}
    assert [row[1] for row in rows] == ["15200", "1.50e7", "0.0451"]


WRONG_FILES = [
    ("name,rate\na,1\n", "does not say its command and its hardware: add a line '# command: ...' on top"),
    ("# command: c\n# hardware: h\nname,rate\na,1,2\n", "has 2 columns, but a row has 3 cells: a,1,2"),
    ("# command: c\n# hardware: h\n", "has no table: add a line with the names of the columns"),
    ("# command: c\n# hardware: h\n\n", "has no table: add a line with the names of the columns"),
    (f"# command: c\n# hardware: h\nname\n{'a' * 200_000}\n", "speed-rbm.csv is damaged (field larger than"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_FILES, ids=range(len(WRONG_FILES)))
def test_a_wrong_results_file_is_refused(text, message, copy, report):
    (copy / "docs" / "results" / "speed-rbm.csv").write_text(text, encoding="utf-8")
    status, said = report("--check", "--folder", copy)
    assert status == 1 and message in said, said


@pytest.mark.parametrize("file", ["docs/results/speed-rbm.csv", "docs/results.md", "zoo/weights/gan.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"<<<<<<< HEAD\n"])
def test_a_damaged_file_is_an_error_that_names_it(file, content, copy, report):
    (copy / file).write_bytes(content)
    status, said = report("--check", "--folder", copy)
    assert status not in (0, None) and (file in f"{status}{said}" or file == "docs/results.md"), (status, said)


def test_writing_ends_with_an_error_if_a_table_is_on_no_page(copy, report):
    replace(copy / "docs" / "results.md", "<!-- zoo report gan -->", "")
    status, said = report("--write", "--folder", copy)
    assert status == 1 and "the table gan (zoo/weights/gan.json) is on no page" in said


def test_a_folder_that_is_no_checkout_is_an_error(tmp_path, report):
    assert "is no checkout: --folder takes a folder with" in report("--folder", tmp_path)[0]


def test_an_installed_package_has_its_cards_and_says_that_pages_are_missing(tmp_path):
    (tmp_path / "zoo" / "weights").mkdir(parents=True)
    shutil.copy(ROOT / "zoo" / "weights" / "gan.json", tmp_path / "zoo" / "weights")
    installed = Documentation(tmp_path)
    assert any("classifier-FID" in cell for row in installed.table("gan").rows for cell in row)
    assert installed.table("reproducibility").rows
    for action in (installed.problems, installed.write):
        with pytest.raises(
            UserError, match="has no docs/results.md: an installed zoo has no pages, so give --folder CHECKOUT"
        ):
            action()


WRONG_WORDS = [
    (["gann"], r"the table gann has no source.*Did you mean gan\?"),
    (["gan", "--check"], "zoo report takes one of NAME and --check at a time"),
    (["--metric", "test/loss"], "--metric is an option of --runs"),
    (["gan", "vae", "--format", "csv"], "--format csv prints one table at a time, got gan, vae"),
    (["--runs", ".", "--points"], "--points needs the name of a metric"),
]


@pytest.mark.parametrize(("words", "message"), WRONG_WORDS)
def test_a_wrong_command_line_says_what_to_do(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["zoo", "report", *words])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert re.search(message, str(end.value.code))  # a text that Python prints, with exit status 1


def test_the_list_names_each_table_with_its_source_and_page(report):
    status, said = report()
    lines = [line.split() for line in said.splitlines()]
    assert status == 0 and ["gan", "zoo/weights/gan.json", "docs/results.md"] in lines
    assert ["speed-rbm", "docs/results/speed-rbm.csv", "docs/speed.md"] in lines
    assert report("gan")[1] == report("gan", "--format", "markdown")[1]
    assert report("gan", "--format", "csv")[1].splitlines()[0] == "metric,ours,standard error"
