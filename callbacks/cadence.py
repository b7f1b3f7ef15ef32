"""At which epochs a callback draws or measures."""


def due(trainer, every_n_epochs: int) -> bool:
    """Whether this epoch is a multiple of ``every_n_epochs`` or the last. False in the sanity check before training."""
    epoch = trainer.current_epoch + 1
    return not trainer.sanity_checking and (epoch == trainer.max_epochs or epoch % every_n_epochs == 0)
