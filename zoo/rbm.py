"""RBM: binary images and binary features, an energy between them, and a likelihood that is known but for a constant.

Hinton, "Training Products of Experts by Minimizing Contrastive Divergence", 2002; Tieleman, "Training Restricted
Boltzmann Machines using Approximations to the Likelihood Gradient", 2008; Salakhutdinov & Murray, "On the Quantitative
Analysis of Deep Belief Networks", 2008; seed 003 (discrete latent variable models), seed 004 sec. 7.2 (Gibbs sampling).

    E(v, h)      = - b'v - c'h - v'W h,         p(v, h) = exp(-E(v, h)) / Z
    F(v)         = - log sum_h exp(-E(v, h)) = - b'v - sum_j softplus( c_j + (v'W)_j ),      p(v) = exp(-F(v)) / Z
    p(h_j=1 | v) = sigmoid( c_j + (v'W)_j ),    p(v_i=1 | h) = sigmoid( b_i + (W h)_i )
    - grad log p(v) = grad F(v) - E_{v' ~ p}[ grad F(v') ]

Neither layer has connections within itself, so that each is independent given the other: marginals of h given v, its
most probable value, and Gibbs sampling of a whole layer at once are exact. Learning descends a difference of free
energies, mean F(v) - mean F(v'), whose gradient is that of -log p once v' is a draw of the model:

    cd      v' is k Gibbs steps away from the data                         (biased, low variance)
    pcd     v' is k Gibbs steps further along chains that go on            (biased only as far as they lag behind)
    exact   E_{v' ~ p} is enumerated: 2^n terms, n the smaller layer, at most 20 units

Symbols: v visible units, (B, V); h hidden units, (B, H); W (V, H); b visible bias, (V,); c hidden bias, (H,); u uniform
noise. Images are (B, 1, 28, 28) in [0, 1], and binarised here. Logged: train/loss, the difference above, which is about
zero and no measure of progress (for exact, -log p); {val,test}/loss = -log p(v) = F(v) + log Z, nats per example, with
{val,test}/log_partition of annealed importance sampling (_low, _high: three standard errors; _base_rate, _coins: from
two beginnings, of which it is the larger), or enumerated for a layer of at most 16 units; /pseudo_likelihood =
sum_i log p(v_i | all other pixels), nats, estimated from ten pixels of each image (a standard error of about 1.3 nats
on 10,000 images); /reconstruction_error, squared pixels per image; val/free_energy_gap = mean F of validation images -
mean F of 1,000 training images that stay the same, nats: where it grows, the model overfits (Hinton 2010, sec. 6).

Differs from the papers:
- Weights are learnt in the centred form (Montavon & Müller 2012; Melchior et al. 2016), E = - b'(v - mu) - c'(h - 1/2)
  - (v - mu)'W(h - 1/2), mu the mean image: the same family, a better conditioned gradient. ``weights()`` gives W, b, c
  of the form above. ``centred=false`` learns those themselves.
- The learning rate falls by half a cosine; averaged weights are what is judged (``callbacks: ema``).
- The base-rate model of annealed importance sampling has biases from the data, smoothed by one image of each kind, and
  H hidden units of no weight.
- Of the persistent chains one in a thousand begins anew at fair coins before each update (``restarts``). Chains that
  never do, all of them near the data, let mass gather far from the data, unseen by them and by annealed importance
  sampling from the mean image: after 300 epochs of MNIST without restarts, log Z was 1,043 from there, and 1,091 from
  fair coins. So log Z is estimated from both, and the larger one counts.
- Chains are kept as hidden states, which saves a product per step.
"""

import math
from functools import cache
from typing import Literal

import lightning as L
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checks.errors import UserError
from zoo.checks.pixels import check_pixels
from zoo.checks.values import check_choice, check_not_negative, check_positive, check_schedule, check_share, check_whole
from zoo.estimators import GradientEstimator, Noise, Params, call_with, with_gradient
from zoo.functional.boltzmann import (
    ENUMERABLE,
    Weights,
    ais_log_partition,
    draw,
    exact_draw,
    exact_log_partition,
    exact_statistics,
    free_energy,
    gibbs,
    hidden_logits,
    pseudo_log_likelihood,
    visible_logits,
)
from zoo.functional.densities import binarise
from zoo.functional.importance import LogPartition
from zoo.functional.noise import chunk_generator, rand

PROBE = 1000  # training images that the free-energy gap compares with, and that chains can begin from
AT_ONCE = 16  # units up to which log Z is enumerated without being asked: seconds, where a million states are minutes
PIXELS_FLIPPED = 10  # of each image, for its pseudo-likelihood while a model is validated


def frame_steps(steps: int, frames: int | None) -> list[int]:
    """The steps at which a chain of ``steps`` is shown: its end alone, or ``frames`` from 0 on, ever further apart.

    Raises:
        UserError: for fewer than two frames, or more than there are steps.
    """
    if frames is None:
        return [steps]
    check_whole("frames", frames, least=2)
    if frames > steps + 1:
        raise UserError(
            f"a chain of {steps} steps has at most {steps + 1} frames, its beginning included; got {frames}"
        )
    # Whole numbers near a geometric series from 1 to steps, each above the one before.
    shown = [0]
    for i in range(frames - 1):
        place = round(steps ** (i / (frames - 2))) if frames > 2 else steps
        shown.append(max(place, shown[-1] + 1))
    return shown


Schedule = float | list[list[float]]


def at_epoch(schedule: Schedule, epoch: int) -> float:
    """The value of a schedule at an epoch, counted from 0: a number, or ``[[0, a], [10, b]]``: a, and b from 10 on."""
    if not isinstance(schedule, list | tuple):
        return schedule
    return [value for first, value in schedule if first <= epoch][-1]


def interleave(parts: list[Tensor]) -> Tensor:
    """What processes hold in turns, row i with process i mod n, as one: of ``[x[r::n] for r in range(n)]`` x."""
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


class RBM(L.LightningModule):
    """The model, its training and its uses.

    Args:
        num_hidden: H.
        num_visible: V; 784 for images, other sizes for vectors.
        learning: ``cd``, ``pcd`` or ``exact``, for one layer of at most 20 units (seconds per step beyond 16).
        k: Gibbs steps per update, or a schedule of epochs: ``[[0, 1], [20, 5]]`` is 1 for 20 epochs, then 5.
        num_chains: persistent chains, over all processes, at least one for each (``pcd``).
        restarts: probability that a persistent chain begins anew, at fair coins, before an update; at least 0, below 1.
        binarisation: ``bernoulli``: a pixel is 1 with its grey value as probability, drawn anew at each use; or
            ``threshold``: where it is above 1/2. Their likelihoods do not compare.
        centred: learn in the centred form.
        optimiser: ``sgd`` or ``adam``.
        lr: learning rate, decayed to zero by half a cosine over the run.
        momentum: at least 0, below 1, or a schedule of epochs (Adam's beta_1).
        weight_decay: of W alone, at least 0.
        ais_chains: of annealed importance sampling.
        ais_temperatures: its steps at each validation.
        test_ais_temperatures: its steps in the test, whose log Z is published.

    Raises:
        UserError: for a value outside these; at the start of training, for pixels outside [0, 1], more processes than
            chains, or data that are no datamodule.
    """

    def __init__(
        self,
        num_hidden: int = 500,
        num_visible: int = 784,
        learning: Literal["cd", "pcd", "exact"] = "pcd",
        k: int | list[list[int]] = 1,
        num_chains: int = 100,
        restarts: float = 0.001,
        binarisation: Literal["bernoulli", "threshold"] = "bernoulli",
        centred: bool = True,
        optimiser: Literal["sgd", "adam"] = "sgd",
        lr: float = 0.1,
        momentum: Schedule = 0.0,
        weight_decay: float = 0.0,
        ais_chains: int = 100,
        ais_temperatures: int = 1000,
        test_ais_temperatures: int = 14_500,
    ):
        super().__init__()
        self.save_hyperparameters()
        self._check()
        self.W = nn.Parameter(0.01 * torch.randn(num_visible, num_hidden))
        self.b = nn.Parameter(torch.zeros(num_visible))
        self.c = nn.Parameter(torch.zeros(num_hidden))
        self.register_buffer("mu", torch.full((num_visible,), 0.5))  # the mean image, once training has seen it
        self.register_buffer("initialised", torch.tensor(False))
        # Hidden states of this process's persistent chains, (n, H), bool. Not a buffer: several processes would all get
        # the first one's, and averaged weights would average it.
        self.chains: Tensor | None = None
        self.probe: Tensor | None = None  # training images, (at most 1000, ...); the same on all processes
        self._log_partitions: dict[str, LogPartition] = {}

    def _check(self) -> None:
        h = self.hparams
        check_choice("learning", h.learning, ("cd", "pcd", "exact"))
        check_choice("binarisation", h.binarisation, ("bernoulli", "threshold"))
        check_choice("optimiser", h.optimiser, ("sgd", "adam"))
        for key in ("num_hidden", "num_visible", "num_chains", "ais_temperatures", "test_ais_temperatures"):
            check_whole(key, h[key])
        check_whole("ais_chains", h.ais_chains, least=2)
        check_schedule("k", h.k, check_whole)
        check_schedule("momentum", h.momentum, check_share)
        check_share("restarts", h.restarts)
        check_positive("lr", h.lr)
        check_not_negative("weight_decay", h.weight_decay)
        if not isinstance(h.centred, bool):
            raise UserError(f"centred must be true or false, got {h.centred!r}")
        if h.learning == "exact" and not self.enumerable:
            raise UserError(
                f"learning=exact enumerates the smaller layer, which may have at most {ENUMERABLE} units; got "
                f"num_visible={h.num_visible} and num_hidden={h.num_hidden}"
            )

    @property
    def enumerable(self) -> bool:
        """Whether log Z can be enumerated: one layer has at most 20 units."""
        return min(self.hparams.num_visible, self.hparams.num_hidden) <= ENUMERABLE

    @property
    def quick(self) -> bool:
        """Whether it is enumerated without being asked: one layer has at most 16 units."""
        return min(self.hparams.num_visible, self.hparams.num_hidden) <= AT_ONCE

    def weights(self) -> Weights:
        """W, b and c of E = - b'v - c'h - v'W h, whichever form is learnt."""
        if not self.hparams.centred:
            return Weights(self.W, self.b, self.c)
        with torch.autocast(self.W.device.type, enabled=False):  # hundreds of terms, of which 16 bits lose too much
            return Weights(self.W, self.b - self.W.sum(1) / 2, self.c - self.W.T @ self.mu)

    # What the two layers say of each other.

    def hidden_logits(self, v: Tensor) -> Tensor:
        """log odds of h_j = 1 given v, (B, V) to (B, H): c + (v - mu)'W in the centred form, the same in either."""
        return hidden_logits(v - self.mu if self.hparams.centred else v, Weights(self.W, self.b, self.c))

    def visible_logits(self, h: Tensor) -> Tensor:
        """log odds of v_i = 1 given h, (B, H) to (B, V): b + W(h - 1/2) in the centred form, the same in either."""
        return visible_logits(h - 0.5 if self.hparams.centred else h, Weights(self.W, self.b, self.c))

    def observe(self, x: Tensor, u: Tensor) -> Tensor:
        """Images in [0, 1], (B, ...), as binary vectors, (B, V): binarised with ``u``, or at 1/2."""
        x = self._flat(x)
        return binarise(x, u.flatten(1)) if self.hparams.binarisation == "bernoulli" else (x > 0.5).to(x.dtype)

    def _flat(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1:].numel() != self.hparams.num_visible:
            raise UserError(
                f"images must have {self.hparams.num_visible} pixels each, such as (B, 1, 28, 28) for 784; got "
                f"{tuple(x.shape)}"
            )
        return x.flatten(1).to(self.W.dtype)

    def _images(self, v: Tensor) -> Tensor:
        return v.unflatten(-1, (1, 28, 28)) if self.hparams.num_visible == 28 * 28 else v

    @torch.no_grad()
    def transform(self, v: Tensor) -> Tensor:
        """Marginals p(h_j = 1 | v), (B, H), the features of images ``v`` in [0, 1], (B, 1, 28, 28) or (B, V).

        Grey pixels stand for their means. zoo.evaluation.features.Features is this as a scikit-learn transformer.

        Raises:
            UserError: for pixels outside [0, 1], or another number of them.
        """
        check_pixels(v)
        return self.hidden_logits(self._flat(v)).sigmoid()

    @torch.no_grad()
    def most_probable_hidden(self, v: Tensor) -> Tensor:
        """arg max_h p(h | v), binary, (B, H); as :meth:`transform` otherwise. Each unit by itself, seed 003."""
        return (self.transform(v) > 0.5).float()

    @torch.no_grad()
    def free_energy(self, v: Tensor) -> Tensor:
        """F(v), (B,) nats, of binary ``v``, (B, 1, 28, 28) or (B, V).

        Raises:
            UserError: for pixels outside [0, 1].
        """
        check_pixels(v)
        return free_energy(self._flat(v), self.weights())

    # Training: everything random in one draw, then functions of it.

    def noise(
        self,
        batch,
        generator: torch.Generator | None = None,
        learning: str | None = None,
        k: int | None = None,
        chains: Tensor | None = None,
    ) -> Noise:
        """All that one step draws: ``u`` (B, ...) binarises; ``u_v`` and ``u_h`` (k, n, ...) move the chains.

        ``h`` (n, H) is where persistent chains stand: at ``chains``, or the model's own if None, of which those in
        ``restart`` (n,) begin anew with ``u_0`` (m, V) and ``u_1`` (m, H); where there are none, at fair coins.
        """
        x, drawn = batch[0], {"generator": generator, "device": batch[0].device}
        learning = learning or self.hparams.learning
        k = k or at_epoch(self.hparams.k, self.current_epoch if self._trainer is not None else 0)
        V, H, n = self.hparams.num_visible, self.hparams.num_hidden, len(x)
        noise = {"u": rand(*x.shape, **drawn)}
        if learning == "exact":
            return noise
        if learning == "exact_samples":
            return noise | {"u_s": rand(n, **drawn), "u_v": rand(n, V, **drawn)}
        if learning == "pcd":
            if chains is None and self.chains is not None:
                chains = self.chains.to(x.device)
                noise["restart"] = rand(len(chains), **drawn) < self.hparams.restarts
                m = int(noise["restart"].sum())
                noise |= {"u_0": rand(m, V, **drawn), "u_1": rand(m, H, **drawn)}
            noise["h"] = rand(n, H, **drawn) < 0.5 if chains is None else chains
            n = len(noise["h"])
        return noise | {"u_v": rand(k, n, V, **drawn), "u_h": rand(k, n, H, **drawn)}

    def objective(self, v: Tensor, noise: Noise, learning: str) -> tuple[Tensor, Tensor | None]:
        """What is descended, and where persistent chains stand after it.

        Args:
            v: binary, (B, V).
            noise: of :meth:`noise` for the same ``learning``.
            learning: ``cd``, ``pcd``, ``exact``; or ``exact_samples``, v' drawn by enumeration, as many as v.

        Returns:
            mean F(v) - mean F(v'), whose gradient is the estimate of that of -log p; () nats. For ``exact`` -log p.
            h of the chains, (n, H), bool; None for what is not ``pcd``.
        """
        if learning == "exact":
            with torch.autocast(v.device.type, enabled=False):
                weights = self.weights()
                log_Z, statistics = exact_statistics(Weights(*(t.detach() for t in weights)))
                linear = sum((t * s).sum() for t, s in zip(weights, statistics, strict=True))
                return free_energy(v, weights).mean() + with_gradient(log_Z.to(v.dtype), linear), None
        with torch.no_grad():
            if learning == "exact_samples":
                v_model = exact_draw(noise["u_s"], noise["u_v"], self.weights())
            elif learning == "cd":
                h = draw(self.hidden_logits(v), noise["u_h"][0])
                v_model = gibbs(h, noise["u_v"], noise["u_h"][1:], self.visible_logits, self.hidden_logits)
            else:
                h = noise["h"].to(v.dtype)
                if len(noise.get("u_0", ())):
                    coins = (noise["u_0"] < 0.5).to(v.dtype)
                    h[noise["restart"]] = draw(self.hidden_logits(coins), noise["u_1"])
                v_model = gibbs(h, noise["u_v"], noise["u_h"], self.visible_logits, self.hidden_logits)
        difference, logits = self.free_energy_difference(v, v_model)
        return difference, noise["u_h"][-1] < logits.detach().sigmoid() if learning == "pcd" else None

    def free_energy_difference(self, v: Tensor, v_model: Tensor) -> tuple[Tensor, Tensor]:
        """mean F(v) - mean F(v'), as a function of what is learnt; () nats. And log odds of h given v', (n, H).

        In the centred form F(v) = - b'v - sum_j ( softplus(a_j) - a_j / 2 ) + a constant, which the difference loses; a
        are the log odds of h. Both batches go through one product, so that autograd has half the nodes to walk.
        """
        logits = self.hidden_logits(torch.cat([v, v_model]))
        of_hidden = F.softplus(logits).sum(-1)
        if self.hparams.centred:
            of_hidden = of_hidden - logits.sum(-1) / 2
        sign = torch.cat([torch.full_like(x[:, 0], s / len(x)) for x, s in ((v, 1), (v_model, -1))])
        difference = -((v.mean(0) - v_model.mean(0)) * self.b).sum() - (sign * of_hidden).sum()
        return difference, logits[len(v) :]

    def loss(self, batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """``loss`` of :meth:`objective`, and ``free_energy``, mean F(v): nats. Persistent chains stay put."""
        noise = self.noise(batch, generator)
        v = self.observe(batch[0], noise["u"])
        loss, _ = self.objective(v, noise, self.hparams.learning)
        return {"loss": loss, "free_energy": self.free_energy(v).mean()}

    def training_step(self, batch, batch_idx):
        noise = self.noise(batch)
        loss, h = self.objective(self.observe(batch[0], noise["u"]), noise, self.hparams.learning)
        if h is not None:
            self.chains = h
        n = self.trainer.log_every_n_steps
        if n and (self.trainer.fit_loop.total_batch_idx + 1) % n == 0:
            self.log("train/loss", loss, prog_bar=True)  # at every step it would cost a tenth of one
        return loss

    @torch.no_grad()
    def on_fit_start(self):
        if self.trainer.datamodule is None:
            raise UserError("RBM is trained with fit(model, datamodule=...): it asks for the mean of the images first")
        strategy, world_size = self.trainer.strategy, self.trainer.world_size
        if self.hparams.num_chains < world_size:
            raise UserError(
                f"num_chains must be at least one for each of {world_size} processes, got {self.hparams.num_chains}"
            )
        total, first = torch.zeros(self.hparams.num_visible + 1, dtype=torch.float64), []
        for x, *_ in self.trainer.datamodule.train_dataloader():  # one of its own: nothing else sees it
            check_pixels(x)
            x = x.cpu()
            v = self._flat(x) if self.hparams.binarisation == "bernoulli" else self.observe(x, x)
            total += torch.cat([v.double().sum(0), torch.tensor([len(v)])])
            if sum(map(len, first)) < PROBE // world_size:
                first.append(x)
        self.probe = torch.cat(first)[: max(1, PROBE // world_size)].to(strategy.root_device)
        if world_size > 1:
            total = strategy.reduce(total.to(strategy.root_device), reduce_op="sum").cpu()
            fewest = strategy.reduce(torch.tensor(len(self.probe), device=strategy.root_device), reduce_op="min")
            self.probe = strategy.all_gather(self.probe[: int(fewest)]).transpose(0, 1).flatten(0, 1)
        if not self.initialised:
            mean = (total[:-1] + 1) / (total[-1] + 2)
            self.mu.copy_(mean)
            # Each pixel right on average, whatever the hidden units say, which at first is nothing.
            self.b.copy_(mean.logit())
            self.initialised.fill_(True)
        if self.hparams.learning == "pcd":
            if self.chains is None:
                coins = chunk_generator(torch.initial_seed(), -4)
                self.chains = torch.rand(self.hparams.num_chains, self.hparams.num_hidden, generator=coins) < 0.5
            if len(self.chains) == self.hparams.num_chains:  # all of them: this process takes its own
                self.chains = self.chains[self.trainer.global_rank :: world_size]

    def on_train_epoch_start(self):
        momentum = at_epoch(self.hparams.momentum, self.current_epoch)
        for group in self.optimizers().param_groups:
            if self.hparams.optimiser == "sgd":
                group["momentum"] = momentum
            else:
                group["betas"] = (momentum, group["betas"][1])

    def all_chains(self) -> Tensor | None:
        """The chains of all processes in their order, (num_chains, H), on the CPU; None if there are none."""
        if self.chains is None or self._trainer is None or self.trainer.world_size == 1:
            return None if self.chains is None else self.chains.cpu()
        parts = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, self.chains.cpu())
        return interleave(parts)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "rbm"
        if self.hparams.learning == "pcd":
            checkpoint["chains"] = self.all_chains()

    def on_load_checkpoint(self, checkpoint):
        self.chains = checkpoint.get("chains")

    def configure_optimizers(self):
        h = self.hparams
        momentum = at_epoch(h.momentum, 0)
        groups = [
            {"params": [self.W], "weight_decay": h.weight_decay},
            {"params": [self.b, self.c], "weight_decay": 0.0},
        ]
        if h.optimiser == "sgd":
            optimiser = torch.optim.SGD(groups, lr=h.lr, momentum=momentum)
        else:
            optimiser = torch.optim.Adam(groups, lr=h.lr, betas=(momentum, 0.999))
        steps = max(1, self.trainer.estimated_stepping_batches)  # infinite for max_epochs=-1
        half_cosine = lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))  # noqa: E731
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, half_cosine)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Validation and test.

    def on_validation_epoch_start(self):
        steps = 10 if self.trainer.sanity_checking else self.hparams.ais_temperatures
        self._log_partitions = self.log_partitions(steps)

    def on_test_epoch_start(self):
        # Of some of the images no number is published: as few temperatures as in validation will do.
        whole = self.trainer.limit_test_batches == 1.0
        steps = self.hparams.test_ais_temperatures if whole else self.hparams.ais_temperatures
        self._log_partitions = self.log_partitions(steps, progress=True)

    def validation_step(self, batch, batch_idx, stage="val"):
        x, generator = batch[0], chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        with torch.autocast(x.device.type, enabled=False):  # F and log Z are large, and their sum is what is published
            terms = self.validation_terms(x, generator)
            if stage == "val" and self.probe is not None:
                terms["free_energy_gap"] = terms["loss"] - terms["log_partition"] - self._probe_free_energy()
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items()}, sync_dist=True, batch_size=len(x))

    def validation_terms(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """What validation and test log of a batch of images, means over the batch, and the estimates of log Z."""
        weights = self.weights()
        uniform = lambda *shape: rand(*shape, generator=generator, device=x.device)  # noqa: E731
        v = self.observe(x, uniform(*x.shape))
        logits = hidden_logits(v, weights)
        free = free_energy(v, weights, logits)
        h = draw(logits, uniform(*logits.shape))
        pixels = (uniform(len(v), PIXELS_FLIPPED) * v.shape[-1]).long()
        largest = max(self._log_partitions.values())
        estimates = {"log_partition": largest.estimate}
        estimates |= {"log_partition_low": largest.low, "log_partition_high": largest.high}
        if len(self._log_partitions) > 1:
            estimates |= {f"log_partition_{k}": z.estimate for k, z in self._log_partitions.items()}
        return {
            "loss": free.mean() + largest.estimate,
            "pseudo_likelihood": pseudo_log_likelihood(v, weights, pixels).mean(),
            "reconstruction_error": (v - self.visible_logits(h).sigmoid()).square().sum(-1).mean(),
        } | {k: torch.tensor(value, device=x.device) for k, value in estimates.items()}

    def _probe_free_energy(self) -> Tensor:
        """Mean free energy of the training images that stay the same, with noise that stays the same."""
        u = rand(*self.probe.shape, generator=chunk_generator(0, -1), device=self.probe.device)
        return self.free_energy(self.observe(self.probe, u)).mean()

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    # What it is for.

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(x)

    @torch.no_grad()
    def log_partitions(
        self, steps: int | None = None, *, generator: torch.Generator | None = None, progress: bool = False
    ) -> dict[str, LogPartition]:
        """log Z in nats: ``exact`` where a layer has at most 16 units, else by annealed importance sampling, twice.

        Chains begin at the mean image (``base_rate``), as Salakhutdinov & Murray do, and at fair coins (``coins``). The
        mean of the weights is Z for either, and falls short of it where no chain finds what holds most of the mass: the
        larger estimate is the nearer one. Where ``coins`` is far above ``base_rate``, the model has put its mass where
        no data are, and a likelihood from the mean image alone would be an illusion.

        Args:
            steps: temperatures, ``test_ais_temperatures`` if None; the chains are ``ais_chains``, for each beginning.
            generator: of its noise; one of its own, the same in every call, if None.
            progress: show a bar.
        """
        if self.quick:
            return {"exact": LogPartition(*[self.exact_log_partition()] * 3)}
        steps = self.hparams.test_ais_temperatures if steps is None else steps
        check_whole("steps", steps)
        generator = chunk_generator(0, -2) if generator is None else generator
        weights, mu = Weights(*(t.float() for t in self.weights())), self.mu.float()
        return {
            name: ais_log_partition(weights, base, self.hparams.ais_chains, steps, generator, progress)
            for name, base in (("base_rate", mu.logit()), ("coins", torch.zeros_like(mu)))
        }

    def log_partition(
        self, steps: int | None = None, *, generator: torch.Generator | None = None, progress: bool = False
    ) -> LogPartition:
        """The larger of :meth:`log_partitions`, with its interval of three standard errors."""
        return max(self.log_partitions(steps, generator=generator, progress=progress).values())

    @torch.no_grad()
    def exact_log_partition(self) -> float:
        """log Z in nats by enumeration, in float64.

        Raises:
            UserError: where both layers have more than 20 units.
        """
        return float(exact_log_partition(Weights(*(t.double() for t in self.weights()))))

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, log_partition: float | LogPartition | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """log p(v) = - F(v) - log Z of images ``x`` in [0, 1], (B, 1, 28, 28), binarised here, once; (B,) nats.

        Args:
            log_partition: log Z, where it is known; that of :meth:`log_partition` if None, which takes its time.

        Raises:
            UserError: for pixels outside [0, 1].
        """
        check_pixels(x)
        v = self.observe(x, rand(*x.shape, generator=generator, device=x.device))
        log_Z = self.log_partition() if log_partition is None else log_partition
        return -self.free_energy(v) - (log_Z.estimate if isinstance(log_Z, LogPartition) else log_Z)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        steps: int = 1000,
        init: str | Tensor | list[Tensor] = "noise",
        frames: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Run ``n`` Gibbs chains and return p(v = 1 | h) at their end, or on their way.

        Args:
            steps: Gibbs steps, at least 1.
            init: where chains begin: at ``noise``, fair coins; at ``data``, training images drawn at random, while a
                model is in training; at ``chains``, persistent ones of this process, drawn at random; or at images in
                [0, 1], n of them, binarised.
            generator: of all noise; torch's own if None.
            frames: None, or how many moments of each chain to return, at least 2: the first is its beginning, the
                others are spread evenly on a logarithmic scale of steps, the last is its end.

        Returns:
            (n, 1, 28, 28) in [0, 1]; with frames, (n, frames, 1, 28, 28).

        Raises:
            UserError: for values outside these, and for data or chains that there are not.
        """
        check_whole("steps", steps)
        shown = frame_steps(steps, frames)
        uniform = lambda *shape: rand(*shape, generator=generator, device=self.device)  # noqa: E731
        first = self._beginning(init, n, generator, uniform)
        h = draw(self.hidden_logits(first), uniform(n, self.hparams.num_hidden))
        found = [first] if 0 in shown else []
        for step in range(1, steps + 1):
            logits = self.visible_logits(h)
            if step in shown:
                found.append(logits.sigmoid())
            if step < steps:
                v = draw(logits, uniform(n, self.hparams.num_visible))
                h = draw(self.hidden_logits(v), uniform(n, self.hparams.num_hidden))
        return self._images(found[0] if frames is None else torch.stack(found, dim=1))

    def _beginning(self, init, n: int, generator, uniform) -> Tensor:
        """Binary v at which ``n`` chains begin, (n, V)."""
        V = self.hparams.num_visible
        if isinstance(init, str):
            check_choice("init, where it is a word,", init, ("noise", "data", "chains"))
            if init == "noise":
                return (uniform(n, V) < 0.5).to(self.W.dtype)
            if init == "chains":
                h = self._pick(self.chains, n, generator, "persistent chains, which training checkpoints of pcd have")
                return draw(self.visible_logits(h), uniform(n, V))
            images = self._pick(
                self.probe,
                n,
                generator,
                "training images outside training: give images, or on the command line --images mnist",
            )
        else:
            whole = isinstance(init, Tensor) or (isinstance(init, list) and all(isinstance(x, Tensor) for x in init))
            if not whole or len(init) != n:
                raise UserError(f"init must be noise, data, chains or images, one tensor per chain, got {init!r:.80}")
            images = (torch.stack(init) if isinstance(init, list) else init).to(self.device)
            check_pixels(images)
        return self.observe(images, uniform(*images.shape))

    def _pick(self, source: Tensor | None, n: int, generator, what: str) -> Tensor:
        if source is None:
            raise UserError(f"there are no {what}")
        return source[(rand(n, generator=generator, device=torch.device("cpu")) * len(source)).long()].to(
            self.device, self.W.dtype
        )

    # How its gradient can be estimated.

    def probe_batch(self, batch, generator: torch.Generator | None = None):
        """``batch`` with its pixels binarised, so that what then varies between draws is the model's side alone."""
        x, *rest = batch
        return [self.observe(x, rand(*x.shape, generator=generator, device=x.device)).view_as(x), *rest]

    @torch.no_grad()
    def burnt_in(self) -> Tensor:
        """Hidden states of a hundred chains, a thousand Gibbs steps away from noise; (100, H), 0 or 1."""
        generator = chunk_generator(0, -3)
        uniform = lambda n: rand(100, n, generator=generator, device=self.device)  # noqa: E731
        means = self.sample(100, steps=1000, generator=generator).flatten(1)
        v = (uniform(self.hparams.num_visible) < means).to(means.dtype)
        return draw(self.hidden_logits(v), uniform(self.hparams.num_hidden))

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """``cd-1``, ``cd-10``; ``pcd`` of a model that learns by it; and for a layer of at most 16 units,
        ``exact_samples``, with as many v' as there are images drawn from p itself, and ``exact``, which has no noise.

        A draw of ``pcd`` begins at chains drawn with replacement from the persistent ones, as many as there are images;
        where there are none, as in published weights, from a hundred that ran for a thousand steps from noise.
        """
        params = dict(self.named_parameters())
        chains = self.all_chains() if self.hparams.learning == "pcd" else None

        @cache
        def pool() -> Tensor:
            return self.burnt_in() if chains is None else chains

        def estimator(name: str, learning: str, k: int = 1) -> GradientEstimator:
            def noise(batch, generator: torch.Generator | None = None) -> Noise:
                begin = None
                if learning == "pcd":
                    begin = self._pick(pool(), len(batch[0]), generator, "chains")
                return self.noise(batch, generator, learning, k, begin)

            def surrogate(params: Params, batch, noise: Noise) -> Tensor:
                v = self.observe(batch[0], noise["u"])
                return call_with(self, params, lambda: self.objective(v, noise, learning)[0])

            return GradientEstimator(name, params, noise, surrogate)

        found = [estimator("cd-1", "cd"), estimator("cd-10", "cd", 10)]
        if self.hparams.learning == "pcd":
            found.append(estimator("pcd", "pcd"))
        if self.quick:
            found += [estimator("exact_samples", "exact_samples"), estimator("exact", "exact")]
        return {e.name: e for e in found}
