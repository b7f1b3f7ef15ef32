"""VAE: a latent variable model whose posterior is learnt by a second network.

Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, arXiv:1312.6114; seed 004 sec. 12.1; seed 003 (amortised
inference for continuous and for binary Z). Burda et al. 2015, arXiv:1509.00519, for the importance-weighted bound;
Hinton et al. 1995 and seed 003 for wake-sleep.

    p(z)        = N(0, I), Bernoulli(1/2)^D, or uniform over K categories, D times
    p(x | z)    = prod_d Bernoulli(x_d | sigmoid(logits_d(z)))   or   N(x | mean(z), sigma^2 I)
    q(z | x)    = of the prior's family, factorised over D, its parameters a network of x (zoo/functional/latents.py)
    ELBO(x)     = E_q[ log p(x | z) ] - beta KL( q(z | x) || p(z) )  <=  log p(x)  at beta = 1     (eq. 3; 002 P4)
    L_k(x)      = E_q[ log 1/k sum_i w_i ],  w_i = p(x, z_i) / q(z_i | x),  ELBO <= L_k <= log p   (Burda eq. 8)
    wake-sleep  wake: z ~ q(z | x), raise log p(x | z);  sleep: z ~ p(z), x ~ p(x | z), raise log q(z | x)

Symbols: x images in [0, 1], (B, 1, 28, 28), binary under the Bernoulli likelihood; z latents, (B, D) or one-hot
(B, D, K), with k draws each (k, B, ...); u uniform noise that binarises pixels.
Files: L_k and w_i are in zoo/functional/importance.py, gradients by name in zoo/estimators/by_name.py, NVIL's baseline
and control variates in zoo/estimators/learned.py.
Logged: {train,val,test}/loss = -ELBO (beta included) or -L_k, /nll = -E_q log p(x | z), /kl, all in nats per example.
Validation and test take hard draws of z whatever trains the model. Training by gumbel_softmax reports relaxed latents;
by wake_sleep, train/loss = wake + sleep. What is learned besides logs its own loss: train/baseline, the squared error
of NVIL's baseline; train/control, the mean squared gradient by q's logits that a control variate minimises.

Differs from the papers:
- Adam, its step decayed by half a cosine, in place of Adagrad or stepwise decay, and no weight decay (the paper's
  prior on theta); two hidden layers of rectified linear units by default in place of one of tanh, or convolutions.
- Binarisation is dynamic: a grey pixel is the probability of a one, drawn anew each time (as Burda et al.).
- The Gaussian likelihood has one learned variance for all pixels (Rybkin et al. 2021) in place of one for each, to
  which ``variance_floor`` is added: without it the density is unbounded where every pixel is reproduced exactly. Its
  means are linear in the last layer, in place of a sigmoid; only what ``decode`` returns is clipped to [0, 1].
- The score-function estimators keep the divergence in closed form; seed 003 has all of log p(x, z) - log q(z | x) in
  the score term, which has the same expectation: that is the variant ``+sampled_kl``.
- Relaxed latents keep the divergence of the discrete ones in closed form (as Jang et al.), so that their train/loss is
  no bound; Maddison et al. have that of the relaxation. val/loss is a bound in either case.
- NVIL (Mnih & Gregor 2014) also divides by a running standard deviation, which rescales the gradient; not here.
- Wake-sleep here dreams a new batch at each step, one for each image, and takes both steps at once.
- Seed 001 writes z = mu + x sigma^2 for the re-parameterisation; it is sigma. Seed 003 prints the prior once as
  p(X) = N(X | 0, I); it is p(z).
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
from zoo.checks.values import check_choice, check_not_negative, check_positive, check_whole, check_widths
from zoo.estimators import GradientEstimator, Noise, by_name, multi_sample_surrogate, with_gradient
from zoo.estimators.learned import FixedControl, Learned, earlier_keys, held_fixed, learned_by
from zoo.functional import importance
from zoo.functional.densities import at_least_float32, binarise, log_bernoulli, log_normal
from zoo.functional.latents import LATENTS, Bernoulli, Categorical, Gaussian, log_ratio
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.nets.description import described
from zoo.nets.layers import ConvDecoder, ConvEncoder, mlp
from zoo.training.schedules import half_cosine

PIXELS = 28 * 28
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}

__getattr__ = names_in("zoo.vae", "zoo.functional.importance", "zoo.estimators.by_name")  # names that were here


def wake(x: Tensor, z: Tensor, log_px: Callable) -> Tensor:
    """-log p(x | z) at z ~ q(z | x), which is held fixed: what the decoder minimises; (k, B) nats."""
    return -log_px(x, z.detach())


def sleep(x: Tensor, z: Tensor, encode: Callable) -> Tensor:
    """-log q(z | x) at a dream z ~ p(z), x ~ p(x | z): what the encoder minimises; (B,) nats."""
    return -encode(x.detach()).log_probs(z.detach()).sum(-1)


@described
@accepts_old_form("noise", "loss", "bound", "prior", "probe_batch", "log_likelihood")
@checks_inputs(x=images, z=numbers(attrgetter("latent_shape"), fractions=lambda self: self.latents is not Gaussian))
class VAE(L.LightningModule):
    """The model, its training and its uses.

    Args:
        latent: ``gaussian``, ``bernoulli`` (binary) or ``categorical``.
        latent_dim: D.
        num_categories: K, of categorical latents.
        likelihood: ``bernoulli`` on dynamically binarised pixels, or ``gaussian`` on grey ones.
        net: ``mlp`` or ``conv``.
        hidden: widths of the hidden layers of the encoder, the decoder's in reverse (``mlp``); or one number, the
            channels of the first convolution (``conv``).
        activation: of the hidden layers, ``relu`` or ``tanh`` (``mlp``).
        objective: ``elbo``, ``iwae`` or ``wake_sleep``.
        num_samples: k, draws of z for each image; the bound is L_k under ``iwae``, and an average over draws else. The
            antithetic and leave-one-out estimators use at least two.
        beta: weight of the divergence (``elbo``), at least 0; 1 is the bound of the log likelihood.
        estimator: of the gradient, one of zoo.estimators.by_name's ``ESTIMATORS``; ``auto`` is pathwise for Gaussian
            latents, for discrete ones score_function+nvil (``elbo``) or score_function+loo (``iwae``).
        temperature: of relaxed latents; where a control variate learns it, where it begins.
        temperature_end: if not null, the temperature of gumbel_softmax and straight_through falls to this,
            exponentially over the run.
        lr: of Adam, decayed to zero by half a cosine over the run.
        variance_floor: added to the learned variance of the Gaussian likelihood, in squared pixel units (1 is white).

    Raises:
        UserError: for a value outside these, or values that exclude each other.
    """

    def __init__(
        self,
        latent: Literal["gaussian", "bernoulli", "categorical"] = "gaussian",
        latent_dim: int = 32,
        num_categories: int = 10,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
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
    ):
        super().__init__()
        hidden = list(hidden) if isinstance(hidden, tuple) else hidden
        self.save_hyperparameters()
        self._check()
        self.latents = LATENTS[latent]
        self.latent_shape = (latent_dim, num_categories) if latent == "categorical" else (latent_dim,)
        self.estimator = by_name.chosen(objective, latent, estimator, num_samples)
        features = math.prod(self.latent_shape)
        outputs = 2 * latent_dim if latent == "gaussian" else features
        if net == "mlp":
            layers = lambda widths: mlp(widths, ACTIVATIONS[activation])  # noqa: E731
            self.encoder = nn.Sequential(nn.Flatten(), layers([PIXELS, *hidden, outputs]))
            self.decoder = nn.Sequential(layers([features, *hidden[::-1], PIXELS]), nn.Unflatten(-1, (1, 28, 28)))
        else:
            self.encoder = ConvEncoder(outputs, width=hidden[0])
            self.decoder = ConvDecoder(features, width=hidden[0])
        if likelihood == "gaussian":
            self.log_variance = nn.Parameter(torch.tensor(math.log(0.05)))  # about the variance of a pixel of MNIST
        for name, module in learned_by(self.estimator, PIXELS, features, temperature).items():
            self.add_module(name, module)
        self.register_load_state_dict_pre_hook(earlier_keys)

    def _check(self) -> None:
        h = self.hparams
        check_choice("latent", h.latent, tuple(LATENTS))
        check_choice("likelihood", h.likelihood, ("bernoulli", "gaussian"))
        check_choice("net", h.net, ("mlp", "conv"))
        check_choice("activation", h.activation, tuple(ACTIVATIONS))
        check_choice("objective", h.objective, ("elbo", "iwae", "wake_sleep"))
        check_whole("latent_dim", h.latent_dim)
        check_whole("num_categories", h.num_categories, least=2)
        check_whole("num_samples", h.num_samples)
        check_widths("hidden", hidden := h.hidden, (512, 512))
        for key in ("lr", "variance_floor", "temperature"):
            check_positive(key, h[key])
        if (end := h.temperature_end) is not None:
            check_positive("temperature_end, where it is not null,", end)
        check_not_negative("beta", h.beta)
        if h.net == "conv" and len(hidden) != 1:
            raise UserError(f"net=conv takes one number in hidden, its channels, such as [32], got {hidden}")
        if end is not None and h.estimator not in by_name.TEMPERED:
            raise UserError(
                f"temperature_end belongs to estimator=gumbel_softmax or straight_through, got estimator={h.estimator}"
            )
        if h.beta != 1 and h.objective != "elbo":
            raise UserError(f"beta belongs to objective=elbo; with objective={h.objective} it must be 1, got {h.beta}")

    # The model: p(x | z) and q(z | x).

    def encode(self, x: Tensor) -> Gaussian | Bernoulli | Categorical:
        """q(z | x) of images ``x`` (B, 1, 28, 28): one of zoo.functional.latents, ``Gaussian(mu, logvar)`` say."""
        return self.latents.of(at_least_float32(self.encoder(x)), self.latent_shape)

    def prior(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``n`` draws of p(z): (n, D), or one-hot (n, D, K)."""
        noise = self.latents.noise(n, *self.latent_shape, generator=generator, device=self.device)
        return self.latents.draw_prior(noise)

    def _decoder(self, z: Tensor, fixed: bool = False) -> Tensor:
        z = z.flatten(-2) if self.latents is Categorical else z
        return at_least_float32(held_fixed(self.decoder, z) if fixed else self.decoder(z))

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x | z), clipped to [0, 1] where it is Gaussian: (..., D) or (..., D, K) to (..., 1, 28, 28)."""
        out = self._decoder(z)
        return out.sigmoid() if self.hparams.likelihood == "bernoulli" else out.clamp(0, 1)

    @takes(x=observed)
    def log_px(self, x: Tensor, z: Tensor, held_fixed: bool = False) -> Tensor:
        """log p(x | z) in nats; ``x`` (..., 1, 28, 28) and ``z`` (..., D) or (..., D, K) to (...).

        Args:
            held_fixed: differentiable in z alone, not in the decoder.
        """
        out, x = self._decoder(z, held_fixed).flatten(-3), x.flatten(-3)
        if self.hparams.likelihood == "bernoulli":
            return log_bernoulli(x, out)
        return log_normal(x, out, self.pixel_logvar(held_fixed).expand(out.shape[-1]))

    def pixel_logvar(self, held_fixed: bool = False) -> Tensor:
        """log variance of a pixel under the Gaussian likelihood; ()."""
        logvar = self.log_variance.detach() if held_fixed else self.log_variance
        return (logvar.exp() + self.hparams.variance_floor).log()

    # Training: everything random in one draw, then functions of it.

    def noise(self, batch, *, generator: torch.Generator | None = None, estimator: str | None = None) -> Noise:
        """All that one step draws, for ``estimator`` (the model's own if None).

        ``u`` binarises, (B, 1, 28, 28); ``z`` makes k latents of each image; then what the estimator needs besides.
        """
        estimator = estimator or self.estimator
        x, k = batch[0], self.hparams.num_samples
        drawn = {"generator": generator, "device": x.device}
        latents = lambda n: self.latents.noise(n, len(x), *self.latent_shape, **drawn)  # noqa: E731
        noise = {"u": rand(*x.shape, **drawn)}
        noise |= by_name.draw_noise(estimator, latents, k)
        if estimator == "wake_sleep":
            noise["dream_z"] = latents(1)[0]
            noise["dream_x"] = (randn if self.hparams.likelihood == "gaussian" else rand)(*x.shape, **drawn)
        return noise

    def observe(self, x: Tensor, u: Tensor) -> Tensor:
        """Images in [0, 1] as the likelihood sees them: binarised with ``u``, or unchanged if it is Gaussian."""
        return binarise(x, u) if self.hparams.likelihood == "bernoulli" else x

    def negative_elbo(self, x: Tensor, noise: Noise, estimator: str) -> dict[str, Tensor]:
        """``loss`` = nll + beta kl, ``nll``, ``kl``, (B,) nats each, with the gradient of ``estimator``."""
        q, beta = self.encode(x), self.hparams.beta
        # An estimator that did not train this model has no control variate but REBAR's with eta = 1.
        learned = self.learned if estimator == self.estimator else FixedControl(self.hparams.temperature)
        parts = learned.parts(x, q, lambda z: -self.log_px(x, z, held_fixed=True))
        tau = self.tau if estimator in by_name.TEMPERED else 1.0
        nll = by_name.surrogate(estimator, lambda z: -self.log_px(x, z), q, noise, beta, tau, **parts).mean(0)
        kl = q.kls().sum(-1)
        if estimator.endswith("+sampled_kl"):  # nll is nll + log q - log p: the closed form is only logged
            loss, nll, kl = nll, (nll - beta * kl).detach(), kl.detach()
        else:
            loss = nll + beta * kl
        return {"loss": loss, "nll": nll, "kl": kl}

    def negative_iwae(self, x: Tensor, noise: Noise, estimator: str) -> dict[str, Tensor]:
        """``loss`` = -L_k, (B,) nats, with the gradient of ``estimator``; ``nll`` and ``kl`` of the same draws."""
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
        """``loss`` = wake + sleep, ``wake``, ``sleep``: nats per example, (B,) each."""
        awake = wake(x, self.encode(x).draw(noise["z"]), self.log_px).mean(0)
        with torch.no_grad():
            z = self.latents.draw_prior(noise["dream_z"])
            if self.hparams.likelihood == "bernoulli":
                dream = binarise(self.decode(z), noise["dream_x"])
            else:
                dream = self._decoder(z) + (self.pixel_logvar() / 2).exp() * noise["dream_x"]
        asleep = sleep(dream, z, self.encode)
        return {"loss": awake + asleep, "wake": awake, "sleep": asleep}

    def objective(self, estimator: str) -> Callable[[Tensor, Noise], dict[str, Tensor]]:
        """What makes the terms of the objective, one of the three above, of observed images and noise."""
        if estimator == "wake_sleep":
            return self.wake_and_sleep
        bound = self.negative_iwae if self.hparams.objective == "iwae" else self.negative_elbo
        return partial(bound, estimator=estimator)

    def loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The named terms of the objective, means over the batch, nats per example; ``loss`` is what is optimised.

        A learned baseline or control variate adds its own loss to the gradient of ``loss``, not to its value.
        """
        noise = self.noise(batch, generator=generator)
        x = self.observe(batch[0], noise["u"])
        each = self.objective(self.estimator)(x, noise)
        terms = {name: term.mean() for name, term in each.items()}
        fixed = lambda z: -self.log_px(x, z, held_fixed=True)  # noqa: E731
        for name, term in self.learned.loss(x, noise, each, self.encode, fixed).items():
            terms |= {name: term, "loss": with_gradient(terms["loss"], term)}
        return terms

    @property
    def learned(self) -> Learned:
        """What the estimator learns besides: a baseline, a control variate, or nothing."""
        return next((module for module in self.children() if isinstance(module, Learned)), Learned())

    @property
    def tau(self) -> float:
        """The temperature now: between ``temperature`` and ``temperature_end`` during a run, the latter without one."""
        start, end = self.hparams.temperature, self.hparams.temperature_end
        if end is None:
            return start
        done = 1.0 if self._trainer is None else min(1.0, self.trainer.global_step / self._steps())
        return start * (end / start) ** done

    def _steps(self) -> float:
        return max(1, self.trainer.estimated_stepping_batches)  # infinite for max_epochs=-1

    def bound(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The terms that are validated: -ELBO, or -L_k, at hard draws of z, whatever estimates the gradient."""
        plain = "pathwise" if self.latents is Gaussian else "score_function"
        noise = self.noise(batch, generator=generator, estimator=plain)
        terms = self.objective(plain)(self.observe(batch[0], noise["u"]), noise)
        return {name: term.mean() for name, term in terms.items()}

    def training_step(self, batch, batch_idx):
        terms = self.loss(batch)
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
        steps = self._steps()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: half_cosine(step, steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "vae"

    # What it is for.

    log_likelihood_by = IMPORTANCE

    def forward(self, x: Tensor) -> Tensor:
        return self.reconstruct(x)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, y: Tensor | None = None) -> Tensor:
        """The mean of p(x | z) at the most probable z of q(z | x): images in [0, 1], (B, 1, 28, 28); y is not used."""
        return self.decode(self.encode(x).mode())

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` latents from the prior and return the means of p(x | z), in [0, 1], (n, 1, 28, 28)."""
        return self.decode(self.prior(n, generator=generator))

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, *, num_samples: int = 100, y: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Importance-weighted lower bound of log p(x), eq. 8 of Burda et al. 2015, tight as ``num_samples`` grows.

        Args:
            x: images in [0, 1], (B, 1, 28, 28); under the Bernoulli likelihood binarised here, once.
            num_samples: importance samples per image, at least 1.
            y: labels, which a model of p(x) alone does not use.

        Returns:
            (B,): nats.
        """
        x = self.observe(x, rand(*x.shape, generator=generator, device=x.device))
        q = self.encode(x)

        def log_weight(n: int) -> Tensor:
            noise = self.latents.noise(n, len(x), *self.latent_shape, generator=generator, device=x.device)
            return importance.log_importance_weight(x, q.draw(noise), q, self.log_px)

        return importance.importance_weighted_log_likelihood(log_weight, num_samples, len(x))

    # How its gradient can be estimated.

    def probe_batch(self, batch, *, generator: torch.Generator | None = None):
        """``batch`` with its pixels binarised, so that what then varies between draws is Monte-Carlo noise alone."""
        x, *rest = batch
        return [self.observe(x, rand(*x.shape, generator=generator, device=x.device)), *rest]

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Estimators of the gradient of the objective (batch mean) by encoder and decoder; the model's own comes first.

        Those with learned parts are there where they trained the model, and REBAR with eta = 1 elsewhere; the
        Rao-Blackwellised one decodes once per latent, and is there for up to 32. Beside wake-sleep, whose gradient is
        that of two objectives, stand the estimators of the ELBO's.
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
