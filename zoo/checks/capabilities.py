"""What a model can do, as protocols: what callbacks, the command line and evaluation ask of it.

A model inherits from none of them; it has the methods. What is missing is named at set-up.
``docs/capabilities.md`` is the table of the ten models by these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zoo.estimators import GradientEstimator

    Batch = Sequence[Tensor]
    Generator = torch.Generator | None


@runtime_checkable
class Loss(Protocol):
    """Named terms of what is optimised, ``loss`` among them."""

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]: ...


@runtime_checkable
class TwoPlayers(Protocol):
    """A generator and its opponent, each with terms of its own."""

    def generator_loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]: ...


@runtime_checkable
class Critic(Protocol):
    """The opponent is a critic, and not a discriminator."""

    def critic_loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]: ...


@runtime_checkable
class Samples(Protocol):
    """Draws samples: images in [0, 1], points, or one-hot sequences."""

    def sample(self, n: int, *, generator: Generator = None) -> Tensor: ...


@runtime_checkable
class SampleRows(Protocol):
    """Samples come in kinds: a condition of ``sample`` and its values, a row of a picture for each; None without."""

    def rows(self) -> tuple[str, list[int]] | None: ...


@runtime_checkable
class Codes(Protocol):
    """Shows what each continuous code changes."""

    def vary(self, code: int = 0, steps: int = 10, *, generator: Generator = None) -> Tensor: ...


@runtime_checkable
class Encodes(Protocol):
    """Finds latents, or their posterior, for examples."""

    def encode(self, x: Tensor, *args: Any) -> Any: ...


@runtime_checkable
class Decodes(Protocol):
    """Makes examples of latents."""

    def decode(self, z: Tensor, *args: Any) -> Tensor: ...


@runtime_checkable
class Reconstructs(Protocol):
    """Encodes and decodes examples, given their labels where it needs them."""

    def reconstruct(self, x: Tensor, *, y: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class Traversable(Protocol):
    """Has latents of one family with one prior for all, whose values can be gone through one by one."""

    latents: type
    latent_shape: tuple[int, ...]

    def decode(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class Clusters(Protocol):
    """Says which of its clusters an example is in."""

    def cluster(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Features(Protocol):
    """Has features of examples, for another method to learn from."""

    def transform(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class LogLikelihood(Protocol):
    """Has log p(x) in nats, and says how it computes it; None of a network that has no density."""

    @property
    def log_likelihood_by(self) -> str | None: ...

    def log_likelihood(self, x: Tensor, *, y: Tensor | None = None, generator: Generator = None) -> Tensor: ...


# How a model computes log p(x).
IMPORTANCE, ANNEALED, BOUND, EXACT = "importance samples", "annealed importance sampling", "a bound", "exactly"


@runtime_checkable
class BoundTerms(Protocol):
    """Has a variational bound of log p(x), term by term."""

    def bound_terms(self, x: Tensor, *, generator: Generator = None, y: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class ManySteps(Protocol):
    """Has a loss that is one of many steps or noise levels."""

    @property
    def num_steps(self) -> int: ...


@runtime_checkable
class ScoreChains(Protocol):
    """Has a score at noise levels, its buffer ``sigmas``, and runs Langevin chains by it."""

    # sigmas is not a member: isinstance does not find buffers since Python 3.12, which looks past __getattr__.

    def chains(self, n: int, *, generator: Generator = None) -> tuple[list[Tensor], list[float]]: ...


@runtime_checkable
class Words(Protocol):
    """Knows words by vectors, and predicts words where ``predicts`` says so."""

    words: list[str]

    @property
    def predicts(self) -> bool: ...

    def nearest(self, word: str, n: int = 10) -> list[tuple[str, float]]: ...

    def analogy(self, a: str, b: str, c: str, n: int = 1) -> list[tuple[str, float]]: ...


@runtime_checkable
class GradientEstimators(Protocol):
    """Has estimators of its gradient, whose variance can be measured."""

    def gradient_estimators(self) -> dict[str, GradientEstimator]: ...


@runtime_checkable
class ProbeBatch(Protocol):
    """Binarises a batch first, so that the variance is that of the estimator alone."""

    def probe_batch(self, batch: Batch, *, generator: Generator = None) -> Batch: ...


def has_log_likelihood(model: object, by: str | None = None) -> bool:
    """Whether ``model`` has a number for log p(x), by the means ``by`` if that is given."""
    found = model.log_likelihood_by if isinstance(model, LogLikelihood) else None
    return found is not None and by in (None, found)


# What data and loggers can do.


@runtime_checkable
class TextData(Protocol):
    """Data that are text: a corpus, once they are set up."""

    corpus: Any


@runtime_checkable
class NamedData(Protocol):
    """Data that say which data set is used."""

    used: str | None


@runtime_checkable
class SplitData(Protocol):
    """Data whose images are in memory, by split: ``train``, ``val`` and ``test``, once they are set up."""

    splits: dict[str, Any]


@runtime_checkable
class Batched(Protocol):
    """A loader whose batches have one size."""

    batch_size: int | None


@runtime_checkable
class CountedData(Protocol):
    """Data that are counted in a unit of their own, and how much of it a row of training stands for."""

    @property
    def unit(self) -> tuple[str, float]: ...


@runtime_checkable
class DrawnData(Protocol):
    """Data drawn from a distribution that is known."""

    distribution: Any


@runtime_checkable
class KnownScore(Protocol):
    """A distribution whose log density and score are known."""

    def log_density(self, x: Tensor) -> Tensor: ...

    def score(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Enumerable(Protocol):
    """A distribution whose divergence from a model is a sum."""

    def kl(self, log_q: Callable[[Tensor], Tensor]) -> float: ...


@runtime_checkable
class LogsImages(Protocol):
    """A logger that takes pictures, as Weights & Biases does."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None: ...


@runtime_checkable
class LogsTables(Protocol):
    """A logger that takes tables, likewise."""

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None) -> None: ...
