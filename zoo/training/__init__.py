"""Code that all models share in training: the trainer, adversarial steps, processes, files and the command line."""
