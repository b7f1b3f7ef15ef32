"""Tests of the comparison of learned scores with true scores, on a density with a known score."""

import lightning as L
import pytest
import torch
from helpers import checkpoint, run
from torch.testing import assert_close

from zoo.callbacks import LossPerStep, ScoreField
from zoo.callbacks.loss_per_step import _figure
from zoo.datamodules import Toy
from zoo.datamodules.toy import mixture
from zoo.evaluation.bounds import BOUND_AT_ONCE, bound_metrics, bound_per_batch
from zoo.evaluation.errors import standard_errors
from zoo.evaluation.fields import figure, learned_score, measure_field, target
from zoo.evaluation.protocol import Protocol, check_protocol, measure
from zoo.functional.noise import chunk_generator
from zoo.sampling.pictures import as_image
from zoo.score import Score

TINY = ["experiment=score_mixture", "model.hidden=[16]", "model.num_sigmas=3", "callbacks.score_field.samples=50"]
TINY += ["callbacks.samples.n=50", "callbacks.samples.conditions.steps=2", "data.batch_size=10000"]
TINY += ["trainer.max_epochs=2"]


class Exact(Score):
    """Model with the exact score of the blurred mixture plus a constant, and exact samples times a factor."""

    def __init__(self, off=0.0, factor=1.0, **kw):
        super().__init__(shape=[2], hidden=[8], **kw)
        self.off, self.factor = off, factor

    def forward(self, x, sigma=None):
        q = mixture() if sigma is None else mixture().blurred(float(sigma[0]))
        return q.score(x).float() + self.off

    def sample(self, n, *, generator, denoise):
        return self.factor * target(self, mixture()).sample(n, generator=generator)[0].float()


@pytest.mark.parametrize("ladder", [{"num_sigmas": 0, "objective": "explicit"}, {"num_sigmas": 4, "sigma_min": 0.3}])
def test_a_field_is_measured_against_the_score_it_targets(ladder):
    """The measured values are known for a score and for samples with a known error.

    The divergence is 0 for the exact score, and c^2 for a score with the error (c, c). The gap is 0 for exact samples,
    within 4.5 standard errors. It is positive for samples that are scaled towards the origin.
    """
    exact = measure_field(Exact(**ladder), mixture())
    assert exact.fisher_divergence < 1e-10
    assert abs(exact.log_density_gap) < 4.5 * exact.error < 0.15
    assert_close(measure_field(Exact(0.2, **ladder), mixture()).fisher_divergence, 0.04, rtol=1e-4, atol=0)
    assert measure_field(Exact(factor=0.8, **ladder), mixture()).log_density_gap > 9 * exact.error
    model = Exact(**ladder)
    sigma = 0.3 if ladder["num_sigmas"] else 0.0
    assert_close(target(model, mixture()).sigma, (0.6**2 + sigma**2) ** 0.5, rtol=1e-6, atol=0)
    x = torch.randn(5, 2, dtype=torch.float64)
    assert_close(learned_score(model, x), target(model, mixture()).score(x), rtol=1e-4, atol=1e-4)


def test_the_error_of_the_gap_has_a_part_of_the_samples_and_a_part_of_the_draws():
    model, q = Exact(factor=0.8, num_sigmas=0, objective="explicit"), mixture()
    found = measure_field(model, q, n=400, samples=100)
    drawn = q.log_density(model.sample(100, generator=chunk_generator(0, 0), denoise=False))
    expected = q.log_density(q.sample(400, generator=chunk_generator(1, 0))[0])
    assert_close(found.error, float((drawn.var() / 100 + expected.var() / 400).sqrt()))
    assert_close(found.log_density_gap, float(drawn.mean() - expected.mean()))


def test_samples_of_a_model_with_labels_are_drawn_without_them():
    class Labelled(Exact):
        def sample(self, n, *, generator, denoise, y):
            assert y == "dropped"
            return super().sample(n, generator=generator, denoise=denoise)

    assert measure_field(Labelled(num_classes=3), mixture(), n=100, samples=50).fisher_divergence < 1e-10


def test_the_outermost_hundredth_does_not_count():
    """The divergence ignores errors of the score in the 1 % of the draws with the lowest density.

    With an error of (5, 5) at every draw, the divergence is 25. With this error only in the outer half of the draws,
    the divergence is 25 * 49 / 99.
    """
    x, _ = mixture().sample(10_000, generator=chunk_generator(1, 0))

    class WrongOutside(Exact):
        def __init__(self, share):
            super().__init__(num_sigmas=0, objective="explicit")
            self.edge = mixture().log_density(x).quantile(share) - 1e-4

        def forward(self, x, sigma=None):
            return super().forward(x) + 5.0 * (mixture().log_density(x) < self.edge).float()[:, None]

    assert measure_field(WrongOutside(0.01), mixture()).fisher_divergence < 1e-10
    assert_close(measure_field(WrongOutside(0.5), mixture()).fisher_divergence, 25 * 49 / 99, rtol=1e-2, atol=0)


def test_a_field_is_drawn():
    image = as_image(figure(Exact(num_sigmas=0, objective="explicit"), mixture()))
    assert image.shape == (1, 3, 600, 600)
    red = (image[0, 0] > 0.9) & (image[0, 1:] < 0.2).all(0)
    assert red.sum() > 500


def test_a_run_draws_its_field_and_logs_how_far_it_is(tmp_path):
    metrics = run(tmp_path, *TINY, "callbacks.score_field.every_n_epochs=1", "callbacks.loss_per_step.every_n_epochs=1")
    assert sorted(p.name for p in (tmp_path / "field").iterdir()) == ["epoch_000.png", "epoch_001.png"]
    assert sorted(p.name for p in (tmp_path / "loss_per_step").iterdir()) == ["epoch_000.png", "epoch_001.png"]
    assert metrics["val/fisher_divergence"] > 0 and "val/log_density_gap" in metrics


def test_the_field_of_a_model_with_labels_is_that_of_all_points(tmp_path):
    """The labels are the components of the mixture. The pictures of samples have a row for each label."""
    metrics = run(tmp_path, *TINY, "model.num_classes=auto", "trainer.max_epochs=1", "callbacks.samples.n=6")
    assert metrics["val/fisher_divergence"] > 0 and "val/log_density_gap" in metrics
    assert checkpoint(tmp_path)["hyper_parameters"]["num_classes"] == 3
    assert (tmp_path / "samples" / "epoch_000.png").stat().st_size > 0
    with pytest.raises(ValueError, match="label_dropout is 0, so the model never learns it: set model.label_dropout="):
        run(tmp_path / "other", *TINY, "model.num_classes=auto", "model.label_dropout=0")


def test_what_cannot_be_drawn_is_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="ScoreField needs a score model and points with a known density"):
        run(tmp_path, "experiment=score_mixture", "model.shape=[2]", "data=line", "trainer.max_epochs=1")
    with pytest.raises(ValueError, match="VAE has no num_steps, so LossPerStep cannot draw its loss"):
        run(
            tmp_path, "model=vae", "data=digits", "+callbacks.l._target_=callbacks.LossPerStep", "+callbacks.l.folder=x"
        )
    with pytest.raises(ValueError, match=r"Score takes examples of shape \[2\], but examples of digits have shape"):
        run(tmp_path, "model=score", "data=digits", "model.shape=[2]")
    for cls in (LossPerStep, ScoreField):
        with pytest.raises(ValueError, match="every_n_epochs must be an integer of at least 1, got 0"):
            cls("x", every_n_epochs=0)


def test_the_loss_of_each_step_is_the_mean_of_its_examples():
    """Ten steps are grouped into five bins. The sums and counts of the bins are right."""
    callback = LossPerStep("x", bins=5)

    class Model:
        num_steps = 10

    callback.on_validation_epoch_start(None, Model())
    out = {"step": torch.tensor([0, 1, 1, 9]), "losses": torch.tensor([1.0, 2.0, 6.0, 5.0])}
    callback.on_validation_batch_end(None, None, out, None, 0)
    callback.on_validation_batch_end(None, None, {k: v[:1] for k, v in out.items()}, None, 1)
    assert callback.sums.tolist() == [[10, 0, 0, 0, 5], [4, 0, 0, 0, 1]]
    line = _figure(torch.tensor([2.5, 5.0]), 10).axes[0].lines[0]
    assert line.get_xdata().tolist() == [2.5, 7.5] and line.get_ydata().tolist() == [2.5, 5.0]


def test_a_run_measures_as_many_samples_as_asked_for(tmp_path):
    torch.manual_seed(0)
    model, data = Score(shape=[2], hidden=[4], num_sigmas=2), Toy("mixture", eval_batch_size=5000)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(callbacks=[ScoreField(tmp_path, every_n_epochs=1, samples=50)], accelerator="cpu", **off)
    (metrics,) = trainer.validate(model, datamodule=data, verbose=False)
    measured = measure_field(model, mixture(), samples=50)
    assert_close(metrics["val/log_density_gap"], measured.log_density_gap, rtol=1e-5, atol=1e-6)
    assert_close(metrics["val/fisher_divergence"], measured.fisher_divergence, rtol=1e-5, atol=1e-6)


def test_what_a_protocol_measures_of_points():
    data = Toy("mixture")
    data.setup()
    model = Score(shape=[2], hidden=[8], objective="explicit", num_sigmas=0)
    metrics, evidence = measure(model, data, Protocol(samples=40, conditions=({"steps": 2}, {"steps": 3})))
    assert set(metrics) == {"test/loss", "fisher_divergence", "log_density_gap"} | {
        f"energy_distance{error}/steps={steps}" for error in ("", "_error") for steps in (2, 3)
    }
    assert evidence["counts"] == {"energy_distance/steps=2": 40, "energy_distance/steps=3": 40}
    assert evidence["samples"] == {"n": 40, "conditions": [{"steps": 2}, {"steps": 3}], "sure_of_the_first": []}
    # The untrained network returns s = 0. Its divergence is half the mean square of the true score.
    x, _ = mixture().sample(10_000, generator=chunk_generator(1, 0))
    log_p = mixture().log_density(x)
    bulk = x[log_p >= log_p.quantile(0.01)]
    assert_close(
        metrics["fisher_divergence"], float(mixture().score(bulk).square().sum(1).mean() / 2), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Protocol(bound_images=5), r"Score has no bound_terms\(\), so its bound cannot be measured"),
        (Protocol(importance_samples=3), "Score has no log_likelihood"),
        (Protocol(samples=1), "samples must be an integer of at least 2, got 1"),
        (Protocol(samples=2, conditions=({"eta": 1},)), "Score.sample takes no eta"),
        (Protocol(samples=2, conditions=({"steps": 0},)), "steps must be an integer of at least 1, got 0"),
        (Protocol(samples=2, conditions=({"frames": 2},)), r"samples must have shape \[2\], got \[2, 2\]"),
        (Protocol(samples=2, conditions=({"steps": 2}, {"steps": 2})), "conditions {'steps': 2} are given twice"),
        (Protocol(bound_images=-1), "bound_images must be an integer of at least 0, got -1"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(protocol, message):
    with pytest.raises(ValueError, match=message):
        check_protocol(protocol, Score(shape=[2], hidden=[4]))


def test_conditions_of_samples_are_checked_first():
    from zoo.ddpm import DDPM

    model = DDPM(steps=4, widths=[8], num_classes=3)
    check_protocol(Protocol(samples=2), model)
    with pytest.raises(ValueError, match="no samples of DDPM are evaluated by default; give the number of samples"):
        check_protocol(Protocol(conditions=({"eta": 1},)), model)
    with pytest.raises(ValueError, match="y has 2 values for 20 samples; give one value"):
        check_protocol(Protocol(samples=20, conditions=({"labels": [1, 2]},)), model)
    with pytest.raises(ValueError, match="labels and y name the same condition of DDPM.sample; give only y"):
        check_protocol(Protocol(samples=20, conditions=({"labels": 1, "y": 2},)), model)


@pytest.mark.slow
def test_samples_with_labels_are_also_scored_by_their_labels(mnist_root):
    from zoo.datamodules import Images
    from zoo.ddpm import DDPM
    from zoo.evaluation.samples import judged_accuracy

    torch.manual_seed(0)
    data, model = Images("mnist", eval_batch_size=5000), DDPM(steps=4, widths=[8], num_classes=10).eval()
    data.setup()
    conditions = ({"num_steps": 2, "guidance": 1}, {"num_steps": 2, "labels": "dropped"})
    metrics, evidence = measure(model, data, Protocol(samples=25, conditions=conditions))
    expected = judged_accuracy(model, 20, num_steps=2, guidance=1)["judged_accuracy"]
    assert metrics["judged_accuracy/num_steps=2/guidance=1"] == expected
    judged = [f"judged_accuracy{error}/num_steps=2/guidance=1" for error in ("", "_error")]
    assert [k for k in metrics if k.startswith("judged")] == judged
    assert evidence["counts"]["judged_accuracy/num_steps=2/guidance=1"] == 20
    # The condition ``y`` was called ``labels`` in the previous version.
    assert 'confident/num_steps=2/y="dropped"' in metrics and not [k for k in metrics if "labels" in k]
    assert evidence["samples"]["conditions"] == [conditions[0], {"num_steps": 2, "y": "dropped"}]
    assert evidence["samples"]["n"] == 25 and len(evidence["samples"]["sure_of_the_first"]) == 2


def test_each_hundred_images_have_separate_noise():
    """The test evaluates the batches of 100 and 80 digits alone, with the noise of their index. The values agree."""
    from zoo.datamodules import Images
    from zoo.evaluation.bounds import log_likelihood_per_batch
    from zoo.vae import VAE

    torch.manual_seed(0)
    data, model = Images("digits"), VAE(latent_dim=2, hidden=[8]).eval()
    data.setup()
    found = log_likelihood_per_batch(model, data, 3)
    x = data.splits["test"].images.float() / 255
    with torch.no_grad():
        again = [
            model.log_likelihood(part, num_samples=3, generator=chunk_generator(0, i)).double().mean().item()
            for i, part in enumerate(x.split(100))
        ]
    assert found == again and len(found) == 2
    assert log_likelihood_per_batch(model, data, 3, batches=1) == again[:1]


def test_the_published_log_likelihood_is_the_mean_over_images():
    """The published value is the mean over 180 digits, not the mean of the means of 100 and 80 digits."""
    from zoo.datamodules import Images
    from zoo.vae import VAE

    torch.manual_seed(0)
    data, model = Images("digits"), VAE(latent_dim=2, hidden=[8])
    data.setup()
    metrics, evidence = measure(model, data, Protocol(importance_samples=2))
    first, second = evidence["log_likelihood"]["of_each_hundred"]
    assert_close(metrics["test/log_likelihood"], (100 * first + 80 * second) / 180)
    assert abs(first - second) > 0.01 and evidence["log_likelihood"]["num_samples"] == 2


def test_the_bound_of_five_images_can_be_taken_again_alone():
    from zoo.datamodules import Images
    from zoo.ddpm import DDPM

    data, model = Images("digits"), DDPM(steps=4, widths=[8])
    data.setup()
    with pytest.raises(ValueError, match="bound_images must be a multiple of 5, got 7"):
        check_protocol(Protocol(bound_images=7), model)
    terms = bound_per_batch(model, data, 3)
    assert terms.shape == (3, 3)
    assert_close(bound_per_batch(model, data, 1), terms[:1])
    x = data.splits["test"].images[5:10].float() / 255
    again = model.bound_terms(x, generator=chunk_generator(0, 1)).double().mean(1)
    assert_close(terms[1], torch.stack([again[0], again[1:4].sum(), again[4]]))
    found = bound_metrics(terms, 784)
    bits = terms.sum(1) / (784 * 0.6931471805599453)
    assert_close(found["bits_per_dim"], float(bits.mean()))
    assert_close(found["bits_per_dim_error"], float(bits.std() / 3**0.5))
    for name, column in zip(("bound/L_0", "bound/L_t", "bound/L_T"), terms.T, strict=True):
        a, b, c = column.tolist()
        mean = (a + b + c) / 3
        variance = ((a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2) / 2
        assert found[name] == pytest.approx(mean, rel=1e-9)
        assert found[f"{name}_error"] == pytest.approx((variance / 3) ** 0.5, rel=1e-6)
        assert standard_errors(found, {})[name] == found[f"{name}_error"]  # so float16 may move it by a tenth of that
    assert not [name for name in bound_metrics(terms[:1], 784) if name.endswith("_error")]
    assert_close(sum(found[f"bound/{k}"] for k in ("L_0", "L_t", "L_T")), float(terms.sum(1).mean()))
    assert BOUND_AT_ONCE == 5
