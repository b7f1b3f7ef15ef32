"""Tests of completion. Real shells ask the command ``zoo`` for candidates."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
import zoo.__main__ as command_line
from zoo.commands import completion

ROOT = Path(__file__).parents[2]

# Lines that a user has typed, each with candidates for its last word, and words that are no candidates.
LINES = [
    ("zoo ", ["train", "resume", "sample", "completion"], ["model="]),
    ("zoo sa", ["sample"], ["train"]),
    ("zoo sample va", ["vae", "vade", "vae-bernoulli"], ["wgan"]),
    ("zoo sample vae --s", ["--seed"], ["--class"]),
    ("zoo evaluate vae --data fash", ["fashion_mnist"], ["mnist"]),
    ("zoo distance mnist wg", ["wgan", "wgan-clip"], ["mnist"]),
    ("zoo curves runs/vae/a --metric val", ["val/loss"], ["train/loss"]),
    ("zoo report num", ["numbers"], ["gan"]),
    ("zoo report --runs runs/vae/a --metric val", ["val/loss"], ["train/loss"]),
    ("zoo completion ", ["bash", "zsh", "fish"], []),
    ("zoo train ", ["model=", "data=", "seed="], ["sweeps=", "hydra="]),
    ("zoo train model=", ["ddpm", "vae"], ["mnist"]),
    ("zoo train model=ddpm model.wi", ["model.widths="], ["model.latent_dim="]),
    ("zoo resume ", ["runs/vae/a", "trainer="], ["vae"]),
    ("zoo resume runs/vae/a trainer.max_", ["trainer.max_epochs="], ["model.lr="]),
]
BASH = """
source <(zoo completion bash)
function=$(complete -p zoo | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
for COMP_LINE in "$@"; do
    COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMPREPLY=()
    $function zoo
    (IFS=' '; echo "${COMPREPLY[*]}")
done
"""
FISH = """
zoo completion fish | source
for line in $argv
    echo (complete -C $line | string replace -r '\\t.*' '')
end
"""


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a run, and with the program ``zoo``."""
    (tmp_path / "runs" / "vae" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "vae" / "a" / "config.yaml").touch()
    (tmp_path / "runs" / "vae" / "a" / "metrics.csv").write_text("epoch,train/loss,val/loss\n", encoding="utf-8")
    program = tmp_path / "bin" / "zoo"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom zoo.__main__ import run\nrun()\n", encoding="utf-8")
    program.chmod(0o755)
    return tmp_path


def candidates(shell, script, folder):
    """Return the candidates of the shell for each of ``LINES``. An equals sign ends a word only in bash."""
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    options = ["--norc", "--noprofile", "-c", script, "bash"] if shell == "bash" else ["--no-config", "-c", script]
    command = [shell, *options, *(line for line, _, _ in LINES)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return [{word.removeprefix("model=") or word for word in line.split()} for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("shell", "script"), [("bash", BASH), ("fish", FISH)])
def test_a_shell_completes_commands_options_names_and_settings(shell, script, folder):
    pytest.importorskip("argcomplete")
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    found = candidates(shell, script, folder)
    for (line, expected, others), shown in zip(LINES, found, strict=True):
        assert set(expected) <= shown and not shown & set(others), (line, shown)
        words = {word for word in shown if not word.startswith("runs")}
        start = line.rpartition(" ")[2].removeprefix("model=")
        assert all(word.startswith(start) or word == "model=" for word in words), (line, words)


def test_candidates_are_found_without_a_large_library(folder):
    pytest.importorskip("argcomplete")
    script = (
        "import os, sys; os._exit = lambda code: print(*[m for m in ('torch', 'hydra', 'numpy') if m in sys.modules]);"
        "sys.argv = ['zoo']; from zoo.__main__ import main; main()"
    )
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": "zoo train model=", "COMP_POINT": "16"}
    environment = {
        **os.environ,
        **asked,
        "PYTHONPATH": str(ROOT),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(folder / "answer"),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert "model=ddpm" in (folder / "answer").read_text(encoding="utf-8"), done.stderr
    assert done.stdout.split("\n")[0] == ""


def test_every_option_of_a_group_and_every_group_is_a_candidate():
    groups = completion.overrides("", command_line.argparse.Namespace())
    assert {f"{group}=" for group in ("model", "data", "trainer", "logger", "callbacks", "experiment")} <= set(groups)
    assert completion.options_of("model") == zoo.list_models()
    assert "model.patch" in set(completion.keys({"experiment": "ddpm_guided", "model": "ddpm"}))


def test_without_argcomplete_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    monkeypatch.setattr(sys, "argv", ["zoo", "completion", "zsh"])
    with pytest.raises(
        SystemExit, match=r"completion needs the package argcomplete: pip install 'generative-zoo\[completion\]'"
    ):
        command_line.main()
    assert capsys.readouterr().out == ""
