"""Estimators of the gradient of an expectation E_q[f(z)], and measurements of their variance.

    pathwise.py         gradients through z as a function of noise: re-parameterisation, antithetic pairs
    score_function.py   f(z) grad log q(z): REINFORCE, baselines, Rao-Blackwellised REINFORCE
    relaxed.py          continuous relaxations of discrete z: Gumbel-softmax, straight-through, REBAR, RELAX
    learned.py          learned parts of estimators: NVIL's baseline, a moving average, control variates
    by_name.py          selection of an estimator by the name that users write
    moments.py          variance, signal-to-noise ratio and time of an estimator
    figures.py          a table and a figure of the measurements of a run

Each estimator is a function that returns a *surrogate*. The gradient of the surrogate is one draw of the estimator. The
value of the surrogate is the cost f(z), so the logged loss has the same meaning for every estimator. Gumbel-softmax is
the exception: the value of its surrogate is the cost of the relaxed z.
"""

from zoo.estimators import by_name
from zoo.estimators.learned import (
    ControlVariate,
    FixedControl,
    Learned,
    LearnedBaseline,
    MovingAverage,
    earlier_keys,
    learned_by,
    without_parameter_gradients,
)
from zoo.estimators.moments import (
    Comparison,
    GradientEstimator,
    GradientMoments,
    Noise,
    Params,
    Split,
    SplitVariance,
    call_with,
    chunk_size,
    compare,
    gradient_moments,
    gradients,
    split_variance,
)
from zoo.estimators.pathwise import antithetic, rsample
from zoo.estimators.relaxed import gumbel_softmax, relax, relax_variance, straight_through
from zoo.estimators.score_function import (
    leave_one_out,
    local_expectation,
    multi_sample_baseline,
    multi_sample_surrogate,
    optimal_baseline,
    score_function,
    with_gradient,
)

__all__ = [
    "Comparison",
    "ControlVariate",
    "FixedControl",
    "GradientEstimator",
    "GradientMoments",
    "Learned",
    "LearnedBaseline",
    "MovingAverage",
    "Noise",
    "Params",
    "Split",
    "SplitVariance",
    "antithetic",
    "by_name",
    "call_with",
    "chunk_size",
    "compare",
    "earlier_keys",
    "gradient_moments",
    "gradients",
    "gumbel_softmax",
    "learned_by",
    "leave_one_out",
    "local_expectation",
    "multi_sample_baseline",
    "multi_sample_surrogate",
    "optimal_baseline",
    "relax",
    "relax_variance",
    "rsample",
    "score_function",
    "split_variance",
    "straight_through",
    "with_gradient",
    "without_parameter_gradients",
]
