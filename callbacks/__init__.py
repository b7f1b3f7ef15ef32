"""Callbacks and loggers: they look and write, and never change what is learnt (EMA changes what is judged)."""

from callbacks.codes import Codes
from callbacks.ema import EMA
from callbacks.estimator_variance import EstimatorVariance
from callbacks.exact_resume import ExactResume
from callbacks.finite_loss import FiniteLoss
from callbacks.latents import Latents
from callbacks.log_likelihood import LogLikelihood
from callbacks.loggers import CSVLogger, WandbLogger
from callbacks.loss_per_step import LossPerStep
from callbacks.neighbours import Neighbours
from callbacks.run_record import RunRecord
from callbacks.sample_distance import SampleDistance
from callbacks.samples import Samples
from callbacks.score_field import ScoreField
from callbacks.time_estimate import TimeEstimate

__all__ = [
    "EMA",
    "CSVLogger",
    "Codes",
    "EstimatorVariance",
    "ExactResume",
    "FiniteLoss",
    "Latents",
    "LogLikelihood",
    "LossPerStep",
    "Neighbours",
    "RunRecord",
    "SampleDistance",
    "Samples",
    "ScoreField",
    "TimeEstimate",
    "WandbLogger",
]
