"""Data module of known distributions: points in the plane, and sequences of a Markov chain.

    mixture       three overlapping Gaussians on a circle of radius 1.5, with sigma 0.6 and weights 0.5, 0.3, 0.2
    ring          eight Gaussians on a circle of radius 2, with sigma 0.1
    moons         two interleaved half circles of radius 1, with Gaussian noise of sigma 0.1
    swiss_roll    one and a half turns of a spiral, with Gaussian noise of sigma 0.1
    line          x = theta, y uniform in [0, 1]; one of the parallel lines of [DSL 13.3.2], without a density
    markov_chain  sequences of five symbols

The log density and the score of the first four are exact up to rounding. The density of a curve with Gaussian noise
is an integral of Gaussians along the curve. Gauss-Legendre quadrature replaces this integral by a mixture of Gaussians
at nodes whose distance is much smaller than sigma. The integral and the mixture differ by more than rounding only at
points that are at least a hundred sigma away from all data.
"""

import math
from collections.abc import Callable
from itertools import product

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.old_forms import accepts_old_form
from zoo.datamodules.files import DataError, resumes
from zoo.datamodules.limits import SPLITS, check_limits, check_model, overfits
from zoo.datamodules.loaders import ImageLoader
from zoo.datamodules.splits import Split

SIZES = {"train": 50_000, "val": 5_000, "test": 10_000}


@accepts_old_form("sample")
class Mixture:
    """Mixture of Gaussians in the plane, p(x) = sum_k w_k N(x | mu_k, sigma^2 I).

    Args:
        mu: centres of the components, (K, 2).
        w: weights with sum 1, (K,).
        sigma: standard deviation of each component, positive.
    """

    def __init__(self, mu: Tensor, w: Tensor, sigma: float):
        self.mu, self.w, self.sigma = mu.double(), w.double(), sigma
        self.num_classes = len(mu)  # the labels number the components

    def _log_joint(self, x: Tensor) -> Tensor:
        """Return log w_k N(x | mu_k, sigma^2 I), (..., K)."""
        square = (x.double()[..., None, :] - self.mu).square().sum(-1)
        return self.w.log() - square / (2 * self.sigma**2) - math.log(2 * math.pi * self.sigma**2)

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, (...) float64, for points x, (..., 2)."""
        return self._log_joint(x).logsumexp(-1)

    def score(self, x: Tensor) -> Tensor:
        """Return the gradient of log p(x) with respect to x, (..., 2) float64."""
        return (self._log_joint(x).softmax(-1) @ self.mu - x.double()) / self.sigma**2

    def sample(self, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``n`` points, (n, 2), and the index of the component of each, (n,)."""
        k = torch.multinomial(self.w, n, replacement=True, generator=generator)
        eps = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return self.mu[k] + self.sigma * eps, k

    def blurred(self, sigma: float) -> "Mixture":
        """Return the distribution of x + sigma eps with eps ~ N(0, I)."""
        return Mixture(self.mu, self.w, math.hypot(self.sigma, sigma))


@accepts_old_form("sample")
class BlurredCurves(Mixture):
    """Distribution of points on curves plus noise from N(0, sigma^2 I).

    All curves have equal probability. The parameter t of the point on a curve is uniform in [0, 1].

    Args:
        curves: functions from t, (n,), to points, (n, 2).
        sigma: standard deviation of the noise.
        nodes: quadrature nodes for each curve. Their distance must be much smaller than sigma.
    """

    def __init__(self, curves: list[Callable[[Tensor], Tensor]], sigma: float, nodes: int = 600):
        t, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
        super().__init__(torch.cat([c((t + 1) / 2) for c in curves]), (w / 2 / len(curves)).repeat(len(curves)), sigma)
        self.curves, self.num_classes = curves, len(curves)

    def sample(self, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``n`` points, (n, 2), and the index of the curve of each, (n,)."""
        which = torch.randint(len(self.curves), (n,), generator=generator)
        t = torch.rand(n, generator=generator, dtype=torch.float64)
        on_curve = torch.stack([c(t) for c in self.curves])[which, torch.arange(n)]
        return on_curve + self.sigma * torch.randn(n, 2, generator=generator, dtype=torch.float64), which


@accepts_old_form("sample")
class Line:
    """Uniform distribution on the line x = theta, with y ~ U(0, 1) [DSL 13.3.2].

    Two lines with theta != theta' have Wasserstein distance |theta - theta'|, Jensen-Shannon divergence log 2, and
    infinite Kullback-Leibler divergence.
    """

    num_classes: int | None = None  # the zeros are no classes

    def __init__(self, theta: float):
        self.theta = theta

    def sample(self, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``n`` points, (n, 2), and zeros as labels, (n,)."""
        y = torch.rand(n, generator=generator, dtype=torch.float64)
        return torch.stack([torch.full_like(y, self.theta), y], -1), torch.zeros(n, dtype=torch.long)


@accepts_old_form("sample")
class MarkovChain:
    """Markov chain over K symbols. It draws sequences v_1 ... v_T as one-hot vectors, (T, K).

        p(v) = pi(v_1) prod_t P(v_t | v_{t-1})

    The symbols 0 to K - 1 form a circle. After symbol k, the chain moves to symbol k + 1 (or from K - 1 to 0) with
    probability 0.6. It stays at k with probability 0.2. The other symbols share the remaining 0.2. The first symbol
    is k with probability proportional to 1 / (k + 1).
    """

    num_classes: int | None = None

    def __init__(self, symbols: int = 5, length: int = 5):
        self.symbols, self.length = symbols, length
        eye = torch.eye(symbols, dtype=torch.float64)
        rest = 0.2 / (symbols - 2)
        self.P = rest + (0.2 - rest) * eye + (0.6 - rest) * eye.roll(1, dims=1)
        self.pi = 1 / torch.arange(1, symbols + 1, dtype=torch.float64)
        self.pi /= self.pi.sum()

    def log_probability(self, v: Tensor) -> Tensor:
        """Return log p(v) of one-hot sequences (..., T, K) in nats, (...) float64."""
        v = v.double()
        steps = torch.einsum("...tk,kl,...tl->...", v[..., :-1, :], self.P.log(), v[..., 1:, :])
        return v[..., 0, :] @ self.pi.log() + steps

    def everything(self) -> Tensor:
        """Return all K^T sequences, (K^T, T, K)."""
        v = torch.tensor(list(product(range(self.symbols), repeat=self.length)))
        return F.one_hot(v, self.symbols).float()

    def kl(self, log_q: Callable[[Tensor], Tensor]) -> float:
        """Return KL(p || q) in nats per sequence, by enumeration.

        ``log_q`` maps one-hot sequences, (n, T, K), to their log probabilities, (n,) nats.
        """
        v = self.everything()
        log_p = self.log_probability(v)
        return float((log_p.exp() * (log_p - log_q(v).cpu().double())).sum())

    def sample(self, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``n`` one-hot sequences, (n, T, K), and the first symbol of each, (n,)."""
        v = [torch.multinomial(self.pi, n, replacement=True, generator=generator)]
        while len(v) < self.length:
            v.append(torch.multinomial(self.P[v[-1]], 1, generator=generator)[:, 0])
        return F.one_hot(torch.stack(v, 1), self.symbols).double(), v[0]


def mixture() -> Mixture:
    """Return a mixture of three Gaussians. They overlap, so Langevin chains can move between them."""
    angle = math.pi * torch.tensor([1 / 2, 7 / 6, 11 / 6], dtype=torch.float64)
    mu = 1.5 * torch.stack([angle.cos(), angle.sin()], -1)
    return Mixture(mu, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 0.6)


def ring(modes: int = 8, radius: float = 2.0, sigma: float = 0.1) -> Mixture:
    """Return a mixture of ``modes`` Gaussians with centres evenly spaced on a circle."""
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    return Mixture(radius * torch.stack([angle.cos(), angle.sin()], -1), torch.full((modes,), 1 / modes), sigma)


def moons(sigma: float = 0.1) -> BlurredCurves:
    """Return two half circles with noise, the lower one shifted by (1, 1/2), as in scikit-learn's ``make_moons``."""
    upper = lambda t: torch.stack([(math.pi * t).cos(), (math.pi * t).sin()], -1)  # noqa: E731
    lower = lambda t: torch.stack([1 - (math.pi * t).cos(), 0.5 - (math.pi * t).sin()], -1)  # noqa: E731
    return BlurredCurves([upper, lower], sigma, nodes=200)


def swiss_roll(sigma: float = 0.1) -> BlurredCurves:
    """Return a spiral with noise: the plane curve of scikit-learn's ``make_swiss_roll``, divided by 7.

    The angle runs from 1.5 pi to 4.5 pi.
    """
    angle = lambda t: 1.5 * math.pi * (1 + 2 * t)  # noqa: E731
    roll = lambda t: angle(t)[:, None] / 7 * torch.stack([angle(t).cos(), angle(t).sin()], -1)  # noqa: E731
    return BlurredCurves([roll], sigma)


DISTRIBUTIONS = {
    "mixture": mixture,
    "ring": ring,
    "moons": moons,
    "swiss_roll": swiss_roll,
    "line": Line,
    "markov_chain": MarkovChain,
}


class PointLoader(ImageLoader):
    """Loader of batches (points (B, ...) float, labels (B,)). It shuffles and resumes as ImageLoader does."""

    def examples(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.split.images[index], self.split.labels[index]


class Toy(L.LightningDataModule):
    """LightningDataModule of a known distribution.

    The module draws 50,000 training, 5,000 validation and 10,000 test examples, with fixed seeds.

    Args:
        name: ``mixture``, ``ring``, ``moons``, ``swiss_roll``, ``line`` or ``markov_chain``.
        theta: x of the line, used only with ``line``.
        batch_size: examples per training step, over all processes.
        eval_batch_size: examples per validation or test batch, over all processes.
        seed: seed of the order of the training examples. The examples are the same for every seed.

    Raises:
        UserError: if an argument is not allowed.
        DataError: from ``setup``, if the model needs examples of another shape.
    """

    def __init__(
        self,
        name: str = "ring",
        theta: float = 0.5,
        batch_size: int = 256,
        eval_batch_size: int = 1000,
        seed: int = 0,
    ):
        super().__init__()
        if name not in DISTRIBUTIONS:
            raise UserError(f"name is {name!r}, but must be one of {', '.join(DISTRIBUTIONS)}")
        if isinstance(theta, bool) or not isinstance(theta, int | float) or not math.isfinite(theta):
            raise UserError(f"theta is {theta!r}, but must be a finite number")
        for key, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= SIZES["train"]:
                raise UserError(f"{key} is {value!r}, but must be an integer from 1 to {SIZES['train']:,}")
        self.save_hyperparameters(logger=False)
        self.used = name
        self.distribution = Line(theta) if name == "line" else DISTRIBUTIONS[name]()
        self.shape = [5, 5] if name == "markov_chain" else [2]
        self.num_classes: int | None = self.distribution.num_classes
        self.splits: dict[str, Split] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.trainer is not None:
            self._check(self.trainer)
        if not self.splits:
            device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
            for number, (split, n) in enumerate(SIZES.items()):
                x, label = self.distribution.sample(n, generator=torch.Generator().manual_seed(number))
                self.splits[split] = Split(x.float().to(device), label.to(device))
        if self.trainer is not None:
            loaders = {split: self._loader(split) for split in SPLITS}
            check_limits(self.trainer, loaders, self.hparams.batch_size)

    def _check(self, trainer) -> None:
        model = trainer.lightning_module
        if self.used == "markov_chain" and model.hparams.get("network") != "sequence":
            raise DataError(
                f"data=markov_chain has one-hot sequences, which {type(model).__name__} with these options cannot "
                "learn: use experiment=gan_discrete, which is model=gan with model.network=sequence and "
                "model.shape=[5,5]"
            )
        check_model(model, self)

    def _loader(self, split: str) -> PointLoader:
        train = split == "train"
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return PointLoader(
            self.splits[split],
            self.hparams.batch_size if train else self.hparams.eval_batch_size,
            shuffle=train,
            seed=self.hparams.seed,
            rank=rank,
            world_size=world_size,
            fixed=overfits(self.trainer),
        )

    def train_dataloader(self) -> PointLoader:
        return self._loader("train")

    def val_dataloader(self) -> PointLoader:
        return self._loader("val")

    def test_dataloader(self) -> PointLoader:
        return self._loader("test")

    def state_dict(self) -> dict[str, object]:
        return {key: self.hparams[key] for key in ("name", "theta", "batch_size", "seed")}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Raise DataError if the data or their order differ from the checkpoint."""
        if not resumes(self):
            return
        for key, value in self.state_dict().items():
            if (before := state.get(key, value)) != value:
                raise DataError(f"data.{key} is {value}, but was {before} when this run began: use the earlier value")
