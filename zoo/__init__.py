"""Ten generative models, each a LightningModule in one file.

    import zoo
    zoo.list_models()          # recipes: python train.py model=<name>
    zoo.list_checkpoints()     # pretrained weights
    zoo.load("vae")            # one of them, or a training checkpoint by its path

Importing this package imports no torch; asking for a model does.
"""

from __future__ import annotations

import sys
from pathlib import Path

TYPE_CHECKING = False  # as type checkers read it: neither typing nor Lightning is imported here
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from lightning import LightningModule


class _Moved:
    """Finds modules by their names of an earlier version; looked at last, for names that no file has."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith("zoo."):
            return None
        from zoo.checks.moved import MovedModules

        return MovedModules.find_spec(name)


sys.meta_path.append(_Moved)

# The class of each model. Checkpoints name their model, and only these are ever built.
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

# What judges their samples in zoo.evaluation: trained by python train.py experiment=<name>, and loaded like them.
JUDGES = {
    "classifier": "zoo.evaluation.classifier.Classifier",
}

WEIGHTS = Path(__file__).parent / "weights"


def list_models() -> list[str]:
    """Names of the models that ``python train.py model=<name>`` trains."""
    return sorted(MODELS)


def list_checkpoints() -> list[str]:
    """Names of the pretrained checkpoints that ``zoo.load(<name>)`` loads."""
    return sorted(card.stem for card in WEIGHTS.glob("*.json"))


def load(source: str | Path, model_class: type[LightningModule] | None = None) -> LightningModule:
    """A trained model in eval mode, on the CPU: see :func:`zoo.hub.load`."""
    from zoo import hub

    return hub.load(source, model_class)
