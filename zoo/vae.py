"""VAE: a variational autoencoder. Its encoder network approximates the posterior of the latents.

Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, arXiv:1312.6114. Burda et al. 2015, arXiv:1509.00519, for the
importance-weighted bound. Hinton et al. 1995 for wake-sleep. Lecture notes (docs/references.md): [DSL 12.1], and
[Liao22] for amortised inference with continuous and binary latents and for wake-sleep.

    p(z)      = N(0, I), Bernoulli(1/2)^D, or uniform over K categories, D times               VAE.prior
    p(x | z)  = prod_d p(x_d | decoder_d(z)): Bernoulli, Gaussian or discretised logistic      VAE.log_px
    q(z | x)  = D independent latents of the family of p(z), with parameters from a network    VAE.encode
    ELBO(x)   = E_q[ log p(x | z) ] - beta KL( q(z | x) || p(z) )                              VAE.negative_elbo
                <= log p(x)  at beta = 1                          eq. 3, [HW2 P5]; for beta, [HW2 P4]
    L_k(x)    = E_q[ log( (1/k) sum_i w_i ) ],  w_i = p(x, z_i) / q(z_i | x),                  VAE.negative_iwae
                ELBO <= L_k <= log p(x)           Burda eq. 8               importance.importance_weighted_bound
    wake      draw z ~ q(z | x), increase log p(x | z)                                         wake
    sleep     draw z ~ p(z), x ~ p(x | z), increase log q(z | x)                               sleep

Symbols: x are images in [0, 1], (B, C, H, W), in the form that the likelihood takes, such as binary. z are latents,
(B, D) or one-hot (B, D, K). k draws for each image are (k, B, ...). u is uniform noise that binarises or dequantises x.
zoo/functional/latents.py has the families of latents. zoo/functional/likelihoods.py has the formulas of the
likelihoods. zoo/functional/importance.py has L_k and w_i.
zoo/estimators/by_name.py lists the gradient estimators. zoo/estimators/learned.py has baselines and control variates.
Logged with the prefixes train/, val/ and test/, in nats per example: loss = -ELBO (with beta) or -L_k,
nll = -E_q log p(x | z), and kl. Likelihoods of 8-bit pixels also log bpd, minus the bound in bits per dimension
of the image, with val/ and test/. Validation and test always use hard draws of z. With gumbel_softmax, train/ uses
relaxed latents. With wake_sleep, train/loss is wake + sleep. train/baseline is the squared error of NVIL's baseline.
train/control is the loss of a control variate: the mean squared gradient with respect to the logits of q.

Differs from the papers:
- The optimiser is Adam with a cosine decay of the learning rate. Kingma & Welling use Adagrad, and weight decay as a
  prior on the decoder's parameters. Burda et al. lower the learning rate in steps.
- By default the networks have two hidden layers of rectified linear units. With ``net: conv`` they are
  convolutional. The networks of Kingma & Welling have one hidden layer of tanh units.
- Binarisation is dynamic, as in Burda et al.: each use of an image draws new binary pixels. The grey value of a pixel
  is the probability of a 1.
- The Gaussian likelihood has one learned variance for all pixels (Rybkin et al. 2021), not one for each pixel.
  ``variance_floor`` is added to this variance. Without the floor, exact reconstructions have unbounded density.
  The discretised logistic has one learned scale for all pixels.
- The means of these likelihoods come from a linear layer, not a sigmoid. Only ``decode`` clips them to [0, 1].
- The score-function estimators use the divergence in closed form. [Liao22] puts all of log p(x, z) - log q(z | x) into
  the score term, as the estimators ``+sampled_kl`` do. Both gradients have the same expectation.
- Training with relaxed latents uses the closed-form divergence of discrete latents, as in Jang et al. train/loss is
  then no bound of -log p(x). val/loss is a bound at beta = 1. Maddison et al. use the divergence of relaxed latents.
- NVIL (Mnih & Gregor 2014) also divides the cost by its running standard deviation, which rescales the gradient. The
  estimator ``+nvil`` does not.
- Wake-sleep draws a new pair (z, x) from the model for each image at each step. One step minimises wake + sleep.
- [Xu18a] prints z = mu + x sigma^2, where x is the noise. The correct form is z = mu + x sigma.
- [Liao22] prints the prior once as p(X) = N(X | 0, I). The correct form is p(z).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn

from zoo.checks.capabilities import IMPORTANCE
from zoo.checks.errors import UserError
from zoo.checks.inputs import checks_inputs, images, numbers, observed, takes
from zoo.checks.moved import names_in
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_image_shape, check_integer, check_not_negative, check_positive
from zoo.estimators import GradientEstimator, Noise, by_name, multi_sample_surrogate, with_gradient
from zoo.estimators.learned import FixedControl, Learned, earlier_keys, learned_by, without_parameter_gradients
from zoo.functional import importance
from zoo.functional.densities import at_least_float32
from zoo.functional.latents import LATENTS, Bernoulli, Categorical, Gaussian, log_ratio
from zoo.functional.likelihoods import LIKELIHOODS, Likelihood, bits_per_dimension
from zoo.functional.noise import chunk_generator, rand
from zoo.functional.precision import keep_float32
from zoo.nets.description import described
from zoo.nets.layers import check_network, image_networks
from zoo.nets.pixels import add_likelihood, pixels_given
from zoo.training.optimisers import with_half_cosine

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}

__getattr__ = names_in("zoo.vae", "zoo.functional.importance", "zoo.estimators.by_name")  # former names of this module


def wake(x: Tensor, z: Tensor, log_px: Callable) -> Tensor:
    """Return the loss of the decoder, -log p(x | z), (k, B) nats, for ``z`` ~ q(z | x), detached."""
    return -log_px(x, z.detach())


def sleep(x: Tensor, z: Tensor, encode: Callable) -> Tensor:
    """Return the loss of the encoder, -log q(z | x), (B,) nats, for detached ``z`` ~ p(z) and ``x`` ~ p(x | z)."""
    return -encode(x.detach()).log_probs(z.detach()).sum(-1)


@described
@accepts_old_form("noise", "loss", "bound", "prior", "probe_batch", "log_likelihood")
@checks_inputs(x=images, z=numbers(attrgetter("latent_shape"), fractions=lambda self: self.latents is not Gaussian))
@keep_float32("step_tau")
class VAE(L.LightningModule):
    """Variational autoencoder with Gaussian, binary or categorical latents.

    Args:
        latent: family of the latents, ``gaussian``, ``bernoulli`` (binary) or ``categorical``.
        latent_dim: D, the number of latents.
        num_categories: K, the number of categories of each categorical latent.
        likelihood: ``bernoulli`` on dynamically binarised pixels, ``gaussian`` on real pixels, or a likelihood of 8-bit
            pixels, ``gaussian_dequantised`` or ``discretised_logistic``.
        net: type of the networks, ``mlp`` or ``conv``.
        hidden: for ``mlp``, widths of the encoder's hidden layers. The decoder reverses their order. For ``conv``,
            a list of one number, the channels of the first convolution.
        activation: activation of the hidden layers of an ``mlp``, ``relu`` or ``tanh``.
        objective: ``elbo``, ``iwae`` or ``wake_sleep``.
        num_samples: k, the number of draws of z for each image. ``iwae`` maximises L_k. ``elbo`` averages over the
            draws. If k is 1, the antithetic and leave-one-out estimators of ``elbo`` use two draws.
        beta: weight of the divergence in ``elbo``, at least 0. With 1 the ELBO is a lower bound of log p(x).
        estimator: gradient estimator, one of ``ESTIMATORS`` in zoo.estimators.by_name. ``auto`` is pathwise for
            Gaussian latents. For other latents it is score_function+nvil (``elbo``) or score_function+loo (``iwae``).
        temperature: temperature of relaxed latents. rebar and relax learn it and begin at this value.
        temperature_end: temperature of gumbel_softmax and straight_through at the end of the run. The change is
            exponential. None keeps the temperature constant.
        lr: learning rate of Adam, which decays to zero along half a cosine over the run.
        variance_floor: added to the learned variance of ``gaussian``, in squared pixel units (white is 1).
        shape: shape of an image, (C, H, W).

    Raises:
        UserError: if an argument has a value that is not allowed, or that another argument excludes.
    """

    def __init__(
        self,
        latent: Literal["gaussian", "bernoulli", "categorical"] = "gaussian",
        latent_dim: int = 32,
        num_categories: int = 10,
        likelihood: Literal["bernoulli", "gaussian", "gaussian_dequantised", "discretised_logistic"] = "bernoulli",
        net: Literal["mlp", "conv"] = "mlp",
        hidden: Sequence[int] = (512, 512),
        activation: Literal["relu", "tanh"] = "relu",
        objective: Literal["elbo", "iwae", "wake_sleep"] = "elbo",
        num_samples: int = 1,
        beta: float = 1.0,
        estimator: str = "auto",
        temperature: float = 0.5,
        temperature_end: float | None = None,
        lr: float = 1e-3,
        variance_floor: float = 1e-3,
        shape: Sequence[int] = (1, 28, 28),
    ):
        super().__init__()
        hidden, shape = (list(a) if isinstance(a, tuple) else a for a in (hidden, shape))
        self.save_hyperparameters()
        self._check()
        self.latents = LATENTS[latent]
        self.latent_shape = (latent_dim, num_categories) if latent == "categorical" else (latent_dim,)
        self.estimator = by_name.chosen(objective, latent, estimator, num_samples)
        features = math.prod(self.latent_shape)
        outputs = 2 * latent_dim if latent == "gaussian" else features
        self.encoder, self.decoder = image_networks(net, shape, outputs, features, hidden, ACTIVATIONS[activation])
        self.pixels = add_likelihood(self, likelihood)
        tau = None if temperature_end is None else torch.tensor(temperature)
        self.register_buffer("step_tau", tau, persistent=False)  # temperature of the training step, if it changes
        for name, module in learned_by(self.estimator, math.prod(shape), features, temperature).items():
            self.add_module(name, module)
        self.register_load_state_dict_pre_hook(earlier_keys)

    def _check(self) -> None:
        h = self.hparams
        check_choice("latent", h.latent, tuple(LATENTS))
        check_choice("likelihood", h.likelihood, tuple(LIKELIHOODS))
        check_choice("activation", h.activation, tuple(ACTIVATIONS))
        check_choice("objective", h.objective, ("elbo", "iwae", "wake_sleep"))
        check_integer("latent_dim", h.latent_dim)
        check_integer("num_categories", h.num_categories, least=2)
        check_integer("num_samples", h.num_samples)
        check_network(h.net, h.hidden, (512, 512))
        check_image_shape("shape", h.shape)
        check_positive("lr", h.lr)
        check_positive("variance_floor", h.variance_floor)
        check_not_negative("beta", h.beta)
        by_name.check_temperatures(h.estimator, h.temperature, h.temperature_end)
        if h.beta != 1 and h.objective != "elbo":
            raise UserError(f"beta must be 1 with objective={h.objective}, got {h.beta}; use objective=elbo")

    # The model: p(x | z) and q(z | x).

    def encode(self, x: Tensor) -> Gaussian | Bernoulli | Categorical:
        """Return q(z | x) for images ``x`` (B, C, H, W). A Gaussian q has ``mu`` and ``logvar``, (B, D) each."""
        return self.latents.of(at_least_float32(self.encoder(x)), self.latent_shape)

    def prior(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Return ``n`` draws of p(z): (n, D), or one-hot (n, D, K)."""
        noise = self.latents.noise(n, *self.latent_shape, generator=generator, device=self.device)
        return self.latents.draw_prior(noise)

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x | z), (..., C, H, W), clipped to [0, 1], for latents (..., D) or (..., D, K)."""
        return self._px(z).mean()

    def _px(self, z: Tensor, fixed: bool = False) -> Likelihood:
        """Return p(x | z) for ``z`` (..., D) or (..., D, K). ``fixed`` means no gradients of the decoder."""
        z = z.flatten(-2) if self.latents is Categorical else z
        out = without_parameter_gradients(self.decoder, z) if fixed else self.decoder(z)
        return pixels_given(self, at_least_float32(out), fixed)

    @takes(x=observed)
    def log_px(self, x: Tensor, z: Tensor, without_parameter_gradients: bool = False) -> Tensor:
        """Return log p(x | z), (...) nats, for ``x`` (..., C, H, W) and ``z`` (..., D) or (..., D, K).

        Args:
            without_parameter_gradients: whether to compute gradients of ``z`` but not of the decoder's parameters.
        """
        return self._px(z, without_parameter_gradients).log_prob(x)

    # Training. ``noise`` draws all random numbers. The objectives are deterministic functions of them.

    def noise(self, batch, *, generator: torch.Generator | None = None, estimator: str | None = None) -> Noise:
        """Return the noise of one step of ``estimator``. None selects the estimator of the model.

        ``u`` (B, C, H, W) binarises images. ``z`` draws k latents for each image. Some estimators add more noise.
        """
        estimator = estimator or self.estimator
        x, k = batch[0], self.hparams.num_samples
        drawn = {"generator": generator, "device": x.device}
        latents = lambda n: self.latents.noise(n, len(x), *self.latent_shape, **drawn)  # noqa: E731
        noise = {"u": rand(*x.shape, **drawn)}
        noise |= by_name.draw_noise(estimator, latents, k)
        if estimator == "wake_sleep":
            noise["sleep_z"] = latents(1)[0]
            noise["sleep_x"] = self.pixels.noise(*x.shape, **drawn)
        return noise

    def observe(self, x: Tensor, u: Tensor) -> Tensor:
        """Return images as the likelihood needs them, such as binarised or dequantised with ``u``."""
        return self.pixels.observe(x, u)

    def negative_elbo(self, x: Tensor, noise: Noise, estimator: str, tau: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``loss`` = nll + beta kl, ``nll`` and ``kl``, (B,) nats each, with the gradient of ``estimator``.

        ``tau`` is the temperature. None selects the property ``tau``.
        """
        q, beta = self.encode(x), self.hparams.beta
        # Only the estimator that trains the model has learned parts. Without them, REBAR uses eta = 1.
        learned = self.learned if estimator == self.estimator else FixedControl(self.hparams.temperature)
        parts = learned.parts(x, q, lambda z: -self.log_px(x, z, without_parameter_gradients=True))
        parts["tau"] = (self.tau if tau is None else tau) if estimator in by_name.TEMPERED else 1.0
        nll = by_name.surrogate(estimator, lambda z: -self.log_px(x, z), q, noise, beta, **parts).mean(0)
        kl = q.kls().sum(-1)
        if estimator.endswith("+sampled_kl"):  # nll contains beta (log q - log p)
            loss, nll, kl = nll, (nll - beta * kl).detach(), kl.detach()
        else:
            loss = nll + beta * kl  # minus ELBO(x)
        return {"loss": loss, "nll": nll, "kl": kl}

    def negative_iwae(self, x: Tensor, noise: Noise, estimator: str) -> dict[str, Tensor]:
        """Return ``loss`` = -L_k with the gradient of ``estimator``, and ``nll`` and ``kl``, (B,) nats each."""
        q = self.encode(x)
        z = q.draw(noise["z"])
        z = z if estimator == "pathwise" else z.detach()
        log_w = importance.log_importance_weight(x, z, q, self.log_px)
        bound = importance.importance_weighted_bound(log_w)
        if estimator != "pathwise":
            bound = multi_sample_surrogate(estimator, log_w, bound, q.log_probs(z).sum(-1))
        kl = q.kls().sum(-1).detach()
        nll = -(log_w + log_ratio(z, q)).mean(0).detach()
        return {"loss": -bound, "nll": nll, "kl": kl}

    def wake_and_sleep(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Return ``loss`` = wake + sleep, ``wake`` and ``sleep``, (B,) nats each."""
        awake = wake(x, self.encode(x).draw(noise["z"]), self.log_px).mean(0)
        with torch.no_grad():
            z = self.latents.draw_prior(noise["sleep_z"])
            dream = self._px(z).draw(noise["sleep_x"])
        asleep = sleep(dream, z, self.encode)
        return {"loss": awake + asleep, "wake": awake, "sleep": asleep}

    def objective(self, estimator: str, tau: Tensor | None = None) -> Callable[[Tensor, Noise], dict[str, Tensor]]:
        """Return a function (observed images, noise) that returns the objective with the gradient of ``estimator``."""
        if estimator == "wake_sleep":
            return self.wake_and_sleep
        if self.hparams.objective == "iwae":
            return partial(self.negative_iwae, estimator=estimator)
        return partial(self.negative_elbo, estimator=estimator, tau=tau)

    def loss(self, batch, *, generator: torch.Generator | None = None, tau: Tensor | None = None) -> dict[str, Tensor]:
        """Return the terms of the objective, averaged over the batch, in nats per example. Training minimises ``loss``.

        A learned baseline or control variate adds the gradient of its loss to the gradient of ``loss``. The value
        of ``loss`` does not change. ``tau`` is as for :meth:`negative_elbo`.
        """
        noise = self.noise(batch, generator=generator)
        x = self.observe(batch[0], noise["u"])
        each = self.objective(self.estimator, tau)(x, noise)
        terms = {name: term.mean() for name, term in each.items()}
        fixed = lambda z: -self.log_px(x, z, without_parameter_gradients=True)  # noqa: E731
        for name, term in self.learned.loss(x, noise, each, self.encode, fixed).items():
            terms |= {name: term, "loss": with_gradient(terms["loss"], term)}
        return terms

    @property
    def learned(self) -> Learned:
        """Return the learned part of the estimator: a baseline, a control variate, or ``Learned()``."""
        return next((module for module in self.children() if isinstance(module, Learned)), Learned())

    @property
    def tau(self) -> float:
        """Return the temperature at the current step of a run. Without a trainer, return the final temperature."""
        start, end = self.hparams.temperature, self.hparams.temperature_end
        if end is None:
            return start
        if self._trainer is None:
            return end
        steps = max(1, self.trainer.estimated_stepping_batches)  # the estimate is infinite for max_epochs=-1
        return start * (end / start) ** min(1.0, self.trainer.global_step / steps)

    def on_train_batch_start(self, batch, batch_idx):
        if self.step_tau is not None:
            self.step_tau.fill_(self.tau)

    def bound(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return the terms of -ELBO or -L_k at hard draws of z. Validation logs them for every estimator.

        Likelihoods of grey values also have the term ``bpd``.
        """
        plain = "pathwise" if self.latents is Gaussian else "score_function"
        noise = self.noise(batch, generator=generator, estimator=plain)
        terms = self.objective(plain)(self.observe(batch[0], noise["u"]), noise)
        if self.pixels.of_grey_values:
            minus_bound = terms["loss"] + (1 - self.hparams.beta) * terms["kl"]
            terms["bpd"] = bits_per_dimension(minus_bound, self.hparams.shape)
        return {name: term.mean() for name, term in terms.items()}

    def graph_key(self) -> None:
        """Return None: all training steps have the same operations."""

    def training_step(self, batch, batch_idx):
        terms = self.loss(batch, tau=self.step_tau)
        self.learned.after_step(terms, self.all_gather)
        self.log_dict({f"train/{k}": v for k, v in terms.items()}, prog_bar=True)
        return terms

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        terms = self.bound(batch, generator=generator)
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items()}, sync_dist=True, batch_size=len(batch[0]))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return with_half_cosine(optimiser, self.trainer)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "vae"

    # Uses of a trained model.

    log_likelihood_by = IMPORTANCE

    def forward(self, x: Tensor) -> Tensor:
        return self.reconstruct(x)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, y: Tensor | None = None) -> Tensor:
        """Return the mean of p(x | z) at the mode of q(z | x), in [0, 1], (B, C, H, W). ``y`` is not used."""
        return self.decode(self.encode(x).mode())

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` latents from the prior and return the means of p(x | z), in [0, 1], (n, C, H, W)."""
        return self.decode(self.prior(n, generator=generator))

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
        q = self.encode(x)

        def log_weight(n: int) -> Tensor:
            noise = self.latents.noise(n, len(x), *self.latent_shape, generator=generator, device=x.device)
            return importance.log_importance_weight(x, q.draw(noise), q, self.log_px)

        return importance.importance_weighted_log_likelihood(log_weight, num_samples, len(x))

    # Gradient estimators.

    def probe_batch(self, batch, *, generator: torch.Generator | None = None):
        """Return ``batch`` with observed pixels. The gradient then varies only with the noise of the estimator."""
        x, *rest = batch
        return [self.observe(x, rand(*x.shape, generator=generator, device=x.device)), *rest]

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return estimators of the gradient of the objective by name. The first is the estimator of the model.

        The gradient is with respect to encoder and decoder. The result includes nvil, moving_average or relax only
        if it trained the model. If rebar did not train the model, its eta is 1. ``+rao_blackwell`` decodes once per
        latent. It is included up to 32 latents. Wake-sleep models also have the estimators of the ELBO.
        """
        h = self.hparams
        params = {k: p for k, p in self.named_parameters() if not k.startswith(("baseline.", "control."))}
        names = [self.estimator, *by_name.measurable(h.objective, h.latent, h.latent_dim, h.num_samples)]

        def estimator(name: str) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                return self.objective(name)(self.observe(batch[0], noise["u"]), noise)["loss"].mean()

            noise, several = partial(self.noise, estimator=name), name.endswith(by_name.SEVERAL)
            return GradientEstimator.of(self, name, params, noise, loss, batched=not several)

        return {name: estimator(name) for name in names}
