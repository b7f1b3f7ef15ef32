"""Metrics of samples that a run can choose by name, and their values in a form that loggers take.

The classifier of the data gives the features of ``classifier_fid``, ``classifier_kid``, ``precision``, ``recall``,
``density`` and ``coverage``. Names that begin with ``inception_`` use the features of Inception.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from zoo.checks.errors import UserError
from zoo.datamodules.access import name_of
from zoo.evaluation.distances import classifier_of
from zoo.evaluation.feature_metrics import (
    ClassifierFID,
    ClassifierKID,
    FeatureMetric,
    PrecisionRecallDensityCoverage,
)
from zoo.evaluation.feature_networks import ClassifierFeatures, feature_network

MANIFOLDS = ("precision", "recall", "density", "coverage")
INCEPTION = "inception_"  # beginning of the names of metrics of Inception
METRICS = (
    "classifier_fid",
    "classifier_kid",
    *MANIFOLDS,
    *(f"{INCEPTION}{name}" for name in ("fid", "kid", *MANIFOLDS)),
)
GROWING = tuple(name for name in METRICS if name.removeprefix(INCEPTION) in MANIFOLDS)  # larger for better samples
IMAGES_AT_ONCE = 100  # images in an update of a metric


def chosen_metric(metric: str | Metric, data: Any, shape: Sequence[int]) -> Metric:
    """Return the metric with a name in ``METRICS``. A Metric is returned unchanged.

    Args:
        metric: name, or a Metric.
        data: data module of the run, which decides the classifier, or None.
        shape: shape of the samples.

    Raises:
        UserError: if samples are no images, no classifier knows the data, or a network is not available.
    """
    if isinstance(metric, Metric):
        return metric
    if len(shape) != 3:
        raise UserError(f"metric={metric} needs samples that are images, and these have shape {list(shape)}: use auto")
    kinds: dict[str, type[FeatureMetric]] = {"fid": ClassifierFID, "kid": ClassifierKID}
    kind = kinds.get(metric.rpartition("_")[2], PrecisionRecallDensityCoverage)
    return kind(_network(metric, data), reset_real_features=False)


def _network(metric: str, data: Any) -> nn.Module:
    if metric.startswith(INCEPTION):
        return feature_network("inception")
    if (checkpoint := classifier_of(data, similar=True)) is None:
        of = "images of a loader" if data is None else name_of(data)
        raise UserError(
            f"metric={metric} needs the classifier of the data, and there is none for {of}: use auto or "
            f"{INCEPTION}{metric.removeprefix('classifier_')}"
        )
    return ClassifierFeatures(checkpoint)


def keeps_real_images(metric: Metric) -> bool:
    """Return whether ``reset`` keeps the real images of a metric, as with ``reset_real_features=False``."""
    return not vars(metric).get("reset_real_features", True)


def update_metric(metric: Metric, images: Tensor, real: bool) -> None:
    """Give images to a metric in batches.

    torchmetrics' metrics of Inception take only colours, and bytes if they have ``normalize=False``.

    Args:
        metric: metric on its device, with ``update(images, real=...)``.
        images: images in [0, 1], (N, C, H, W).
        real: whether the images are real.
    """
    options = vars(metric)
    inception = "inception" in dict(metric.named_children()) and not options.get("used_custom_model", False)
    for batch in images.split(IMAGES_AT_ONCE):
        batch = batch.to(metric.device)
        if inception:
            batch = batch.expand(-1, 3, -1, -1)
        if options.get("normalize", True) is False:
            batch = (batch * 255).round().byte()
        metric.update(batch, real=real)


def values_of(metric: Metric, name: str) -> dict[str, float]:
    """Return the result of a metric as named numbers.

    The first is the value of ``name``, unless the metric of a user has results with own names. A standard error is
    ``<name>_error``. Other metrics than those of the zoo may return more numbers, of which the first is taken.

    Args:
        metric: metric that has all images.
        name: name in ``METRICS``, or the name of the metric of a user.
    """
    found = metric.compute()
    if isinstance(found, dict):
        part = name.removeprefix(INCEPTION)
        chosen = {name: found[part], f"{name}_error": found.get(f"{part}_error")} if part in found else found
        return {key: float(value) for key, value in chosen.items() if value is not None}
    if not isinstance(found, tuple | list):
        return {name: float(found)}
    error = {f"{name}_error": float(found[1])} if isinstance(metric, FeatureMetric) else {}
    return {name: float(found[0])} | {k: v for k, v in error.items() if not torch.tensor(v).isnan()}
