"""GAN: a generative adversarial network for images, points or one-hot sequences.

The discriminator D learns to distinguish data from samples. The generator G learns to make samples that D classifies as
data.

Papers: Goodfellow et al., "Generative Adversarial Nets", 2014, arXiv:1406.2661; [DSL 13.1]. The networks follow DCGAN
(Radford et al. 2016, arXiv:1511.06434) and are in zoo/nets/adversarial.py. Labels enter as in Mirza & Osindero,
"Conditional Generative Adversarial Nets", 2014, arXiv:1411.1784. The loss ``kl`` and the model of discrete sequences
follow [Xu18a]. docs/references.md explains the keys in brackets.

    V(G, D) = E_data[ log D(x) ] + E_z[ log(1 - D(G(z))) ]       eq. 1        value_function
    D*(x)   = argmax_D V = p_data(x) / (p_data(x) + p_G(x))      prop. 1      GAN.discriminator_terms
    C(G)    = max_D V = -log 4 + 2 JS(p_data || p_G)             theorem 1    jensen_shannon

The discriminator minimises -V. The generator minimises one of three losses, each the mean over z of a function of the
logit l = log D(G(z)) - log(1 - D(G(z))):

    non_saturating   -log D(G(z)) = softplus(-l)                            sec. 3     generator_objective
    minimax          log(1 - D(G(z))) = -softplus(l)                        eq. 1      generator_objective
    kl               -[ log D(G(z)) - log(1 - D(G(z))) ] = -l               [Xu18a]    generator_objective

With the optimal discriminator, l = log p_data - log p_G, and ``kl`` minimises KL(p_G || p_data).

With labels y (``num_classes``), D(x, y) and G(z, y) replace D(x) and G(z) (Mirza & Osindero 2014, eq. 2). Data and
samples have the labels of the batch. The optimal D(x, y) is p_data(x | y) / (p_data(x | y) + p_G(x | y)), and C(G) has
the mean of the divergence over labels.

Symbols:
    x            data: images (B, C, H, W) in [0, 1], points (B, 2), or one-hot sequences (B, T, K)
    y            labels, (B,), integers
    T            length of a sequence
    K            number of symbols
    v            a one-hot sequence, (T, K)
    z            standard normal noise (B, z_dim); for sequences, uniform noise (B, T, K)
    real         data in the form that the networks take: images are in [-1, 1]
    fake         samples in the same form
    logits       l = log D(x) - log(1 - D(x)) of each example x, (B,)

Logged with the prefixes train/, val/ and test/:
    discriminator_loss   -V, nats
    generator_loss       the loss of the generator, nats
    D_x                  mean of D(x)
    D_G_z                mean of D(G(z))
    value                V, nats
    js                   (V + log 4) / 2, nats
    log_likelihood       mean of log p(v), nats; only for sequences, in validation and test

``js`` is the Jensen-Shannon divergence if D is optimal, and 0 if D is 1/2 everywhere. In validation and test, the
expectation of ``js`` is a lower bound of the divergence for any D. In these two stages, D scores each example
separately and was not trained on the examples. In training, ``js`` is not a bound.

Differs from the papers:
- Each batch is one step of the discriminator, with new data as in algorithm 1. Every k-th batch, with
  k = ``discriminator_steps``, is also a step of the generator. The two steps draw separate noise.
- BatchNorm uses batch statistics in training, and running statistics in sampling and evaluation. A step of one network
  also updates the running statistics of the other network, but not the weights of the other network. Validation first
  recomputes all running statistics from samples.
- In training on several processes, BatchNorm uses the examples of one process. The results therefore differ from
  training on one process. The checkpoint has the running statistics of rank 0. Nothing else depends on how a batch is
  divided between processes.
- z is normal. In DCGAN it is uniform.
- Each network has two convolutions for images of 28 x 28 pixels, and four for 64 x 64 pixels, as in DCGAN. The kernels
  have 4 x 4 weights (DCGAN: 5 x 5). Each network also has a fully connected layer of 256 units, as the networks of
  Chen et al. 2016, arXiv:1606.03657, do. ``features=0`` and ``generator_features=0`` remove these layers.
- Mirza & Osindero join label and image in the first layers of D. In this file, the last layer of D adds the projection
  of its features on a learned vector of the label (Miyato & Koyama 2018, arXiv:1802.05637).
- The learning rates are 5e-4 for the discriminator and 3e-3 for the generator. DCGAN has 2e-4 for both.
- Validation and test evaluate the exponential moving average of both networks (callbacks/ema.py).
- [Xu18a] prints a minus between the two terms of the discriminator's loss. The correct sign is a plus.
- Sequences: [Xu18a] draws the symbol K_t at position t from softmax(mu_t(z_t)). In this file, mu_t comes from a
  recurrent network that reads the symbols before t. The draws of K_t are the only noise, so log p(v) is exact. With
  ``straight_through``, samples are one-hot vectors. With ``gumbel_softmax``, they are relaxed vectors, which D can
  distinguish from data by their values alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.checks.capabilities import EXACT
from zoo.checks.errors import UserError
from zoo.checks.inputs import checks_inputs, data, numbers, optional_labels, seen_by_networks, takes
from zoo.checks.labels import Labels, labels_or_none
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_fraction, check_integer, check_positive
from zoo.estimators import GradientEstimator, Noise, with_gradient
from zoo.functional.densities import at_least_float32
from zoo.functional.latents import Categorical
from zoo.functional.noise import chunk_generator, rand, randn, uniform_labels
from zoo.nets.adversarial import (
    SequenceGenerator,
    centre,
    check_networks,
    make_discriminator,
    make_generator,
    uncentre,
    with_label,
)
from zoo.nets.description import described
from zoo.training.adversarial import check_batches, generate, recompute_batch_norm, step

GENERATOR_LOSSES = ("non_saturating", "minimax", "kl")
RELAXATIONS = ("straight_through", "gumbel_softmax")


def value_function(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return V = mean log D(x) + mean log(1 - D(G(z))), eq. 1, () nats, from logits (B,).

    log D = -softplus(-l) and log(1 - D) = -softplus(l) are finite for every logit.
    """
    return -F.softplus(-real_logits).mean() - F.softplus(fake_logits).mean()


def jensen_shannon(value: Tensor) -> Tensor:
    """Return (V + log 4) / 2, nats. It is the Jensen-Shannon divergence if the discriminator is optimal."""
    return (value + math.log(4)) / 2


def generator_objective(fake_logits: Tensor, kind: str) -> Tensor:
    """Return the generator's loss ``kind``, () nats, from the logits of its samples, (B,)."""
    if kind == "non_saturating":
        return F.softplus(-fake_logits).mean()  # non_saturating
    if kind == "minimax":
        return -F.softplus(fake_logits).mean()  # minimax
    return -fake_logits.mean()  # kl


@described
@accepts_old_form("z", "noise", "discriminator_loss", "generator_loss", labels="y")
@checks_inputs(
    x=data, z=numbers(lambda self: self.z_shape, leading=False, fractions=lambda self: len(self.z_shape) > 1)
)
class GAN(L.LightningModule):
    """Generative adversarial network for images, points or one-hot sequences, with or without labels.

    Args:
        network: ``conv`` for images, ``mlp`` for any shape, or ``sequence`` for one-hot sequences.
        shape: Shape of one example: [C, H, W] for images, [2] for points, [T, K] for sequences.
        z_dim: Number of dimensions of z.
        width: Channels of ``conv`` at half the sides of the images, or units of the recurrent state of ``sequence``.
        hidden: Widths of the hidden layers of ``mlp``, and of the discriminator of sequences.
        generator_loss: ``non_saturating``, ``minimax`` or ``kl``.
        discriminator_steps: k, discriminator steps per generator step.
        lr_discriminator: Adam's learning rate for the discriminator.
        lr_generator: Adam's learning rate for the generator.
        beta1: Adam's beta_1, at least 0 and below 1.
        relaxation: How gradients pass through the symbols of sequences: ``straight_through`` or ``gumbel_softmax``.
        temperature: Temperature of the relaxation, positive.
        num_classes: Number of classes, or None to train without labels. Sequences have no labels.
        features: Units of the last hidden layer of the discriminator with ``conv``, or 0 for no such layer.
        generator_features: Units of the first hidden layer of the generator with ``conv``, or 0 for no such layer.

    Raises:
        UserError: If an argument has a value that is not allowed.
    """

    def __init__(
        self,
        network: Literal["conv", "mlp", "sequence"] = "conv",
        shape: Sequence[int] = (1, 28, 28),
        z_dim: int = 64,
        width: int = 32,
        hidden: Sequence[int] = (256, 256),
        generator_loss: Literal["non_saturating", "minimax", "kl"] = "non_saturating",
        discriminator_steps: int = 1,
        lr_discriminator: float = 5e-4,
        lr_generator: float = 3e-3,
        beta1: float = 0.5,
        relaxation: Literal["straight_through", "gumbel_softmax"] = "straight_through",
        temperature: float = 1.0,
        num_classes: int | None = None,
        features: int = 256,
        generator_features: int = 256,
    ):
        super().__init__()
        check_choice("network", network, ("conv", "mlp", "sequence"))
        check_networks(network, shape, width, hidden, z_dim)
        check_choice("generator_loss", generator_loss, GENERATOR_LOSSES)
        check_choice("relaxation", relaxation, RELAXATIONS)
        check_positive("temperature", temperature)
        check_integer("discriminator_steps", discriminator_steps)
        check_positive("lr_discriminator", lr_discriminator)
        check_positive("lr_generator", lr_generator)
        check_fraction("beta1", beta1)
        check_integer("features", features, least=0)
        check_integer("generator_features", generator_features, least=0)
        if num_classes is not None:
            check_integer("num_classes", num_classes)
        if network == "sequence" and (len(shape) != 2 or shape[1] < 2):
            raise UserError(
                f"shape must be [length, symbols] with at least 2 symbols for network=sequence, got {list(shape)}"
            )
        if network == "sequence" and num_classes is not None:
            raise UserError(
                f"network=sequence takes no labels, got num_classes={num_classes}: set model.num_classes=null"
            )
        shape, hidden = list(shape), list(hidden)
        self.save_hyperparameters()
        self.automatic_optimization = False
        if network == "sequence":
            self.generator = SequenceGenerator(shape[1], shape[0], width)
        else:
            self.generator = make_generator(network, z_dim, shape, width, hidden, generator_features, num_classes)
        self.discriminator = make_discriminator(network, shape, width, hidden, "batch", features, num_classes)

    # Networks and losses.

    @property
    def z_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one example: (z_dim,), or (T, K) for sequences."""
        return tuple(self.hparams.shape) if self.hparams.network == "sequence" else (self.hparams.z_dim,)

    def z(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw noise for ``n`` examples: standard normal (n, z_dim), or uniform (n, T, K) for sequences."""
        draw = rand if self.hparams.network == "sequence" else randn
        return draw(n, *self.z_shape, generator=generator, device=self.device)

    def noise(self, batch, *, generator: torch.Generator | None = None) -> Noise:
        """Draw one ``z`` for each example of the batch."""
        return {"z": self.z(len(batch[0]), generator=generator)}

    def _labels(self, y: Labels | None, n: int) -> Tensor | None:
        return labels_or_none(y, n, self.hparams.num_classes, self.device)

    def _inputs(self, z: Tensor, y: Labels | None) -> Tensor:
        return with_label(z, self._labels(y, len(z)), self.hparams.num_classes)

    def G(self, z: Tensor, y: Labels | None = None) -> Tensor:
        """Return samples (B, *shape) for training, with labels ``y`` (B,) if the model has labels.

        Images are in [-1, 1]. Sequences are differentiable.
        """
        z = self._inputs(z, y)
        return self.generator(z, self._relaxed) if self.hparams.network == "sequence" else self.generator(z)

    def _relaxed(self, logits: Tensor, u: Tensor) -> Tensor:
        q = Categorical(logits)
        s = q.perturb(u)
        soft = q.soften(s, self.hparams.temperature)
        return soft if self.hparams.relaxation == "gumbel_softmax" else with_gradient(q.harden(s).detach(), soft)

    @takes(x=seen_by_networks)
    def logits(self, x: Tensor, y: Labels | None = None) -> Tensor:
        """Return l = log D - log(1 - D), (B,), for examples (B, *shape). Images are in [-1, 1].

        ``y`` are their labels, (B,), if the model has labels.
        """
        y = self._labels(y, len(x))
        return at_least_float32(self.discriminator(x) if y is None else self.discriminator(x, y)).squeeze(-1)

    def discriminator_terms(self, x: Tensor, noise: Noise, y: Labels | None = None) -> dict[str, Tensor]:
        """Return ``loss`` = -V, ``value`` and ``js``, nats, and ``D_x`` and ``D_G_z``, for data ``x`` (B, *shape).

        ``y`` are the labels of the data and of the samples, (B,), if the model has labels.
        """
        y = self._labels(y, len(x))
        with torch.no_grad():
            fake = self.G(noise["z"], y)
        real_logits, fake_logits = self.logits(centre(x, self.hparams.shape), y), self.logits(fake, y)
        value = value_function(real_logits, fake_logits)
        means = {"D_x": real_logits.sigmoid().mean(), "D_G_z": fake_logits.sigmoid().mean()}
        return {"loss": -value, "value": value, "js": jensen_shannon(value), **means}  # D*(x) minimises the loss

    def generator_terms(self, noise: Noise, kind: str | None = None, y: Labels | None = None) -> dict[str, Tensor]:
        """Return the generator's ``loss``, nats, for samples with labels ``y`` (B,) if the model has labels.

        ``kind`` is the name of the loss, by default the model's.
        """
        y = self._labels(y, len(noise["z"]))
        logits = self.logits(self.G(noise["z"], y), y)
        return {"loss": generator_objective(logits, kind or self.hparams.generator_loss)}

    def discriminator_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw noise and return :meth:`discriminator_terms`. The discriminator minimises ``loss``."""
        return self.discriminator_terms(batch[0], self.noise(batch, generator=generator), optional_labels(batch, self))

    def generator_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw noise and return the generator's ``loss``, nats. Only the size and the labels of ``batch`` are used."""
        return self.generator_terms(self.noise(batch, generator=generator), y=optional_labels(batch, self))

    # Training, with manual optimisation.

    def on_train_start(self):
        check_batches(self)

    def graph_key(self) -> bool:
        """Return whether the next training step also updates the generator."""
        return (self.trainer.fit_loop.total_batch_idx + 1) % self.hparams.discriminator_steps == 0

    def training_step(self, batch, batch_idx):
        d_optimiser, g_optimiser = self.optimizers()
        terms = step(self, d_optimiser, self.discriminator_loss, batch, counts=True)
        seen = self._log("train", "discriminator", terms)
        if self.graph_key():
            terms = step(self, g_optimiser, self.generator_loss, batch, counts=False)
            seen |= self._log("train", "generator", terms)
        return seen

    def _log(self, stage: str, network: str, terms: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
        self.log(f"{stage}/{network}_loss", terms["loss"], prog_bar=True, **kwargs)
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items() if k != "loss"}, **kwargs)
        return {f"{network}_loss" if k == "loss" else k: v.detach() for k, v in terms.items()}

    def on_validation_epoch_start(self):
        def see_samples(i: int) -> None:
            z, y = self._draw(250, generator=chunk_generator(0, i))
            self.logits(self.G(z, y), y)

        recompute_batch_norm(self, see_samples)

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        how = {"sync_dist": True, "batch_size": len(batch[0])}
        self._log(stage, "discriminator", self.discriminator_loss(batch, generator=generator), **how)
        self._log(stage, "generator", self.generator_loss(batch, generator=generator), **how)
        if self.hparams.network == "sequence":
            self.log(f"{stage}/log_likelihood", self.log_likelihood(batch[0]).mean(), **how)

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        rates = {self.discriminator: self.hparams.lr_discriminator, self.generator: self.hparams.lr_generator}
        # On a CPU, fused=True takes 1.5 ms instead of 7 ms for the default discriminator (docs/results.md).
        betas = (self.hparams.beta1, 0.999)
        return [torch.optim.Adam(net.parameters(), lr=lr, betas=betas, fused=True) for net, lr in rates.items()]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "gan"

    # Use of a trained model.

    @torch.no_grad()
    def sample(self, n: int, *, y: Labels | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples: images (n, C, H, W) in [0, 1], points (n, 2) or one-hot sequences (n, T, K).

        Args:
            y: for a model with labels, ``n`` labels or one label for all samples. None draws labels uniformly. The
                noise z does not depend on ``y``.
        """
        z, drawn = self._draw(n, generator=generator)
        z = self._inputs(z, drawn if y is None else y)
        if self.hparams.network == "sequence":
            return self.generator(z, lambda logits, u: Categorical(logits).draw(u))
        return uncentre(generate(self.generator, z), self.hparams.shape)

    def _draw(self, n: int, *, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        z = self.z(n, generator=generator)
        return z, uniform_labels(n, self.hparams.num_classes, generator=generator, device=self.device)

    def rows(self) -> tuple[str, list[int]] | None:
        """Return "y" and all labels, one for each row of a picture of samples. Return None if there are no labels."""
        classes = self.hparams.num_classes
        return None if classes is None else ("y", list(range(classes)))

    @property
    def log_likelihood_by(self) -> str | None:
        """Method that computes ``log_likelihood``. None for networks other than ``sequence``."""
        return EXACT if self.hparams.network == "sequence" else None

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, *, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return the exact log p(v) of one-hot sequences (B, T, K) under the generator, (B,) nats.

        ``y`` and ``generator`` are not used.

        Raises:
            UserError: If the network is not ``sequence``. Other networks have no tractable density.
        """
        if self.hparams.network != "sequence":
            network = self.hparams.network
            raise UserError(f"a GAN has no likelihood with network={network}; only network=sequence has one")
        return self.generator.log_probability(x)

    # Gradient estimators.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return gradient estimators by name: one for each loss of the generator, and ``discriminator`` for -V.

        The model's ``generator_loss`` comes first, and ``discriminator`` last. Each gradient is with respect to the
        parameters of the network that minimises the loss. One draw has one z for each example of the batch.
        """

        def estimator(name: str, network: str, loss: Callable) -> GradientEstimator:
            own = {k: p for k, p in self.named_parameters() if k.startswith(f"{network}.")}
            # torch.func.vmap does not support BatchNorm that updates running statistics.
            return GradientEstimator.of(self, name, own, self.noise, loss, batched=False)

        def of_generator(kind: str) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                return self.generator_terms(noise, kind, optional_labels(batch, self))["loss"]

            return estimator(kind, "generator", loss)

        def discriminator_loss(batch, noise: Noise) -> Tensor:
            return self.discriminator_terms(batch[0], noise, optional_labels(batch, self))["loss"]

        kinds = dict.fromkeys([self.hparams.generator_loss, *GENERATOR_LOSSES])
        estimators = {kind: of_generator(kind) for kind in kinds}
        estimators["discriminator"] = estimator("discriminator", "discriminator", discriminator_loss)
        return estimators
