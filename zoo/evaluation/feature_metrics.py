"""Metrics of torchmetrics that compare real and generated images in the features of any network.

They have the interface of torchmetrics' FrechetInceptionDistance:

    metric = ClassifierFID(zoo.load("classifier"))
    metric.update(real_images, real=True)
    metric.update(samples, real=False)
    metric.compute()

The states are features. They are gathered over processes, so the result is that of one process with all images.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from zoo.checks.errors import UserError
from zoo.checks.values import check_flag, check_integer
from zoo.evaluation.classifier import Classifier
from zoo.evaluation.estimates import with_errors
from zoo.evaluation.frechet import frechet_distance
from zoo.evaluation.kernels import kid
from zoo.evaluation.manifolds import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS, density_coverage, precision_recall
from zoo.functional.precision import in_float64


class FeatureMetric(Metric):
    """Base class: collects the features of real and generated images.

    The network is not a submodule of the metric. Checkpoints of a model with this metric do not contain the network,
    optimisers do not see its parameters, and ``train()`` does not change its mode.

    Args:
        features: a :class:`zoo.evaluation.classifier.Classifier`, such as ``zoo.load("classifier")``, or a function of
            images (B, C, H, W) in [0, 1] that returns features (B, F). A module is set to eval mode. It moves to the
            device of the images.
        reset_real_features: whether ``reset`` also forgets the real images. False keeps them for the next epoch.
        kwargs: arguments of ``torchmetrics.Metric``.

    Raises:
        UserError: if ``features`` cannot be called.
    """

    is_differentiable = False
    full_state_update = False

    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, features: Callable[[Tensor], Tensor], reset_real_features: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        check_flag("reset_real_features", reset_real_features)
        if not callable(features):
            raise UserError(f"features must be a function of images or a classifier, got {features!r}")
        # The method of a module is stored and not the module. torch would register the module as a submodule.
        self.move: Callable[..., Any] | None = features.eval().to if isinstance(features, nn.Module) else None
        self.features = features.features if isinstance(features, Classifier) else features.__call__
        self.reset_real_features = reset_real_features
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("fake_features", [], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, images: Tensor, real: bool) -> None:
        """Add images.

        Args:
            images: images in [0, 1], (B, C, H, W), of a floating-point type.
            real: whether the images are real or generated.

        Raises:
            UserError: if the images are integers, or the features are not a matrix with one row for each image.
        """
        if not images.is_floating_point():
            raise UserError(f"images must be floating-point numbers in [0, 1], got {images.dtype}: divide by 255")
        if self.move is not None:
            self.move(images.device)
        with torch.autocast(images.device.type, enabled=False):  # features in 16 bits would change the distances
            features = self.features(images.float())
        if features.dim() != 2 or len(features) != len(images):
            raise UserError(f"features of {len(images)} images must have shape (B, F), got {list(features.shape)}")
        (self.real_features if real else self.fake_features).append(features)

    def reset(self) -> None:
        """Forget the images. With ``reset_real_features=False``, keep the real images."""
        kept = list(self.real_features)  # torchmetrics empties the list itself
        super().reset()
        if not self.reset_real_features:
            self.real_features = kept

    def _sync_dist(self, dist_sync_fn: Callable = gather_all_tensors, process_group: Any = None) -> None:
        """Gather the features. torchmetrics cannot gather matrices if a process has no image of one kind."""
        states = self.real_features, self.fake_features
        width = torch.tensor(max((f.shape[1] for state in states for f in state), default=0), device=self.device)
        widths = dist_sync_fn(width, group=process_group or self.process_group)
        for state in states:
            if not state:
                state.append(torch.zeros(0, int(torch.stack(widths).max()), device=self.device))
        super()._sync_dist(dist_sync_fn, process_group)

    def _both(self, least: int) -> tuple[Tensor, Tensor]:
        """Return all real features (N, F) and fake features (M, F), in float64.

        Raises:
            UserError: if N or M is below ``least``.
        """
        found = []
        for kind, state in (("real", self.real_features), ("generated", self.fake_features)):
            number = sum(map(len, state)) if isinstance(state, list) else len(state)
            check_integer(f"the number of {kind} images", number, least=least)
            found.append(in_float64(dim_zero_cat(state)))
        return found[0], found[1]

    def _scalar(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=self.device)


class ClassifierFID(FeatureMetric):
    """Frechet distance of real and generated images in the features of a network. A smaller distance is better.

    With the zoo's classifier, this is the classifier-FID of cards. See :class:`FeatureMetric` for the arguments.
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the distance, a scalar. It needs at least two images of each kind."""
        real, fake = self._both(least=2)
        return self._scalar(frechet_distance(fake, real))


class ClassifierKID(FeatureMetric):
    """Kernel distance of real and generated images in the features of a network. A smaller distance is better.

    See :func:`zoo.evaluation.kernels.kid` for the estimate, and :class:`FeatureMetric` for the arguments.
    """

    higher_is_better = False

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the distance and its standard error, two scalars. Each kind needs at least two images."""
        value, error = kid(*self._both(least=2))
        return self._scalar(value), self._scalar(error)


class PrecisionRecallDensityCoverage(FeatureMetric):
    """Precision, recall, density and coverage of generated images in the features of a network. Larger is better.

    See zoo/evaluation/manifolds.py for the definitions.

    Args:
        features: see :class:`FeatureMetric`.
        precision_neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.
        reset_real_features: see :class:`FeatureMetric`.
        kwargs: arguments of ``torchmetrics.Metric``.
    """

    higher_is_better = True

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        precision_neighbours: int = PRECISION_NEIGHBOURS,
        density_neighbours: int = DENSITY_NEIGHBOURS,
        reset_real_features: bool = True,
        **kwargs: Any,
    ):
        super().__init__(features, reset_real_features, **kwargs)
        check_integer("precision_neighbours", precision_neighbours)
        check_integer("density_neighbours", density_neighbours)
        self.precision_neighbours, self.density_neighbours = precision_neighbours, density_neighbours

    def compute(self) -> dict[str, Tensor]:
        """Return scalars ``precision``, ``recall``, ``density`` and ``coverage``, and their errors, ``<name>_error``.

        The errors are missing for small sets. Each kind needs more images than both numbers of neighbours.
        """
        real, fake = self._both(least=1 + max(self.precision_neighbours, self.density_neighbours))
        precision, recall = precision_recall(real, fake, self.precision_neighbours)
        density, coverage = density_coverage(real, fake, self.density_neighbours)
        estimates = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
        return {name: self._scalar(value) for name, value in with_errors(estimates).items()}
