"""The ten models in small sizes, with examples for them. A call of a small model takes milliseconds."""

import functools
import importlib

import torch

import zoo
from zoo.cvae import CVAE
from zoo.ddpm import DDPM
from zoo.gan import GAN
from zoo.infogan import InfoGAN
from zoo.rbm import RBM
from zoo.score import Score
from zoo.skipgram import SkipGram
from zoo.vade import VaDE
from zoo.vae import VAE
from zoo.wgan import WGAN

IMAGES = (1, 28, 28)


def _skipgram():
    model = SkipGram(dim=4)
    words = ["the", "of", "and", "in", "king"]
    model.make_vocabulary(words, torch.arange(5, 0, -1), torch.ones(5))
    model.output.weight.data.normal_()
    return model


MODELS = {
    "vae": lambda: VAE(latent_dim=2, hidden=[4]),
    "vae-categorical": lambda: VAE("categorical", 2, 3, hidden=[4], likelihood="gaussian"),
    "vae-colours": lambda: VAE(
        latent_dim=2, net="conv", hidden=[2], shape=[3, 9, 10], likelihood="discretised_logistic"
    ),
    "cvae": lambda: CVAE(latent_dim=2, hidden=[4]),
    "vade": lambda: VaDE(latent_dim=2, hidden=[4], num_clusters=3),
    "vade-colours": lambda: VaDE(
        latent_dim=2, hidden=[4], num_clusters=3, shape=[3, 6, 5], likelihood="gaussian_dequantised"
    ),
    "rbm": lambda: RBM(num_hidden=3),
    "rbm-gaussian": lambda: RBM(num_hidden=3, visible="gaussian"),
    "gan": lambda: GAN(width=2),
    "gan-labels": lambda: GAN(width=2, num_classes=10),
    "gan-points": lambda: GAN(network="mlp", shape=[2], hidden=[4]),
    "gan-sequence": lambda: GAN(network="sequence", shape=[5, 3], hidden=[4], width=4),
    "wgan": lambda: WGAN(width=2),
    "wgan-labels": lambda: WGAN(width=2, num_classes=10),
    "infogan": lambda: InfoGAN(width=2, features=8),
    "ddpm": lambda: DDPM(widths=[8], steps=30),
    "ddpm-labels": lambda: DDPM(widths=[8], steps=30, num_classes=10),
    "score": lambda: Score(widths=[8], num_sigmas=3),
    "score-labels": lambda: Score(widths=[8], num_sigmas=3, num_classes=10),
    "score-points": lambda: Score(shape=[2], hidden=[4], num_sigmas=3),
    "skipgram": _skipgram,
}


def _with_its_defaults(name):
    module, _, kind = zoo.MODELS[name].rpartition(".")
    return lambda: getattr(importlib.import_module(module), kind)()


# A model that is not listed above is tested with its default arguments.
MODELS |= {name: _with_its_defaults(name) for name in zoo.MODELS if name not in MODELS}


@functools.cache
def made(name):
    """Return the model ``MODELS[name]`` in eval mode. All tests share the model, so they must not change it."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def data_of(model, n):
    """Return ``n`` examples for the model. For SkipGram, the examples are a batch of ``n`` rows of a text."""
    if isinstance(model, SkipGram):
        return [torch.arange(n * 36).view(n, 36) % 5, torch.ones(n, 32, dtype=torch.long)]
    shape = tuple(model.hparams.get("shape", IMAGES))
    if len(shape) == 2:
        return torch.nn.functional.one_hot(torch.arange(n * shape[0]).view(n, -1) % shape[1], shape[1]).float()
    return torch.linspace(0, 1, n * torch.Size(shape).numel()).view(n, *shape)
