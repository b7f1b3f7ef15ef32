"""Callbacks and loggers. They measure, draw and save. They never change the weights that training learns.

The callback ``EMA`` keeps an average of the weights. Validation, samples, tests and published checkpoints use it.
"""

if __name__ != "zoo.callbacks":  # another name would load a second copy of the package
    raise ImportError("callbacks cannot be imported under this name: import zoo.callbacks")

from zoo.callbacks.codes import Codes
from zoo.callbacks.ema import EMA
from zoo.callbacks.estimator_variance import EstimatorVariance
from zoo.callbacks.exact_resume import ExactResume
from zoo.callbacks.finite_loss import FiniteLoss
from zoo.callbacks.latents import Latents
from zoo.callbacks.log_likelihood import LogLikelihood
from zoo.callbacks.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from zoo.callbacks.loss_per_step import LossPerStep
from zoo.callbacks.mlflow_logger import MLFlowLogger
from zoo.callbacks.neighbours import Neighbours
from zoo.callbacks.pruning import Pruning
from zoo.callbacks.run_record import RunRecord
from zoo.callbacks.sample_distance import SampleDistance
from zoo.callbacks.samples import Samples
from zoo.callbacks.score_field import ScoreField
from zoo.callbacks.time_estimate import TimeEstimate

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
    "MLFlowLogger",
    "Neighbours",
    "Pruning",
    "RunRecord",
    "SampleDistance",
    "Samples",
    "ScoreField",
    "TensorBoardLogger",
    "TimeEstimate",
    "WandbLogger",
]
