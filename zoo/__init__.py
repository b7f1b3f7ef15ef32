"""Ten generative models, each a LightningModule in one file.

    import zoo

    zoo.list_models()                 # names of the models: python train.py model=NAME trains one
    zoo.list_checkpoints()            # names of the pretrained checkpoints
    model = zoo.load("vae")           # a pretrained checkpoint by its name
    model = zoo.load("runs/vae/...")  # the best checkpoint of a run by its folder
    images = model.sample(16)         # (16, 1, 28, 28), values in [0, 1]
    print(model)                      # what the model is, its hyperparameters, its networks
    help(model)                       # its arguments and methods

On the command line, "python -m zoo --help" lists what a trained model can do. This package imports torch only when a
model is loaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

TYPE_CHECKING = False  # type checkers treat it as True; importing it from typing would slow down "import zoo"
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

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

# Networks that score samples in zoo.evaluation. "python train.py experiment=NAME" trains one, and zoo.load loads it.
CLASSIFIERS = {
    "classifier": "zoo.evaluation.classifier.Classifier",
}

WEIGHTS = Path(__file__).parent / "weights"


def list_models() -> list[str]:
    """Return the names of the models, sorted. The command "python train.py model=NAME" trains one."""
    return sorted(MODELS)


def list_checkpoints() -> list[str]:
    """Return the names of the pretrained checkpoints, sorted. zoo.load(NAME) loads one.

    The command "python -m zoo list" prints their models, data sets and scores.
    """
    return sorted(card.stem for card in WEIGHTS.glob("*.json"))


def load(source: str | Path, model_class: type[LightningModule] | None = None) -> LightningModule:
    """Load a trained model, in eval mode and on the CPU.

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
            - The address of a safetensors file with the SHA-256 digest of the file,
              "https://.../vae.safetensors#sha256=<64 hexadecimal digits>". "http:" and "file:" work too.
            - A model that a run logged to Weights & Biases, "wandb:entity/project/vae-1a2b3c4d:best".
            - A repository of the Hugging Face Hub, "hf:user/repo", "hf:user/repo@revision" or "hf:user/repo/name".

        model_class: class of a model that is not part of the zoo, for its run folders, checkpoint files and
            repositories.

    Returns:
        The LightningModule, such as a zoo.vae.VAE, with the hyperparameters and the weights of the checkpoint.

    Raises:
        zoo.hub.CheckpointError: if nothing is found, the digest differs, or the file is not a checkpoint of a model
            of the zoo. Files are read without unpickling code. CheckpointError is a ValueError.
    """
    from zoo import hub

    return hub.load(source, model_class)
