"""WGAN: a GAN with a critic, which estimates the Wasserstein distance between data and samples.

Papers:
- WGAN: Arjovsky, Chintala & Bottou, "Wasserstein GAN", 2017, arXiv:1701.07875; [DSL 13.3], [DSL 13.4].
- WGAN-GP, the gradient penalty: Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, arXiv:1704.00028.

The networks are in zoo/nets/adversarial.py. docs/references.md explains the keys in brackets.

    W(p, q) = 1/K sup_{|f|_L <= K} E_p[ f(x) ] - E_q[ f(x) ]         WGAN eq. 2, [DSL 13.4]   wasserstein_estimate
    clip               every weight of f in [-c, c] after each step  WGAN algorithm 1         WGAN.clip
    gradient_penalty   lambda E[ ( |grad f(x_hat)|_2 - 1 )^2 ]       WGAN-GP eq. 3            gradient_penalty
                       x_hat = u x + (1 - u) G(z)                                             interpolate

    loss of the critic       -( mean f(x) - mean f(G(z)) ) + penalty                          WGAN.critic_terms
    loss of the generator    -mean f(G(z))                                                    WGAN.generator_terms

With the gradient penalty, the estimate of a trained critic is W plus a bias. As an example, let data and samples lie on
two parallel lines at distance theta. The linear critic with the lowest loss has the slope 1 + theta / (2 lambda). Its
estimate is theta + theta^2 / (2 lambda), and W = theta.

With clipping, the critic is K-Lipschitz for an unknown K that depends on c and on BatchNorm. Compare values within one
run only.

If a K-Lipschitz critic scores each example separately, the expected estimate is at most K W. BatchNorm in training mode
mixes examples, and this bound fails. Only the clipped convolutional critic has BatchNorm.

Symbols:
    x            data: images (B, 1, 28, 28) in [0, 1], or points (B, 2)
    z            noise N(0, I), (B, z_dim)
    u            U(0, 1), one number for each example, (B,)
    real         data in the form that the networks take: images are in [-1, 1]
    fake         samples in the same form
    f(x)         score of the critic, (B,)
    |.|          Euclidean norm, for images in [-1, 1] or for points

Logged with the prefixes train/, val/ and test/:
    wasserstein      mean f(x) - mean f(G(z)), the estimate of W, which measures progress best
    critic_loss      the loss of the critic
    generator_loss   the loss of the generator
    penalty          mean of ( |grad f(x_hat)| - 1 )^2, without lambda
    lipschitz        the largest |grad f(x_hat)| of a batch, a lower bound of the critic's Lipschitz constant
With clipping, only validation and test measure ``penalty`` and ``lipschitz``. This saves time in training.

Differs from the papers:
- Each batch is one step of the critic, and every n_critic-th batch is also a step of the generator. WGAN's code takes
  100 critic steps before each of the first 25 generator steps, and before every 500th generator step.
- With the penalty, the critic normalises each image separately, as WGAN-GP recommends. With BatchNorm, the penalty of
  one image would depend on the other images.
- With clipping, the convolutional critic has BatchNorm, as in WGAN. Validation first recomputes the running statistics
  from samples. In training on several processes, BatchNorm uses the examples of one process, as in zoo/gan.py.
- With clipping, both networks use RMSprop, as in WGAN. The paper's learning rate is 5e-5, and experiment=wgan_clip sets
  1e-3.
- With the penalty, both networks use Adam with beta_2 = 0.9, as in WGAN-GP. The paper's learning rate is 1e-4, and the
  default is 5e-4.
- Validation and test evaluate the exponential moving average of both networks (callbacks/ema.py).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import lightning as L
import torch
from torch import Tensor

from zoo.checks.inputs import checks_inputs, data, seen_by_networks, takes
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_fraction, check_integer, check_positive
from zoo.estimators import GradientEstimator, Noise
from zoo.functional.densities import at_least_float32
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.nets.adversarial import centre, check_networks, make_discriminator, make_generator, uncentre
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
@accepts_old_form("noise", "critic_loss", "generator_loss")
@checks_inputs(x=data)
class WGAN(L.LightningModule):
    """Wasserstein GAN for images or points, with gradient penalty or clipped weights.

    Args:
        lipschitz: Method that limits the critic's slope: ``gradient_penalty`` or ``clip``.
        network: ``conv`` for images, ``mlp`` for any shape.
        shape: Shape of one example: [1, 28, 28] for images, [2] for points.
        z_dim: Number of dimensions of z.
        width: Channels of ``conv`` at 14 x 14 pixels.
        hidden: Widths of the hidden layers of ``mlp``.
        n_critic: Critic steps per generator step.
        gp_weight: lambda, the weight of the gradient penalty, positive.
        clip_value: c, the largest absolute weight of the critic with ``clip``, positive.
        lr: Learning rate of Adam, or of RMSprop with ``clip``.
        beta1: Adam's beta_1, at least 0 and below 1.

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
        n_critic: int = 5,
        gp_weight: float = 10.0,
        clip_value: float = 0.01,
        lr: float = 5e-4,
        beta1: float = 0.0,
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
        shape, hidden = list(shape), list(hidden)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = make_generator(network, z_dim, shape, width, hidden)
        self.critic = make_discriminator(
            network, shape, width, hidden, "layer" if lipschitz == "gradient_penalty" else "batch"
        )

    # Networks and losses.

    def noise(self, batch, *, generator: torch.Generator | None = None) -> Noise:
        """Draw standard normal ``z`` (B, z_dim) and uniform ``u`` (B,)."""
        B, drawn = len(batch[0]), {"generator": generator, "device": batch[0].device}
        return {"z": randn(B, self.hparams.z_dim, **drawn), "u": rand(B, **drawn)}

    @takes(x=seen_by_networks)
    def f(self, x: Tensor) -> Tensor:
        """Return the critic's scores (B,) of examples (B, *shape). Images are in [-1, 1]."""
        return at_least_float32(self.critic(x)).squeeze(-1)

    def critic_terms(self, x: Tensor, noise: Noise, measure: bool = False) -> dict[str, Tensor]:
        """Return ``loss``, ``wasserstein``, ``penalty`` and ``lipschitz`` for data ``x`` (B, *shape).

        With clipping, the loss has no penalty, and ``penalty`` and ``lipschitz`` are present only if ``measure`` is
        true. Set ``measure`` only in eval mode.
        """
        with torch.no_grad():
            fake = self.generator(noise["z"])
        real = centre(x, self.hparams.shape)
        estimate = wasserstein_estimate(self.f(real), self.f(fake))
        terms = {"loss": -estimate, "wasserstein": estimate}
        if self.hparams.lipschitz == "gradient_penalty" or measure:
            norms = gradient_norms(self.f, interpolate(real, fake, noise["u"]))
            penalty = gradient_penalty(norms).mean()
            if self.hparams.lipschitz == "gradient_penalty":
                terms["loss"] = terms["loss"] + self.hparams.gp_weight * penalty
            terms |= {"penalty": penalty, "lipschitz": norms.max()}
        return terms

    def generator_terms(self, noise: Noise) -> dict[str, Tensor]:
        """Return ``loss`` = -mean f(G(z))."""
        return {"loss": -self.f(self.generator(noise["z"])).mean()}

    def critic_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw noise and return :meth:`critic_terms`. The critic minimises ``loss``."""
        return self.critic_terms(batch[0], self.noise(batch, generator=generator))

    def generator_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw noise and return the generator's ``loss``. Only the size of ``batch`` is used."""
        return self.generator_terms(self.noise(batch, generator=generator))

    # Training, with manual optimisation.

    @torch.no_grad()
    def clip(self) -> None:
        """Clip every parameter of the critic to [-c, c]."""
        parameters, c = list(self.critic.parameters()), self.hparams.clip_value
        torch._foreach_clamp_min_(parameters, -c)  # one kernel for all parameters on a GPU
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
        noise = lambda i: randn(250, self.hparams.z_dim, generator=chunk_generator(0, i), device=self.device)  # noqa: E731
        recompute_batch_norm(self, lambda i: self.critic(self.generator(noise(i))))

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        how = {"sync_dist": True, "batch_size": len(batch[0])}
        with torch.inference_mode(False), torch.no_grad():  # inference mode would forbid grad f
            terms = self.critic_terms(batch[0].clone(), self.noise(batch, generator=generator), measure=True)
        self._log(stage, "critic", terms, **how)
        self._log(stage, "generator", self.generator_loss(batch, generator=generator), **how)

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        lr, networks = self.hparams.lr, (self.critic, self.generator)
        if self.hparams.lipschitz == "clip":
            return [torch.optim.RMSprop(net.parameters(), lr=lr) for net in networks]
        return [torch.optim.Adam(net.parameters(), lr=lr, betas=(self.hparams.beta1, 0.9)) for net in networks]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "wgan"

    # Use of a trained model.

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples: images (n, 1, 28, 28) in [0, 1], or points (n, 2)."""
        z = randn(n, self.hparams.z_dim, generator=generator, device=self.device)
        return uncentre(generate(self.generator, z), self.hparams.shape)

    # Gradient estimators.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return ``generator``, the gradient of -E f(G(z)), and ``critic``, the gradient of the critic's whole loss.

        Each gradient is with respect to the parameters of the network with the same name. One draw has one z for each
        example of the batch.
        """

        def estimator(name: str, terms: Callable) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                return terms(batch[0], noise)["loss"]

            own = {k: p for k, p in self.named_parameters() if k.startswith(f"{name}.")}
            # torch.func.vmap does not support BatchNorm that updates running statistics.
            return GradientEstimator.of(self, name, own, self.noise, loss, batched=False)

        return {
            "generator": estimator("generator", lambda x, noise: self.generator_terms(noise)),
            "critic": estimator("critic", self.critic_terms),
        }
