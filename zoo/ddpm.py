"""DDPM: a Markov chain of small Gaussian denoising steps.

Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239; seed 004 ch. 14. Its kernels and
schedules are in zoo/functional/diffusion.py, its samplers in diffusion_samplers.py and eq. 5 in diffusion_bound.py.

    q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)                         eq. 4,  seed 14.11
    L_simple     = E_{t, x_0, eps} || eps - eps_theta(x_t, t) ||^2             eq. 14, seed algorithm 6; for predict=eps
    L_v          = E_{t, x_0, eps} || v - v_theta(x_t, t) ||^2,  v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0
    x_{t-1}      = mean of q(x_{t-1} | x_t, x0_hat) + sigma_t z                algorithm 2, seed algorithm 7
    x0_hat       = (x_t - sqrt(1 - abar_t) eps_theta) / sqrt(abar_t) = sqrt(abar_t) x_t - sqrt(1 - abar_t) v_theta
    score        = grad log q(x_t) = -eps_theta / sqrt(1 - abar_t)
    -log p(x_0) <= L_T + sum_t L_t + L_0                                       eq. 5,  seed 14.41

Symbols: x0, xt images in [-1, 1], (B, 1, 28, 28); t step index, (B,), 0 .. T-1, where 0 is one step of noise (the
paper's t = 1); eps standard normal noise; x0_hat the network's guess of x_0.
Logged: {train,val,test}/loss, the squared error of what is predicted, averaged over dimensions (1 is what predicting
zero gives for eps; values of eps, x0 and v do not compare).

Differs from the paper:
- By default the network predicts v (Salimans & Ho 2022) on the cosine schedule (Nichol & Dhariwal 2021). Of 256
  samples after the same 400 seconds of training on one CPU core (84,000 images) a classifier was sure of 43 %, and of
  22 % with eps on the same schedule; one seed each. The paper's are ``predict=eps`` and ``schedule=linear``.
- The linear schedule is the paper's at T = 1000 and is rescaled for other T, to end at about the same noise: log abar_T
  is -10.1 at T = 1000, -10.4 at 200 and -11.8 at 50.
- sigma_t^2 is the posterior variance (the paper's second choice, sec. 3.2), and x0_hat is clipped to [-1, 1] at every
  step, as the authors' code does; so it is in the bound, which is of the chain of all T steps. Seed 004's algorithm 7
  multiplies z by the variance and adds noise at the last step too; it is the standard deviation, and none.
- The U-Net is small and works on 2 x 2 patches of 28 x 28 images without padding, for speed on a CPU; it has no dropout
  and attends at the lowest resolution only. Learning rate 1e-3 (2e-4 in the paper), batches of 64 (128), and the rate
  falls to nothing along half a cosine: more and larger steps, for runs of an hour.
- The exponential moving average has decay 0.999 (0.9999) and warms up (callbacks/ema.py).
- DDIM's steps run evenly from T-1 to 0, both included, and x0_hat is clipped there too, eps following it.
- Seed 004's eq. 14.43 has abar_t for alpha_t in its first factor, q(x_t | x_{t-1}); the step is by eq. 14.45.
- Labels, where there are any, are added to the embedding of the step and left out at random, for guidance by Ho &
  Salimans 2022 (arXiv:2207.12598).
"""

from collections.abc import Sequence
from functools import partial

import lightning as L
import torch
from torch import Tensor

from zoo.checks import inputs
from zoo.checks.capabilities import BOUND
from zoo.checks.errors import UserError
from zoo.checks.labels import Labels, as_labels, sampled_labels
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_not_negative, check_positive, check_share, check_whole
from zoo.estimators import GradientEstimator, Noise
from zoo.functional import diffusion, diffusion_bound
from zoo.functional import diffusion_samplers as samplers
from zoo.functional.densities import at_least_float32
from zoo.functional.diffusion import Chain, predicted_eps, predicted_x0, simple_loss
from zoo.functional.langevin import langevin_sample
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.functional.precision import in_float64, never_rounded
from zoo.nets.description import described
from zoo.nets.unet import UNet, check_unet
from zoo.training.ranks import equal_rows
from zoo.training.schedules import half_cosine

HISTORY = 10  # losses remembered of each step, for importance sampling
STATES = dict.fromkeys(("xt", "x_T", "a", "b"), inputs.noisy) | {
    "t": inputs.whole_numbers_below(lambda self: self.num_steps)
}


@described
@accepts_old_form("noise", "loss", "bound_terms", "log_likelihood", labels="y")
@inputs.checks_inputs(x=inputs.images, y=inputs.labels, sigma=inputs.positive, **STATES)
@never_rounded(*Chain._fields, "loss_history")
class DDPM(L.LightningModule):
    """The model, its training and its uses.

    Args:
        steps: T, at least 2; more than 20 for the linear schedule.
        schedule: ``linear`` or ``cosine``.
        predict: what the network says: ``eps``, ``x0`` or ``v``.
        variance: of the reverse steps, ``posterior`` or ``beta``.
        timesteps: how t is drawn in training: ``uniform``; ``stratified``, spread evenly over the batch; or
            ``importance``, in proportion to the root of the mean squared loss of each step, and weighted.
        num_classes: of labels, or None to train without them.
        label_dropout: share of the labels left out in training, so that the model also learns to do without.
        widths: channels of the U-Net's levels, multiples of 8.
        blocks: residual blocks per level.
        patch: pixels folded into channels, per side.
        lr: of Adam, reached after ``warmup`` steps; it falls to 0 at the end of the run along half a cosine.
        warmup: optimiser steps over which the learning rate rises linearly.

    Raises:
        UserError: for a value outside these.
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
    ):
        super().__init__()
        check_whole("steps", steps, least=2)
        check_choice("schedule", schedule, tuple(diffusion.SCHEDULES))
        check_choice("predict", predict, diffusion.PREDICTIONS)
        check_choice("variance", variance, diffusion.VARIANCES)
        check_choice("timesteps", timesteps, diffusion.TIMESTEPS)
        if num_classes is not None:
            check_whole("num_classes", num_classes)
        check_share("label_dropout", label_dropout)
        check_positive("lr", lr)
        check_whole("warmup", warmup, least=0)
        check_unet(widths, blocks, patch)
        widths = list(widths)
        self.save_hyperparameters()
        # Functions of the hyperparameters, so they stay out of checkpoints and published weights; float64 until here.
        for name, values in diffusion.make_chain(diffusion.SCHEDULES[schedule](steps))._asdict().items():
            self.register_buffer(name, values.float(), persistent=False)
        if timesteps == "importance":
            self.register_buffer("loss_history", torch.zeros(steps, HISTORY))
            self.register_buffer("loss_count", torch.zeros(steps, dtype=torch.long))
        self.net = UNet(1, widths, blocks, patch, num_classes).to(memory_format=torch.channels_last)

    @property
    def chain(self) -> Chain:
        """The forward process, (T,) each, float32."""
        return Chain(*(getattr(self, name) for name in Chain._fields))

    @property
    def num_steps(self) -> int:
        """T, how many steps the loss is one of."""
        return self.hparams.steps

    def forward(self, xt: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """What is predicted of ``xt`` (B, 1, 28, 28) at steps ``t`` (B,), 0 .. T-1, given labels ``y`` (B,) or none."""
        if self.hparams.num_classes is not None and y is None:
            if self.hparams.label_dropout == 0:
                raise UserError("this model was never trained without labels (label_dropout=0), so it needs some")
            y = torch.full_like(t, self.hparams.num_classes)
        return at_least_float32(self.net(xt, t, y))

    def x0_hat(self, xt: Tensor, t: Tensor, y: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """The network's guess of x_0, (B, 1, 28, 28), unclipped.

        With labels and ``guidance`` w, what is predicted is (1 + w) times that with labels less w times that without
        (Ho & Salimans 2022, eq. 6; eps, v and x0 are affine in one another).
        """
        output = self(xt, t, y)
        if y is not None and guidance:
            output = (1 + guidance) * output - guidance * self(xt, t)
        return predicted_x0(self.hparams.predict, output, xt, t, self.chain)

    def score(self, xt: Tensor, t: Tensor, y: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """grad log q(x_t) by x_t, as the network has it: -eps_theta / sqrt(1 - abar_t); (B, 1, 28, 28)."""
        eps = predicted_eps(self.x0_hat(xt, t, y, guidance), xt, t, self.chain)
        return -eps / diffusion.at(self.one_minus_abar, t, xt).sqrt()

    @property
    def sigmas(self) -> Tensor:
        """sqrt((1 - abar_t) / abar_t), (T,): x_t / sqrt(abar_t) is the image blurred by N(0, sigma_t^2 I)."""
        return (self.one_minus_abar / self.abar).sqrt()

    @inputs.takes(x=inputs.noisy)
    def blurred_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The score of images blurred by N(0, sigma^2 I), as the score model of zoo/score.py has it; (B, 1, 28, 28).

        Langevin dynamics takes either: ``annealed_langevin_steps(ddpm.blurred_score, x, sigmas, ...)``.

        Args:
            x: images in [-1, 1] with noise of deviation ``sigma`` on them, (B, 1, 28, 28).
            sigma: (B,); the step whose sigma_t is nearest, in the logarithm, stands for it.
        """
        t = (self.sigmas.log() - sigma.log()[:, None]).abs().argmin(1)
        scale = diffusion.at(self.abar, t, x).sqrt()
        return scale * self.score(scale * x, t)

    # Training: everything random in one draw, then a plain function.

    def noise(self, batch, *, generator: torch.Generator | None = None, timesteps: str | None = None) -> Noise:
        """``t`` and its ``weight`` 1 / (T p_t), (B,) each, ``eps`` (B, 1, 28, 28), and ``u`` (B,) of dropped labels."""
        x, timesteps = batch[0], self.hparams.timesteps if timesteps is None else timesteps
        B, T, drawn = len(batch[0]), self.hparams.steps, {"generator": generator, "device": batch[0].device}
        p = self.importance() if timesteps == "importance" else None
        t, weight = diffusion.draw_steps(timesteps, B, T, p, **drawn)
        noise = {"t": t, "weight": weight, "eps": randn(*x.shape, **drawn)}
        if self.hparams.num_classes is not None:
            noise["u"] = rand(B, **drawn)
        return noise

    def importance(self) -> Tensor:
        """p_t of ``timesteps=importance``, (T,): uniform until there is a history of every step's loss."""
        if self.hparams.timesteps != "importance":
            raise UserError(f"timesteps=importance keeps a history of losses, and this is {self.hparams.timesteps}")
        return diffusion.importance(self.loss_history, self.loss_count)

    def losses(self, batch, noise: Noise) -> Tensor:
        """The squared error of each example, averaged over dimensions, unweighted; (B,)."""
        network = self
        if self.hparams.num_classes is not None:
            y = as_labels(inputs.labels_in(batch, self), len(batch[0]), self.hparams.num_classes, self.device)
            y = torch.where(noise["u"] < self.hparams.label_dropout, self.hparams.num_classes, y)
            network = partial(self, y=y)
        return simple_loss(2 * batch[0] - 1, noise["t"], noise["eps"], self.chain, self.hparams.predict, network)

    def loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """``loss``: of images in [0, 1], (B, 1, 28, 28), averaged over batch and dimensions; t uniform."""
        noise = self.noise(batch, generator=generator, timesteps="uniform")
        return {"loss": self.losses(batch, noise).mean()}

    def training_step(self, batch, batch_idx):
        noise = self.noise(batch)
        losses = self.losses(batch, noise)
        if self.hparams.timesteps == "importance":
            t, found = (equal_rows(mine, self.trainer) for mine in (noise["t"], losses.detach()))
            diffusion.remember(self.loss_history, self.loss_count, t, found)
        loss = (noise["weight"] * losses).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx, stage="val"):
        # The same noise in every epoch, its steps spread evenly.
        generator = chunk_generator(self.global_rank, batch_idx)
        noise = self.noise(batch, generator=generator, timesteps="stratified")
        losses = self.losses(batch, noise)
        self.log(f"{stage}/loss", losses.mean(), sync_dist=True, batch_size=len(batch[0]), prog_bar=True)
        return {"step": noise["t"], "losses": losses}

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        total, warmup = max(1, self.trainer.estimated_stepping_batches), self.hparams.warmup  # infinite for -1 epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: half_cosine(step, total, warmup))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "ddpm"

    # What it is for.

    @inputs.takes(y=None)  # which may also be dropped
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
        """Draw ``n`` images in [0, 1], (n, 1, 28, 28).

        Args:
            num_steps: of DDIM, 1 to T, by default 50, or T if there are fewer; None runs the whole chain by ancestral
                sampling.
            eta: DDIM's noise, 0 to 1.
            y: labels, of a model with ``num_classes``: one for all, one for each, uniformly drawn ones if None, or
                ``dropped``, which draws without. The noise is the same whatever they are.
            guidance: w, 0 or more, towards the labels; 0 draws from the conditional model as it is.
            corrector_steps: Langevin steps at the noise level of each step, after it (Song et al. 2021, algorithm 5).
            corrector_snr: of a corrector's step, which is 4 (snr |z| / |score|)^2 long (zoo/functional/langevin.py).
            frames: None, or how many moments of the way to return, at least 2, the last its end, as (n, frames, 1, 28,
                28).
            show: with frames, ``xt``, the noisy images, or ``x0``, what the network takes them for.

        Raises:
            UserError: for values outside these.
        """
        check_not_negative("guidance", guidance)
        check_whole("corrector_steps", corrector_steps, least=0)
        check_positive("corrector_snr", corrector_snr)
        x = randn(n, 1, 28, 28, generator=generator, device=self.device)
        classes = self.hparams.num_classes  # uniform labels are drawn in any case, for the noise to be the same
        uniform = (rand(n if classes else 0, generator=generator, device=self.device) * (classes or 0)).long()
        given = sampled_labels(y, n, classes, uniform, guidance)
        x0_model = partial(self.x0_hat, y=given, guidance=guidance)

        def correct(x: Tensor, i: int) -> Tensor:
            score = lambda x: self.score(x, torch.full((len(x),), i, device=x.device), given, guidance)  # noqa: E731
            return langevin_sample(score, x, corrector_steps, snr=corrector_snr, generator=generator)

        num_steps = self._fifty() if num_steps == "default" else num_steps
        how = {"generator": generator, "correct": correct if corrector_steps else None}
        steps, total = samplers.sampler(x0_model, x, self.chain, num_steps, eta, self.hparams.variance, **how)
        drawn = samplers.shown(steps, total, frames, show)
        if (guidance or corrector_steps) and not drawn.isfinite().all():
            raise UserError(f"samples have run off to infinity with {guidance=}, {corrector_snr=}: take smaller ones")
        return _as_images(drawn)

    def _fifty(self) -> int:
        return min(50, len(self.betas))

    def rows(self) -> tuple[str, list[int]] | None:
        """The condition that a picture of samples has one row for each value of; None without labels."""
        classes = self.hparams.num_classes
        return None if classes is None else ("y", list(range(classes)))

    @torch.no_grad()
    def encode(self, x: Tensor, num_steps: int | None = None) -> Tensor:
        """The noise x_T from which deterministic DDIM draws images ``x`` in [0, 1], nearly; (B, 1, 28, 28).

        ``num_steps`` here and below are by default 50, or T if there are fewer.
        """
        num_steps = self._fifty() if num_steps is None else num_steps
        return samplers.ddim_encode(self.x0_hat, 2 * x - 1, self.chain, num_steps)

    @torch.no_grad()
    def decode(self, x_T: Tensor, num_steps: int | None = None) -> Tensor:
        """The images in [0, 1] that deterministic DDIM draws from noise ``x_T``; (B, 1, 28, 28) both."""
        num_steps = self._fifty() if num_steps is None else num_steps
        return _as_images(
            samplers.last(samplers.ddim_steps(self.x0_hat, x_T, self.chain, num_steps), num_steps, "sampling")
        )

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, between: int = 8, num_steps: int | None = None) -> Tensor:
        """Images from noise on the great arc between noise ``a`` and ``b``, (B, 1, 28, 28) each.

        Noise is drawn, or what :meth:`encode` finds for images.

        Args:
            between: how many, both ends included, at least 2.
            num_steps: of DDIM.

        Returns:
            (B, between, 1, 28, 28) in [0, 1].
        """
        check_whole("between", between, least=2)
        x_T = samplers.slerp(a, b, torch.linspace(0, 1, between))
        return self.decode(x_T.flatten(0, 1), num_steps).view(x_T.shape)

    # The variational bound.

    log_likelihood_by = BOUND

    @torch.no_grad()
    def bound_terms(self, x: Tensor, *, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """L_0, ..., L_{T-1} and L_T of images ``x`` of 256 grey values in [0, 1]: nats, (T + 1, B).

        Their sum is, in expectation, an upper bound of -log p(x), the mass of the grey values; every term but L_T is
        estimated at one draw of x_t of its own. T evaluations of the network for each image.
        """
        draw = partial(randn, *x.shape, generator=generator, device=x.device)
        x0_model = lambda xt, t: self.x0_hat(xt, t, y).clamp(-1, 1)  # noqa: E731
        return diffusion_bound.terms(2 * x - 1, draw, x0_model, self.chain, self.hparams.variance)

    def log_likelihood(self, x: Tensor, *, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """A lower bound of log p(x), or of log p(x | y), eq. 5, for ``x`` of 256 grey values in [0, 1]; nats, (B,).

        Minus the sum of :meth:`bound_terms`; divided by -784 log 2 it is bits per dimension.
        """
        terms = self.bound_terms(x, generator=generator, y=y)
        return -in_float64(terms).sum(0).float().to(x.device)

    # How its gradient can be estimated.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Three ways to draw t for the gradient of the training loss, and two forms of the bound's.

        ``uniform``: one uniform step t and one eps per example, algorithm 1. ``stratified``: the steps of a batch
        spread evenly. ``importance``, where the model is trained so: by the losses of its last steps, weighted.
        ``bound_single``: the gradient of the bound by L_t at one uniform t, seed 14.41. ``bound_joint``: by joint draws
        of x_{t-1} and x_t, seed 14.28. Up to 100 steps, ``bound_single_chain`` and ``bound_joint_chain``: the same two
        summed over whole trajectories. Those of the bound are per dimension, of x0_hat unclipped.
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

        found = [
            training(name) for name in diffusion.TIMESTEPS if name != "importance" or self.hparams.timesteps == name
        ]
        found.append(bound("bound_single", diffusion_bound.single_draw, 1, one_step=True))
        found.append(bound("bound_joint", diffusion_bound.joint_draw, 5, one_step=True))
        if (T := self.hparams.steps) <= 100:
            found.append(bound("bound_single_chain", diffusion_bound.single_chain, T, one_step=False))
            found.append(bound("bound_joint_chain", diffusion_bound.joint_chain, T, one_step=False))
        return {estimator.name: estimator for estimator in found}


def _as_images(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)
