"""How far the samples are from held-out data while a model trains: what the best checkpoint of a GAN is chosen by."""

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.values import check_whole
from zoo.evaluation.distances import Yardstick
from zoo.sampling.chunks import check_conditions, sample_chunks
from zoo.training.ranks import shows_progress


class SampleDistance(L.Callback):
    """Log ``val/distance`` at every validation, where averaged weights are in place, and leave training as it was.

    Of images it is classifier-FID, of points the energy distance, of sequences the divergence KL(p_data || p_G)
    (zoo/evaluation/distances.py); it is logged by that name, too, such as ``val/classifier_fid``. The judge of images
    knows MNIST alone: of others its distance helps to choose among epochs, and is no number to publish. The same seed
    gives the same noise in every epoch; processes share the drawing.

    Args:
        n: samples, compared with all validation images, or with as many validation points as there are; at least 2.
        seed: of the noise.

    Raises:
        UserError: for numbers below these; at set-up, for a model without ``sample``, or without a data
            module of images or points.
    """

    def __init__(self, n: int = 5000, seed: int = 0):
        check_whole("n", n, least=2)
        check_whole("seed", seed, least=0)
        self.n, self.seed = n, seed
        self._yardstick: Yardstick | None = None

    def setup(self, trainer, pl_module, stage):
        check_conditions(pl_module, {})
        if not isinstance(trainer.datamodule, capabilities.SplitData):
            raise UserError(
                "SampleDistance compares samples with the images of a data module of the zoo: train with fit(model, "
                "datamodule=zoo.datamodules.Images(...)), or leave the callback out"
            )

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.sanity_checking or batch_idx != 0:
            return
        with isolate_rng():
            part = sample_chunks(
                pl_module, self.n, self.seed, trainer.global_rank, trainer.world_size, shows_progress(trainer)
            )
            self._yardstick = self._yardstick or Yardstick(trainer.datamodule)  # loading its judge draws numbers, too
        samples = trainer.strategy.reduce(part.to(pl_module.device), reduce_op="sum").cpu()
        value = torch.tensor(self._yardstick(pl_module, samples))  # each process has measured the same
        for name in ("distance", self._yardstick.name):
            pl_module.log(f"val/{name}", value, on_epoch=True, batch_size=1, sync_dist=True)
