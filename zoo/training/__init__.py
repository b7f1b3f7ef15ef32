"""How a model is trained, beside the model: the trainer, turns of two players, processes, files, the command line."""
