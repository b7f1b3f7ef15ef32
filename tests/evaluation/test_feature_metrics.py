"""Tests of the torchmetrics of features, against torchmetrics' own FID and KID and against functions of all images."""

import pytest
import torch
from lightning import LightningModule
from processes import together
from torch import nn
from torch.testing import assert_close
from torchmetrics import MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

import zoo
from zoo.checks.errors import UserError
from zoo.evaluation.distances import feature_distances
from zoo.evaluation.feature_metrics import ClassifierFID, ClassifierKID, PrecisionRecallDensityCoverage

ALL = [ClassifierFID, ClassifierKID, PrecisionRecallDensityCoverage]


class Projection(nn.Module):
    """Network with six features. In training mode, its features are other numbers."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 6)
        weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(5))
        self.linear.weight.data, self.linear.bias.data = weight, torch.zeros(6)

    def forward(self, x):
        return self.linear(x.flatten(1)) * (1 + self.training)


def images(n, seed, bright=1.0):
    return bright * torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def filled(cls, *arguments, **options):
    """Return a metric with 60 real images and 50 fake images, in batches of 16."""
    metric = cls(*arguments, **options)
    for batch in images(60, 0).split(16):
        metric.update(batch, real=True)
    for batch in images(50, 1, bright=0.8).split(16):
        metric.update(batch, real=False)
    return metric


def test_values_are_those_of_the_functions_of_all_features():
    net = Projection().eval()
    with torch.no_grad():
        expected = feature_distances(net(images(60, 0)), net(images(50, 1, bright=0.8)))
    assert_close(filled(ClassifierFID, net).compute().item(), expected["fid"].value, rtol=1e-5, atol=0)
    assert_close([float(x) for x in filled(ClassifierKID, net).compute()], list(expected["kid"]), rtol=1e-5, atol=0)
    found = filled(PrecisionRecallDensityCoverage, net).compute()
    for name in ("precision", "recall", "density", "coverage"):
        assert_close([float(found[name]), float(found[f"{name}_error"])], list(expected[name]), rtol=1e-5, atol=0)
    assert len(found) == 8
    one = filled(PrecisionRecallDensityCoverage, net, precision_neighbours=1, density_neighbours=1).compute()
    assert one["precision"] < found["precision"] and one["coverage"] < found["coverage"]


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_they_agree_with_the_fid_and_kid_of_torchmetrics():
    """One subset of all images is the estimate of torchmetrics' KID without chance. It needs sets of equal size."""
    net = Projection().eval()
    theirs = filled(FrechetInceptionDistance, net, normalize=True, input_img_size=(3, 2, 2))
    assert_close(filled(ClassifierFID, net).compute(), theirs.compute().float(), rtol=1e-4, atol=0)
    ours, theirs = ClassifierKID(net), KernelInceptionDistance(net, subsets=1, subset_size=50, normalize=True)
    for metric in (ours, theirs):
        metric.update(images(50, 0), real=True)
        metric.update(images(50, 1, bright=0.8), real=False)
    assert_close(ours.compute()[0], theirs.compute()[0], rtol=1e-4, atol=0)


def test_real_images_can_be_kept():
    for cls in ALL:
        metric = filled(cls, Projection(), reset_real_features=False)
        before = metric.compute()
        metric.reset()
        assert not metric.fake_features
        metric.update(images(50, 1, bright=0.8), real=False)
        assert_close(metric.compute(), before)
        metric = filled(cls, Projection())
        metric.reset()
        assert not metric.fake_features and not metric.real_features


def test_the_network_is_no_part_of_the_model_that_logs_the_metric():
    """The network stays in eval mode, is not trained or saved, and computes in float32."""

    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.metric = filled(ClassifierFID, Projection())

    model = Model().train()
    assert not list(model.parameters()) and not model.state_dict()
    before = model.metric.compute()
    assert_close(before, filled(ClassifierFID, Projection().eval().forward).compute())
    model.metric.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.metric.update(images(60, 0), real=True)
        model.metric.update(images(50, 1, bright=0.8), real=False)
    assert model.metric.real_features[0].dtype == torch.float32
    assert_close(model.metric.compute(), before)


def test_they_take_the_classifier_and_functions():
    classifier, x = zoo.load("classifier"), torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    metric = ClassifierFID(classifier)
    metric.update(x, real=True)
    with torch.no_grad():
        assert torch.equal(metric.real_features[0], classifier.features(x))
    collected = MetricCollection([cls(lambda x: x.flatten(1)) for cls in ALL])
    collected.update(images(20, 0), real=True)
    collected.update(images(20, 1), real=False)
    assert {"ClassifierFID", "ClassifierKID", "recall", "coverage_error"} <= set(collected.compute())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_of_any_floating_point_type_reach_the_network_in_float32(dtype):
    metric, expected = ClassifierFID(Projection()), ClassifierFID(Projection())
    metric.update(images(8, 0).to(dtype), real=True)
    expected.update(images(8, 0).to(dtype).float(), real=True)
    assert torch.equal(metric.real_features[0], expected.real_features[0])


def test_wrong_input_is_named():
    with pytest.raises(UserError, match="features must be a function of images or a classifier, got 2048"):
        ClassifierFID(2048)
    metric = ClassifierKID(Projection())
    with pytest.raises(UserError, match=r"numbers in \[0, 1\], got torch.uint8: divide by 255"):
        metric.update(images(4, 0).byte(), real=True)
    with pytest.raises(UserError, match=r"features of 4 images must have shape \(B, F\), got \[4, 3, 2, 2\]"):
        ClassifierFID(lambda x: x).update(images(4, 0), real=True)
    metric.update(images(4, 0), real=True)
    with pytest.raises(UserError, match="the number of generated images must be an integer of at least 2, got 0"):
        metric.compute()


def numbers(value):
    """Return the numbers in a value of a metric: a scalar, a tuple or a dict."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
    return [float(x) for x in values]


def gathered():
    """Return the values of all metrics in a run of several processes. Only process 0 has generated images."""
    torch.distributed.init_process_group("gloo")
    rank, size, found = torch.distributed.get_rank(), torch.distributed.get_world_size(), []
    for cls in ALL:
        metric = cls(Projection())
        for batch in images(60, 0).split(16)[rank::size]:
            metric.update(batch, real=True)
        if rank == 0:
            metric.update(images(50, 1, bright=0.8), real=False)
        found += numbers(metric.compute())
        assert sum(map(len, metric.real_features)) < 60  # after compute, each process has only its images
    torch.distributed.destroy_process_group()
    return found


def test_two_processes_have_the_values_of_one():
    first, second = together(2, gathered)
    assert first == second
    assert_close(first, [x for cls in ALL for x in numbers(filled(cls, Projection()).compute())], rtol=1e-5, atol=1e-6)
