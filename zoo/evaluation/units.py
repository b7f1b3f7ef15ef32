"""Formatting of metrics: rounded, with units, standard errors and numbers of examples."""

import math

NATS = {
    *("nll", "kl", "kl_z", "kl_c", "log_likelihood", "pseudo_likelihood", "free_energy_gap", "log_Z", "log_Z_sd"),
    *("log_partition", "log_partition_low", "log_partition_high", "log_partition_base_rate", "log_partition_coins"),
    *("log_partition_exact", "js", "mi_categorical", "mi_continuous", "mi_ceiling", "discriminator_loss", "value"),
    *("L_0", "L_t", "L_T"),
}
FRACTIONS = {"accuracy", "judged_accuracy", "feature_accuracy", "confident", "near_a_mode"}
FRACTIONS |= {"analogies", "semantic", "syntactic", "coverage"}  # metrics on the published word sets
FRACTIONS |= {"precision", "recall", "rarest_class", "commonest_class", "confident_of_test_images"}
OTHERS = {"reconstruction_error": "squared pixels", "bits_per_dim": "bits per dimension", "bpd": "bits per dimension"}
LIKELIHOOD_METRICS = {"nll", "log_partition", "accuracy"}  # next to one of these, a loss is in nats


def plain_name(name: str) -> str:
    """Return the name of a metric without conditions: ``classifier_fid`` for ``classifier_fid/eta=1``."""
    return name.split("=")[0].rpartition("/")[0] if "=" in name else name


def with_unit(name: str, value: float, names: set[str]) -> str:
    """Return a metric as text. The value is rounded, and the unit follows if the metric has a unit.

    Args:
        name: name of the metric, such as ``test/loss``.
        value: logged value.
        names: names of all metrics of the run, which decide whether ``loss`` is in nats.
    """
    unit = unit_of(name, names)
    return f"{100 * value:.1f} %" if unit == "%" else f"{rounded(value)} {unit}".rstrip()


def unit_of(name: str, names: set[str]) -> str:
    """Return the unit of a metric, or an empty text. Fractions have the unit ``%``. See :func:`with_unit`."""
    stage, _, key = name.rpartition("/")
    if key.removesuffix("_floor") in FRACTIONS:
        return "%"
    if key.endswith("_per_second"):
        return f"{key.removesuffix('_per_second')} per second"
    beside = {other.rpartition("/")[2] for other in names if other.rpartition("/")[0] == stage}
    return "nats" if key in NATS or (key == "loss" and beside & LIKELIHOOD_METRICS) else OTHERS.get(key, "")


def metric_texts(metrics: dict[str, float], counts: dict[str, int] | None = None) -> dict[str, str]:
    """Return each metric as text: its value, its standard error, its unit and the number of examples.

    A standard error is the metric ``<name>_error``. It has no separate entry. For example, ``confident`` becomes
    ``64.12 +- 0.48 % (n = 10,000)``, with the sign for plus-minus.

    Args:
        metrics: all metrics. A name may end in conditions of samples, as in ``classifier_fid/eta=1``.
        counts: number of examples of each metric, by name.
    """
    errors = {error_name(name): name for name in metrics}
    plain = {plain_name(name) for name in metrics}
    texts = {}
    for name, value in metrics.items():
        if name in errors:
            continue
        key = plain_name(name)
        error = metrics.get(error_name(name))
        text = with_unit(key, value, plain) if error is None else _with_error(value, error, unit_of(key, plain))
        n = (counts or {}).get(name)
        texts[name] = text if n is None else f"{text} (n = {n:,})"
    return texts


def error_name(name: str) -> str:
    """Return the name of the standard error of a metric, as ``classifier_fid_error/eta=1``."""
    key = plain_name(name)
    return f"{key}_error{name[len(key) :]}"


def _with_error(value: float, error: float, unit: str) -> str:
    """Return a value and its error, with two significant digits of the error. Fractions are in per cent."""
    value, error = (100 * value, 100 * error) if unit == "%" else (value, error)
    if not 0 < error < math.inf:
        return f"{rounded(value)} \u00b1 {rounded(error)} {unit}".rstrip()
    if error < 1e-6:  # as powers of ten, because the decimals would not fit into a line
        return f"{value:.4g} \u00b1 {error:.2g} {unit}".rstrip()
    digits = decimals(error)
    return f"{value:,.{digits}f} \u00b1 {error:,.{digits}f} {unit}".rstrip()


def decimals(error: float) -> int:
    """Return the number of decimals that show two significant digits of a positive number."""
    return max(0, 1 - math.floor(math.log10(float(f"{error:.1e}"))))


def rounded(value: float) -> str:
    """Return a number as text: two decimal places from 10 to 1e6, and four significant digits outside this range."""
    return f"{value:,.2f}" if 10 <= abs(value) < 1e6 else f"{value:.4g}"
