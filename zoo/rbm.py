"""RBM: binary images and binary features, an energy between them, and a likelihood that is known but for a constant.

Hinton, "Training Products of Experts by Minimizing Contrastive Divergence", 2002; Tieleman, "Training Restricted
Boltzmann Machines using Approximations to the Likelihood Gradient", 2008; Salakhutdinov & Murray, "On the Quantitative
Analysis of Deep Belief Networks", 2008; seed 003 (discrete latent variable models), seed 004 sec. 7.2 (Gibbs sampling).

    E(v, h)      = - b'v - c'h - v'W h,         p(v, h) = exp(-E(v, h)) / Z
    F(v)         = - log sum_h exp(-E(v, h)) = - b'v - sum_j softplus( c_j + (v'W)_j ),      p(v) = exp(-F(v)) / Z
    p(h_j=1 | v) = sigmoid( c_j + (v'W)_j ),    p(v_i=1 | h) = sigmoid( b_i + (W h)_i )
    - grad log p(v) = grad F(v) - E_{v' ~ p}[ grad F(v') ]

Neither layer has connections within itself, so that each is independent given the other: Gibbs sampling of a whole
layer at once is exact (zoo/functional/gibbs.py, energies in boltzmann.py beside it). Learning descends a difference of
free energies, mean F(v) - mean F(v'), whose gradient is that of -log p once v' is a draw of the model:

    cd      v' is k Gibbs steps away from the data                         (biased, low variance)
    pcd     v' is k Gibbs steps further along chains that go on            (biased only as far as they lag behind)
    exact   E_{v' ~ p} is enumerated: 2^n terms, n the smaller layer, at most 20 units

Symbols: v visible units, (B, V); h hidden units, (B, H); W (V, H); b visible bias, (V,); c hidden bias, (H,); u uniform
noise. Images are (B, 1, 28, 28) in [0, 1], and binarised here. Logged: train/loss, the difference above, which is about
zero and no measure of progress (for exact, -log p); {val,test}/loss = -log p(v) = F(v) + log Z, nats per example, log Z
by annealed importance sampling, or enumerated for a layer of at most 16 units; /log_partition, /pseudo_likelihood and
/reconstruction_error as in zoo/functional/partition.py; val/free_energy_gap = mean F of validation images - mean F of
1,000 training images that stay the same, nats: where it grows, the model overfits (Hinton 2010, sec. 6).

Differs from the papers:
- Weights are learnt in the centred form (Montavon & Müller 2012; Melchior et al. 2016), E = - b'(v - mu) - c'(h - 1/2)
  - (v - mu)'W(h - 1/2), mu the mean image: the same family, a better conditioned gradient. ``weights()`` gives W, b, c
  of the form above. ``centred=false`` learns those themselves.
- The learning rate falls by half a cosine; averaged weights are what is judged (``callbacks: ema``).
- The base-rate model of annealed importance sampling has biases from the data, smoothed by one image of each kind, and
  H hidden units of no weight.
- Of the persistent chains one in a thousand restarts at fair coins before each update (``restarts``), and log Z is
  estimated from both sides. The larger estimate counts: zoo/functional/partition.py says why.
"""

from functools import cache, partial
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from zoo.checks.capabilities import ANNEALED
from zoo.checks.errors import UserError
from zoo.checks.inputs import checks_inputs, data
from zoo.checks.old_forms import accepts_old_form, leads_on
from zoo.checks.pixels import flat_pixels, look_through
from zoo.checks.values import check_choice, check_not_negative, check_positive, check_schedule, check_share, check_whole
from zoo.estimators import GradientEstimator, Noise
from zoo.functional import gibbs, partition
from zoo.functional.boltzmann import Machine, Weights, free_energy
from zoo.functional.densities import at_least_float32, binarise
from zoo.functional.gibbs import Init
from zoo.functional.noise import chunk_generator, rand
from zoo.functional.partition import LogPartition, Partitions
from zoo.nets.description import described
from zoo.training.ranks import all_rows, exact_sum, gathered, shows_progress
from zoo.training.schedules import Schedule, at_epoch, half_cosine

PROBE = 1000  # training images that the free-energy gap compares with, and that chains can begin from
Generator = torch.Generator | None


@described
@leads_on(hidden_logits="machine.hidden_logits", visible_logits="machine.visible_logits")
@accepts_old_form("noise", "loss", "log_likelihood", "probe_batch")
@checks_inputs(x=data, v=data)
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
        UserError: for other values; in training, for pixels outside [0, 1], too few chains, or data of no datamodule.
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
        if h.learning == "exact":
            partition.check_enumerable(h.num_visible, h.num_hidden)
        self.W = nn.Parameter(0.01 * torch.randn(num_visible, num_hidden))
        self.b = nn.Parameter(torch.zeros(num_visible))
        self.c = nn.Parameter(torch.zeros(num_hidden))
        self.register_buffer("mu", torch.full((num_visible,), 0.5))  # the mean image, once training has seen it
        self.register_buffer("initialised", torch.tensor(False))
        # Hidden states of this process's persistent chains, (n, H), bool. Not a buffer: several processes would all get
        # the first one's, and averaged weights would average it.
        self.chains: Tensor | None = None
        self.probe: Tensor | None = None  # training images, (at most 1000, ...); the same on all processes
        self._log_partitions: Partitions = {}

    # The machine, and what of it images are.

    @property
    def machine(self) -> Machine:
        """What is learnt, in the form in which it is learnt; at least float32, since energies are large."""
        W, b, c, mu = map(at_least_float32, (self.W, self.b, self.c, self.mu))
        return Machine(W, b, c, mu if self.hparams.centred else None)

    def weights(self) -> Weights:
        """W, b and c of E = - b'v - c'h - v'W h, whichever form is learnt."""
        return self.machine.weights()

    def exact_log_partition(self) -> float:
        """log Z in nats by enumeration, in float64; a UserError where both layers have more than 20 units."""
        with torch.no_grad():
            return float(partition.exact_log_partition(partition.exact(self.weights())))

    def observe(self, x: Tensor, u: Tensor) -> Tensor:
        """Images in [0, 1], (B, ...), as binary vectors, (B, V): binarised with ``u``, or at 1/2."""
        x = flat_pixels(x, at_least_float32(self.b))
        return binarise(x, u.flatten(1)) if self.hparams.binarisation == "bernoulli" else (x > 0.5).to(x.dtype)

    @torch.no_grad()
    def transform(self, v: Tensor) -> Tensor:
        """Marginals p(h_j = 1 | v), (B, H), the features of images ``v`` in [0, 1], (B, 1, 28, 28) or (B, V).

        Grey pixels stand for their means. zoo.evaluation.features.Features is this as a scikit-learn transformer.

        Raises:
            UserError: for pixels outside [0, 1], or another number of them.
        """
        return self.machine.hidden_logits(flat_pixels(v, at_least_float32(self.b))).sigmoid()

    forward = transform

    @torch.no_grad()
    def most_probable_hidden(self, v: Tensor) -> Tensor:
        """arg max_h p(h | v), binary, (B, H); as :meth:`transform` otherwise. Each unit by itself, seed 003."""
        return (self.transform(v) > 0.5).float()

    @torch.no_grad()
    def free_energy(self, v: Tensor) -> Tensor:
        """F(v), (B,) nats, of binary ``v``; as :meth:`transform` otherwise."""
        return free_energy(flat_pixels(v, at_least_float32(self.b)), self.weights())

    # Training: everything random in one draw, then functions of it.

    def noise(
        self, batch, *, generator: Generator = None, learning: str | None = None, k: int | None = None, chains=None
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
                noise |= gibbs.restart_noise(chains, self.hparams.restarts, V, **drawn)
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
            return partition.exact_loss(v, self.weights()), None
        machine = self.machine
        if learning == "exact_samples":
            v_model = partition.exact_draw(noise["u_s"], noise["u_v"], machine.weights())
        else:
            v_model = gibbs.cd(v, noise, machine) if learning == "cd" else gibbs.pcd(noise, machine)
        difference, logits = machine.free_energy_difference(v, v_model)
        return difference, noise["u_h"][-1] < logits.detach().sigmoid() if learning == "pcd" else None

    def loss(self, batch, *, generator: Generator = None) -> dict[str, Tensor]:
        """``loss`` of :meth:`objective`, and ``free_energy``, mean F(v): nats. Persistent chains stay put."""
        noise = self.noise(batch, generator=generator)
        v = self.observe(batch[0], noise["u"])
        return {"loss": self.objective(v, noise, self.hparams.learning)[0], "free_energy": self.free_energy(v).mean()}

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
        h, trainer, world_size = self.hparams, self.trainer, self.trainer.world_size
        if h.num_chains < world_size:
            raise UserError(f"num_chains must be at least one for each of {world_size} processes, got {h.num_chains}")
        vectors = partial(flat_pixels, like=self.b) if h.binarisation == "bernoulli" else lambda x: self.observe(x, x)
        # A loader of its own: nothing else sees it.
        total, first = look_through(trainer.datamodule.train_dataloader(), vectors, max(1, PROBE // world_size))
        self.probe = all_rows(first.to(trainer.strategy.root_device), trainer)
        total = exact_sum(total, trainer)
        if not self.initialised:
            mean = (total[:-1] + 1) / (total[-1] + 2)
            self.mu.copy_(mean)
            self.b.copy_(mean.logit())  # each pixel is right on average, whatever the hidden units say
            self.initialised.fill_(True)
        if h.learning == "pcd":
            self.chains = gibbs.own_chains(self.chains, h.num_chains, h.num_hidden, trainer.global_rank, world_size)

    def _momentum(self, epoch: int) -> dict[str, Any]:
        value = at_epoch(self.hparams.momentum, epoch)
        return {"momentum": value} if self.hparams.optimiser == "sgd" else {"betas": (value, 0.999)}

    def on_train_epoch_start(self):
        for group in self.optimizers().param_groups:
            group.update(self._momentum(self.current_epoch))

    def all_chains(self) -> Tensor | None:
        """The chains of all processes in their order, (num_chains, H), on the CPU; None if there are none."""
        return None if self.chains is None else gathered(self.chains.cpu(), self._trainer)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "rbm"
        if self.hparams.learning == "pcd":
            checkpoint["chains"] = self.all_chains()

    def on_load_checkpoint(self, checkpoint):
        self.chains = checkpoint.get("chains")

    def configure_optimizers(self):
        h = self.hparams
        groups = [{"params": [self.W], "weight_decay": h.weight_decay}, {"params": [self.b, self.c]}]
        kind = torch.optim.SGD if h.optimiser == "sgd" else torch.optim.Adam
        optimiser = kind(groups, lr=h.lr, **self._momentum(0))
        steps = max(1, self.trainer.estimated_stepping_batches)  # infinite for max_epochs=-1
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: half_cosine(step, steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Validation and test.

    def on_validation_epoch_start(self):
        steps = partition.OF_SANITY_CHECK if self.trainer.sanity_checking else self.hparams.ais_temperatures
        self._log_partitions = self.log_partitions(steps, progress=shows_progress(self.trainer))

    def on_test_epoch_start(self):
        # Of some of the images no number is published: as few temperatures as in validation will do.
        steps = self.hparams.ais_temperatures if self.trainer.limit_test_batches != 1.0 else None
        self._log_partitions = self.log_partitions(steps, progress=shows_progress(self.trainer))

    def validation_step(self, batch, batch_idx, stage="val"):
        x, generator = batch[0], chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        with torch.autocast(x.device.type, enabled=False):  # F and log Z are large, and their sum is what is published
            v = self.observe(x, rand(*x.shape, generator=generator, device=x.device))
            terms = partition.validation_terms(v, self.machine, self._log_partitions, generator=generator)
            if stage == "val" and self.probe is not None:
                u = rand(*self.probe.shape, generator=chunk_generator(0, -1), device=self.probe.device)  # likewise
                of_training = self.free_energy(self.observe(self.probe, u)).mean()
                terms["free_energy_gap"] = terms["loss"] - terms["log_partition"] - of_training
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items()}, sync_dist=True, batch_size=len(x))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    # What it is for.

    log_likelihood_by = ANNEALED  # enumeration, for small layers, is the same number without its interval

    def log_partitions(self, steps: int | None = None, *, generator: Generator = None, progress=False) -> Partitions:
        """log Z in nats, ``exact`` or from both sides: see :func:`zoo.functional.partition.log_partitions`.

        ``steps`` are ``test_ais_temperatures`` if None. The noise is the same in every call if ``generator`` is None.
        """
        steps = self.hparams.test_ais_temperatures if steps is None else steps
        generator = chunk_generator(0, -2) if generator is None else generator
        chains, how = self.hparams.ais_chains, {"generator": generator, "progress": progress}
        return partition.log_partitions(self.weights(), self.mu, chains, steps, **how)

    def log_partition(self, steps: int | None = None, *, generator: Generator = None, progress=False) -> LogPartition:
        """The larger of :meth:`log_partitions`, with its interval of three standard errors."""
        return max(self.log_partitions(steps, generator=generator, progress=progress).values())

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, *, log_partition: float | LogPartition | None = None, y=None, generator: Generator = None
    ) -> Tensor:
        """log p(v) = - F(v) - log Z of images ``x`` in [0, 1], (B, 1, 28, 28), binarised here, once; (B,) nats.

        Args:
            log_partition: log Z, where it is known; that of :meth:`log_partition` if None, which takes its time.
            y: labels, which are not used.

        Raises:
            UserError: for pixels outside [0, 1].
        """
        v = self.observe(x, rand(*x.shape, generator=generator, device=x.device))
        log_Z = self.log_partition() if log_partition is None else log_partition
        return -self.free_energy(v) - (log_Z.estimate if isinstance(log_Z, LogPartition) else log_Z)

    @torch.no_grad()
    def sample(
        self, n: int, *, steps: int = 1000, init: Init = "noise", frames: int | None = None, generator: Generator = None
    ) -> Tensor:
        """Run ``n`` Gibbs chains and return p(v = 1 | h) at their end, or on their way.

        Args:
            steps: Gibbs steps, at least 1.
            init: where chains begin: at ``noise``, fair coins; at ``data``, training images drawn at random, while a
                model is in training; at ``chains``, persistent ones of this process; or at n images in [0, 1].
            frames: None, or how many steps of each chain to return, at least 2: the first is its beginning, the
                others are spread evenly on a logarithmic scale of steps, the last is its end.
            generator: of all noise; torch's own if None.

        Returns:
            (n, 1, 28, 28) in [0, 1]; with frames, (n, frames, 1, 28, 28).

        Raises:
            UserError: for values outside these, and for data or chains that there are not.
        """
        check_whole("steps", steps)
        shown, sources = gibbs.frame_steps(steps, frames), {"data": self.probe, "chains": self.chains}
        v = gibbs.beginning(init, n, self.machine, self.observe, **sources, generator=generator)
        found = gibbs.gibbs_frames(v, shown, self.machine, generator=generator).squeeze(1)  # where it is one frame
        return found.unflatten(-1, (1, 28, 28)) if self.hparams.num_visible == 28 * 28 else found

    # How its gradient can be estimated.

    def probe_batch(self, batch, *, generator: Generator = None):
        """``batch`` with its pixels binarised, so that what then varies between draws is the model's side alone."""
        x, *rest = batch
        return [self.observe(x, rand(*x.shape, generator=generator, device=x.device)).view_as(x), *rest]

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """``cd-1``, ``cd-10``; ``pcd`` of a model that learns by it; and for a layer of at most 16 units,
        ``exact_samples``, with as many v' as there are images drawn from p itself, and ``exact``, which has no noise.

        A draw of ``pcd`` begins at chains drawn with replacement from the persistent ones, as many as there are images;
        where there are none, as in published weights, from a hundred that ran for a thousand steps from noise.
        """
        params = dict(self.named_parameters())
        chains = self.all_chains() if self.hparams.learning == "pcd" else None
        pool = cache(lambda: gibbs.burnt_in(self.machine) if chains is None else chains)

        def estimator(name: str, learning: str, k: int) -> GradientEstimator:
            def noise(batch, *, generator: Generator = None) -> Noise:
                n, pcd = len(batch[0]), learning == "pcd"
                begin = gibbs.pick(pool(), n, self.machine, generator=generator) if pcd else None
                return self.noise(batch, generator=generator, learning=learning, k=k, chains=begin)

            def loss(batch, noise: Noise) -> Tensor:
                return self.objective(self.observe(batch[0], noise["u"]), noise, learning)[0]

            return GradientEstimator.of(self, name, params, noise, loss)

        kinds = {"cd-1": ("cd", 1), "cd-10": ("cd", 10)}
        kinds |= {"pcd": ("pcd", 1)} if self.hparams.learning == "pcd" else {}
        kinds |= {kind: (kind, 1) for kind in ("exact_samples", "exact") if partition.quick(self.weights())}
        return {name: estimator(name, *kind) for name, kind in kinds.items()}
