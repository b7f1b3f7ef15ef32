"""Likelihoods p(x | z) of images: independent binary pixels, real pixels, or pixels of 256 grey values.

A pixel is one number of one channel. D = C H W is the number of pixels of an image. ``out`` is the output of a decoder,
one number for each pixel. All pixels share one learned scale. k are grey values 0, ..., 255.

    bernoulli              P(x_d = 1) = sigmoid(out_d)
    gaussian               p(x_d) = N(x_d | out_d, sigma^2),  sigma^2 = exp(log_variance) + floor
    gaussian_dequantised   P(k) >= exp E_u[ log N(y | out, sigma^2 I) - D log 256 ],  y = (k + u) / 256,
                           u uniform in [0, 1),  sigma^2 = exp(log_variance)
    discretised_logistic   P(k_d) = F(k_d + 1/2) - F(k_d - 1/2),  F(k) = sigmoid((k / 255 - out_d) / exp(log_scale))

The bound of ``gaussian_dequantised`` is Jensen's inequality (Theis et al. 2016, arXiv:1511.01844, sec. 3.1). The values
of ``gaussian`` are densities of pixels in [0, 1]. They are not comparable with probabilities of grey values.

An object of a likelihood holds the parameters of p(x | z). Its methods return the log likelihood and the mean of the
pixels, and draw pixels from noise. ``observe`` returns images in the form that the likelihood takes. ``scale`` is the
name of the learned scale of a model, or None. ``initial`` is its initial value. ``of_grey_values`` says whether
losses are also measured in bits per dimension.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zoo.functional.densities import binarise, grey_values, log_bernoulli, log_discretised_logistic, log_normal
from zoo.functional.latents import logistic
from zoo.functional.noise import rand, randn

INITIAL_VARIANCE = 0.05  # roughly the variance of MNIST pixels
LOG_GREY_VALUES = math.log(256)


@dataclass(frozen=True)
class Bernoulli:
    """Binary pixels with log odds ``logits``, (..., C, H, W)."""

    logits: Tensor
    scale: ClassVar[str | None] = None
    initial: ClassVar[float] = 0.0
    of_grey_values: ClassVar[bool] = False
    noise: ClassVar[Callable[..., Tensor]] = staticmethod(rand)

    @classmethod
    def of(cls, out: Tensor, scale: Tensor | None, floor: float) -> "Bernoulli":
        """Return the likelihood of a decoder's output. ``scale`` and ``floor`` are not used."""
        return cls(out)

    @staticmethod
    def observe(x: Tensor, u: Tensor) -> Tensor:
        """Return images that are binarised with uniform noise ``u``."""
        return binarise(x, u)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x | z), (...) nats."""
        return log_bernoulli(x.flatten(-3), self.logits.flatten(-3))

    def mean(self) -> Tensor:
        """Return the probability of a 1."""
        return self.logits.sigmoid()

    def draw(self, u: Tensor) -> Tensor:
        """Return binary pixels from uniform noise ``u``."""
        return binarise(self.mean(), u)


@dataclass(frozen=True)
class Gaussian:
    """Real pixels with means ``mu``, (..., C, H, W), and one log variance ``logvar``, ()."""

    mu: Tensor
    logvar: Tensor
    scale: ClassVar[str | None] = "log_variance"
    initial: ClassVar[float] = math.log(INITIAL_VARIANCE)
    of_grey_values: ClassVar[bool] = False
    noise: ClassVar[Callable[..., Tensor]] = staticmethod(randn)

    @classmethod
    def of(cls, out: Tensor, scale: Tensor | None, floor: float) -> "Gaussian":
        """Return the likelihood of a decoder's output. ``scale`` is log_variance, and ``floor`` a variance."""
        assert scale is not None
        return cls(out, (scale.exp() + floor).log())

    @staticmethod
    def observe(x: Tensor, u: Tensor) -> Tensor:
        """Return ``x``. ``u`` is not used."""
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x | z), (...) nats."""
        x, mu = x.flatten(-3), self.mu.flatten(-3)
        return log_normal(x, mu, self.logvar.expand(mu.shape[-1]))

    def mean(self) -> Tensor:
        """Return the means, clipped to [0, 1]."""
        return self.mu.clamp(0, 1)

    def draw(self, eps: Tensor) -> Tensor:
        """Return pixels from standard normal noise ``eps``. They can be outside [0, 1]."""
        return self.mu + (self.logvar / 2).exp() * eps


@dataclass(frozen=True)
class DequantisedGaussian:
    """Pixels of 256 grey values with uniform noise, as real numbers y = (k + u) / 256.

    ``mu`` are the means of y, (..., C, H, W). ``logvar`` is one log variance, ().
    """

    mu: Tensor
    logvar: Tensor
    scale: ClassVar[str | None] = "log_variance"
    initial: ClassVar[float] = math.log(INITIAL_VARIANCE)
    of_grey_values: ClassVar[bool] = True
    noise: ClassVar[Callable[..., Tensor]] = staticmethod(randn)

    @classmethod
    def of(cls, out: Tensor, scale: Tensor | None, floor: float) -> "DequantisedGaussian":
        """Return the likelihood of a decoder's output. ``scale`` is log_variance. ``floor`` is not used."""
        assert scale is not None
        return cls(out, scale)  # no floor, because the noise u keeps the variance of the data above zero

    @staticmethod
    def observe(x: Tensor, u: Tensor) -> Tensor:
        """Return y = (k + u) / 256 for images ``x`` = k / 255 and uniform noise ``u``.

        Images y keep their grey values k and receive new noise. Measured variances of gradient estimators therefore
        include this noise.
        """
        return (grey_values(x) + u) / 256

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log N(y | mu, sigma^2) - D log 256, (...) nats. Its mean over u is a lower bound of log P(k)."""
        return Gaussian(self.mu, self.logvar).log_prob(y) - math.prod(y.shape[-3:]) * LOG_GREY_VALUES

    def mean(self) -> Tensor:
        """Return the means of k / 255, clipped to [0, 1]."""
        return ((256 * self.mu - 0.5) / 255).clamp(0, 1)  # y has the mean (k + 1/2) / 256

    def draw(self, eps: Tensor) -> Tensor:
        """Return y from standard normal noise ``eps``. It can be outside [0, 1]."""
        return Gaussian(self.mu, self.logvar).draw(eps)


@dataclass(frozen=True)
class DiscretisedLogistic:
    """Pixels of 256 grey values with locations ``location``, (..., C, H, W), and one log scale ``log_scale``, ()."""

    location: Tensor
    log_scale: Tensor
    scale: ClassVar[str | None] = "log_scale"
    initial: ClassVar[float] = math.log(3 * INITIAL_VARIANCE) / 2 - math.log(math.pi)  # variance (pi scale)^2 / 3
    of_grey_values: ClassVar[bool] = True
    noise: ClassVar[Callable[..., Tensor]] = staticmethod(rand)

    @classmethod
    def of(cls, out: Tensor, scale: Tensor | None, floor: float) -> "DiscretisedLogistic":
        """Return the likelihood of a decoder's output. ``scale`` is log_scale. ``floor`` is not used."""
        assert scale is not None
        return cls(out, scale)

    @staticmethod
    def observe(x: Tensor, u: Tensor) -> Tensor:
        """Return images with pixels k / 255. ``u`` is not used."""
        return grey_values(x) / 255

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x | z), (...) nats, for pixels k / 255."""
        return log_discretised_logistic(x.flatten(-3), self.location.flatten(-3), self.log_scale)

    def mean(self) -> Tensor:
        """Return the locations, clipped to [0, 1]. Near 0 and 1, the mean of the grey values differs from them."""
        return self.location.clamp(0, 1)

    def draw(self, u: Tensor) -> Tensor:
        """Return pixels k / 255 from uniform noise ``u``."""
        x = self.location + self.log_scale.exp() * logistic(u)
        return (255 * x).round().clamp(0, 255) / 255


LIKELIHOODS = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "gaussian_dequantised": DequantisedGaussian,
    "discretised_logistic": DiscretisedLogistic,
}
Likelihood = Bernoulli | Gaussian | DequantisedGaussian | DiscretisedLogistic


def bits_per_dimension(nats: Tensor, shape: Sequence[int]) -> Tensor:
    """Return ``nats`` / (D log 2), where D is the number of pixels of an image of ``shape`` (C, H, W)."""
    return nats / (math.prod(shape) * math.log(2))
