"""Tests of training, validation and test on a plain DataLoader, with allowed and wrong forms of batches."""

import logging
import warnings

import lightning as L
import pytest
import torch
from small_models import MODELS
from torch.utils.data import DataLoader, TensorDataset

from zoo.checks.errors import UserError

X, Y = torch.linspace(0, 1, 8 * 784).view(8, 1, 28, 28), torch.arange(8)
FORMS = {
    "pairs": TensorDataset(X, Y),
    "tuples of one": TensorDataset(X),
    "tensors": X,
    "doubles": TensorDataset(X.double(), Y),
}
WRONG = {
    "dicts of unknown keys": ([{"picture": x} for x in X], "the keys of a batch are 'picture', and none is the key of"),
    "grey values": (TensorDataset(X * 255, Y), "divide grey values of 0 to 255 by 255"),
    "bytes": (TensorDataset((X * 255).byte(), Y), "torch.uint8: convert images with x.float"),
    "another rank": (TensorDataset(X[:, 0], Y), r"must have the shape \(B, 1, 28, 28\); got \(4, 28, 28\)"),
    "colours": (TensorDataset(torch.zeros(8, 3, 32, 32), Y), r"got \(4, 3, 32, 32\)"),
}
IMAGES = ("vae", "cvae", "vade", "rbm", "rbm-gaussian", "gan", "wgan", "infogan", "ddpm", "ddpm-labels", "score")


def fit(name, data, batch_size=4):
    torch.manual_seed(0)
    model, loader = MODELS[name](), DataLoader(data, batch_size=batch_size)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(max_epochs=1, accelerator="cpu", **quiet)
        trainer.fit(model, loader, loader)
        trainer.test(model, loader, verbose=False)
        trainer.validate(model, loader, verbose=False)


# The first tier trains every model on images without labels, and three models on all forms.
FIRST = ("vae", "cvae", "ddpm-labels")
CASES = [
    pytest.param(name, form, marks=() if form == "tensors" or name in FIRST else pytest.mark.slow)
    for name in IMAGES
    for form in FORMS
]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_model_trains_on_a_plain_loader_or_asks_for_labels(name, form):
    if name in ("cvae", "ddpm-labels") and form in ("tuples of one", "tensors"):
        with pytest.raises(UserError, match=r"needs labels: give a batch \(x, y\)"):
            fit(name, FORMS[form])
    else:
        fit(name, FORMS[form])


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", IMAGES)
def test_batches_that_are_none_are_refused_in_one_line(name, wrong):
    if name.startswith("rbm") and wrong == "another rank":  # the RBM takes images as vectors of pixels too
        return
    data, message = WRONG[wrong]
    with pytest.raises(UserError, match=message):
        fit(name, data)


@pytest.mark.parametrize("name", ["gan", "wgan", "infogan"])
def test_batch_normalisation_of_one_example_is_refused_at_the_start(name):
    with pytest.raises(UserError, match="batches have 1 example on each process"):
        fit(name, FORMS["pairs"], batch_size=1)
    with pytest.raises(UserError, match="the last batch of an epoch has 1"):
        fit(name, FORMS["pairs"], batch_size=7)


@pytest.mark.parametrize("name", ["vae", "cvae", "ddpm", "score"])
def test_other_models_take_one_example_at_a_time(name):
    fit(name, FORMS["pairs"], batch_size=1)
