"""Conditional VAE: a variational autoencoder of images given their labels.

Sohn, Lee & Yan, "Learning Structured Output Representation using Deep Conditional Generative Models", NeurIPS 2015.
Lecture notes (docs/references.md): [DSL 12.1.2]. The paper predicts an output y from an input x. Here, as in the notes,
x is an image and y is its label.

    p(z | y)     = N(0, I) (prior: standard)  or  N(mu_p(y), diag exp(logvar_p(y))) (learned)         CVAE.prior
    p(x | z, y)  = prod_d p(x_d | decoder_d(z, y)): Bernoulli, Gaussian or discretised logistic       CVAE.log_px
    q(z | x, y)  = N(mu(x, y), diag exp(logvar(x, y)))                                                CVAE.encode
    L(x, y)      = E_q[ log p(x | z, y) ] - KL( q(z | x, y) || p(z | y) )  <=  log p(x | y)           negative_elbo

Symbols: x are images in [0, 1], (B, C, H, W), in the form that the likelihood takes, such as binary. y are labels from
0 to K - 1, (B,). z are latents, (B, D). mu and logvar belong to q, and mu_p and logvar_p to the prior. u is uniform
noise that binarises or dequantises x. eps is standard normal noise. zoo/functional/likelihoods.py has the formulas of
the likelihoods.
Logged with the prefixes train/, val/ and test/, in nats per example: loss = -L ([DSL eq. 12.5]),
nll = -E_q log p(x | z, y), and kl, the divergence in L. Likelihoods of 8-bit pixels also log bpd, the loss in bits
per dimension of the image, with val/ and test/.

Differs from the paper:
- The condition is a label. Its one-hot vector is concatenated to the inputs of the encoder and the decoder. With
  ``net: conv``, the encoder receives it as constant channels. In the paper the condition is an image.
- With ``prior: standard`` z is independent of y, as the paper allows (sec. 4). If all labels are given, the model M2 of
  Kingma et al. 2014, arXiv:1406.5298, is the same model.
- With ``prior: learned`` a table holds a mean and a variance for each label. A network would not be more general,
  because y has only K values.
- Training maximises L, the objective of the paper's CVAE. This file has no hybrid objective with a Gaussian
  stochastic network (paper, sec. 4.2). The networks of the paper also receive a first prediction of the
  output. The networks of this file do not. Samples use z drawn from the prior, as in the paper's tests.
- The optimiser is Adam with a cosine decay of the learning rate. Binarisation is dynamic (Burda et al. 2015). The grey
  value of a pixel is the probability of a 1.
- The Gaussian likelihood has one learned variance for all pixels, to which ``variance_floor`` is added. zoo/vae.py
  gives the reason.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn

from zoo.checks.capabilities import IMPORTANCE
from zoo.checks.errors import UserError
from zoo.checks.inputs import checks_inputs, images, labels_in, numbers
from zoo.checks.labels import Labels, as_labels
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_image_shape, check_integer, check_positive
from zoo.estimators import GradientEstimator, Noise, score_function
from zoo.functional.densities import at_least_float32, kl_normal, log_normal, reparameterise
from zoo.functional.importance import importance_weighted_log_likelihood
from zoo.functional.latents import Gaussian, one_hot
from zoo.functional.likelihoods import LIKELIHOODS, Likelihood, bits_per_dimension
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.nets.description import described
from zoo.nets.layers import ConvDecoder, ConvEncoder, check_network, mlp
from zoo.nets.pixels import add_likelihood, pixels_given
from zoo.training.optimisers import with_half_cosine


def negative_elbo(
    x: Tensor, y: Tensor, eps: Tensor, encode: Callable, log_px: Callable, prior: Callable
) -> dict[str, Tensor]:
    """Return -L(x, y), [DSL eq. 12.5], for one draw of the noise, with the divergence in closed form.

    Args:
        x: images, (B, ...), binary for the Bernoulli likelihood.
        y: labels, (B,).
        eps: standard normal, (B, D).
        encode: (x, y) -> (mu, logvar) of q(z | x, y), (B, D) each.
        log_px: (x, z, y) -> log p(x | z, y), (B,).
        prior: y -> (mu_p, logvar_p) of p(z | y), (B, D) each.

    Returns:
        ``loss = nll + kl``, ``nll``, ``kl``: nats per example, (B,) each.
    """
    mu, logvar = encode(x, y)
    nll = -log_px(x, reparameterise(mu, logvar, eps), y)
    kl = kl_normal(mu, logvar, *prior(y))
    return {"loss": nll + kl, "nll": nll, "kl": kl}


def score_function_surrogate(
    x: Tensor, y: Tensor, eps: Tensor, encode: Callable, log_px: Callable, prior: Callable
) -> Tensor:
    """Return -L(x, y), (B,) nats, with the score-function (REINFORCE) estimate of its gradient.

    With f = -log p(x | z, y), the gradient of E_q[f(z)] with respect to the encoder is
    E_q[ f(z) grad log q(z | x, y) ] ([Xu18b] and [Xu18a], "score function estimator"; [Liao22]). The decoder receives
    the gradient of f at the drawn z. The gradient of the divergence is exact.
    """
    mu, logvar = encode(x, y)
    z = reparameterise(mu, logvar, eps).detach()
    nll = -log_px(x, z, y)
    return score_function(nll, log_normal(z, mu, logvar)) + kl_normal(mu, logvar, *prior(y))


def log_importance_weight(
    x: Tensor, y: Tensor, eps: Tensor, encode: Callable, log_px: Callable, prior: Callable
) -> Tensor:
    """Return log w = log p(x | z, y) + log p(z | y) - log q(z | x, y) at z = mu + sigma eps, (B,) nats.

    E_q[w] = p(x | y).
    """
    mu, logvar = encode(x, y)
    z = reparameterise(mu, logvar, eps)
    zero = torch.zeros_like(z)
    log_q = log_normal(eps, zero, zero) - logvar.sum(-1) / 2  # eps is (z - mu) / sigma without rounding
    return log_px(x, z, y) + log_normal(z, *prior(y)) - log_q


@described
@accepts_old_form("noise", "loss", "probe_batch", "reconstruct", "log_likelihood", labels="y")
@checks_inputs(x=images, z=numbers(lambda self: (self.hparams.latent_dim,)))
class CVAE(L.LightningModule):
    """Conditional variational autoencoder: p(x | y) of images x given labels y.

    Methods that take labels accept a tensor, a list, or one number for all images.

    Args:
        latent_dim: D, the number of latents.
        num_classes: K. Labels are integers from 0 to K - 1.
        prior: ``standard`` sets p(z | y) = N(0, I). ``learned`` learns a mean and a variance for each label.
        likelihood: ``bernoulli`` on dynamically binarised pixels, ``gaussian`` on real pixels, or a likelihood of 8-bit
            pixels, ``gaussian_dequantised`` or ``discretised_logistic``.
        hidden: for ``mlp``, widths of the encoder's hidden layers. The decoder reverses their order. For ``conv``,
            a list of one number, the channels of the first convolution.
        lr: learning rate of Adam, which decays to zero along half a cosine over the run.
        variance_floor: added to the learned variance of ``gaussian``, in squared pixel units (white is 1).
        shape: shape of an image, (C, H, W).
        net: type of the networks, ``mlp`` or ``conv``.

    Raises:
        UserError: if an argument has a value that is not allowed. Methods raise it if labels are not integers from 0 to
            K - 1.
    """

    def __init__(
        self,
        latent_dim: int = 4,
        num_classes: int = 10,
        prior: Literal["standard", "learned"] = "learned",
        likelihood: Literal["bernoulli", "gaussian", "gaussian_dequantised", "discretised_logistic"] = "bernoulli",
        hidden: Sequence[int] = (512, 512),
        lr: float = 1e-3,
        variance_floor: float = 1e-3,
        shape: Sequence[int] = (1, 28, 28),
        net: Literal["mlp", "conv"] = "mlp",
    ):
        super().__init__()
        check_choice("prior", prior, ("standard", "learned"))
        check_choice("likelihood", likelihood, tuple(LIKELIHOODS))
        check_integer("latent_dim", latent_dim)
        check_integer("num_classes", num_classes)
        check_network(net, hidden, (512, 512))
        check_image_shape("shape", shape)
        check_positive("lr", lr)
        check_positive("variance_floor", variance_floor)
        hidden, shape = list(hidden), list(shape)
        self.save_hyperparameters()
        if net == "conv":
            self.encoder = ConvEncoder([shape[0] + num_classes, *shape[1:]], 2 * latent_dim, hidden[0])
            self.decoder = ConvDecoder(shape, latent_dim + num_classes, hidden[0])
        else:
            pixels = math.prod(shape)
            self.encoder = mlp([pixels + num_classes, *hidden, 2 * latent_dim])
            self.decoder = mlp([latent_dim + num_classes, *hidden[::-1], pixels])
        if prior == "learned":
            self.prior_table = nn.Embedding(num_classes, 2 * latent_dim)
            nn.init.zeros_(self.prior_table.weight)  # the prior begins as N(0, I)
        self.pixels = add_likelihood(self, likelihood)

    # The model: p(z | y), p(x | z, y) and q(z | x, y).

    def prior(self, y: Labels) -> tuple[Tensor, Tensor]:
        """Return ``mu_p`` and ``logvar_p`` of p(z | y), (B, D) each, for labels ``y`` (B,)."""
        y = self._labels(y, len(y) if isinstance(y, Tensor | Sequence) else 1)
        if self.hparams.prior == "standard":
            zero = next(self.decoder.parameters()).new_zeros(len(y), self.hparams.latent_dim)
            return zero, zero
        return at_least_float32(self.prior_table(y)).chunk(2, dim=-1)

    def encode(self, x: Tensor, y: Labels) -> Gaussian:
        """Return ``mu`` and ``logvar`` of q(z | x, y), (B, D) each, for images (B, C, H, W) and labels (B,)."""
        conv = self.hparams.net == "conv"
        given = self._with_label(x, y, x.shape[-2:]) if conv else self._with_label(x.flatten(1), y)
        return Gaussian(*at_least_float32(self.encoder(given)).chunk(2, dim=-1))

    def _px(self, z: Tensor, y: Labels) -> Likelihood:
        """Return p(x | z, y) for ``z`` (..., B, D) and ``y`` (B,)."""
        out = self.decoder(self._with_label(z, y))
        out = out if self.hparams.net == "conv" else out.unflatten(-1, self.hparams.shape)
        return pixels_given(self, at_least_float32(out))

    def decode(self, z: Tensor, y: Labels) -> Tensor:
        """Return the mean of p(x | z, y), (..., B, C, H, W), in [0, 1], for ``z`` (..., B, D) and ``y`` (B,)."""
        return self._px(z, y).mean()

    def log_px(self, x: Tensor, z: Tensor, y: Labels) -> Tensor:
        """Return log p(x | z, y), (..., B) nats, for ``x`` (B, C, H, W), ``z`` (..., B, D) and ``y`` (B,)."""
        return self._px(z, y).log_prob(x)

    def _labels(self, y: Labels, n: int) -> Tensor:
        return as_labels(y, n, self.hparams.num_classes, next(self.decoder.parameters()).device)

    def _given(self, y: Labels | None, n: int) -> Tensor:
        if y is None:
            raise UserError(f"y is missing, and CVAE needs labels here: give y, the labels of the {n} images")
        return self._labels(y, n)

    def _with_label(self, a: Tensor, y: Labels, sides: Sequence[int] = ()) -> Tensor:
        """Return ``a`` (..., B, F, *sides) with the one-hot labels ``y`` (B,) behind it, (..., B, F + K, *sides)."""
        axis = -1 - len(sides)
        labels = one_hot(self._labels(y, a.shape[axis - 1]), self.hparams.num_classes, a.dtype)
        labels = labels.view(*labels.shape, *[1] * len(sides)).expand(*a.shape[:axis], -1, *sides)
        return torch.cat([a, labels], dim=axis)

    # Training. ``noise`` draws all random numbers. The objective is a deterministic function of them.

    def noise(self, batch, *, generator: torch.Generator | None = None) -> Noise:
        """Return the noise of one step: ``u`` (B, C, H, W), which binarises images, and ``eps`` (B, D)."""
        x = batch[0]
        return {
            "u": rand(*x.shape, generator=generator, device=x.device),
            "eps": randn(len(x), self.hparams.latent_dim, generator=generator, device=x.device),
        }

    def observe(self, x: Tensor, u: Tensor) -> Tensor:
        """Return images as the likelihood needs them, such as binarised or dequantised with ``u``."""
        return self.pixels.observe(x, u)

    def loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return ``loss``, ``nll`` and ``kl``, averaged over the batch, in nats per example."""
        x, y, noise = batch[0], labels_in(batch, self), self.noise(batch, generator=generator)
        terms = negative_elbo(self.observe(x, noise["u"]), y, noise["eps"], self.encode, self.log_px, self.prior)
        return {name: term.mean() for name, term in terms.items()}

    def graph_key(self) -> None:
        """Return None: all training steps have the same operations."""

    def training_step(self, batch, batch_idx):
        terms = self.loss(batch)
        self.log_dict({f"train/{k}": v for k, v in terms.items()}, prog_bar=True)
        return terms

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        terms = self.loss(batch, generator=generator)
        if self.pixels.of_grey_values:
            terms["bpd"] = bits_per_dimension(terms["loss"], self.hparams.shape)
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items()}, sync_dist=True, batch_size=len(batch[0]))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return with_half_cosine(optimiser, self.trainer)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "cvae"

    # Uses of a trained model.

    log_likelihood_by = IMPORTANCE

    def forward(self, x: Tensor, y: Labels) -> Tensor:
        return self.reconstruct(x, y=y)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, y: Labels | None = None) -> Tensor:
        """Return the mean of p(x | z, y) at the posterior mean z = mu(x, y), in [0, 1], (B, C, H, W).

        Raises:
            UserError: if the labels ``y`` of ``x`` are missing.
        """
        y = self._given(y, len(x))
        return self.decode(self.encode(x, y).mu, y)

    def rows(self) -> tuple[str, list[int]]:
        """Return "y" and all labels: a picture of samples has one row for each label."""
        return "y", list(range(self.hparams.num_classes))

    @torch.no_grad()
    def sample(self, n: int, *, y: Labels | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` latents from p(z | y) and return the means of p(x | z, y), in [0, 1], (n, C, H, W).

        Args:
            y: ``n`` labels, or one label for all images. None draws labels uniformly. The noise of z does not depend
                on ``y``.
        """
        eps = randn(n, self.hparams.latent_dim, generator=generator, device=self.device)
        if y is None:
            where = self.device if generator is None else generator.device
            y = torch.randint(self.hparams.num_classes, (n,), generator=generator, device=where)
        y = self._labels(y, n)
        return self.decode(reparameterise(*self.prior(y), eps), y)

    @torch.no_grad()
    def log_likelihood(
        self,
        x: Tensor,
        *,
        y: Labels | None = None,
        num_samples: int = 100,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the importance-weighted lower bound of log p(x | y), as in Burda et al. 2015, eq. 8.

        Args:
            x: images in [0, 1], (B, C, H, W). The function binarises or dequantises them once.
            y: labels of ``x``.
            num_samples: importance samples per image, at least 1. More samples make the bound tighter.

        Returns:
            (B,): nats.

        Raises:
            UserError: if ``y`` is missing.
        """
        y = self._given(y, len(x))
        x = self.observe(x, rand(*x.shape, generator=generator, device=x.device))
        posterior, prior = self.encode(x, y), self.prior(y)

        def log_weight(n: int) -> Tensor:
            eps = randn(n, len(x), self.hparams.latent_dim, generator=generator, device=x.device)
            return log_importance_weight(x, y, eps, lambda *_: posterior, self.log_px, lambda _: prior)

        return importance_weighted_log_likelihood(log_weight, num_samples, len(x))

    # Gradient estimators.

    def probe_batch(self, batch, *, generator: torch.Generator | None = None):
        """Return ``batch`` with observed pixels. The gradient then varies only with the noise of the estimator."""
        x, y = batch[0], labels_in(batch, self)
        return [self.observe(x, rand(*x.shape, generator=generator, device=x.device)), y]

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return two estimators of the gradient of -L. Training uses ``pathwise``. The other is ``score_function``."""
        params = dict(self.named_parameters())

        def estimator(name: str, objective: Callable) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                x = self.observe(batch[0], noise["u"])
                return objective(x, labels_in(batch, self), noise["eps"], self.encode, self.log_px, self.prior).mean()

            return GradientEstimator.of(self, name, params, self.noise, loss)

        return {
            "pathwise": estimator("pathwise", lambda *args: negative_elbo(*args)["loss"]),
            "score_function": estimator("score_function", score_function_surrogate),
        }
