"""Formatting of metrics: rounded, with units."""

NATS = {
    *("nll", "kl", "kl_z", "kl_c", "log_likelihood", "pseudo_likelihood", "free_energy_gap", "log_Z", "log_Z_sd"),
    *("log_partition", "log_partition_low", "log_partition_high", "log_partition_base_rate", "log_partition_coins"),
    *("log_partition_exact", "js", "mi_categorical", "mi_continuous", "mi_ceiling", "discriminator_loss", "value"),
}
FRACTIONS = {"accuracy", "judged_accuracy", "feature_accuracy", "confident", "near_a_mode"}
FRACTIONS |= {"analogies", "semantic", "syntactic", "coverage"}  # metrics on the published word sets
OTHERS = {"reconstruction_error": "squared pixels", "bits_per_dim": "bits per dimension", "bpd": "bits per dimension"}
LIKELIHOOD_METRICS = {"nll", "log_partition", "accuracy"}  # next to one of these, a loss is in nats


def plain_name(name: str) -> str:
    """Return the name of a metric without conditions: ``classifier_fid`` for ``classifier_fid/eta=1``."""
    return "/".join(part for part in name.split("/") if "=" not in part)


def with_unit(name: str, value: float, names: set[str]) -> str:
    """Return a metric as text. The value is rounded, and the unit follows if the metric has a unit.

    Args:
        name: name of the metric, such as ``test/loss``.
        value: logged value.
        names: names of all metrics of the run, which decide whether ``loss`` is in nats.
    """
    stage, _, key = name.rpartition("/")
    if key in FRACTIONS:
        return f"{100 * value:.1f} %"
    beside = {other.rpartition("/")[2] for other in names if other.rpartition("/")[0] == stage}
    unit = "nats" if key in NATS or (key == "loss" and beside & LIKELIHOOD_METRICS) else OTHERS.get(key, "")
    if key.endswith("_per_second"):
        unit = f"{key.removesuffix('_per_second')} per second"
    return f"{rounded(value)} {unit}".rstrip()


def rounded(value: float) -> str:
    """Return a number as text: two decimal places from 10 to 1e6, and four significant digits outside this range."""
    return f"{value:,.2f}" if 10 <= abs(value) < 1e6 else f"{value:.4g}"
