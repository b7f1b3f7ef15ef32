"""Measure the metrics for the card of a model. A card is the JSON file that is published with the weights."""

import json
import logging
import math
from typing import NamedTuple

import lightning as L
import numpy as np
import torch

import zoo
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.inputs import shape_of
from zoo.checks.values import check_integer
from zoo.datamodules import Toy
from zoo.datamodules.access import batches_of, has_labels, name_of, size_of, split_of
from zoo.datamodules.splits import as_floats
from zoo.evaluation.bounds import (
    BOUND_AT_ONCE,
    IMAGES_AT_ONCE,
    bound_metrics,
    bound_per_batch,
    check_importance_weighted,
    log_likelihood_per_batch,
)
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
from zoo.evaluation.estimates import binomial_error, standard_error_of_mean, with_errors
from zoo.evaluation.fields import measure_field
from zoo.evaluation.words import measure_words
from zoo.functional.clusters import ClusterTable
from zoo.functional.progress import tracked
from zoo.sampling.chunks import CHUNK, check_conditions, sample_chunks, try_conditions
from zoo.training.progress import progress_bar
from zoo.training.trainer import quiet_lightning

log = logging.getLogger(__name__)

SAMPLES_OF_ADVERSARIES = 10_000  # evaluated samples of an adversarial model, unless the protocol says otherwise


@torch.no_grad()
def clustering_of_all_images(model, data, progress: bool = False) -> dict[str, float]:
    """Return the scores of ``model.cluster`` on all training, validation and test images (see ``ClusterTable``).

    Args:
        model: clustering model, in eval mode.
        data: datamodule of images with labels, after ``setup``. ``Images`` must have ``train_on=train``.
        progress: show progress bars.

    Raises:
        UserError: if the training images include images of another split. These images would be counted twice. Also
            if some images have no labels.
    """
    if (train_on := data.hparams.get("train_on", "train")) != "train":
        raise UserError(f"train_on={train_on} would count some images twice; clustering needs train_on=train")
    clusters, labels = [], []
    for split in ("train", "val", "test"):
        for x, y in tracked(batches_of(data, split, 1000, model.device), f"clustering {split}", "batch", show=progress):
            if y is None:
                raise UserError(f"the {split} images of {name_of(data)} have no labels, which scores of clusters need")
            clusters.append(model.cluster(x).cpu())
            labels.append(y.cpu())
    label = torch.cat(labels)
    table = ClusterTable(len(model.rows()[1]), int(label.max()) + 1)
    table.update(torch.cat(clusters), label)
    return table.compute()


class Protocol(NamedTuple):
    """Measurements in addition to the test loop, and the amount of data for each.

    Attributes:
        importance_samples: importance samples per test image for the log likelihood; 0 skips the log likelihood.
        bound_images: number of test images for the bound of a diffusion model, from the first on; 0 skips the bound.
        samples: number of samples to evaluate, at least 2. None means 10,000 for an adversarial model and 0 for others.
        conditions: conditions of these samples. Samples are drawn and measured separately under each of them.
    """

    importance_samples: int = 0
    bound_images: int = 0
    samples: int | None = None
    conditions: tuple[dict[str, object], ...] = ({},)


def check_protocol(protocol: Protocol, model) -> None:
    """Check that the protocol suits the model. :func:`measure` calls this first.

    Raises:
        UserError: if the protocol does not suit the model. The message names the unsuitable part.
    """
    name = type(model).__name__
    check_integer("importance samples", protocol.importance_samples, least=0)
    check_integer("bound_images", protocol.bound_images, least=0)
    if protocol.importance_samples:
        check_importance_weighted(model)
    if protocol.bound_images and not isinstance(model, capabilities.BoundTerms):
        raise UserError(f"{name} has no bound_terms(), so its bound cannot be measured; leave out bound_images")
    if protocol.bound_images % BOUND_AT_ONCE:
        raise UserError(f"bound_images must be a multiple of {BOUND_AT_ONCE}, got {protocol.bound_images}")
    if protocol.samples is not None:
        check_integer("samples", protocol.samples, least=2)
    samples = _samples(protocol, model)
    if any(protocol.conditions) and not samples:
        raise UserError(
            f"conditions need samples, but no samples of {name} are evaluated by default; give the number of samples"
        )
    for conditions in protocol.conditions if samples and (protocol.samples or any(protocol.conditions)) else ():
        drawn, shape = list(try_conditions(model, samples, conditions).shape[1:]), list(shape_of(model))
        if drawn != shape:
            raise UserError(f"samples must have shape {shape}, got {drawn} with {conditions}: change the conditions")


def _samples(protocol: Protocol, model) -> int:
    """Return the number of samples to evaluate."""
    return protocol.samples or (SAMPLES_OF_ADVERSARIES if isinstance(model, capabilities.Adversarial) else 0)


def measure(
    model, data, protocol: Protocol | None = None, progress: bool = False
) -> tuple[dict[str, float], dict[str, object]]:
    """Return all metrics of a card, and the intermediate values that the card stores.

    For word vectors, the metrics are only those of :func:`zoo.evaluation.words.measure_words`.
    For other models, the metrics are all metrics of the test loop and the metrics in the following table.
    The right column says when each is measured:

        test/log_likelihood                     ``importance_samples`` are in the protocol (nats per image)
        bits_per_dim, bound/L_0, L_t, L_T       ``bound_images`` are in the protocol of a diffusion model
        fisher_divergence, log_density_gap      a score model is measured on a toy density with a known score
        metrics of measure_samples              samples are evaluated
        judged_accuracy                         the model has labels, and a classifier knows the data
        all/accuracy, all/nmi, all/ari          the model has clusters, and all images have labels
        feature_accuracy                        the model has ``transform``, and the images have labels

    The standard error of a metric has the name ``<name>_error``. For metrics under ``test/``, only accuracy and log
    likelihood have one. If the protocol has several conditions, the name of each metric of samples ends with its
    condition.
    ``judged_accuracy`` uses the number of evaluated samples, rounded down to a multiple of 10, and at least 10. If no
    samples are evaluated, ``judged_accuracy`` uses 10,000 samples. If the conditions fix the labels ``y``,
    ``judged_accuracy`` is not measured.

    Args:
        model: model in eval mode.
        data: datamodule after ``setup``. It can be one of the zoo or of the user.
        protocol: measurements in addition to the test loop. None uses the default protocol.
        progress: show progress bars.

    Returns:
        metrics: {name: value}.
        evidence: intermediate values, which the card stores under ``log_likelihood``, ``bound`` and ``samples``. Under
            ``counts`` is the number of examples of each metric that has a standard error.

    Raises:
        UserError: if the protocol does not suit the model.
    """
    protocol = protocol or Protocol()
    check_protocol(protocol, model)
    if isinstance(model, capabilities.Words):
        return measure_words(model), {}
    metrics, evidence = evaluate(model, data), {}
    counts: dict[str, int] = {}  # examples of each metric with a standard error
    model.eval()
    if num_samples := protocol.importance_samples:
        hundreds = log_likelihood_per_batch(model, data, num_samples, progress=progress)
        total = len(split_of(data, "test").images)
        sizes = [min(IMAGES_AT_ONCE, total - i * IMAGES_AT_ONCE) for i in range(len(hundreds))]
        metrics["test/log_likelihood"] = sum(m * n for m, n in zip(hundreds, sizes, strict=True)) / total
        if (error := standard_error_of_mean(hundreds, sizes)) is not None:
            metrics["test/log_likelihood_error"] = error
        counts["test/log_likelihood"] = total
        evidence["log_likelihood"] = {"num_samples": num_samples, "of_each_hundred": hundreds}
    if protocol.bound_images:
        terms = bound_per_batch(model, data, protocol.bound_images // BOUND_AT_ONCE, progress)
        metrics |= bound_metrics(terms, math.prod(shape_of(model)))
        counts["bits_per_dim"] = len(terms) * BOUND_AT_ONCE
        evidence["bound"] = {"images": len(terms) * BOUND_AT_ONCE, "of_each_five": terms.tolist()}
    known = isinstance(data, Toy) and isinstance(data.distribution, capabilities.KnownScore)
    if known and isinstance(model, capabilities.ScoreChains):
        field = measure_field(model, data.distribution)
        metrics |= {"fisher_divergence": field.fisher_divergence, "log_density_gap": field.log_density_gap}
    if _samples(protocol, model):
        of_samples, evidence["samples"], of_each = measure_all_samples(model, data, protocol, progress)
        metrics |= of_samples
        counts |= of_each
    elif _has_labels(model) and (classifier := _load_classifier(data, model.device)):
        metrics |= _recognised(model, 10_000, classifier, progress)
        counts["judged_accuracy"] = 10_000
    labels = all(has_labels(data, split) for split in ("train", "val", "test"))
    if isinstance(model, capabilities.Clusters) and labels:
        metrics |= {f"all/{name}": score for name, score in clustering_of_all_images(model, data, progress).items()}
        counts["all/accuracy"] = sum(size_of(data, split) for split in ("train", "val", "test"))
    if isinstance(model, capabilities.Features) and labels:
        metrics["feature_accuracy"] = feature_accuracy(model, data)
        counts["feature_accuracy"] = size_of(data, "test")
    if "test/accuracy" in metrics:
        counts["test/accuracy"] = size_of(data, "test")
    for name in {"test/accuracy", "all/accuracy", "feature_accuracy"} & set(metrics):
        metrics[f"{name}_error"] = binomial_error(metrics[name], counts[name])
    return metrics, evidence | {"counts": counts}


def _has_labels(model) -> bool:
    """Return whether samples of the model can be drawn with given labels."""
    kinds = model.rows() if isinstance(model, capabilities.SampleRows) else None
    return kinds is not None and kinds[0] == "y"


def measure_all_samples(
    model, data, protocol: Protocol, progress: bool = False
) -> tuple[dict[str, float], dict[str, object], dict[str, int]]:
    """Return the metrics of samples under each of the conditions, what the card stores about them, and their counts.

    The counts are the numbers of examples of the metrics with standard errors. See :func:`measure` for the arguments.
    """
    samples, several = _samples(protocol, model), len(protocol.conditions) > 1
    metrics: dict[str, float] = {}
    counts: dict[str, int] = {}
    classifier = _load_classifier(data, model.device)
    sure: list[list[float]] = []  # for each of the conditions, the largest probabilities of the first samples
    # Old names of conditions are replaced by current names.
    conditions_of_all = [check_conditions(model, conditions) for conditions in protocol.conditions]
    for conditions in conditions_of_all:
        found = measure_samples(model, data, samples, conditions, progress)
        after = "".join(f"/{k}={json.dumps(v)}" for k, v in conditions.items()) if several else ""
        if classifier and _has_labels(model) and "y" not in conditions:
            found |= _recognised(model, max(10, samples - samples % 10), classifier, progress, **conditions)
        metrics |= {name + after: value for name, value in found.items()}
        counts |= {name + after: count for name, count in _sample_counts(found, data, samples).items()}
        if classifier:
            own = {k: v[:CHUNK] if isinstance(v, list) else v for k, v in conditions.items()}
            chunk = classify_images(sample_chunks(model, CHUNK, seed=0, **own), classifier)
            sure.append(chunk.probabilities.max(-1).values.tolist())
    evidence: dict[str, object] = {"n": samples, "conditions": conditions_of_all, "sure_of_the_first": sure}
    if not isinstance(data, Toy) and not classifier:
        images = min(size_of(data, "test"), MOST_IMAGES)
        evidence |= {"n": min(samples, MOST_IMAGES), "test_images": images}
    return metrics, evidence, counts


def _recognised(model, n: int, classifier, progress: bool, **conditions) -> dict[str, float]:
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


def _load_classifier(data, device):
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

        For all other images, the metric is ``energy_distance``. It
        compare the first 5,000 samples with the first 5,000 test images, see
        :class:`zoo.evaluation.distances.ImageDistance`. No classifier was trained on them.

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
    classifier = _load_classifier(data, model.device)
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


@torch.no_grad()
def feature_accuracy(model, data) -> float:
    """Return the test accuracy of a logistic regression on the features of ``model.transform``.

    The regression is scikit-learn's LogisticRegression with the default regularisation. It is fitted to the features of
    all training images. The pixels are not binarised.

    Args:
        model: model in eval mode with ``transform``.
        data: datamodule of images with labels, after ``setup``.
    """
    from sklearn.linear_model import LogisticRegression

    def features(split: str) -> tuple[np.ndarray, np.ndarray]:
        parts = [(model.transform(x.flatten(1)).cpu(), y.cpu()) for x, y in batches_of(data, split, 1000, model.device)]
        x, y = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
        return x, y

    train = features("train")
    log.info("Fitting a logistic regression to the features of %s images", f"{len(train[0]):,}")
    return float(LogisticRegression(max_iter=1000).fit(*train).score(*features("test")))


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
        f"judged_accuracy/{k}": share for k, share in enumerate(right.tolist())
    }


def evaluate(model, data) -> dict[str, float]:
    """Return the metrics that ``model`` logs under ``test/``, as floats.

    The test loop runs on one device and makes no run folder. The noise of the test loop depends only on the index of
    the batch, so equal weights give equal numbers.

    Args:
        model: model to test.
        data: a LightningDataModule.
    """
    quiet_lightning()
    trainer = L.Trainer(
        devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False, callbacks=[progress_bar()]
    )
    trainer.test(model, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
