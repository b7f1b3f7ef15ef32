"""Tests of callbacks with a plain DataLoader and no data module. Each callback works, or its ``setup`` raises."""

import logging
import warnings
from unittest.mock import patch

import lightning as L
import pytest
import torch
from helpers import FIGURE
from matplotlib.figure import Figure
from small_models import MODELS
from torch.utils.data import DataLoader, TensorDataset

from zoo import callbacks
from zoo.checks.errors import UserError

X, Y = torch.linspace(0, 1, 8 * 784).view(8, 1, 28, 28), torch.arange(8)
FORMS = {"pairs": TensorDataset(X, Y), "tuples of one": TensorDataset(X), "tensors": X}
FORMS["dictionaries"] = [{"image": x, "label": y} for x, y in zip(X, Y.tolist(), strict=True)]
# For each callback that works with a plain DataLoader: a model and the arguments of the callback.
MADE = {
    "Samples": ("vae", {"n": 2}),
    "SampleDistance": ("vae", {"n": 4}),
    "EstimatorVariance": ("vae", {"every_n_steps": 1, "draws": 2, "batch_size": 3, "batches": 2}),
    "EMA": ("vae", {}),
    "LogLikelihood": ("vae", {"num_samples": 2}),
    "Latents": ("vae", {"n": 2}),
    "TimeEstimate": ("vae", {"after": 1}),
    "FiniteLoss": ("vae", {}),
    "ExactResume": ("vae", {}),
    "RunRecord": ("vae", {}),
    "LossPerStep": ("score", {}),
    "Codes": ("infogan", {}),
}
# For each callback that needs a data module: a model, the arguments of the callback, and the error.
WANTS = {
    "ScoreField": ("score-points", {}, "ScoreField needs a score model and points with a known density"),
    "Neighbours": ("vae", {}, "VAE has no method nearest"),
}
WITHOUT_FOLDER = ("EMA", "LogLikelihood", "TimeEstimate", "SampleDistance")


def callback(name, folder, arguments):
    kind = getattr(callbacks, name)
    return kind(**arguments) if name in WITHOUT_FOLDER else kind(str(folder), **arguments)


def fit(model, callback, data, folder, **arguments):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    quiet |= {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder} | arguments
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    loader = DataLoader(data, batch_size=4)
    torch.manual_seed(0)
    model = MODELS[model]()
    with warnings.catch_warnings(), patch(FIGURE, lambda history: Figure(figsize=(1, 1))):
        warnings.simplefilter("ignore")
        trainer = L.Trainer(callbacks=[callback], **quiet)
        trainer.fit(model, loader, loader)
        trainer.validate(model, loader, verbose=False)
        trainer.test(model, loader, verbose=False)
    return trainer


def test_every_callback_is_tried_here():
    loggers = {"CSVLogger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger"}
    of_searches = {"Pruning"}  # tests/training/test_search.py
    assert MADE.keys() | WANTS.keys() | loggers | of_searches == set(callbacks.__all__)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MADE)
def test_a_callback_works_with_batches_of_every_form(name, form, tmp_path):
    model, arguments = MADE[name]
    made = callback(name, tmp_path, arguments)
    trainer = fit(model, made, FORMS[form], tmp_path)
    if name == "EstimatorVariance":
        assert [len(probe[0]) for probe in made.probes] == [3, 3] and made.history
    if name in ("Samples", "Latents", "LossPerStep", "Codes"):
        assert list(tmp_path.rglob("*.png"))
    assert trainer.state.finished


@pytest.mark.parametrize("name", WANTS)
def test_a_callback_that_needs_a_data_module_says_so_at_set_up(name, tmp_path):
    model, arguments, message = WANTS[name]
    with pytest.raises(UserError, match=message):
        fit(model, callback(name, tmp_path, arguments), FORMS["pairs"], tmp_path)


def test_the_probe_batch_is_found_where_validation_is_epochs_off(tmp_path):
    made = callback("EstimatorVariance", tmp_path, {"every_n_steps": 1, "draws": 2, "batch_size": 4})
    fit("vae", made, FORMS["pairs"], tmp_path, check_val_every_n_epoch=2, num_sanity_val_steps=0)
    assert made.history


def test_a_time_estimate_counts_examples_of_a_batch_that_is_a_tensor(tmp_path):
    """The run has eight batches. The callback counts examples from the sixth batch on, after the warm-up."""
    made = callback("TimeEstimate", tmp_path, {"after": 1})
    fit("vae", made, X.repeat(4, 1, 1, 1), tmp_path)
    assert made._rows == 4
