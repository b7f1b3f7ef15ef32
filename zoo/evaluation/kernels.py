"""Kernel distance of two sets of features (KID, Bińkowski et al. 2018, arXiv:1801.01401).

    KID = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (x . y / F + 1)^3

This is the squared maximum mean discrepancy with a polynomial kernel. x and x' are features of the first set, and y and
y' of the second set. F is the number of features.

The paper averages over subsets, whose size limits the cost. Here, the estimate uses all pairs of both sets. It has the
same mean and a smaller variance, needs no random numbers, and takes seconds for 10,000 images. The jackknife gives its
standard error. The spread over subsets, which other programs print, is not the standard error of their mean.
"""

from torch import Tensor

from zoo.checks.values import check_integer
from zoo.evaluation.estimates import Estimate
from zoo.evaluation.pairs import sums_between, sums_within, two_sample_estimate
from zoo.functional.precision import in_float64


def kid(real: Tensor, fake: Tensor) -> Estimate:
    """Return the kernel distance of two sets of features, (N, F) and (M, F), with N and M at least 2.

    The estimate is unbiased: its mean is 0 for equal distributions, for any number of images. It can be negative. The
    distance is symmetric in its arguments. The error is the jackknife standard error over both sets, and NaN if a set
    has fewer than three images.

    Raises:
        UserError: if a set has fewer than two images.
    """
    for name, features in (("real", real), ("fake", fake)):
        check_integer(f"the number of {name} images", len(features), least=2)
    real, fake = in_float64(real), in_float64(fake)
    sums = sums_between(real, fake, _minus_kernel), sums_within(real, _minus_kernel), sums_within(fake, _minus_kernel)
    return two_sample_estimate(*sums)


def _minus_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return minus the polynomial kernel of all pairs, (N, M), for features (N, F) and (M, F)."""
    return -((a @ b.T / a.shape[1] + 1) ** 3)
