"""When a callback that draws or measures at some epochs is to do so."""


def due(trainer, every_n_epochs: int) -> bool:
    """Whether the epoch at hand is one of every so many, or the last; never in the sanity check before training."""
    epoch = trainer.current_epoch + 1
    return not trainer.sanity_checking and (epoch == trainer.max_epochs or epoch % every_n_epochs == 0)
