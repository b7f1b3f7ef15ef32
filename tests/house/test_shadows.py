"""Tests that files and folders in the working folder of a user do not hide modules of the zoo or of libraries."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import zoo

ROOT = Path(zoo.__file__).parent.parent
OWN = "raise ImportError(f'{__name__} is a module of the user')\n"


def python(folder: Path, *arguments: str, path: Path | None = ROOT) -> str:
    """Run Python in ``folder``, and return its output.

    ``folder`` is before the zoo on the import path, as after an editable install.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environment |= {} if path is None else {"PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """Return a folder with files and folders that have the names of modules of the zoo and of its libraries."""
    for name in ("callbacks", "datamodules", "configs", "tests", "lightning", "hydra", "omegaconf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(OWN, encoding="utf-8")
    for name in ("helpers", "train", "random", "argparse", "json", "zipfile", "torch", "numpy"):
        (tmp_path / f"{name}.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "configs" / "train.yaml").write_text("x: 1\n", encoding="utf-8")
    (tmp_path / "wandb").mkdir()  # Weights & Biases makes this folder in the working folder
    return tmp_path


def test_the_folder_above_a_clone_does_not_hide_the_package(tmp_path):
    (tmp_path / "zoo").symlink_to(ROOT)  # a clone in the folder zoo; the package is zoo/zoo
    assert "callable" in python(tmp_path, "-c", "import zoo; print('callable', zoo.load)")
    assert "Models. Train one with: python -m zoo train" in python(tmp_path, "-m", "zoo", "list")


def test_a_folder_named_zoo_with_something_else_in_it_does_not_either(tmp_path):
    (tmp_path / "zoo" / "weights").mkdir(parents=True)
    (tmp_path / "zoo" / "lion.txt").touch()
    assert "ddpm" in python(tmp_path, "-c", "import zoo; print(zoo.list_models())")


def test_an_installed_package_is_found_by_its_path_and_not_by_a_finder():
    """For an editable install, hatchling writes a .pth file, which adds the folder to the import path.

    setuptools would install an import hook. Python uses such a hook only after the import path.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["build-system"]["build-backend"] == "hatchling.build"
    assert "dev-mode-exact" not in settings["tool"]["hatch"]["build"]
    assert not (ROOT / "__init__.py").exists()


def test_commands_run_in_a_folder_of_any_names(folder):
    assert "ddpm" in python(folder, "-m", "zoo", "list")


@pytest.mark.slow
def test_samples_are_drawn_in_a_folder_of_any_names(folder):
    python(folder, "-m", "zoo", "sample", "vae", "-n", "1")
    assert (folder / "samples.png").is_file()


def test_train_py_runs_from_another_folder_whatever_is_in_it(folder):
    (folder / "zoo.py").write_text(OWN, encoding="utf-8")
    printed = python(folder, str(ROOT / "train.py"), "model=vae", "--cfg", "job")
    assert "zoo.vae.VAE" in printed


def test_the_working_folder_stays_where_it_holds_the_zoo():
    assert "ddpm" in python(ROOT, "-m", "zoo", "list")
    assert "ddpm" in python(ROOT, "-m", "zoo", "list", path=None)  # without an installed zoo
