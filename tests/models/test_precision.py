"""Tests of the models in bfloat16, float16 and float64: results, losses, and buffers that are not rounded."""

import copy
import inspect

import pytest
import torch
from helpers import tiers
from small_models import MODELS, data_of, made
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from zoo.functional import precision
from zoo.functional.contrastive import HeldOut

CONDITIONS = {"ddpm": {"num_steps": 2}, "ddpm-labels": {"num_steps": 2}, "score": {"steps": 1}}
CONDITIONS |= {"score-points": {"steps": 2}, "rbm": {"steps": 2}}
CONDITIONS |= {"rbm-gaussian": {"steps": 2}}
LOSSES = ("loss", "bound", "pretraining_loss", "discriminator_loss", "generator_loss", "critic_loss")
INFERENCE = ("encode", "reconstruct", "cluster", "transform", "log_likelihood", "bound_terms", "free_energy")


def tensors(results):
    return [t for t in pytree.tree_leaves(results) if isinstance(t, torch.Tensor) and t.is_floating_point()]


def everything(name, model):
    """Return a dict from method name to result. Examples and noise are fixed."""
    n = 4
    x, y = data_of(model, n), torch.arange(n)
    found = {}
    for method in (*LOSSES, *INFERENCE):
        if not callable(getattr(model, method, None)) or (
            method == "log_likelihood" and name in ("gan", "gan-labels", "gan-points")
        ):
            continue
        parameters = inspect.signature(getattr(model, method)).parameters
        torch.manual_seed(0)
        if "batch" in parameters:
            found[method] = getattr(model, method)(x if name == "skipgram" else [x, y])
        else:
            labels = model.hparams.get("num_classes") is not None and "y" in parameters
            found[method] = getattr(model, method)(x, **({"y": y} if labels else {}))
    if name == "skipgram":
        found["pair_log_likelihood"], found["nearest"] = model.pair_log_likelihood(x), model.nearest("the", 3)
    else:
        torch.manual_seed(0)
        found["sample"] = model.sample(n, **CONDITIONS.get(name, {}))
    return found


@pytest.mark.parametrize("precision_of", ["bfloat16", "half", "double"])
@pytest.mark.parametrize("name", tiers(MODELS, set(MODELS) - {"ddpm-labels"}))
def test_a_model_computes_in_every_precision(name, precision_of):
    """Results are finite, in float32 or float64. Losses agree with a float32 model within 10 % + 0.1."""
    model = getattr(copy.deepcopy(made(name)), precision_of)()
    plain, found = everything(name, made(name)), everything(name, model)
    for method, results in found.items():
        for t in tensors(results):
            assert t.isfinite().all() and t.dtype in (torch.float32, torch.float64), method
        losses = [(r, f) for r, f in zip(tensors(plain[method]), tensors(results), strict=True) if method in LOSSES]
        for expected, got in losses:
            assert_close(got.double(), expected.double(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["ddpm", "score", "skipgram"])
def test_buffers_of_a_model_are_not_rounded(name):
    """Noise schedules and noise distributions stay float32 when a model is moved to other precisions and back."""
    model, exact = copy.deepcopy(made(name)), dict(made(name).named_buffers())
    exact = {k: b for k, b in exact.items() if b.is_floating_point() and "running" not in k}
    for there_and_back in ((torch.bfloat16,), (torch.float16, torch.float32), (torch.bfloat16, torch.float64)):
        for dtype in there_and_back:
            model.to(dtype)
        for key, buffer in exact.items():
            assert_close(model.get_buffer(key).float(), buffer, rtol=0, atol=0)


def test_held_out_sums_are_not_rounded_and_no_value_is_read_back(monkeypatch):
    held_out = HeldOut()
    held_out.update(torch.full((1000,), -1.001), torch.full((3,), 0.1))
    before = held_out.sums.clone()
    for move in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.float()):
        move(held_out)
        assert torch.equal(held_out.sums, before) and held_out.sums.dtype == torch.float64
    for name in ("item", "tolist", "__float__", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, None)
    held_out.update(torch.full((2,), -1.0), torch.zeros(1))


def test_sums_of_a_device_without_float64_are_made_on_the_cpu(monkeypatch):
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {"meta"})
    assert precision.float64_device(torch.device("meta")) == torch.device("cpu")
    with pytest.raises(NotImplementedError, match="no data"):  # ``in_float64`` moves the tensor to the CPU
        precision.in_float64(torch.empty(1, device="meta"))
    assert precision.in_float64(torch.ones(1)).dtype == torch.float64
