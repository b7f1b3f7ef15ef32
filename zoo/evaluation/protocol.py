"""Measure the metrics for the card of a model. A card is the JSON file that is published with the weights."""

import logging
import math
from typing import NamedTuple

import lightning as L
import numpy as np
import torch

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.inputs import shape_of
from zoo.checks.values import check_integer
from zoo.datamodules import Toy
from zoo.datamodules.access import batches_of, has_labels, name_of, size_of, split_of
from zoo.evaluation.bounds import (
    BOUND_AT_ONCE,
    IMAGES_AT_ONCE,
    bound_metrics,
    bound_per_batch,
    check_importance_weighted,
    log_likelihood_per_batch,
)
from zoo.evaluation.estimates import binomial_error, standard_error_of_mean
from zoo.evaluation.fields import measure_field
from zoo.evaluation.samples import load_classifier, measure_all_samples, recognised, takes_labels
from zoo.evaluation.words import measure_words
from zoo.functional.clusters import ClusterTable
from zoo.functional.progress import tracked
from zoo.sampling.chunks import try_conditions
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
    for i, conditions in enumerate(protocol.conditions):
        if conditions in protocol.conditions[:i]:
            raise UserError(f"the conditions {conditions} are given twice: leave out one of them")
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
    if protocol.bound_images and (known := size_of(data, "test")) < BOUND_AT_ONCE:
        raise UserError(
            f"bound_images needs at least {BOUND_AT_ONCE} test images, and {name_of(data)} has {known}: choose other "
            "data, or leave out bound_images"
        )
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
        of_bound = bound_metrics(terms, math.prod(shape_of(model)))
        metrics |= of_bound
        counts |= {name: len(terms) * BOUND_AT_ONCE for name in of_bound if not name.endswith("_error")}
        evidence["bound"] = {"images": len(terms) * BOUND_AT_ONCE, "of_each_five": terms.tolist()}
    known = isinstance(data, Toy) and isinstance(data.distribution, capabilities.KnownScore)
    if known and isinstance(model, capabilities.ScoreChains):
        field = measure_field(model, data.distribution)
        metrics |= {"fisher_divergence": field.fisher_divergence, "log_density_gap": field.log_density_gap}
    if samples := _samples(protocol, model):
        of_all = measure_all_samples(model, data, samples, protocol.conditions, progress)
        of_samples, evidence["samples"], of_each = of_all
        metrics |= of_samples
        counts |= of_each
    elif takes_labels(model) and (classifier := load_classifier(data, model.device)):
        metrics |= recognised(model, 10_000, classifier, progress)
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
