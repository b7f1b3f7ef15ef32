"""Samples of a model, drawn in chunks with separate noise, and pictures of samples."""

from zoo.checks.moved import names_in

__getattr__ = names_in("zoo.sampling", "zoo.sampling.chunks", "zoo.sampling.pictures", "zoo.functional.noise")
