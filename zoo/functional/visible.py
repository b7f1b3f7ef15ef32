"""The visible units of a restricted Boltzmann machine: binary units for binary pixels, Gaussian units for grey values.

Both kinds are exponential families (Welling, Rosen-Zvi & Hinton, "Exponential Family Harmoniums", 2004):

    p(v | h) = exp( eta'v - r(v) - A(eta) ),   eta = b + W h,   A(eta) = log of the sum or integral of exp(eta'v - r(v))

               v         r(v)                          A(eta)                                               E[v | h]
    Binary     0 or 1    0                             sum_i softplus(eta_i)                                sigmoid(eta)
    Gaussian   real      sum_i v_i^2 / (2 sigma_i^2)   sum_i [ log(2 pi sigma_i^2) + sigma_i^2 eta_i^2 ]/2  sigma^2 eta

The energy is E(v, h) = r(v) - b'v - c'h - v'W h. With Gaussian units this is the energy of Cho, Ilin & Raiko, "Improved
Learning of Gaussian-Bernoulli Restricted Boltzmann Machines", 2011, up to a constant. Their weights are sigma_i^2 W_ij.
Their biases are sigma_i^2 b_i.

Gaussian units see standardised pixels. A pixel x of 256 grey values in [0, 1] becomes y = (255 x + u) / 256 with
uniform noise u (Theis, van den Oord & Bethge 2016), and v = (y - centre) / scale. Logarithms are in nats.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.values import check_choice
from zoo.functional.noise import rand, randn
from zoo.functional.precision import in_float64

GREY_VALUES = 256
BROAD = 2.0  # standard deviations of random states of Gaussian units, in standard deviations of the data
Generator = torch.Generator | None


def below(u: Tensor, p: Tensor) -> Tensor:
    """Return 1 where ``u`` < ``p`` and 0 elsewhere, as floating-point numbers, for ``u`` in [0, 1) and ``p`` in [0, 1].

    The difference p - u lies in (-1, 1] and is rounded up. The result is 1 exactly where u < p, and 0 or -0 elsewhere.
    The absolute value turns -0 into 0. On a CPU, this takes half the time of a comparison, whose boolean result would
    need a conversion.
    """
    return (p - u).ceil_().abs_()


class Binary(NamedTuple):
    """Binary units.

    Attributes:
        threshold: whether pixels above 1/2 are 1. If not, a pixel is the probability of 1.
    """

    threshold: bool = False

    @property
    def log_scale(self) -> float:
        """-log p of an image minus -log p of its state: 0 nats."""
        return 0.0

    def observe(self, x: Tensor, u: Tensor) -> Tensor:
        """Return states of images ``x`` (B, V) in [0, 1], given uniform noise ``u`` (B, V)."""
        return x.gt(0.5).to(x.dtype) if self.threshold else below(u, x).to(x.dtype)

    def grey(self, x: Tensor) -> Tensor:
        """Return images ``x`` (B, V) in [0, 1] as the model sees them without noise. Pixels stay grey."""
        return x

    def statistics(self, x: Tensor) -> Tensor:
        """Return the statistics of images ``x`` (B, V) whose sums :meth:`beginning` needs, (B, V)."""
        return self.observe(x, x) if self.threshold else x

    def beginning(self, total: Tensor, n: Tensor) -> dict[str, Tensor]:
        """Return the mean image ``mu`` (V,), and the biases ``b`` (V,) with which a model of W = 0 has this mean.

        One additional black and one additional white image keep the mean inside (0, 1).

        Args:
            total: sum of :meth:`statistics` over the training images, (V,).
            n: number of training images.
        """
        mean = (total + 1) / (n + 2)
        return {"mu": mean, "b": mean.logit()}

    def pixels(self, v: Tensor) -> Tensor:
        """Return states or means as pixels in [0, 1]."""
        return v

    def noise(self, *shape: int, generator: Generator, device: torch.device) -> Tensor:
        """Return the noise of :meth:`draw`, uniform in [0, 1)."""
        return rand(*shape, generator=generator, device=device)

    def random(self, n: int, V: int, *, generator: Generator, device: torch.device) -> Tensor:
        """Return ``n`` random states, (n, V): units that are 1 with probability 1/2."""
        return (rand(n, V, generator=generator, device=device) < 0.5).float()

    def energy(self, v: Tensor) -> Tensor | float:
        """Return r(v), which is 0."""
        return 0.0

    def energy_difference(self, v: Tensor, v_model: Tensor) -> Tensor | float:
        """Return mean r(v) - mean r(v_model), which is 0, for v (B, V) and v_model (n, V)."""
        return 0.0

    def mean_energy(self, squares: Tensor) -> Tensor | float:
        """Return the mean of r(v), which is 0, from the mean of v^2, (V,)."""
        return 0.0

    def log_normaliser(self, eta: Tensor) -> Tensor:
        """Return A(eta), (...) nats."""
        return F.softplus(eta).sum(-1)

    def mean(self, eta: Tensor) -> Tensor:
        """Return E[v] at the parameters ``eta``."""
        return eta.sigmoid()

    def squares(self, eta: Tensor) -> Tensor:
        """Return E[v^2] at the parameters ``eta``."""
        return eta.sigmoid()

    def around(self, mean: Tensor, noise: Tensor) -> Tensor:
        """Return states with means ``mean``, drawn with :meth:`noise`."""
        return below(noise, mean).to(mean.dtype)

    def draw(self, eta: Tensor, noise: Tensor) -> Tensor:
        """Return states at the parameters ``eta``, drawn with :meth:`noise`."""
        return self.around(eta.sigmoid(), noise)

    def base_rates(self, mu: Tensor) -> dict[str, tuple[Tensor, "Binary"]]:
        """Return {name: (eta, units)} of the models from which annealing begins, for the mean image ``mu`` (V,)."""
        return {"base_rate": (mu.logit(), self), "coins": (torch.zeros_like(mu), self)}

    def between(self, other: Any, beta: float) -> "Binary":
        """Return the units at the inverse temperature ``beta`` between ``other`` (0) and these units (1)."""
        return self

    def to(self, dtype: torch.dtype) -> "Binary":
        return self

    def exact(self) -> "Binary":
        return self


class Gaussian(NamedTuple):
    """Gaussian units. The methods are those of :class:`Binary`.

    Attributes:
        variance: sigma^2 of standardised pixels given the hidden units, (V,).
        centre: mean pixels of the data, (V,).
        scale: standard deviations of the pixels of the data, (V,).
    """

    variance: Tensor
    centre: Tensor
    scale: Tensor

    @property
    def log_scale(self) -> Tensor:
        """-log p of an image minus -log p of its standardised pixels, () nats."""
        return self.scale.log().sum()

    def observe(self, x: Tensor, u: Tensor) -> Tensor:
        return (_dequantised(x, u) - self.centre) / self.scale

    def grey(self, x: Tensor) -> Tensor:
        return (_dequantised(x, 0.5) - self.centre) / self.scale

    def statistics(self, x: Tensor) -> Tensor:
        """Return pixels and their squares, (B, 2 V), float64."""
        y = _dequantised(in_float64(x), 0.5)
        return torch.cat([y, y.square()], -1)

    def beginning(self, total: Tensor, n: Tensor) -> dict[str, Tensor]:
        """Return the means ``mu`` and standard deviations ``scale`` of dequantised pixels, (V,).

        With b = 0 and W = 0, the model has these means and deviations. One additional black and one additional white
        image keep the deviations of constant pixels above 0.
        """
        mean, square = ((total + 1) / (n + 2)).chunk(2)
        return {"mu": mean, "scale": (square - mean.square() + 1 / (12 * GREY_VALUES**2)).sqrt()}

    def pixels(self, v: Tensor) -> Tensor:
        y = self.centre + self.scale * v
        return ((GREY_VALUES * y - 0.5) / (GREY_VALUES - 1)).clamp(0, 1)

    def noise(self, *shape: int, generator: Generator, device: torch.device) -> Tensor:
        """Return the noise of :meth:`draw`, standard normal."""
        return randn(*shape, generator=generator, device=device)

    def random(self, n: int, V: int, *, generator: Generator, device: torch.device) -> Tensor:
        """Return ``n`` random states, (n, V): independent pixels with twice the standard deviations of the data."""
        return BROAD * randn(n, V, generator=generator, device=device)

    def energy(self, v: Tensor) -> Tensor:
        """Return r(v), (...) nats."""
        return self.mean_energy(v.square())

    def energy_difference(self, v: Tensor, v_model: Tensor) -> Tensor:
        return self.mean_energy(v.square().mean(0) - v_model.square().mean(0))

    def mean_energy(self, squares: Tensor) -> Tensor:
        return (squares / (2 * self.variance)).sum(-1)

    def log_normaliser(self, eta: Tensor) -> Tensor:
        return ((2 * math.pi * self.variance).log() + self.variance * eta.square()).sum(-1) / 2

    def mean(self, eta: Tensor) -> Tensor:
        return self.variance * eta

    def squares(self, eta: Tensor) -> Tensor:
        return self.variance + self.mean(eta).square()

    def around(self, mean: Tensor, noise: Tensor) -> Tensor:
        return mean + self.variance.sqrt() * noise.to(mean.dtype)

    def draw(self, eta: Tensor, noise: Tensor) -> Tensor:
        return self.around(self.mean(eta), noise)

    def base_rates(self, mu: Tensor) -> dict[str, tuple[Tensor, "Gaussian"]]:
        """Return {name: (eta, units)} of the models from which annealing begins.

        ``base_rate`` has independent pixels with the means and variances of the data. ``broad`` has twice the standard
        deviations.
        """
        centre = torch.zeros_like(self.variance)
        ones = torch.ones_like(self.variance)
        return {
            "base_rate": (centre, self._replace(variance=ones)),
            "broad": (centre, self._replace(variance=BROAD**2 * ones)),
        }

    def between(self, other: Any, beta: float) -> "Gaussian":
        """Return the units whose r(v) is interpolated between ``other`` (``beta`` 0) and these units (``beta`` 1)."""
        return self._replace(variance=1 / (beta / self.variance + (1 - beta) / other.variance))

    def to(self, dtype: torch.dtype) -> "Gaussian":
        return Gaussian(*(t.to(dtype) for t in self))

    def exact(self) -> "Gaussian":
        return Gaussian(*map(in_float64, self))


Visible = Binary | Gaussian
BINARY = Binary()


def check_units(visible: object, binarisation: object) -> None:
    """Check the arguments ``visible`` and ``binarisation`` of a model.

    Raises:
        UserError: if a value is not allowed, or if Gaussian units are combined with a threshold.
    """
    check_choice("visible", visible, ("binary", "gaussian"))
    check_choice("binarisation", binarisation, ("bernoulli", "threshold"))
    if visible == "gaussian" and binarisation == "threshold":
        raise UserError(
            "binarisation=threshold needs visible=binary, and got visible=gaussian, whose pixels stay grey: leave out "
            "binarisation"
        )


def _dequantised(x: Tensor, u: Tensor | float) -> Tensor:
    """Return y = (255 x + u) / 256 for pixels ``x`` in [0, 1]. It is continuous if ``u`` is uniform noise in [0, 1)."""
    return ((GREY_VALUES - 1) * x + u) / GREY_VALUES
