"""DDPM: a diffusion model, which turns noise into images by a Markov chain of small Gaussian denoising steps.

Paper: Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239; [DSL ch. 14].
docs/references.md explains the keys in brackets. The right column names code in zoo/functional/ or in DDPM.

    q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)                eq. 4, [DSL eq. 14.11]  diffusion.q_sample
    L_simple     = E || eps - eps_theta(x_t, t) ||^2                  eq. 14, [DSL alg. 6]    diffusion.simple_loss
    L_v          = E || v - v_theta(x_t, t) ||^2                      Salimans & Ho 2022      diffusion.simple_loss
    x0_hat       = (x_t - sqrt(1 - abar_t) eps_theta) / sqrt(abar_t)  eq. 15
                 = sqrt(abar_t) x_t - sqrt(1 - abar_t) v_theta                                diffusion.predicted_x0
    x_{t-1}      = mean of q(x_{t-1} | x_t, x0_hat) + sigma_t z       alg. 2, [DSL alg. 7]    ancestral_steps
    score        = -eps_theta / sqrt(1 - abar_t), an estimate of grad log q(x_t)              DDPM.score
    -log p(x_0)  <= E_q[ L_T + sum_{t>1} L_{t-1} + L_0 ]              eq. 5, [DSL eq. 14.41]  diffusion_bound.terms

Symbols:
    x0, xt    images x_0 in [-1, 1] and noisy images x_t, (B, C, H, W) each
    t         step index, (B,), 0 .. T-1; at index 0, x_t has one step of noise (t = 1 in the paper)
    abar_t    product of alpha_s = 1 - beta_s over s <= t, with beta_t the variance of step t (diffusion.make_chain)
    eps, v    standard normal noise eps, and v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0, (B, C, H, W) each
    x0_hat    the network's estimate of x_0, (B, C, H, W)

Logged as train/loss, val/loss and test/loss: the squared error of the prediction, averaged over dimensions. train/loss
weights each step by 1 / (T p_t). A network for eps that predicts 0 has loss 1. Do not compare losses of eps, x0 and v.

Differs from the paper:
- By default the network predicts v (Salimans & Ho 2022) on the cosine schedule (Nichol & Dhariwal 2021). The paper has
  ``predict=eps`` and ``schedule=linear``. On the cosine schedule, the zoo's classifier was confident on 43 % of
  256 samples of a v model, and on 22 % for an eps model. Training took 400 s on one CPU core (84,000 images, one seed).
- At T = 1000 the linear schedule is the schedule of the paper. For other T it is rescaled. The noise at the last step
  then stays about the same: log abar_T is -10.1 at T = 1000, -10.4 at T = 200 and -11.8 at T = 50.
- By default sigma_t^2 is the posterior variance, the paper's second choice (sec. 3.2). Every step of sampling clips
  x0_hat to [-1, 1], as the authors' code does. The bound also clips x0_hat, and sums all T steps.
- [DSL alg. 7] multiplies z by the variance and adds noise at the last step. The correct factor is the standard
  deviation, and the last step adds no noise.
- [DSL eq. 14.43] prints abar_t instead of alpha_t in the factor q(x_t | x_{t-1}). The code uses [DSL eq. 14.45].
- By default the U-Net is small, for speed on a CPU. It works on 2 x 2 patches of pixels. It has no dropout, and it has
  attention only at the lowest resolution. Recipe ddpm_cifar10 has the paper's sizes, attention and dropout.
- The learning rate is 1e-3 (paper: 2e-4) and decays to 0 along half a cosine (paper: constant, ``lr_decay=false``).
  Batches have 64 images (paper: 128). A run takes about an hour. Small batches allow more steps in this time.
- The exponential moving average has decay 0.999 (paper: 0.9999) and a warm-up (callbacks/ema.py).
- DDIM runs at evenly spaced steps from T-1 to 0, both included. It computes eps from the clipped x0_hat.
- An embedding of the label is added to the embedding of the step. For classifier-free guidance, training drops some
  labels at random (Ho & Salimans 2022, arXiv:2207.12598).
"""

from collections.abc import Sequence
from functools import partial

import lightning as L
import torch
from torch import Tensor

from zoo.checks import inputs
from zoo.checks.capabilities import BOUND
from zoo.checks.errors import UserError
from zoo.checks.labels import Labels, as_labels, check_classes
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_flag, check_integer, check_not_negative, check_positive, check_widths
from zoo.estimators import GradientEstimator, Noise
from zoo.functional import diffusion, diffusion_bound
from zoo.functional import diffusion_samplers as samplers
from zoo.functional.densities import at_least_float32
from zoo.functional.diffusion import Chain, predicted_eps, predicted_x0, simple_loss
from zoo.functional.guidance import draw_labels, guided, network_labels, with_dropped
from zoo.functional.langevin import langevin_sample
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.functional.precision import in_float64, keep_float32
from zoo.nets.description import described
from zoo.nets.unet import UNet, check_unet
from zoo.training.optimisers import with_half_cosine
from zoo.training.ranks import equal_rows

HISTORY = 10  # number of recent losses kept for each step, for importance sampling
STATES = dict.fromkeys(("xt", "x_T", "a", "b"), inputs.noisy) | {
    "t": inputs.integers_below(lambda self: self.num_steps)
}


@described
@accepts_old_form("noise", "loss", "bound_terms", "log_likelihood", labels="y")
@inputs.checks_inputs(x=inputs.images, y=inputs.labels, sigma=inputs.positive, **STATES)
@keep_float32(*Chain._fields, "loss_history")
class DDPM(L.LightningModule):
    """Denoising diffusion model of images, with or without labels.

    Args:
        steps: T, at least 2, and more than 20 for the linear schedule.
        schedule: ``linear`` or ``cosine``.
        predict: What the network predicts: ``eps``, ``x0`` or ``v``.
        variance: Variance of the reverse steps: ``posterior`` or ``beta``.
        timesteps: How training draws t: ``uniform``, ``stratified`` or ``importance``. ``stratified`` spaces the t of a
            batch evenly. ``importance`` draws t with p_t proportional to the RMS of the last losses at t.
        num_classes: Number of classes, or None to train without labels.
        label_dropout: Fraction of labels that training drops. The model then also learns to predict without labels.
        widths: Channels of the U-Net's levels, multiples of 8.
        blocks: Residual blocks per level.
        patch: Side of the pixel blocks that are folded into channels.
        lr: Adam's learning rate, which decays to 0 along half a cosine over the run.
        warmup: Optimiser steps of a linear warm-up, which multiplies the cosine decay.
        shape: Shape of one image, [C, H, W].
        attention: Levels of the U-Net with self-attention after each residual block, counted from 0, the highest
            resolution. The middle of the U-Net always has it.
        dropout: Dropout rate of the U-Net's residual blocks.
        lr_decay: Whether the learning rate decays. If not, it is constant after the warm-up.

    Raises:
        UserError: If an argument has a value that is not allowed.
    """

    def __init__(
        self,
        steps: int = 1000,
        schedule: str = "cosine",
        predict: str = "v",
        variance: str = "posterior",
        timesteps: str = "uniform",
        num_classes: int | None = None,
        label_dropout: float = 0.1,
        widths: Sequence[int] = (32, 96),
        blocks: int = 1,
        patch: int = 2,
        lr: float = 1e-3,
        warmup: int = 200,
        shape: Sequence[int] = (1, 28, 28),
        attention: Sequence[int] = (),
        dropout: float = 0.0,
        lr_decay: bool = True,
    ):
        super().__init__()
        diffusion.check_diffusion(steps, schedule, predict, variance, timesteps)
        check_classes(num_classes, label_dropout)
        check_positive("lr", lr)
        check_integer("warmup", warmup, least=0)
        check_flag("lr_decay", lr_decay)
        check_widths("shape", shape, (1, 28, 28))
        if len(shape) != 3:
            raise UserError(f"shape must be [C, H, W] for images, got {list(shape)}")
        check_unet(widths, blocks, patch, attention, dropout, shape)
        shape, widths, attention = list(shape), list(widths), list(attention)
        self.save_hyperparameters()
        # The hyperparameters determine the schedule, so checkpoints need not store it. make_chain uses float64.
        for name, values in diffusion.make_chain(diffusion.SCHEDULES[schedule](steps))._asdict().items():
            self.register_buffer(name, values.float(), persistent=False)
        if timesteps == "importance":
            self.register_buffer("loss_history", torch.zeros(steps, HISTORY))
            self.register_buffer("loss_count", torch.zeros(steps, dtype=torch.long))
        net = UNet(shape[0], widths, blocks, patch, num_classes, attention, dropout)
        self.net = net.to(memory_format=torch.channels_last)

    @property
    def chain(self) -> Chain:
        """Return the constants of the forward process, (T,) each, float32."""
        return Chain(*(getattr(self, name) for name in Chain._fields))

    @property
    def num_steps(self) -> int:
        """Number of steps T."""
        return self.hparams.steps

    def forward(self, xt: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the prediction, (B, C, H, W), for ``xt`` at steps ``t`` (B,), with or without labels ``y`` (B,)."""
        y = network_labels(y, xt, self.hparams.num_classes, self.hparams.label_dropout)
        return at_least_float32(self.net(xt, t, y))

    def x0_hat(self, xt: Tensor, t: Tensor, y: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """Return the network's estimate of x_0, (B, C, H, W), unclipped.

        With labels and ``guidance`` w, the output is (1 + w) output(x_t, y) - w output(x_t), Ho & Salimans 2022, eq. 6.
        Eq. 6 combines predictions of eps. It also combines predictions of v and x0, which are affine in eps.
        """
        output = guided(partial(self, xt, t), y, guidance)
        return predicted_x0(self.hparams.predict, output, xt, t, self.chain)

    def score(self, xt: Tensor, t: Tensor, y: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """Return the estimate of grad log q(x_t), (B, C, H, W): -eps_theta / sqrt(1 - abar_t)."""
        eps = predicted_eps(self.x0_hat(xt, t, y, guidance), xt, t, self.chain)
        return -eps / diffusion.at(self.one_minus_abar, t, xt).sqrt()

    @property
    def sigmas(self) -> Tensor:
        """Noise levels sigma_t = sqrt((1 - abar_t) / abar_t), (T,); x_t / sqrt(abar_t) ~ N(x_0, sigma_t^2 I)."""
        return (self.one_minus_abar / self.abar).sqrt()

    @inputs.takes(x=inputs.noisy)
    def blurred_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the score of images with added noise N(0, sigma^2 I), (B, C, H, W).

        ``annealed_langevin_steps(ddpm.blurred_score, x, ...)`` uses it in place of a :class:`zoo.score.Score`.

        Args:
            x: Images in [-1, 1] with noise of standard deviation ``sigma``, (B, C, H, W).
            sigma: Noise levels, (B,). Each is replaced by the sigma_t with the nearest logarithm.
        """
        t = (self.sigmas.log() - sigma.log()[:, None]).abs().argmin(1)
        scale = diffusion.at(self.abar, t, x).sqrt()
        return scale * self.score(scale * x, t)

    # Training: noise() draws all random numbers but those of dropout. losses() is a deterministic function of them.

    def noise(self, batch, *, generator: torch.Generator | None = None, timesteps: str | None = None) -> Noise:
        """Return ``eps`` (B, C, H, W), and ``t``, ``weight`` = 1 / (T p_t) and, with labels, ``u``, (B,) each."""
        x, timesteps = batch[0], self.hparams.timesteps if timesteps is None else timesteps
        B, T, drawn = len(batch[0]), self.hparams.steps, {"generator": generator, "device": batch[0].device}
        p = self.importance() if timesteps == "importance" else None
        t, weight = diffusion.draw_steps(timesteps, B, T, p, **drawn)
        noise = {"t": t, "weight": weight, "eps": randn(*x.shape, **drawn)}
        if self.hparams.num_classes is not None:
            noise["u"] = rand(B, **drawn)
        return noise

    def importance(self) -> Tensor:
        """Return p_t of ``timesteps=importance``, (T,). p_t is uniform until each step has a full history of losses."""
        if self.hparams.timesteps != "importance":
            raise UserError(f"importance needs a history of losses, and timesteps={self.hparams.timesteps} keeps none")
        return diffusion.importance(self.loss_history, self.loss_count)

    def losses(self, batch, noise: Noise) -> Tensor:
        """Return the squared error of each example, (B,), averaged over dimensions, without the weights 1 / (T p_t)."""
        network = self
        if self.hparams.num_classes is not None:
            y = as_labels(inputs.labels_in(batch, self), len(batch[0]), self.hparams.num_classes, self.device)
            network = partial(self, y=with_dropped(y, noise["u"], self.hparams.label_dropout, self.hparams.num_classes))
        return simple_loss(2 * batch[0] - 1, noise["t"], noise["eps"], self.chain, self.hparams.predict, network)

    def loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return ``loss`` at uniform t for images (B, C, H, W) in [0, 1], averaged over batch and dimensions."""
        noise = self.noise(batch, generator=generator, timesteps="uniform")
        return {"loss": self.losses(batch, noise).mean()}

    def graph_key(self) -> None:
        """Return None: all training steps have the same operations."""

    def training_step(self, batch, batch_idx):
        noise = self.noise(batch)
        losses = self.losses(batch, noise)
        if self.hparams.timesteps == "importance":
            t, found = (equal_rows(mine, self.trainer) for mine in (noise["t"], losses.detach()))
            diffusion.append_losses(self.loss_history, self.loss_count, t, found)
        loss = (noise["weight"] * losses).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        noise = self.noise(batch, generator=generator, timesteps="stratified")
        losses = self.losses(batch, noise)
        self.log(f"{stage}/loss", losses.mean(), sync_dist=True, batch_size=len(batch[0]), prog_bar=True)
        return {"step": noise["t"], "losses": losses}

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return with_half_cosine(optimiser, self.trainer, self.hparams.warmup, self.hparams.lr_decay)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "ddpm"

    # Use of a trained model.

    @inputs.takes(y=None)  # y may also be the string "dropped"
    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        num_steps: int | str | None = "default",
        eta: float = 0.0,
        y: Labels | str | None = None,
        guidance: float = 0.0,
        corrector_steps: int = 0,
        corrector_snr: float = 0.1,
        frames: int | None = None,
        show: str = "xt",
    ) -> Tensor:
        """Draw ``n`` images in [0, 1], (n, C, H, W).

        Args:
            num_steps: DDIM steps, 1 to T, by default min(50, T). None runs all T steps of ancestral sampling.
            eta: Noise of DDIM, 0 (deterministic) to 1.
            y: For a model with ``num_classes``: one label for all images, one label for each, None to draw labels, or
                ``dropped`` to sample without labels. The noise does not depend on ``y``.
            guidance: Guidance weight w, at least 0. With 0, samples come from the conditional model.
            corrector_steps: Langevin steps after each denoising step except the last (Song et al. 2021, alg. 5).
            corrector_snr: snr in the Langevin step size 4 (snr |z| / |score|)^2 (zoo/functional/langevin.py).
            frames: Number of evenly spaced states of each chain to return, at least 2. The result is then
                (n, frames, C, H, W), and the last state is the sample. None returns only the sample.
            show: States that ``frames`` returns: ``xt``, the noisy images, or ``x0``, the estimates of x_0.

        Raises:
            UserError: If an argument has a value that is not allowed, or if samples become NaN or infinite.
        """
        check_not_negative("guidance", guidance)
        check_integer("corrector_steps", corrector_steps, least=0)
        check_positive("corrector_snr", corrector_snr)
        x = randn(n, *self.hparams.shape, generator=generator, device=self.device)
        given = draw_labels(y, n, self.hparams.num_classes, guidance, generator=generator, device=self.device)
        x0_model = partial(self.x0_hat, y=given, guidance=guidance)

        def correct(x: Tensor, i: int) -> Tensor:
            score = lambda x: self.score(x, torch.full((len(x),), i, device=x.device), given, guidance)  # noqa: E731
            return langevin_sample(score, x, corrector_steps, snr=corrector_snr, generator=generator)

        num_steps = self._default_num_steps() if num_steps == "default" else num_steps
        how = {"generator": generator, "correct": correct if corrector_steps else None}
        steps, total = samplers.sampler(x0_model, x, self.chain, num_steps, eta, self.hparams.variance, **how)
        drawn = samplers.shown(steps, total, frames, show)
        if (guidance or corrector_steps) and not drawn.isfinite().all():
            raise UserError(f"samples became NaN or infinite with {guidance=}, {corrector_snr=}: use smaller values")
        return _as_images(drawn)

    def _default_num_steps(self) -> int:
        return min(50, len(self.betas))

    def rows(self) -> tuple[str, list[int]] | None:
        """Return "y" and all labels, one for each row of a picture of samples. Return None if there are no labels."""
        classes = self.hparams.num_classes
        return None if classes is None else ("y", list(range(classes)))

    @torch.no_grad()
    def encode(self, x: Tensor, num_steps: int | None = None) -> Tensor:
        """Return noise x_T, (B, C, H, W). :meth:`decode` maps x_T approximately back to the images ``x`` in [0, 1].

        ``num_steps`` is the number of DDIM steps, by default min(50, T).
        """
        num_steps = self._default_num_steps() if num_steps is None else num_steps
        return samplers.ddim_encode(self.x0_hat, 2 * x - 1, self.chain, num_steps)

    @torch.no_grad()
    def decode(self, x_T: Tensor, num_steps: int | None = None) -> Tensor:
        """Return the images in [0, 1] that deterministic DDIM makes from noise ``x_T``; (B, C, H, W) both."""
        num_steps = self._default_num_steps() if num_steps is None else num_steps
        steps = samplers.ddim_steps(self.x0_hat, x_T, self.chain, num_steps)
        return _as_images(samplers.last(steps, num_steps, "sampling"))

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, between: int = 8, num_steps: int | None = None) -> Tensor:
        """Return images in [0, 1], (B, between, C, H, W), decoded from spherical interpolations of ``a`` and ``b``.

        Args:
            a, b: Standard normal noise or the noise that :meth:`encode` returns, (B, C, H, W) each.
            between: Number of images, both ends included, at least 2.
            num_steps: DDIM steps, by default min(50, T).
        """
        check_integer("between", between, least=2)
        x_T = samplers.slerp(a, b, torch.linspace(0, 1, between))
        return self.decode(x_T.flatten(0, 1), num_steps).view(x_T.shape)

    # The variational bound.

    log_likelihood_by = BOUND

    @torch.no_grad()
    def bound_terms(self, x: Tensor, *, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """Return L_0, ..., L_{T-1} and L_T, (T + 1, B) nats, for images ``x`` of 256 values in [0, 1].

        The expected sum is an upper bound of -log p(x), where p(x) is the probability of the C H W values, each a
        multiple of 1/255. L_T is exact.
        Each other term is estimated from a separate draw of x_t. Each image takes T network evaluations.
        """
        draw = partial(randn, *x.shape, generator=generator, device=x.device)
        x0_model = lambda xt, t: self.x0_hat(xt, t, y).clamp(-1, 1)  # noqa: E731
        return diffusion_bound.terms(2 * x - 1, draw, x0_model, self.chain, self.hparams.variance)

    def log_likelihood(self, x: Tensor, *, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """Return a lower bound of log p(x) or log p(x | y), eq. 5, (B,) nats, for ``x`` of 256 values in [0, 1].

        The bound is minus the sum of :meth:`bound_terms`. Divide it by -C H W log 2 for bits per dimension.
        """
        terms = self.bound_terms(x, generator=generator, y=y)
        return -in_float64(terms).sum(0).float().to(x.device)

    # Gradient estimators.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return estimators of the gradient of the training loss, and estimators of the gradient of the bound, by name.

        Training loss: ``uniform`` (algorithm 1), ``stratified`` and ``importance`` draw t in the way that
        ``timesteps`` describes. Only models with ``timesteps=importance`` have ``importance``. Bound per dimension,
        without clipping: ``bound_single`` takes L_t at one uniform t ([DSL eq. 14.41]). ``bound_joint`` draws x_{t-1}
        and x_t jointly ([DSL eq. 14.28]). If T <= 100, ``bound_single_chain`` and ``bound_joint_chain`` sum all terms.
        """
        params = dict(self.named_parameters())

        def training(timesteps: str) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                return (noise["weight"] * self.losses(batch, noise)).mean()

            noise = partial(self.noise, timesteps=timesteps)
            return GradientEstimator.of(self, timesteps, params, noise, loss, batched=False)

        def bound(name: str, function, draws: int, one_step: bool) -> GradientEstimator:
            def noise(batch, *, generator: torch.Generator | None = None) -> Noise:
                B, *shape = batch[0].shape
                drawn = {"generator": generator, "device": batch[0].device}
                eps = {"eps": randn(B, *([draws] if draws > 1 else []), *shape, **drawn)}
                return eps | ({"t": diffusion.uniform_steps(B, self.hparams.steps, **drawn)} if one_step else {})

            def loss(batch, noise: Noise) -> Tensor:
                y = None if self.hparams.num_classes is None else inputs.labels_in(batch, self)
                step = [noise["t"]] if one_step else []
                settings = (partial(self.x0_hat, y=y), self.chain, self.hparams.variance, True)
                x0 = 2 * batch[0] - 1
                return function(x0, *step, noise["eps"], *settings).mean() / x0[0].numel()

            return GradientEstimator.of(self, name, params, noise, loss, batched=False)

        names = [name for name in diffusion.TIMESTEPS if name != "importance" or self.hparams.timesteps == name]
        found = [training(name) for name in names]
        found += [bound(name, *form) for name, form in diffusion_bound.drawn_forms(self.hparams.steps).items()]
        return {estimator.name: estimator for estimator in found}


def _as_images(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)
