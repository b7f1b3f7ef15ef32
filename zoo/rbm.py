"""RBM: a restricted Boltzmann machine, an energy-based model of binary or grey images with binary hidden units.

Hinton, "Training Products of Experts by Minimizing Contrastive Divergence", 2002. Tieleman, "Training Restricted
Boltzmann Machines using Approximations to the Likelihood Gradient", 2008. Salakhutdinov & Murray, "On the Quantitative
Analysis of Deep Belief Networks", 2008. Lecture notes (docs/references.md): [Liao22], [DSL 7.2].

    E(v, h)      = - b'v - c'h - v'W h,     p(v, h) = exp(-E(v, h)) / Z                    energy
    F(v)         = - log sum_h exp(-E(v, h)) = - b'v - sum_j softplus( c_j + (v'W)_j )     free_energy
    p(h_j=1 | v) = sigmoid( c_j + (v'W)_j ),  p(v_i=1 | h) = sigmoid( b_i + (W h)_i )      hidden_logits, visible_logits
    log p(v)     = - F(v) - log Z,                                                         RBM.log_likelihood
                   grad log p(v) = - grad F(v) + E_{v' ~ p}[ grad F(v') ]                  RBM.objective

``visible=gaussian`` has real visible units, for grey and colour images (Hinton & Salakhutdinov 2006; Krizhevsky 2009).
Then v are dequantised pixels, standardised with the means and variances of the training images. The energy is that of
Cho, Ilin & Raiko 2011, with a learned log variance log sigma_i^2 of each unit:

    E_gauss(v, h) = sum_i (v_i - b_i)^2 / (2 sigma_i^2) - c'h - sum_ij v_i W_ij h_j / sigma_i^2       Machine.of_means

The code leaves out the part sum_i b_i^2 / (2 sigma_i^2), which cancels in p(v, h).
The equations are in zoo/functional/boltzmann.py and visible.py. In b'v, c'h and v'W, the prime is the transpose.
The units of a layer are independent given the other layer, so Gibbs sampling (zoo/functional/gibbs.py) draws a layer at
once. Training minimises mean F(v) - mean F(v'). Its gradient is unbiased if v' ~ p. ``learning`` selects the states v':

    cd      a state after k Gibbs steps from the data: biased, low variance                                  gibbs.cd
    pcd     a state of a persistent chain after k more Gibbs steps: biased if the chains lag behind p        gibbs.pcd
    exact   no v': a sum over the 2^n states of the smaller layer gives log Z, for n <= 20 units             exact_loss

Symbols: v are visible units, (B, V). h are hidden units, (B, H). W is (V, H). The visible biases b are (V,), and the
hidden biases c are (H,). u is noise. Images are (B, C, H, W) in [0, 1], and binary units binarise them.
Logged, in nats per example: train/loss is mean F(v) - mean F(v'), which is near zero and does not show progress. For
``exact``, train/loss is -log p(v). val/loss and test/loss are -log p(v). log Z is enumerated if a binary layer has at
most 16 units, and estimated by annealed importance sampling if not. ``validation_terms`` in zoo/functional/partition.py
explains the other metrics. val/free_energy_gap is mean F of validation images minus mean F of 1,000 training images. It
grows with overfitting (Hinton 2010, sec. 6).

Differs from the papers:
- Weights are learned in the centred form (Montavon & Müller 2012; Melchior et al. 2016). With the mean image mu, the
  energy is E = - b'(v - mu) - c'(h - 1/2) - (v - mu)'W(h - 1/2). Both forms describe the same distributions. The
  gradient of the centred form is better conditioned. ``centred=false`` learns the plain form.
- The learning rate has a cosine decay. Validation and test use averaged weights (``callbacks: ema``).
- The base-rate model of annealed importance sampling has H hidden units with zero weights. Its visible units have the
  means of the data, and Gaussian units also the variances. One black and one white image are added to the data.
- After each update, a persistent chain restarts from random pixels with probability 0.001 (``restarts``).
- log Z is estimated from two base-rate models, and the larger estimate is used. ``log_partitions`` explains why.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from zoo.checks import values
from zoo.checks.capabilities import ANNEALED
from zoo.checks.errors import UserError
from zoo.checks.inputs import checks_inputs, pixels, states, takes
from zoo.checks.old_forms import accepts_old_form, forwards_to, shape_of_pixels
from zoo.checks.pixels import flat_pixels
from zoo.estimators import GradientEstimator, Noise
from zoo.estimators.boltzmann import likelihood_estimators
from zoo.functional import gibbs, partition
from zoo.functional.boltzmann import Machine, Weights, free_energy
from zoo.functional.densities import at_least_float32
from zoo.functional.gibbs import Init
from zoo.functional.noise import chunk_generator, rand
from zoo.functional.partition import LogPartition, Partitions
from zoo.functional.visible import Binary, Gaussian, Visible, check_units
from zoo.nets.description import described
from zoo.training.annealing import annealing_temperatures
from zoo.training.loaders import sum_over_training_images
from zoo.training.ranks import gathered, shows_progress
from zoo.training.schedules import Schedule, at_epoch, half_cosine

PROBE = 1000  # training images for the free-energy gap and for ``sample(init="data")``
Generator = torch.Generator | None


@described
@forwards_to(hidden_logits="machine.hidden_logits", visible_logits="machine.visible_logits")
@accepts_old_form("noise", "loss", "log_likelihood", "probe_batch")
@checks_inputs(x=pixels, v=pixels)
class RBM(L.LightningModule):
    """Restricted Boltzmann machine with binary or Gaussian visible units and binary hidden units.

    Args:
        num_hidden: H, the number of hidden units.
        shape: shape of an image, [C, H, W], or [V] for vectors. It has V numbers, one for each visible unit.
        visible: ``binary`` or ``gaussian`` visible units.
        learning: ``cd``, ``pcd`` or ``exact``. ``exact`` needs a binary layer of <= 20 units, and is slow above 16.
        k: Gibbs steps per update, or a schedule over epochs: ``[[0, 1], [20, 5]]`` means 1 for 20 epochs, then 5.
        num_chains: number of persistent chains (``pcd``) over all processes, at least one per process.
        restarts: probability that a persistent chain restarts from random pixels after an update, >= 0 and < 1.
        binarisation: ``bernoulli`` draws new binary pixels at every use. A grey value is the probability of 1.
            ``threshold`` sets pixels above 1/2 to 1. Likelihoods of the two methods are not comparable.
        centred: whether to learn in the centred form.
        optimiser: ``sgd`` or ``adam``.
        lr: learning rate, which decays to zero along half a cosine over the run.
        momentum: momentum of SGD or beta_1 of Adam, at least 0 and below 1, or a schedule over epochs.
        weight_decay: weight decay of W, at least 0. The biases have none.
        ais_chains: number of chains of annealed importance sampling (AIS), at least 2.
        ais_temperatures: number of AIS temperatures at each validation. An evaluation of one batch has 10.
        test_ais_temperatures: number of AIS temperatures in the test. The test gives the published log Z.
        num_visible: the old form of ``shape``: 784 for images [1, 28, 28], V for vectors.

    Raises:
        UserError: if a value is not allowed. ``fit`` raises it for wrong pixels, or for fewer chains than processes.
    """

    def __init__(
        self,
        num_hidden: int = 500,
        shape: Sequence[int] = (1, 28, 28),
        visible: Literal["binary", "gaussian"] = "binary",
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
        num_visible: int | None = None,
    ):
        super().__init__()
        values.check_widths("shape", shape, (1, 28, 28))
        shape = list(shape) if num_visible is None else shape_of_pixels(num_visible)
        self.save_hyperparameters(ignore="num_visible")
        h = self.hparams
        check_units(h.visible, h.binarisation)
        values.check_choice("learning", h.learning, ("cd", "pcd", "exact"))
        values.check_choice("optimiser", h.optimiser, ("sgd", "adam"))
        for key in ("num_hidden", "num_chains", "ais_temperatures", "test_ais_temperatures"):
            values.check_integer(key, h[key])
        values.check_integer("ais_chains", h.ais_chains, least=2)
        values.check_schedule("k", h.k, values.check_integer)
        values.check_schedule("momentum", h.momentum, values.check_fraction)
        values.check_fraction("restarts", h.restarts)
        values.check_positive("lr", h.lr)
        values.check_not_negative("weight_decay", h.weight_decay)
        values.check_flag("centred", h.centred)
        V = math.prod(shape)
        self.W = nn.Parameter(0.01 * torch.randn(V, num_hidden))
        self.b = nn.Parameter(torch.zeros(V))
        self.c = nn.Parameter(torch.zeros(num_hidden))
        self.register_buffer("mu", torch.full((V,), 0.5))  # the mean image, set when training begins
        if h.visible == "gaussian":
            self.log_variance = nn.Parameter(torch.zeros(V))  # log sigma^2 of standardised pixels
            self.register_buffer("scale", torch.ones(V))  # standard deviations of the pixels, set like mu
        self.register_buffer("initialised", torch.tensor(False))
        if h.learning == "exact":
            partition.check_enumerable(V, num_hidden, self.units, "learning=exact")
        # Hidden states of this process's chains, (n, H), bool. Not a buffer, because DDP copies buffers from rank 0.
        self.chains: Tensor | None = None
        self.probe: Tensor | None = None  # training images, (at most 1000, ...), the same on all processes
        self._log_partitions: Partitions = {}

    # The machine and its inputs.

    @property
    def units(self) -> Visible:
        """Return the visible units."""
        if self.hparams.visible == "binary":
            return Binary(threshold=self.hparams.binarisation == "threshold")
        log_variance, mu, scale = map(at_least_float32, (self.log_variance, self.mu, self.scale))
        return Gaussian(log_variance.exp(), mu, scale)

    @property
    def machine(self) -> Machine:
        """Return the parameters of the energy, plain or centred, in at least float32, because energies are large."""
        W, b, c, mu = map(at_least_float32, (self.W, self.b, self.c, self.mu))
        units = self.units
        if isinstance(units, Gaussian):  # the mean of standardised pixels is 0
            return Machine.of_means(W, b, c, torch.zeros_like(b) if self.hparams.centred else None, units)
        return Machine(W, b, c, mu if self.hparams.centred else None, units)

    def weights(self) -> Weights:
        """Return W, b and c of the plain form, E = r(v) - b'v - c'h - v'W h, for either learned form."""
        return self.machine.weights()

    def exact_log_partition(self) -> float:
        """Return log Z in nats by enumeration. Raise UserError if no binary layer has at most 20 units."""
        with torch.no_grad():
            return float(partition.exact_log_partition(partition.exact(self.weights()), self.units.exact()))

    def observe(self, x: Tensor, u: Tensor) -> Tensor:
        """Return visible states (B, V) of images (B, ...) in [0, 1], given uniform noise ``u`` (B, ...)."""
        return self.units.observe(flat_pixels(x, at_least_float32(self.b)), u.flatten(1))

    @torch.no_grad()
    def transform(self, v: Tensor) -> Tensor:
        """Return the features p(h_j = 1 | v), (B, H), of images ``v`` in [0, 1], (B, C, H, W) or (B, V).

        Grey pixels are not binarised. zoo.evaluation.features.Features wraps this method as a scikit-learn transformer.

        Raises:
            UserError: if pixels are outside [0, 1], or if their number is not V.
        """
        return self.machine.hidden_logits(self.units.grey(flat_pixels(v, at_least_float32(self.b)))).sigmoid()

    forward = transform

    @torch.no_grad()
    def most_probable_hidden(self, v: Tensor) -> Tensor:
        """Return arg max_h p(h | v), binary, (B, H), for ``v`` as in :meth:`transform`. See [Liao22]."""
        return (self.transform(v) > 0.5).float()

    def free_energy(self, v: Tensor) -> Tensor:
        """Return F(v), (B,) nats, for images ``v``, (B, C, H, W) or (B, V), binary if the units are binary."""
        return self._energy_of_states(self.units.grey(flat_pixels(v, at_least_float32(self.b))))

    @torch.no_grad()
    def _energy_of_states(self, v: Tensor) -> Tensor:
        return free_energy(v, self.weights(), visible=self.units)

    # Training. ``noise`` draws all random numbers. The objective is a deterministic function of them.

    def noise(
        self, batch, *, generator: Generator = None, learning: str | None = None, k: int | None = None, chains=None
    ) -> Noise:
        """Return :func:`zoo.functional.gibbs.step_noise`, for ``chains``, the model's chains, or random states."""
        learning, k, x = learning or self.hparams.learning, k or self.graph_key(), batch[0]
        chains = self.chains if chains is None else chains
        restarts = self.hparams.restarts if chains is self.chains else 0.0
        return gibbs.step_noise(x, learning, k, self.W.shape, chains, restarts, self.units, generator=generator)

    @takes(v=states)
    def objective(self, v: Tensor, noise: Noise, learning: str) -> tuple[Tensor, Tensor | None]:
        """Return the loss that training minimises, and the states of the persistent chains after the Gibbs steps.

        Args:
            v: visible states, (B, V).
            noise: result of :meth:`noise` for the same ``learning``.
            learning: ``cd``, ``pcd``, ``exact`` or ``exact_samples``. The last draws one v' of p for each v.

        Returns:
            mean F(v) - mean F(v'), () nats. Its gradient estimates grad[ -log p(v) ]. ``exact`` returns -log p(v).
            h of the chains, (n, H), 0 or 1; None unless ``learning`` is ``pcd``.
        """
        machine = self.machine
        if learning == "exact":
            return partition.exact_loss(v, machine.weights(), machine.visible), None
        if learning == "exact_samples":
            v_model = partition.exact_draw(noise["u_s"], noise["u_v"], machine.weights(), machine.visible)
        else:
            v_model = gibbs.cd(v, noise, machine) if learning == "cd" else gibbs.pcd(noise, machine)
        difference, p, p_coins = machine.free_energy_difference(v, v_model, noise.get("coins"))
        return difference, gibbs.next_hidden(p, p_coins, noise) if learning == "pcd" else None

    def loss(self, batch, *, generator: Generator = None) -> dict[str, Tensor]:
        """Return ``loss`` of :meth:`objective`, and ``free_energy``, the mean F(v), nats. The chains do not change."""
        noise = self.noise(batch, generator=generator)
        v = self.observe(batch[0], noise["u"])
        loss = self.objective(v, noise, self.hparams.learning)[0]
        return {"loss": loss, "free_energy": self._energy_of_states(v).mean()}

    def training_step(self, batch, batch_idx):
        noise = self.noise(batch)
        loss, h = self.objective(self.observe(batch[0], noise["u"]), noise, self.hparams.learning)
        if h is not None:
            self.chains.copy_(h)  # in place, because a CUDA graph always reads and writes the same memory
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def graph_key(self) -> int:  # the number of Gibbs steps in this epoch
        return at_epoch(self.hparams.k, self.current_epoch if self._trainer is not None else 0)

    @torch.no_grad()
    def on_fit_start(self):
        h, trainer, world_size = self.hparams, self.trainer, self.trainer.world_size
        if h.num_chains < world_size:
            raise UserError(f"num_chains must be at least {world_size}, one for each process, got {h.num_chains}")
        statistics = lambda x: self.units.statistics(flat_pixels(x, self.b))  # noqa: E731
        total, self.probe = sum_over_training_images(trainer, statistics, PROBE)
        if not self.initialised:
            for name, value in self.units.beginning(total[:-1], total[-1]).items():
                getattr(self, name).copy_(value)
            self.initialised.fill_(True)
        if h.learning == "pcd":
            chains = gibbs.local_chains(self.chains, h.num_chains, h.num_hidden, trainer.global_rank, world_size)
            self.chains = chains.to(trainer.strategy.root_device, copy=True)

    def _momentum(self, epoch: int) -> dict[str, Any]:
        value = at_epoch(self.hparams.momentum, epoch)
        return {"momentum": value} if self.hparams.optimiser == "sgd" else {"betas": (value, 0.999)}

    def on_train_epoch_start(self):
        for group in self.optimizers().param_groups:
            group.update(self._momentum(self.current_epoch))

    def all_chains(self) -> Tensor | None:
        """Return the chains of all processes in order, (num_chains, H), on the CPU. Return None if there are none."""
        return None if self.chains is None else gathered(self.chains.cpu(), self._trainer)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "rbm"
        if self.hparams.learning == "pcd":
            checkpoint["chains"] = self.all_chains()

    def on_load_checkpoint(self, checkpoint):
        self.chains = checkpoint.get("chains")

    def configure_optimizers(self):
        h = self.hparams
        others = [p for name, p in self.named_parameters() if name != "W"]
        groups = [{"params": [self.W], "weight_decay": h.weight_decay}, {"params": others}]
        kind = torch.optim.SGD if h.optimiser == "sgd" else torch.optim.Adam
        optimiser = kind(groups, lr=h.lr, **self._momentum(0))
        steps = max(1, self.trainer.estimated_stepping_batches)  # the estimate is infinite for max_epochs=-1
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: half_cosine(step, steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_validation_epoch_start(self):
        stage = "test" if self.trainer.testing else "sanity" if self.trainer.sanity_checking else "val"
        steps = annealing_temperatures(self.trainer, self.hparams, stage)
        self._log_partitions = self.log_partitions(steps, progress=shows_progress(self.trainer))

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch, batch_idx, stage="val"):
        x, generator = batch[0], chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        with torch.autocast(x.device.type, enabled=False):  # 16 bits would round F and log Z, which are large
            v = self.observe(x, rand(*x.shape, generator=generator, device=x.device))
            terms = partition.validation_terms(v, self.machine, self._log_partitions, generator=generator)
            if stage == "val" and self.probe is not None:
                u = rand(*self.probe.shape, generator=chunk_generator(0, -1), device=self.probe.device)
                of_training = self._energy_of_states(self.observe(self.probe, u)).mean()
                terms["free_energy_gap"] = self._energy_of_states(v).mean() - of_training
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items()}, sync_dist=True, batch_size=len(x))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    # Uses of a trained model.

    log_likelihood_by = ANNEALED  # for layers of at most 16 units, log Z is enumerated

    def log_partitions(self, steps: int | None = None, *, generator: Generator = None, progress=False) -> Partitions:
        """Return estimates of log Z by name, in nats. See :func:`zoo.functional.partition.log_partitions`.

        If ``steps`` is None, it is ``test_ais_temperatures``. If ``generator`` is None, all calls use the same noise.
        """
        steps = self.hparams.test_ais_temperatures if steps is None else steps
        generator = chunk_generator(0, -2) if generator is None else generator
        chains, how = self.hparams.ais_chains, {"generator": generator, "progress": progress}
        return partition.log_partitions(self.weights(), self.mu, chains, steps, visible=self.units, **how)

    def log_partition(self, steps: int | None = None, *, generator: Generator = None, progress=False) -> LogPartition:
        """Return the largest estimate of :meth:`log_partitions`, with its interval of three standard errors."""
        return max(self.log_partitions(steps, generator=generator, progress=progress).values())

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, *, log_partition: float | LogPartition | None = None, y=None, generator: Generator = None
    ) -> Tensor:
        """Return log p(v) = - F(v) - log Z, (B,) nats, for images ``x`` in [0, 1], (B, C, H, W).

        Binary units binarise the images once. Gaussian units dequantise them once, and log p is the log density of
        pixels in [0, 1]. Bits per dimension of 256 grey values are 8 - log p / (V log 2).

        Args:
            log_partition: log Z, if it is known. None calls :meth:`log_partition`, which is slow.
            y: labels, which are not used.

        Raises:
            UserError: if pixels are outside [0, 1].
        """
        v = self.observe(x, rand(*x.shape, generator=generator, device=x.device))
        log_Z = self.log_partition() if log_partition is None else log_partition
        log_Z = log_Z.estimate if isinstance(log_Z, LogPartition) else log_Z
        return -self._energy_of_states(v) - log_Z - self.units.log_scale

    @torch.no_grad()
    def sample(
        self, n: int, *, steps: int = 1000, init: Init = "noise", frames: int | None = None, generator: Generator = None
    ) -> Tensor:
        """Return E[v | h] of ``n`` Gibbs chains after their last step, or after several steps.

        Args:
            steps: Gibbs steps, at least 1.
            init: initial states. ``noise`` draws random pixels. ``data`` draws training images, only during training.
                ``chains`` draws persistent chains of this process. A tensor or a list holds n images in [0, 1].
            frames: number of states of each chain to return, at least 2, or None. The first is the initial state, and
                the last is the sample. The other states are spaced evenly on a logarithmic scale of steps.
            generator: generator of all noise. None selects PyTorch's default generator.

        Returns:
            (n, C, H, W) in [0, 1]. With frames, (n, frames, C, H, W).

        Raises:
            UserError: if a value is not allowed, or if ``init`` needs images or chains that are missing.
        """
        values.check_integer("steps", steps)
        shown, sources = gibbs.frame_steps(steps, frames), {"data": self.probe, "chains": self.chains}
        v = gibbs.beginning(init, n, self.machine, self.observe, **sources, generator=generator)
        found = gibbs.gibbs_frames(v, shown, self.machine, generator=generator).squeeze(1)  # drops an axis of size 1
        return self.units.pixels(found).unflatten(-1, self.hparams.shape)

    # Gradient estimators.

    def probe_batch(self, batch, *, generator: Generator = None):
        """Return ``batch`` with binary pixels. The gradient then varies only with the draws of v' from the model.

        Grey pixels of Gaussian units do not change. The noise of dequantisation then also varies, by 1/256 at most.
        """
        x, *rest = batch
        if self.hparams.visible == "gaussian":
            return [x, *rest]
        return [self.observe(x, rand(*x.shape, generator=generator, device=x.device)).view_as(x), *rest]

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return gradient estimators by name. See :func:`zoo.estimators.boltzmann.likelihood_estimators`."""
        return likelihood_estimators(self, self.all_chains() if self.hparams.learning == "pcd" else None)
