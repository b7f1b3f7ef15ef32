"""Tests of the metrics that SampleDistance can measure instead of its default."""

import lightning as L
import pytest
import torch
from helpers import TINY, Quarters, assert_same, checkpoint, logged, run
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from omegaconf import OmegaConf
from processes import together
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

import zoo
from zoo.callbacks import SampleDistance
from zoo.checks.errors import UserError
from zoo.commands.training import build
from zoo.datamodules import Images, Toy
from zoo.datamodules.access import make_ready
from zoo.evaluation.chosen_metrics import GROWING, METRICS
from zoo.evaluation.distances import classifier_distances
from zoo.gan import GAN
from zoo.sampling.chunks import sample_chunks

METRIC = "torchmetrics.image.fid.FrechetInceptionDistance"
FOUR = ("precision", "recall", "density", "coverage")
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


@pytest.fixture(scope="module")
def digits():
    return make_ready(Images("digits"))


def gan(shape=(1, 28, 28)):
    torch.manual_seed(0)
    return GAN(network="mlp", shape=list(shape), hidden=[8])


def validated(data, *callbacks, model=None, **arguments):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(callbacks=list(callbacks), accelerator="cpu", **quiet, **arguments)
    loader = {"dataloaders": data} if isinstance(data, DataLoader) else {"datamodule": data}
    (metrics,) = trainer.validate(model or gan(), **loader, verbose=False)
    return metrics


def expected(data, n, seed=0):
    network = zoo.load("classifier")
    samples = sample_chunks(gan().eval(), n, seed)
    real = data.splits["val"].images[:n].float() / 255
    return classifier_distances(*(network.features(x).double().detach() for x in (real, samples)))


def test_every_name_measures_samples_in_the_features_of_the_classifier(digits):
    names = ["classifier_fid", "classifier_kid", *FOUR]
    metrics = validated(digits, *(SampleDistance(n=60, seed=3, metric=name) for name in names))
    wanted = expected(digits, 60, 3)
    for name, (value, error) in wanted.items():
        assert_close(metrics[f"val/{name}"], value, rtol=1e-4, atol=1e-5)
        if name != "classifier_fid":  # its bootstrap would take longer than the distance
            assert_close(metrics.get(f"val/{name}_error", float("nan")), error, rtol=1e-3, atol=1e-5, equal_nan=True)
    assert metrics["val/distance"] == metrics["val/classifier_fid"]  # of the first one that falls
    assert set(METRICS) == {*names, *(f"inception_{name}" for name in ("fid", "kid", *FOUR))}


def test_a_metric_that_grows_is_no_distance(digits):
    for metric in ("recall", "precision"):
        metrics = validated(digits, SampleDistance(n=20, metric=metric))
        assert "val/distance" not in metrics and f"val/{metric}" in metrics
    both = validated(digits, SampleDistance(n=20, metric="recall"), SampleDistance(n=20, metric="classifier_kid"))
    assert both["val/distance"] == both["val/classifier_kid"]
    assert set(GROWING) == {*FOUR, *(f"inception_{name}" for name in FOUR)}


def test_metrics_of_torchmetrics_get_all_images_in_batches(digits):
    """The callback gives 100 images at a time. The metric of all images at once is the same."""
    metrics = validated(digits, SampleDistance(n=150, metric=FrechetInceptionDistance(Quarters(), normalize=True)))
    reference = FrechetInceptionDistance(Quarters(), normalize=True)
    reference.update(digits.splits["val"].images[:150].float() / 255, real=True)
    reference.update(sample_chunks(gan().eval(), 150, 0), real=False)
    value = reference.compute().item()
    assert_close([metrics["val/frechet_inception_distance"], metrics["val/distance"]], [value] * 2, rtol=1e-3, atol=0)


def test_a_loader_alone_gives_the_same_distance(digits):
    x, y = digits.splits["val"].images[:50].float() / 255, digits.splits["val"].labels[:50]
    metric = FrechetInceptionDistance(Quarters(), normalize=True)
    found = validated(DataLoader(TensorDataset(x, y), 16), SampleDistance(n=50, metric=metric))
    with_splits = validated(digits, SampleDistance(n=50, metric=FrechetInceptionDistance(Quarters(), normalize=True)))
    assert_close(found["val/distance"], with_splits["val/distance"], rtol=1e-4, atol=0)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_subsets_that_a_metric_draws_are_those_of_the_seed_and_real_images_are_read_once(digits):
    metric = KernelInceptionDistance(Quarters(), subsets=2, subset_size=20, normalize=True, reset_real_features=False)
    callback, model, values = SampleDistance(n=40, metric=metric), gan(), []
    for k in range(2):
        torch.manual_seed(k)
        before = torch.get_rng_state()
        values.append(validated(digits, callback, model=model)["val/distance"])
        assert torch.equal(before, torch.get_rng_state())
    assert values[0] == values[1] and sum(map(len, metric.real_features)) == 40


@pytest.mark.parametrize(
    ("metric", "monitor", "message"),
    [
        ("recall", {"monitor": "val/distance"}, r"metric=recall grows.* set monitor=val/recall and mode=max"),
        ("recall", {"monitor": "val/recall", "mode": "min"}, r"monitor=val/recall and mode=min: set mode=max"),
        (
            "classifier_kid",
            {"monitor": "val/classifier_kid", "mode": "max"},
            r"monitor=val/classifier_kid and mode=max: set mode=min",
        ),
    ],
)
def test_the_best_checkpoint_is_never_the_one_with_the_smallest_recall(metric, monitor, message, digits):
    with pytest.raises(UserError, match=message):
        validated(digits, SampleDistance(n=20, metric=metric), ModelCheckpoint(**monitor))


def test_a_metric_without_a_direction_is_no_distance(digits):
    class Undirected(FrechetInceptionDistance):
        higher_is_better = None

    metric = Undirected(Quarters(), normalize=True)
    callback = SampleDistance(n=20, metric=metric)
    assert "val/distance" not in validated(digits, callback)
    with pytest.raises(UserError, match=r"does not say whether it grows \(higher_is_better\)"):
        validated(digits, SampleDistance(n=20, metric=metric), EarlyStopping("val/distance"))


def test_a_metric_that_does_not_suit_the_run_is_refused_at_its_start(digits):
    with pytest.raises(UserError, match=r"metric must be auto, classifier_fid, .* got 'fid'"):
        SampleDistance(metric="fid")
    with pytest.raises(UserError, match=r"must have update\(images, real=...\), and MeanMetric has not"):
        SampleDistance(metric=MeanMetric())
    with pytest.raises(UserError, match="n must be an integer of at least 6, got 5"):
        SampleDistance(n=5, metric="recall")
    with pytest.raises(UserError, match="metric=classifier_kid needs samples that are images, and these have shape"):
        validated(make_ready(Toy("ring")), SampleDistance(metric="classifier_kid"), model=gan([2]))
    with pytest.raises(UserError, match=r"there is none for images of a loader: use auto or inception_kid"):
        validated(DataLoader(torch.zeros(4, 1, 28, 28)), SampleDistance(metric="classifier_kid"))
    with pytest.raises(UserError, match="two SampleDistance callbacks log val/classifier_kid"):
        validated(digits, SampleDistance(metric="classifier_kid"), SampleDistance(metric="classifier_kid"))


def test_a_metric_whose_package_is_missing_ends_the_run_with_one_line(monkeypatch):
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    node = {"_target_": "zoo.callbacks.SampleDistance", "metric": {"_target_": METRIC}}
    with pytest.raises(UserError, match="requires that `Torch-fidelity` is installed"):
        build(OmegaConf.create(node))


def in_two_processes():
    metric = FrechetInceptionDistance(Quarters(), normalize=True)
    names = [SampleDistance(n=50, metric=name) for name in ("classifier_kid", "recall")]
    return validated(Images("digits"), SampleDistance(n=50, metric=metric), *names, devices=2, strategy="ddp")


@pytest.mark.slow
def test_two_processes_measure_the_same_as_one(digits):
    metric = FrechetInceptionDistance(Quarters(), normalize=True)
    names = [SampleDistance(n=50, metric=name) for name in ("classifier_kid", "recall")]
    one = validated(digits, SampleDistance(n=50, metric=metric), *names)
    for two in together(2, in_two_processes):
        for key in ("distance", "frechet_inception_distance", "classifier_kid", "classifier_kid_error", "recall"):
            assert_close(two[f"val/{key}"], one[f"val/{key}"], rtol=1e-4, atol=1e-6)


KID = "{_target_:torchmetrics.image.kid.KernelInceptionDistance,feature:{_target_:helpers.Quarters},"
KID += "subsets:2,subset_size:20,normalize:true,reset_real_features:false}"
SHORT = [*TINY["gan"], "callbacks.sample_distance.n=40", "~callbacks.samples", "test=false"]
SHORT += ["~callbacks.estimator_variance"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_a_chosen_metric_changes_no_weight_and_a_run_resumes_with_it(tmp_path):
    metric = f"callbacks.sample_distance.metric={KID}"
    run(tmp_path / "auto", *SHORT, "trainer.max_epochs=2")
    run(tmp_path / "kid", *SHORT, "trainer.max_epochs=2", metric)
    states = [checkpoint(tmp_path / name)["state_dict"] for name in ("auto", "kid")]
    assert_same(*states)
    run(tmp_path / "resumed", *SHORT, "trainer.max_epochs=1", metric)
    ckpt = tmp_path / "resumed" / "checkpoints" / "last.ckpt"
    run(tmp_path / "resumed", *SHORT, "trainer.max_epochs=2", metric, f"ckpt={ckpt}")
    assert_same(checkpoint(tmp_path / "resumed")["state_dict"], states[1])
    distances = [
        [row["val/distance"] for row in logged(tmp_path / name) if "val/distance" in row] for name in ("kid", "resumed")
    ]
    assert distances[0] == distances[1] and len(distances[0]) == 2
