"""Numbers of a run as people read them: rounded, with their units."""

NATS = {
    *("nll", "kl", "kl_z", "kl_c", "log_likelihood", "pseudo_likelihood", "free_energy_gap", "log_Z", "log_Z_sd"),
    *("log_partition", "log_partition_low", "log_partition_high", "log_partition_base_rate", "log_partition_coins"),
    *("log_partition_exact", "js", "mi_categorical", "mi_continuous", "mi_ceiling", "discriminator_loss", "value"),
}
FRACTIONS = {"accuracy", "judged_accuracy", "feature_accuracy", "confident", "near_a_mode"}
OTHERS = {"reconstruction_error": "squared pixels", "bits_per_dim": "bits per dimension"}
OF_LIKELIHOODS = {"nll", "log_partition", "accuracy"}  # what is logged beside a loss that is in nats


def with_unit(name: str, value: float, names: set[str]) -> str:
    """A number of a run, rounded, with its unit where it has one.

    Args:
        name: of the metric, such as ``test/loss``.
        value: as it was logged.
        names: of all metrics that are logged beside it, which tell a loss in nats from others.
    """
    stage, _, key = name.rpartition("/")
    if key in FRACTIONS:
        return f"{100 * value:.1f} %"
    beside = {other.rpartition("/")[2] for other in names if other.rpartition("/")[0] == stage}
    unit = "nats" if key in NATS or (key == "loss" and beside & OF_LIKELIHOODS) else OTHERS.get(key, "")
    if key.endswith("_per_second"):
        unit = f"{key.removesuffix('_per_second')} per second"
    return f"{rounded(value)} {unit}".rstrip()


def rounded(value: float) -> str:
    """Two places after the point, or of small numbers four figures."""
    return f"{value:,.2f}" if 10 <= abs(value) < 1e6 else f"{value:.4g}"
