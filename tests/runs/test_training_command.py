"""Tests of the ways to start a training: ``zoo train``, ``python -m zoo train`` and train.py of a checkout."""

import json
import sys

import pytest
from processes import ROOT, done

import zoo.__main__ as command_line
from zoo.commands import training

# This script starts a training in one of three ways. The job of the training prints the words of the program.
START = """
import json, runpy, sys
from zoo.commands import training
training.job = lambda cfg: print("words", json.dumps([cfg.seed, *sys.argv]))
sys.argv = {argv!r}
{start}
"""
STARTS = {
    "train.py": ([], f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"),
    "zoo": (["train"], "from zoo.__main__ import run; run()"),
    "-m": (["train"], "runpy.run_module('zoo', run_name='__main__')"),
}


@pytest.mark.parametrize("program", STARTS)
def test_other_processes_of_a_run_start_with_the_words_that_the_user_typed(program, tmp_path):
    """Lightning starts them with ``sys.argv``, in which Hydra's grammar needs no quotes and no home folder yet."""
    words, start = STARTS[program]
    argv = [program, *words, "model=vae", "--config-dir=.", f"hydra.run.dir={tmp_path / 'a b'}", "seed=3"]
    ended = done("-c", START.format(argv=argv, start=start))
    assert ended.returncode == 0, ended.stderr
    (printed,) = [line for line in ended.stdout.splitlines() if line.startswith("words ")]
    assert json.loads(printed.removeprefix("words ")) == [3, *argv]


@pytest.mark.parametrize("words", [["train"], ["train", "--help"], ["train", "-m", "seed=0,1", "model=vae"]])
def test_hydra_gets_all_words_after_train(words, monkeypatch):
    given = []
    monkeypatch.setattr(training, "run", given.append)
    monkeypatch.setattr(sys, "argv", ["zoo", *words])
    command_line.run()
    assert given == [words[1:]]


def test_train_py_gives_the_functions_of_a_training_to_scripts():
    import train

    assert (train.train, train.build, train.build_all) == (training.train, training.build, training.build_all)
