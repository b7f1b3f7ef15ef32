"""Entries of a card: the metrics with their protocol, the stored weights, and the checkpoints that were replaced."""

from typing import Any

from zoo.checks import capabilities
from zoo.datamodules.access import name_of, size_of
from zoo.evaluation.errors import Measured, Moved
from zoo.evaluation.protocol import SAMPLES_OF_ADVERSARIES, Protocol
from zoo.hub.packing import Packed

# Entries of a replaced card that ``previous`` of the new card keeps, next to those that no export writes.
KEPT = ("metrics", "errors", "command", "commit", "seed", "epochs", "steps", "seconds", "hardware", "earlier", "sha256")
SAME_RUN = ("command", "commit", "seed", "steps", "seconds")  # cards of one run agree in these entries
WORDS_PROTOCOL = (
    "metrics: scores of the published vectors on public sets of analogies and similarities (zoo/evaluation/words.py). "
    "whole_model: metrics of the test loop with all trained words and output vectors (units in zoo/skipgram.py)"
)


def measurements(found: Measured, model: Any, kind: str, data: Any) -> dict[str, Any]:
    """Return the entries of a card that a measurement writes. ``kind`` is the name of the model."""
    if isinstance(model, capabilities.Words):
        protocol = WORDS_PROTOCOL
    else:
        protocol = (
            f"the model's test_step on all {size_of(data, 'test'):,} test examples of {name_of(data)}, with noise "
            f"seeded by batch index; units in zoo/{kind}.py"
        )
    return {
        "metrics": found.metrics,
        "errors": found.errors,
        "protocol": protocol,
        "log_likelihood": found.evidence.get("log_likelihood"),
        "bound": found.evidence.get("bound"),
        "samples": found.evidence.get("samples"),
        "counts": found.evidence.get("counts"),
    }


def storage(packed: Packed, rounding: dict[str, Moved] | None) -> dict[str, Any]:
    """Return the entries of a card about the file of weights, and about the comparison of its metrics with float32."""
    compared = {
        name: {"float32": found.exact, "float16": found.stored, "error": found.error}
        for name, found in (rounding or {}).items()
    }
    return {
        "stored_as": packed.stored_as,
        "kept": list(packed.kept) or None,
        "rounding": compared or None,
        "sha256": packed.digest,
    }


def protocol_of(card: dict[str, Any]) -> Protocol:
    """Return the protocol of the metrics on a card. An empty card has the default protocol."""
    likelihood, bound, samples = (card.get(key) or {} for key in ("log_likelihood", "bound", "samples"))
    conditions = tuple(samples.get("conditions", [{}]))
    return Protocol(likelihood.get("num_samples", 0), bound.get("images", 0), samples.get("n"), conditions)


def previous(replaced: dict[str, Any], card: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entry ``previous`` of a card: what is known of the checkpoints that it replaced, the newest last.

    Each element has the entries ``KEPT`` of a card, and all entries that no export writes. ``log_likelihood``,
    ``bound`` and ``samples`` have the form of a card, without intermediate values. An export of the same run adds no
    element, because its metrics are of the same weights.

    Args:
        replaced: the card of the replaced checkpoint.
        card: the new card.
    """
    earlier = replaced.get("previous", [])
    if all(replaced.get(key) == card[key] for key in SAME_RUN):
        return earlier
    protocol = protocol_of(replaced)
    # Early cards of adversarial models do not name the number of samples.
    adversarial = any(name in replaced["metrics"] for name in ("classifier_fid", "energy_distance", "kl"))
    samples = protocol.samples or (SAMPLES_OF_ADVERSARIES if adversarial else 0)
    amounts = {
        "log_likelihood": {"num_samples": protocol.importance_samples} if protocol.importance_samples else None,
        "bound": {"images": protocol.bound_images} if protocol.bound_images else None,
        "samples": {"n": samples, "conditions": list(protocol.conditions)} if samples else None,
    }
    kept = {key: value for key, value in replaced.items() if key in KEPT or key not in (*card, "previous")}
    return [*earlier, kept | amounts]
