"""Capabilities of models, data and loggers, as protocols that callbacks, the command line and evaluation look for.

A model has a capability if it has the methods of the protocol. It does not inherit from the protocol. A callback raises
an error in ``setup`` if it needs a capability that the model lacks. ``docs/capabilities.md`` lists the capabilities of
the ten models.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zoo.estimators import GradientEstimator

    Batch = Sequence[Tensor]
    Generator = torch.Generator | None


@runtime_checkable
class Loss(Protocol):
    """Returns a dictionary of named terms. The optimiser minimises the term ``loss``."""

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]: ...


@runtime_checkable
class CapturedSteps(Protocol):
    """Trains with steps that a CUDA graph can hold.

    ``training_step`` must not read a value from the device or create a tensor on the CPU. No shape may depend on the
    values of tensors. Tensors that the model keeps for later steps must change in place. A number that changes between
    steps must be a tensor, which the hook ``on_train_batch_start`` fills, or a part of the key.

    ``graph_key`` returns the Python values that select the operations of the next training step, such as whether it
    also updates the generator. Steps with equal keys have equal operations.
    """

    def graph_key(self) -> Hashable: ...


@runtime_checkable
class StepCallback(Protocol):
    """Callback that computes with tensors after every step, for example a weight average.

    A CUDA graph can hold ``after_step``, so this method must not read a value from the device. Its argument ``outputs``
    has the tensors that ``training_step`` returned. Only the loop in zoo/training/executions.py calls the method. With
    ``steps_per_execution=1``, the callback must call it in ``on_train_batch_end`` (see ``takes_executions``).
    """

    def after_step(self, trainer: Any, pl_module: Any, outputs: Any) -> None: ...


@runtime_checkable
class CadencedCallback(Protocol):
    """Callback whose hooks ``on_train_batch_start`` and ``on_train_batch_end`` do nothing at most batches.

    ``batches_until_due`` returns the number of batches up to and including the next one at which these hooks act, at
    least 1. 1 means that the hooks act at the next batch. Infinity means that they need to run only at the end of an
    execution. At the other batches, the loop may leave the hooks out.
    """

    def batches_until_due(self, trainer: Any) -> float: ...


@runtime_checkable
class Adversarial(Protocol):
    """Trains a generator against a second network. Each of the two networks has its own loss."""

    def generator_loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]: ...


@runtime_checkable
class Critic(Protocol):
    """Trains the generator against a critic instead of a discriminator."""

    def critic_loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]: ...


@runtime_checkable
class Samples(Protocol):
    """Draws samples: images in [0, 1], points, or one-hot sequences."""

    def sample(self, n: int, *, generator: Generator = None) -> Tensor: ...


@runtime_checkable
class SampleRows(Protocol):
    """Returns an argument of ``sample`` and its values, or None. Pictures then have one row for each value."""

    def rows(self) -> tuple[str, list[int]] | None: ...


@runtime_checkable
class Codes(Protocol):
    """Draws samples that show what each continuous code changes."""

    def vary(self, code: int = 0, steps: int = 10, *, generator: Generator = None) -> Tensor: ...


@runtime_checkable
class Encodes(Protocol):
    """Returns the latents of examples, or their posterior."""

    def encode(self, x: Tensor, *args: Any) -> Any: ...


@runtime_checkable
class Decodes(Protocol):
    """Decodes latents to examples."""

    def decode(self, z: Tensor, *args: Any) -> Tensor: ...


@runtime_checkable
class Reconstructs(Protocol):
    """Encodes and decodes examples. Models with labels also need the labels."""

    def reconstruct(self, x: Tensor, *, y: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class Traversable(Protocol):
    """Has latents of one family with one prior. Pictures can vary these latents one at a time."""

    latents: type
    latent_shape: tuple[int, ...]

    def decode(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class Clusters(Protocol):
    """Returns the cluster of each example."""

    def cluster(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Features(Protocol):
    """Returns features of examples, for use in another method."""

    def transform(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class LogLikelihood(Protocol):
    """Computes log p(x) in nats. ``log_likelihood_by`` names the method, or is None if the model has no density."""

    @property
    def log_likelihood_by(self) -> str | None: ...

    def log_likelihood(self, x: Tensor, *, y: Tensor | None = None, generator: Generator = None) -> Tensor: ...


# Methods to compute log p(x), the values of ``log_likelihood_by``.
IMPORTANCE, ANNEALED, BOUND, EXACT = "importance samples", "annealed importance sampling", "a bound", "exactly"


@runtime_checkable
class BoundTerms(Protocol):
    """Returns the terms of a variational bound of -log p(x)."""

    def bound_terms(self, x: Tensor, *, generator: Generator = None, y: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class ManySteps(Protocol):
    """Has a loss for each of ``num_steps`` steps or noise levels."""

    @property
    def num_steps(self) -> int: ...


@runtime_checkable
class ScoreChains(Protocol):
    """Has a score at each noise level in the buffer ``sigmas``. Langevin chains draw samples with this score."""

    # ``sigmas`` is not a member, because it is a buffer. Since Python 3.12, isinstance finds no buffers of a module.

    def chains(self, n: int, *, generator: Generator = None) -> tuple[list[Tensor], list[float]]: ...


@runtime_checkable
class Words(Protocol):
    """Has vectors of words. If ``predicts`` is true, the model also predicts words."""

    words: list[str]

    @property
    def predicts(self) -> bool: ...

    def nearest(self, word: str, n: int = 10) -> list[tuple[str, float]]: ...

    def analogy(self, a: str, b: str, c: str, n: int = 1) -> list[tuple[str, float]]: ...


@runtime_checkable
class GradientEstimators(Protocol):
    """Has estimators of its gradient. The variance of each estimator can be measured."""

    def gradient_estimators(self) -> dict[str, GradientEstimator]: ...


@runtime_checkable
class ProbeBatch(Protocol):
    """Binarises a batch before the variance is measured. The variance then comes from the estimator only."""

    def probe_batch(self, batch: Batch, *, generator: Generator = None) -> Batch: ...


def has_log_likelihood(model: object, by: str | None = None) -> bool:
    """Return whether ``model`` computes log p(x). If ``by`` is given, also require this method."""
    found = model.log_likelihood_by if isinstance(model, LogLikelihood) else None
    return found is not None and by in (None, found)


# Capabilities of data, distributions and loggers.


@runtime_checkable
class TextData(Protocol):
    """Data from a text. After ``setup``, ``corpus`` holds the words."""

    corpus: Any


@runtime_checkable
class NamedData(Protocol):
    """Data with the name of the data set in ``used``. The name is None before a data set is chosen."""

    used: str | None


@runtime_checkable
class DigestedData(Protocol):
    """Data with a SHA-256 digest of what the run uses, because no name determines them."""

    @property
    def digest(self) -> str: ...


@runtime_checkable
class ShapedData(Protocol):
    """Data whose examples all have one shape, which is known before ``setup``.

    ``shape`` is the shape of an example: (C, H, W) for images. ``num_classes`` is the number of classes of the labels.
    It is None if there are no labels.
    """

    used: str | None

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def num_classes(self) -> int | None: ...


@runtime_checkable
class KnownShape(Protocol):
    """Data that know the shape of an example before ``setup``. The attribute may be None."""

    shape: Any


@runtime_checkable
class KnownClasses(Protocol):
    """Data that know the number of classes of their labels before ``setup``. It is None if there are no labels."""

    num_classes: int | None


@runtime_checkable
class SplitData(Protocol):
    """Data that keep all examples. After ``setup``, ``splits`` has ``train``, ``val`` and ``test``.

    Each is a :class:`zoo.datamodules.splits.Split`.
    """

    splits: dict[str, Any]


@runtime_checkable
class Batched(Protocol):
    """A loader with the attribute ``batch_size``. It is None if the size of batches varies."""

    batch_size: int | None


@runtime_checkable
class CountedData(Protocol):
    """Data counted in a unit such as words. ``unit`` is (name of the unit, number of units per training row)."""

    @property
    def unit(self) -> tuple[str, float]: ...


@runtime_checkable
class ShortSanityCheck(Protocol):
    """Data that use only a part of each batch in the sanity check before training.

    ``sanity_check_fraction`` is the fraction of the rows, above 0 and at most 1.
    """

    sanity_check_fraction: float


@runtime_checkable
class DrawnData(Protocol):
    """Data drawn from a known distribution."""

    distribution: Any


@runtime_checkable
class KnownScore(Protocol):
    """A distribution with a known log density and score."""

    def log_density(self, x: Tensor) -> Tensor: ...

    def score(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Enumerable(Protocol):
    """A distribution over finitely many values. Its divergence from a model is a sum over these values."""

    def kl(self, log_q: Callable[[Tensor], Tensor]) -> float: ...


@runtime_checkable
class LogsImages(Protocol):
    """A logger that accepts images, such as Weights & Biases."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None: ...


@runtime_checkable
class LogsTables(Protocol):
    """A logger that accepts tables, such as Weights & Biases."""

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None) -> None: ...
