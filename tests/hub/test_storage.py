"""Tests of weights in float16: what is stored, what a load returns, and when float16 is refused."""

import logging
import sys

import pytest
import torch
from helpers import TINY, run
from safetensors.torch import load as load_tensors

import zoo
from zoo import hub
from zoo.__main__ import main
from zoo.checks.errors import UserError
from zoo.evaluation import errors
from zoo.evaluation.errors import Measured, Moved, logged_batches
from zoo.evaluation.estimates import binomial_error, standard_error_of_mean
from zoo.evaluation.protocol import evaluate
from zoo.hub import exporting
from zoo.hub.packing import pack


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a short run."""
    folder = tmp_path_factory.mktemp("runs") / "vae"
    run(folder, *TINY["vae"], "callbacks=none", "trainer.max_epochs=1", "test=false")
    return folder


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    return tmp_path / "weights"


def packed(model, name, stored_as="float16", kept=()):
    card = hub.read_card(name)
    return pack(model, {"model": card["model"], "hyper_parameters": card["hyper_parameters"]}, name, stored_as, kept)


@pytest.mark.parametrize("name", ["infogan", "vade", "rbm", "score-mixture", "skipgram"])
def test_float16_weights_load_as_float32_and_are_stored_again_without_change(name):
    """Matrices are rounded once. Biases, scales, statistics, counts and flags keep their types and values."""
    model = zoo.load(name)
    once = packed(model, name)
    twice = packed(once.model, name)
    first, second, before = once.model.state_dict(), twice.model.state_dict(), model.state_dict()
    parameters = {key for key, p in model.named_parameters() if p.ndim > 1}
    in_file = load_tensors(once.data)
    assert list(first) == list(second) == list(before) and set(in_file) == set(before) and parameters
    for key, value in before.items():
        assert torch.equal(first[key], second[key]) and first[key].dtype == value.dtype, key
        expected = value.half() if key in parameters else value
        assert in_file[key].dtype == expected.dtype and torch.equal(in_file[key], expected), key
    assert {p.dtype for p in once.model.parameters()} == {torch.float32}
    exact = packed(model, name, "float32")
    assert all(torch.equal(exact.model.state_dict()[key], value) for key, value in before.items())
    assert len(once.data) < 0.6 * len(exact.data) and not once.model.training


def test_equal_weights_have_one_digest():
    """In the random order of safetensors, eight digests would agree with probability 2^-7 or less."""
    model = zoo.load("gan-discrete")
    assert len({packed(model, "gan-discrete", "float32").digest for _ in range(8)}) == 1


def test_a_kept_network_stays_in_float32():
    model = zoo.load("wgan-ring")
    half = packed(model, "wgan-ring", kept=("critic",))
    in_file, loaded = load_tensors(half.data), half.model.state_dict()
    for key, value in model.state_dict().items():
        rounded = value.half().float() if key.startswith("generator") and value.ndim > 1 else value
        assert in_file[key].dtype == (torch.float16 if rounded is not value else value.dtype), key
        assert torch.equal(loaded[key], rounded), key
    assert half.kept == ("critic",) and {p.dtype for p in half.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("stored_as", "kept", "message"),
    [
        ("float16", ("critics",), "'critics' is no network of wgan-ring, which has .*generator.*critic"),
        ("float32", ("critic",), "critic stays in float32 only if the others are stored as float16"),
    ],
)
def test_networks_that_cannot_be_kept_are_refused(stored_as, kept, message):
    with pytest.raises(UserError, match=message):
        packed(zoo.load("wgan-ring"), "wgan-ring", stored_as, kept)


def test_values_beyond_float16_are_refused():
    model = zoo.load("score-mixture")
    with torch.no_grad():
        next(model.parameters())[0] = -70_000.0
    with pytest.raises(
        UserError, match="has a value of 7e.04, and float16 ends at 65,504: store these weights as float32"
    ):
        packed(model, "score-mixture")
    with pytest.raises(UserError, match="stored as float32 or float16, got 'bfloat16'"):
        packed(model, "score-mixture", "bfloat16")


@pytest.mark.parametrize(
    ("exact", "stored", "error", "too_far"),
    [
        (10.0, 10.009, 0.1, False),
        (10.0, 10.011, 0.1, True),
        (10.0, 9.989, 0.1, True),
        (10.0, 10.0009, None, False),
        (10.0, 10.0011, None, True),
        (0.0, 0.0, 0.0, False),
        (float("nan"), float("nan"), 0.1, False),
        (1.0, float("nan"), 0.1, True),
    ],
)
def test_a_metric_may_move_by_a_tenth_of_its_error(exact, stored, error, too_far):
    assert Moved(exact, stored, error).too_far == too_far


def test_errors_of_means_and_of_fractions(generator):
    """Batches of equal size have the error of a mean.

    With other sizes, the root mean square of 2,000 errors is near the standard deviation of the weighted mean. A mean
    over n examples has variance 1 / n. The limits are 4.5 standard errors of the ratio.
    """
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    expected = float(values.std()) / 2
    assert standard_error_of_mean(values.tolist()) == pytest.approx(expected)
    assert standard_error_of_mean(values.tolist(), [5] * 4) == pytest.approx(expected)
    assert standard_error_of_mean([1.0]) is None is standard_error_of_mean([1.0], [5])
    assert binomial_error(0.25, 10_000) == pytest.approx(0.00433, rel=1e-3)
    sizes = torch.tensor([40.0] * 9 + [5.0], dtype=torch.float64)
    draws = torch.randn(2000, 10, generator=generator, dtype=torch.float64) / sizes.sqrt()
    errors = torch.tensor([standard_error_of_mean(row, sizes.int().tolist()) for row in draws.tolist()])
    assert float(errors.square().mean() * sizes.sum()) == pytest.approx(1, abs=0.06)


def test_errors_are_found_for_metrics_under_conditions():
    metrics = {"classifier_fid/eta=1": 2.0, "classifier_fid_error/eta=1": 0.3, "judged_accuracy/eta=1": 0.9, "kl": 0.1}
    found = errors.standard_errors(metrics, {"kl": [(0.0, 30), (0.2, 30)]})
    assert found == {"classifier_fid/eta=1": 0.3, "kl": pytest.approx(0.1)}
    assert set(errors.moved(*[Measured(metrics, {}, found)] * 2)) == set(metrics) - {"classifier_fid_error/eta=1"}


def test_errors_of_the_scores_of_words(generator):
    """The error of a rank correlation is the standard deviation over 1,000 draws of 300 pairs, within a tenth."""
    from scipy.stats import spearmanr

    x, e = torch.randn(2, 1000, 300, generator=generator, dtype=torch.float64)
    y = 0.75 * x + (1 - 0.75**2) ** 0.5 * e
    found = torch.tensor([spearmanr(a, b).statistic for a, b in zip(x.numpy(), y.numpy(), strict=True)])
    metrics = {"wordsim353": float(found.mean()), "wordsim353/coverage": 300 / 353}
    metrics |= {"analogies": 0.4, "analogies/coverage": 0.5, "simlex999": 0.3, "simlex999/coverage": 0.003}
    errors_of = errors.standard_errors(metrics, {})
    assert errors_of == {
        "wordsim353": pytest.approx(float(found.std()), rel=0.1),
        "analogies": pytest.approx(binomial_error(0.4, 9772)),
    }
    assert errors.standard_errors({"analogies/coverage": 0.0, "analogies": 0.0}, {}) == {}


def test_scores_of_clusters_may_move_by_a_tenth_of_the_error_of_their_accuracy():
    metrics = {"test/accuracy": 0.9, "test/accuracy_error": 0.01, "test/nmi": 0.8, "test/ari": 0.7}
    exact = Measured(metrics, {}, errors.standard_errors(metrics, {}))
    found = errors.moved(exact, Measured(metrics | {"test/nmi": 0.8009, "test/ari": 0.7011}, {}, {}))
    assert {name: pair.too_far for name, pair in found.items()} == {
        "test/accuracy": False,
        "test/nmi": False,
        "test/ari": True,
    }


def test_errors_of_the_test_loop_are_those_of_its_batches(trained):
    from zoo.datamodules import Images

    model, data = zoo.load(trained), Images("digits", eval_batch_size=50)
    with logged_batches(model) as batches:
        metrics = evaluate(model, data)
    assert len(batches["test/loss"]) == 4 and {n for _, n in batches["test/loss"]} == {45}
    mean = sum(value * n for value, n in batches["test/loss"]) / sum(n for _, n in batches["test/loss"])
    assert mean == pytest.approx(metrics["test/loss"], rel=1e-6)
    assert "log" not in vars(model)


def test_the_card_of_float16_weights_has_their_metrics(trained, weights, monkeypatch):
    from zoo.datamodules import Images

    exporting.export(trained, "exact")
    monkeypatch.setattr(errors, "RELATIVE", 1e-2)  # the 180 test images are one batch, which has no known error
    exporting.export(trained, "half", stored_as="float16")
    exact, half = hub.read_card("exact"), hub.read_card("half")
    assert (exact["stored_as"], half["stored_as"], exact["rounding"]) == ("float32", "float16", None)
    ours = evaluate(zoo.load("half"), Images("digits"))
    assert half["metrics"] == ours != exact["metrics"]
    for name, found in half["rounding"].items():
        assert (found["float32"], found["float16"]) == (exact["metrics"][name], half["metrics"][name])
    assert set(half["rounding"]) == set(half["metrics"])
    sizes = [(weights / f"{name}.safetensors").stat().st_size for name in ("half", "exact")]
    assert sizes[0] < 0.6 * sizes[1]


def test_the_card_names_the_networks_that_stay_in_float32(trained, weights, monkeypatch, capsys):
    monkeypatch.setattr(errors, "RELATIVE", 1e-2)
    arguments = ["zoo", "export", str(trained), "half", "--dtype", "float16", "--keep", "encoder"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    card, half = hub.read_card("half"), zoo.load("half").state_dict()
    assert (card["stored_as"], card["kept"]) == ("float16", ["encoder"])
    rounded = {key for key, value in zoo.load(trained).state_dict().items() if not torch.equal(value, half[key])}
    assert rounded and all(key.startswith("decoder") for key in rounded)


def test_float16_that_moves_a_metric_is_refused(trained, weights, monkeypatch, caplog):
    monkeypatch.setattr(errors, "RELATIVE", 0.0)
    monkeypatch.setattr(errors, "ALLOWED", 0.0)
    with caplog.at_level(logging.WARNING):
        exporting.export(trained, "half", stored_as="float16")
    assert "so the weights are stored as float32" in caplog.text and "test/loss: " in caplog.text
    card, model = hub.read_card("half"), zoo.load("half")
    assert card["stored_as"] == "float32" and card["rounding"]["test/loss"]["float32"] == card["metrics"]["test/loss"]
    expected = zoo.load(trained).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
