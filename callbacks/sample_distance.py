"""Callback that measures the distance between samples and validation data.

The best checkpoint of an adversarial model is the checkpoint with the smallest distance.
"""

import inspect
import re
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchmetrics import Metric

from zoo.callbacks.pruning import Pruning
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.inputs import shape_of
from zoo.checks.pixels import as_batch
from zoo.checks.values import check_integer
from zoo.datamodules.access import split_of
from zoo.datamodules.splits import as_floats
from zoo.evaluation.chosen_metrics import GROWING, METRICS, chosen_metric, keeps_real_images, update_metric, values_of
from zoo.evaluation.distances import MOST_IMAGES, SampleDistanceMetric
from zoo.sampling.chunks import check_conditions, sample_chunks
from zoo.training.ranks import all_rows, shows_progress

DISTANCE = "distance"  # logged as val/distance, the smaller the better


class SampleDistance(L.Callback):
    """Log ``val/distance``, the distance between samples and validation data, at every validation.

    With ``metric="auto"``, the kind of data selects the distance (zoo/evaluation/distances.py):

    - classifier-FID for MNIST, Fashion-MNIST and the digits. The first two have a classifier each. The digits have the
      classifier of MNIST. Use their distance only to compare epochs, and do not publish it.
    - the energy distance of pixels for all other images, to compare epochs
    - the energy distance for points
    - KL(p_data || p_G) for sequences

    The distance is also logged under a second name, such as ``val/classifier_fid``.

    A metric that grows as samples improve, such as ``recall``, is logged only under its own name, ``val/recall``. A
    checkpoint that it chooses needs ``monitor=val/recall`` and ``mode=max``. If a run has several of these callbacks,
    the first one whose metric falls logs ``val/distance``.

    Samples use averaged weights if the run has EMA. The same seed gives the same noise in every epoch. The processes
    share the work. The callback does not affect training.

    Args:
        n: number of samples, at least 2, or 6 for a metric that grows. With ``auto``, they are compared with all
            validation images for classifier-FID. For the energy distance of pixels, at most 5,000 samples are compared
            with at most 5,000 validation images. Points are compared with the first ``n`` validation points. The
            distance of sequences uses no samples. Without a data module of the zoo, the validation images are the first
            ones of the first validation, at most 5,000. All other metrics compare ``n`` samples with the first ``n``
            validation images, or with all if there are fewer.
        seed: seed of the noise, at least 0.
        metric: ``auto``, a name in ``zoo.evaluation.chosen_metrics.METRICS``, or a torchmetrics Metric with
            ``update(images, real=...)``. Images are floats in [0, 1]. Metrics of torchmetrics with ``normalize=False``
            get bytes instead.

    Raises:
        UserError: if a number is too small, or there is no such metric. ``setup`` raises it in three cases. The model
            has no ``sample``. There are fewer than two validation examples. The metric does not suit the data, or the
            monitor of another callback.
    """

    def __init__(self, n: int = 5000, seed: int = 0, metric: str | Metric = "auto"):
        check_integer("seed", seed, least=0)
        if isinstance(metric, Metric) and "real" not in inspect.signature(metric.update).parameters:
            raise UserError(f"metric must have update(images, real=...), and {type(metric).__name__} has not")
        if not isinstance(metric, Metric) and metric not in ("auto", *METRICS):
            raise UserError(
                f"metric must be auto, {', '.join(METRICS)}, or a torchmetrics Metric with update(images, real=...); "
                f"got {metric!r}"
            )
        self.n, self.seed, self.metric = n, seed, metric
        check_integer("n", n, least=6 if self.name in GROWING else 2)  # more than the neighbours that set a radius
        self._metric: Metric | None = None  # None for auto
        self._yardstick: SampleDistanceMetric | None = None
        self._real: list[Tensor] = []  # validation images of this process, if only a loader has them
        self._all_real: Tensor | None = None  # validation images of all processes, for a metric that is not auto
        self._has_real = False  # whether a metric that keeps the real images has them
        self._samples: Tensor | None = None

    @property
    def name(self) -> str | None:
        """Name of the metric, such as ``recall`` or ``frechet_inception_distance``. None for ``auto``."""
        # The comparison of a Metric with a text would be another Metric.
        if isinstance(self.metric, Metric):
            return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self.metric).__name__).lower()
        return None if self.metric == "auto" else self.metric

    @property
    def grows(self) -> bool | None:
        """Whether the metric grows as samples improve. None if a Metric of the user does not say this."""
        if isinstance(self.metric, Metric):
            return self.metric.higher_is_better
        return self.metric in GROWING

    def setup(self, trainer, pl_module, stage):
        check_conditions(pl_module, {})
        data = trainer.datamodule
        if isinstance(data, capabilities.SplitData) and len(data.splits["val"].images) < 2:
            raise UserError("SampleDistance compares samples with validation images, which must be at least 2")
        if self.name is None or self._metric is not None:
            return
        if self.n < trainer.world_size:
            raise UserError(f"n must be at least {trainer.world_size}, the number of processes, got {self.n}")
        check_monitors(self, trainer.callbacks)
        with isolate_rng():
            self._metric = chosen_metric(self.metric, data, shape_of(pl_module))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.sanity_checking:
            return
        if batch_idx == 0:
            self._samples = self._draw(trainer, pl_module)
            if isinstance(trainer.datamodule, capabilities.SplitData):
                self._measure(trainer, pl_module, self._samples)
                self._samples = None
        if self._needs_images and sum(map(len, self._real)) * trainer.world_size < self._most:
            self._real.append(as_batch(batch)[0].detach().cpu())

    def on_validation_epoch_end(self, trainer, pl_module):
        if self._samples is None:
            return
        if self._needs_images:  # the loader has been read once now
            real = all_rows(torch.cat(self._real).to(pl_module.device), trainer).cpu()
            self._real = []
            if self._metric is not None:
                self._all_real = real[: self.n]
            else:
                with isolate_rng():
                    self._yardstick = SampleDistanceMetric(None, real=real, device=pl_module.device)
        self._measure(trainer, pl_module, self._samples)
        self._samples = None

    @property
    def _needs_images(self) -> bool:
        return self._yardstick is None and self._all_real is None

    @property
    def _most(self) -> int:
        """Most validation images to collect from a loader."""
        return MOST_IMAGES if self._metric is None else self.n

    def _draw(self, trainer, pl_module) -> Tensor:
        """Return the samples of all processes, on the CPU."""
        with isolate_rng():
            part = sample_chunks(
                pl_module, self.n, self.seed, trainer.global_rank, trainer.world_size, shows_progress(trainer)
            )
        return trainer.strategy.reduce(part.to(pl_module.device), reduce_op="sum").cpu()

    def _measure(self, trainer, pl_module, samples: Tensor) -> None:
        if self._metric is not None:
            self._log_metric(trainer, pl_module, self._metric, samples)
            return
        if self._yardstick is None:
            with isolate_rng():  # the metric uses random numbers when it is created
                self._yardstick = SampleDistanceMetric(trainer.datamodule, device=pl_module.device)
        self._log(pl_module, {self._yardstick.name: self._yardstick(pl_module, samples)}, trainer.callbacks)

    def _log_metric(self, trainer, pl_module, metric: Metric, samples: Tensor) -> None:
        """Measure with a torchmetrics Metric. Each process gives it a part of the images."""
        if self._all_real is None:
            self._all_real = split_of(trainer.datamodule, "val", self.n).images
        device = pl_module.device if pl_module.device.type == "cuda" else "cpu"  # other devices may lack float64
        rows = torch.arange(trainer.global_rank, len(self._all_real), trainer.world_size)
        with isolate_rng():
            torch.manual_seed(self.seed)  # some metrics draw subsets
            metric.to(device).reset()
            if not (self._has_real and keeps_real_images(metric)):
                update_metric(metric, as_floats(self._all_real[rows]), real=True)
                self._has_real = True
            update_metric(metric, samples[trainer.global_rank :: trainer.world_size], real=False)
            values = values_of(metric, str(self.name))  # torchmetrics collects the parts of all processes
        self._log(pl_module, values, trainer.callbacks)

    def _log(self, pl_module, values: dict[str, float], callbacks: list[Any]) -> None:
        """Log named values, of which the first is the distance."""
        if self is first_distance(callbacks):
            values = values | {DISTANCE: next(iter(values.values()))}
        for name, value in values.items():  # all processes have the same value
            pl_module.log(f"val/{name}", torch.tensor(value), on_epoch=True, batch_size=1, sync_dist=True)


def first_distance(callbacks: list[Any]) -> "SampleDistance | None":
    """Return the first callback that logs ``val/distance``: its metric falls as samples improve."""
    return next((c for c in callbacks if isinstance(c, SampleDistance) and c.grows is False), None)


def check_monitors(callback: SampleDistance, callbacks: list[Any]) -> None:
    """Check that no callback takes the largest distance or the smallest recall for the best one.

    Args:
        callback: the callback that measures.
        callbacks: all callbacks of the run.

    Raises:
        UserError: if a monitor needs ``val/distance``, which no callback logs, or if its mode does not suit the metric.
            Also if two callbacks log the same name.
    """
    name, mode = f"val/{callback.name}", "max" if callback.grows else "min"
    if sum(c.name == callback.name for c in callbacks if isinstance(c, SampleDistance)) > 1:
        raise UserError(f"two SampleDistance callbacks log {name}: remove one of them")
    for other in callbacks:
        if not isinstance(other, ModelCheckpoint | EarlyStopping | Pruning):
            continue
        monitor, given = other.monitor, vars(other).get("mode")  # Pruning takes the mode of the search
        if monitor == "val/distance" and first_distance(callbacks) is None:
            why = "grows as samples improve" if callback.grows else "does not say whether it grows (higher_is_better)"
            raise UserError(
                f"{type(other).__name__} has monitor=val/distance, and metric={callback.name} {why}. It is logged only "
                f"as {name}: set monitor={name} and {'mode=max' if callback.grows else 'its mode'} (for zoo train, "
                "callbacks.best.monitor and callbacks.best.mode), or choose another metric"
            )
        if monitor == name and callback.grows is not None and given not in (None, mode):
            raise UserError(f"{type(other).__name__} has monitor={name} and mode={given}: set mode={mode}")
