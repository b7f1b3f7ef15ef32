"""Tests of metrics on images of any shape, on data without labels, and on data modules of the user."""

import math
import sys

import lightning as L
import pytest
import torch
from own_data import OnDisk, Stripes
from PIL import Image
from torch.testing import assert_close

from zoo.__main__ import main
from zoo.callbacks import SampleDistance
from zoo.checks.errors import UserError
from zoo.datamodules import Images
from zoo.datamodules.access import has_labels, make_ready, name_of, split_of
from zoo.datamodules.splits import Split
from zoo.ddpm import DDPM
from zoo.evaluation import pairs
from zoo.evaluation.bounds import bound_metrics, log_likelihood_per_batch
from zoo.evaluation.distances import ImageDistance, SampleDistanceMetric, energy_distance
from zoo.evaluation.protocol import Protocol, clustering_of_all_images, feature_accuracy, measure
from zoo.evaluation.samples import measure_samples
from zoo.functional.noise import chunk_generator
from zoo.gan import GAN
from zoo.rbm import RBM
from zoo.sampling.chunks import sample_chunks


def small_gan(shape):
    torch.manual_seed(0)
    return GAN(network="mlp", shape=list(shape), hidden=[8]).eval()


class Noise:
    """Model whose samples are uniform noise, and whose labels and features are simple sums of pixels."""

    device = "cpu"

    def __init__(self, shape=(3, 4, 5)):
        self.shape = shape

    def sample(self, n, *, generator):
        return torch.rand(n, *self.shape, generator=generator)

    def cluster(self, x):
        return (x[:, 0].flatten(1).mean(1) > 0.3).long()

    def rows(self):
        return "clusters", [0, 1]

    def transform(self, x):
        return x[:, :4]


def colours(n, classes=3, size=(3, 4, 5), seed=0):
    """Return a split of uint8 images of ``size`` and labels, or no labels if ``classes`` is None."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, *size), generator=generator, dtype=torch.uint8)
    return Split(x, None if classes is None else torch.randint(classes, (n,), generator=generator))


class InMemory(Stripes):
    """Data module with ``splits``, as the modules of the zoo have them."""

    def __init__(self, classes=3, wrap=lambda images: images):
        super().__init__((3, 4, 5), classes)
        self.splits = {}
        for seed, (split, n) in enumerate({"train": 60, "val": 20, "test": 210}.items()):
            images, labels = colours(n, classes, seed=seed)
            self.splits[split] = Split(wrap(images), labels)


# The energy distance of images.


def direct(a, b):
    """Return the unbiased energy distance by loops over all pairs, in float64."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    between = sum(float((x - y).norm()) for x in a for y in b) / (len(a) * len(b))
    within = [
        sum(float((x - y).norm()) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
        for s in (a, b)
    ]
    return 2 * between - sum(within)


@pytest.mark.parametrize("rows", [1, 3, 7, 500])
def test_the_distance_in_blocks_is_the_sum_over_all_pairs(rows, generator, monkeypatch):
    monkeypatch.setattr(pairs, "ROWS_AT_ONCE", rows)
    a, b = torch.rand(11, 3, 4, 5, generator=generator), 0.7 * torch.rand(7, 3, 4, 5, generator=generator)
    found = ImageDistance(b)(a)
    assert_close(found.value, direct(a, b), rtol=1e-5, atol=1e-6)
    assert_close(found.value, energy_distance(a.flatten(1), b.flatten(1)), rtol=1e-5, atol=1e-6)


def test_the_distance_of_two_pairs_by_hand():
    """Images of one value and of two copies: 2 (3 + 5 + 2 + 4) / 4 - 1 - 2, times sqrt(2) for two equal pixels."""
    a, b = (torch.tensor(v).view(2, 1, 1, 1).expand(2, 1, 1, 2) / 10 for v in ([0.0, 1.0], [3.0, 5.0]))
    found = ImageDistance(b)(a)
    assert_close(found.value, math.sqrt(2) * (7 - 1 - 2) / 10)
    assert math.isnan(found.error)


def test_the_distance_of_equal_distributions_is_zero_on_average(generator):
    """The mean over 200 pairs of sets is 0 within 4.5 standard errors (fails once in 1.5e5)."""
    draw = lambda: torch.rand(12, 1, 3, 3, generator=generator)  # noqa: E731
    values = torch.tensor([ImageDistance(draw())(draw()).value for _ in range(200)])
    assert values.mean().abs() < 4.5 * values.std() / 200**0.5
    assert ImageDistance(draw())(0.5 * draw()).value > 4.5 * values.std()


def test_the_standard_error_is_the_jackknife(generator, monkeypatch):
    monkeypatch.setattr(pairs, "ROWS_AT_ONCE", 4)
    a, b = torch.rand(9, 2, 3, 1, generator=generator), 0.8 * torch.rand(6, 2, 3, 1, generator=generator)
    variance = 0.0
    for n, without in ((9, lambda i: (drop(a, i), b)), (6, lambda i: (a, drop(b, i)))):
        values = torch.tensor([direct(*without(i)) for i in range(n)], dtype=torch.float64)
        variance += float((n - 1) / n * (values - values.mean()).square().sum())
    assert_close(ImageDistance(b)(a).error, math.sqrt(variance), rtol=1e-4, atol=0)


def drop(x, i):
    return torch.cat([x[:i], x[i + 1 :]])


def test_the_standard_error_is_the_spread_of_the_distance(generator):
    """The mean of ten errors is within a third of the standard deviation of 200 values, which is exact to 5 %."""
    draw = lambda scale: scale * torch.rand(30, 1, 2, 2, generator=generator)  # noqa: E731
    found = [ImageDistance(draw(0.5))(draw(1.0)) for _ in range(200)]
    spread = float(torch.tensor([f.value for f in found]).std())
    assert abs(sum(f.error for f in found[:10]) / 10 - spread) < spread / 3


def test_bright_images_keep_their_precision(generator):
    """Two sets of nearly equal, bright images differ by 1e-3 in each of 3,072 values. The distance is exact to 1 %.

    With more than 25 images, torch computes distances by products of matrices, which round more.
    """
    base = 0.9 + 0.001 * torch.rand(1, 3, 32, 32, generator=generator)
    a, b = (base + 0.001 * torch.rand(40, 3, 32, 32, generator=generator) for _ in range(2))
    assert_close(ImageDistance(b + 0.001)(a).value, direct(a, b + 0.001), rtol=0.01, atol=0)


# Samples of models on other data than MNIST.


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 20, 30), (1, 28, 28)])
def test_samples_of_own_images_have_an_energy_distance(shape):
    data, model = make_ready(Stripes(shape)), small_gan(shape)
    metrics, evidence = measure(model, data, Protocol(samples=20))
    real = data.sets["test"].tensors[0]
    expected = ImageDistance(real)(sample_chunks(model, 20, 0))
    assert_close([metrics["energy_distance"], metrics["energy_distance_error"]], list(expected))
    assert not [name for name in metrics if "classifier" in name or "accuracy" in name or "confident" in name]
    assert evidence["samples"]["n"] == 20 and evidence["samples"]["sure_of_the_first"] == []
    assert "test/generator_loss" in metrics


def test_at_most_5000_samples_and_images_are_compared(monkeypatch):
    monkeypatch.setattr("zoo.evaluation.samples.MOST_IMAGES", 25)
    data, drawn = InMemory(), []

    class Counting(Noise):
        def sample(self, n, *, generator):
            drawn.append(n)
            return super().sample(n, generator=generator)

    found = measure_samples(Counting(), data, 10_000)
    assert sum(drawn) == 32  # 25 samples in chunks of 16
    expected = ImageDistance(data.splits["test"].images[:25] / 255)(sample_chunks(Noise(), 25, 0))
    assert_close(found["energy_distance"], expected.value)


def test_the_classifier_scores_only_images_that_it_knows():
    digits = Images("digits")
    digits.setup()
    assert SampleDistanceMetric(digits).name == "classifier_fid"
    assert SampleDistanceMetric(make_ready(Stripes((1, 28, 28)))).name == "energy_distance"
    named = make_ready(Stripes((1, 28, 28)))
    named.used = "mnist"  # a name does not make the images known
    assert SampleDistanceMetric(named).name == "energy_distance"
    assert set(measure_samples(Noise((1, 28, 28)), digits, 10)) == {"energy_distance", "energy_distance_error"}


def test_a_single_test_image_is_refused():
    data = InMemory()
    data.splits["test"] = colours(1)
    with pytest.raises(UserError, match="number of real images must be an integer of at least 2, got 1"):
        measure_samples(Noise(), data, 10)


# The callback.


def validated(callback, data, **arguments):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(callbacks=[callback], accelerator="cpu", **quiet, **arguments)
    (metrics,) = trainer.validate(small_gan(data.shape), datamodule=data, verbose=False)
    return metrics


def test_the_distance_in_validation_reads_the_loader_once():
    data = Stripes()
    callback = SampleDistance(n=20)
    metrics = validated(callback, data)
    expected = ImageDistance(data.sets["val"].tensors[0])(sample_chunks(small_gan(data.shape), 20, 0)).value
    assert_close([metrics["val/distance"], metrics["val/energy_distance"]], [expected] * 2, rtol=1e-5, atol=1e-6)
    data.val_dataloader = lambda: torch.utils.data.DataLoader(data.sets["test"], 16)  # the first images are kept
    assert_close(validated(callback, data)["val/distance"], expected, rtol=1e-5, atol=1e-6)


def test_the_distance_in_validation_uses_images_of_the_splits():
    data = InMemory()  # its loaders have other images
    metrics = validated(SampleDistance(n=20), data)
    expected = ImageDistance(data.splits["val"].images / 255)(sample_chunks(small_gan(data.shape), 20, 0)).value
    assert_close(metrics["val/energy_distance"], expected, rtol=1e-5, atol=1e-6)
    data.splits["val"] = colours(1)
    with pytest.raises(UserError, match="validation images, which must be at least 2"):
        validated(SampleDistance(n=20), data)


# Data without labels, with other classes, and images that are no tensor.


def test_scores_of_labels_need_labels():
    assert not has_labels(InMemory(None)) and has_labels(InMemory(5)) and not has_labels(make_ready(Stripes()))
    with pytest.raises(UserError, match="the train images of stripes have no labels"):
        clustering_of_all_images(Noise(), InMemory(None))


@pytest.mark.parametrize("classes", [2, 17])
def test_clusters_are_scored_for_any_number_of_classes(classes):
    data = InMemory(classes)
    found = clustering_of_all_images(Noise(), data)
    x = torch.cat([split.images for split in data.splits.values()]) / 255
    y = torch.cat([split.labels for split in data.splits.values()])
    table = torch.zeros(2, classes)
    for c, k in zip(Noise().cluster(x), y, strict=True):
        table[c, k] += 1
    best = max(table[0, i] + table[1, j] for i in range(classes) for j in range(classes) if i != j)
    assert_close(found["accuracy"], float(best / len(y)))


def test_features_of_colour_images_are_scored():
    """A label that equals a feature is recognised. Labels without any relation are not."""
    data = InMemory(2)
    for split, (images, _) in data.splits.items():
        data.splits[split] = Split(OnDisk(images), (images[:, 0, 0, 0] > 127).long())
    assert feature_accuracy(Noise(), data) > 0.9
    assert max(split.images.largest for split in data.splits.values()) <= 1000


def test_log_likelihoods_are_the_same_without_labels_from_files_and_from_loaders():
    class Sum(Noise):
        def log_likelihood(self, x, *, y=None, num_samples, generator=None):
            assert y is None
            return x.flatten(1).sum(1) + torch.rand(len(x), generator=generator)

    found = log_likelihood_per_batch(Sum(), InMemory(None), 3)
    assert len(found) == 3  # 210 images
    data = InMemory(None, OnDisk)
    assert log_likelihood_per_batch(Sum(), data, 3) == found and data.splits["test"].images.largest == 100
    x = InMemory(None).splits["test"].images[100:200] / 255
    assert_close(
        found[1], float((x.flatten(1).sum(1) + torch.rand(100, generator=chunk_generator(0, 1))).double().mean())
    )
    loaders = make_ready(Stripes((3, 4, 5)))
    x = loaders.sets["test"].tensors[0]
    alone = (x.flatten(1).sum(1) + torch.rand(30, generator=chunk_generator(0, 0))).double().mean()
    assert_close(log_likelihood_per_batch(Sum(), loaders, 3), [float(alone)])


def test_bits_per_dimension_count_the_dimensions_of_the_image():
    terms = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    assert_close(bound_metrics(terms, 3 * 8 * 8)["bits_per_dim"], 6 / (192 * math.log(2)))


def test_the_bits_of_a_measured_diffusion_model_are_those_of_its_shape():
    torch.manual_seed(0)
    data, model = make_ready(Stripes((3, 8, 9))), DDPM(steps=3, shape=[3, 8, 9], widths=[8]).eval()
    metrics, _ = measure(model, data, Protocol(bound_images=5))
    nats = sum(metrics[f"bound/L_{name}"] for name in ("0", "t", "T"))
    assert metrics["bits_per_dim"] == pytest.approx(nats / (216 * math.log(2)))


def test_a_bound_of_too_few_test_images_is_refused():
    data, model = make_ready(Stripes((3, 8, 9))), DDPM(steps=3, shape=[3, 8, 9], widths=[8]).eval()
    few = torch.utils.data.TensorDataset(data.sets["test"].tensors[0][:4])
    data.test_dataloader = lambda: torch.utils.data.DataLoader(few, 2)
    with pytest.raises(UserError, match="bound_images needs at least 5 test images, and stripes has 4"):
        measure(model, data, Protocol(bound_images=5))


def test_an_rbm_on_images_without_labels_has_no_feature_accuracy():
    torch.manual_seed(0)
    data = make_ready(Stripes((1, 28, 28)))
    metrics, _ = measure(RBM(num_hidden=4, ais_chains=2, test_ais_temperatures=3), data)
    assert "test/loss" in metrics and "feature_accuracy" not in metrics


def test_a_loader_is_read_as_far_as_asked():
    data = make_ready(Stripes(num_classes=4))
    found = split_of(data, "test", 20)
    assert torch.equal(found.images, data.sets["test"].tensors[0][:20])
    assert torch.equal(found.labels, data.sets["test"].tensors[1][:20])
    assert split_of(make_ready(Stripes()), "val").labels is None
    assert name_of(data) == "stripes" and name_of(L.LightningDataModule()) == "LightningDataModule"
    data.test_dataloader = list
    with pytest.raises(UserError, match="stripes has no test examples"):
        split_of(data, "test")


def test_the_distance_of_an_image_to_itself_is_left_out(generator):
    """Products of matrices round the distance of a row to itself to numbers above 0."""
    x = torch.randn(40, 300, generator=generator)
    expected = torch.stack([(x.double() - row).norm(dim=1).sum() for row in x.double()])
    assert_close(pairs.sums_within(x), expected, rtol=1e-6, atol=0)
    assert torch.cdist(x, x).diagonal().max() > 0


@pytest.mark.parametrize("words", [["evaluate", "vae", "--data"], ["sample", "rbm", "-n", "1", "--images"]])
def test_an_error_about_damaged_images_names_no_setting_of_training(words, tmp_path, monkeypatch):
    for i in range(4):
        Image.new("L", (28, 28)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["zoo", *words, str(tmp_path)])
    with pytest.raises(SystemExit, match=r"1 of its entries cannot be used. Remove them:\n  3.png") as stopped:
        main()
    assert str(stopped.value).startswith(f"error: {tmp_path}") and "data." not in str(stopped.value)
