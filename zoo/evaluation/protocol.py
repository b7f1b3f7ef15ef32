"""Measure the metrics for the card of a model. A card is the JSON file that is published with the weights."""

import json
import logging
import math
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

import zoo
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.pixels import as_batch
from zoo.checks.values import check_integer
from zoo.datamodules import DISTRIBUTIONS, Toy
from zoo.datamodules.splits import as_floats
from zoo.evaluation.distances import (
    SampleDistanceMetric,
    classify_images,
    confident,
    frechet_distance,
    frechet_standard_error,
    modes,
    sample_metrics,
)
from zoo.evaluation.features import Features
from zoo.evaluation.fields import measure_field
from zoo.evaluation.words import measure_words
from zoo.functional.clusters import ClusterTable
from zoo.functional.noise import chunk_generator
from zoo.functional.precision import in_float64
from zoo.functional.progress import tracked
from zoo.sampling.chunks import CHUNK, check_conditions, sample_chunks, try_conditions
from zoo.training.progress import progress_bar
from zoo.training.trainer import quiet_lightning

log = logging.getLogger(__name__)

IMAGES_AT_ONCE = 100
BOUND_AT_ONCE = 5


@torch.no_grad()
def clustering_of_all_images(model, data, progress: bool = False) -> dict[str, float]:
    """Return the scores of ``model.cluster`` on all training, validation and test images (see ``ClusterTable``).

    Args:
        model: clustering model, in eval mode.
        data: ``Images`` datamodule with ``train_on=train``, after ``setup``.
        progress: show progress bars.

    Raises:
        UserError: if the training images include images of another split. These images would be counted twice.
    """
    if data.hparams.train_on != "train":
        raise UserError(
            f"train_on={data.hparams.train_on} would count some images twice; clustering needs train_on=train"
        )
    table = ClusterTable(len(model.rows()[1]))
    for split in ("train", "val", "test"):
        batches = list(data.splits[split].batches(1000, model.device))
        for x, y in tracked(batches, f"clustering {split} images", "batch", show=progress):
            table.update(model.cluster(x).cpu(), y.cpu())
    return table.compute()


def log_likelihood(model, batch, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Return ``model.log_likelihood`` of the images of a batch, (B,) nats.

    If the batch has labels, the model also receives the labels.
    """
    x, *labels = as_batch(batch)
    return model.log_likelihood(x, y=labels[0] if labels else None, num_samples=num_samples, generator=generator)


@torch.no_grad()
def log_likelihood_per_batch(
    model, data, num_samples: int, batches: int | None = None, progress: bool = False
) -> list[float]:
    """Return the mean log likelihood of each batch of 100 test images, nats per image. Cards publish the overall mean.

    The noise of a batch depends only on its index. Each batch can therefore be measured again without the others.

    Args:
        model: model in eval mode with ``log_likelihood``.
        data: ``Images`` datamodule, after ``setup``.
        num_samples: importance samples per image.
        batches: number of batches, beginning with the first. None measures all batches.
        progress: show a progress bar.
    """
    images, labels = data.splits["test"]
    hundreds = list(zip(images.split(IMAGES_AT_ONCE), labels.split(IMAGES_AT_ONCE), strict=True))[:batches]
    means = []
    for i, (x, y) in enumerate(tracked(hundreds, "log likelihood", "hundred", show=progress)):
        batch = [as_floats(x.to(model.device)), y.to(model.device).long()]
        found = log_likelihood(model, batch, num_samples, generator=chunk_generator(0, i))
        means.append(in_float64(found).mean().item())
    return means


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


def check_protocol(protocol: Protocol, model, data: str) -> None:
    """Check that the protocol suits the model and the data set ``data``. :func:`measure` calls this first.

    Raises:
        UserError: if the protocol does not suit the model or the data set. The message names the unsuitable part.
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
        if data not in ("mnist", *DISTRIBUTIONS):
            raise UserError(
                f"samples cannot be evaluated on {data}; use mnist or one of {', '.join(DISTRIBUTIONS)}, "
                "or leave out samples"
            )
    samples = _samples(protocol, model)
    if any(protocol.conditions) and not samples:
        raise UserError(
            f"conditions need samples, but no samples of {name} are evaluated by default; give the number of samples"
        )
    for conditions in protocol.conditions if samples and (protocol.samples or any(protocol.conditions)) else ():
        drawn = try_conditions(model, samples, conditions)
        if list(drawn.shape[1:]) != (shape := list(model.hparams.get("shape", [1, 28, 28]))):
            raise UserError(f"samples must have shape {shape}, got {list(drawn.shape[1:])} with {conditions}")


def _samples(protocol: Protocol, model) -> int:
    """Return the number of samples to evaluate."""
    return protocol.samples or (10_000 if isinstance(model, capabilities.Adversarial) else 0)


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
        judged_accuracy                         the model has labels, and the data are MNIST
        all/accuracy, all/nmi, all/ari          the model has clusters (training, validation and test images)
        feature_accuracy                        the model has ``transform``

    If the protocol has several conditions, the name of each metric of samples ends with its condition.
    ``judged_accuracy`` uses the number of evaluated samples, rounded down to a multiple of 10, and at least 10. If no
    samples are evaluated, ``judged_accuracy`` uses 10,000 samples. If the conditions fix the labels ``y``,
    ``judged_accuracy`` is not measured.

    Args:
        model: model in eval mode.
        data: ``Images``, ``Toy`` or ``Text`` datamodule, after ``setup``.
        protocol: measurements in addition to the test loop. None uses the default protocol.
        progress: show progress bars.

    Returns:
        metrics: {name: value}.
        evidence: intermediate values, which the card stores under ``log_likelihood``, ``bound`` and ``samples``.

    Raises:
        UserError: if the protocol does not suit the model.
    """
    protocol = protocol or Protocol()
    check_protocol(protocol, model, data.used)
    if isinstance(model, capabilities.Words):
        return measure_words(model), {}
    metrics, evidence = evaluate(model, data), {}
    model.eval()
    if num_samples := protocol.importance_samples:
        hundreds = log_likelihood_per_batch(model, data, num_samples, progress=progress)
        sizes = [len(part) for part in data.splits["test"].images.split(IMAGES_AT_ONCE)]
        metrics["test/log_likelihood"] = sum(m * n for m, n in zip(hundreds, sizes, strict=True)) / sum(sizes)
        evidence["log_likelihood"] = {"num_samples": num_samples, "of_each_hundred": hundreds}
    if protocol.bound_images:
        terms = bound_per_batch(model, data, protocol.bound_images // BOUND_AT_ONCE, progress)
        metrics |= bound_metrics(terms)
        evidence["bound"] = {"images": len(terms) * BOUND_AT_ONCE, "of_each_five": terms.tolist()}
    known = isinstance(data, Toy) and isinstance(data.distribution, capabilities.KnownScore)
    if known and isinstance(model, capabilities.ScoreChains):
        field = measure_field(model, data.distribution)
        metrics |= {"fisher_divergence": field.fisher_divergence, "log_density_gap": field.log_density_gap}
    kinds = model.rows() if isinstance(model, capabilities.SampleRows) else None
    labelled = kinds is not None and kinds[0] == "y"
    if samples := _samples(protocol, model):
        several, first = len(protocol.conditions) > 1, []
        # Old names of conditions are replaced by current names.
        of_samples = [check_conditions(model, conditions) for conditions in protocol.conditions]
        for conditions in of_samples:
            found = measure_samples(model, data, samples, conditions, progress)
            after = "".join(f"/{k}={json.dumps(v)}" for k, v in conditions.items()) if several else ""
            if "confident" in found and labelled and "y" not in conditions:
                obeyed = judged_accuracy(model, max(10, samples - samples % 10), progress=progress, **conditions)
                found["judged_accuracy"] = obeyed["judged_accuracy"]
            metrics |= {name + after: value for name, value in found.items()}
            if "confident" in found:
                classifier = zoo.load("classifier").to(model.device)
                own = {k: v[:CHUNK] if isinstance(v, list) else v for k, v in conditions.items()}
                chunk = classify_images(sample_chunks(model, CHUNK, seed=0, **own), classifier)
                first.append(chunk.probabilities.max(-1).values.tolist())
        evidence["samples"] = {"n": samples, "conditions": of_samples, "sure_of_the_first": first}
    elif data.used == "mnist" and labelled:
        metrics["judged_accuracy"] = judged_accuracy(model, progress=progress)["judged_accuracy"]
    if isinstance(model, capabilities.Clusters):
        metrics |= {f"all/{name}": score for name, score in clustering_of_all_images(model, data, progress).items()}
    if isinstance(model, capabilities.Features):
        metrics["feature_accuracy"] = feature_accuracy(model, data)
    return metrics, evidence


@torch.no_grad()
def bound_per_batch(model, data, fives: int, progress: bool = False) -> Tensor:
    """Return the terms of a diffusion model's bound on the first test images, (fives, 3), nats per image.

    The columns are L_0, the sum of L_t over 0 < t < T, and L_T. Each row is the mean over five images. The noise of a
    row depends only on its index. Each row can therefore be measured again without the others. Each image takes T
    network evaluations.

    Args:
        model: diffusion model in eval mode. If the model was trained with labels, it also receives the labels.
        data: ``Images`` datamodule, after ``setup``.
        fives: number of rows. Each row needs five images.
        progress: show a progress bar.
    """
    images, labels = (t[: fives * BOUND_AT_ONCE] for t in data.splits["test"])
    fives = list(zip(images.split(BOUND_AT_ONCE), labels.split(BOUND_AT_ONCE), strict=True))
    found = []
    for i, (x, y) in enumerate(tracked(fives, "bound", "five", show=progress)):
        x = as_floats(x.to(model.device))
        y = None if model.hparams.num_classes is None else y.to(model.device).long()
        terms = in_float64(model.bound_terms(x, generator=chunk_generator(0, i), y=y)).mean(1)
        found.append(torch.stack([terms[0], terms[1:-1].sum(), terms[-1]]).cpu())
    return torch.stack(found)


def bound_metrics(terms: Tensor) -> dict[str, float]:
    """Return the metrics of the bound for a card, from the terms that :func:`bound_per_batch` returns.

    ``bound/L_0``, ``bound/L_t`` and ``bound/L_T`` are in nats per image. ``bits_per_dim`` has a standard error,
    ``bits_per_dim_error``, if there are at least two rows.
    """
    total = terms.sum(1) / (784 * math.log(2))
    error = {"bits_per_dim_error": float(total.std() / len(total) ** 0.5)} if len(total) > 1 else {}
    means = dict(zip(("bound/L_0", "bound/L_t", "bound/L_T"), terms.mean(0).tolist(), strict=True))
    return {"bits_per_dim": float(total.mean()), **error, **means}


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

        For MNIST, the metrics are those of :func:`sample_metrics` and three others. ``confident_of_test_images`` is the
        fraction of test images whose predicted label has a probability above 0.9. ``classifier_fid_floor`` is the
        distance of n validation images from the test images. If n is above 5,000, all 5,000 validation images are used.
        ``classifier_fid_floor_error`` is the standard error of this distance.

        For points, the metric is ``energy_distance``, on the first 5,000 samples. For the ring, the metrics are also
        ``modes_covered`` and ``near_a_mode``. For sequences, the metric is ``kl``, by enumeration. Other images have no
        metrics, because there is no classifier for them.
    """
    conditions = conditions or {}
    if isinstance(data, Toy):
        yardstick, samples = (
            SampleDistanceMetric(data, "test"),
            sample_chunks(model, n, seed=0, progress=progress, **conditions),
        )
        metrics = {yardstick.name: yardstick(model, samples[:5000])}
        if data.used == "ring":
            found = modes(samples, data.distribution.mu, data.distribution.sigma)
            metrics |= {"modes_covered": float(found.covered), "near_a_mode": found.near}
        return metrics
    if data.used != "mnist":
        return {}
    classifier = zoo.load("classifier").to(model.device)
    val, test = (
        classify_images(as_floats(data.splits[split].images[:of]), classifier, progress)
        for split, of in (("val", n), ("test", None))
    )
    return sample_metrics(model, test.features, classifier, n, conditions=conditions, progress=progress) | {
        "confident_of_test_images": confident(test),
        "classifier_fid_floor": frechet_distance(val.features, test.features),
        "classifier_fid_floor_error": frechet_standard_error(val.features, test.features),
    }


def check_importance_weighted(model) -> None:
    """Raise unless the model has a ``log_likelihood`` that uses importance samples.

    Raises:
        UserError: if the model has no ``log_likelihood``, or computes it without importance samples.
    """
    name = type(model).__name__
    if not capabilities.has_log_likelihood(model):
        raise UserError(f"{name} has no log_likelihood(); leave out importance samples")
    if not capabilities.has_log_likelihood(model, by=capabilities.IMPORTANCE):
        bound = capabilities.has_log_likelihood(model, by=capabilities.BOUND)
        instead = "use --bound-images for its bound" if bound else "its test loss is the negative log likelihood"
        raise UserError(f"the log likelihood of {name} takes no importance samples; {instead}")


def feature_accuracy(model, data) -> float:
    """Return the test accuracy of a logistic regression on the features of ``model.transform``.

    The regression is scikit-learn's LogisticRegression with the default regularisation. It is fitted to the features of
    the grey training images.

    Args:
        model: model in eval mode with ``transform``.
        data: ``Images`` datamodule, after ``setup``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    images = {k: (data.splits[k].images.flatten(1).cpu().numpy() / np.float32(255)) for k in ("train", "test")}
    labels = {k: data.splits[k].labels.cpu().numpy() for k in images}
    pipeline = make_pipeline(Features(model), LogisticRegression(max_iter=1000))
    log.info("Fitting a logistic regression to the features of %s images", f"{len(labels['train']):,}")
    return float(pipeline.fit(images["train"], labels["train"]).score(images["test"], labels["test"]))


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
        classifier: classifier in eval mode. None uses the zoo's classifier, which was trained on MNIST.
        progress: show progress bars.
        conditions: conditions of the samples in addition to their labels.

    Returns:
        ``judged_accuracy``: fraction for all labels. ``judged_accuracy/<label>``: fraction for each label.

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
    return {"judged_accuracy": right.mean().item()} | {
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
