"""Score model: the gradient of the log density, learned without the density, and Langevin dynamics to sample by it.

Hyvarinen 2005 (explicit); Song, Garg, Shi & Ermon 2019, arXiv:1905.07088 (sliced); Vincent 2011 (denoising); Song &
Ermon 2019, arXiv:1907.05600 (noise levels, annealed Langevin dynamics: NCSN) and 2020, arXiv:2006.09011; seed 004,
14.6.

    Fisher divergence   J        = 1/2 E_p || s(x) - grad log p(x) ||^2                              seed 14.53
    explicit            J        = E_p[ tr(grad s(x)) + 1/2 || s(x) ||^2 ] + const                   seed 14.62
    sliced              J        = E_p E_v[ v' grad s(x) v + 1/2 (v' s(x))^2 ] + const, v of covariance I
                        reduced  = E_p E_v[ v' grad s(x) v ] + 1/2 E_p || s(x) ||^2                  SSM-VR
    denoising           J_sigma  = 1/2 E_x E_eps || s(x + sigma eps, sigma) + eps / sigma ||^2 + const
    NCSN                sum_i w(sigma_i) J_(sigma_i) over a ladder of noise levels

Denoising targets the score of p blurred by N(0, sigma^2 I); the other two that of p, and on a ladder of noise levels
that of the blurred p likewise. Seed 14.54-14.62 is the case of one dimension; the trace is the general one.

Symbols: x points (B, D) or images (B, 1, 28, 28), in [-1, 1] inside; sigma noise levels (B,), large to small in
``sigmas`` (L,); s the score, of x's shape; v random directions; eps standard normal noise.
Logged: {train,val,test}/loss, the weighted objective per dimension, without its constant: for explicit and sliced it
may be negative.

Differs from the papers:
- s(x, sigma) = -x / (1 + sigma^2) + F(x / sqrt(1 + sigma^2), sigma) / (sigma sqrt(1 + sigma^2)), F the network: the
  exact score of data N(0, I), corrected (Karras et al. 2022, arXiv:2206.00364, table 1, with sigma_data = 1). The
  papers use F / sigma or F itself. Without a ladder s(x) = F(x).
- By default w(sigma) = sigma^2 (1 + sigma^2), which gives the error of F the same weight at every level (Karras et
  al.); ``weights=ncsn`` is the papers' sigma^2.
- The U-Net is that of DDPM (zoo/ddpm.py), a fraction of the papers' in size; learning rate and averages are its too.
- Levels from 10 to 0.05 for images in [-1, 1] (2019: 1 to 0.01 for images in [0, 1], ten levels), with Langevin steps
  of the size that technique 4 of the 2020 paper asks for, and its denoising at the end.
- Sliced directions v are Rademacher (+1 or -1): of all with independent entries those of the least variance.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import lightning as L
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.checks.errors import UserError
from zoo.checks.inputs import checks_inputs, data, noisy, positive, takes
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_flag, check_positive, check_whole, check_widths
from zoo.estimators import GradientEstimator, Noise
from zoo.functional.densities import at_least_float32
from zoo.functional.langevin import annealed_langevin_steps, best_step_size, langevin_steps, noise_levels
from zoo.functional.noise import chunk_generator, randn
from zoo.functional.precision import never_rounded
from zoo.functional.progress import tracked
from zoo.nets.description import described
from zoo.nets.unet import PointNet, UNet, check_unet
from zoo.training.schedules import half_cosine

OBJECTIVES = ("denoising", "sliced", "explicit")
WEIGHTS = ("edm", "ncsn")
LARGEST_TRACE = 32  # dimensions up to which an exact trace is sensible: a backward pass for each

ScoreFunction = Callable[[Tensor], Tensor]  # (B, ...) -> (B, ...)


def directional(score: ScoreFunction, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """s(x), and v' (grad s(x)) v of each example: (B, ...) and (B,). ``v`` is (B, ...) too."""
    s, pull = torch.func.vjp(score, x)
    return s, (pull(v)[0] * v).flatten(1).sum(1)


def explicit_loss(x: Tensor, score: ScoreFunction) -> Tensor:
    """tr(grad s(x)) + 1/2 || s(x) ||^2 of points (B, D), the trace exact, by D products with unit vectors; (B,)."""
    trace = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for unit in torch.eye(x[0].numel(), dtype=x.dtype, device=x.device):
        s, slope = directional(score, x, unit.view(x.shape[1:]).expand_as(x))
        trace = trace + slope
    return trace + s.flatten(1).square().sum(1) / 2


def sliced_loss(x: Tensor, v: Tensor, score: ScoreFunction, variance_reduced: bool = True) -> Tensor:
    """The mean over M directions of v' grad s(x) v + 1/2 (v' s(x))^2, or, reduced, + 1/2 || s(x) ||^2; (B,).

    The reduced form usually has the lower variance, hence its name in the paper.

    Args:
        x: (B, ...).
        v: directions with covariance I, (B, M, ...).
        score: x -> s(x).
    """
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for direction in v.unbind(1):
        s, slope = directional(score, x, direction)
        along = (direction * s).flatten(1).sum(1)
        total = total + slope + (s.flatten(1).square().sum(1) if variance_reduced else along**2) / 2
    return total / v.shape[1]


def denoising_loss(x: Tensor, sigma: Tensor, eps: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """1/2 || s(x + sigma eps) + eps / sigma ||^2; (B,).

    Args:
        x: (B, ...).
        sigma: (B,), positive.
        eps: standard normal, of x's shape.
        score: x -> s(x), at the noise level of each example.
    """
    column = sigma.view(-1, *[1] * (x.ndim - 1))
    return (score(x + column * eps) + eps / column).flatten(1).square().sum(1) / 2


@described
@accepts_old_form("noise", "loss", "chains")
@checks_inputs(x=data, sigma=positive)
@never_rounded("sigmas")
class Score(L.LightningModule):
    """The model, its training and its uses.

    Args:
        shape: of one example, [1, 28, 28] or [D].
        objective: ``denoising``, ``sliced`` or ``explicit``; the last for 32 dimensions at most.
        sigma_max: the largest noise level, in units of images in [-1, 1], or of points as they are.
        sigma_min: the smallest one.
        num_sigmas: levels of the ladder; 1 has the smallest alone, and 0 none, no noise, which ``denoising`` needs.
        weights: of the levels, ``edm`` or ``ncsn``.
        projections: M, of ``sliced``.
        variance_reduced: whether ``sliced`` takes || s ||^2 for (v' s)^2.
        hidden: widths of the network of points.
        widths: channels of the U-Net's levels, multiples of 8, for images.
        blocks: residual blocks per level.
        patch: pixels folded into channels, per side.
        lr: of Adam, reached after ``warmup`` steps; it falls to 0 at the end of the run along half a cosine.
        warmup: optimiser steps over which the learning rate rises linearly.

    Raises:
        UserError: for a value outside these.
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        objective: str = "denoising",
        sigma_max: float = 10.0,
        sigma_min: float = 0.05,
        num_sigmas: int = 64,
        weights: str = "edm",
        projections: int = 1,
        variance_reduced: bool = True,
        hidden: Sequence[int] = (128, 128, 128),
        widths: Sequence[int] = (32, 96),
        blocks: int = 1,
        patch: int = 2,
        lr: float = 1e-3,
        warmup: int = 200,
    ):
        super().__init__()
        check_widths("shape", shape, (1, 28, 28))
        check_widths("hidden", hidden, (128, 128))
        check_unet(widths, blocks, patch)
        shape, hidden, widths = list(shape), list(hidden), list(widths)
        if shape != [1, 28, 28] and (len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1):
            raise UserError(f"shape must be [1, 28, 28], or [D] of points, got {shape}")
        check_choice("objective", objective, OBJECTIVES)
        check_positive("sigma_max", sigma_max)
        check_positive("sigma_min", sigma_min)
        check_whole("num_sigmas", num_sigmas, least=0)
        if sigma_min >= sigma_max and num_sigmas > 1:
            raise UserError(f"sigma_min must be below sigma_max, got {sigma_min} and {sigma_max}")
        if objective == "denoising" and num_sigmas == 0:
            raise UserError("denoising needs a noise level to take away: num_sigmas must be at least 1, got 0")
        check_choice("weights", weights, WEIGHTS)
        check_whole("projections", projections)
        check_flag("variance_reduced", variance_reduced)
        if objective == "explicit" and math.prod(shape) > LARGEST_TRACE:
            raise UserError(
                f"objective=explicit takes a backward pass for each of {math.prod(shape)} dimensions and is for "
                f"{LARGEST_TRACE} at most: take sliced or denoising"
            )
        check_positive("lr", lr)
        check_whole("warmup", warmup, least=0)
        self.save_hyperparameters()
        sigmas = noise_levels(sigma_max if num_sigmas > 1 else sigma_min, sigma_min, num_sigmas)
        self.register_buffer("sigmas", sigmas.float(), persistent=False)  # a function of the hyperparameters
        self.images = len(shape) == 3
        if self.images:
            self.net = UNet(1, widths, blocks, patch).to(memory_format=torch.channels_last)
        else:
            self.net = PointNet(shape[0], hidden)

    @property
    def num_steps(self) -> int:
        """L, how many noise levels the loss is one of."""
        return len(self.sigmas)

    @takes(x=noisy)
    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """s(x, sigma), the score at ``x`` (B, ...) of data blurred by N(0, sigma^2 I), ``sigma`` (B,).

        Images are in [-1, 1] here. Without a ladder s(x), and ``sigma`` is not looked at.
        """
        if not len(self.sigmas):
            return at_least_float32(self.net(x, torch.zeros(len(x), device=x.device)))
        if sigma is None:
            raise UserError("the score of a model with noise levels is that at one of them: give sigma, (B,)")
        # The network sees where log sigma lies on the ladder, 0 to 1000; a single level lies at 0.
        low, high = math.log(self.hparams.sigma_min), math.log(max(self.hparams.sigma_max, 2 * self.hparams.sigma_min))
        t = (sigma.log() - low) / (high - low) * 1000
        sigma = sigma.view(-1, *[1] * (x.ndim - 1))
        scale = (1 + sigma**2).sqrt()
        return at_least_float32(self.net(x / scale, t)) / (sigma * scale) - x / scale**2

    # Training: everything random in one draw, then a plain function.

    def noise(self, batch, *, generator: torch.Generator | None = None, objective: str | None = None) -> Noise:
        """``level`` (B,), 0 .. L-1, and ``eps`` (B, ...) of a ladder; ``v`` (B, M, ...) of ``sliced``."""
        x, objective = batch[0], self.hparams.objective if objective is None else objective
        where = x.device if generator is None else generator.device
        noise = {}
        if len(self.sigmas):
            level = torch.randint(len(self.sigmas), (len(x),), generator=generator, device=where)
            noise |= {"level": level.to(x.device), "eps": randn(*x.shape, generator=generator, device=x.device)}
        if objective == "sliced":
            shape = (len(x), self.hparams.projections, *x.shape[1:])
            signs = torch.randint(2, shape, generator=generator, device=where) * 2 - 1
            noise["v"] = signs.to(x.device, x.dtype)
        return noise

    def losses(self, batch, noise: Noise, objective: str | None = None, reduced: bool | None = None) -> Tensor:
        """The weighted objective of each example, per dimension; (B,)."""
        objective = self.hparams.objective if objective is None else objective
        x = 2 * batch[0] - 1 if self.images else batch[0]
        score, weight = self.forward, 1.0
        if len(self.sigmas):
            sigma = self.sigmas[noise["level"]]
            weight = sigma**2 * (1 + sigma**2 if self.hparams.weights == "edm" else 1)
            score = partial(self, sigma=sigma)
            if objective == "denoising":
                return weight * denoising_loss(x, sigma, noise["eps"], score) / x[0].numel()
            x = x + sigma.view(-1, *[1] * (x.ndim - 1)) * noise["eps"]
        with sdpa_kernel(SDPBackend.MATH):  # the attention that can be differentiated twice
            if objective == "explicit":
                return weight * explicit_loss(x, score) / x[0].numel()
            reduced = self.hparams.variance_reduced if reduced is None else reduced
            return weight * sliced_loss(x, noise["v"], score, reduced) / x[0].numel()

    def loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """``loss``: the objective of images in [0, 1] or points, (B, ...), per dimension, averaged over the batch."""
        return {"loss": self.losses(batch, self.noise(batch, generator=generator)).mean()}

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)["loss"]
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        noise = self.noise(batch, generator=generator)
        losses = self.losses(batch, noise)
        self.log(f"{stage}/loss", losses.mean(), sync_dist=True, batch_size=len(batch[0]), prog_bar=True)
        return {"step": noise["level"], "losses": losses} if len(self.sigmas) else None

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        total, warmup = max(1, self.trainer.estimated_stepping_batches), self.hparams.warmup  # infinite for -1 epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: half_cosine(step, total, warmup))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "score"

    # What it is for.

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        steps: int | None = None,
        step_size: float | None = None,
        denoise: bool = True,
        adjusted: bool = False,
        frames: int | None = None,
    ) -> Tensor:
        """Draw ``n`` examples by Langevin dynamics, annealed where there is a ladder of noise levels.

        Args:
            steps: at each level, by default 5 for images and 100 for points; with one level or none 1000.
            step_size: e / sigma^2, by default :func:`best_step_size` for images and 0.05 for points; with
                one level or none e itself, by default 0.14 D / E|s(x)|^2 where the chains begin, a seventh of the
                variance of data N(0, s^2 I).
            denoise: take the last level's noise away at the end; without levels there is none.
            adjusted: accept each step by Metropolis and Hastings, from the integral of the score: four more evaluations
                a step. A learned score need not be a gradient, and then that integral depends on its path.
            frames: None, or how many moments of the way to return, at least 2, the last its end: (n, frames, ...).

        Returns:
            (n, 1, 28, 28) images in [0, 1]; (n, D) points.

        Raises:
            UserError: for values outside these.
        """
        steps = self._default_steps if steps is None else steps
        check_whole("steps", steps)
        if frames is not None:
            check_whole("frames", frames, least=2)
            total = len(self.sigmas) if len(self.sigmas) > 1 else steps
            if frames > total:
                raise UserError(f"there are {total} moments to show, fewer than {frames} frames")
        how = {"denoise": denoise, "adjusted": adjusted, "generator": generator}
        moments, _ = self.chains(n, steps=steps, step_size=step_size, **how)
        x = moments[-1]
        if frames is not None:
            kept = torch.linspace(0, len(moments) - 1, frames, dtype=torch.float64).round().long().tolist()
            x = torch.stack([moments[k] for k in kept], 1)
        return (x / 2 + 0.5).clamp(0, 1) if self.images else x

    @torch.no_grad()
    def chains(
        self,
        n: int,
        *,
        steps: int | None = None,
        step_size: float | None = None,
        denoise: bool = True,
        adjusted: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Tensor], list[float]]:
        """Where the ``n`` chains of :meth:`sample` are after each level, or each step without a ladder, and the share
        of steps taken there, which is 1 unless they are ``adjusted``; images are in [-1, 1]."""
        levels = len(self.sigmas)
        steps = self._default_steps if steps is None else steps
        check_whole("steps", steps)
        check_flag("denoise", denoise)
        check_flag("adjusted", adjusted)
        # As wide as data of variance 1 blurred by the first level.
        start = float((1 + self.sigmas[0] ** 2).sqrt()) if levels else 1.0
        if step_size is None:
            if levels > 1:
                # Few steps are made long, for the variance to come right; many need not be, and their error is small.
                ratio = float(self.sigmas[0] / self.sigmas[1])
                step_size = best_step_size(ratio, steps) if self.images else 0.05
            else:
                step_size = self._stable_step(start)
        check_positive("step_size", step_size)
        x = start * randn(n, *self.hparams.shape, generator=generator, device=self.device)
        if levels > 1:
            way = annealed_langevin_steps(
                self, x, self.sigmas, steps, step_size, denoise, adjusted, generator=generator
            )
            moments, taken = zip(*tracked(way, "annealing", "level", total=levels), strict=True)
        else:
            way = langevin_steps(self._score_of_data, x, steps, step_size, adjusted, generator=generator)
            moments, taken = zip(*tracked(way, "Langevin", total=steps), strict=True)
            if levels and denoise:
                x = moments[-1]
                moments = (*moments[:-1], x + self.sigmas[-1] ** 2 * self._score_of_data(x))
        if not moments[-1].isfinite().all():
            raise UserError(
                f"a chain of step_size {step_size:.3g} has run off to infinity: take a smaller one, or noise levels "
                "nearer to the data's own size"
            )
        return list(moments), list(taken)

    @property
    def _default_steps(self) -> int:
        return (5 if self.images else 100) if len(self.sigmas) > 1 else 1000

    def _score_of_data(self, x: Tensor) -> Tensor:
        """s(x) of a model with one noise level or none."""
        return self(x, self.sigmas.expand(len(x)) if len(self.sigmas) else None)

    def _stable_step(self, start: float) -> float:
        # Of N(0, s^2 I) the mean square of the score is D / s^2. Fixed points, so that it is the same for every chunk.
        shape = (16 if self.images else 256, *self.hparams.shape)
        x = start * randn(*shape, generator=chunk_generator(0, 0), device=self.device)
        return 0.14 * x[0].numel() / max(1e-6, float(self._score_of_data(x).flatten(1).square().sum(1).mean()))

    # How its gradient can be estimated.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """The objective's own, and what estimates the same gradient otherwise.

        ``denoising`` has its own alone, named so. ``sliced`` has ``sliced`` and ``sliced_reduced``, with (v' s)^2 and
        with || s ||^2, at the model's number of projections, and up to 32 dimensions ``explicit``, by the exact trace;
        ``explicit`` has all three.
        """
        params = dict(self.named_parameters())

        def estimator(name: str, objective: str, reduced: bool | None = None) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                return self.losses(batch, noise, objective, reduced).mean()

            # Images go through a U-Net, whose memory order torch does not batch.
            noise = partial(self.noise, objective=objective)
            return GradientEstimator.of(self, name, params, noise, loss, batched=not self.images)

        if self.hparams.objective == "denoising":
            return {"denoising": estimator("denoising", "denoising")}
        found = [estimator("sliced_reduced", "sliced", True), estimator("sliced", "sliced", False)]
        if math.prod(self.hparams.shape) <= LARGEST_TRACE:
            found.append(estimator("explicit", "explicit"))
        return {e.name: e for e in found}
