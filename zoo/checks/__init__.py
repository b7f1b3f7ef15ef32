"""Checks of values, labels, images and checkpoints, with their error messages, and the capabilities of models."""

from zoo.checks.moved import names_in

__getattr__ = names_in("zoo.checks")
