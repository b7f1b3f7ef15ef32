"""GAN: a generator learns from a discriminator that tells its samples from data.

Goodfellow et al., "Generative Adversarial Nets", 2014, arXiv:1406.2661; networks after Radford et al. 2016 (DCGAN),
arXiv:1511.06434; seed 004 sec. 13.1, and seed 001's motivating example (discrete samples, the loss ``kl``).

    V(G, D) = E_data[ log D(x) ] + E_z[ log(1 - D(G(z))) ]                                       eq. 1
    D*(x)   = p_data(x) / (p_data(x) + p_G(x)),   max_D V = C(G) = -log 4 + 2 JS(p_data || p_G)  prop. 1, theorem 1

    the discriminator descends -V; the generator descends, of the discriminator's logit l = log D - log(1 - D),
    non_saturating   -log D(G(z))                          = softplus(-l)                        sec. 3
    minimax          log(1 - D(G(z)))                      = -softplus(l)                        eq. 1
    kl               -[ log D(G(z)) - log(1 - D(G(z))) ]   = -l                                  seed 001

With the optimal discriminator l = log p_data - log p_G, so that ``kl`` descends KL(p_G || p_data).

Symbols: x data, images in [0, 1], (B, 1, 28, 28), points (B, 2), or one-hot sequences (B, T, K); z ~ N(0, I),
(B, z_dim), or for sequences uniform noise u (B, T, K); real, fake what the players see, images in [-1, 1]; logits (B,).
Logged, {train,val,test}/: discriminator_loss = -V and generator_loss, in nats; D_x and D_G_z, the means of D(x) and
D(G(z)); value, V; js, (V + log 4) / 2, in nats: what C(G) says of the Jensen-Shannon divergence, and 0 where D is
constant at 1/2. In validation and test, where D judges each example by itself and has not seen the data, it is a lower
bound in expectation, whatever D; in training it is none. Of sequences also log_likelihood, its mean, in nats.

Differs from the papers:
- One batch is one step of the discriminator, so that each sees fresh data (algorithm 1); every k-th batch is a step of
  the generator. Batches with a step of both draw their noise apart.
- Batch normalisation is by batch in training and by running statistics in samples and judgement; either player's step
  runs both networks and moves the statistics, not the weights, of both. Validation takes them anew, from samples. On
  several processes or GPUs each normalises by its own part of the batch, and the first one's statistics are saved: so
  many examples fewer to a norm, and other steps than on one. Nothing else depends on how a batch is split.
- z is normal (uniform in DCGAN).
- Two convolutions in place of DCGAN's four, for 28 pixels, and a layer of 256; learning rates of 5e-4 and 1e-3 (2e-4
  both). The exponential moving average of both players is judged.
- Seed 001 prints a minus between the discriminator's two terms; both are added.
- Sequences: seed 001's K_t ~ softmax(mu_t(z_t)) is a recurrent network that reads the symbols so far, its only noise is
  that of the symbols, so that log p(v) is exact. By ``straight_through`` the discriminator sees one-hot vectors, by
  ``gumbel_softmax`` relaxed ones, which it can tell from data by that alone.
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
from zoo.checks.inputs import checks_inputs, data, numbers, seen_by_players, takes
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_positive, check_share, check_whole
from zoo.estimators import GradientEstimator, Noise, with_gradient
from zoo.functional.densities import at_least_float32
from zoo.functional.latents import Categorical
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.nets.adversarial import SequenceGenerator, centre, check_networks, make_discriminator, make_generator, uncentre
from zoo.nets.description import described
from zoo.training.adversarial import check_batches, generate, restate, step

GENERATOR_LOSSES = ("non_saturating", "minimax", "kl")
RELAXATIONS = ("straight_through", "gumbel_softmax")


def value_function(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """V = mean log D(x) + mean log(1 - D(G(z))), eq. 1, from logits (B,); () nats.

    log D = -softplus(-l) and log(1 - D) = -softplus(l): finite for every logit.
    """
    return -F.softplus(-real_logits).mean() - F.softplus(fake_logits).mean()


def jensen_shannon(value: Tensor) -> Tensor:
    """(V + log 4) / 2, the divergence that V would imply were its discriminator optimal; nats."""
    return (value + math.log(4)) / 2


def generator_objective(fake_logits: Tensor, kind: str) -> Tensor:
    """What the generator descends, by name, from the logits of its samples (B,); () nats."""
    if kind == "non_saturating":
        return F.softplus(-fake_logits).mean()
    return -F.softplus(fake_logits).mean() if kind == "minimax" else -fake_logits.mean()


@described
@accepts_old_form("z", "noise", "discriminator_loss", "generator_loss")
@checks_inputs(
    x=data, z=numbers(lambda self: self.z_shape, leading=False, fractions=lambda self: len(self.z_shape) > 1)
)
class GAN(L.LightningModule):
    """The model, its training and its uses.

    Args:
        network: ``conv`` for images, ``mlp`` for any shape, ``sequence`` for one-hot sequences.
        shape: of one example: [1, 28, 28]; [2] for points; [T, K] for sequences.
        z_dim: dimensions of z.
        width: channels of ``conv`` at 14 x 14 pixels, or size of the recurrent state.
        hidden: widths of the hidden layers of ``mlp``, and of the discriminator of sequences.
        generator_loss: ``non_saturating``, ``minimax`` or ``kl``.
        discriminator_steps: k, steps of the discriminator for one of the generator.
        lr_discriminator: of Adam.
        lr_generator: of Adam.
        beta1: of Adam, at least 0, below 1.
        relaxation: of symbols, ``straight_through`` or ``gumbel_softmax``.
        temperature: of the relaxation, positive.

    Raises:
        UserError: for a value outside these.
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
        lr_generator: float = 1e-3,
        beta1: float = 0.5,
        relaxation: Literal["straight_through", "gumbel_softmax"] = "straight_through",
        temperature: float = 1.0,
    ):
        super().__init__()
        check_choice("network", network, ("conv", "mlp", "sequence"))
        check_networks(network, shape, width, hidden, z_dim)
        check_choice("generator_loss", generator_loss, GENERATOR_LOSSES)
        check_choice("relaxation", relaxation, RELAXATIONS)
        check_positive("temperature", temperature)
        check_whole("discriminator_steps", discriminator_steps)
        check_positive("lr_discriminator", lr_discriminator)
        check_positive("lr_generator", lr_generator)
        check_share("beta1", beta1)
        if network == "sequence" and (len(shape) != 2 or shape[1] < 2):
            raise UserError(f"a sequence has the shape [length, symbols], at least 2 symbols; got {list(shape)}")
        shape, hidden = list(shape), list(hidden)
        self.save_hyperparameters()
        self.automatic_optimization = False
        if network == "sequence":
            self.generator = SequenceGenerator(shape[1], shape[0], width)
        else:
            self.generator = make_generator(network, z_dim, shape, width, hidden)
        self.discriminator = make_discriminator(network, shape, width, hidden, "batch")

    # The two players.

    @property
    def z_shape(self) -> tuple[int, ...]:
        """Of the noise for one example: (z_dim,), or (T, K) for sequences."""
        return tuple(self.hparams.shape) if self.hparams.network == "sequence" else (self.hparams.z_dim,)

    def z(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """The generator's noise for ``n`` examples: standard normal (n, z_dim), or uniform (n, T, K) for sequences."""
        draw = rand if self.hparams.network == "sequence" else randn
        return draw(n, *self.z_shape, generator=generator, device=self.device)

    def noise(self, batch, *, generator: torch.Generator | None = None) -> Noise:
        """``z``, as many as examples in the batch."""
        return {"z": self.z(len(batch[0]), generator=generator)}

    def G(self, z: Tensor) -> Tensor:
        """What the generator makes of noise, (B, *shape): images in [-1, 1]; sequences relaxed, to be learned from."""
        return self.generator(z, self._relaxed) if self.hparams.network == "sequence" else self.generator(z)

    def _relaxed(self, logits: Tensor, u: Tensor) -> Tensor:
        q = Categorical(logits)
        s = q.perturb(u)
        soft = q.soften(s, self.hparams.temperature)
        return soft if self.hparams.relaxation == "gumbel_softmax" else with_gradient(q.harden(s).detach(), soft)

    @takes(x=seen_by_players)
    def logits(self, x: Tensor) -> Tensor:
        """l = log D - log(1 - D) of examples as the players see them, (B, *shape) to (B,)."""
        return at_least_float32(self.discriminator(x)).squeeze(-1)

    def discriminator_terms(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """``loss`` = -V, ``value``, ``js``, nats; ``D_x`` and ``D_G_z``: of data ``x`` (B, *shape) and of the noise."""
        with torch.no_grad():
            fake = self.G(noise["z"])
        real_logits, fake_logits = self.logits(centre(x, self.hparams.shape)), self.logits(fake)
        value = value_function(real_logits, fake_logits)
        means = {"D_x": real_logits.sigmoid().mean(), "D_G_z": fake_logits.sigmoid().mean()}
        return {"loss": -value, "value": value, "js": jensen_shannon(value), **means}

    def generator_terms(self, noise: Noise, kind: str | None = None) -> dict[str, Tensor]:
        """``loss``, of ``kind`` (the model's own if None), nats."""
        return {"loss": generator_objective(self.logits(self.G(noise["z"])), kind or self.hparams.generator_loss)}

    def discriminator_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The terms of the discriminator, whose ``loss`` it descends, with noise of their own."""
        return self.discriminator_terms(batch[0], self.noise(batch, generator=generator))

    def generator_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The terms of the generator, whose ``loss`` it descends; of the batch only its size counts."""
        return self.generator_terms(self.noise(batch, generator=generator))

    # Training, by hand.

    def on_train_start(self):
        check_batches(self)

    def training_step(self, batch, batch_idx):
        d_optimiser, g_optimiser = self.optimizers()
        self.toggle_optimizer(d_optimiser)
        terms = self.discriminator_loss(batch)
        step(self, d_optimiser, terms["loss"], counts=True)
        self.untoggle_optimizer(d_optimiser)
        seen = self._log("train", "discriminator", terms)
        if (self.trainer.fit_loop.total_batch_idx + 1) % self.hparams.discriminator_steps == 0:
            self.toggle_optimizer(g_optimiser)
            terms = self.generator_loss(batch)
            step(self, g_optimiser, terms["loss"], counts=False)
            self.untoggle_optimizer(g_optimiser)
            seen |= self._log("train", "generator", terms)
        return seen

    def _log(self, stage: str, player: str, terms: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
        self.log(f"{stage}/{player}_loss", terms["loss"], prog_bar=True, **kwargs)
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items() if k != "loss"}, **kwargs)
        return {f"{player}_loss" if k == "loss" else k: v.detach() for k, v in terms.items()}

    def on_validation_epoch_start(self):
        restate(self, lambda i: self.discriminator(self.G(self.z(250, generator=chunk_generator(0, i)))))

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
        players = {self.discriminator: self.hparams.lr_discriminator, self.generator: self.hparams.lr_generator}
        return [torch.optim.Adam(p.parameters(), lr=lr, betas=(self.hparams.beta1, 0.999)) for p, lr in players.items()]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "gan"

    # What it is for.

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` examples: images in [0, 1], (n, 1, 28, 28); points (n, 2); one-hot sequences (n, T, K)."""
        z = self.z(n, generator=generator)
        if self.hparams.network == "sequence":
            return self.generator(z, lambda logits, u: Categorical(logits).draw(u))
        return uncentre(generate(self.generator, z), self.hparams.shape)

    @property
    def log_likelihood_by(self) -> str | None:
        """How ``log_likelihood`` comes by its number; None of networks other than ``sequence``."""
        return EXACT if self.hparams.network == "sequence" else None

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, *, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """log p(v) of one-hot sequences (B, T, K) under the generator, exact; (B,) nats.

        ``y`` and ``generator`` are not used.

        Raises:
            UserError: for networks other than ``sequence``, which have no density to speak of.
        """
        if self.hparams.network != "sequence":
            raise UserError("a GAN has no likelihood, except where its generator draws symbol by symbol: sequences")
        return self.generator.log_probability(x)

    # How its gradients can be estimated.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Of the generator's loss by its parameters, over z, for each of the three losses, the model's own first;
        ``discriminator``, of -V by the discriminator's. One draw is of as many z as the batch has examples."""

        def estimator(name: str, player: str, loss: Callable) -> GradientEstimator:
            own = {k: p for k, p in self.named_parameters() if k.startswith(f"{player}.")}
            # Batch normalisation has no batched form in torch.
            return GradientEstimator.of(self, name, own, self.noise, loss, batched=False)

        def of_generator(kind: str) -> GradientEstimator:
            return estimator(kind, "generator", lambda _, noise: self.generator_terms(noise, kind)["loss"])

        def discriminator_loss(batch, noise: Noise) -> Tensor:
            return self.discriminator_terms(batch[0], noise)["loss"]

        kinds = dict.fromkeys([self.hparams.generator_loss, *GENERATOR_LOSSES])
        estimators = {kind: of_generator(kind) for kind in kinds}
        estimators["discriminator"] = estimator("discriminator", "discriminator", discriminator_loss)
        return estimators
