"""Tests of the classifier: augmentation, training on digits, and scores of models with known samples."""

import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import Pixel, run
from torch.testing import assert_close

import zoo
from zoo import hub
from zoo.evaluation.classifier import Classifier, move, random_affine
from zoo.evaluation.samples import judged_accuracy
from zoo.functional.noise import chunk_generator
from zoo.hub import exporting

RECIPE = ["experiment=classifier", "data=digits", "model.widths=[8,8,16]"]
STILL = {"shift": 0, "rotate": 0, "scale": 0, "shear": 0}


def images(generator, n=4):
    return torch.rand(n, 1, 28, 28, generator=generator)


def affine(u, **largest):
    return random_affine(torch.tensor([u]), **{**STILL, **largest})


# Augmentation. The noise u = 1/2 leaves an image as it is. The changes are largest at u = 0 and u = 1.


def test_no_movement_leaves_images(generator):
    x = images(generator, 1)
    theta = affine([0.5] * 5, shift=3, rotate=20, scale=0.5, shear=30)
    assert_close(theta, torch.eye(3)[:2][None])
    assert_close(move(x, theta), x)
    assert_close(move(x, affine([0.0, 1.0, 0.0, 1.0, 0.0])), x)  # shift, rotate, scale and shear are 0


def test_shifts_are_in_pixels(generator):
    x = images(generator, 1)
    # Each pixel has the value of the pixel 2 to the right and 2 above.
    moved = move(x, affine([1.0, 0.0, 0.5, 0.5, 0.5], shift=2))
    assert_close(moved, F.pad(x, (0, 2, 2, 0))[..., :28, 2:], atol=1e-5, rtol=0)  # black outside


def test_rotations_are_in_degrees(generator):
    x = images(generator, 1)
    turned = move(x, affine([0.5, 0.5, 1.0, 0.5, 0.5], rotate=90))
    assert_close(turned, x.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_scale_and_shear_by_hand():
    theta = affine([0.5, 0.5, 0.5, 1.0, 0.5], scale=0.25)[0]
    assert_close(theta, torch.tensor([[0.8, 0, 0], [0, 0.8, 0]]))  # the image becomes a quarter larger
    theta = affine([0.5, 0.5, 0.5, 0.5, 0.0], shear=45)[0]
    assert_close(theta, torch.tensor([[1.0, -1, 0], [0, 1, 0]]))
    turn, lean = math.radians(10), math.tan(math.radians(20))
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    theta = affine([0.5, 0.5, 1.0, 1.0, 1.0], rotate=10, scale=0.25, shear=20)[0]
    assert_close(theta[:, :2], 0.8 * rotation @ torch.tensor([[1.0, lean], [0, 1]]))


def test_each_image_is_moved_by_its_own_noise(generator):
    x = images(generator, 1).expand(3, 1, 28, 28)
    moved = move(x, random_affine(torch.rand(3, 5, generator=generator), 2, 10, 0.1, 10))
    assert (moved[0] - moved[1]).abs().max() > 0.05 and (moved[1] - moved[2]).abs().max() > 0.05


# Network.


def test_every_parameter_has_a_gradient(generator):
    torch.manual_seed(0)
    model = Classifier(num_classes=3, widths=[4, 4, 4], num_features=6)
    terms = model.loss([images(generator), torch.tensor([0, 1, 2, 2])], generator=generator)
    terms["loss"].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_the_loss_is_cross_entropy_on_smoothed_labels(generator):
    torch.manual_seed(0)
    model = Classifier(widths=[4, 4, 4], label_smoothing=0.2, **STILL).eval()
    x, y = images(generator), torch.tensor([0, 3, 9, 9])
    with torch.no_grad():
        log_p = F.log_softmax(model(x), -1)
        smooth = 0.8 * F.one_hot(y, 10) + 0.02
        terms = model.loss([x, y])
    assert_close(terms["loss"], -(smooth * log_p).sum(-1).mean())
    assert_close(terms["accuracy"], (log_p.argmax(-1) == y).float().mean())


def test_the_rate_rises_over_a_fifth_of_the_run_and_falls_to_nothing():
    """The learning rate rises linearly for a fifth of the run, and then falls to 0 along half a cosine."""
    model = Classifier(widths=[4, 4, 4], lr=0.01)
    model.trainer = L.Trainer(max_steps=100, logger=False, enable_checkpointing=False, accelerator="cpu")
    rate = model.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert_close([rate(step) for step in (0, 9, 19, 20)], [0.05, 0.5, 1.0, 1.0])
    assert_close(
        [rate(step) for step in (40, 60, 80, 100)], [(1 + math.cos(k * math.pi / 4)) / 2 for k in (1, 2, 3, 4)]
    )


def test_predictions_follow_from_features(generator):
    torch.manual_seed(0)
    model, x = Classifier(widths=[4, 4, 4], num_features=6).eval(), images(generator)
    features = model.features(x)
    assert features.shape == (4, 6) and features.min() >= 0
    assert_close(model.head(features), model(x))
    assert torch.equal(model.predict(x), model(x).argmax(-1))
    assert not model.predict(x).is_floating_point()


def test_it_learns_digits_and_comes_back(tmp_path):
    """The test set has 180 digits. Random guesses have an accuracy of 0.1."""
    metrics = run(tmp_path / "run", *RECIPE, "trainer.max_epochs=1")
    assert 0.8 < metrics["test/accuracy"] <= 1 and 0 < metrics["test/loss"] < 1
    assert not (tmp_path / "run" / "samples").exists() and not (tmp_path / "run" / "estimator_variance.png").exists()
    model = zoo.load(tmp_path / "run")
    assert isinstance(model, Classifier) and not model.training
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"model.shift was 2.0 and is 1.0"):
        run(tmp_path / "other", *RECIPE, f"ckpt={last}", "model.shift=1.0")
    resumed = run(
        tmp_path / "resumed", *RECIPE, f"ckpt={last}", "trainer.max_epochs=2", "trainer.limit_train_batches=2"
    )
    assert 0.5 < resumed["test/accuracy"] <= 1


def test_it_is_published_like_a_model_and_listed_as_none(tmp_path, monkeypatch):
    run(tmp_path / "run", *RECIPE, "debug=fast", "test=false")
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    exporting.export(tmp_path / "run", "classifier")
    assert zoo.list_checkpoints() == ["classifier"] and "classifier" not in zoo.list_models()
    card = hub.read_card("classifier")
    assert exporting.golden_terms(zoo.load("classifier")) == card["golden"]
    assert set(card["metrics"]) == {"test/loss", "test/accuracy", "test/accuracy_error"}
    assert card["counts"] == {"test/accuracy": 180}
    assert "zoo train" in card["command"]
    assert not (tmp_path / "weights" / "classifier.png").exists()  # a classifier has no samples
    weights = tmp_path / "weights" / "classifier.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="weights of classifier are not the published ones"):
        judged_accuracy(Obedient(), 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes must be an integer of at least 2, got 1"),
        ({"num_features": 0}, "num_features must be an integer of at least 1, got 0"),
        ({"widths": [16, 32]}, r"such as \[16, 32, 64\], got \[16, 32\]"),
        ({"widths": 16}, r"such as \[16, 32, 64\], got 16"),
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be a number of at least 0 and below 1, got 1.0"),
        ({"rotate": -1}, "rotate must be a number of at least 0 and below 180, got -1"),
        ({"shear": "abc"}, "shear must be a number of at least 0 and below 90, got 'abc'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**arguments)


# Scores of samples.


class Obedient:
    """Model whose samples show their label: the first pixel is label / 10.

    The other pixels are noise, which ``Reader`` ignores.
    """

    def label(self, labels):
        return torch.as_tensor(labels)

    def sample(self, n, *, y, generator=None):
        x = torch.rand(n, 1, 28, 28, generator=generator)
        x[:, 0, 0, 0] = self.label(y) / 10
        return x


class Confused(Obedient):
    """Model that draws ones for sevens, and fours for about half of the threes, at random."""

    def sample(self, n, *, y, generator=None):
        x = super().sample(n, y=y, generator=generator)
        y = self.label(y)
        x[y == 7, 0, 0, 0] = 0.1
        x[(y == 3) & (x[:, 0, 1, 1] < 0.5), 0, 0, 0] = 0.4
        return x


class Reader:
    """Classifier that reads the label from the first pixel."""

    device = torch.device("cpu")
    hparams = Classifier().hparams

    def predict(self, x):
        return (10 * x[:, 0, 0, 0]).round().long()


def test_judged_accuracy_counts_what_is_recognised():
    shares = judged_accuracy(Obedient(), 60, classifier=Reader())
    assert shares == {"judged_accuracy": 1.0, "judged_accuracy_error": 0.0} | {
        f"judged_accuracy/{k}": 1.0 for k in range(10)
    }
    shares = judged_accuracy(Confused(), 1600, seed=3, classifier=Reader())
    # The threes are samples 480 to 639, which are whole chunks of 16.
    noise = torch.cat([torch.rand(16, 1, 28, 28, generator=chunk_generator(3, c)) for c in range(30, 40)])
    threes = (noise[:, 0, 1, 1] >= 0.5).double().mean().item()
    assert 0.3 < threes < 0.7
    expected = {f"judged_accuracy/{k}": {3: threes, 7: 0.0}.get(k, 1.0) for k in range(10)}
    error = math.sqrt(threes * (1 - threes) / 160) / 10  # only the threes vary
    assert_close(shares, {"judged_accuracy": (8 + threes) / 10, "judged_accuracy_error": error, **expected})
    assert shares == judged_accuracy(Confused(), 1600, seed=3, classifier=Reader())
    assert shares != judged_accuracy(Confused(), 1600, seed=4, classifier=Reader())


def test_what_cannot_be_classified_is_refused():
    with pytest.raises(ValueError, match="Pixel.sample takes no y; it takes contrast"):
        judged_accuracy(Pixel(), 10, classifier=Reader())
    for n in (15, 0, -10):
        with pytest.raises(ValueError, match=f"n must be a multiple of 10, the number of classes, got {n}"):
            judged_accuracy(Obedient(), n, classifier=Reader())


def test_the_shipped_classifier_is_accurate():
    """The card states a high accuracy. A test in tests/hub/test_shipped.py measures this accuracy."""
    card = hub.read_card("classifier")
    assert card["data"] == "mnist" and 0.993 <= card["metrics"]["test/accuracy"] < 1
    assert (zoo.WEIGHTS / "classifier.safetensors").stat().st_size < 1.5e6


def test_the_shipped_classifier_does_not_recognise_noise():
    """``Blind`` ignores labels. All samples have one predicted class, so the accuracy is 0.1."""
    assert_close(judged_accuracy(Blind(), 200)["judged_accuracy"], 0.1)


class Blind(Pixel):
    """Model that returns the same grey image for every label."""

    device = torch.device("cpu")

    def sample(self, n, *, y, generator=None):
        return torch.full((n, 1, 28, 28), 0.5)
