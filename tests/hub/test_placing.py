"""Tests of ``zoo.load`` with a device and with a precision."""

import pytest
import torch
from helpers import tiers
from torch.testing import assert_close

import zoo
from zoo.checks.errors import UserError
from zoo.functional import precision
from zoo.hub.placing import as_device, as_dtype

FEW_STEPS = {"ddpm": {"num_steps": 2}, "rbm": {"steps": 2, "init": "noise"}}
FEW_STEPS |= {"score": {"steps": 1}, "score-mixture": {"steps": 1}}
# A checkpoint of each model. The score model of images has 64 noise levels, so its test is slow.
NAMES = [*tiers(zoo.list_models(), set(zoo.list_models()) - {"score"}), "score-mixture"]


def drawn(model, name):
    """Return samples from fixed noise. For word vectors, return the cosines of near words."""
    if name == "skipgram":
        return torch.tensor([cosine for _, cosine in model.nearest("music", 5)], dtype=torch.float64)
    return model.sample(3, generator=torch.Generator().manual_seed(0), **FEW_STEPS.get(name, {}))


@pytest.mark.parametrize("name", NAMES)
def test_a_pretrained_model_samples_in_every_precision(name):
    """In float64, results are those of float32 up to rounding. In 16 bits they are finite, and weights have 16 bits."""
    plain = zoo.load(name)
    expected = drawn(plain, name).double()
    double = zoo.load(name, dtype=torch.float64)
    assert {p.dtype for p in double.parameters()} == {torch.float64} and not double.training
    assert_close(drawn(double, name).double(), expected, rtol=0, atol=1e-3)
    for dtype in ("bfloat16", "torch.float16"):
        model = zoo.load(name, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {as_dtype(dtype)}
        assert drawn(model, name).isfinite().all()
        for key, buffer in plain.named_buffers():  # integers and flags keep their types
            if not buffer.is_floating_point():
                assert torch.equal(model.get_buffer(key), buffer), key


def test_exact_buffers_are_not_rounded():
    exact = zoo.load("ddpm").chain
    for dtype in ("bfloat16", "float64"):
        for values, rounded in zip(exact, zoo.load("ddpm", dtype=dtype).chain, strict=True):
            assert rounded.dtype in (torch.float32, torch.float64) and torch.equal(values, rounded.float())


def test_the_types_of_torch_and_their_names_are_accepted():
    for dtype in (torch.float64, "float64", "torch.float64"):
        assert as_dtype(dtype) is torch.float64


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float23", r"must be one of float64, float32, bfloat16, float16; got 'float23'. Did you mean float32\?"),
        ("bf16", r"got 'bf16'. Did you mean bfloat16\?"),
        (torch.int64, "got 'int64'"),
        (32, "got '32'"),
    ],
)
def test_another_type_is_refused_before_a_file_is_read(dtype, message):
    with pytest.raises(UserError, match=message):
        zoo.load("no-such-file", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", torch.device("cuda", 99), 99, None, "auto"])
def test_an_absent_device_is_refused_before_a_file_is_read(device):
    with pytest.raises(UserError, match=rf"on this machine, device must be cpu.*; got '{device}'$"):
        zoo.load("no-such-file", device=device)


@pytest.mark.parametrize(
    ("count", "allowed", "message"),
    [
        (1, ["cpu", "cuda", "cuda:0"], "on this machine, device must be cpu or cuda; got 'cuda:1'"),
        (3, ["cpu", "cuda", "cuda:2"], "on this machine, device must be cpu, cuda, or cuda:0 to cuda:2; got 'cuda:3'"),
    ],
)
def test_the_accelerators_of_a_machine_are_allowed_and_named(count, allowed, message, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    assert [str(as_device(device)) for device in allowed] == allowed
    with pytest.raises(UserError, match=message):
        as_device(f"cuda:{count}")
    with pytest.raises(UserError, match="got 'mps'"):
        as_device("mps")


def test_float64_is_refused_on_a_device_without_it(monkeypatch):
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {"cpu"})
    with pytest.raises(UserError, match="cpu has no float64: give dtype=float32, or device=cpu"):
        zoo.load("no-such-file", dtype="float64")
