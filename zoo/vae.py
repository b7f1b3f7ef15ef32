"""VAE: a latent variable model whose posterior is learnt by a second network.

Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, arXiv:1312.6114; seed 004 sec. 12.1, seed 003 (amortised
inference).

    p(z)        = N(0, I)
    p(x | z)    = prod_d Bernoulli(x_d | sigmoid(logits_d(z)))   or   N(x | mean(z), sigma^2 I)
    q(z | x)    = N(mu(x), diag exp(logvar(x)))
    L(x)        = E_q[ log p(x | z) ] - KL( q(z | x) || p(z) )  <=  log p(x)          eq. 3 (ELBO)
    z           = mu + exp(logvar / 2) eps,   eps ~ N(0, I)                           sec. 2.4 (re-parameterisation)

Symbols: x images in [0, 1], (B, 1, 28, 28), binary under the Bernoulli likelihood; z latents, (B, D); u uniform noise
that binarises pixels; eps standard normal noise.
Logged: {train,val,test}/loss = -ELBO, /nll = -E_q log p(x | z), /kl, all in nats per example.

Differs from the paper:
- Adam in place of Adagrad, its step decayed by half a cosine, and no weight decay (the paper's prior on theta); two
  hidden layers of rectified linear units by default in place of one of tanh, or convolutions.
- Binarisation is dynamic: a grey pixel is the probability of a one, drawn anew each time (Burda et al. 2015).
- The Gaussian likelihood has one learned variance for all pixels (Rybkin et al. 2021) in place of one for each, to
  which ``variance_floor`` is added: without it the density is unbounded where every pixel is reproduced exactly. Its
  means are linear in the last layer, in place of a sigmoid; only what ``decode`` returns is clipped to [0, 1].
- The score-function estimator, given for comparison, keeps the divergence in closed form; seed 003 has all of
  log p(x, z) - log q(z | x) in its score term, which has the same expectation.
- Seed 001 writes z = mu + x sigma^2 for the re-parameterisation; it is sigma, as above. Seed 003 prints the prior once
  as p(X) = N(X | 0, I); it is p(z).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn

from zoo.estimators import GradientEstimator, Noise, Params, call_with
from zoo.evaluation import importance_weighted_log_likelihood
from zoo.functional import kl_standard_normal, log_bernoulli, log_normal
from zoo.nets import ConvDecoder, ConvEncoder, mlp
from zoo.sampling import chunk_generator, rand, randn

PIXELS = 28 * 28
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def reparameterise(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z = mu + sigma eps, sec. 2.4: a draw of N(mu, diag exp(logvar)) that is differentiable in both; (..., D)."""
    return mu + (logvar / 2).exp() * eps


def binarise(x: Tensor, u: Tensor) -> Tensor:
    """Pixels that are 1 with probability ``x``, from uniform noise ``u`` in [0, 1); binary ones stay as they are."""
    return (u < x).to(x.dtype)


def negative_elbo(x: Tensor, eps: Tensor, encode: Callable, log_px: Callable) -> dict[str, Tensor]:
    """-L(x), eq. 10 with one draw of the noise and the divergence in closed form.

    Args:
        x: data as the likelihood wants them, (B, ...).
        eps: standard normal, (B, D).
        encode: x -> (mu, logvar) of q(z | x), (B, D) each.
        log_px: (x, z) -> log p(x | z), (B,).

    Returns:
        ``loss = nll + kl``, ``nll``, ``kl``: nats per example, (B,) each.
    """
    mu, logvar = encode(x)
    nll = -log_px(x, reparameterise(mu, logvar, eps))
    kl = kl_standard_normal(mu, logvar)
    return {"loss": nll + kl, "nll": nll, "kl": kl}


def score_function_surrogate(x: Tensor, eps: Tensor, encode: Callable, log_px: Callable) -> Tensor:
    """A scalar per example whose gradient is the score-function (REINFORCE) estimate of that of -L(x); (B,).

    The encoder's gradient of E_q[f(z)] is E_q[ f(z) grad log q(z | x) ] with f = -log p(x | z) (seed 000, 001 "score
    function estimator"; 003); the decoder's and the divergence's are exact given z, as in :func:`negative_elbo`.
    """
    mu, logvar = encode(x)
    z = reparameterise(mu, logvar, eps).detach()
    nll = -log_px(x, z)
    return nll + nll.detach() * log_normal(z, mu, logvar) + kl_standard_normal(mu, logvar)


def log_importance_weight(x: Tensor, eps: Tensor, encode: Callable, log_px: Callable) -> Tensor:
    """log w = log p(x | z) + log p(z) - log q(z | x) at z = mu + sigma eps; (B,) nats. E_q[w] = p(x)."""
    mu, logvar = encode(x)
    z = reparameterise(mu, logvar, eps)
    zero = torch.zeros_like(z)
    log_q = log_normal(eps, zero, zero) - logvar.sum(-1) / 2  # (z - mu) / sigma is eps, without its rounding
    return log_px(x, z) + log_normal(z, zero, zero) - log_q


class VAE(L.LightningModule):
    """The model, its training and its uses.

    Args:
        latent_dim: D.
        likelihood: ``bernoulli`` on dynamically binarised pixels, or ``gaussian`` on grey ones.
        net: ``mlp`` or ``conv``.
        hidden: widths of the hidden layers of the encoder, the decoder's in reverse (``mlp``); or one number, the
            channels of the first convolution (``conv``).
        activation: of the hidden layers, ``relu`` or ``tanh`` (``mlp``).
        lr: of Adam, decayed to zero by half a cosine over the run.
        variance_floor: added to the learned variance of the Gaussian likelihood, in squared pixel units (1 is white).

    Raises:
        ValueError: for a value outside these.
    """

    def __init__(
        self,
        latent_dim: int = 32,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        net: Literal["mlp", "conv"] = "mlp",
        hidden: Sequence[int] = (512, 512),
        activation: Literal["relu", "tanh"] = "relu",
        lr: float = 1e-3,
        variance_floor: float = 1e-3,
    ):
        super().__init__()
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(f"likelihood must be bernoulli or gaussian, got {likelihood!r}")
        if net not in ("mlp", "conv"):
            raise ValueError(f"net must be mlp or conv, got {net!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be relu or tanh, got {activation!r}")
        if not isinstance(latent_dim, int) or latent_dim < 1:
            raise ValueError(f"latent_dim must be a whole number of at least 1, got {latent_dim!r}")
        if isinstance(hidden, int | str) or not hidden or any(not isinstance(h, int) or h < 1 for h in hidden):
            raise ValueError(
                f"hidden must be a list of whole numbers of at least 1, such as [512, 512], got {hidden!r}"
            )
        if net == "conv" and len(hidden) != 1:
            raise ValueError(f"net=conv takes one number in hidden, its channels, such as [32], got {list(hidden)}")
        for key, value in {"lr": lr, "variance_floor": variance_floor}.items():
            if not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{key} must be a positive number, got {value!r}")
        hidden = list(hidden)
        self.save_hyperparameters()
        if net == "mlp":
            layers = lambda widths: mlp(widths, ACTIVATIONS[activation])  # noqa: E731
            self.encoder = nn.Sequential(nn.Flatten(), layers([PIXELS, *hidden, 2 * latent_dim]))
            self.decoder = nn.Sequential(layers([latent_dim, *hidden[::-1], PIXELS]), nn.Unflatten(-1, (1, 28, 28)))
        else:
            self.encoder = ConvEncoder(2 * latent_dim, width=hidden[0])
            self.decoder = ConvDecoder(latent_dim, width=hidden[0])
        if likelihood == "gaussian":
            self.log_variance = nn.Parameter(torch.tensor(math.log(0.05)))  # about the variance of a pixel of MNIST

    # The model: p(x | z) and q(z | x).

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``mu`` and ``logvar`` of q(z | x) for images ``x`` (B, 1, 28, 28); (B, D) each."""
        return self.encoder(x).chunk(2, dim=-1)

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x | z), clipped to [0, 1] where it is Gaussian: (..., D) to (..., 1, 28, 28)."""
        out = self.decoder(z)
        return out.sigmoid() if self.hparams.likelihood == "bernoulli" else out.clamp(0, 1)

    def log_px(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) in nats; ``x`` (..., 1, 28, 28) and ``z`` (..., D) to (...)."""
        out, x = self.decoder(z).flatten(-3), x.flatten(-3)
        if self.hparams.likelihood == "bernoulli":
            return log_bernoulli(x, out)
        logvar = (self.log_variance.exp() + self.hparams.variance_floor).log()
        return log_normal(x, out, logvar.expand(out.shape[-1]))

    # Training: everything random in one draw, then a plain function.

    def noise(self, batch, generator: torch.Generator | None = None) -> Noise:
        """``u`` to binarise with (B, 1, 28, 28) and ``eps`` (B, D)."""
        x = batch[0]
        return {
            "u": rand(*x.shape, generator=generator, device=x.device),
            "eps": randn(len(x), self.hparams.latent_dim, generator=generator, device=x.device),
        }

    def observe(self, x: Tensor, u: Tensor) -> Tensor:
        """Images in [0, 1] as the likelihood sees them: binarised with ``u``, or unchanged if it is Gaussian."""
        return binarise(x, u) if self.hparams.likelihood == "bernoulli" else x

    def loss(self, batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """``loss``, ``nll`` and ``kl``: means over the batch, nats per example."""
        noise = self.noise(batch, generator)
        terms = negative_elbo(self.observe(batch[0], noise["u"]), noise["eps"], self.encode, self.log_px)
        return {name: term.mean() for name, term in terms.items()}

    def training_step(self, batch, batch_idx):
        terms = self.loss(batch)
        self.log_dict({f"train/{k}": v for k, v in terms.items()}, prog_bar=True)
        return terms["loss"]

    def validation_step(self, batch, batch_idx, stage="val"):
        terms = self.loss(batch, chunk_generator(self.global_rank, batch_idx))  # the same noise in every epoch
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items()}, sync_dist=True, batch_size=len(batch[0]))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
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

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x | z) at the posterior mean z = mu(x): images in [0, 1], (B, 1, 28, 28)."""
        return self.decode(self.encode(x)[0])

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` latents from the prior and return the means of p(x | z), in [0, 1], (n, 1, 28, 28)."""
        return self.decode(randn(n, self.hparams.latent_dim, generator=generator, device=self.device))

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
        posterior = self.encode(x)

        def log_weight() -> Tensor:
            eps = randn(len(x), self.hparams.latent_dim, generator=generator, device=x.device)
            return log_importance_weight(x, eps, lambda _: posterior, self.log_px)

        return importance_weighted_log_likelihood(log_weight, num_samples)

    # How its gradient can be estimated.

    def probe_batch(self, batch, generator: torch.Generator | None = None):
        """``batch`` with its pixels binarised, so that what then varies between draws is Monte-Carlo noise alone."""
        x, *rest = batch
        return [self.observe(x, rand(*x.shape, generator=generator, device=x.device)), *rest]

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """``pathwise`` (what training uses) and ``score_function``, of the gradient of -ELBO, batch mean."""
        params = dict(self.named_parameters())

        def estimator(name: str, objective: Callable) -> GradientEstimator:
            def surrogate(params: Params, batch, noise: Noise) -> Tensor:
                x = self.observe(batch[0], noise["u"])
                return call_with(self, params, objective, x, noise["eps"], self.encode, self.log_px).mean()

            return GradientEstimator(name, params, self.noise, surrogate)

        estimators = [
            estimator("pathwise", lambda *args: negative_elbo(*args)["loss"]),
            estimator("score_function", score_function_surrogate),
        ]
        return {e.name: e for e in estimators}
