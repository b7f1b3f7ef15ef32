"""Commands, rows and pictures of the README are valid."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import config

import zoo
from zoo.__main__ import _conditions, parser

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind in ("", "bash") for line in block.splitlines()]
COMMANDS = sorted({c.strip() for line in LINES for c in re.split(r"&&|;|#", line)})
TRAIN = [c for c in COMMANDS if c.startswith("python train.py")]
ZOO = [c for c in COMMANDS if c.startswith("python -m zoo")]


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"@[A-Z_]+@", README)


def test_there_are_commands():
    assert len(TRAIN) >= 8 and len(ZOO) >= 4


@pytest.mark.parametrize("command", TRAIN)
def test_training_commands_compose(command):
    overrides = [o for o in shlex.split(command)[2:] if "=" in o and not o.startswith("hydra.")]
    if "-m" in shlex.split(command):  # in a sweep, only the first job is composed
        overrides = [o.split(",")[0] for o in overrides]
    config("/nowhere", *overrides)


@pytest.mark.parametrize("command", ZOO)
def test_zoo_commands_parse(command):
    args = parser().parse_args(shlex.split(command)[3:])
    for condition in getattr(args, "condition", []):
        assert _conditions(condition)


def test_every_model_has_its_row_and_unbuilt_ones_say_so():
    for name in ("vae", "cvae", "vade", "rbm", "gan", "wgan", "infogan", "ddpm", "score", "skipgram"):
        (row,) = re.findall(rf"^\| `{name}` \|.*$", README, re.MULTILINE)
        assert ("not built yet" in row) == (name not in zoo.list_models()), row


def test_pictures_are_there():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (Path(__file__).parents[2] / path).is_file(), path
