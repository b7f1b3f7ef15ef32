"""Tests of capabilities of models: the table in the documentation, and code that checks for capabilities."""

import ast
import importlib.util
import inspect
from pathlib import Path

import lightning as L
import pytest
import torch

from zoo.checks import capabilities
from zoo.checks.capabilities import has_log_likelihood
from zoo.checks.errors import UserError
from zoo.ddpm import DDPM
from zoo.evaluation.protocol import Protocol, check_protocol
from zoo.gan import GAN
from zoo.rbm import RBM
from zoo.score import Score
from zoo.vae import VAE

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("make_capabilities", ROOT / "docs" / "make" / "capabilities.py")
documented = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(documented)


def test_the_table_of_capabilities_is_true():
    written = (ROOT / "docs" / "capabilities.md").read_text(encoding="utf-8")
    assert written == documented.table(), "docs/capabilities.md is out of date: run python docs/make/capabilities.py"


def test_what_the_table_says_of_options_is_so():
    for model in (DDPM, Score):
        assert model(num_classes=10).rows() is not None and model().rows() is None
    assert has_log_likelihood(GAN(network="sequence", shape=[5, 5])) and not has_log_likelihood(GAN())


def test_a_name_is_not_enough():
    assert isinstance(GAN(), capabilities.LogLikelihood)
    with pytest.raises(UserError, match="GAN has no log_likelihood"):
        check_protocol(Protocol(importance_samples=5), GAN())
    with pytest.raises(UserError, match="log likelihood of GAN takes no importance samples"):
        check_protocol(Protocol(importance_samples=5), GAN(network="sequence", shape=[5, 5]))
    with pytest.raises(UserError, match="use --bound-images for its bound"):
        check_protocol(Protocol(importance_samples=5), DDPM(steps=30, widths=[8]))
    assert has_log_likelihood(RBM(num_hidden=4)) and not has_log_likelihood(RBM(num_hidden=4), capabilities.IMPORTANCE)
    assert has_log_likelihood(VAE(), capabilities.IMPORTANCE)
    # DDPM also has sigmas and a score, but no Langevin chains at a noise level.
    assert isinstance(Score(shape=[2]), capabilities.ScoreChains)
    assert not isinstance(DDPM(steps=30, widths=[8]), capabilities.ScoreChains)


@pytest.mark.parametrize("name", documented.models())
def test_a_capability_is_found_by_every_version_of_python(name):
    """Capabilities do not depend on __getattr__, which isinstance skips since Python 3.12.

    torch finds buffers, parameters and modules by __getattr__.
    """
    model = documented.models()[name]
    for kind in documented.protocols().values():
        members = [member for member in (*vars(kind), *kind.__annotations__) if not member.startswith("_")]
        if isinstance(model, kind):
            assert all(inspect.getattr_static(model, member, None) is not None for member in members), kind


class Stranger(L.LightningModule):
    """A model that does not inherit from any class of the zoo."""

    log_likelihood_by = capabilities.EXACT

    def sample(self, n, *, generator=None):
        return torch.zeros(n, 1, 28, 28)

    def log_likelihood(self, x, *, y=None, generator=None):
        return torch.zeros(len(x))


def test_a_model_needs_no_base_class():
    model = Stranger()
    assert isinstance(model, capabilities.Samples) and has_log_likelihood(model)
    assert not isinstance(model, capabilities.GradientEstimators)
    for kind in documented.protocols().values():
        assert kind not in type(model).__mro__


FILES = [ROOT / "train.py", *(ROOT / "zoo").rglob("*.py"), *(ROOT / "callbacks").glob("*.py")]
FILES += [*(ROOT / "datamodules").glob("*.py")]
# Files that handle names of the previous version, or objects of other libraries.
ABOUT_NAMES = {"moved.py", "old_forms.py", "dataset_sources.py"}


def test_no_file_guesses_what_a_model_can_do():
    """No file outside ``ABOUT_NAMES`` calls ``hasattr``, or ``getattr`` with a literal name."""
    guesses = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and file.name not in ABOUT_NAMES:
                by_name = node.func.id == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
                if by_name or node.func.id == "hasattr":
                    guesses.append(f"{file.relative_to(ROOT)}: {ast.unparse(node)}")
    assert not guesses, "look for a capability with isinstance and zoo.checks.capabilities"
