"""Tests of the guides in docs/. Settings in their text exist, and the programs of three guides run.

tests/runs/test_readme.py composes the commands of all pages. tests/house/test_new_model.py tests docs/own_model.md, and
tests/runs/test_own_loop.py tests docs/own_loop.md."""

import contextlib
import io
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from processes import ROOT, done

DOCS = ROOT / "docs"
GUIDES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
GROUPS = ("model", "data", "trainer", "callbacks", "logger", "debug")


def programs(page):
    """Return the blocks of shell and of Python of a page as pairs (language, text), in their order."""
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def leaves(node, prefix=()):
    """Return the keys of a nested dict, and those of its parts, as tuples of names."""
    found = {prefix}
    for key, value in node.items() if isinstance(node, dict) else ():
        found |= leaves(value, (*prefix, str(key)))
    return found


def known_keys():
    """Return every key that a file of configs/ sets, with dots. A recipe names each argument of its class."""
    found = set()
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        group = path.relative_to(ROOT / "configs").parts[:-1]
        prefix = () if "@package _global_" in text else group
        node = OmegaConf.to_container(OmegaConf.create(yaml.safe_load(text) or {}))
        found |= leaves(node, prefix)
    return {".".join(key) for key in found}


KNOWN = known_keys()


def settings(text):
    """Return the keys of the settings in code within a text, such as ``data.size`` of `data.size=32`.

    Keys after ``+`` are new keys. Names of files, such as `model.json`, are no keys.
    """
    key = rf"(?<![\w.+/-])~?((?:{'|'.join(GROUPS)})(?:\.\w+)+)"
    shell = "".join(block for kind, block in BLOCK.findall(text) if kind == "bash")
    code = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = {name for part in [shell, *code] for name in re.findall(rf"{key}=", part)}
    alone = {name for part in code for name in re.findall(rf"^'?{key}'?$", part)}
    return found | {name for name in alone if not re.search(r"\.(py|json|safetensors|png)$", name)}


@pytest.mark.parametrize("page", [*GUIDES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_settings_in_the_text_of_a_page_exist(page):
    found = settings(page.read_text(encoding="utf-8"))
    assert not (unknown := {key for key in found if key not in KNOWN}), f"no recipe has {sorted(unknown)}"


def test_pages_name_settings():
    """The patterns find the settings of pages, in their code and in their commands."""
    text = (DOCS / "variance.md").read_text(encoding="utf-8")
    assert {"callbacks.estimator_variance", "callbacks.estimator_variance.draws", "trainer.max_epochs"} <= settings(
        text
    )
    assert settings("`data.sizes=3`, `~callbacks.nothing` and `+callbacks.new.n=3`") == {
        "data.sizes",
        "callbacks.nothing",
    }
    assert "data.sizes" not in KNOWN and {"data.size", "model.latent_dim", "trainer.max_epochs"} <= KNOWN


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_commands_that_resume_name_settings_that_exist(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command in re.findall(r"(?:^|`)((?:python -m )?zoo resume [^`\n]+)", text, re.MULTILINE):
        given = [word.partition("=")[0] for word in shlex.split(command, comments=True) if "=" in word]
        assert all(key in KNOWN for key in given), command


def test_the_quick_tour_names_no_data_that_must_be_downloaded():
    text = "".join(block for _, block in programs("quick_tour.md"))
    trained = [line for line in text.splitlines() if line.startswith("zoo train")]
    assert len(trained) >= 2 and all(re.search(r"data=(digits|images)\b", line) for line in trained)


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Return a function that runs blocks of a page in their order, in an empty folder, as a reader does.

    The function returns what the blocks print. All blocks of Python share their names, as in one session.
    """
    tools, folder = tmp_path / "bin", tmp_path / "tour"
    tools.mkdir()
    folder.mkdir()
    command = tools / "zoo"  # the zoo of this checkout, also if another one is installed
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m zoo "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.chdir(folder)
    path = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
    starts = "import subprocess, sys; sys.exit(subprocess.run(['sh', '-e', '-c', sys.argv[1]]).returncode)"

    def run(blocks):
        names, said = {}, io.StringIO()
        for kind, text in blocks:
            if kind == "python":
                with contextlib.redirect_stdout(said):
                    exec(text, names)
                continue
            ran = done("-c", starts, text, cwd=folder, PATH=path, timeout=600)
            assert ran.returncode == 0, f"{text}\n{ran.stdout}\n{ran.stderr}"
            said.write(ran.stdout)
        return names, said.getvalue()

    return run


@pytest.mark.slow
def test_the_quick_tour_runs(follow):
    names, said = follow(programs("quick_tour.md"))
    text = (DOCS / "quick_tour.md").read_text(encoding="utf-8")
    for file in re.findall(r"`(runs/tour/[\w./]+)`", text):
        assert Path(file).exists(), file
    for picture in re.findall(r"-o (\S+\.png)", text):
        assert Path(picture).stat().st_size > 1000, picture
    assert re.search(r"test/log_likelihood: -[\d.]+ ± [\d.]+ nats", said) and "score_function" in said
    assert "after 10 epochs" in said  # the curve before the run resumes
    assert names["sevens"].shape == (8, 1, 28, 28) and names["ten"].shape == (10, 1, 28, 28)
    assert names["reconstructed"].shape == (16, 1, 28, 28) and names["posterior"].mu.shape[0] == 16


@pytest.mark.slow
def test_the_noise_scale_of_the_page_on_variance_is_computed(follow):
    """The commands after these blocks take minutes, and have tests in tests/evaluation."""
    _, said = follow(programs("variance.md")[:2])
    assert Path("runs/noise/estimator_variance.png").is_file()
    assert re.search(r"^step \d+: \d+ examples$", said, re.MULTILINE)


@pytest.mark.slow
def test_the_python_of_the_page_on_text_runs(follow):
    names, _ = follow([block for block in programs("own_text.md") if block[0] == "python"])
    assert len(names["similar"]) == 5 and len(names["fourth"]) == 1


def test_every_guide_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(docs/([\w]+\.md)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in GUIDES} - {"index.md"} <= linked  # index.md is the first page of the site


def test_no_paragraph_is_on_two_pages():
    """A paragraph or row of a table of at least twelve words is said once. The home of the site repeats the README."""
    seen: dict[str, Path] = {}
    for page in [*GUIDES, ROOT / "CONTRIBUTING.md"]:
        if page.name == "index.md":
            continue
        text = re.sub(
            r"^```.*?^```|<!-- zoo report.*?<!-- end -->", "", page.read_text(encoding="utf-8"), flags=re.M | re.S
        )
        for part in re.split(r"\n\n|\n(?=[|-])", text):
            words = " ".join(part.split())
            if len(words.split()) >= 12 and not words.startswith("!["):
                assert seen.setdefault(words, page) == page, f"{page.name} repeats {seen[words].name}: {words}"
