"""Callback that measures the distance between samples and validation data.

The best checkpoint of an adversarial model is the checkpoint with the smallest distance.
"""

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.pixels import as_batch
from zoo.checks.values import check_integer
from zoo.evaluation.distances import MOST_IMAGES, SampleDistanceMetric
from zoo.sampling.chunks import check_conditions, sample_chunks
from zoo.training.ranks import all_rows, shows_progress


class SampleDistance(L.Callback):
    """Log ``val/distance``, the distance between samples and validation data, at every validation.

    The kind of data selects the distance (zoo/evaluation/distances.py):

    - classifier-FID for MNIST, Fashion-MNIST and the digits. The first two have a classifier each. The digits have the
      classifier of MNIST. Use their distance only to compare epochs, and do not publish it.
    - the energy distance of pixels for all other images, to compare epochs
    - the energy distance for points
    - KL(p_data || p_G) for sequences

    The distance is also logged under a second name, such as ``val/classifier_fid``.

    Samples use averaged weights if the run has EMA. The same seed gives the same noise in every epoch. The processes
    share the work. The callback does not affect training.

    Args:
        n: number of samples, at least 2. For classifier-FID, they are compared with all validation images. For the
            energy distance of pixels, at most 5,000 samples are compared with at most 5,000 validation images. Points
            are compared with the first ``n`` validation points. The distance of sequences uses no samples. Without a
            data module of the zoo, the validation images are the first ones of the first validation, at most 5,000.
        seed: seed of the noise, at least 0.

    Raises:
        UserError: if a number is too small. ``setup`` raises it if the model has no ``sample``, or if there are fewer
            than two validation examples.
    """

    def __init__(self, n: int = 5000, seed: int = 0):
        check_integer("n", n, least=2)
        check_integer("seed", seed, least=0)
        self.n, self.seed = n, seed
        self._yardstick: SampleDistanceMetric | None = None
        self._real: list[Tensor] = []  # validation images of this process, if only a loader has them
        self._samples: Tensor | None = None

    def setup(self, trainer, pl_module, stage):
        check_conditions(pl_module, {})
        data = trainer.datamodule
        if isinstance(data, capabilities.SplitData) and len(data.splits["val"].images) < 2:
            raise UserError("SampleDistance compares samples with validation images, which must be at least 2")

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.sanity_checking:
            return
        if batch_idx == 0:
            self._samples = self._draw(trainer, pl_module)
            if isinstance(trainer.datamodule, capabilities.SplitData):
                if self._yardstick is None:
                    with isolate_rng():  # the metric uses random numbers when it is created
                        self._yardstick = SampleDistanceMetric(trainer.datamodule, device=pl_module.device)
                self._log(pl_module, self._yardstick, self._samples)
                self._samples = None
        if self._yardstick is None and sum(map(len, self._real)) * trainer.world_size < MOST_IMAGES:
            self._real.append(as_batch(batch)[0].detach().cpu())

    def on_validation_epoch_end(self, trainer, pl_module):
        if self._samples is None:
            return
        if self._yardstick is None:  # the loader has been read once now
            real = all_rows(torch.cat(self._real).to(pl_module.device), trainer).cpu()
            with isolate_rng():
                self._yardstick = SampleDistanceMetric(None, real=real, device=pl_module.device)
            self._real = []
        self._log(pl_module, self._yardstick, self._samples)
        self._samples = None

    def _draw(self, trainer, pl_module) -> Tensor:
        """Return the samples of all processes, on the CPU."""
        with isolate_rng():
            part = sample_chunks(
                pl_module, self.n, self.seed, trainer.global_rank, trainer.world_size, shows_progress(trainer)
            )
        return trainer.strategy.reduce(part.to(pl_module.device), reduce_op="sum").cpu()

    def _log(self, pl_module, yardstick: SampleDistanceMetric, samples: Tensor) -> None:
        value = torch.tensor(yardstick(pl_module, samples))  # all processes have the same value
        for name in ("distance", yardstick.name):
            pl_module.log(f"val/{name}", value, on_epoch=True, batch_size=1, sync_dist=True)
