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
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoo.checks.errors import UserError
from zoo.checks.values import check_choice, check_not_negative, check_positive, check_whole, check_widths
from zoo.estimators import (
    ControlVariate,
    GradientEstimator,
    Noise,
    Params,
    by_name,
    call_with,
    multi_sample_baseline,
    relax_variance,
    with_gradient,
)
from zoo.estimators.by_name import log_ratio
from zoo.functional.densities import at_least_float32, binarise, log_bernoulli, log_normal
from zoo.functional.importance import importance_weighted_log_likelihood
from zoo.functional.latents import LATENTS, Categorical, Gaussian
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.nets.layers import ConvDecoder, ConvEncoder, mlp

PIXELS = 28 * 28
COIN_FLIPS = PIXELS * math.log(2)  # nats of an image of which nothing is known: the unit of the learned baseline
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}

# What can train each latent, by objective; the first is what ``estimator=auto`` means.
MULTI_SAMPLE = ("score_function+loo", "score_function")
ESTIMATORS = {("elbo", latent): names for latent, names in by_name.ESTIMATORS.items()} | {
    ("iwae", "gaussian"): ("pathwise", *MULTI_SAMPLE),
    ("iwae", "bernoulli"): MULTI_SAMPLE,
    ("iwae", "categorical"): MULTI_SAMPLE,
}
LEARNED = ("score_function+nvil", "score_function+moving_average", "relax")  # of use only to the model they trained
MOST_FLIPS = 32  # latents up to which the Rao-Blackwellised estimator, one decoding for each, is measured


def log_importance_weight(x: Tensor, z: Tensor, q, log_px: Callable) -> Tensor:
    """log w = log p(x | z) + log p(z) - log q(z | x) in nats, whose weights have E_q[w] = p(x).

    Args:
        x: data as the likelihood wants them, (B, ...).
        z: draws of q, (k, B, ...).
        q: one of zoo.functional.latents, of B examples.
        log_px: (x, z) -> log p(x | z), (k, B).

    Returns:
        (k, B).
    """
    return log_px(x, z) - log_ratio(z, q)


def importance_weighted_bound(log_w: Tensor) -> Tensor:
    """L_k = log 1/k sum_i w_i, one draw of Burda et al. 2015, eq. 8; log weights (k, B) to (B,) nats."""
    return log_w.logsumexp(0) - math.log(len(log_w))


def wake(x: Tensor, z: Tensor, log_px: Callable) -> Tensor:
    """-log p(x | z) at z ~ q(z | x), which is held fixed: what the decoder minimises; (k, B) nats."""
    return -log_px(x, z.detach())


def sleep(x: Tensor, z: Tensor, encode: Callable) -> Tensor:
    """-log q(z | x) at a dream z ~ p(z), x ~ p(x | z): what the encoder minimises; (B,) nats."""
    return -encode(x.detach()).log_probs(z.detach()).sum(-1)


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
        estimator: of the gradient, one of ``ESTIMATORS``; ``auto`` is pathwise for Gaussian latents, for discrete ones
            score_function+nvil (``elbo``) or score_function+loo (``iwae``).
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
        self.estimator = estimator
        if estimator == "auto":
            self.estimator = "wake_sleep" if objective == "wake_sleep" else ESTIMATORS[objective, latent][0]
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
        if self.estimator == "score_function+nvil":
            self.baseline = nn.Sequential(nn.Flatten(), mlp([PIXELS, 100, 1], nn.Tanh))
        elif self.estimator == "score_function+moving_average":
            # The same on every process, since each takes in the mean over all of them; 0 until the first step.
            self.register_buffer("moving_cost", torch.zeros(()))
        elif self.estimator in ("rebar", "relax"):
            self.control = ControlVariate(temperature, features if self.estimator == "relax" else None)

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
        if end is not None and h.estimator not in ("gumbel_softmax", "straight_through"):
            raise UserError(
                f"temperature_end belongs to estimator=gumbel_softmax or straight_through, got estimator={h.estimator}"
            )
        if h.beta != 1 and h.objective != "elbo":
            raise UserError(f"beta belongs to objective=elbo; with objective={h.objective} it must be 1, got {h.beta}")
        if h.objective == "wake_sleep":
            if h.estimator != "auto":
                raise UserError(f"objective=wake_sleep has gradients of its own: leave out estimator={h.estimator}")
        elif h.estimator not in ("auto", *ESTIMATORS[h.objective, h.latent]):
            raise UserError(
                f"estimator must be one of auto, {', '.join(ESTIMATORS[h.objective, h.latent])} for latent={h.latent} "
                f"and objective={h.objective}, got {h.estimator!r}"
            )
        loo = h.estimator.endswith("+loo") or (h.estimator == "auto" and h.latent != "gaussian")
        if h.objective == "iwae" and h.num_samples == 1 and loo:
            raise UserError(
                "the leave-one-out baseline needs num_samples of at least 2, got 1; or take estimator=score_function"
            )

    # The model: p(x | z) and q(z | x).

    def encode(self, x: Tensor):
        """q(z | x) of images ``x`` (B, 1, 28, 28): one of zoo.functional.latents, ``Gaussian(mu, logvar)`` say."""
        h = at_least_float32(self.encoder(x))
        if self.latents is Gaussian:
            return Gaussian(*h.chunk(2, dim=-1))
        return self.latents(h.unflatten(-1, self.latent_shape))

    def prior(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` draws of p(z): (n, D), or one-hot (n, D, K)."""
        noise = self.latents.noise(n, *self.latent_shape, generator=generator, device=self.device)
        if self.latents is Gaussian:
            return noise
        return self.latents(torch.zeros_like(noise)).draw(noise)

    def _decoder(self, z: Tensor, held_fixed: bool = False) -> Tensor:
        z = z.flatten(-2) if self.latents is Categorical else z
        if not held_fixed:
            return at_least_float32(self.decoder(z))
        held = {k: p.detach() for k, p in self.decoder.named_parameters()}
        return at_least_float32(functional_call(self.decoder, held, (z,)))

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x | z), clipped to [0, 1] where it is Gaussian: (..., D) or (..., D, K) to (..., 1, 28, 28)."""
        out = self._decoder(z)
        return out.sigmoid() if self.hparams.likelihood == "bernoulli" else out.clamp(0, 1)

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

    def noise(self, batch, generator: torch.Generator | None = None, estimator: str | None = None) -> Noise:
        """All that one step draws, for ``estimator`` (the model's own if None).

        ``u`` binarises, (B, 1, 28, 28); ``z`` makes k latents of each image; then what the estimator needs besides.
        """
        estimator = estimator or self.estimator
        x, k = batch[0], self.hparams.num_samples
        drawn = {"generator": generator, "device": x.device}
        latents = lambda n: self.latents.noise(n, len(x), *self.latent_shape, **drawn)  # noqa: E731
        noise = {"u": rand(*x.shape, **drawn)}
        if self.hparams.objective == "iwae":
            return noise | {"z": latents(k)}
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
        q, parts = self.encode(x), {}
        if estimator == "score_function+nvil":
            parts["baseline"] = self.baseline_of(x)
        elif estimator == "score_function+moving_average":
            parts["baseline"] = self.moving_cost
        elif estimator in ("rebar", "relax"):
            parts["control"] = self._control(x, q, estimator)
        elif estimator in ("gumbel_softmax", "straight_through"):
            parts["tau"] = self.tau
        f = lambda z: -self.log_px(x, z)  # noqa: E731
        nll = by_name.surrogate(estimator, f, q, noise, self.hparams.beta, **parts).mean(0)
        kl = q.kls().sum(-1)
        if estimator.endswith("+sampled_kl"):  # nll is nll + log q - log p: the closed form is for the eye alone
            return {"loss": nll, "nll": (nll - self.hparams.beta * kl).detach(), "kl": kl.detach()}
        return {"loss": nll + self.hparams.beta * kl, "nll": nll, "kl": kl}

    def negative_iwae(self, x: Tensor, noise: Noise, estimator: str) -> dict[str, Tensor]:
        """``loss`` = -L_k, (B,) nats, with the gradient of ``estimator``; ``nll`` and ``kl`` of the same draws."""
        q = self.encode(x)
        z = q.draw(noise["z"])
        z = z if estimator == "pathwise" else z.detach()
        log_w = log_importance_weight(x, z, q, self.log_px)
        bound = importance_weighted_bound(log_w)
        if estimator != "pathwise":
            baseline = multi_sample_baseline(log_w) if estimator.endswith("+loo") else torch.zeros_like(log_w)
            score = (bound - baseline).detach() * q.log_probs(z).sum(-1)  # (k, B)
            bound = with_gradient(bound, score.sum(0))
        kl = q.kls().sum(-1).detach()
        nll = -(log_w + log_ratio(z, q)).mean(0).detach()
        return {"loss": -bound, "nll": nll, "kl": kl}

    def wake_and_sleep(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """``loss`` = wake + sleep, ``wake``, ``sleep``: nats per example, (B,) each."""
        awake = wake(x, self.encode(x).draw(noise["z"]), self.log_px).mean(0)
        with torch.no_grad():
            z = noise["dream_z"]
            z = z if self.latents is Gaussian else self.latents(torch.zeros_like(z)).draw(z)
            if self.hparams.likelihood == "bernoulli":
                dream = binarise(self.decode(z), noise["dream_x"])
            else:
                dream = self._decoder(z) + (self.pixel_logvar() / 2).exp() * noise["dream_x"]
        asleep = sleep(dream, z, self.encode)
        return {"loss": awake + asleep, "wake": awake, "sleep": asleep}

    def objective(self, x: Tensor, noise: Noise, estimator: str) -> dict[str, Tensor]:
        """The terms of the objective for observed images ``x``: nats per example, (B,) each."""
        if estimator == "wake_sleep":
            return self.wake_and_sleep(x, noise)
        if self.hparams.objective == "iwae":
            return self.negative_iwae(x, noise, estimator)
        return self.negative_elbo(x, noise, estimator)

    def loss(self, batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The named terms of the objective, means over the batch, nats per example; ``loss`` is what is optimised.

        A learned baseline or control variate adds its own loss to the gradient of ``loss``, not to its value.
        """
        noise = self.noise(batch, generator)
        x = self.observe(batch[0], noise["u"])
        each = self.objective(x, noise, self.estimator)
        terms = {name: term.mean() for name, term in each.items()}
        if self.estimator == "score_function+nvil":
            terms["baseline"] = (self.baseline_of(x) - each["nll"].detach()).square().mean()
            terms["loss"] = with_gradient(terms["loss"], terms["baseline"])
        elif self.estimator in ("rebar", "relax") and torch.is_grad_enabled():
            with torch.no_grad():
                q = self.encode(x)
            f = self._fixed_nll(x)
            control = self._control(x, q, self.estimator, learn=True)
            terms["control"] = relax_variance(f, control, q, noise["z"], noise["v"]).mean()
            terms["loss"] = with_gradient(terms["loss"], terms["control"])
        return terms

    def _fixed_nll(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: -self.log_px(x, z, held_fixed=True)

    def baseline_of(self, x: Tensor) -> Tensor:
        """C_psi(x), NVIL's learned baseline (003): what -log p(x | z) is on average for this image; (B,) nats."""
        return COIN_FLIPS * at_least_float32(self.baseline(x)).squeeze(-1)

    def _control(self, x: Tensor, q, estimator: str, learn: bool = False) -> Callable[[Tensor], Tensor]:
        """The control variate of scores; learned where this estimator trains the model, else REBAR's with eta = 1."""
        f = self._fixed_nll(x)
        if estimator != self.estimator:
            return lambda s: f(q.soften(s, self.hparams.temperature))
        if learn:
            return lambda s: self.control(f, q, s)
        held = {name: p.detach() for name, p in self.control.named_parameters()}
        return lambda s: functional_call(self.control, held, (f, q, s))

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

    def bound(self, batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The terms that are validated: -ELBO, or -L_k, at hard draws of z, whatever estimates the gradient."""
        plain = "pathwise" if self.latents is Gaussian else "score_function"
        noise = self.noise(batch, generator, plain)
        terms = self.objective(self.observe(batch[0], noise["u"]), noise, plain)
        return {name: term.mean() for name, term in terms.items()}

    def training_step(self, batch, batch_idx):
        terms = self.loss(batch)
        if self.estimator == "score_function+moving_average":
            cost = self.all_gather(terms["nll"].detach()).mean()
            # The first step sets it; then it forgets over a hundred.
            self.moving_cost.copy_(torch.where(self.moving_cost == 0, cost, self.moving_cost.lerp(cost, 0.01)))
        self.log_dict({f"train/{k}": v for k, v in terms.items()}, prog_bar=True)
        return terms

    def validation_step(self, batch, batch_idx, stage="val"):
        terms = self.bound(batch, chunk_generator(self.global_rank, batch_idx))  # the same noise in every epoch
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items()}, sync_dist=True, batch_size=len(batch[0]))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        steps = self._steps()
        # A function, not CosineAnnealingLR, whose length comes back from a checkpoint: a finished run that is extended
        # would climb the cosine again.
        half_cosine = lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))  # noqa: E731
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, half_cosine)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "vae"

    # What it is for.

    def forward(self, x: Tensor) -> Tensor:
        return self.reconstruct(x)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x | z) at the most probable z of q(z | x): images in [0, 1], (B, 1, 28, 28)."""
        return self.decode(self.encode(x).mode())

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` latents from the prior and return the means of p(x | z), in [0, 1], (n, 1, 28, 28)."""
        return self.decode(self.prior(n, generator))

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, num_samples: int = 100, *, generator: torch.Generator | None = None) -> Tensor:
        """Importance-weighted lower bound of log p(x), eq. 8 of Burda et al. 2015, tight as ``num_samples`` grows.

        Args:
            x: images in [0, 1], (B, 1, 28, 28); under the Bernoulli likelihood binarised here, once.
            num_samples: importance samples per image, at least 1.

        Returns:
            (B,): nats.
        """
        x = self.observe(x, rand(*x.shape, generator=generator, device=x.device))
        q = self.encode(x)

        def log_weight(n: int) -> Tensor:
            noise = self.latents.noise(n, len(x), *self.latent_shape, generator=generator, device=x.device)
            return log_importance_weight(x, q.draw(noise), q, self.log_px)

        return importance_weighted_log_likelihood(log_weight, num_samples, len(x))

    @torch.no_grad()
    def traverse(self, x: Tensor, rows: int = 10, steps: int = 9) -> Tensor:
        """Means of p(x | z) as one latent at a time is varied, the others at the most probable z of the first image.

        Gaussian latents go from -3 to 3; binary ones from 0 to 1; categorical ones through their categories.

        Args:
            x: images in [0, 1], (B, 1, 28, 28); latents are ranked by their mean divergence from the prior over these.
            rows: latents to vary, those of the largest divergence.
            steps: values of each, for Gaussian latents.

        Returns:
            (rows, values, 1, 28, 28), rows at most D.
        """
        q = self.encode(x)
        ranked = q.kls().mean(0).argsort(descending=True)[:rows]
        if self.latents is Gaussian:
            values = torch.linspace(-3, 3, steps, device=x.device)
        else:
            values = torch.tensor([0.0, 1.0], device=x.device)
        if self.latents is Categorical:
            values = torch.eye(self.latent_shape[1], device=x.device)
        z = q.mode()[0].repeat(
            len(ranked), len(values), *[1] * len(self.latent_shape)
        )  # (rows, values, D) or (..., D, K)
        for row, latent in enumerate(ranked):
            z[row, :, latent] = values
        return self.decode(z)

    @torch.no_grad()
    def manifold(self, side: int = 20) -> Tensor:
        """Means of p(x | z) over the plane of two Gaussian latents, at quantiles of the prior (paper, fig. 4).

        Returns:
            (side^2, 1, 28, 28), row by row.

        Raises:
            UserError: unless the latents are two Gaussians.
        """
        if self.latents is not Gaussian or self.hparams.latent_dim != 2:
            raise UserError(f"a manifold is drawn of 2 Gaussian latents; this model has {self.latent_shape}")
        quantiles = (torch.arange(side, device=self.device) + 0.5) / side
        z = math.sqrt(2) * torch.erfinv(2 * quantiles - 1)
        return self.decode(torch.cartesian_prod(-z, z).flip(-1))

    # How its gradient can be estimated.

    def probe_batch(self, batch, generator: torch.Generator | None = None):
        """``batch`` with its pixels binarised, so that what then varies between draws is Monte-Carlo noise alone."""
        x, *rest = batch
        return [self.observe(x, rand(*x.shape, generator=generator, device=x.device)), *rest]

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Estimators of the gradient of the objective (batch mean) by encoder and decoder; the model's own comes first.

        Those with learned parts are there where they trained the model, and REBAR with eta = 1 elsewhere; the
        Rao-Blackwellised one decodes once per latent, and is there for up to 32. Beside wake-sleep, whose gradient is
        that of two objectives, stand the estimators of the ELBO's.
        """
        params = {k: p for k, p in self.named_parameters() if not k.startswith(("baseline.", "control."))}
        objective = "elbo" if self.hparams.objective == "wake_sleep" else self.hparams.objective
        names = [self.estimator, *ESTIMATORS[objective, self.hparams.latent]]
        left_out = {*LEARNED}
        if self.hparams.latent_dim > MOST_FLIPS:
            left_out.add("score_function+rao_blackwell")
        if objective == "iwae" and self.hparams.num_samples == 1:
            left_out.add("score_function+loo")

        def estimator(name: str) -> GradientEstimator:
            def surrogate(params: Params, batch, noise: Noise) -> Tensor:
                def loss() -> Tensor:
                    return self.objective(self.observe(batch[0], noise["u"]), noise, name)["loss"].mean()

                return call_with(self, params, loss)

            several = name.endswith(("+optimal", "+rao_blackwell"))  # decodings in one draw, a batch in themselves
            noise = lambda batch, g: self.noise(batch, g, name)  # noqa: E731
            return GradientEstimator(name, params, noise, surrogate, batched=not several)

        return {name: estimator(name) for name in names if name == self.estimator or name not in left_out}
