"""WGAN: a critic estimates the Wasserstein distance between samples and data, and the generator descends it.

Arjovsky, Chintala & Bottou, "Wasserstein GAN", 2017, arXiv:1701.07875; Gulrajani et al., "Improved Training of
Wasserstein GANs", 2017, arXiv:1704.00028 (the gradient penalty); seed 004 sec. 13.3 and 13.4.

    W(p, q) = 1/K sup_{|f|_L <= K} E_p[ f(x) ] - E_q[ f(x) ]                       WGAN eq. 2, seed 13.4
    clip                 every weight of the critic f in [-c, c] after each step   WGAN algorithm 1
    gradient_penalty     lambda E[ ( |grad f(x_hat)|_2 - 1 )^2 ],  x_hat = u x + (1 - u) G(z)    WGAN-GP eq. 3

    the critic descends    -( mean f(x) - mean f(G(z)) ) + penalty
    the generator          -mean f(G(z))

What the critic's difference of means says: under the penalty, once the critic is trained, W itself but for a bias. Of
two parallel lines at distance theta the best critic that looks across alone has the slope 1 + theta / (2 lambda), and
its estimate is theta + theta^2 / (2 lambda). Under clipping the critics there are lie within some K-Lipschitz ball, K
whatever weights (and batch norm) allow: the estimate is at best proportional to W; curves of one run compare, values do
not. The difference of a critic that judges each example by itself is at most its Lipschitz constant times W, in
expectation; in training batch norm, which only a clipped critic has, breaks that.

Symbols: x data, images in [0, 1], (B, 1, 28, 28), or points (B, 2); z ~ N(0, I), (B, z_dim); u ~ U(0, 1), one for each
example; real, fake what the players see, images in [-1, 1]; f(x) (B,), without a unit of its own: distances are of
images in [-1, 1], Euclidean.
Logged, {train,val,test}/: wasserstein, the estimate, the quantity to watch; critic_loss and generator_loss; penalty,
the mean of ( |grad f| - 1 )^2 without lambda; lipschitz, the largest |grad f(x_hat)| of a batch, a lower bound of the
critic's constant. Under clipping the last two are measured in validation and test only, where they cost little.

Differs from the papers:
- One batch is one step of the critic; every n_critic-th batch is one of the generator, always (WGAN's code gives the
  critic 100 steps for each of the generator's first 25, and for every 500th).
- A penalised critic normalises each image by itself, as WGAN-GP's may: batch normalisation would make the penalty of
  one image depend on the others. A clipped one, of convolutions, normalises by batch, as WGAN's; validation takes its
  statistics anew, from samples. On several processes a batch is a process's own part, as in zoo/gan.py.
- Clipping goes with RMSprop, as in the paper (lr 5e-5; experiment=wgan_clip has 1e-3), the penalty with Adam and
  beta_2 = 0.9 (lr 1e-4; 5e-4 here).
- The exponential moving average of both players is what is judged.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import lightning as L
import torch
from torch import Tensor

from zoo.checks.inputs import checks_inputs, data, seen_by_players, takes
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_positive, check_share, check_whole
from zoo.estimators import GradientEstimator, Noise
from zoo.functional.densities import at_least_float32
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.nets.adversarial import centre, check_networks, make_discriminator, make_generator, uncentre
from zoo.nets.description import described
from zoo.training.adversarial import check_batches, generate, restate, step


def wasserstein_estimate(real: Tensor, fake: Tensor) -> Tensor:
    """mean f(x) - mean f(G(z)) of what a critic says, (B,) each; ()."""
    return real.mean() - fake.mean()


def interpolate(real: Tensor, fake: Tensor, u: Tensor) -> Tensor:
    """x_hat = u x + (1 - u) G(z), one u in [0, 1] for each example; (B, ...) each, u (B,)."""
    u = u.view(-1, *[1] * (real.ndim - 1))
    return u * real + (1 - u) * fake


def gradient_norms(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """|grad f(x_i)|_2, the norm over everything of one example, (B, ...) to (B,); differentiable in the critic.

    Args:
        critic: (B, ...) to (B,), of which each value depends on its own example alone.
    """
    gradient = torch.func.grad(lambda x: critic(x).sum())(x)
    return gradient.flatten(1).norm(2, dim=1)


def gradient_penalty(norms: Tensor) -> Tensor:
    """( |grad f| - 1 )^2 of each example, WGAN-GP eq. 3 without lambda and mean; (B,)."""
    return (norms - 1).square()


@described
@accepts_old_form("noise", "critic_loss", "generator_loss")
@checks_inputs(x=data)
class WGAN(L.LightningModule):
    """The model, its training and its uses.

    Args:
        lipschitz: how the critic is kept Lipschitz, ``gradient_penalty`` or ``clip``.
        network: ``conv`` for images, ``mlp`` for any shape.
        shape: of one example: [1, 28, 28], or [2] for points.
        z_dim: dimensions of z.
        width: channels of ``conv`` at 14 x 14 pixels.
        hidden: widths of the hidden layers of ``mlp``.
        n_critic: steps of the critic for one of the generator.
        gp_weight: lambda, of the penalty; positive.
        clip_value: c, the largest weight under ``clip``; positive.
        lr: of Adam, or of RMSprop under ``clip``.
        beta1: of Adam, at least 0, below 1.

    Raises:
        UserError: for a value outside these.
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
        check_whole("n_critic", n_critic)
        check_positive("gp_weight", gp_weight)
        check_positive("clip_value", clip_value)
        check_positive("lr", lr)
        check_share("beta1", beta1)
        shape, hidden = list(shape), list(hidden)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = make_generator(network, z_dim, shape, width, hidden)
        self.critic = make_discriminator(
            network, shape, width, hidden, "layer" if lipschitz == "gradient_penalty" else "batch"
        )

    # The two players.

    def noise(self, batch, *, generator: torch.Generator | None = None) -> Noise:
        """``z`` (B, z_dim), standard normal, and ``u`` (B,), uniform."""
        B, drawn = len(batch[0]), {"generator": generator, "device": batch[0].device}
        return {"z": randn(B, self.hparams.z_dim, **drawn), "u": rand(B, **drawn)}

    @takes(x=seen_by_players)
    def f(self, x: Tensor) -> Tensor:
        """What the critic says of examples as the players see them, (B, *shape) to (B,)."""
        return at_least_float32(self.critic(x)).squeeze(-1)

    def critic_terms(self, x: Tensor, noise: Noise, measure: bool = False) -> dict[str, Tensor]:
        """``loss`` and ``wasserstein`` of data ``x`` (B, *shape); ``penalty`` and ``lipschitz`` where they are known.

        Under clipping that is where ``measure`` asks for them, in eval mode; they are no part of the loss then.
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
        """``loss`` = -mean f(G(z))."""
        return {"loss": -self.f(self.generator(noise["z"])).mean()}

    def critic_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The terms of the critic, whose ``loss`` it descends, with noise of their own."""
        return self.critic_terms(batch[0], self.noise(batch, generator=generator))

    def generator_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The terms of the generator, whose ``loss`` it descends; of the batch only its size counts."""
        return self.generator_terms(self.noise(batch, generator=generator))

    # Training, by hand.

    @torch.no_grad()
    def clip(self) -> None:
        """Every weight of the critic back into [-c, c]."""
        for p in self.critic.parameters():
            p.clamp_(-self.hparams.clip_value, self.hparams.clip_value)

    def on_train_start(self):
        check_batches(self)

    def training_step(self, batch, batch_idx):
        critic_optimiser, g_optimiser = self.optimizers()
        self.toggle_optimizer(critic_optimiser)
        terms = self.critic_loss(batch)
        step(self, critic_optimiser, terms["loss"], counts=True)
        self.untoggle_optimizer(critic_optimiser)
        if self.hparams.lipschitz == "clip":
            self.clip()
        seen = self._log("train", "critic", terms)
        if (self.trainer.fit_loop.total_batch_idx + 1) % self.hparams.n_critic == 0:
            self.toggle_optimizer(g_optimiser)
            terms = self.generator_loss(batch)
            step(self, g_optimiser, terms["loss"], counts=False)
            self.untoggle_optimizer(g_optimiser)
            seen |= self._log("train", "generator", terms)
        return seen

    def _log(self, stage: str, player: str, terms: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
        self.log(f"{stage}/{player}_loss", terms["loss"], **kwargs)
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items() if k != "loss"}, prog_bar=True, **kwargs)
        return {f"{player}_loss" if k == "loss" else k: v.detach() for k, v in terms.items()}

    def on_validation_epoch_start(self):
        noise = lambda i: randn(250, self.hparams.z_dim, generator=chunk_generator(0, i), device=self.device)  # noqa: E731
        restate(self, lambda i: self.critic(self.generator(noise(i))))

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        how = {"sync_dist": True, "batch_size": len(batch[0])}
        with torch.inference_mode(False), torch.no_grad():  # the norm of a gradient is measured, too
            terms = self.critic_terms(batch[0].clone(), self.noise(batch, generator=generator), measure=True)
        self._log(stage, "critic", terms, **how)
        self._log(stage, "generator", self.generator_loss(batch, generator=generator), **how)

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        lr, players = self.hparams.lr, (self.critic, self.generator)
        if self.hparams.lipschitz == "clip":
            return [torch.optim.RMSprop(p.parameters(), lr=lr) for p in players]
        return [torch.optim.Adam(p.parameters(), lr=lr, betas=(self.hparams.beta1, 0.9)) for p in players]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "wgan"

    # What it is for.

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` examples: images in [0, 1], (n, 1, 28, 28), or points (n, 2)."""
        z = randn(n, self.hparams.z_dim, generator=generator, device=self.device)
        return uncentre(generate(self.generator, z), self.hparams.shape)

    # How its gradients can be estimated.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """``generator``: of -E f(G(z)) by the generator's parameters, over z; ``critic``: of the critic's loss, penalty
        included, by its own. One draw is of as many z as the batch has examples."""

        def estimator(name: str, terms: Callable) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                return terms(batch[0], noise)["loss"]

            own = {k: p for k, p in self.named_parameters() if k.startswith(f"{name}.")}
            # Batch normalisation has no batched form in torch.
            return GradientEstimator.of(self, name, own, self.noise, loss, batched=False)

        return {
            "generator": estimator("generator", lambda x, noise: self.generator_terms(noise)),
            "critic": estimator("critic", self.critic_terms),
        }
