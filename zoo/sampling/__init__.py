"""What comes out of a model: samples in chunks, each with noise of its own, and pictures of them."""

from zoo.checks.moved import names_in

__getattr__ = names_in("zoo.sampling", "zoo.sampling.chunks", "zoo.sampling.pictures", "zoo.functional.noise")
