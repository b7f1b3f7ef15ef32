"""Standard errors of the metrics on a card, and the check that rounding of the weights moves no metric too far.

Most metrics have their error next to them, as ``<name>_error``. This module adds the errors of means over test batches
and of the scores of word vectors.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from zoo.evaluation.estimates import binomial_error, standard_error_of_mean
from zoo.evaluation.protocol import Protocol, measure
from zoo.evaluation.units import error_name

BatchMeans = dict[str, list[tuple[float, int]]]  # {metric: (mean of a batch, examples in it) for each batch}

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
    return Measured(metrics, evidence, standard_errors(metrics, batches))


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


def standard_errors(metrics: dict[str, float], batches: BatchMeans) -> dict[str, float]:
    """Return the standard errors of those metrics whose error is known: {metric: error}.

    Analogies share words, so they are not independent, and their binomial error is too small. A rank correlation r of n
    pairs has the error (1 - r^2) sqrt( (1 + r^2 / 2) / (n - 3) ) (Bonett & Wright 2000).

    Args:
        metrics: metrics of a card. An error among them, such as ``classifier_fid_error``, is used as it is.
        batches: means of the test batches.
    """
    found: dict[str, float | None] = {}
    for name, value in metrics.items():
        if (logged := metrics.get(error_name(name))) is not None:
            found[name] = logged
        elif name in batches:
            found[name] = standard_error_of_mean(*zip(*batches[name], strict=True))
        elif name in QUESTIONS and (n := QUESTIONS[name] * metrics.get("analogies/coverage", 1)) > 0:
            found[name] = binomial_error(value, n)
        elif name in PAIRS and (n := PAIRS[name] * metrics[f"{name}/coverage"]) > 3:
            found[name] = (1 - value**2) * ((1 + value**2 / 2) / (n - 3)) ** 0.5
    return {name: error for name, error in found.items() if error is not None and math.isfinite(error)}


def moved(exact: Measured, stored: Measured) -> dict[str, Moved]:
    """Return pairs of a metric of the exact weights and of the stored weights. Errors themselves are left out.

    The scores ``nmi`` and ``ari`` of clusters have no error. The error of the accuracy next to them is used, because
    one example changes all three by about as much.
    """
    errors = {error_name(name) for name in exact.metrics}
    return {
        name: Moved(value, stored.metrics.get(name, math.nan), exact.errors.get(_compared_with(name)))
        for name, value in exact.metrics.items()
        if name not in errors
    }


def _compared_with(name: str) -> str:
    """Return the name of the metric whose error limits the movement of a metric."""
    stage, _, key = name.rpartition("/")
    return f"{stage}/accuracy" if key in ("nmi", "ari") else name
