"""log p(x) on held-out images while a model trains: the one curve that different objectives share."""

from lightning.pytorch.utilities.seed import isolate_rng

from zoo.callbacks.cadence import AtEpochs
from zoo.checks.values import check_whole
from zoo.evaluation.protocol import check_importance_weighted, log_likelihood
from zoo.functional.noise import chunk_generator


class LogLikelihood(AtEpochs):
    """Log ``val/log_likelihood``: the importance-weighted log p(x) of validation images, nats per image.

    A model trained on the ELBO and one trained on a tighter bound report losses that do not compare; this does. The
    noise is the same at every epoch, and training is not touched.

    Args:
        every_n_epochs: how often; the last epoch is always measured.
        num_samples: importance samples per image.
        batches: validation batches to use, from the first on.
        seed: of the noise.

    Raises:
        UserError: for numbers below 1; at set-up, for a model without ``log_likelihood``.
    """

    def __init__(self, every_n_epochs: int = 10, num_samples: int = 100, batches: int = 2, seed: int = 0):
        super().__init__(every_n_epochs)
        for key, value in {"num_samples": num_samples, "batches": batches}.items():
            check_whole(key, value)
        check_whole("seed", seed, least=0)
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
