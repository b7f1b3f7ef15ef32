"""Checks of values, labels, images and checkpoints, with their error messages, and the capabilities of models."""
