"""Code that all models share in training: the trainer, adversarial steps, processes, files and the command line."""

from zoo.checks.moved import names_in

__getattr__ = names_in("zoo.training")
