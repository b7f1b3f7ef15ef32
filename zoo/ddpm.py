"""DDPM: a Markov chain of small Gaussian denoising steps.

Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239; seed 004 ch. 14. Implicit
sampling: Song, Meng & Ermon, "Denoising Diffusion Implicit Models", 2021, arXiv:2010.02502.

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)                              eq. 2,  seed 14.1
    q(x_t | x_0)     = N(sqrt(abar_t) x_0, (1 - abar_t) I),  abar_t = prod_s (1 - beta_s)  eq. 4,  seed 14.11
    L_simple         = E_{t, x_0, eps} || eps - eps_theta(x_t, t) ||^2                     eq. 14, seed algorithm 6
    x_{t-1}          = mean of q(x_{t-1} | x_t, x0_hat) + sigma_t z                        algorithm 2, seed algorithm 7

Symbols: x0, xt images in [-1, 1], (B, 1, 28, 28); t step index, (B,), 0 .. T-1, where 0 is one step of noise (the
paper's t = 1); betas, abar (T,); eps standard normal noise; x0_hat = (x_t - sqrt(1 - abar_t) eps_theta) / sqrt(abar_t).
Logged: {train,val,test}/loss, L_simple averaged over dimensions as well (1 is what predicting zero gives).

Differs from the paper:
- The schedule is the paper's at T = 1000 and is rescaled for other T, to end at about the same noise: log abar_T is
  -10.1 at T = 1000, -10.4 at 200 and -11.8 at 50.
- sigma_t^2 is the posterior variance (the paper's second choice, sec. 3.2), and x0_hat is clipped to [-1, 1] at every
  step, as the authors' code does. Seed 004's algorithm 7 multiplies z by the variance and adds noise at the last step
  too; it is the standard deviation, and none.
- The U-Net is small and works on 2 x 2 patches of 28 x 28 images without padding, for speed on a CPU; it has no dropout
  and attends at the lowest resolution only. Learning rate 1e-3 (2e-4 in the paper), batches of 32 (128):
  more and larger steps, for runs of minutes.
- The exponential moving average has decay 0.999 (0.9999) and warms up (callbacks/ema.py).
- L_0's discrete decoder (sec. 3.3) is not there, since L_simple does not need it.
- DDIM's steps run evenly from T-1 to 0, both included, and x0_hat is clipped there too, eps following it.
- Seed 004's eq. 14.43 has abar_t for alpha_t in its first factor, q(x_t | x_{t-1}); the step below is by eq. 14.45.
"""

from collections.abc import Callable, Sequence

import lightning as L
import torch
from torch import Tensor
from tqdm.auto import tqdm

from zoo.estimators import GradientEstimator, Noise, Params, call_with
from zoo.nets import UNet
from zoo.sampling import chunk_generator, randn


def linear_betas(steps: int) -> Tensor:
    """Noise variances beta_t of sec. 4, 1e-4 to 0.02 at T = 1000, times 1000 / T elsewhere; (T,), float64.

    Raises:
        ValueError: for 20 steps or fewer, where the last variance would reach 1.
    """
    if steps <= 20:
        raise ValueError(f"the linear schedule needs more than 20 steps to keep every beta_t below 1, got {steps}")
    return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)


def q_sample(x0: Tensor, t: Tensor, eps: Tensor, abar: Tensor) -> Tensor:
    """Draw x_t ~ q(x_t | x_0), eq. 4, from the given standard normal ``eps`` (same shape as ``x0``)."""
    a = abar[t].view(-1, *[1] * (x0.ndim - 1))
    return a.sqrt() * x0 + (1 - a).sqrt() * eps


def simple_loss(x0: Tensor, t: Tensor, eps: Tensor, abar: Tensor, eps_model: Callable) -> Tensor:
    """L_simple, eq. 14, per example and averaged over dimensions; (B,)."""
    return (eps - eps_model(q_sample(x0, t, eps, abar), t)).square().flatten(1).mean(1)


def predict_x0(xt: Tensor, eps: Tensor, abar_t: Tensor, clip: bool) -> Tensor:
    """x0_hat = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t), eq. 15; clipped to [-1, 1] on request."""
    x0 = (xt - (1 - abar_t).sqrt() * eps) / abar_t.sqrt()
    return x0.clamp(-1, 1) if clip else x0


def _progress(steps, name: str):
    return tqdm(steps, desc=name, unit="step", delay=3, leave=False, disable=None)


@torch.no_grad()
def ancestral_sample(
    eps_model: Callable, x: Tensor, betas: Tensor, generator: torch.Generator | None = None, clip: bool = True
) -> Tensor:
    """Algorithm 2: run the reverse chain from noise ``x`` at t = T-1 down to t = 0, with the posterior variance.

    Args:
        eps_model: (x_t, t) -> predicted noise, of x_t's shape; t is (B,), 0 .. T-1.
        x: standard normal, (B, ...).
        betas: (T,).
        clip: keep x0_hat in [-1, 1]; without it the mean is eq. 11 exactly.

    Returns:
        x_0, (B, ...).
    """
    alphas = 1 - betas
    abar = alphas.cumprod(0)
    abar_prev = torch.cat([abar.new_ones(1), abar[:-1]])
    sigma2 = betas * (1 - abar_prev) / (1 - abar)  # eq. 7; 0 at t = 0
    for i in _progress(list(reversed(range(len(betas)))), "ancestral sampling"):
        t = torch.full((len(x),), i, device=x.device)
        x0 = predict_x0(x, eps_model(x, t), abar[i], clip)
        # The mean of q(x_{t-1} | x_t, x0), eq. 7 and seed 14.45.
        x = (abar_prev[i].sqrt() * betas[i] * x0 + alphas[i].sqrt() * (1 - abar_prev[i]) * x) / (1 - abar[i])
        if i > 0:
            x = x + sigma2[i].sqrt() * randn(*x.shape, generator=generator, device=x.device).to(x.dtype)
    return x


@torch.no_grad()
def ddim_sample(
    eps_model: Callable,
    x: Tensor,
    betas: Tensor,
    num_steps: int = 50,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    clip: bool = True,
) -> Tensor:
    """DDIM, eq. 12 of Song et al. 2021, on ``num_steps`` evenly spread steps of the chain that ends in its last.

    ``eta`` = 0 is deterministic given ``x``; ``eta`` = 1 with all T steps is :func:`ancestral_sample`.

    Args:
        eps_model, x, betas, clip: as for :func:`ancestral_sample`.
        num_steps: 1 to T.
        eta: noise put back in, 0 to 1, in units of the posterior's standard deviation.

    Raises:
        ValueError: for ``num_steps`` or ``eta`` outside these.
    """
    T = len(betas)
    if not isinstance(num_steps, int) or not 1 <= num_steps <= T:
        raise ValueError(f"num_steps must be a whole number between 1 and the model's {T} steps, got {num_steps!r}")
    if not isinstance(eta, int | float) or not 0 <= eta <= 1:
        raise ValueError(f"eta must be a number between 0 and 1, got {eta!r}")
    abar = (1 - betas).cumprod(0)
    taus = torch.linspace(T - 1, 0, num_steps, dtype=torch.float64).round().long().tolist()
    for i, i_prev in _progress(list(zip(taus, [*taus[1:], None], strict=True)), "DDIM sampling"):
        a, a_prev = abar[i], abar.new_ones(()) if i_prev is None else abar[i_prev]
        t = torch.full((len(x),), i, device=x.device)
        eps = eps_model(x, t)
        x0 = predict_x0(x, eps, a, clip)
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()  # the noise that goes with x0 where clipping changed it
        sigma = eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)).sqrt()  # eq. 16
        x = a_prev.sqrt() * x0 + (1 - a_prev - sigma**2).clamp(min=0).sqrt() * eps
        if eta > 0 and i_prev is not None:
            x = x + sigma * randn(*x.shape, generator=generator, device=x.device).to(x.dtype)
    return x


class DDPM(L.LightningModule):
    """The model, its training and its uses.

    Args:
        steps: T, more than 20.
        widths: channels of the U-Net's levels, multiples of 8.
        blocks: residual blocks per level.
        patch: pixels folded into channels, per side.
        lr: of Adam, reached after ``warmup`` steps.
        warmup: optimiser steps over which the learning rate rises linearly.

    Raises:
        ValueError: for a value outside these.
    """

    def __init__(
        self,
        steps: int = 1000,
        widths: Sequence[int] = (48, 96),
        blocks: int = 2,
        patch: int = 2,
        lr: float = 1e-3,
        warmup: int = 200,
    ):
        super().__init__()
        if not isinstance(lr, int | float) or not lr > 0:
            raise ValueError(f"lr must be a positive number, got {lr!r}")
        if not isinstance(warmup, int) or warmup < 0:
            raise ValueError(f"warmup must be a whole number of steps, 0 or more, got {warmup!r}")
        if not isinstance(steps, int):
            raise ValueError(f"steps must be a whole number, got {steps!r}")
        widths = list(widths)
        self.save_hyperparameters()
        betas = linear_betas(steps)  # float64 until here
        # Functions of the hyperparameters, so they stay out of checkpoints and published weights.
        self.register_buffer("betas", betas.float(), persistent=False)
        self.register_buffer("abar", (1 - betas).cumprod(0).float(), persistent=False)
        self.net = UNet(1, widths, blocks, patch).to(memory_format=torch.channels_last)
        if 28 % self.net.multiple:
            raise ValueError(
                f"28 pixels do not divide by patch * 2^(levels - 1) = {self.net.multiple}: take fewer widths or "
                "another patch"
            )

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        """eps_theta(x_t, t): the noise in ``xt`` (B, 1, 28, 28) at steps ``t`` (B,), 0 .. T-1."""
        return self.net(xt, t).float()

    # Training: everything random in one draw, then a plain function.

    def noise(self, batch, generator: torch.Generator | None = None) -> Noise:
        """``t`` (B,), uniform over the steps, and ``eps`` (B, 1, 28, 28)."""
        x = batch[0]
        where = x.device if generator is None else generator.device
        return {
            "t": torch.randint(self.hparams.steps, (len(x),), generator=generator, device=where).to(x.device),
            "eps": randn(*x.shape, generator=generator, device=x.device),
        }

    def loss(self, batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """``loss``: L_simple for images in [0, 1], (B, 1, 28, 28), averaged over batch and dimensions."""
        noise = self.noise(batch, generator)
        return {"loss": simple_loss(2 * batch[0] - 1, noise["t"], noise["eps"], self.abar, self).mean()}

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)["loss"]
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx, stage="val"):
        loss = self.loss(batch, chunk_generator(self.global_rank, batch_idx))["loss"]  # the same noise in every epoch
        self.log(f"{stage}/loss", loss, sync_dist=True, batch_size=len(batch[0]), prog_bar=True)

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        warmup = self.hparams.warmup
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / max(1, warmup)))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "ddpm"

    # What it is for.

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator | None = None, num_steps: int | None = 50, eta: float = 0.0
    ) -> Tensor:
        """Draw ``n`` images in [0, 1], (n, 1, 28, 28).

        Args:
            num_steps: of DDIM, 1 to T; None runs the whole chain by ancestral sampling.
            eta: DDIM's noise, 0 to 1.
        """
        x = randn(n, 1, 28, 28, generator=generator, device=self.device)
        if num_steps is None:
            x = ancestral_sample(self, x, self.betas, generator)
        else:
            x = ddim_sample(self, x, self.betas, num_steps, eta, generator)
        return (x / 2 + 0.5).clamp(0, 1)

    # How its gradient can be estimated.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """``uniform``: one uniform step t and one eps per example, algorithm 1; of the gradient of L_simple."""

        def surrogate(params: Params, batch, noise: Noise) -> Tensor:
            return call_with(
                self, params, simple_loss, 2 * batch[0] - 1, noise["t"], noise["eps"], self.abar, self
            ).mean()

        return {"uniform": GradientEstimator("uniform", dict(self.named_parameters()), self.noise, surrogate)}
