"""Evaluation of trained models: the published numbers and figures."""

from zoo.checks.moved import names_in

__getattr__ = names_in(
    "zoo.evaluation",
    "zoo.evaluation.protocol",
    "zoo.evaluation.samples",
    "zoo.evaluation.bounds",
    "zoo.functional.importance",
    "zoo.functional.clusters",
)
