"""Score model: a network that estimates the gradient of the log density of data. Langevin dynamics draws samples.

Papers:
- Explicit: Hyvärinen 2005. Denoising: Vincent 2011. Sliced: Song, Garg, Shi & Ermon 2019, arXiv:1905.07088.
- NCSN (noise levels, annealed Langevin dynamics): Song & Ermon 2019, arXiv:1907.05600, and 2020, arXiv:2006.09011.
- Lecture notes: [DSL 14.6]. docs/references.md explains the keys in brackets.

    J(s)       = 1/2 E_p || s(x) - grad log p(x) ||^2                      [DSL eq. 14.53]
               = E_p[ tr(grad s(x)) + 1/2 || s(x) ||^2 ] + const           NCSN eq. 1          explicit_loss
    J_sliced   = E_p E_v[ v' grad s(x) v + 1/2 (v' s(x))^2 ] + const       Song et al. 2019    sliced_loss
    J_reduced  = E_p E_v[ v' grad s(x) v ] + 1/2 E_p || s(x) ||^2 + const  SSM-VR, NCSN eq. 3  sliced_loss
    J_sigma    = 1/2 E_x E_eps || s(x + sigma eps, sigma) + eps / sigma ||^2 + const    NCSN eq. 5    denoising_loss
    L(s)       = 1/L sum_i w(sigma_i) J_{sigma_i}(s) over L noise levels   NCSN eq. 6          Score.losses
    x'         = x + (e / 2) s(x) + sqrt(e) z,  with z ~ N(0, I)           NCSN eq. 4          langevin_sample

J is the Fisher divergence. J_sliced and J_reduced equal J. J_sigma is J for p convolved with N(0, sigma^2 I). The
constants do not depend on s. x' is one step of Langevin dynamics. With noise levels, all objectives learn the score of
p convolved with N(0, sigma^2 I). Without noise levels, explicit (J) and sliced learn the score of p. Denoising
(J_sigma) needs noise levels.

zoo/functional/ has the objectives (score_matching.py), Langevin dynamics (langevin.py) and guidance (guidance.py). The
networks are in zoo/nets/unet.py. [DSL eq. 14.54] to [DSL eq. 14.62] derive the explicit form in one dimension. In D
dimensions, a trace takes the place of the derivative.

Symbols:
    x        points (B, D), or images (B, C, H, W) scaled to [-1, 1]
    y        labels of a class-conditional model, (B,)
    sigma    noise level of each example, (B,); ``sigmas`` (L,) has all levels, from large to small
    p        density of the data
    s        score that the model learns, in the shape of x
    v        random direction with covariance I, in the shape of x
    eps      standard normal noise in the shape of x

Logged as train/loss, val/loss and test/loss: the weighted objective per dimension, without its constant. The losses
explicit and sliced can be negative.

Differs from the papers:
- With the network F, s(x, sigma) = -x / (1 + sigma^2) + F(x / sqrt(1 + sigma^2), sigma) / (sigma sqrt(1 + sigma^2)).
  See Karras et al. 2022, arXiv:2206.00364, table 1, sigma_data = 1. The first term is the exact score if the data are
  N(0, I). The papers have s = F / sigma or s = F. Without noise levels, s(x) = F(x).
- By default w(sigma) = sigma^2 (1 + sigma^2), which weights the error of F equally at every level (Karras et al. 2022).
  ``weights=ncsn`` is the papers' sigma^2.
- U-Net, learning rate and moving average are as in zoo/ddpm.py. The papers' networks are much larger. The levels go
  from 10 to 0.05 for images in [-1, 1]. In the 2019 paper, ten levels go from 1 to 0.01 for images in [0, 1]. Images
  are drawn by consistent annealed sampling (Jolicoeur-Martineau et al. 2020, arXiv:2009.05475). Without it, technique 4
  of the 2020 paper sets their step size. As in the 2020 paper, a last step removes noise.
- The entries of v are +1 or -1 (Rademacher). No other independent entries give v' grad s(x) v a smaller variance.
- With ``num_classes``, s also takes the label y. Labels and guidance are as in zoo/ddpm.py.
"""

import math
from collections.abc import Sequence
from functools import partial

import lightning as L
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.checks import inputs
from zoo.checks.errors import UserError
from zoo.checks.labels import Labels, as_labels, check_classes
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_choice, check_flag, check_integer, check_not_negative, check_positive, check_widths
from zoo.estimators import GradientEstimator, Noise
from zoo.functional import langevin
from zoo.functional.densities import at_least_float32
from zoo.functional.guidance import draw_labels, guided, network_labels, with_dropped
from zoo.functional.noise import chunk_generator, rand, randn
from zoo.functional.precision import keep_float32
from zoo.functional.progress import tracked
from zoo.functional.score_matching import denoising_loss, explicit_loss, sliced_loss
from zoo.nets.description import described
from zoo.nets.unet import PointNet, UNet, check_unet
from zoo.training.optimisers import with_half_cosine

OBJECTIVES = ("denoising", "sliced", "explicit")
WEIGHTS = ("edm", "ncsn")
LARGEST_TRACE = 32  # most dimensions for which ``explicit`` is allowed; each takes one backward pass


@described
@accepts_old_form("noise", "loss", "chains", labels="y")
@inputs.checks_inputs(x=inputs.data, sigma=inputs.positive)
@keep_float32("sigmas")
class Score(L.LightningModule):
    """Score model of images or points, trained by denoising, sliced or explicit score matching.

    Args:
        shape: Shape of one example: [C, H, W] for images, [D] for points.
        objective: ``denoising``, ``sliced`` or ``explicit``. ``explicit`` allows at most 32 dimensions.
        sigma_max: The largest noise level, in the units of the points, or of images in [-1, 1].
        sigma_min: The smallest noise level, in the same units.
        num_sigmas: L. With 1, the only level is ``sigma_min``. 0 means no noise and is not allowed for ``denoising``.
        weights: Weights of the levels: ``edm`` or ``ncsn``.
        projections: M, directions per example for ``sliced``.
        variance_reduced: Whether ``sliced`` replaces (v' s)^2 by || s ||^2.
        hidden: Widths of the hidden layers of the network for points.
        widths: Channels of the levels of the U-Net for images, multiples of 8.
        blocks: Residual blocks per level.
        patch: Side of the pixel blocks that are folded into channels.
        lr: Adam's learning rate, which decays to 0 along half a cosine over the run.
        warmup: Optimiser steps of a linear warm-up, which multiplies the cosine decay.
        num_classes: Number of classes, or None to train without labels.
        label_dropout: Fraction of labels that training drops. The model then also learns to predict without labels.
        attention: Levels of the U-Net with self-attention after each residual block, counted from 0, the highest
            resolution. The middle of the U-Net always has it.
        dropout: Dropout rate of the U-Net's residual blocks.

    Raises:
        UserError: If an argument has a value that is not allowed.
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
        num_classes: int | None = None,
        label_dropout: float = 0.1,
        attention: Sequence[int] = (),
        dropout: float = 0.0,
    ):
        super().__init__()
        check_widths("shape", shape, (1, 28, 28))
        check_widths("hidden", hidden, (128, 128))
        self.images = len(shape) == 3
        if not self.images and len(shape) != 1:
            raise UserError(f"shape must be [C, H, W] for images or [D] for points, got {list(shape)}")
        check_unet(widths, blocks, patch, attention, dropout, shape if self.images else None)
        shape, hidden, widths, attention = list(shape), list(hidden), list(widths), list(attention)
        check_choice("objective", objective, OBJECTIVES)
        sigmas = langevin.noise_levels(sigma_max, sigma_min, num_sigmas).float()
        if objective == "denoising" and num_sigmas == 0:
            raise UserError("num_sigmas must be at least 1 for objective=denoising, got 0")
        check_choice("weights", weights, WEIGHTS)
        check_integer("projections", projections)
        check_flag("variance_reduced", variance_reduced)
        if objective == "explicit" and math.prod(shape) > LARGEST_TRACE:
            raise UserError(
                f"shape {shape} has {math.prod(shape)} dimensions, and objective=explicit allows at most "
                f"{LARGEST_TRACE}: use sliced or denoising"
            )
        check_positive("lr", lr)
        check_integer("warmup", warmup, least=0)
        check_classes(num_classes, label_dropout)
        self.save_hyperparameters()
        self.register_buffer("sigmas", sigmas, persistent=False)  # not saved: the hyperparameters determine it
        if self.images:
            net = UNet(shape[0], widths, blocks, patch, num_classes, attention, dropout)
            self.net = net.to(memory_format=torch.channels_last)
        else:
            self.net = PointNet(shape[0], hidden, num_classes)

    @property
    def num_steps(self) -> int:
        """Number of noise levels L."""
        return len(self.sigmas)

    @inputs.takes(x=inputs.noisy, y=inputs.network_labels)
    def forward(self, x: Tensor, sigma: Tensor | None = None, y: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """Return s(x, sigma), (B, ...), the learned score of p convolved with N(0, sigma^2 I).

        Args:
            x: Points, or images in [-1, 1], (B, ...).
            sigma: Noise levels, (B,). A model without noise levels ignores them.
            y: Labels, (B,), for the score of p(x | y). Without them, the result is the score of p(x).
            guidance: Weight w of (1 + w) s(x | y) - w s(x), which takes two evaluations of the network.
        """
        if sigma is None and len(self.sigmas):
            raise UserError("sigma is missing, and this model has noise levels: give sigma, (B,)")
        return guided(partial(self._score, x, sigma), y, guidance)

    def _score(self, x: Tensor, sigma: Tensor | None, y: Tensor | None) -> Tensor:
        y = network_labels(y, x, self.hparams.num_classes, self.hparams.label_dropout)
        if sigma is None or not len(self.sigmas):
            return at_least_float32(self.net(x, torch.zeros(len(x), device=x.device), y))
        # The network takes log sigma, scaled to 0 at sigma_min and 1000 at max(sigma_max, 2 sigma_min).
        low, high = math.log(self.hparams.sigma_min), math.log(max(self.hparams.sigma_max, 2 * self.hparams.sigma_min))
        t = (sigma.log() - low) / (high - low) * 1000
        sigma = sigma.view(-1, *[1] * (x.ndim - 1))
        scale = (1 + sigma**2).sqrt()
        return at_least_float32(self.net(x / scale, t, y)) / (sigma * scale) - x / scale**2

    # Training: noise() draws all random numbers but those of dropout. losses() is a deterministic function of them.

    def noise(self, batch, *, generator: torch.Generator | None = None, objective: str | None = None) -> Noise:
        """Return ``level`` (B,), 0 .. L-1, and ``eps`` (B, ...), both if L > 0.

        ``sliced`` adds ``v`` (B, M, ...). A model with labels adds ``u`` (B,).
        """
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
        if self.hparams.num_classes is not None:
            noise["u"] = rand(len(x), generator=generator, device=x.device)
        return noise

    def losses(self, batch, noise: Noise, objective: str | None = None, reduced: bool | None = None) -> Tensor:
        """Return the weighted objective of each example, divided by the number of dimensions, (B,)."""
        objective = self.hparams.objective if objective is None else objective
        x = 2 * batch[0] - 1 if self.images else batch[0]
        y, classes, weight = None, self.hparams.num_classes, 1.0
        if classes is not None:
            y = as_labels(inputs.labels_in(batch, self), len(x), classes, self.device)
            y = with_dropped(y, noise["u"], self.hparams.label_dropout, classes)
        score = partial(self, y=y)
        if len(self.sigmas):
            sigma = self.sigmas[noise["level"]]
            weight = sigma**2 * (1 + sigma**2 if self.hparams.weights == "edm" else 1)
            score = partial(score, sigma=sigma)
            if objective == "denoising":
                return weight * denoising_loss(x, sigma, noise["eps"], score) / x[0].numel()  # L(s)
            x = x + sigma.view(-1, *[1] * (x.ndim - 1)) * noise["eps"]
        with sdpa_kernel(SDPBackend.MATH):  # the attention backend that allows second derivatives
            if objective == "explicit":
                return weight * explicit_loss(x, score) / x[0].numel()
            reduced = self.hparams.variance_reduced if reduced is None else reduced
            return weight * sliced_loss(x, noise["v"], score, reduced) / x[0].numel()

    def loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return ``loss``, the mean objective per dimension, for a batch of images in [0, 1] or points, (B, ...)."""
        return {"loss": self.losses(batch, self.noise(batch, generator=generator)).mean()}

    def graph_key(self) -> None:
        """Return None: all training steps have the same operations."""

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
        return with_half_cosine(optimiser, self.trainer, self.hparams.warmup)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "score"

    # Use of a trained model.

    def rows(self) -> tuple[str, list[int]] | None:
        """Return "y" and all labels, one for each row of a picture of samples. Return None if there are no labels."""
        classes = self.hparams.num_classes
        return None if classes is None else ("y", list(range(classes)))

    @inputs.takes(y=None)  # y may also be the string "dropped"
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
        consistent: bool | None = None,
        frames: int | None = None,
        y: Labels | str | None = None,
        guidance: float = 0.0,
    ) -> Tensor:
        """Draw ``n`` samples by Langevin dynamics, annealed if there are at least two noise levels.

        Args:
            steps: Langevin steps at each level, by default 2 for images and 100 for points. With one level or none, the
                default is 1000 steps in total.
            step_size: e / sigma^2, where e is the step size of zoo/functional/langevin.py. The default is 0.05 for
                points without ``consistent``, and :func:`best_step_size` otherwise. With one level or none,
                ``step_size`` is e, by default :func:`stable_step_size` at initial states.
            denoise: Whether a last step removes the noise of the last level. Without noise levels, it has no effect.
            adjusted: Whether to accept or reject each step by Metropolis-Hastings, which takes four or five more
                evaluations of the score per step (:func:`metropolis_langevin_sample`).
            consistent: Whether each step adds so much noise that the noise in x is sigma again, as in
                :func:`annealed_langevin_steps`. None means true for images with several levels unless ``adjusted``.
            frames: Number of evenly spaced states of each chain to return, at least 2. The result is (n, frames, ...),
                and the last state is the sample. None returns only the sample.
            y: For a model with ``num_classes``: one label for all samples, one label for each, None to draw labels, or
                ``dropped`` to sample without labels. The noise does not depend on ``y``.
            guidance: Guidance weight w, at least 0. With 0, samples come from the conditional model.

        Returns:
            Images (n, C, H, W) in [0, 1], or points (n, D).

        Raises:
            UserError: If an argument has a value that is not allowed, or if a chain becomes NaN or infinite.
        """
        steps = self._default_steps if steps is None else steps
        check_integer("steps", steps)
        shown = langevin.frame_numbers(frames, len(self.sigmas) if len(self.sigmas) > 1 else steps)
        how = {"denoise": denoise, "adjusted": adjusted, "consistent": consistent, "y": y, "guidance": guidance}
        states, _ = self.chains(n, steps=steps, step_size=step_size, generator=generator, **how)
        x = states[-1] if frames is None else torch.stack([states[k] for k in shown], 1)
        return (x / 2 + 0.5).clamp(0, 1) if self.images else x

    @inputs.takes(y=None)
    @torch.no_grad()
    def chains(
        self,
        n: int,
        *,
        steps: int | None = None,
        step_size: float | None = None,
        denoise: bool = True,
        adjusted: bool = False,
        consistent: bool | None = None,
        y: Labels | str | None = None,
        guidance: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Tensor], list[float]]:
        """Return two lists: the states of the ``n`` chains of :meth:`sample`, and the fractions of accepted steps.

        With several levels, both lists have one entry for each level. With one level or none, both have one per step.
        Images are in [-1, 1]. The fractions are 1 unless ``adjusted`` is true.
        """
        levels = len(self.sigmas)
        steps = self._default_steps if steps is None else steps
        check_integer("steps", steps)
        consistent = self.images and levels > 1 and not adjusted if consistent is None else consistent
        for name, flag in (("denoise", denoise), ("adjusted", adjusted), ("consistent", consistent)):
            check_flag(name, flag)
        if consistent and levels < 2:
            raise UserError(f"consistent=True needs two noise levels or more, and this model has {levels}")
        check_not_negative("guidance", guidance)
        # Standard deviation of the initial states: data of variance 1 with the noise of the first level.
        start = float((1 + self.sigmas[0] ** 2).sqrt()) if levels else 1.0
        step_size = self._default_step_size(steps, consistent, start) if step_size is None else step_size
        check_positive("step_size", step_size)
        x = start * randn(n, *self.hparams.shape, generator=generator, device=self.device)
        y = draw_labels(y, n, self.hparams.num_classes, guidance, generator=generator, device=self.device)
        score, how = partial(self, y=y, guidance=guidance), {"adjusted": adjusted, "generator": generator}
        if levels > 1:
            how |= {"denoise": denoise, "consistent": consistent}
            run = langevin.annealed_langevin_steps(score, x, self.sigmas, steps, step_size, **how)
            states, taken = zip(*tracked(run, "annealing", "level", total=levels), strict=True)
        else:
            score = partial(score, sigma=self.sigmas.expand(n) if levels else None)
            run = langevin.langevin_steps(score, x, steps, step_size, **how)
            states, taken = zip(*tracked(run, "Langevin", total=steps), strict=True)
            if levels and denoise:
                x = states[-1]
                states = (*states[:-1], x + self.sigmas[-1] ** 2 * score(x))
        if not states[-1].isfinite().all():
            raise UserError(
                f"a chain became NaN or infinite with step_size={step_size:.3g} and {guidance=}: use smaller values, "
                "or noise levels closer to the scale of the data"
            )
        return list(states), list(taken)

    @property
    def _default_steps(self) -> int:
        return (2 if self.images else 100) if len(self.sigmas) > 1 else 1000

    def _default_step_size(self, steps: int, consistent: bool, start: float) -> float:
        if len(self.sigmas) > 1:
            # Images take few steps, and need larger steps. Points take many steps, and 0.05 has little bias.
            best = langevin.best_step_size(langevin.largest_ratio(self.sigmas), steps, consistent=consistent)
            return best if self.images or consistent else 0.05
        # The states x have a fixed seed, and their labels are all labels in turn. All calls use the same step size.
        shape = (16 if self.images else 256, *self.hparams.shape)
        x = start * randn(*shape, generator=chunk_generator(0, 0), device=self.device)
        classes, sigma = self.hparams.num_classes, self.sigmas.expand(len(x)) if len(self.sigmas) else None
        y = None if classes is None else torch.arange(len(x), device=self.device) % classes
        return langevin.stable_step_size(partial(self, sigma=sigma, y=y), x)

    # Gradient estimators.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return the gradient estimators by name. All have the same expected gradient as the model's objective.

        A ``denoising`` model has only ``denoising``. Other models have ``sliced`` with (v' s)^2 and ``sliced_reduced``
        with || s ||^2, both with M = ``projections`` directions. Up to 32 dimensions, they also have ``explicit``.
        """
        params = dict(self.named_parameters())

        def estimator(name: str, objective: str, reduced: bool | None = None) -> GradientEstimator:
            def loss(batch, noise: Noise) -> Tensor:
                return self.losses(batch, noise, objective, reduced).mean()

            noise = partial(self.noise, objective=objective)
            # torch.func.vmap does not support the U-Net's memory format, channels_last.
            return GradientEstimator.of(self, name, params, noise, loss, batched=not self.images)

        if self.hparams.objective == "denoising":
            return {"denoising": estimator("denoising", "denoising")}
        found = [estimator("sliced_reduced", "sliced", True), estimator("sliced", "sliced", False)]
        if math.prod(self.hparams.shape) <= LARGEST_TRACE:
            found.append(estimator("explicit", "explicit"))
        return {e.name: e for e in found}
