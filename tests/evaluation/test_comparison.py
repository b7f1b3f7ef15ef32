"""Tests of ``zoo compare``: exact values, common noise, and errors of users."""

import math
import re
import sys

import pytest
import torch
from helpers import TINY, run
from torch.testing import assert_close

from zoo.__main__ import main
from zoo.estimators import Comparison, GradientEstimator, compare, gradient_moments
from zoo.evaluation import comparison
from zoo.functional.noise import chunk_generator
from zoo.gan import GAN
from zoo.vae import VAE


def test_the_example_of_the_lecture_notes_has_its_exact_values():
    """Means agree within 4.5 standard errors, and variances within 6 %.

    The largest kurtosis of a gradient is 22, for ``score_function+optimal``. For this estimator, 6 % are 4.2 standard
    errors. Correct estimators fail once in 19,000 seeds.
    """
    results = comparison.toy(100_000, seed=1)
    mu = 4.0
    exact = {
        "pathwise": 16.0,
        "pathwise+antithetic": 0.0,
        "score_function": 4 * (mu**4 + 14 * mu**2 + 15),
        "score_function+optimal": 4 * (8 * mu**2 + 6),
    }
    assert {t.name: t.variance for t in results} == exact
    for t in results:
        assert t.mean == 16
        assert abs(t.gradients.mean() - 16) <= 4.5 * (t.variance / 100_000) ** 0.5 + 1e-9
        assert abs(t.gradients.var() - t.variance) <= 0.06 * t.variance + 1e-9
    # The variance is Var (1 - rho^2), with rho the correlation of g = a z^2 (z - mu) and h = z - mu [Liao22].
    g, eps = results[2].gradients, results[0].gradients / 4 - mu
    rho = torch.corrcoef(torch.stack([g, eps]))[0, 1]
    assert_close(results[3].gradients.var(), g.var() * (1 - rho**2), rtol=0.01, atol=0)
    text = comparison.toy_table(results)
    assert "1980.00" in text and "536.00" in text


def test_the_optimal_baseline_uses_separate_draws():
    """The baseline is computed from held-out draws. It does not depend on the number of measured draws."""
    few, many = comparison.toy(10, seed=3), comparison.toy(20, seed=3)
    assert not torch.equal(few[3].gradients, many[3].gradients[:10])  # the measured draws differ
    eps = lambda t: t[0].gradients / 4 - 4  # noqa: E731  pathwise: 2 a (mu + eps)
    beta = [(t[2].gradients - t[3].gradients) / (2 * eps(t)) for t in (few, many)]  # a eps (z^2 - (z^2 - beta))
    assert_close(beta[0], beta[0][:1].expand(10))
    assert_close(beta[1], beta[0][:1].expand(20))
    assert abs(beta[0][0] - 19) < 4.5 * 0.32  # mu^2 + 3, standard error ((60 mu^2 + 42) / 10,000)^0.5


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VAE(latent_dim=2, hidden=[8])


def test_rows_are_the_moments_of_each_and_of_their_difference(model, generator):
    batch = [torch.rand(6, 1, 28, 28, generator=generator).round(), torch.zeros(6)]
    names = ["pathwise", "score_function"]
    rows = comparison.compare_model(model, batch, names, draws=20, seed=2)
    assert [(r.estimator, r.group) for r in rows] == [(n, g) for n in names for g in ("all", "encoder", "decoder")]
    # The batch is already binary, so the generator does not matter.
    probe = model.probe_batch(batch, generator=torch.Generator().manual_seed(0))
    for row in rows:
        moments, _ = gradient_moments(model.gradient_estimators()[row.estimator], probe, range(20), seed=2)
        expected = moments.statistics()[row.group]
        assert_close(row.variance, expected["variance"])
        assert_close(row.snr, expected["snr"])
        assert row.milliseconds > 0
        if row.estimator == "pathwise" or row.group == "decoder":  # equal in each draw, because the noise is the same
            assert row.difference == 0 and row.noise < 1e-6
        else:
            assert row.noise > 0


def test_the_noise_of_a_difference_is_that_of_its_mean():
    """The gradients 10 + eps and 10 + 3 + 2 eps have the difference 3 + eps.

    The noise of the mean difference over n draws is s / (sqrt(n) |g|), where s is the standard deviation of eps.
    """
    noise = lambda batch, g: {"eps": torch.randn((), generator=g)}  # noqa: E731
    make = lambda name, bias, factor: GradientEstimator(  # noqa: E731
        name, {"theta": torch.tensor(2.0)}, noise, lambda p, b, n: (10 + bias + factor * n["eps"]) * p["theta"]
    )
    found = compare([make("a", 0.0, 1.0), make("b", 3.0, 2.0)], None, range(50), seed=0)
    row = comparison.rows(found)[2]
    eps = torch.stack([noise(None, chunk_generator(0, k))["eps"] for k in range(50)]).double()
    size = ((10 + eps.mean()) ** 2 - eps.var() / 50).sqrt()
    assert_close(row.noise, float(eps.std() / 50**0.5 / size), rtol=1e-5, atol=0)
    assert_close(row.difference, float(((3 + eps.mean()) ** 2 - eps.var() / 50).sqrt() / size), rtol=1e-5, atol=0)


def test_a_bias_is_seen_where_noise_allows():
    """Two estimators differ by 3. Their common noise cancels, so the measured difference is exact."""
    noise = lambda batch, g: {"eps": torch.randn((), generator=g)}  # noqa: E731
    make = lambda name, bias: GradientEstimator(  # noqa: E731
        name, {"theta": torch.tensor(2.0)}, noise, lambda p, b, n: (10 + bias + n["eps"]) * p["theta"]
    )
    a, b = comparison.rows(compare([make("a", 0.0), make("b", 3.0)], None, range(400), seed=0))[::2]
    assert a.difference == 0
    # |g| of the first estimator is 10 with standard error 1 / sqrt(400).
    assert abs(b.difference - 0.3) < 0.3 * 4.5 * 0.1 / 400**0.5
    assert b.noise < 1e-6
    with pytest.raises(ValueError, match="c and a differentiate different parameters"):
        compare([make("a", 0.0), GradientEstimator("c", {"phi": torch.zeros(())}, noise, None)], None, range(2))


def test_a_reference_lost_in_noise_says_nothing_of_a_difference():
    """Draws of +1 and -1 have no signal, so a difference of 3 relative to the signal is NaN."""
    lost, other = Comparison(), Comparison()
    for g in (1.0, -1.0):
        lost.moments.update({"theta": torch.tensor(g)})
        lost.difference.update({"theta": torch.tensor(0.0)})
        other.moments.update({"theta": torch.tensor(g + 3)})
        other.difference.update({"theta": torch.tensor(3.0)})
    found = comparison.rows({"lost": lost, "other": other})
    assert math.isnan(found[2].difference) and math.isnan(found[2].noise)
    assert "unknown: the signal of the first estimator is below its noise" in comparison.table(found)


def test_the_command(tmp_path, monkeypatch, capsys):
    run(tmp_path / "run", *TINY["vae"], "debug=fast", "test=false")

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", "compare", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    here = [tmp_path / "run", "--data", "digits", "-o", tmp_path / "figures" / "a.png", "--draws", 4]
    text = command(*here, "--estimators", "pathwise,score_function+loo", "--batch-size", 8)
    assert "encoder parameters" in text and "score_function+loo" in text and "variance x ms" in text
    assert (tmp_path / "figures" / "a.png").stat().st_size > 10_000
    assert "score_function+optimal" in command(*here)  # all estimators of the model
    assert "1980.00" in command("toy", "--draws", 100, "-o", tmp_path / "toy.png")
    assert (tmp_path / "toy.png").stat().st_size > 10_000
    for wrong, message in [
        ([*here, "--estimators", "rebar"], "VAE has no gradient estimator rebar; it has pathwise"),
        ([*here, "--estimators", "pathwise,pathwise"], "name each estimator once"),
        ([*here[:-1], 1], "draws must be an integer of at least 2, got 1"),
        (["toy", "--draws", 1], "draws must be an integer of at least 2, got 1"),
        (["toy", "-o", tmp_path / "toy.gif"], r"ends in .png"),
        (["nothing"], "neither a file nor a pretrained"),
        ([*here, "--batch-size", 0], "batch-size must be an integer of at least 1, got 0"),
    ]:
        with pytest.raises(SystemExit) as refused:
            command(*wrong)
        assert re.search(message, f"{refused.value}\n{capsys.readouterr().err}")
    assert not list(tmp_path.glob("**/*.part"))


def test_the_seed_of_the_example_is_that_of_its_draws(tmp_path, monkeypatch, capsys):
    arguments = ["zoo", "compare", "toy", "--draws", "100", "--seed", "3", "-o", str(tmp_path / "toy.png")]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    said = capsys.readouterr().out
    assert comparison.toy_table(comparison.toy(100, 3)) in said
    assert comparison.toy_table(comparison.toy(100, 0)) not in said


def test_adversarial_networks_are_compared_separately():
    torch.manual_seed(0)
    model = GAN(network="mlp", shape=[2], hidden=[4], z_dim=2)
    rows = comparison.compare_model(model, [torch.randn(8, 2), torch.zeros(8)], None, draws=4)
    groups = {row.estimator: row.group for row in rows if row.group.startswith("all")}
    assert groups["minimax"] == groups["non_saturating"] == "all generator"
    assert groups["discriminator"] == "all discriminator"
    assert "all discriminator parameters" in comparison.table(rows)
    comparison.figure(rows)
