"""Tests that help, lists and completion come at once: they import neither torch, nor Lightning, nor Hydra."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
import zoo.__main__ as command_line
from zoo.commands import parser

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "lightning", "hydra", "omegaconf", "numpy")
NAMES = sorted(name for group in parser.GROUPS.values() for name in group)
LIGHT = [
    ["--help"],
    [],
    ["--version"],
    ["list"],
    ["report"],
    ["report", "numbers", "gan", "speed-rbm"],
    ["report", "--check"],
    ["completion", "bash"],
    ["sampel"],
    *([name, "--help"] for name in NAMES),
]
LIGHT += [["sample"], ["sample", "vae", "--sed", "1"], ["resume", "-m"]]
TRY = """
import json, sys
import zoo.__main__ as command_line
for words in {commands}:
    sys.argv = ["zoo", *words]
    try:
        command_line.run()
    except SystemExit as end:
        pass
    imported = [name for name in {heavy} if name in sys.modules]
    print(json.dumps([words, imported]), file=sys.stderr)
"""


def test_light_commands_import_no_large_library():
    script = TRY.format(commands=LIGHT, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[[")]
    assert seen == [[words, []] for words in LIGHT]


def said(monkeypatch, capsys, *words):
    """Return the exit status of ``zoo`` with ``words``, and what it prints."""
    monkeypatch.setattr(sys, "argv", ["zoo", *words])
    try:
        command_line.main()
        status = 0
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out + err


USAGE = [
    (["sampel"], "error: there is no command sampel (did you mean sample?); see zoo --help\n"),
    (["trian", "model=vae"], "error: there is no command trian (did you mean train?); see zoo --help\n"),
    (["xyz"], "error: there is no command xyz; see zoo --help\n"),
    (["--verion"], "error: unrecognized arguments: --verion (did you mean --version?); see zoo --help\n"),
    (
        ["sample"],
        "error: the following arguments are required: SOURCE, for example zoo sample vae -n 16 -o vae.png; "
        "see zoo sample --help\n",
    ),
    (
        ["sample", "vae", "-n", "two"],
        "error: argument -n: 'two' is not an integer, such as 16; see zoo sample --help\n",
    ),
    (["sample", "vae", "-n", "0"], "error: n must be an integer of at least 1, got 0; see zoo sample --help\n"),
    *(
        (
            words,
            f"error: argument {words[-2]}: the value is empty: give a value, or leave out the option; see zoo {name} "
            "--help\n",
        )
        for name, *options in (
            ("evaluate", "--data"),
            ("compare", "--data", "--estimators"),
            ("export", "--data", "--keep"),
            ("push", "--data"),
            ("sample", "--images"),
        )
        for option in options
        for words in [[name, "vae", *["me/vae"] * (name in ("export", "push")), option, ""]]
    ),
]


@pytest.mark.parametrize(("words", "message"), USAGE)
def test_a_wrong_command_line_has_status_2_and_a_suggestion(words, message, monkeypatch, capsys):
    assert said(monkeypatch, capsys, *words) == (2, message)


@pytest.mark.parametrize(
    ("command", "printed"), [("PYTHONIOENCODING=ascii {} -m zoo list vae", "-87.14 \\xb1"), ("{} -m zoo list >&-", "")]
)
def test_a_poor_or_closed_standard_output_is_no_error(command, printed):
    done = subprocess.run(["sh", "-c", command.format(sys.executable)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert printed in done.stdout


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    assert said(monkeypatch, capsys, "--version") == (0, f"zoo {zoo.__version__}\n")


def test_usage_begins_as_the_user_began(monkeypatch, capsys):
    for program, start in (("/usr/bin/zoo", "zoo"), (str(ROOT / "zoo" / "__main__.py"), "python -m zoo")):
        monkeypatch.setattr(sys, "argv", [program, "sample", "--help"])
        with pytest.raises(SystemExit):
            command_line.main()
        text = capsys.readouterr().out
        assert text.startswith(f"usage: {start} sample") and f"\n  {start} sample vae" in text
