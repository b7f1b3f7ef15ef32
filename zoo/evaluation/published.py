"""The metrics of each model that the tables of the documentation show, and the numbers of the papers.

A metric has a name, a unit and a protocol. Its value is on the card of a checkpoint. A card can hold a metric several
times, for different settings of the samples. The settings follow the key of the metric, as in
``classifier_fid/num_steps=50/eta=1``.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from zoo.evaluation.estimates import binomial_error, standard_error_of_mean
from zoo.evaluation.units import decimals, error_name, plain_name

Card = Mapping[str, Any]
Metrics = Mapping[str, float]
TEST_IMAGES = {"mnist": 10_000, "fashion_mnist": 10_000}
DEFAULT_SAMPLES = 10_000  # number of scored samples of cards that do not record it


class Metric(NamedTuple):
    """A metric as the tables show it: ``offset`` + ``factor`` times the value on the card.

    Attributes:
        key: name of the metric on the card, without settings of the samples.
        label: name and unit. ``{samples}``, ``{importance}`` and ``{bound}`` stand for the sizes on the card.
        protocol: how the metric is measured, with the same placeholders.
        factor: factor of the value.
        offset: offset of the value.
        digits: number of decimals of a value without a standard error.
        fraction_of: ``images`` or ``samples`` if the value is a fraction of independent test images or samples. Its
            standard error is then the binomial one, unless the card has another.
        value: function from all metrics of the card to the value, if ``key`` alone does not give it.
        error: function from all metrics of the card to the standard error of such a value. None means none is known.
        of_data: whether the value belongs to the data, and not to samples under some settings.
        detail: whether only the table of the checkpoint shows the metric, such as a term of a sum.
    """

    key: str
    label: str
    protocol: str
    factor: float = 1.0
    offset: float = 0.0
    digits: int = 2
    fraction_of: str = ""
    value: Callable[[Metrics], float] | None = None
    error: Callable[[Metrics], float | None] | None = None
    of_data: bool = False
    detail: bool = False

    def shown(self, value: float) -> float:
        """Return a value of the card in the unit of the label."""
        return self.offset + self.factor * value


class Measured:
    """What the tables show of a model: its paper, and its metrics besides those of ``OF_SAMPLES``."""

    def __init__(self, paper: str, *metrics: Metric):
        self.paper, self.metrics = paper, metrics


class Paper(NamedTuple):
    """A number of a paper, in the unit of the label of its metric."""

    value: float
    paper: str
    digits: int = 2


PERCENT = 100.0
FEATURES = "{samples} samples and the test images, in features of the classifier"
CLASSES = "classes that the classifier gives to {samples} samples"

OF_SAMPLES = (
    Metric("classifier_fid", "classifier-FID, {samples} samples", f"Frechet distance of {FEATURES}"),
    Metric("classifier_kid", "classifier-KID, {samples} samples", f"kernel distance of {FEATURES}", digits=4),
    Metric("precision", "precision, {samples} samples", f"precision of {FEATURES}", digits=3),
    Metric("recall", "recall, {samples} samples", f"recall of {FEATURES}", digits=3),
    Metric("density", "density, {samples} samples", f"density of {FEATURES}", digits=3),
    Metric("coverage", "coverage, {samples} samples", f"coverage of {FEATURES}", digits=3),
    Metric("confident", "confident, {samples} samples, %", CLASSES, PERCENT, digits=1, fraction_of="samples"),
    Metric("judged_accuracy", "recognised, {samples} samples, %", CLASSES, PERCENT, fraction_of="samples"),
    Metric(
        *("confident_of_test_images", "confident, test images, %", "classes that the classifier gives to test images"),
        *(PERCENT, 0.0, 1, "images"),
        of_data=True,
        detail=True,
    ),
    *(
        Metric(
            f"{key}_floor", f"floor of {name}", f"{name} of validation images", digits=digits, of_data=True, detail=True
        )
        for key, name, digits in (
            ("classifier_fid", "classifier-FID", 2),
            ("classifier_kid", "classifier-KID", 4),
            ("precision", "precision", 3),
            ("recall", "recall", 3),
            ("density", "density", 3),
            ("coverage", "coverage", 3),
        )
    ),
    Metric("energy_distance", "energy distance", "samples of the model and test data", digits=4),
)
LIKELIHOOD = Metric("test/log_likelihood", "test log p(x), nats", "{importance} importance samples per test image")
BINARY = " dynamically binarised"


def _interval_end(end: str) -> Callable[[Metrics], float]:
    """Return a function from the metrics of an RBM to an end of the interval of its log p(x)."""
    return lambda m: m["test/log_partition"] - m["test/loss"] - m[f"test/log_partition_{end}"]


def _term(name: str, label: str) -> Metric:
    """Return the metric of a term of the bound. The card has the terms in nats, and their sum in bits per dimension."""
    key = f"bound/{name}"

    def bits(m: Metrics, nats: str) -> float:
        return m[nats] * m["bits_per_dim"] / (m["bound/L_0"] + m["bound/L_t"] + m["bound/L_T"])

    return Metric(
        *(key, f"bound, {label}, bits per dimension", "a term of the bound"),
        value=partial(bits, nats=key),
        # The prior term is about 1e-9 bits. A value with the decimals of its error would fill the column.
        error=lambda m: bits(m, error_name(key)) if error_name(key) in m and name != "L_T" else None,
        detail=True,
    )


CHAINS = "annealed importance sampling"
# The README shows the paper of each model, and the first of its metrics that the card has.
METRICS: dict[str, Measured] = {
    "vae": Measured(
        "Kingma & Welling 2014",
        LIKELIHOOD._replace(protocol=LIKELIHOOD.protocol + f",{BINARY}"),
        Metric("test/loss", "test bound, nats", f"the objective of training, on test images,{BINARY}", -1.0),
    ),
    "cvae": Measured(
        "Sohn et al. 2015",
        Metric("judged_accuracy", "samples recognised as their label, %", CLASSES, PERCENT, fraction_of="samples"),
        LIKELIHOOD._replace(
            label="test log p(x given y), nats", protocol=LIKELIHOOD.protocol + f" and its label,{BINARY}"
        ),
    ),
    "vade": Measured(
        "Jiang et al. 2017",
        Metric(
            *("test/accuracy", "clustering accuracy, test images, %", "best assignment of clusters to labels"),
            *(PERCENT, 0.0, 2, "images"),
        ),
        Metric("all/accuracy", "clustering accuracy, all images, %", "best assignment of clusters to labels", PERCENT),
    ),
    "rbm": Measured(
        "Hinton 2002",
        Metric("test/loss", "test log p(x), nats", f"test images binarised once, log Z by {CHAINS}", -1.0),
        Metric(
            *("test/log_partition_high", "lower end of test log p(x), nats", "log Z plus three standard errors"),
            value=_interval_end("high"),
            detail=True,
        ),
        Metric(
            *("test/log_partition_low", "upper end of test log p(x), nats", "log Z minus three standard errors"),
            value=_interval_end("low"),
            detail=True,
        ),
        Metric("test/log_partition_base_rate", "log Z from the mean image, nats", CHAINS, detail=True),
        Metric("test/log_partition_coins", "log Z from fair coins, nats", CHAINS, detail=True),
        Metric(
            *("feature_accuracy", "test accuracy of features, %", "logistic regression on p(h given x)"),
            *(PERCENT, 0.0, 2, "images"),
        ),
    ),
    "gan": Measured(
        "Goodfellow et al. 2014",
        Metric("kl", "KL(data, model), nats", "enumeration of all sequences", digits=4),
    ),
    "wgan": Measured(
        "Gulrajani et al. 2017",
        Metric("modes_covered", "modes reached", "10,000 samples", digits=0),
        Metric(
            *("near_a_mode", "samples within three standard deviations of a mode, %", "10,000 samples"),
            *(PERCENT, 0.0, 1, "samples"),
        ),
    ),
    "infogan": Measured(
        "Chen et al. 2016",
        Metric(
            *("test/accuracy", "category error on test images, %", "best assignment of categories to labels"),
            *(-PERCENT, PERCENT, 1, "images"),
        ),
    ),
    "ddpm": Measured(
        "Ho et al. 2020",
        Metric("bits_per_dim", "variational bound, bits per dimension", "all steps, the first {bound} test images"),
        _term("L_t", "steps 2 to the last"),
        _term("L_0", "discretised decoder"),
        _term("L_T", "prior"),
    ),
    "score": Measured(
        "Song & Ermon 2019",
        Metric("fisher_divergence", "Fisher divergence", "points of the blurred density, in its bulk", digits=4),
        Metric("log_density_gap", "log density gap, nats", "samples of the model and of the target", digits=3),
    ),
    "skipgram": Measured(
        "Mnih & Kavukcuoglu 2013",
        Metric("analogies", "analogies solved, %", "Google analogies among the words of the model", PERCENT, 0, 1),
        Metric("wordsim353", "WordSim-353, Spearman correlation", "pairs of words of the model", digits=3),
        Metric("simlex999", "SimLex-999, Spearman correlation", "pairs of words of the model", digits=3),
    ),
    "classifier": Measured(
        "",
        Metric("test/accuracy", "test accuracy, %", "test images", PERCENT, fraction_of="images"),
    ),
}

BURDA = "Burda et al. 2015"
# The numbers of papers, by checkpoint and by key of the metric. Other metrics have none for the same protocol.
PUBLISHED: dict[str, dict[str, Paper]] = {
    "vae": {"test/log_likelihood": Paper(-86.76, BURDA)},
    "iwae": {"test/log_likelihood": Paper(-84.78, BURDA)},
    "vade": {"all/accuracy": Paper(94.46, "Jiang et al. 2017")},
    "rbm": {"test/loss": Paper(-86.34, "Salakhutdinov & Murray 2008")},
    "infogan": {"test/accuracy": Paper(5, "Chen et al. 2016", 0)},
}


class Number(NamedTuple):
    """A metric of a checkpoint, in the unit of its label.

    Attributes:
        metric: the metric. The sizes of the card replace the placeholders of its label and protocol.
        key: name of the metric on the card, with settings of the samples.
        settings: settings of the samples, such as ``num_steps=50, eta=1``.
        value: the value.
        error: its standard error, or None if the card does not give it.
    """

    metric: Metric
    key: str
    settings: str
    value: float
    error: float | None

    @property
    def text(self) -> str:
        """The value, with as many decimals as its standard error. Without an error, with those of the metric."""
        return f"{self.value:.{decimals(self.error) if self.error_text and self.error else self.metric.digits}f}"

    @property
    def error_text(self) -> str:
        return "" if self.error is None or not math.isfinite(self.error) else rounded_error(self.error)


def rounded_error(error: float) -> str:
    """Return a standard error with two significant digits."""
    return f"{error:.{decimals(error)}f}" if error else "0"


def numbers_of(card: Card) -> list[Number]:
    """Return the metrics of a card that the tables show, in the order of ``METRICS``."""
    metrics = {**card["metrics"]}
    found: list[Number] = []
    own = METRICS[card["model"]].metrics if card["model"] in METRICS else ()
    for metric in (*own, *(other for other in OF_SAMPLES if other.key not in {m.key for m in own})):
        keys = [key for key in metrics if plain_name(key) == metric.key]
        for key in keys[:1] if metric.of_data else keys:
            value = metric.value(metrics) if metric.value else metric.shown(metrics[key])
            settings = "" if metric.of_data else ", ".join(part for part in key.split("/") if "=" in part)
            error = standard_error(metric, key, card)
            sizes = sizes_of(card, key)
            filled = metric._replace(label=metric.label.format(**sizes), protocol=metric.protocol.format(**sizes))
            found.append(Number(filled, key, settings, value, error))
    return found


def samples_of(card: Card, key: str) -> int:
    """Return the number of samples of a metric. Early cards do not record it."""
    return (card.get("counts") or {}).get(key) or (card.get("samples") or {}).get("n", DEFAULT_SAMPLES)


def sizes_of(card: Card, key: str) -> dict[str, str]:
    """Return the numbers of samples and images of a metric, as text."""
    samples = samples_of(card, key)
    importance = (card.get("log_likelihood") or {}).get("num_samples", 0)
    bound = (card.get("bound") or {}).get("images", 0)
    return {"samples": f"{samples:,}", "importance": f"{importance:,}", "bound": f"{bound:,}"}


def standard_error(metric: Metric, key: str, card: Card) -> float | None:
    """Return the standard error of a metric in the unit of its label, or None if the card does not give it.

    The error is on the card, or follows from parts of the test set, or is the binomial error of a fraction. An error of
    0 says nothing, as for a fraction without a single exception, and is left out.
    """
    metrics = card["metrics"]
    base = plain_name(key)
    if metric.value:
        return metric.error(metrics) if metric.error else None
    if (error := metrics.get(error_name(key), (card.get("errors") or {}).get(key))) is not None:
        return abs(metric.factor) * error or None
    if base == "test/log_likelihood" and (parts := (card.get("log_likelihood") or {}).get("of_each_hundred")):
        error = standard_error_of_mean(parts)
        return None if error is None else abs(metric.factor) * error
    if metric.fraction_of:
        n = samples_of(card, key) if metric.fraction_of == "samples" else TEST_IMAGES.get(card["data"])
        p = metrics[key]
        return abs(metric.factor) * binomial_error(p, n) or None if n else None
    return None
