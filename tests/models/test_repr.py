"""Tests of ``repr(model)``: class, first line of its docstring, hyperparameters, number of parameters, networks."""

import inspect
import traceback

import lightning as L
import pytest
import torch
from small_models import MODELS, made
from torch import nn

from zoo.checks.errors import UserError
from zoo.nets.description import described
from zoo.vae import VAE


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_says_what_it_is_and_its_hyperparameters_and_its_size(name):
    model = made(name)
    lines = repr(model).splitlines()
    assert lines[0] == f"{type(model).__name__}("
    assert lines[1].strip() == inspect.getdoc(type(model)).splitlines()[0]
    size = next(i for i, line in enumerate(lines) if line.endswith(" parameters"))
    assert lines[size].split()[0] == f"{sum(p.numel() for p in model.parameters()):,}"
    said = " ".join(line.strip() for line in lines[2:size])
    assert said == ", ".join(f"{key}={value!r}" for key, value in model.hparams.items())
    assert max(map(len, lines[2:size])) <= 102
    networks = [name for name, _ in model.named_children()]
    assert [line.split(":")[0] for line in lines if line.startswith("  (")] == [f"  ({name})" for name in networks]


def test_parameters_that_are_not_trained_are_counted_apart():
    model = VAE(latent_dim=2, hidden=[4])
    model.encoder.requires_grad_(False)
    trained = sum(p.numel() for p in model.decoder.parameters())
    assert f" parameters, {trained:,} of them trained\n" in repr(model)


def test_a_compiled_model_is_described_too():
    model = VAE(latent_dim=2, hidden=[4])
    plain = repr(model)
    model.encoder.compile(backend="eager")
    assert repr(model) == plain
    assert "latent_dim=2" in repr(torch.compile(model, backend="eager"))


@pytest.mark.parametrize("wrong", [{"latent": "gausian"}, {"hidden": None}, {"net": "conv", "hidden": [1, 2]}])
def test_a_model_whose_constructor_fails_can_be_shown_in_a_debugger(wrong):
    with pytest.raises(UserError) as refused:
        VAE(**wrong)
    models = [f.f_locals.get("self") for f, _ in traceback.walk_tb(refused.value.__traceback__)]
    assert any(isinstance(m, VAE) and repr(m).startswith("VAE(\n") for m in models)


def test_before_a_constructor_has_run_there_is_only_the_docstring():
    assert VAE.extra_repr(VAE.__new__(VAE)) == inspect.getdoc(VAE).splitlines()[0]


def test_long_values_are_shortened_and_a_class_may_have_no_docstring():
    @described
    class Own(nn.Module):
        pass

    @described
    class OwnWithArguments(L.LightningModule):
        def __init__(self, words, table):
            super().__init__()
            self.save_hyperparameters()

    assert repr(Own()) == "Own(0 parameters)"
    long = repr(OwnWithArguments([str(n) for n in range(10_000)], torch.zeros(100, 100)))
    assert len(long) < 500 and "words=['0', '1', '2'" in long
