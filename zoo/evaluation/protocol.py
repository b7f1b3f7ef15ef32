"""What turns a trained model into a published number."""

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
from zoo.checks.values import check_whole
from zoo.datamodules import DISTRIBUTIONS, Toy
from zoo.evaluation.distances import (
    Yardstick,
    confident,
    frechet_distance,
    frechet_standard_error,
    judge_images,
    judged_samples,
    modes,
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
def clustering_of_everything(model, data, progress: bool = False) -> dict[str, float]:
    """Scores of ``model.cluster`` on the training, validation and test images of an Images: see ``ClusterTable``.

    Raises:
        UserError: for an Images whose training images hold others too, which would be counted twice.
    """
    if data.hparams.train_on != "train":
        raise UserError(f"each image is counted once with train_on=train, got {data.hparams.train_on}")
    table = ClusterTable(len(model.rows()[1]))
    for split in ("train", "val", "test"):
        batches = list(zip(*(t.split(1000) for t in data.splits[split]), strict=True))
        for x, y in tracked(batches, f"clustering {split} images", "batch", show=progress):
            table.update(model.cluster(x[:, None].to(model.device).float() / 255).cpu(), y.cpu())
    return table.compute()


def log_likelihood(model, batch, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
    """``model.log_likelihood`` of the images of a batch, given their labels where the model wants them; (B,) nats."""
    x, *labels = as_batch(batch)
    return model.log_likelihood(x, y=labels[0] if labels else None, num_samples=num_samples, generator=generator)


@torch.no_grad()
def log_likelihood_by_hundreds(
    model, data, num_samples: int, batches: int | None = None, progress: bool = False
) -> list[float]:
    """The mean log likelihood of each hundred test images in turn, nats per image; their mean is what is published.

    Each hundred has its own noise, keyed by its place, so that any one of them can be measured again alone.

    Args:
        model: anything with ``log_likelihood``, in eval mode.
        data: an Images, set up.
        num_samples: importance samples per image.
        batches: how many hundreds, from the first on; all of them if None.
    """
    images, labels = data.splits["test"]
    hundreds = list(zip(images.split(IMAGES_AT_ONCE), labels.split(IMAGES_AT_ONCE), strict=True))[:batches]
    means = []
    for i, (x, y) in enumerate(tracked(hundreds, "log likelihood", "hundred", show=progress)):
        batch = [x[:, None].to(model.device).float() / 255, y.to(model.device).long()]
        found = log_likelihood(model, batch, num_samples, generator=chunk_generator(0, i))
        means.append(in_float64(found).mean().item())
    return means


class Protocol(NamedTuple):
    """What is measured beyond the test loop, and on how much of the data.

    Attributes:
        importance_samples: per test image, for the log likelihood; 0 leaves it out.
        bound_images: test images, the first ones, on which a diffusion's bound is taken; 0 leaves it out.
        samples: how many are judged, at least 2; None is 10,000 for a model of two players, and none for others.
        conditions: of the samples that are judged; several are measured in turn.
    """

    importance_samples: int = 0
    bound_images: int = 0
    samples: int | None = None
    conditions: tuple[dict[str, object], ...] = ({},)


def check_protocol(protocol: Protocol, model, data: str) -> None:
    """Refuse, before any work, what a model cannot be measured by on the data set named ``data``.

    Raises:
        UserError: saying what.
    """
    name = type(model).__name__
    check_whole("importance samples", protocol.importance_samples, least=0)
    check_whole("images of the bound", protocol.bound_images, least=0)
    if protocol.importance_samples:
        check_importance_weighted(model)
    if protocol.bound_images and not isinstance(model, capabilities.BoundTerms):
        raise UserError(f"{name} has no bound of many terms: that is a diffusion's")
    if protocol.bound_images % BOUND_AT_ONCE:
        raise UserError(f"the bound is taken of {BOUND_AT_ONCE} images at a time, got {protocol.bound_images}")
    if protocol.samples is not None:
        check_whole("samples", protocol.samples, least=2)
        if data not in ("mnist", *DISTRIBUTIONS):
            raise UserError(f"samples are judged beside MNIST, not {data}: choose that data, or leave samples out")
    samples = _samples(protocol, model)
    if any(protocol.conditions) and not samples:
        raise UserError(f"conditions are of samples that are judged, and of {name} none are by default: say how many")
    for conditions in protocol.conditions if samples and (protocol.samples or any(protocol.conditions)) else ():
        drawn = try_conditions(model, samples, conditions)
        if list(drawn.shape[1:]) != list(model.hparams.get("shape", [1, 28, 28])):
            raise UserError(f"what is judged are single examples, and with {conditions} samples are more than that")


def _samples(protocol: Protocol, model) -> int:
    """How many samples are judged."""
    return protocol.samples or (10_000 if isinstance(model, capabilities.TwoPlayers) else 0)


def measure(
    model, data, protocol: Protocol | None = None, progress: bool = False
) -> tuple[dict[str, float], dict[str, object]]:
    """All that a card publishes of a model: its test loop, and what the protocol asks for.

    Args:
        model: in eval mode.
        data: an Images, or a Toy.
        protocol: its defaults if None.
        progress: show bars.

    Returns:
        metrics: those of the test loop; ``test/log_likelihood``, nats per image; ``judged_accuracy`` of a model of
            labels, on MNIST, of about as many samples as the protocol has, or of 10,000 if it has none;
            ``all/accuracy``, ``/nmi`` and ``/ari`` of clusters, on training and test images together;
            ``feature_accuracy`` of a model with ``transform``; ``bits_per_dim`` and the terms of a diffusion's bound;
            ``fisher_divergence`` and ``log_density_gap`` of a score model of points; of samples those of
            :func:`measure_samples`, with the conditions after their names where there are several.
            Of a model of words those of :func:`zoo.evaluation.words.measure_words`, alone.
        evidence: from which some of them were made, for a card: ``log_likelihood``, ``bound``, ``samples``.

    Raises:
        UserError: for what the model cannot be measured by.
    """
    protocol = protocol or Protocol()
    check_protocol(protocol, model, data.used)
    if isinstance(model, capabilities.Words):
        return measure_words(model), {}
    metrics, evidence = evaluate(model, data), {}
    model.eval()
    if num_samples := protocol.importance_samples:
        hundreds = log_likelihood_by_hundreds(model, data, num_samples, progress=progress)
        sizes = [len(part) for part in data.splits["test"].images.split(IMAGES_AT_ONCE)]
        metrics["test/log_likelihood"] = sum(m * n for m, n in zip(hundreds, sizes, strict=True)) / sum(sizes)
        evidence["log_likelihood"] = {"num_samples": num_samples, "of_each_hundred": hundreds}
    if protocol.bound_images:
        terms = bound_by_fives(model, data, protocol.bound_images // BOUND_AT_ONCE, progress)
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
        of_samples = [check_conditions(model, conditions) for conditions in protocol.conditions]  # by today's names
        for conditions in of_samples:
            found = measure_samples(model, data, samples, conditions, progress)
            after = "".join(f"/{k}={json.dumps(v)}" for k, v in conditions.items()) if several else ""
            if "confident" in found and labelled and "y" not in conditions:
                obeyed = judged_accuracy(model, max(10, samples - samples % 10), progress=progress, **conditions)
                found["judged_accuracy"] = obeyed["judged_accuracy"]
            metrics |= {name + after: value for name, value in found.items()}
            if "confident" in found:
                judge = zoo.load("classifier").to(model.device)
                own = {k: v[:CHUNK] if isinstance(v, list) else v for k, v in conditions.items()}
                chunk = judge_images(sample_chunks(model, CHUNK, seed=0, **own), judge)
                first.append(chunk.probabilities.max(-1).values.tolist())
        evidence["samples"] = {"n": samples, "conditions": of_samples, "sure_of_the_first": first}
    elif data.used == "mnist" and labelled:
        metrics["judged_accuracy"] = judged_accuracy(model, progress=progress)["judged_accuracy"]
    if isinstance(model, capabilities.Clusters):
        metrics |= {f"all/{name}": score for name, score in clustering_of_everything(model, data, progress).items()}
    if isinstance(model, capabilities.Features):
        metrics["feature_accuracy"] = feature_accuracy(model, data)
    return metrics, evidence


@torch.no_grad()
def bound_by_fives(model, data, fives: int, progress: bool = False) -> Tensor:
    """The bound of a diffusion on the first ``fives`` times five test images, by its terms: (fives, 3).

    L_0, the sum of L_t over t > 0, and L_T, nats per image, means of five images each, given their labels where the
    model has labels; the noise is keyed by their place: any five can be measured again alone. T evaluations of the
    network for each image.
    """
    images, labels = (t[: fives * BOUND_AT_ONCE] for t in data.splits["test"])
    fives = list(zip(images.split(BOUND_AT_ONCE), labels.split(BOUND_AT_ONCE), strict=True))
    found = []
    for i, (x, y) in enumerate(tracked(fives, "bound", "five", show=progress)):
        x = x[:, None].to(model.device).float() / 255
        y = None if model.hparams.num_classes is None else y.to(model.device).long()
        terms = in_float64(model.bound_terms(x, generator=chunk_generator(0, i), y=y)).mean(1)
        found.append(torch.stack([terms[0], terms[1:-1].sum(), terms[-1]]).cpu())
    return torch.stack(found)


def bound_metrics(terms: Tensor) -> dict[str, float]:
    """What a card says of :func:`bound_by_fives`: nats per image, and bits per dimension with their standard error."""
    total = terms.sum(1) / (784 * math.log(2))
    error = {"bits_per_dim_error": float(total.std() / len(total) ** 0.5)} if len(total) > 1 else {}
    means = dict(zip(("bound/L_0", "bound/L_t", "bound/L_T"), terms.mean(0).tolist(), strict=True))
    return {"bits_per_dim": float(total.mean()), **error, **means}


def measure_samples(
    model, data, n: int = 10_000, conditions: dict[str, object] | None = None, progress: bool = False
) -> dict[str, float]:
    """How far samples are from test data.

    Args:
        model: in eval mode.
        data: a datamodule, set up.
        n: samples.
        conditions: of the samples.

    Returns:
        on MNIST what :func:`judged_samples` says of the samples; ``confident_of_test_images``, the share of test images
        that the judge is as sure of; as ``classifier_fid_floor``, with its standard error, the distance of as
        many validation images, or of all 5,000 if there are fewer, from the test images; of points ``energy_distance``
        from 5,000 of the samples, or from all if there are fewer, on a ring ``modes_covered`` and ``near_a_mode``; of
        sequences ``kl``, enumerated; nothing of other images, for which there is no judge.
    """
    conditions = conditions or {}
    if isinstance(data, Toy):
        yardstick, samples = Yardstick(data, "test"), sample_chunks(model, n, seed=0, progress=progress, **conditions)
        metrics = {yardstick.name: yardstick(model, samples[:5000])}
        if data.used == "ring":
            found = modes(samples, data.distribution.mu, data.distribution.sigma)
            metrics |= {"modes_covered": float(found.covered), "near_a_mode": found.near}
        return metrics
    if data.used != "mnist":
        return {}
    judge = zoo.load("classifier").to(model.device)
    val, test = (
        judge_images(data.splits[split].images[:of, None].float() / 255, judge, progress)
        for split, of in (("val", n), ("test", None))
    )
    return judged_samples(model, test.features, judge, n, conditions=conditions, progress=progress) | {
        "confident_of_test_images": confident(test),
        "classifier_fid_floor": frechet_distance(val.features, test.features),
        "classifier_fid_floor_error": frechet_standard_error(val.features, test.features),
    }


def check_importance_weighted(model) -> None:
    """Refuse a model whose ``log_likelihood`` is not there, or takes no importance samples.

    Raises:
        UserError: saying which.
    """
    name = type(model).__name__
    if not capabilities.has_log_likelihood(model):
        raise UserError(f"{name} has no log_likelihood to measure with importance samples")
    if not capabilities.has_log_likelihood(model, by=capabilities.IMPORTANCE):
        bound = capabilities.has_log_likelihood(model, by=capabilities.BOUND)
        instead = "--bound-images asks for its bound" if bound else "its test loss is minus it"
        raise UserError(f"the log likelihood of {name} takes no importance samples: {instead}")


def feature_accuracy(model, data) -> float:
    """The share of test images that scikit-learn's logistic regression, as it comes, gets right on ``model.transform``.

    Args:
        model: anything with ``transform``, in eval mode.
        data: an Images, set up; its training images, grey, are what the regression is fitted to.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    images = {k: (data.splits[k].images.flatten(1).cpu().numpy() / np.float32(255)) for k in ("train", "test")}
    labels = {k: data.splits[k].labels.cpu().numpy() for k in images}
    pipeline = make_pipeline(Features(model), LogisticRegression(max_iter=1000))
    log.info("Fitting a logistic regression to the features of %s images", f"{len(labels['train']):,}")
    return float(pipeline.fit(images["train"], labels["train"]).score(images["test"], labels["test"]))


def judged_accuracy(
    model, n: int = 10_000, seed: int = 0, judge=None, progress: bool = False, **conditions
) -> dict[str, float]:
    """The share of class-conditional samples that a classifier recognises as their label.

    It measures whether conditions are obeyed, not whether samples are varied: one good sample of each class, repeated,
    would score 1. The judge's own share of errors on test images is on its card.

    Args:
        model: a module with ``sample(n, *, y, generator)`` and ``device``; put it in eval mode first.
        n: how many samples, as many of each class; drawn in the chunks of zoo/sampling/chunks.py.
        seed: of the noise.
        judge: the classifier, in eval mode; the zoo's own, trained on MNIST, if None.
        progress: show bars.
        conditions: of the samples, beside their labels.

    Returns:
        ``judged_accuracy``, and ``judged_accuracy/<label>`` for each: shares of 1.

    Raises:
        UserError: for a model whose samples take no labels, or ``n`` that is no multiple of the number of classes.
    """
    check_conditions(model, {"y": 0})
    judge = zoo.load("classifier").to(model.device) if judge is None else judge
    classes = judge.hparams.num_classes
    if n < 1 or n % classes:
        raise UserError(f"n must be a multiple of the {classes} classes, as many samples of each, got {n}")
    labels = [k for k in range(classes) for _ in range(n // classes)]
    images = sample_chunks(model, n, seed, progress=progress, y=labels, **conditions)
    batches = tracked(images.split(500), "judging images", "batch", show=progress)
    predicted = torch.cat([judge.predict(x.to(judge.device)).cpu() for x in batches])
    right = (predicted == torch.tensor(labels)).double().view(classes, -1).mean(1)
    return {"judged_accuracy": right.mean().item()} | {
        f"judged_accuracy/{k}": share for k, share in enumerate(right.tolist())
    }


def evaluate(model, data) -> dict[str, float]:
    """Run the test loop of ``model`` on ``data`` (a LightningDataModule), on one device, without a run folder.

    Models key the noise of their test by batch, so that the same weights give the same numbers.

    Returns:
        the metrics that the model logs under ``test/``, as floats.
    """
    quiet_lightning()
    trainer = L.Trainer(
        devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False, callbacks=[progress_bar()]
    )
    trainer.test(model, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
