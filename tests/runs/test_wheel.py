"""Tests of the built package. They install the wheel, and use it in a folder that holds packages of its own."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import checkpoint
from processes import ROOT, seconds

import zoo
from zoo.training.tables import read_rows

pytestmark = pytest.mark.slow
OWN = "raise ImportError(f'{__name__} is a package of the user')\n"
FAST = ["model=vae", "data=digits", "debug=fast", "logger=csv"]


def built(folder, out, target):
    """Build the source distribution or the wheel of the project in ``folder``, and return the file."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return built(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


def contents(wheel):
    """Return the files of a wheel as a dict from names to bytes, without the list of their digests."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if not name.endswith("/RECORD")}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the folder of programs of an environment that holds the wheel. It finds the libraries of this Python."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    (packages,) = place.glob("lib/python*/site-packages")
    # Python does not read .pth files of folders that a .pth file names. So a checkout that is installed stays hidden.
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    return python.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return an empty folder of a user, except for packages that have the names of folders of the checkout."""
    made = tmp_path_factory.mktemp("user")
    for name in ("callbacks", "datamodules", "configs"):
        (made / name).mkdir()
        (made / name / "__init__.py").write_text(OWN, encoding="utf-8")
    return made


def ran(installed, folder, program, *arguments):
    """Run a program of the environment in ``folder``, and return its output."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV")}
    clean["PATH"] = f"{installed}{os.pathsep}{clean['PATH']}"
    ended = subprocess.run(
        [program, *arguments], cwd=folder, env=clean, capture_output=True, text=True, timeout=seconds(240)
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout + ended.stderr


def test_the_wheel_holds_the_package_with_weights_and_recipes_and_no_pictures(wheel):
    names = {name for name in contents(wheel) if ".dist-info/" not in name}
    expected = set()
    for place in ("zoo", "callbacks", "datamodules", "configs"):
        found = {path.relative_to(ROOT / place) for path in (ROOT / place).rglob("*") if path.is_file()}
        package = Path("zoo") if place == "zoo" else Path("zoo", place)
        expected |= {(package / path).as_posix() for path in found if not {"__pycache__", "local"} & set(path.parts)}
    assert names == {name for name in expected if not name.endswith(".png")}
    for name in zoo.list_checkpoints():
        assert {f"zoo/weights/{name}.json", f"zoo/weights/{name}.safetensors"} <= names
    assert {"zoo/configs/train.yaml", "zoo/configs/model/vae.yaml", "zoo/py.typed"} <= names


def test_the_source_distribution_gives_the_same_wheel(wheel, tmp_path):
    archive = built(ROOT, tmp_path / "source", "sdist")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    again = built(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "wheel", "wheel")
    assert again.name == wheel.name and contents(again) == contents(wheel)


def test_settings_of_this_machine_are_not_built_into_the_wheel(tmp_path):
    """Git ignores configs/local, which may hold secrets."""
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for file in ("zoo/__init__.py", "callbacks/__init__.py", "configs/train.yaml", "configs/local/default.yaml"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text('__version__ = "1.0"\n', encoding="utf-8")
    names = contents(built(tmp_path, tmp_path / "out", "wheel"))
    assert "zoo/configs/train.yaml" in names and "zoo/configs/local/default.yaml" not in names


def test_the_command_is_the_package_that_is_installed(installed, folder):
    script = "import importlib.metadata as m, zoo; print(zoo.__file__, zoo.__version__, m.version('generative-zoo'))"
    file, version, distribution = ran(installed, folder, "python", "-c", script).split()
    assert Path(file).is_relative_to(installed.parent) and version == distribution == zoo.__version__
    assert "ddpm-guided" in ran(installed, folder, "zoo", "list")


@pytest.mark.parametrize("program", [["zoo", "train"], ["python", "-m", "zoo", "train"]])
def test_a_run_of_two_processes_in_the_folder_of_a_user(program, installed, folder):
    place = f"runs/two_{program[0]}"
    two = ["trainer=cpu", "trainer.devices=2", "callbacks=checkpoints", f"hydra.run.dir={place}"]
    said = ran(installed, folder, *program, *FAST, *two)
    assert f"{' '.join(program)} model=vae" in said  # the command that continues the run
    assert len(checkpoint(folder / place)["random_state"]) == 2
    assert sum(bool(row.get("test/loss")) for row in read_rows(folder / place / "metrics.csv")) == 1


def test_a_run_and_a_sweep_in_the_folder_of_a_user(installed, folder):
    ran(installed, folder, "zoo", "train", *FAST)
    ran(installed, folder, "zoo", "train", "-m", *FAST, "callbacks=none", "seed=0,1")
    runs = list((folder / "runs" / "vae").iterdir())
    assert len(runs) == 3 and all((run / "metrics.csv").is_file() for run in runs)


def test_recipes_are_found_by_every_flag_of_hydra(installed, folder, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "small.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /model/vae\n  - _self_\nmodel:\n  latent_dim: 3\n", encoding="utf-8"
    )
    assert ran(installed, folder, "zoo", "train", "--help").startswith("usage: zoo train ")
    assert "latent_dim: 32" in ran(installed, folder, "zoo", "train", "--cfg", "job")
    own = ran(installed, folder, "zoo", "train", f"--config-dir={tmp_path / 'mine'}", "model=small", "--cfg", "job")
    assert "latent_dim: 3" in own
    assert "hydra_bash_completion" in ran(installed, folder, "zoo", "train", "-sc", "install=bash")


def test_pretrained_models_are_used_in_the_folder_of_a_user(installed, folder):
    ran(installed, folder, "zoo", "sample", "vae", "-n", "4")
    assert (folder / "samples.png").is_file()
    assert "val/elbo" in ran(installed, folder, "zoo", "evaluate", "vae", "--data", "digits")


def test_a_script_uses_callbacks_of_the_zoo_and_of_its_own(installed, tmp_path):
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").write_text(
        "import lightning as L\n\n\nclass Mine(L.Callback):\n    def on_fit_end(self, *_):\n        print('mine')\n",
        encoding="utf-8",
    )
    (tmp_path / "script.py").write_text(
        """
import lightning as L
from callbacks import Mine
from zoo.callbacks import EstimatorVariance, ExactResume
from zoo.datamodules import Images
from zoo.vae import VAE

variance = EstimatorVariance("out", every_n_steps=1, draws=4)
trainer = L.Trainer(max_steps=2, logger=False, callbacks=[variance, ExactResume("out"), Mine()])
trainer.fit(VAE(), datamodule=Images("digits"))
""",
        encoding="utf-8",
    )
    assert "mine" in ran(installed, tmp_path, "python", "script.py")
    assert (tmp_path / "out" / "estimator_variance.csv").is_file()
