"""VaDE: a variational autoencoder whose prior is a mixture of Gaussians, so that its latents fall into clusters.

Jiang, Zheng, Tan, Tang, Zhou, "Variational Deep Embedding", 2017, arXiv:1611.05148; seed 004 sec. 12.1.3, seed 002 P7.

    c           ~ Cat(pi)
    z | c       ~ N(mu_c, diag exp(logvar_c))
    x | z       ~ prod_d Bernoulli(x_d | sigmoid(logits_d(z)))
    q(z | x)    = N(mu(x), diag exp(logvar(x)))
    p(c | z)    = pi_c N(z | c) / sum_k pi_k N(z | k)                                  responsibilities

The bound on log p(x) in three forms. gamma is a distribution over clusters; in the first two it may depend on z, in
the third it may not:

    five terms  E_q[ log p(x|z) + sum_c gamma_c ( log p(z|c) + log pi_c - log gamma_c ) - log q(z|x) ]
    marginal    E_q[ log p(x|z) + log p(z) - log q(z|x) - KL( gamma || p(c|z) ) ],     p(z) = sum_c pi_c N(z | c)
    mean field  E_q[ log p(x|z) ] - sum_c gamma_c KL( q(z|x) || p(z|c) ) - KL( gamma || pi )

zoo/functional/mixture.py computes the first and p(c | z), :func:`mean_field_negative_elbo` the third.
The first two are equal at every z for every gamma, and largest at gamma = p(c|z), where the divergence is zero: this is
the tightest, it is what val/loss and test/loss report. The mean field lies below it, whatever its gamma, and meets it
at K = 1. Training maximises the mean field, as the paper does, with gamma = p(c | z = mu(x)): its gamma belongs to the
image and not to the draw, so that it pulls every z drawn for an image, and with q(z | deformed x) every deformation of
it, into one cluster. (From the same k-means clusters of accuracy 0.89, six epochs led to 0.92; six epochs of the
tightest bound left them at 0.89.)

Symbols: x images in [0, 1], (B, 1, 28, 28), binary under the likelihood; z latents, (B, D); c clusters, 0 .. K-1; pi
(K,); mu_c, logvar_c (K, D); gamma responsibilities, (B, K); u uniform noise that binarises pixels; eps standard normal.
Logged: {val,test}/loss = -ELBO = nll + kl_z + kl_c: /nll = -E_q log p(x|z), /kl_z = E_q[ log q(z|x) - sum_c gamma_c
log p(z|c) ], /kl_c = E_q KL( gamma || pi ), in nats per example; train/* the same of the mean field with deformed
images; {val,test}/accuracy, /nmi, /ari of the clusters against the labels, which training never sees;
train/reconstruction while the autoencoder is pretrained. val/loss is -ELBO from the first epoch on, so that checkpoints
compare.

Differs from the paper:
- What the encoder sees in training is randomly deformed (``deformation``), in both phases, and what is decoded is not:
  a denoising autoencoder, as the paper's is, whose noise is not masked pixels but slants and bends. So latents tell
  digits apart before their slants. The ELBO is a lower bound for any q, for this one too (Im et al. 2017).
- The autoencoder is pretrained as a whole with Adam, not layer by layer. Each phase has half a cosine of learning rate.
- The mixture begins with clusters found by k-means, not by EM (``initial_mixture: em``): of the same latents, accuracy
  0.89 against 0.87 (0.80 with full covariances), since EM cuts the densest digit, the one, in two. Which of its local
  optima is decided without labels, by what the clusters of images say about those of the same images deformed: it is
  the most accurate one more often than the tightest one is.
- Pixels are binarised dynamically, as for the VAE; the paper puts grey ones into the Bernoulli cross-entropy, which is
  no likelihood of them. Clusters are those of grey images.
- gamma is held fixed in the gradient, and is taken at z = mu(x), not at a drawn z.
- The networks are 784-300-300-600-10 by default, in place of 784-500-500-2000-10.
- Seed 002 P7 subtracts KL( gamma || p(c) ) beside the marginal p(z), which counts the prior of c twice; the divergence
  that belongs there is the one from p(c|z), as above.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn

from zoo.checks.capabilities import IMPORTANCE, Batched
from zoo.checks.codes import Codes, as_codes
from zoo.checks.errors import UserError
from zoo.checks.inputs import checks_inputs, images, numbers, observed, takes
from zoo.checks.moved import names_in
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.pixels import as_batch
from zoo.checks.values import check_choice, check_not_negative, check_positive, check_whole, check_widths
from zoo.estimators import GradientEstimator, Noise, score_function
from zoo.functional import mixture as gmm
from zoo.functional.clusters import ClusterTable
from zoo.functional.deformation import deform
from zoo.functional.densities import at_least_float32, binarise, log_bernoulli, reparameterise
from zoo.functional.importance import importance_weighted_log_likelihood
from zoo.functional.latents import Gaussian
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.functional.progress import tracked
from zoo.nets.description import described
from zoo.nets.layers import mlp
from zoo.training.ranks import all_rows, shows_progress
from zoo.training.schedules import half_cosine

log = logging.getLogger(__name__)

PIXELS = 28 * 28

__getattr__ = names_in("zoo.vade", "zoo.functional.mixture")  # names that were here


def mean_field_negative_elbo(
    x: Tensor, eps: Tensor, encode: Callable, log_px: Callable, mixture: gmm.Mixture, log_gamma: Tensor
) -> dict[str, Tensor]:
    """The mean field with its divergences in closed form, eq. 12; a bound for any gamma that does not depend on z.

    Args:
        log_gamma: logarithms of q(c | x), (B, K); the others, and the result, are as for :func:`gmm.negative_elbo`.
    """
    mu, logvar = encode(x)
    gamma = log_gamma.exp()
    terms = {
        "nll": -log_px(x, reparameterise(mu, logvar, eps)),
        "kl_z": (gamma * gmm.kl_components(mu, logvar, mixture)).sum(-1),
        "kl_c": (gamma * (log_gamma - mixture.log_pi)).sum(-1),
    }
    return {"loss": sum(terms.values()), **terms}


@described
@accepts_old_form("noise", "loss", "bound", "pretraining_loss", "log_likelihood", "probe_batch")
@checks_inputs(x=images, z=numbers(lambda self: (self.hparams.latent_dim,)))
class VaDE(L.LightningModule):
    """The model, its training and its uses.

    ``fit`` has two phases. For ``pretrain_epochs`` the networks are an autoencoder, z = mu(x). Then, once, a mixture is
    fitted to the training images' latents; from there on the bound is maximised in all parameters.

    Args:
        num_clusters: K.
        latent_dim: D.
        hidden: widths of the encoder's hidden layers, the decoder's in reverse.
        pretrain_epochs: of the autoencoder; 0 fits the mixture to the untrained encoder's latents.
        initial_mixture: ``kmeans`` or ``em``: how the mixture is fitted (:func:`gmm.fit_mixture`).
        restarts: runs of that, of which one is taken.
        deformation: strength of the random deformation of what the encoder sees in training; 0 for none.
        lr: of Adam, decayed to zero by half a cosine, in each phase anew.

    Raises:
        UserError: for a value outside these.
    """

    def __init__(
        self,
        num_clusters: int = 10,
        latent_dim: int = 10,
        hidden: Sequence[int] = (300, 300, 600),
        pretrain_epochs: int = 40,
        initial_mixture: Literal["kmeans", "em"] = "kmeans",
        restarts: int = 30,
        deformation: float = 0.15,
        lr: float = 1e-3,
    ):
        super().__init__()
        check_whole("num_clusters", num_clusters)
        check_whole("latent_dim", latent_dim)
        check_whole("restarts", restarts)
        check_choice("initial_mixture", initial_mixture, ("kmeans", "em"))
        check_whole("pretrain_epochs", pretrain_epochs, least=0)
        check_widths("hidden", hidden, (300, 300, 600))
        check_not_negative("deformation", deformation)
        check_positive("lr", lr)
        hidden = list(hidden)
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Flatten(), mlp([PIXELS, *hidden, 2 * latent_dim]))
        self.decoder = nn.Sequential(mlp([latent_dim, *hidden[::-1], PIXELS]), nn.Unflatten(-1, (1, 28, 28)))
        self.pi_logits = nn.Parameter(torch.zeros(num_clusters))
        self.mu_c = nn.Parameter(torch.randn(num_clusters, latent_dim))
        self.logvar_c = nn.Parameter(torch.zeros(num_clusters, latent_dim))
        self.register_buffer("initialised", torch.tensor(False))  # whether the mixture has been fitted
        self.agreement = ClusterTable(num_clusters)

    # The model: p(c), p(z | c), p(x | z) and q(z | x). Densities are float32 whatever the precision of the networks.

    @property
    def mixture(self) -> gmm.Mixture:
        """The prior as it stands."""
        parameters = (at_least_float32(p) for p in (self.pi_logits.log_softmax(0), self.mu_c, self.logvar_c))
        return gmm.Mixture(*parameters)

    def encode(self, x: Tensor) -> Gaussian:
        """q(z | x) for images ``x`` (B, 1, 28, 28): ``mu`` and ``logvar``, (B, D) each."""
        return Gaussian(*at_least_float32(self.encoder(x)).chunk(2, dim=-1))

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x | z), in [0, 1]: (..., D) to (..., 1, 28, 28)."""
        return at_least_float32(self.decoder(z)).sigmoid()

    @takes(x=observed)
    def log_px(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) in nats; ``x`` (..., 1, 28, 28) and ``z`` (..., D) to (...)."""
        return log_bernoulli(x.flatten(-3), at_least_float32(self.decoder(z)).flatten(-3))

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(c | z): latents (..., D) to (..., K)."""
        return gmm.log_responsibilities(z, self.mixture).exp()

    # Training: everything random in one draw, then a plain function.

    def noise(self, batch, *, generator: torch.Generator | None = None) -> Noise:
        """``u`` to binarise with (B, 1, 28, 28), ``eps`` (B, D), ``affine`` (B, 2, 3) and ``bumps`` (B, 2, 4, 4)."""
        x, D = batch[0], self.hparams.latent_dim
        shapes = {"eps": (D,), "affine": (2, 3), "bumps": (2, 4, 4)}
        return {
            "u": rand(*x.shape, generator=generator, device=x.device),
            **{k: randn(len(x), *shape, generator=generator, device=x.device) for k, shape in shapes.items()},
        }

    def encode_deformed(self, noise: Noise) -> Callable:
        """The encoder of images that are deformed first."""
        return lambda x: self.encode(deform(x, noise["affine"], noise["bumps"], self.hparams.deformation))

    def mean_field(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """What training minimises, of binary ``x``: q(z | deformed x); gamma = p(c | z) at z = mu(x), held fixed."""
        with torch.no_grad():
            log_gamma = gmm.log_responsibilities(self.encode(x).mu, self.mixture)
        encode = self.encode_deformed(noise)
        return mean_field_negative_elbo(x, noise["eps"], encode, self.log_px, self.mixture, log_gamma)

    def loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """``loss``, what training minimises, ``nll``, ``kl_z`` and ``kl_c``: means over the batch, nats per example."""
        noise = self.noise(batch, generator=generator)
        return {name: term.mean() for name, term in self.mean_field(binarise(batch[0], noise["u"]), noise).items()}

    def bound(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The same of the -ELBO at gamma = p(c | z), of images that are not deformed."""
        noise = self.noise(batch, generator=generator)
        x = binarise(batch[0], noise["u"])
        terms = gmm.negative_elbo(x, noise["eps"], self.encode, self.log_px, self.mixture)
        return {name: term.mean() for name, term in terms.items()}

    def pretraining_loss(self, batch, *, generator: torch.Generator | None = None) -> Tensor:
        """The denoising autoencoder's: -log p(x | z) at z = mu(deformed x), mean over the batch, nats per example."""
        noise = self.noise(batch, generator=generator)
        x = binarise(batch[0], noise["u"])
        # Several processes want a gradient for every parameter: the mixture's is zero.
        mixture = self.pi_logits.sum() + self.mu_c.sum() + self.logvar_c.sum()
        return -self.log_px(x, self.encode_deformed(noise)(x).mu).mean() + 0.0 * mixture

    def on_fit_start(self):
        epochs, pretraining = self.trainer.max_epochs, self.hparams.pretrain_epochs
        if self.trainer.datamodule is None:
            raise UserError(
                "VaDE is trained with fit(model, datamodule=...): it asks for the training images once more"
            )
        loader = self.trainer.datamodule.train_dataloader()  # its own: the other knows where training stands
        known = isinstance(loader, Batched) and loader.batch_size
        gmm.check_images(len(loader) * loader.batch_size if known else math.inf, self.hparams.num_clusters)
        if not self.initialised and epochs not in (None, -1) and epochs <= pretraining and self.trainer.is_global_zero:
            log.warning(
                "The run ends before there is a mixture: its epochs, %d, are all the autoencoder's. Raise "
                "trainer.max_epochs above model.pretrain_epochs=%d, or lower that",
                *(epochs, pretraining),
            )

    def on_train_epoch_start(self):
        if not self.initialised and self.current_epoch >= self.hparams.pretrain_epochs:
            self.initialise_mixture()

    @torch.no_grad()
    def initialise_mixture(self) -> None:
        """Fit the mixture to the training images' latents mu(x): encoded by all processes, fitted by the first.

        Raises:
            UserError: if the autoencoder has diverged.
        """
        z = []
        batches = self.trainer.datamodule.train_dataloader()  # its own: the other knows where training stands
        for batch in tracked(batches, "encoding the images", "batch", show=shows_progress(self.trainer)):
            x = as_batch(batch)[0].to(self.device)
            z.append(torch.stack([self.encode(x).mu, self.encode_deformed(self.noise([x]))(x).mu], dim=1))
        # (N, 2, D), in the order of the images: of each, and of the same deformed.
        z = all_rows(torch.cat(z), self.trainer)
        if not z.isfinite().all():
            raise UserError(f"the autoencoder has diverged: its latents are not finite; lower lr, {self.hparams.lr}")
        seed = int(torch.randint(2**31, ()))
        h, fitted = self.hparams, None
        if self.trainer.is_global_zero:
            fitted = gmm.fit_mixture(*z.cpu().unbind(1), h.num_clusters, h.restarts, seed, h.initial_mixture)
        fitted = self.trainer.strategy.broadcast(fitted)
        for parameter, value in zip((self.pi_logits, self.mu_c, self.logvar_c), fitted, strict=True):
            parameter.copy_(value)
        # q(z | x) has had no variance so far: it begins with a twentieth of the components'.
        D, last = self.hparams.latent_dim, self.encoder[-1][-1]
        last.weight[D:] = 0
        last.bias[D:] = (self.logvar_c.exp().mean() / 20).log()
        self.initialised.fill_(True)
        for optimiser in self.trainer.optimizers:
            optimiser.state.clear()  # Adam's moments are those of another objective

    def training_step(self, batch, batch_idx):
        if not self.initialised:
            loss = self.pretraining_loss(batch)
            self.log("train/reconstruction", loss, prog_bar=True)
            return loss
        terms = self.loss(batch)
        self.log_dict({f"train/{k}": v for k, v in terms.items()}, prog_bar=True)
        return terms

    def validation_step(self, batch, batch_idx, stage="val"):
        x, *y = batch
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        terms = self.bound(batch, generator=generator)
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items()}, sync_dist=True, batch_size=len(x))
        if batch_idx == 0:
            self.agreement.reset()  # of what an interrupted evaluation left
        if y:
            self.agreement.update(self.cluster(x), *y)

    def on_validation_epoch_end(self, stage="val"):
        scores = self.agreement.compute() if self.agreement.update_called else {}  # without labels there are none
        self.log_dict({f"{stage}/{k}": v for k, v in scores.items()}, sync_dist=True)
        self.agreement.reset()

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def on_test_epoch_end(self):
        self.on_validation_epoch_end(stage="test")

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        steps = max(1, self.trainer.estimated_stepping_batches)  # infinite for max_epochs=-1
        self.trainer.fit_loop.setup_data()  # not done yet if the run's length is given in steps
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        first = min(steps, self.hparams.pretrain_epochs * per_epoch)

        def rate(step: int) -> float:
            return half_cosine(step, first) if step < first else half_cosine(step - first, max(1, steps - first))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "vade"

    # What it is for.

    log_likelihood_by = IMPORTANCE

    def forward(self, x: Tensor) -> Tensor:
        return self.cluster(x)

    def cluster(self, x: Tensor) -> Tensor:
        """The likeliest cluster at z = mu(x), 0 .. K-1, for images ``x`` in [0, 1], (B, 1, 28, 28); (B,)."""
        return self.responsibilities(self.encode(x).mu).argmax(-1)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, y: Tensor | None = None) -> Tensor:
        """The mean of p(x | z) at the posterior mean z = mu(x): images in [0, 1], (B, 1, 28, 28); ``y`` is not used."""
        return self.decode(self.encode(x).mu)

    def rows(self) -> tuple[str, list[int]]:
        """The condition of :meth:`sample` that makes the rows of a picture, and its values."""
        return "clusters", list(range(self.hparams.num_clusters))

    @torch.no_grad()
    def sample(self, n: int, *, clusters: Codes | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` latents from the prior, or from given clusters, and return the means of p(x | z).

        Args:
            clusters: one of 0 .. K-1 for each image, n of them, or one for all; drawn from pi if None.

        Returns:
            (n, 1, 28, 28), in [0, 1].

        Raises:
            UserError: for ``clusters`` that are no such numbers.
        """
        eps = randn(n, self.hparams.latent_dim, generator=generator, device=self.device)
        if clusters is None and n:
            pi = self.mixture.log_pi.exp().to(self.device if generator is None else generator.device)
            c = torch.multinomial(pi, n, replacement=True, generator=generator).to(self.device)
        else:
            c = as_codes("clusters", clusters, n, self.hparams.num_clusters, self.device)
        return self.decode(reparameterise(self.mu_c[c], self.logvar_c[c], eps))

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, *, num_samples: int = 100, y: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Importance-weighted lower bound of log p(x), eq. 8 of Burda et al. 2015, tight as ``num_samples`` grows.

        Args:
            x: images in [0, 1], (B, 1, 28, 28), binarised here, once.
            num_samples: importance samples per image, at least 1.
            y: labels, not used: this is a model of p(x) alone.

        Returns:
            (B,): nats.
        """
        x = binarise(x, rand(*x.shape, generator=generator, device=x.device))
        posterior, mixture = self.encode(x), self.mixture

        def log_weight(n: int) -> Tensor:
            eps = randn(n, len(x), self.hparams.latent_dim, generator=generator, device=x.device)
            return gmm.log_importance_weight(x, eps, lambda _: posterior, self.log_px, mixture)

        return importance_weighted_log_likelihood(log_weight, num_samples, len(x))

    # How its gradient can be estimated.

    def probe_batch(self, batch, *, generator: torch.Generator | None = None):
        """``batch`` with its pixels binarised, so that what then varies between draws is Monte-Carlo noise alone."""
        x, *rest = batch
        return [binarise(x, rand(*x.shape, generator=generator, device=x.device)), *rest]

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """``mean_field`` (what training uses); ``pathwise`` and ``score_function``, of five terms at gamma = p(c | z).

        All are of means over the batch, with deformed images.
        """
        params = dict(self.named_parameters())

        def given(noise: Noise) -> tuple:
            return noise["eps"], self.encode_deformed(noise), self.log_px, self.mixture

        def estimator(name: str, objective: Callable[[Tensor, Noise], Tensor]) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                return objective(binarise(batch[0], noise["u"]), noise).mean()

            # What deforms images has no batched form in torch.
            return GradientEstimator.of(self, name, params, self.noise, loss, batched=False)

        objectives = {
            "mean_field": lambda x, noise: self.mean_field(x, noise)["loss"],
            "pathwise": lambda x, noise: gmm.negative_elbo(x, *given(noise))["loss"],
            "score_function": lambda x, noise: score_function(*gmm.cost_at_a_fixed_draw(x, *given(noise))),
        }
        return {name: estimator(name, objective) for name, objective in objectives.items()}
