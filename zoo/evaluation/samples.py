"""Metrics of the samples of a model: distances to test images, and the fraction that a classifier recognises."""

import json
import logging
from collections.abc import Sequence

import torch

import zoo
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.datamodules import Toy
from zoo.datamodules.access import size_of, split_of
from zoo.datamodules.splits import as_floats
from zoo.evaluation.distances import (
    MOST_IMAGES,
    ImageDistance,
    SampleDistanceMetric,
    classifier_distances,
    classifier_of,
    classify_images,
    confident,
    energy_estimate,
    modes,
    sample_metrics,
)
from zoo.evaluation.estimates import binomial_error, with_errors
from zoo.functional.progress import tracked
from zoo.sampling.chunks import CHUNK, check_conditions, sample_chunks

log = logging.getLogger(__name__)


def takes_labels(model) -> bool:
    """Return whether samples of the model can be drawn with given labels."""
    kinds = model.rows() if isinstance(model, capabilities.SampleRows) else None
    return kinds is not None and kinds[0] == "y"


def measure_all_samples(
    model, data, samples: int, conditions: Sequence[dict[str, object]], progress: bool = False
) -> tuple[dict[str, float], dict[str, object], dict[str, int]]:
    """Return the metrics of samples under each of the conditions, what the card stores about them, and their counts.

    The counts are the numbers of examples of the metrics with standard errors.

    Args:
        model: model in eval mode.
        data: datamodule after ``setup``.
        samples: number of samples under each of the conditions.
        conditions: conditions of the samples. If there are several, the name of each metric ends with its conditions.
        progress: show progress bars.
    """
    metrics: dict[str, float] = {}
    counts: dict[str, int] = {}
    classifier = load_classifier(data, model.device)
    sure: list[list[float]] = []  # for each of the conditions, the largest probabilities of the first samples
    # Old names of conditions are replaced by current names.
    conditions = [check_conditions(model, given) for given in conditions]
    for given in conditions:
        found = measure_samples(model, data, samples, given, progress)
        after = "".join(f"/{k}={json.dumps(v)}" for k, v in given.items()) if len(conditions) > 1 else ""
        if classifier and takes_labels(model) and "y" not in given:
            found |= recognised(model, max(10, samples - samples % 10), classifier, progress, **given)
        metrics |= {name + after: value for name, value in found.items()}
        counts |= {name + after: count for name, count in _sample_counts(found, data, samples).items()}
        if classifier:
            own = {k: v[:CHUNK] if isinstance(v, list) else v for k, v in given.items()}
            chunk = classify_images(sample_chunks(model, CHUNK, seed=0, **own), classifier)
            sure.append(chunk.probabilities.max(-1).values.tolist())
    evidence: dict[str, object] = {"n": samples, "conditions": conditions, "sure_of_the_first": sure}
    if not isinstance(data, Toy) and not classifier:
        images = min(size_of(data, "test"), MOST_IMAGES)
        evidence |= {"n": min(samples, MOST_IMAGES), "test_images": images}
    return metrics, evidence, counts


def recognised(model, n: int, classifier, progress: bool, **conditions) -> dict[str, float]:
    """Return ``judged_accuracy`` of ``n`` samples and its standard error."""
    found = judged_accuracy(model, n, classifier=classifier, progress=progress, **conditions)
    return {name: found[name] for name in ("judged_accuracy", "judged_accuracy_error")}


def _sample_counts(found: dict[str, float], data, samples: int) -> dict[str, int]:
    """Return the number of examples of each metric in ``found`` that has a standard error.

    For distances of validation images, this is the number of these images. For other metrics of samples, it is the
    number of samples.
    """
    classified = classifier_of(data) is not None
    counts = {}
    for name in found:
        if f"{name}_error" not in found:
            continue
        if name == "confident_of_test_images":
            counts[name] = size_of(data, "test")
        elif name.endswith("_floor"):
            counts[name] = min(samples, size_of(data, "val"))
        elif name == "judged_accuracy":
            counts[name] = max(10, samples - samples % 10)
        else:
            counts[name] = samples if classified or name == "near_a_mode" else min(samples, MOST_IMAGES)
    return counts


def load_classifier(data, device):
    """Return the classifier that was trained on these data, on a device, or None."""
    name = classifier_of(data)
    return zoo.load(name).to(device) if name else None


def measure_samples(
    model, data, n: int = 10_000, conditions: dict[str, object] | None = None, progress: bool = False
) -> dict[str, float]:
    """Return distances between samples and test data.

    Args:
        model: model in eval mode.
        data: datamodule after ``setup``.
        n: number of samples.
        conditions: conditions of the samples.
        progress: show progress bars.

    Returns:
        {name: value}. The metrics depend on the data.

        For MNIST and Fashion-MNIST, the metrics are those of :func:`sample_metrics` and further ones.
        ``confident_of_test_images`` is the fraction of test images whose predicted label has a probability above 0.9.
        ``classifier_fid_floor``, ``classifier_kid_floor``, ``precision_floor``, ``recall_floor``, ``density_floor`` and
        ``coverage_floor`` compare n validation images with the test images. If n is above 5,000, all 5,000 validation
        images are used.

        For points, the metric is ``energy_distance``, on the first 5,000 samples. For the ring, the metrics are also
        ``modes_covered`` and ``near_a_mode``. For sequences, the metric is ``kl``, by enumeration.

        For all other images, the metric is ``energy_distance``, because no classifier was trained on them. It compares
        the first 5,000 samples with the first 5,000 test images, see :class:`zoo.evaluation.distances.ImageDistance`.

    Raises:
        UserError: if there are fewer than two test images.
    """
    conditions = conditions or {}
    if isinstance(data, Toy):
        yardstick, samples = (
            SampleDistanceMetric(data, "test"),
            sample_chunks(model, n, seed=0, progress=progress, **conditions),
        )
        if yardstick.name == "kl":
            return {"kl": yardstick(model, samples)}
        points = data.splits["test"].images.cpu()[: len(samples[:MOST_IMAGES])]
        metrics = with_errors({"energy_distance": energy_estimate(samples[:MOST_IMAGES], points)})
        if data.used == "ring":
            found = modes(samples, data.distribution.mu, data.distribution.sigma)
            metrics |= {"modes_covered": float(found.covered), "near_a_mode": found.near}
            metrics["near_a_mode_error"] = binomial_error(found.near, n)
        return metrics
    classifier = load_classifier(data, model.device)
    if classifier is None:
        real = as_floats(split_of(data, "test", MOST_IMAGES).images)
        n = min(n, MOST_IMAGES)
        distance = ImageDistance(real, model.device)(sample_chunks(model, n, 0, progress=progress, **conditions))
        log.info("The energy distance compares %s samples with %s test images", f"{n:,}", f"{len(real):,}")
        return with_errors({"energy_distance": distance})
    val, test = (
        classify_images(as_floats(data.splits[split].images[:of]), classifier, progress)
        for split, of in (("val", n), ("test", None))
    )
    floors = {"confident_of_test_images": confident(test)}
    floors |= classifier_distances(test.features, val.features, ending="_floor")
    found = sample_metrics(model, test.features, classifier, n, conditions=conditions, progress=progress)
    return found | with_errors(floors)


def judged_accuracy(
    model, n: int = 10_000, seed: int = 0, classifier=None, progress: bool = False, **conditions
) -> dict[str, float]:
    """Return the fraction of class-conditional samples that a classifier recognises as their label.

    The metric does not measure variety: a model that repeats one good sample of each class scores 1. The error rate of
    the classifier on test images is on the card of the classifier.

    Args:
        model: module in eval mode with ``sample(n, *, y, generator)`` and ``device``.
        n: number of samples, a multiple of the number of classes. They are drawn in the chunks of
            zoo/sampling/chunks.py.
        seed: seed of the noise.
        classifier: classifier in eval mode, trained on the same data as the model. None uses the classifier of MNIST.
        progress: show progress bars.
        conditions: conditions of the samples in addition to their labels.

    Returns:
        ``judged_accuracy``: fraction for all labels. ``judged_accuracy_error``: its binomial standard error.
        ``judged_accuracy/<label>``: fraction for each label.

    Raises:
        UserError: if ``model.sample`` has no argument ``y``, or ``n`` is not a multiple of the number of classes.
    """
    check_conditions(model, {"y": 0})
    classifier = zoo.load("classifier").to(model.device) if classifier is None else classifier
    classes = classifier.hparams.num_classes
    if n < 1 or n % classes:
        raise UserError(f"n must be a multiple of {classes}, the number of classes, got {n}")
    labels = [k for k in range(classes) for _ in range(n // classes)]
    images = sample_chunks(model, n, seed, progress=progress, y=labels, **conditions)
    batches = tracked(images.split(500), "classifying images", "batch", show=progress)
    predicted = torch.cat([classifier.predict(x.to(classifier.device)).cpu() for x in batches])
    right = (predicted == torch.tensor(labels)).double().view(classes, -1).mean(1)
    error = (right * (1 - right) / (n // classes)).sum().sqrt() / classes  # the number of each label is fixed
    return {"judged_accuracy": right.mean().item(), "judged_accuracy_error": error.item()} | {
        f"judged_accuracy/{k}": of_label for k, of_label in enumerate(right.tolist())
    }
