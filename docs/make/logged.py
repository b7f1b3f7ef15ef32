"""The metrics that each model logs, and what they mean.

A metric is logged as ``stage/name`` in its stages. Where the header of the model's file has a row for a metric, the
meaning comes from this row. The RBM has these rows in the docstring of ``validation_terms``. Callbacks log further
metrics.
"""

import ast
import re
from typing import NamedTuple

import equations
import header

ALL, EVALUATION, TRAINING = ("train", "val", "test"), ("val", "test"), ("train",)
LIKELIHOOD = {
    "loss": (ALL, "minus the bound of log p(x), which training minimises, nats per example"),
    "nll": (ALL, "reconstruction term of the bound, -E_q log p(x | z), nats per example"),
    "bpd": (EVALUATION, "minus the bound in bits per dimension; only with likelihoods of 8-bit pixels"),
}
KL = {"kl": (ALL, "divergence of q(z | x) from the prior, nats per example")}
CLUSTERS = {
    "accuracy": (EVALUATION, "fraction of images in the cluster of their label, under the best assignment"),
    "nmi": (EVALUATION, "normalised mutual information of clusters and labels"),
    "ari": (EVALUATION, "adjusted Rand index of clusters and labels"),
}
ADVERSARIAL = {"discriminator_loss": (ALL, ""), "generator_loss": (ALL, "")}
PROBABILITIES = {"D_x": (ALL, ""), "D_G_z": (ALL, ""), "value": (ALL, ""), "js": (ALL, "")}

# {model: {metric: (stages, meaning)}}. An empty meaning is in a docstring.
LOGGED: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {
    "vae": LIKELIHOOD
    | KL
    | {
        "wake": (TRAINING, "loss of the decoder, nats per example; only with objective=wake_sleep"),
        "sleep": (TRAINING, "loss of the encoder, nats per example; only with objective=wake_sleep"),
        "baseline": (TRAINING, "squared error of NVIL's baseline; only with estimator=score_function+nvil"),
        "control": (TRAINING, "mean squared gradient by the logits of q; only with rebar and relax"),
    },
    "cvae": LIKELIHOOD | KL,
    "vade": {
        **LIKELIHOOD,
        "loss": (ALL, "train: minus the mean field; val and test: -ELBO; nats per example"),
        "kl_z": (ALL, "E_q[ log q(z|x) - sum_c gamma_c log p(z|c) ], nats per example"),
        "kl_c": (ALL, "E_q KL( gamma || pi ), nats per example"),
        "reconstruction": (TRAINING, "loss of the autoencoder, nats per example; only in pretraining"),
        **CLUSTERS,
    },
    "gan": ADVERSARIAL | PROBABILITIES | {"log_likelihood": (EVALUATION, "")},
    "wgan": dict.fromkeys(("wasserstein", "critic_loss", "generator_loss", "penalty", "lipschitz"), (ALL, "")),
    "infogan": {
        "discriminator_loss": (ALL, "-V, nats"),
        "generator_loss": (ALL, "loss of the generator and of Q, with -lambda L_I, nats"),
        "D_x": (ALL, "mean of D(x)"),
        "D_G_z": (ALL, "mean of D(G(z, c))"),
        "value": (ALL, "V, nats"),
        "js": (ALL, "(V + log 4) / 2, nats; the Jensen-Shannon divergence if D is optimal"),
        "mi_categorical": (ALL, "part of L_I for the category, nats"),
        "mi_continuous": (ALL, "part of L_I for the continuous code, nats"),
        "mi_ceiling": (EVALUATION, "log K, the largest possible mi_categorical, nats"),
        **CLUSTERS,
    },
    "ddpm": {"loss": (ALL, "squared error of the prediction, averaged over dimensions")},
    "score": {"loss": (ALL, "weighted objective per dimension, without its constant")},
    "rbm": {
        "loss": (ALL, "train: mean F(v) - mean F(v'), or -log p(v) for learning=exact; val and test: -log p(v); nats"),
        "pseudo_likelihood": (EVALUATION, ""),
        "bits_per_dim": (EVALUATION, ""),
        "reconstruction_error": (EVALUATION, ""),
        "free_energy_gap": (("val",), "mean F of validation images minus mean F of 1,000 training images, nats"),
        **{f"log_partition{end}": (EVALUATION, "") for end in ("", "_low", "_high", "_base_rate", "_coins", "_broad")},
    },
    "skipgram": {
        "loss": (ALL, ""),
        "nll": (EVALUATION, ""),
        "perplexity": (EVALUATION, "exp(nll)"),
        "log_Z": (EVALUATION, ""),
        "log_Z_sd": (EVALUATION, "standard deviation of log Z_c over centres, nats"),
    },
}


class Metric(NamedTuple):
    """A logged metric: its name, the stages that log it, and its meaning in plain text."""

    name: str
    stages: tuple[str, ...]
    meaning: str


def _of_partition() -> dict[str, str]:
    """Return the meanings in the docstring of ``validation_terms``, which computes the metrics of an RBM."""
    _, function = equations.find("partition.validation_terms", "rbm")
    return dict(header.rows((ast.get_docstring(function) or "").partition("Returns:\n")[2].splitlines()))


def of(model: str) -> list[Metric]:
    """Return the metrics that ``model`` logs.

    Raises:
        ValueError: if a metric has no meaning.
    """
    meanings = dict(header.rows(header.read(model).logged)) | (_of_partition() if model == "rbm" else {})
    found = [Metric(name, stages, text or meanings.get(name, "")) for name, (stages, text) in LOGGED[model].items()]
    if lost := [metric.name for metric in found if not metric.meaning]:
        raise ValueError(f"{model}: {', '.join(lost)} has no meaning; add a row to the header of zoo/{model}.py")
    return [metric._replace(meaning=re.sub(r"\s+", " ", metric.meaning)) for metric in found]
