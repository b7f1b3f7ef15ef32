"""Tests of command lines. An error is one line and comes before any work. Help texts are complete.

``zoo`` reports its errors before it imports torch.
"""

import gzip
import re
import shlex
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser

import zoo
import zoo.__main__ as command_line
from zoo.checks.errors import UserError
from zoo.commands import parser
from zoo.commands.conditions import parse_conditions
from zoo.training.command_line import readable_arguments
from zoo.training.files import save_word2vec
from zoo.training.outputs import FileNotWritten, check_picture, check_writable, vectors_format
from zoo.training.trainer import make_trainer

ROOT = Path(__file__).parents[2]

# Wrong arguments, each with a part of its error message. A single process tries them all without importing torch.
REFUSED = [
    (["sample", "vae", "-n", "-3"], "n must be an integer of at least 1, got -3"),
    (["sample", "vae", "--seed", "-5"], "seed must be an integer from 0"),
    (["sample", "vae", "--seed", str(2**32)], "seed must be an integer from 0 to 2^32 - 1, got 4294967296"),
    (["sample", "vae", "-o", "/proc/x/y.png"], "/proc/x/y.png cannot be written: its folder does not allow new"),
    (["sample", "vae", "-o", "/dev/null/y.png"], "/dev/null is not a folder"),
    (["sample", "vae", "-o", "x.jpg"], "ends in .png"),
    (["sample", "vae", "-o", "x.png.gz"], "ends in .png"),
    (["sample", "vae", "-c", "eta"], "written name=value"),
    (["sample", "vaee"], "Did you mean vae?"),
    (["sample", "a" * 300], "File name too long"),
    (["sample", "~/nothing.ckpt"], str(Path.home() / "nothing.ckpt")),
    (["evaluate", "vae", "--bound-images", "3"], "multiple of 5"),
    (["evaluate", "vae", "--samples", "1"], "samples must be"),
    (["evaluate", "vae", "--importance-samples", "-1"], "importance-samples must be"),
    (["evaluate", "https://x/y"], "has no SHA-256 digest"),
    (["compare", "toy", "--draws", "1"], "draws must be"),
    (["compare", "vae", "--batch-size", "0"], "batch-size must be"),
    (["compare", "toy", "-o", "x.pdf"], "ends in .png"),
    (["compare", "vae", "--csv", "x.txt"], "a results file must be a file that ends in .csv, got 'x.txt'"),
    (["compare", "vae", "--csv", "/dev/null/y.csv"], "/dev/null is not a folder"),
    (["curves", "nothing"], "there is no nothing/metrics.csv"),
    (["nearest", "skipgram", "king", "-n", "0"], "n must be"),
    (["vectors", "skipgram", "-o", "v.npy"], ".txt, .vec, .w2v"),
    (["vectors", "skipgram", "-o", "v.txt.zip"], ".gz, .bz2, .xz"),
    (["vectors", "skipgram", "-o", "v.txt", "--binary"], "has the ending of a text file"),
    (["push", "vae", "me/vae", "--dry-run", "/dev/null"], "/dev/null is not a folder"),
    (["export", "vae", "vae"], "exists already: choose another name, or replace it with --force"),
    (["export", "vae", "A b"], "lower-case letters"),
]
TRY = """
import sys
import zoo.__main__ as command_line
sys.stderr = sys.stdout
for arguments in {arguments}:
    sys.argv = ["zoo", *arguments]
    try:
        command_line.main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, flush=True)
    assert "torch" not in sys.modules, arguments
"""


def test_arguments_are_refused_in_one_line_before_torch_is_imported(tmp_path):
    script = TRY.format(arguments=[arguments for arguments, _ in REFUSED])
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(REFUSED)
    for line, (arguments, message) in zip(lines, REFUSED, strict=True):
        assert line.startswith("error: ") and message in line, (arguments, line)


# Help.

COMMANDS = {name: run for group in parser.GROUPS.values() for name, run in group.items()}


def helped(monkeypatch, capsys, *arguments):
    """Return what ``zoo`` prints with ``arguments``, in this process."""
    monkeypatch.setattr(sys, "argv", ["zoo", *arguments])
    with suppress(SystemExit):
        command_line.main()
    return capsys.readouterr().out


def check_text(text):
    """Check that ``text`` suits a terminal: no markup, lines of at most 100 characters, plain words."""
    assert "``" not in text and ":func:" not in text and max(map(len, text.splitlines())) <= 100
    assert not re.search(r"judg|likewise|beside|whole number", text)


def test_the_command_alone_shows_what_there_is(monkeypatch, capsys):
    text = helped(monkeypatch, capsys)
    assert text == helped(monkeypatch, capsys, "--help")
    check_text(text)
    for name, run in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(run.__doc__)}$", text, re.MULTILINE)
    order = ["Train:", "Models and images:", "Words:", "Shell:", "Models (zoo train model=NAME):", "Examples:"]
    assert sorted(order, key=text.index) == order
    for name in [*zoo.list_models(), "train"]:
        assert re.search(rf"^  {name} +[A-Z].{{14,}}$", text, re.MULTILINE), name


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_help_of_a_command_says_what_it_does_with_examples_and_defaults(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    text = helped(monkeypatch, capsys, name, "--help")
    check_text(text)
    assert f"\n\n{COMMANDS[name].__doc__}\n\n" in text
    sub = parser.parser()._subparsers._group_actions[0].choices[name]
    for action in sub._actions[1:]:
        flag = action.nargs == 0
        assert action.help and (flag or action.metavar), action
        if action.option_strings and not flag:
            default = action.default if action.default not in (None, []) else ""
            assert f"(default: {default}" in action.help, action
    examples = [line.strip() for line in text.splitlines() if line.startswith("  zoo")]
    assert len(examples) == len(parser.EXAMPLES[name]) > 0
    for example in examples:
        args = parser.parser().parse_args(shlex.split(example)[1:])
        assert args.command == name
        for condition in getattr(args, "condition", []):
            assert parse_conditions(condition)


def test_models_and_checkpoints_are_listed_with_what_they_are(monkeypatch, capsys):
    lines = helped(monkeypatch, capsys, "list").splitlines()
    for name in zoo.list_models():
        assert [line for line in lines if re.match(rf"  {name} +[A-Z].{{20,}}\.$", line)], name
    for name in zoo.list_checkpoints():
        assert [line for line in lines if re.match(rf"  {name} .* [\d,]+  [a-z_/=0-9]+ -?\d", line)], name
    assert max(map(len, lines)) <= 130


HYDRA = [
    (["model=ddmp"], "model has no 'ddmp'; .*Did you mean ddpm"),
    (["data=mnits"], "data has no 'mnits'; .*Did you mean mnist"),
    (["trainer=gpuu"], "Did you mean gpu"),
    (["modle=vae"], "unknown key modle: .*Did you mean model"),
    (["model=vae", "trainer.max_steps=7"], r"unknown key trainer.max_steps: .*Trainer.* \+trainer.max_steps=7$"),
    (["model.lrr=1"], "Did you mean model.lr"),
    (["model.lr=[1"], "cannot be read: close its brackets"),
    (["model.lr=nothing(1)"], "Unknown function 'nothing'"),
    ([""], "an argument is empty"),
    (["vae"], "'vae' is not an override: write key=value"),
    (["model.lr=1,2"], "has several values: add -m"),
    (["trainer=null"], "must be a string or a list"),
    (["hydra/launcher=nothing"], "hydra/launcher has no 'nothing'"),
    (["--resolve"], "needs --cfg"),
    (["--cfg", "job", "-m"], "only one of"),
]


@pytest.mark.parametrize(("arguments", "message"), HYDRA)
def test_what_hydra_refuses_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as refused:
        readable_arguments(arguments, ROOT / "configs")
    assert "\n" not in str(refused.value) and "HYDRA_FULL_ERROR" not in str(refused.value)


def test_an_unknown_flag_is_one_line(capsys):
    with pytest.raises(SystemExit):
        readable_arguments(["--model=vae", "data=digits"], ROOT / "configs")
    said = capsys.readouterr().err
    assert said.startswith("error: unrecognized arguments: --model=vae; ")
    assert said.count("\n") == 1 and "write settings without dashes, such as model=..." in said


def test_a_flag_can_stand_between_two_settings():
    """Hydra itself rejects this order. Lightning adds settings at the end for the processes that it starts."""
    read = readable_arguments(["data=digits", "--cfg", "job", "seed=1"], ROOT / "configs")
    assert read == ["--cfg", "job", "data=digits", "seed=1"]


def test_a_folder_of_recipes_is_sought_in_the_working_folder(tmp_path, monkeypatch):
    """Hydra would search for a relative path next to the file of its main function."""
    monkeypatch.chdir(tmp_path)
    read = readable_arguments(["--config-path", "mine", "x=1"], ROOT / "configs")
    assert get_args_parser().parse_args(read).config_path == str(tmp_path / "mine") and read[-1] == "x=1"
    package = ["--config-path=pkg://my_package.recipes"]
    assert readable_arguments(package, ROOT / "configs") == package


def test_an_unknown_option_points_to_the_help_of_its_command(monkeypatch, capsys):
    from zoo.__main__ import main

    monkeypatch.setattr(sys, "argv", ["zoo", "sample", "vae", "--seeed", "3"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert said == "error: unrecognized arguments: --seeed 3 (did you mean --seed?); see zoo sample --help\n"


def test_paths_are_read_as_people_type_them(monkeypatch):
    monkeypatch.setenv("HOME", "/home/a b")
    typed = ["data=textfile", "data.path=~/x.txt", "ckpt=runs/x=1/last.ckpt", "hydra.run.dir=ü,$'q", "+a=[1,2]"]
    read = readable_arguments(typed, ROOT / "configs")
    assert read == [
        "data=textfile",
        'data.path="/home/a b/x.txt"',
        'ckpt="runs/x=1/last.ckpt"',
        'hydra.run.dir="ü,$\'q"',
        "+a=[1,2]",
    ]
    assert readable_arguments(read, ROOT / "configs") == read
    # Lightning passes the folder in this form to the processes that it starts.
    assert readable_arguments(['hydra.run.dir="a"b"'], ROOT / "configs") == [r'hydra.run.dir="a\"b"']
    assert readable_arguments(["--config-dir=~/c"], ROOT / "configs") == ["--config-dir=/home/a b/c"]
    swept = ["-m", "data=textfile", "data.path=~/x,b c", "model=skipgram"]
    assert readable_arguments(swept, ROOT / "configs")[2] == 'data.path="/home/a b/x","b c"'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "dpp"}, "Did you mean ddp"),
        ({"accelerator": "cpuu"}, "Did you mean cpu"),
        ({"accelerator": "tpu"}, "is not available on this machine"),
        ({"max_epoch": 3}, "Did you mean max_epochs"),
        ({"devices": 0}, "devices must be"),
        ({"devices": "two"}, "devices must be"),
        ({"limit_train_batches": "x"}, "must be a number of batches"),
        ({"limit_val_batches": -1}, "invalid value -1"),
        ({"val_check_interval": "x"}, "Invalid time format"),
    ],
)
def test_arguments_of_the_trainer_are_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as refused:
        make_trainer(**{"accelerator": "cpu", "devices": 1, **arguments})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["v", "v.txt", "v.VEC", "v.bin", "v.bin.gz", "v.txt.bz2", "v.txt.XZ"])
def test_vectors_are_written_in_the_format_that_the_name_promises(name, tmp_path):
    from gensim.models import KeyedVectors

    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.5]])
    save_word2vec(["a", "b"], vectors, tmp_path / name)
    start = (tmp_path / name).read_bytes()[:3]
    packed = {"gz": b"\x1f\x8b\x08", "bz2": b"BZh", "xz": b"\xfd7z"}.get(name.lower().rpartition(".")[2], b"2 2")
    assert start == packed
    if packed != b"\xfd7z":  # gensim does not read xz files
        read = KeyedVectors.load_word2vec_format(tmp_path / name, binary=".bin" in name)
        assert read["b"].tolist() == [3.0, 4.5]
    if name.endswith("gz"):
        assert gzip.decompress((tmp_path / name).read_bytes()).startswith(b"2 2\n")


def test_a_place_that_takes_no_file_is_found_out_beforehand(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "x.png")
    assert list(tmp_path.iterdir()) == []  # the check leaves no file behind
    for wrong in ("/proc/x.png", "/dev/null/x.png", tmp_path / ("a" * 300)):
        with pytest.raises(FileNotWritten, match="cannot be written"):
            check_writable(Path(wrong, "y.png"))


def test_a_name_that_has_moved_warns_once():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        exec("from zoo.sampling import save_grid")
    assert len(warned) == 1


def test_a_folder_is_no_picture_and_a_name_without_an_ending_may_be_binary(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"a picture must be a file that ends in \.png"):
        check_picture(tmp_path / "a.png")
    assert vectors_format(tmp_path / "vectors", binary=True) == (True, None)


def help_of_training():
    """Return Hydra's settings that print the help of ``zoo train``."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", return_hydra_config=True).hydra.help


def test_the_help_of_training_names_every_group_and_its_examples_compose():
    shown = help_of_training()
    text = str(shown.template)
    check_text(text)
    assert "$APP_CONFIG_GROUPS" in text and "zoo --help" in text
    groups = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()} - {"hydra", "local", "sweeps"}
    assert {line.split()[0] for line in text.split("Groups:\n")[1].split("\n\n")[0].splitlines()} == groups
    examples = re.findall(r"^  .*: +zoo train (.*=.*)$", text, re.MULTILINE)
    assert len(examples) >= 5
    for example in examples:
        readable_arguments(shlex.split(example), ROOT / "configs")


@pytest.mark.slow
def test_training_prints_its_help():
    done = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("usage: python train.py") and done.stdout.count("\n") < 50
    for name in zoo.list_models():
        assert re.search(rf"^model: .*\b{name}\b", done.stdout, re.MULTILINE)
