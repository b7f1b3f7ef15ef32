"""Standard errors of the metrics on a card, and the check that rounding of the weights moves no metric too far.

    mean of K batches    sqrt(K / (K - 1) sum_i w_i^2 (m_i - m)^2)    batch_error
    fraction of n        sqrt(p (1 - p) / n)                          fraction_error
    rank correlation     (1 - r^2) / sqrt(n - 1)                      standard_errors

Symbols: m_i mean of batch i; w_i its fraction of the examples; m mean of all examples.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from zoo.datamodules.access import size_of
from zoo.evaluation.protocol import Protocol, measure
from zoo.evaluation.units import error_name, plain_name

BatchMeans = dict[str, list[tuple[float, int]]]  # {metric: (mean of a batch, examples in it) for each batch}

# Fractions of examples. Scores of clusters are not fractions, but one example changes them by about as much.
OF_EXAMPLES = {"accuracy", "nmi", "ari", "feature_accuracy", "confident_of_test_images"}
OF_SAMPLES = {"judged_accuracy", "confident", "rarest_class", "commonest_class", "near_a_mode"}
QUESTIONS = {"analogies": 19_544, "analogies/semantic": 8_869, "analogies/syntactic": 10_675}  # in the published set
PAIRS = {"wordsim353": 353, "simlex999": 999}
ALLOWED = 0.1  # the largest movement of a metric, in standard errors
RELATIVE = 1e-4  # the largest relative movement of a metric without a known error


class Measured(NamedTuple):
    """The metrics of a model, what its card stores about them, and the standard errors that are known."""

    metrics: dict[str, float]
    evidence: dict[str, Any]
    errors: dict[str, float]


class Moved(NamedTuple):
    """One metric of the exact weights and of the stored weights, and its standard error, None if it is not known."""

    exact: float
    stored: float
    error: float | None

    @property
    def too_far(self) -> bool:
        """Whether the metric moves by more than a tenth of its error, or by a relative 1e-4 without a known error."""
        if math.isnan(self.exact) and math.isnan(self.stored):
            return False
        allowed = RELATIVE * abs(self.exact) if self.error is None else ALLOWED * self.error
        return not abs(self.stored - self.exact) <= allowed  # a NaN has moved too far


def measure_with_errors(model, data, protocol: Protocol, progress: bool = False) -> Measured:
    """Return what :func:`zoo.evaluation.protocol.measure` returns, with the standard errors of the metrics."""
    with logged_batches(model) as batches:
        metrics, evidence = measure(model, data, protocol, progress)
    return Measured(metrics, evidence, standard_errors(metrics, evidence, batches, data))


@contextmanager
def logged_batches(model) -> Iterator[BatchMeans]:
    """Collect the means of batches that ``model`` logs in a test loop. The dictionary is filled while the loop runs."""
    found: BatchMeans = {}
    log = model.log

    def collect(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if name.startswith("test/") and isinstance(value, Tensor) and (n := kwargs.get("batch_size")):
            found.setdefault(name, []).append((float(value), n))
        log(name, value, *args, **kwargs)

    model.log = collect
    try:
        yield found
    finally:
        del model.log  # the method of the class is found again


def standard_errors(metrics: dict[str, float], evidence: dict[str, Any], batches: BatchMeans, data) -> dict[str, float]:
    """Return the standard errors of those metrics whose error is known: {metric: error}.

    Args:
        metrics: metrics of a card. An error among them, such as ``classifier_fid_error``, is used as it is.
        evidence: what the card stores about the metrics.
        batches: means of the test batches.
        data: the data of the test loop.
    """
    likelihoods = [(mean, 1) for mean in (evidence.get("log_likelihood") or {}).get("of_each_hundred", [])]
    samples = (evidence.get("samples") or {}).get("n", 10_000)
    found: dict[str, float | None] = {}
    for name, value in metrics.items():
        *where, key = plain_name(name).split("/")
        if (logged := metrics.get(error_name(name))) is not None:
            found[name] = logged
        elif name in batches:
            found[name] = batch_error(batches[name])
        elif name == "test/log_likelihood" and likelihoods:
            found[name] = batch_error(likelihoods)
        elif key in OF_SAMPLES:
            found[name] = fraction_error(value, samples)
        elif key in OF_EXAMPLES:
            splits = ("train", "val", "test") if where == ["all"] else ("test",)
            found[name] = fraction_error(value, sum(size_of(data, split) for split in splits))
        elif name in QUESTIONS:
            found[name] = fraction_error(value, QUESTIONS[name] * metrics.get("analogies/coverage", 1))
        elif name in PAIRS and (n := PAIRS[name] * metrics[f"{name}/coverage"]) > 2:
            found[name] = (1 - value**2) / (n - 1) ** 0.5
    return {name: error for name, error in found.items() if error is not None and math.isfinite(error)}


def batch_error(batches: list[tuple[float, int]]) -> float | None:
    """Return the standard error of the mean over batches (mean, examples). None for fewer than two batches."""
    total, k = sum(n for _, n in batches), len(batches)
    if k < 2:
        return None
    mean = sum(value * n for value, n in batches) / total
    return math.sqrt(k / (k - 1) * sum((n / total * (value - mean)) ** 2 for value, n in batches))


def fraction_error(fraction: float, n: float) -> float | None:
    """Return the standard error of a fraction of ``n``. One more success and one more failure keep it above zero."""
    p = min(max((fraction * n + 1) / (n + 2), 0.0), 1.0)
    return math.sqrt(p * (1 - p) / n) if n else None


def moved(exact: Measured, stored: Measured) -> dict[str, Moved]:
    """Return pairs of a metric of the exact weights and of the stored weights. Errors themselves are left out."""
    errors = {error_name(name) for name in exact.metrics}
    return {
        name: Moved(value, stored.metrics.get(name, math.nan), exact.errors.get(name))
        for name, value in exact.metrics.items()
        if name not in errors
    }
