"""Tests that dotted names in documents can be imported, and that names of the previous version still work."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
from helpers import TINY, run
from omegaconf import OmegaConf

from zoo.checks.moved import MOVED, SPLIT, current_name
from zoo.checks.old_forms import accepts_old_form
from zoo.training.command_line import with_current_names

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "configs").rglob("*.yaml"))]
# This page adds a model. tests/house/test_new_model.py writes and imports its files.
TEXTS.remove(ROOT / "docs" / "own_model.md")
SOURCES = [*(ROOT / "zoo").rglob("*.py"), *(ROOT / "callbacks").glob("*.py"), *(ROOT / "datamodules").glob("*.py")]
SOURCES = sorted(path for path in SOURCES if path.name != "moved.py")


OPTIONAL = ("optuna.", "hydra_plugins.")  # an optional package, and the name of the sweeper in Hydra's table


def found_by(name):
    """Return whether the dotted ``name`` is a module or an attribute in a module."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False


@pytest.mark.parametrize("path", [*TEXTS, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_dotted_name_imports(path):
    text = path.read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w/.@:\"'-])zoo(?:\.[A-Za-z_]\w*)+", text))
    names |= set(re.findall(r"_target_: *([\w.]+)", text))
    names = {name for name in names if f"`{name.partition('.')[0]}.py`" not in text}  # a file that the page shows
    names = {name for name in names if not name.startswith(OPTIONAL)}
    wrong = sorted(name for name in names if not found_by(name))
    assert not wrong
    paths = re.findall(r"\b(?:zoo|callbacks|datamodules|configs|tests|docs)/[\w/.]+\.(?:py|md|yaml|json)\b", text)
    # Settings of one machine, which are not in the repository, and a page that the site generates.
    ignored = ("configs/local/default.yaml", "callbacks/index.md")
    assert not [path for path in paths if not (ROOT / path).is_file() and path not in ignored]


def test_a_wrong_name_is_not_found():
    assert found_by("zoo.vae.VAE.sample") and not found_by("zoo.vae.VAF") and not found_by("zoo.vaf.VAE")


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_module_that_moved_still_imports_with_a_warning(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=rf"{old} is {MOVED[old]} now") as warned:
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])  # both names give the same module object
    assert len(warned) == 1
    assert not Path(ROOT, *old.split(".")).with_suffix(".py").exists()


@pytest.mark.parametrize(
    ("line", "new"),
    [
        ("from zoo.classifier import Classifier as x", "zoo.evaluation.classifier.Classifier"),
        ("from zoo.hardware import make_trainer as x", "zoo.training.trainer.make_trainer"),
        ("from zoo.features import Features as x", "zoo.evaluation.features.Features"),
        ("from zoo.sampling import sample_chunks as x", "zoo.sampling.chunks.sample_chunks"),
        ("from zoo.functional import log_normal as x", "zoo.functional.densities.log_normal"),
        ("from zoo.nets import UNet as x", "zoo.nets.unet.UNet"),
        ("from zoo.evaluation import evaluate as x", "zoo.evaluation.protocol.evaluate"),
        ("from zoo.hub import export as x", "zoo.hub.exporting.export"),
        ("from zoo.adversarial import make_generator as x", "zoo.nets.adversarial.make_generator"),
        ("from zoo.adversarial import restate as x", "zoo.training.adversarial.recompute_batch_norm"),
        ("from zoo.boltzmann import free_energy as x", "zoo.functional.boltzmann.free_energy"),
        ("from zoo.boltzmann import gibbs as x", "zoo.functional.gibbs.gibbs"),
        ("from zoo.boltzmann import ais_log_partition as x", "zoo.functional.partition.ais_log_partition"),
        ("from zoo.configuration import check_whole as x", "zoo.checks.values.check_integer"),
        ("from zoo.configuration import check_kind as x", "zoo.training.command_line.check_kind"),
        ("from zoo.diffusion import q_sample as x", "zoo.functional.diffusion.q_sample"),
        ("from zoo.diffusion import ddim_encode as x", "zoo.functional.diffusion_samplers.ddim_encode"),
        ("from zoo.words import save_word2vec as x", "zoo.training.files.save_word2vec"),
        ("from zoo.vade import fit_mixture as x", "zoo.functional.mixture.fit_mixture"),
        ("from zoo.vae import importance_weighted_bound as x", "zoo.functional.importance.importance_weighted_bound"),
    ],
)
def test_a_line_of_the_version_before_still_works(line, new):
    sys.modules.pop(line.split()[1], None) if line.split()[1] in {*MOVED, *SPLIT} else None
    where = {}
    with pytest.warns(DeprecationWarning, match=re.escape(new.rpartition(".")[0])):
        exec(line, where)
    module, _, name = new.rpartition(".")
    assert where["x"] is getattr(importlib.import_module(module), name)


def test_a_name_that_never_was_is_an_error():
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from zoo.sampling import nothing")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from zoo.diffusion import nothing")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("zoo.nothing")


@pytest.mark.parametrize("name", ["callbacks", "datamodules"])
def test_the_folders_inside_are_not_modules_of_their_own(name):
    with pytest.raises(ImportError, match=f"import zoo.{name}"):
        importlib.import_module(name)
    assert name not in sys.modules


def test_targets_of_the_version_before_resolve(tmp_path):
    assert current_name("datamodules.Images") == "zoo.datamodules.Images"
    assert current_name("callbacks.Samples") == "zoo.callbacks.Samples"
    assert current_name("zoo.hardware.make_trainer") == "zoo.training.trainer.make_trainer"
    assert current_name("zoo.diffusion.ddim_steps") == "zoo.functional.diffusion_samplers.ddim_steps"
    assert current_name("zoo.diffusion.nothing") == "zoo.diffusion.nothing"
    assert current_name("lightning.pytorch.callbacks.ModelCheckpoint") == "lightning.pytorch.callbacks.ModelCheckpoint"
    old = ["data._target_=datamodules.Images", "callbacks.samples._target_=callbacks.Samples"]
    old += ["trainer._target_=zoo.hardware.make_trainer", "logger.csv._target_=callbacks.CSVLogger"]
    run(tmp_path, *TINY["vae"], "debug=fast", *old)
    assert (tmp_path / "samples" / "epoch_000.png").is_file() and (tmp_path / "metrics.csv").is_file()


def test_names_are_those_of_today_in_lists_too():
    """Names in nested lists and dictionaries are also replaced. Keys other than ``_target_`` keep their values."""
    old = {"_target_": "callbacks.Samples", "name": "callbacks.Samples"}
    new = {"_target_": "zoo.callbacks.Samples", "name": "callbacks.Samples"}
    configuration = OmegaConf.create({"a": [1, old, [old]], "b": {"c": old, "d": None}, **old})
    with_current_names(configuration)
    assert configuration == {"a": [1, new, [new]], "b": {"c": new, "d": None}, **new}


@accepts_old_form("f", labels="y")
class Old:
    def f(self, x, *, a=1, b=2):
        return x, a, b

    def sample(self, n, *, y=None):
        return n, y


def test_calls_of_the_version_before_still_work():
    with pytest.warns(DeprecationWarning, match=r"give a=, b= of Old.f by name"):
        assert Old().f(0, 3, 4) == (0, 3, 4)
    with pytest.warns(DeprecationWarning, match=r"give a= of Old.f by name"):
        assert Old().f(0, 3, b=5) == (0, 3, 5)
    with pytest.warns(DeprecationWarning, match=r"labels= of Old.sample is y= now"):
        assert Old().sample(1, labels=7) == (1, 7)
    assert Old().f(0, a=3) == (0, 3, 2) and Old().sample(1, y=2) == (1, 2)
    with pytest.raises(TypeError):
        Old().f(0, 1, 2, 3)
    with pytest.raises(TypeError):
        Old().f(0, 1, a=2)
    with pytest.raises(TypeError, match="got labels= and y=, which are the same argument; give y="):
        Old().sample(1, labels=7, y=2)
    with pytest.raises(TypeError):  # only sample has a renamed argument
        Old().f(0, labels=1)
    with pytest.raises(TypeError):  # sample never accepted this argument by position
        Old().sample(1, 7)


def test_generator_is_given_by_name_everywhere():
    """``generator`` is a keyword argument of all functions, except of the ``draw`` inside a GradientEstimator."""
    by_position = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "generator" in [a.arg for a in node.args.args]:
                by_position.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert sorted(set(by_position)) == ["zoo/estimators/moments.py: draw"]
