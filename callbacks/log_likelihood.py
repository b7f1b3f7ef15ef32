"""Callback that measures log p(x) of validation images during training."""

from lightning.pytorch.utilities.seed import isolate_rng

from zoo.callbacks.cadence import AtEpochs
from zoo.checks.values import check_integer
from zoo.evaluation.bounds import check_importance_weighted, log_likelihood
from zoo.functional.noise import chunk_generator


class LogLikelihood(AtEpochs):
    """Log ``val/log_likelihood``, the importance-weighted log p(x) of validation images, in nats per image.

    The losses of models that are trained on different bounds, such as the ELBO and a tighter bound, cannot be
    compared. The values of this metric can be compared. The noise is the same in every epoch. The callback does not
    affect training.

    Args:
        every_n_epochs: epochs between measurements. The last epoch is always measured.
        num_samples: importance samples per image.
        batches: number of validation batches to use, starting with the first.
        seed: seed of the noise, at least 0.

    Raises:
        UserError: if a number is too small. ``setup`` raises it if the model has no importance-weighted
            log p(x).
    """

    def __init__(self, every_n_epochs: int = 10, num_samples: int = 100, batches: int = 2, seed: int = 0):
        super().__init__(every_n_epochs)
        for key, value in {"num_samples": num_samples, "batches": batches}.items():
            check_integer(key, value)
        check_integer("seed", seed, least=0)
        self.num_samples, self.batches, self.seed = num_samples, batches, seed

    def setup(self, trainer, pl_module, stage):
        check_importance_weighted(pl_module)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx >= self.batches or not self.due(trainer):
            return
        generator = chunk_generator(self.seed + trainer.global_rank, batch_idx)
        with isolate_rng():
            values = log_likelihood(pl_module, batch, self.num_samples, generator=generator)
        pl_module.log("val/log_likelihood", values.mean(), on_epoch=True, sync_dist=True, batch_size=len(values))
