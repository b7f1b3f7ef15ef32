"""Ten generative models, each a LightningModule in one file.

    import zoo

    model = zoo.load("vae")           # a pretrained checkpoint by its name
    model = zoo.load("runs/vae/...")  # the best checkpoint of a run by its folder
    images = model.sample(16)         # (16, 1, 28, 28), values in [0, 1]
    model = zoo.create("ddpm", shape=(3, 32, 32))   # an untrained model, the same as zoo.DDPM(shape=(3, 32, 32))

    zoo.list_models()                 # names of the models: "zoo train model=NAME" trains one
    zoo.list_checkpoints("wgan*")     # names of pretrained checkpoints
    print(model)                      # what the model is, its hyperparameters, its networks
    help(model)                       # its arguments and methods

On the command line, "zoo --help" lists what a trained model can do. "import zoo" does not import torch. The
classes, such as zoo.VAE, and the packages inside, such as zoo.callbacks, are imported when they are first used.
"""

from __future__ import annotations

import sys
from pathlib import Path

TYPE_CHECKING = False  # type checkers treat it as True; importing it from typing would slow down "import zoo"
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from typing import Any

    import torch
    from lightning import LightningModule


class _Moved:
    """Finder of modules under the names of an earlier version. Python asks it last, for names without a file."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith("zoo."):
            return None
        from zoo.checks.moved import MovedModules

        return MovedModules.find_spec(name)


sys.meta_path.append(_Moved)

__version__ = "0.1.0"

# The class of each model. A checkpoint names its model. zoo.load builds only these classes, the classifiers below, and
# the class that its argument model_class gives.
MODELS = {
    "vae": "zoo.vae.VAE",
    "vade": "zoo.vade.VaDE",
    "ddpm": "zoo.ddpm.DDPM",
    "cvae": "zoo.cvae.CVAE",
    "rbm": "zoo.rbm.RBM",
    "gan": "zoo.gan.GAN",
    "wgan": "zoo.wgan.WGAN",
    "infogan": "zoo.infogan.InfoGAN",
    "score": "zoo.score.Score",
    "skipgram": "zoo.skipgram.SkipGram",
}

# Networks that score samples in zoo.evaluation. "zoo train experiment=NAME" trains one, and zoo.load loads it.
CLASSIFIERS = {
    "classifier": "zoo.evaluation.classifier.Classifier",
}

WEIGHTS = Path(__file__).parent / "weights"
CONFIGS = Path(__file__).parent / "configs"  # a link in a checkout, and a folder in an installed package

# Without the classes: help(zoo) would print all methods that ten LightningModules inherit, 26,000 lines.
__all__ = ["create", "list_checkpoints", "list_models", "load"]


def __getattr__(name: str) -> object:  # zoo/__init__.pyi has the types of these attributes
    from zoo.checks import lazy

    return lazy.attribute(name)


def __dir__() -> list[str]:
    from zoo.checks import lazy

    return lazy.names()


def list_models(pattern: str | Sequence[str] = "*") -> list[str]:
    """Return the names of the models, sorted. zoo.create(NAME) makes one, and "zoo train model=NAME" trains one.

    Args:
        pattern: names with wildcards, such as "*gan", or a list of them. The result is empty if nothing matches.
    """
    from zoo.checks.names import matching

    return matching(sorted(MODELS), pattern)


def list_checkpoints(
    pattern: str | Sequence[str] = "*", *, model: str | Sequence[str] = "*", data: str | Sequence[str] = "*"
) -> list[str]:
    """Return the names of the pretrained checkpoints, sorted. zoo.load(NAME) loads one.

    The command "zoo list" prints their models, data sets and scores.

    Args:
        pattern: names with wildcards, such as "wgan*", or a list of them. The result is empty if nothing matches.
        model: models of the checkpoints, in the same form, such as "*vae".
        data: data sets that the checkpoints were trained on, in the same form, such as "mnist".
    """
    from zoo.checks import names

    return names.matching_cards(WEIGHTS, pattern, model=model, data=data)


def create(name: str, /, **options: Any) -> LightningModule:
    """Return an untrained model, in training mode and on the CPU. torch.manual_seed determines its random weights.

    Example:
        >>> zoo.create("ddpm", shape=(3, 32, 32)).sample(2, num_steps=5).shape
        torch.Size([2, 3, 32, 32])

    Args:
        name: name of a model, from zoo.list_models(). It can also be a recipe of configs/experiment, such as
            "wgan_clip", which sets some options of a model.
        options: options of the model, as its class takes them: help(zoo.DDPM) explains those of "ddpm". All others
            have the values with which "zoo train" trains model=NAME or experiment=NAME. The shape, if neither
            gives it, is (1, 28, 28).

    Raises:
        zoo.checks.errors.UserError: for a wrong name, option or value. UserError is a ValueError.
    """
    from zoo import hub

    return hub.create(name, **options)


def load(
    source: str | Path,
    model_class: type[LightningModule] | None = None,
    *,
    device: str | int | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
) -> LightningModule:
    """Load a trained model, in eval mode.

    Example:
        >>> model = zoo.load("vae")
        >>> model.sample(16).shape
        torch.Size([16, 1, 28, 28])

    Args:
        source: what to load. It is one of:

            - The name of a pretrained checkpoint, from zoo.list_checkpoints().
            - A run folder, such as "runs/vae/2026-11-29_10-00-00-000000". Its newest best checkpoint is loaded, or
              its last checkpoint if there is no best one.
            - A checkpoint file of a run, such as "runs/vae/.../checkpoints/last.ckpt".
            - A file that "zoo export" wrote, such as "my-vae.safetensors". Its card must lie next to it.
            - The address of a safetensors file with the SHA-256 digest of the file,
              "https://.../vae.safetensors#sha256=<64 hexadecimal digits>". "http:" and "file:" work too.
            - A model that a run logged to Weights & Biases, "wandb:entity/project/vae-1a2b3c4d:best".
            - A repository of the Hugging Face Hub, "hf:user/repo", "hf:user/repo@revision" or "hf:user/repo/name".

        model_class: class of the model in a run folder, a checkpoint file or a repository. It is needed for a model
            that is not part of the zoo. Type checkers also take the class of the result from it.
        device: device of the model, such as "cpu", "cuda", "cuda:1" or "mps".
        dtype: type of the weights: float64, float32, bfloat16 or float16, as a string or as a torch.dtype. None keeps
            float32. Noise schedules and other exact buffers stay in float32 or float64.

    Returns:
        The LightningModule, such as a zoo.vae.VAE, with the hyperparameters and the weights of the checkpoint.

    Raises:
        zoo.hub.CheckpointError: if nothing is found, the digest differs, or the file is not a checkpoint of a model
            of the zoo. Files are read without unpickling code. CheckpointError is a ValueError.
        zoo.checks.errors.UserError: if this machine has no such device, or the device has no such dtype.
    """
    from zoo import hub

    return hub.load_on(source, model_class, device, dtype)
