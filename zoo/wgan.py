"""WGAN: a GAN with a critic, which estimates the Wasserstein distance between data and samples.

Papers:
- WGAN: Arjovsky, Chintala & Bottou, "Wasserstein GAN", 2017, arXiv:1701.07875; [DSL 13.3], [DSL 13.4].
- WGAN-GP, the gradient penalty: Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, arXiv:1704.00028.
- Labels: Mirza & Osindero, "Conditional Generative Adversarial Nets", 2014, arXiv:1411.1784.

The networks are in zoo/nets/adversarial.py. docs/references.md explains the keys in brackets.

    W(p, q)        = 1/K sup_{|f|_L <= K} E_p[ f(x) ] - E_q[ f(x) ]  WGAN eq. 2, [DSL 13.4]   wasserstein_estimate
    clip           every weight of f in [-c, c] after each step      WGAN algorithm 1         WGAN.clip
    penalty        = E[ ( |grad f(x_hat)|_2 - 1 )^2 ]                WGAN-GP eq. 3            gradient_penalty
    x_hat          = u x + (1 - u) G(z)                              WGAN-GP algorithm 1      interpolate
    critic_loss    = E[ f(G(z)) ] - E[ f(x) ] + lambda penalty       WGAN-GP eq. 3            WGAN.critic_terms
    generator_loss = -E[ f(G(z)) ]                                   WGAN-GP algorithm 1      WGAN.generator_terms

With ``clip``, the loss of the critic has no penalty, as in algorithm 1 of WGAN. The code replaces each expectation by
the mean over a batch.

With the gradient penalty, the estimate of a trained critic is W plus a bias. As an example, let data and samples lie on
two parallel lines at distance theta. The linear critic with the lowest loss has the slope 1 + theta / (2 lambda). Its
estimate is theta + theta^2 / (2 lambda), and W = theta.

The estimate is close to W only if the critic is well trained. The papers therefore take five critic steps for each
generator step. With fewer steps, the estimate can also fall because the critic lags behind the generator.

With clipping, the critic is K-Lipschitz for an unknown K that depends on c and on BatchNorm. Compare values within one
run only.

If a K-Lipschitz critic scores each example separately, the expected estimate is at most K W. BatchNorm in training mode
mixes examples, and this bound fails. Only the clipped convolutional critic has BatchNorm.

With labels y (``num_classes``), f(x, y) and G(z, y) replace f(x) and G(z). Data, samples and x_hat have the labels of
the batch. W is then the mean over labels of the distance between data and samples with that label. The gradient of the
penalty is with respect to x.

Symbols:
    x            data: images (B, C, H, W) in [0, 1], or points (B, 2)
    y            labels, (B,), integers
    z            noise N(0, I), (B, z_dim)
    u            U(0, 1), one number for each example, (B,)
    real         data in the form that the networks take: images are in [-1, 1]
    fake         samples in the same form
    f(x)         score of the critic, (B,)
    |.|          Euclidean norm, for images in [-1, 1] or for points

Logged with the prefixes train/, val/ and test/:
    wasserstein      mean f(x) - mean f(G(z)), the estimate of W, a measure of progress if the critic is well trained
    critic_loss      the loss of the critic
    generator_loss   the loss of the generator
    penalty          mean of ( |grad f(x_hat)| - 1 )^2, without lambda
    lipschitz        the largest |grad f(x_hat)| of a batch, a lower bound of the critic's Lipschitz constant
With clipping, only validation and test measure ``penalty`` and ``lipschitz``. This saves time in training.

Differs from the papers:
- Each batch is one step of the critic, and every n_critic-th batch is also a step of the generator. The papers have
  n_critic = 5, and the default is 1. In short runs of about equal time on MNIST, samples were then much closer to the
  data (docs/results.md). WGAN's code takes 100 critic steps before each of the first 25 generator steps, and before
  every 500th generator step.
- With the penalty, the critic normalises each image separately, as WGAN-GP recommends. With BatchNorm, the penalty of
  one image would depend on the other images.
- With clipping, the convolutional critic has BatchNorm, as in WGAN. Validation first recomputes the running statistics
  from samples. In training on several processes, BatchNorm uses the examples of one process, as in zoo/gan.py.
- With clipping, both networks use RMSprop, as in WGAN. The paper's learning rate is 5e-5, and experiment=wgan_clip sets
  1e-3. It also sets c = 0.03 instead of 0.01, because the score of its critic stays close to 0 with 0.01.
- With the penalty, both networks use Adam with beta_2 = 0.9, as in WGAN-GP. The paper's learning rate is 1e-4, and the
  default is 5e-4.
- With ``network=conv``, each network has a fully connected layer of 256 units, as in zoo/gan.py. DCGAN has none.
- Validation and test evaluate the exponential moving average of both networks (callbacks/ema.py).
- The critic adds the projection of its features on a vector of the label, as D in zoo/gan.py does.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import lightning as L
import torch
from torch import Tensor

from zoo.checks.inputs import checks_inputs, data, numbers, optional_labels, seen_by_networks, takes
from zoo.checks.labels import Labels, labels_or_none
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_fraction, check_integer, check_positive
from zoo.estimators import GradientEstimator, Noise
from zoo.functional.densities import at_least_float32
from zoo.functional.noise import chunk_generator, rand, randn, uniform_labels
from zoo.nets.adversarial import centre, check_networks, make_discriminator, make_generator, uncentre, with_label
from zoo.nets.description import described
from zoo.training.adversarial import check_batches, generate, recompute_batch_norm, step


def wasserstein_estimate(real: Tensor, fake: Tensor) -> Tensor:
    """Return mean f(x) - mean f(G(z)), (), from the critic's scores of data and of samples, (B,) each."""
    return real.mean() - fake.mean()


def interpolate(real: Tensor, fake: Tensor, u: Tensor) -> Tensor:
    """Return x_hat = u x + (1 - u) G(z), (B, ...), with one ``u`` (B,) in [0, 1] for each example."""
    u = u.view(-1, *[1] * (real.ndim - 1))
    return u * real + (1 - u) * fake


def gradient_norms(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return |grad f(x_i)|_2, (B,), the norm over all dimensions of each example.

    The result is differentiable with respect to the critic's parameters.

    Args:
        critic: Function of (B, ...) that returns (B,). Each value must depend only on its own example.
        x: Examples, (B, ...).
    """
    gradient = torch.func.grad(lambda x: critic(x).sum())(x)
    return gradient.flatten(1).norm(2, dim=1)


def gradient_penalty(norms: Tensor) -> Tensor:
    """Return ( |grad f| - 1 )^2 of each example, (B,), from |grad f| (B,). WGAN-GP eq. 3 is lambda times the mean."""
    return (norms - 1).square()


@described
@accepts_old_form("noise", "critic_loss", "generator_loss", labels="y")
@checks_inputs(x=data, z=numbers(lambda self: (self.hparams.z_dim,), leading=False))
class WGAN(L.LightningModule):
    """Wasserstein GAN for images or points, with gradient penalty or clipped weights, with or without labels.

    Args:
        lipschitz: Method that limits the critic's slope: ``gradient_penalty`` or ``clip``.
        network: ``conv`` for images, ``mlp`` for any shape.
        shape: Shape of one example: [C, H, W] for images, [2] for points.
        z_dim: Number of dimensions of z.
        width: Channels of ``conv`` at half the sides of the images.
        hidden: Widths of the hidden layers of ``mlp``.
        n_critic: Critic steps per generator step.
        gp_weight: lambda, the weight of the gradient penalty, positive.
        clip_value: c, the largest absolute weight of the critic with ``clip``, positive.
        lr: Learning rate of Adam, or of RMSprop with ``clip``.
        beta1: Adam's beta_1, at least 0 and below 1.
        num_classes: Number of classes, or None to train without labels.
        features: Units of the last hidden layer of the critic with ``conv``, or 0 for no such layer.
        generator_features: Units of the first hidden layer of the generator with ``conv``, or 0 for no such layer.

    Raises:
        UserError: If an argument has a value that is not allowed.
    """

    def __init__(
        self,
        lipschitz: Literal["gradient_penalty", "clip"] = "gradient_penalty",
        network: Literal["conv", "mlp"] = "conv",
        shape: Sequence[int] = (1, 28, 28),
        z_dim: int = 64,
        width: int = 32,
        hidden: Sequence[int] = (256, 256),
        n_critic: int = 1,
        gp_weight: float = 10.0,
        clip_value: float = 0.01,
        lr: float = 5e-4,
        beta1: float = 0.0,
        num_classes: int | None = None,
        features: int = 256,
        generator_features: int = 256,
    ):
        super().__init__()
        check_choice("lipschitz", lipschitz, ("gradient_penalty", "clip"))
        check_choice("network", network, ("conv", "mlp"))
        check_networks(network, shape, width, hidden, z_dim)
        check_integer("n_critic", n_critic)
        check_positive("gp_weight", gp_weight)
        check_positive("clip_value", clip_value)
        check_positive("lr", lr)
        check_fraction("beta1", beta1)
        check_integer("features", features, least=0)
        check_integer("generator_features", generator_features, least=0)
        if num_classes is not None:
            check_integer("num_classes", num_classes)
        shape, hidden = list(shape), list(hidden)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = make_generator(network, z_dim, shape, width, hidden, generator_features, num_classes)
        norm = "layer" if lipschitz == "gradient_penalty" else "batch"
        self.critic = make_discriminator(network, shape, width, hidden, norm, features, num_classes)

    # Networks and losses.

    def noise(self, batch, *, generator: torch.Generator | None = None) -> Noise:
        """Draw standard normal ``z`` (B, z_dim) and uniform ``u`` (B,)."""
        B, drawn = len(batch[0]), {"generator": generator, "device": batch[0].device}
        return {"z": randn(B, self.hparams.z_dim, **drawn), "u": rand(B, **drawn)}

    def _labels(self, y: Labels | None, n: int) -> Tensor | None:
        return labels_or_none(y, n, self.hparams.num_classes, self.device)

    def G(self, z: Tensor, y: Labels | None = None) -> Tensor:
        """Return samples (B, *shape) for training, with labels ``y`` (B,) if the model has labels.

        Images are in [-1, 1].
        """
        return self.generator(self._inputs(z, y))

    def _inputs(self, z: Tensor, y: Labels | None) -> Tensor:
        return with_label(z, self._labels(y, len(z)), self.hparams.num_classes)

    @takes(x=seen_by_networks)
    def f(self, x: Tensor, y: Labels | None = None) -> Tensor:
        """Return the critic's scores (B,) of examples (B, *shape). Images are in [-1, 1].

        ``y`` are their labels, (B,), if the model has labels.
        """
        y = self._labels(y, len(x))
        return at_least_float32(self.critic(x) if y is None else self.critic(x, y)).squeeze(-1)

    def critic_terms(
        self, x: Tensor, noise: Noise, measure: bool = False, y: Labels | None = None
    ) -> dict[str, Tensor]:
        """Return ``loss``, ``wasserstein``, ``penalty`` and ``lipschitz`` for data ``x`` (B, *shape).

        ``y`` are the labels of the data and of the samples, (B,), if the model has labels.

        With clipping, the loss has no penalty, and ``penalty`` and ``lipschitz`` are present only if ``measure`` is
        true. Set ``measure`` only in eval mode.
        """
        f = partial(self.f, y=self._labels(y, len(x)))
        with torch.no_grad():
            fake = self.G(noise["z"], y)
        real = centre(x, self.hparams.shape)
        estimate = wasserstein_estimate(f(real), f(fake))
        terms = {"loss": -estimate, "wasserstein": estimate}
        if self.hparams.lipschitz == "gradient_penalty" or measure:
            norms = gradient_norms(f, interpolate(real, fake, noise["u"]))
            penalty = gradient_penalty(norms).mean()
            if self.hparams.lipschitz == "gradient_penalty":
                terms["loss"] = terms["loss"] + self.hparams.gp_weight * penalty  # critic_loss
            terms |= {"penalty": penalty, "lipschitz": norms.max()}
        return terms

    def generator_terms(self, noise: Noise, y: Labels | None = None) -> dict[str, Tensor]:
        """Return ``loss`` = -mean f(G(z)), for samples with labels ``y`` (B,) if the model has labels."""
        return {"loss": -self.f(self.G(noise["z"], y), y).mean()}

    def critic_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw noise and return :meth:`critic_terms`. The critic minimises ``loss``."""
        return self.critic_terms(batch[0], self.noise(batch, generator=generator), y=optional_labels(batch, self))

    def generator_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw noise and return the generator's ``loss``. Only the size and the labels of ``batch`` are used."""
        return self.generator_terms(self.noise(batch, generator=generator), optional_labels(batch, self))

    # Training, with manual optimisation.

    @torch.no_grad()
    def clip(self) -> None:
        """Clip every parameter of the critic to [-c, c]."""
        parameters, c = list(self.critic.parameters()), self.hparams.clip_value
        torch._foreach_clamp_min_(parameters, -c)  # clip: one kernel for all parameters on a GPU
        torch._foreach_clamp_max_(parameters, c)

    def on_train_start(self):
        check_batches(self)

    def graph_key(self) -> bool:
        """Return whether the next training step also updates the generator."""
        return (self.trainer.fit_loop.total_batch_idx + 1) % self.hparams.n_critic == 0

    def training_step(self, batch, batch_idx):
        critic_optimiser, g_optimiser = self.optimizers()
        terms = step(self, critic_optimiser, self.critic_loss, batch, counts=True)
        if self.hparams.lipschitz == "clip":
            self.clip()
        seen = self._log("train", "critic", terms)
        if self.graph_key():
            terms = step(self, g_optimiser, self.generator_loss, batch, counts=False)
            seen |= self._log("train", "generator", terms)
        return seen

    def _log(self, stage: str, network: str, terms: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
        self.log(f"{stage}/{network}_loss", terms["loss"], **kwargs)
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items() if k != "loss"}, prog_bar=True, **kwargs)
        return {f"{network}_loss" if k == "loss" else k: v.detach() for k, v in terms.items()}

    def on_validation_epoch_start(self):
        def see_samples(i: int) -> None:
            z, y = self._draw(250, generator=chunk_generator(0, i))
            self.f(self.G(z, y), y)

        recompute_batch_norm(self, see_samples)

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        how = {"sync_dist": True, "batch_size": len(batch[0])}
        y = optional_labels(batch, self)
        with torch.inference_mode(False), torch.no_grad():  # inference mode would forbid grad f
            x, y = batch[0].clone(), y if y is None else y.clone()
            terms = self.critic_terms(x, self.noise(batch, generator=generator), measure=True, y=y)
        self._log(stage, "critic", terms, **how)
        self._log(stage, "generator", self.generator_loss(batch, generator=generator), **how)

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        lr, networks = self.hparams.lr, (self.critic, self.generator)
        if self.hparams.lipschitz == "clip":
            return [torch.optim.RMSprop(net.parameters(), lr=lr) for net in networks]
        betas = (self.hparams.beta1, 0.9)
        return [torch.optim.Adam(net.parameters(), lr=lr, betas=betas, fused=True) for net in networks]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "wgan"

    # Use of a trained model.

    @torch.no_grad()
    def sample(self, n: int, *, y: Labels | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples: images (n, C, H, W) in [0, 1], or points (n, 2).

        Args:
            y: For a model with labels, ``n`` labels or one label for all samples. None draws labels uniformly. The
                noise z does not depend on ``y``.
        """
        z, drawn = self._draw(n, generator=generator)
        return uncentre(generate(self.generator, self._inputs(z, drawn if y is None else y)), self.hparams.shape)

    def _draw(self, n: int, *, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        drawn = {"generator": generator, "device": self.device}
        return randn(n, self.hparams.z_dim, **drawn), uniform_labels(n, self.hparams.num_classes, **drawn)

    def rows(self) -> tuple[str, list[int]] | None:
        """Return "y" and all labels, one for each row of a picture of samples. Return None if there are no labels."""
        classes = self.hparams.num_classes
        return None if classes is None else ("y", list(range(classes)))

    # Gradient estimators.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return ``generator``, the gradient of -E f(G(z)), and ``critic``, the gradient of the critic's whole loss.

        Each gradient is with respect to the parameters of the network with the same name. One draw has one z for each
        example of the batch.
        """

        def estimator(name: str, terms: Callable) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                return terms(batch[0], noise, y=optional_labels(batch, self))["loss"]

            own = {k: p for k, p in self.named_parameters() if k.startswith(f"{name}.")}
            # torch.func.vmap does not support BatchNorm that updates running statistics.
            return GradientEstimator.of(self, name, own, self.noise, loss, batched=False)

        return {
            "generator": estimator("generator", lambda x, noise, y: self.generator_terms(noise, y)),
            "critic": estimator("critic", self.critic_terms),
        }
