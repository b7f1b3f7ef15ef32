"""Tests of the RBM on images of any shape, with binary and with Gaussian visible units."""

import math

import lightning as L
import pytest
import torch
from helpers import assert_same
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo.checks.errors import UserError
from zoo.hub import check_resumable
from zoo.rbm import RBM

SHAPES = [[3, 32, 32], [1, 32, 32], [1, 28, 28], [3, 30, 37], pytest.param([3, 64, 64], marks=pytest.mark.slow)]
VISIBLE = ["binary", "gaussian"]
LR = {"binary": 0.05, "gaussian": 0.002}
pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|have no `val_dataloader`)")


def images(shape, n=64):
    """Return images that are sums of four patterns in random proportions, with noise, (n, *shape)."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(4, math.prod(shape), generator=generator)
    x = 0.5 + 0.1 * torch.randn(n, 4, generator=generator) @ patterns
    return (x.view(n, *shape) + 0.1 * torch.randn(n, *shape, generator=generator)).clamp(0, 1)


def quiet(**kwargs):
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", limit_val_batches=0, **off, **kwargs)


def reconstruction_error(model, x):
    """Return the squared error of E[v | h] with h drawn given v, summed over pixels, mean over images."""
    generator = torch.Generator().manual_seed(9)
    v = model.observe(x, torch.rand(x.shape, generator=generator))
    with torch.no_grad():
        h = (torch.rand(len(x), len(model.c), generator=generator) < model.machine.hidden_logits(v).sigmoid()).float()
        means = model.units.mean(model.machine.visible_logits(h))
        return float((model.units.pixels(v) - model.units.pixels(means)).square().sum(-1).mean())


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_any_shape_train_and_are_drawn(shape, visible, tmp_path):
    """The reconstruction error falls over 200 steps. Seed and noise are fixed. Other seeds give other samples."""
    torch.manual_seed(0)
    x = images(shape)
    model = RBM(8, shape, visible, lr=LR[visible], num_chains=16)
    loader = DataLoader(TensorDataset(x), 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    quiet(max_steps=1, enable_checkpointing=False).fit(model, loader)
    first = reconstruction_error(model, x)
    trainer = quiet(max_epochs=50, enable_checkpointing=False)
    trainer.fit(model, loader)
    assert trainer.global_step == 200
    last = reconstruction_error(model, x)
    assert last < 0.98 * first
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    again = zoo.load(path)
    assert_same(dict(again.state_dict()), dict(model.state_dict()))
    assert again.hparams.shape == shape and again.hparams.visible == visible
    drawn = [again.sample(2, steps=2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert drawn[0].shape == (2, *shape) and drawn[0].min() >= 0 and drawn[0].max() <= 1
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert again.sample(2, steps=2, frames=3).shape == (2, 3, *shape)
    assert again.transform(x[:2]).shape == again.transform(x[:2].flatten(1)).shape == (2, 8)


@pytest.mark.parametrize("visible", VISIBLE)
def test_vectors_have_one_axis(visible):
    model = RBM(3, [5], visible)
    assert model.sample(2, steps=2).shape == (2, 5)
    with pytest.raises(UserError, match=r"5 pixels each, as images or as vectors \(B, 5\); got \(2, 4\)"):
        model.transform(torch.zeros(2, 4))
    with pytest.raises(UserError, match="pixels must be numbers from 0 to 1, got 2"):
        model.transform(torch.full((2, 5), 2.0))


def test_the_old_argument_num_visible_gives_a_shape():
    """Old checkpoints and cards have ``num_visible``. 784 means images, and other numbers mean vectors."""
    for number, shape in ((784, [1, 28, 28]), (60, [60])):
        model = RBM(num_hidden=3, num_visible=number)
        assert model.hparams.shape == shape and "num_visible" not in model.hparams
        assert model.sample(2, steps=1).shape == (2, *shape)
    assert zoo.load("rbm").hparams.shape == [1, 28, 28]
    with pytest.raises(UserError, match="num_visible must be an integer of at least 1, got 0"):
        RBM(num_visible=0)
    with pytest.raises(
        UserError, match=r"shape must be a list of integers of at least 1, such as \[1, 28, 28\], got 784"
    ):
        RBM(shape=784)


def test_a_run_of_the_version_before_resumes(tmp_path):
    """A checkpoint without ``shape`` and ``visible`` is of the defaults. Another shape is named."""
    path = tmp_path / "last.ckpt"
    old = {k: v for k, v in RBM(num_hidden=3).hparams.items() if k not in ("shape", "visible")} | {"num_visible": 784}
    torch.save({"state_dict": {}, "model": "rbm", "hyper_parameters": old}, path)
    check_resumable(path, RBM(num_hidden=3))
    with pytest.raises(UserError, match=r"model.shape was \[1, 28, 28\] and is \[3, 4, 5\]; the checkpoint is"):
        check_resumable(path, RBM(num_hidden=3, shape=[3, 4, 5]))


@pytest.mark.parametrize("visible", VISIBLE)
def test_only_finite_states_enter_the_objective(visible):
    model = RBM(3, [4], visible)
    noise = model.noise([torch.zeros(2, 4)], learning="cd")
    wrong = torch.tensor([[0.0, 0, 0, 2], [0, 0, 0, math.nan]])
    with pytest.raises(UserError, match="nan" if visible == "gaussian" else "from 0 to 1, got 2"):
        model.objective(wrong, noise, "cd")
    if visible == "gaussian":  # standardised pixels are not in [0, 1]
        assert model.objective(wrong.nan_to_num(), noise, "cd")[0].isfinite()
