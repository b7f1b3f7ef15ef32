"""Callback that measures the distance between samples and validation data.

The best checkpoint of an adversarial model is the checkpoint with the smallest distance.
"""

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.values import check_integer
from zoo.evaluation.distances import SampleDistanceMetric
from zoo.sampling.chunks import check_conditions, sample_chunks
from zoo.training.ranks import shows_progress


class SampleDistance(L.Callback):
    """Log ``val/distance``, the distance between samples and validation data, at every validation.

    The distance is classifier-FID for images, the energy distance for points, and KL(p_data || p_G) for sequences
    (zoo/evaluation/distances.py). The distance is also logged under a second name, such as ``val/classifier_fid``.
    The classifier was trained on MNIST. For other images, use the distance only to compare epochs, and do not publish
    it.

    Samples use averaged weights if the run has EMA. The same seed gives the same noise in every epoch. The processes
    share the work. The callback does not affect training.

    Args:
        n: number of samples, at least 2. Image samples are compared with all validation images, and points with the
            first ``n`` validation points. The distance of sequences uses no samples.
        seed: seed of the noise, at least 0.

    Raises:
        UserError: if a number is too small. ``setup`` raises it if the model has no ``sample``, or if the run has no
            data module of the zoo with images, points or sequences.
    """

    def __init__(self, n: int = 5000, seed: int = 0):
        check_integer("n", n, least=2)
        check_integer("seed", seed, least=0)
        self.n, self.seed = n, seed
        self._yardstick: SampleDistanceMetric | None = None

    def setup(self, trainer, pl_module, stage):
        check_conditions(pl_module, {})
        if not isinstance(trainer.datamodule, capabilities.SplitData):
            raise UserError(
                "SampleDistance needs a data module of the zoo to compare samples with: train with fit(model, "
                "datamodule=zoo.datamodules.Images(...)), or remove the callback"
            )

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.sanity_checking or batch_idx != 0:
            return
        with isolate_rng():
            part = sample_chunks(
                pl_module, self.n, self.seed, trainer.global_rank, trainer.world_size, shows_progress(trainer)
            )
            self._yardstick = self._yardstick or SampleDistanceMetric(
                trainer.datamodule
            )  # created inside isolate_rng, because it uses random numbers
        samples = trainer.strategy.reduce(part.to(pl_module.device), reduce_op="sum").cpu()
        value = torch.tensor(self._yardstick(pl_module, samples))  # all processes have the same value
        for name in ("distance", self._yardstick.name):
            pl_module.log(f"val/{name}", value, on_epoch=True, batch_size=1, sync_dist=True)
