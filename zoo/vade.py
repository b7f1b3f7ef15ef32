"""VaDE: a variational autoencoder with a mixture of Gaussians as its prior. It clusters images without labels.

Jiang, Zheng, Tan, Tang, Zhou, "Variational Deep Embedding", 2017, arXiv:1611.05148.
Lecture notes (docs/references.md): [DSL 12.1.3], [HW2 P7].

    p(c) p(z | c)  = pi_c N(z | mu_c, diag exp(logvar_c)),  c in 0 .. K-1                       VaDE.mixture
    p(x | z)       = prod_d p(x_d | decoder_d(z)): Bernoulli, Gaussian or discretised logistic  VaDE.log_px
    q(z | x)       = N(z | mu(x), diag exp(logvar(x)))                                          VaDE.encode
    p(c | z)       = pi_c N(z | c) / sum_k pi_k N(z | k)       VaDE.responsibilities, mixture.log_responsibilities

The bound of log p(x) has three forms. gamma is any distribution over clusters. In the mean field, gamma does not depend
on z.

    five terms  E_q[ log p(x|z) + sum_c gamma_c (log p(z|c) + log pi_c - log gamma_c) - log q(z|x) ]  mixture.kl_terms
    marginal    E_q[ log p(x|z) + log p(z) - log q(z|x) - KL( gamma || p(c|z) ) ],
                p(z) = sum_c pi_c N(z | c)                                              mixture.log_importance_weight
    mean field  E_q[ log p(x|z) ] - sum_c gamma_c KL( q(z|x) || p(z|c) ) - KL( gamma || pi )
                eq. 12                                                               mixture.mean_field_negative_elbo

The code is in zoo/functional/mixture.py. ``log_importance_weight`` is the marginal form at gamma = p(c|z).
The first two forms are equal at every z for every gamma. They are largest at gamma = p(c|z). This largest value is the
ELBO below. For every gamma, the mean field is at most the ELBO. At K = 1 all three forms are equal.

As in the paper, training maximises the mean field. Its gamma = p(c | z = mu(x)) depends on the image and not on the
drawn z. Training therefore pulls all draws of z for an image and its deformations into one cluster. Six epochs of the
mean field raised the accuracy of clusters from 0.89 (k-means) to 0.92. Six epochs of the ELBO left it at 0.89.

Symbols: x are images in [0, 1], (B, C, H, W), in the form that the likelihood takes, such as binary. z are latents,
(B, D). c are clusters. gamma are responsibilities, (B, K). pi is (K,), and mu_c and logvar_c are (K, D). u is uniform
noise that binarises or dequantises x. eps is standard normal noise.
Logged, in nats per example: loss = nll + kl_z + kl_c with nll = -E_q log p(x|z), kl_c = E_q KL( gamma || pi ) and
kl_z = E_q[ log q(z|x) - sum_c gamma_c log p(z|c) ]. With the prefixes val/ and test/, loss is -ELBO, also during
pretraining. With train/, loss is minus the mean field for deformed images. train/reconstruction is the loss of
pretraining. accuracy, nmi and ari, with val/ and test/, compare clusters with the labels of the data, if there are any.
Training never uses labels. Likelihoods of 8-bit pixels also log bpd, the loss in bits per dimension.

Differs from the paper:
- In both phases of training q(z | x) comes from randomly deformed images (``deformation``), and the decoder
  reconstructs the images without deformation. The paper's autoencoder masks pixels instead. With deformation, clusters
  separate digits, not slants. The bound holds for any q, also for this q (Im et al. 2017).
- The autoencoder is pretrained as a whole with Adam, not layer by layer. The learning rate decays in each phase.
- The mixture is initialised by k-means, not by EM (``initial_mixture: em``). On the same latents the accuracy is 0.89
  with k-means, 0.87 with EM, and 0.80 with EM and full covariances. EM splits the digit 1 into two clusters.
- k-means runs several times. The mixture comes from the run with the largest mutual information between clusters of
  images and clusters of deformed images. This run has the best accuracy more often than the run with the smallest loss.
- Pixels are binarised dynamically, as in zoo/vae.py. The paper puts grey pixels into the Bernoulli cross-entropy, which
  is not a likelihood of grey pixels. ``cluster`` reads grey images.
- gamma is computed at z = mu(x) of the image without deformation, not at a drawn z. No gradient flows through gamma.
- The default networks are 784-300-300-600-10, not 784-500-500-2000-10.
- [HW2 P7] prints the marginal form with KL( gamma || p(c) ), which counts the prior of c twice. The correct
  divergence is KL( gamma || p(c|z) ), as above.
"""

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn

from zoo.checks.capabilities import IMPORTANCE
from zoo.checks.codes import Codes, as_codes
from zoo.checks.errors import UserError
from zoo.checks.inputs import checks_inputs, images, numbers, observed, takes
from zoo.checks.moved import names_in
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_image_shape, check_integer, check_not_negative, check_positive
from zoo.estimators import GradientEstimator, Noise, score_function
from zoo.functional import mixture as gmm
from zoo.functional.clusters import ClusterTable
from zoo.functional.deformation import deform
from zoo.functional.densities import at_least_float32, reparameterise
from zoo.functional.importance import importance_weighted_log_likelihood
from zoo.functional.latents import Gaussian
from zoo.functional.likelihoods import LIKELIHOODS, Likelihood, bits_per_dimension
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.nets.description import described
from zoo.nets.layers import check_network, image_networks, last_layer
from zoo.nets.pixels import add_likelihood, pixels_given
from zoo.training.loaders import encode_training_images, number_of_training_images
from zoo.training.optimisers import reset_adam, scheduled
from zoo.training.schedules import two_half_cosines

log = logging.getLogger(__name__)

__getattr__ = names_in("zoo.vade", "zoo.functional.mixture")  # former names of this module


@described
@accepts_old_form("noise", "loss", "bound", "pretraining_loss", "log_likelihood", "probe_batch")
@checks_inputs(x=images, z=numbers(lambda self: (self.hparams.latent_dim,)))
class VaDE(L.LightningModule):
    """Variational autoencoder with a mixture of Gaussians as its prior. It clusters images without labels.

    ``fit`` has two phases. For ``pretrain_epochs`` epochs it trains an autoencoder with z = mu(deformed x). Then it
    fits the mixture once to the latents of the training images, and trains all parameters to maximise the mean field.

    Args:
        num_clusters: K, the number of clusters.
        latent_dim: D, the number of latents.
        hidden: for ``mlp``, widths of the encoder's hidden layers. The decoder reverses their order. For ``conv``,
            a list of one number, the channels of the first convolution.
        pretrain_epochs: epochs of the autoencoder. With 0 the mixture is fitted to latents of the untrained encoder.
        initial_mixture: method that fits the mixture (zoo/functional/mixture.py), ``kmeans`` or ``em``.
        restarts: number of runs of ``initial_mixture``. The best run is kept.
        deformation: strength of the random deformation of the encoder's images in training. 0 turns it off.
        lr: learning rate of Adam, which decays to zero along half a cosine in each phase.
        likelihood: ``bernoulli`` on dynamically binarised pixels, ``gaussian`` on real pixels, or a likelihood of 8-bit
            pixels, ``gaussian_dequantised`` or ``discretised_logistic``.
        variance_floor: added to the learned variance of ``gaussian``, in squared pixel units (white is 1).
        shape: shape of an image, (C, H, W).
        net: type of the networks, ``mlp`` or ``conv``.

    Raises:
        UserError: if an argument has a value that is not allowed.
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
        likelihood: Literal["bernoulli", "gaussian", "gaussian_dequantised", "discretised_logistic"] = "bernoulli",
        variance_floor: float = 1e-3,
        shape: Sequence[int] = (1, 28, 28),
        net: Literal["mlp", "conv"] = "mlp",
    ):
        super().__init__()
        check_integer("num_clusters", num_clusters)
        check_integer("latent_dim", latent_dim)
        check_integer("restarts", restarts)
        check_choice("initial_mixture", initial_mixture, ("kmeans", "em"))
        check_integer("pretrain_epochs", pretrain_epochs, least=0)
        check_network(net, hidden, (300, 300, 600))
        check_image_shape("shape", shape)
        check_choice("likelihood", likelihood, tuple(LIKELIHOODS))
        check_positive("variance_floor", variance_floor)
        check_not_negative("deformation", deformation)
        check_positive("lr", lr)
        hidden, shape = list(hidden), list(shape)
        self.save_hyperparameters()
        self.encoder, self.decoder = image_networks(net, shape, 2 * latent_dim, latent_dim, hidden, nn.ReLU)
        self.pixels = add_likelihood(self, likelihood)
        self.pi_logits = nn.Parameter(torch.zeros(num_clusters))
        self.mu_c = nn.Parameter(torch.randn(num_clusters, latent_dim))
        self.logvar_c = nn.Parameter(torch.zeros(num_clusters, latent_dim))
        self.register_buffer("initialised", torch.tensor(False))  # whether the mixture has been fitted
        self.fitted = False  # the value of ``initialised`` in a run; training steps read no value from the device
        self.agreement = ClusterTable(num_clusters)

    # The model: p(c), p(z | c), p(x | z) and q(z | x). Densities are at least float32 in every precision.

    @property
    def mixture(self) -> gmm.Mixture:
        """Return the parameters of the prior, ``log_pi`` (K,), ``mu_c`` and ``logvar_c`` (K, D), at least float32."""
        parameters = (at_least_float32(p) for p in (self.pi_logits.log_softmax(0), self.mu_c, self.logvar_c))
        return gmm.Mixture(*parameters)

    def encode(self, x: Tensor) -> Gaussian:
        """Return ``mu`` and ``logvar`` of q(z | x), (B, D) each, for images ``x`` (B, C, H, W)."""
        return Gaussian(*at_least_float32(self.encoder(x)).chunk(2, dim=-1))

    def _px(self, z: Tensor) -> Likelihood:
        """Return p(x | z) for latents (..., D)."""
        return pixels_given(self, at_least_float32(self.decoder(z)))

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x | z), (..., C, H, W), in [0, 1], for latents (..., D)."""
        return self._px(z).mean()

    @takes(x=observed)
    def log_px(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x | z), (...) nats, for ``x`` (..., C, H, W) and ``z`` (..., D)."""
        return self._px(z).log_prob(x)

    def responsibilities(self, z: Tensor) -> Tensor:
        """Return p(c | z), (..., K), for latents (..., D)."""
        return gmm.log_responsibilities(z, self.mixture).exp()

    # Training. ``noise`` draws all random numbers. The objectives are deterministic functions of them.

    def noise(self, batch, *, generator: torch.Generator | None = None) -> Noise:
        """Return noise: ``u`` (B, C, H, W), ``eps`` (B, D), ``affine`` (B, 2, 3) and ``bumps`` (B, 2, 4, 4)."""
        x, drawn = batch[0], {"generator": generator, "device": batch[0].device}
        shapes = {"eps": (self.hparams.latent_dim,), "affine": (2, 3), "bumps": (2, 4, 4)}
        return {"u": rand(*x.shape, **drawn), **{k: randn(len(x), *shape, **drawn) for k, shape in shapes.items()}}

    def observe(self, x: Tensor, u: Tensor) -> Tensor:
        """Return images as the likelihood needs them, such as binarised or dequantised with ``u``."""
        return self.pixels.observe(x, u)

    def encode_deformed(self, noise: Noise) -> Callable:
        """Return a function that deforms images and then encodes them."""
        return lambda x: self.encode(deform(x, noise["affine"], noise["bumps"], self.hparams.deformation))

    def mean_field(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Return the terms of minus the mean field, (B,) nats each, with q(z | deformed x), for observed ``x``."""
        with torch.no_grad():
            log_gamma = gmm.log_responsibilities(self.encode(x).mu, self.mixture)
        encode = self.encode_deformed(noise)
        return gmm.mean_field_negative_elbo(x, noise["eps"], encode, self.log_px, self.mixture, log_gamma)

    def loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return the terms of :meth:`mean_field`, averaged over the batch. Training minimises ``loss``."""
        noise = self.noise(batch, generator=generator)
        return {name: term.mean() for name, term in self.mean_field(self.observe(batch[0], noise["u"]), noise).items()}

    def bound(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return the terms of -ELBO without deformation, averaged over the batch, in nats per example."""
        noise = self.noise(batch, generator=generator)
        x = self.observe(batch[0], noise["u"])
        terms = gmm.negative_elbo(x, noise["eps"], self.encode, self.log_px, self.mixture)
        if self.pixels.of_grey_values:
            terms["bpd"] = bits_per_dimension(terms["loss"], self.hparams.shape)
        return {name: term.mean() for name, term in terms.items()}

    def pretraining_loss(self, batch, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the autoencoder's loss, () nats: the batch mean of -log p(x | z) at z = mu(deformed x)."""
        noise = self.noise(batch, generator=generator)
        x = self.observe(batch[0], noise["u"])
        # Distributed training needs a gradient for every parameter. This term gives the mixture the gradient zero.
        mixture = self.pi_logits.sum() + self.mu_c.sum() + self.logvar_c.sum()
        return -self.log_px(x, self.encode_deformed(noise)(x).mu).mean() + 0.0 * mixture

    def on_fit_start(self):
        epochs, pretraining = self.trainer.max_epochs, self.hparams.pretrain_epochs
        gmm.check_images(number_of_training_images(self.trainer), self.hparams.num_clusters)
        if not self.initialised and epochs not in (None, -1) and epochs <= pretraining and self.trainer.is_global_zero:
            log.warning(
                "The run ends before the mixture is fitted: trainer.max_epochs is %d, and model.pretrain_epochs is %d. "
                "Raise trainer.max_epochs or lower model.pretrain_epochs",
                *(epochs, pretraining),
            )

    def on_train_start(self):
        self.fitted = bool(self.initialised)

    def on_train_epoch_start(self):
        if not self.fitted and self.current_epoch >= self.hparams.pretrain_epochs:
            self.initialise_mixture()

    @torch.no_grad()
    def initialise_mixture(self) -> None:
        """Fit the mixture to the latents mu(x) of the training images. All processes encode, and rank 0 fits.

        Raises:
            UserError: if the autoencoder has diverged.
        """

        def latents(x: Tensor) -> Tensor:  # of each image and of the deformed image, (B, 2, D)
            return torch.stack([self.encode(x).mu, self.encode_deformed(self.noise([x]))(x).mu], dim=1)

        z = encode_training_images(self.trainer, latents)
        if not z.isfinite().all():
            raise UserError(f"the autoencoder has diverged (its latents are not finite): lower lr={self.hparams.lr}")
        seed = int(torch.randint(2**31, ()))
        h, fitted = self.hparams, None
        if self.trainer.is_global_zero:
            fitted = gmm.fit_mixture(*z.cpu().unbind(1), h.num_clusters, h.restarts, seed, h.initial_mixture)
        fitted = self.trainer.strategy.broadcast(fitted)
        for parameter, value in zip((self.pi_logits, self.mu_c, self.logvar_c), fitted, strict=True):
            parameter.copy_(value)
        # Pretraining does not train the variance of q(z | x). Set it to 1/20 of the mean variance of the components.
        D, last = self.hparams.latent_dim, last_layer(self.encoder)
        last.weight[D:] = 0
        last.bias[D:] = (self.logvar_c.exp().mean() / 20).log()
        self.initialised.fill_(True)
        self.fitted = True
        reset_adam(self.trainer.optimizers)  # Adam's moments are from the loss of pretraining

    def graph_key(self) -> bool:
        """Return whether the next training step trains all parameters. If not, it pretrains the autoencoder."""
        return self.fitted

    def training_step(self, batch, batch_idx):
        if not self.fitted:
            loss = self.pretraining_loss(batch)
            self.log("train/reconstruction", loss, prog_bar=True)
            return loss
        terms = self.loss(batch)
        self.log_dict({f"train/{k}": v for k, v in terms.items()}, prog_bar=True)
        return terms

    def validation_step(self, batch, batch_idx, stage="val"):
        x, *labels = batch
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        terms = self.bound(batch, generator=generator)
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items()}, sync_dist=True, batch_size=len(x))
        if batch_idx == 0:
            self.agreement.reset()  # an interrupted evaluation may have left counts
        for y in labels[:1]:
            self.agreement.update(self.cluster(x), y)

    def on_validation_epoch_end(self, stage="val"):
        scores = self.agreement.compute() if self.agreement.update_called else {}  # no scores without labels
        self.log_dict({f"{stage}/{k}": v for k, v in scores.items()}, sync_dist=True)
        self.agreement.reset()

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def on_test_epoch_end(self):
        self.on_validation_epoch_end(stage="test")

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        steps = max(1, self.trainer.estimated_stepping_batches)  # the estimate is infinite for max_epochs=-1
        self.trainer.fit_loop.setup_data()  # with max_steps, Lightning has not yet called it
        batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        # If the length of an epoch is unknown, one cosine covers the whole run.
        per_epoch = math.ceil(batches) if math.isfinite(batches) else steps
        first = min(steps, self.hparams.pretrain_epochs * per_epoch) if self.hparams.pretrain_epochs else 0
        return scheduled(optimiser, partial(two_half_cosines, first=first, total=steps))

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "vade"

    # Uses of a trained model.

    log_likelihood_by = IMPORTANCE

    def forward(self, x: Tensor) -> Tensor:
        return self.cluster(x)

    def cluster(self, x: Tensor) -> Tensor:
        """Return the most probable cluster at z = mu(x), 0 .. K-1, (B,), for images in [0, 1], (B, C, H, W)."""
        return self.responsibilities(self.encode(x).mu).argmax(-1)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, y: Tensor | None = None) -> Tensor:
        """Return the mean of p(x | z) at z = mu(x), in [0, 1], (B, C, H, W). ``y`` is not used."""
        return self.decode(self.encode(x).mu)

    def rows(self) -> tuple[str, list[int]]:
        """Return the name and the values of the argument of :meth:`sample` that varies between rows of a picture."""
        return "clusters", list(range(self.hparams.num_clusters))

    @torch.no_grad()
    def sample(self, n: int, *, clusters: Codes | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` latents from the prior, or from given clusters, and return the means of p(x | z).

        Args:
            clusters: n clusters 0 .. K-1, or one cluster for all images. None draws clusters from pi.

        Returns:
            (n, C, H, W), in [0, 1].

        Raises:
            UserError: if ``clusters`` are not integers from 0 to K-1, or if their number is neither n nor one.
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
        """Return the importance-weighted lower bound of log p(x), Burda et al. 2015, eq. 8.

        Args:
            x: images in [0, 1], (B, C, H, W). The function binarises or dequantises them once.
            num_samples: importance samples per image, at least 1. More samples make the bound tighter.
            y: labels, which are not used.

        Returns:
            (B,): nats.
        """
        x = self.observe(x, rand(*x.shape, generator=generator, device=x.device))
        posterior, mixture = self.encode(x), self.mixture

        def log_weight(n: int) -> Tensor:
            eps = randn(n, len(x), self.hparams.latent_dim, generator=generator, device=x.device)
            return gmm.log_importance_weight(x, eps, lambda _: posterior, self.log_px, mixture)

        return importance_weighted_log_likelihood(log_weight, num_samples, len(x))

    # Gradient estimators.

    def probe_batch(self, batch, *, generator: torch.Generator | None = None):
        """Return ``batch`` with observed pixels. The gradient then varies only with the noise of the estimator."""
        x, *rest = batch
        return [self.observe(x, rand(*x.shape, generator=generator, device=x.device)), *rest]

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return gradient estimators by name, for losses averaged over the batch, with q(z | deformed x).

        Training uses ``mean_field``. ``pathwise`` and ``score_function`` estimate the gradient of -ELBO.
        """
        params = dict(self.named_parameters())

        def given(noise: Noise) -> tuple:
            return noise["eps"], self.encode_deformed(noise), self.log_px, self.mixture

        def estimator(name: str, objective: Callable[[Tensor, Noise], Tensor]) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                return objective(self.observe(batch[0], noise["u"]), noise).mean()

            # torch.func.vmap has no batching rule for the deformation.
            return GradientEstimator.of(self, name, params, self.noise, loss, batched=False)

        objectives = {
            "mean_field": lambda x, noise: self.mean_field(x, noise)["loss"],
            "pathwise": lambda x, noise: gmm.negative_elbo(x, *given(noise))["loss"],
            "score_function": lambda x, noise: score_function(*gmm.cost_at_a_fixed_draw(x, *given(noise))),
        }
        return {name: estimator(name, objective) for name, objective in objectives.items()}
