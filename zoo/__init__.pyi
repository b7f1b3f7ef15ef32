"""The types of the package, for type checkers and editors. zoo/__init__.py imports the classes when they are used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from lightning import LightningModule

from zoo import callbacks as callbacks
from zoo import checks as checks
from zoo import commands as commands
from zoo import datamodules as datamodules
from zoo import estimators as estimators
from zoo import evaluation as evaluation
from zoo import functional as functional
from zoo import hub as hub
from zoo import nets as nets
from zoo import sampling as sampling
from zoo import training as training
from zoo.cvae import CVAE as CVAE
from zoo.ddpm import DDPM as DDPM
from zoo.evaluation.classifier import Classifier as _Classifier
from zoo.gan import GAN as GAN
from zoo.infogan import InfoGAN as InfoGAN
from zoo.rbm import RBM as RBM
from zoo.score import Score as Score
from zoo.skipgram import SkipGram as SkipGram
from zoo.vade import VaDE as VaDE
from zoo.vae import VAE as VAE
from zoo.wgan import WGAN as WGAN

_Model = TypeVar("_Model", bound=LightningModule)
_Device = str | int | torch.device
_DType = str | torch.dtype | None
_Patterns = str | Sequence[str]

__all__ = ["create", "list_checkpoints", "list_models", "load"]
__version__: str
MODELS: dict[str, str]
CLASSIFIERS: dict[str, str]
WEIGHTS: Path
CONFIGS: Path

def list_models(pattern: _Patterns = "*") -> list[str]: ...
def list_checkpoints(pattern: _Patterns = "*", *, model: _Patterns = "*", data: _Patterns = "*") -> list[str]: ...

# Names of models and recipes.
@overload
def create(name: Literal["cvae"], /, **options: Any) -> CVAE: ...
@overload
def create(
    name: Literal["ddpm", "ddpm_bound", "ddpm_cifar10", "ddpm_guided", "ddpm_ho"], /, **options: Any
) -> DDPM: ...
@overload
def create(name: Literal["gan", "gan_celeba64", "gan_discrete"], /, **options: Any) -> GAN: ...
@overload
def create(name: Literal["infogan"], /, **options: Any) -> InfoGAN: ...
@overload
def create(name: Literal["rbm", "rbm_features", "rbm_gaussian"], /, **options: Any) -> RBM: ...
@overload
def create(name: Literal["score", "score_mixture"], /, **options: Any) -> Score: ...
@overload
def create(name: Literal["skipgram"], /, **options: Any) -> SkipGram: ...
@overload
def create(name: Literal["vade"], /, **options: Any) -> VaDE: ...
@overload
def create(
    name: Literal["vae", "iwae_burda", "vae_bernoulli", "vae_burda", "vae_cifar10", "vae_gaussian"], /, **options: Any
) -> VAE: ...
@overload
def create(name: Literal["wgan", "wgan_clip", "wgan_ring"], /, **options: Any) -> WGAN: ...
@overload
def create(name: Literal["classifier"], /, **options: Any) -> _Classifier: ...
@overload
def create(name: str, /, **options: Any) -> LightningModule: ...

# Names of pretrained checkpoints.
@overload
def load(source: Literal["cvae"], *, device: _Device = "cpu", dtype: _DType = None) -> CVAE: ...
@overload
def load(source: Literal["ddpm-guided", "ddpm"], *, device: _Device = "cpu", dtype: _DType = None) -> DDPM: ...
@overload
def load(source: Literal["gan-discrete", "gan"], *, device: _Device = "cpu", dtype: _DType = None) -> GAN: ...
@overload
def load(source: Literal["infogan"], *, device: _Device = "cpu", dtype: _DType = None) -> InfoGAN: ...
@overload
def load(source: Literal["rbm-features", "rbm"], *, device: _Device = "cpu", dtype: _DType = None) -> RBM: ...
@overload
def load(source: Literal["score-mixture", "score"], *, device: _Device = "cpu", dtype: _DType = None) -> Score: ...
@overload
def load(source: Literal["skipgram"], *, device: _Device = "cpu", dtype: _DType = None) -> SkipGram: ...
@overload
def load(source: Literal["vade"], *, device: _Device = "cpu", dtype: _DType = None) -> VaDE: ...
@overload
def load(source: Literal["iwae", "vae-bernoulli", "vae"], *, device: _Device = "cpu", dtype: _DType = None) -> VAE: ...
@overload
def load(
    source: Literal["wgan-clip", "wgan-ring", "wgan"], *, device: _Device = "cpu", dtype: _DType = None
) -> WGAN: ...
@overload
def load(source: Literal["classifier"], *, device: _Device = "cpu", dtype: _DType = None) -> _Classifier: ...
@overload
def load(source: str | Path, model_class: type[_Model], *, device: _Device = "cpu", dtype: _DType = None) -> _Model: ...
@overload
def load(
    source: str | Path, model_class: None = None, *, device: _Device = "cpu", dtype: _DType = None
) -> LightningModule: ...
