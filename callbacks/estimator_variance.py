"""The variance of a model's gradient estimators, measured while it trains."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure

from zoo.configuration import check_whole
from zoo.estimators import GradientMoments, gradient_moments
from zoo.sampling import chunk_generator


class EstimatorVariance(L.Callback):
    """Measure how much each gradient estimator scatters on one fixed batch, every so many steps.

    For each estimator in ``model.gradient_estimators()`` and each parameter group (``all``, ``encoder``, ...):

        variance/<estimator>/<group>     trace of the covariance of one draw, squared units of the gradient
        snr/<estimator>/<group>          |g| / sqrt(tr C), with the bias of |g|^2 taken out (zoo/estimators.py)
        ms_per_draw/<estimator>          cost of one draw in milliseconds, mean over the processes

    Draw k has its own noise, keyed by (seed, k), whichever process makes it and whichever estimator uses it; processes
    take the draws in turns and their moments are merged exactly. Training is not touched: parameters are only read, no
    gradient is accumulated, and no global random state is used. Gradients are those of the weights as they are stored:
    under mixed precision, float32.

    Args:
        folder: where ``estimator_variance.png`` goes at the end of the run.
        every_n_steps: batches between two measurements, or the share of the run between them, such as 0.25; the first
            is before the first step.
        draws: gradients per measurement, over all processes; at least 2.
        batch_size: images of the probe batch, the first of the validation set.
        compare: estimators to measure, by name; all of the model's if None.
        seed: of the noise and of the probe batch's binarisation.

    Raises:
        ValueError: for values outside these; at set-up, for a model without ``gradient_estimators`` or without one of
            ``compare``, or a run without validation data.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int | float = 500,
        draws: int = 16,
        batch_size: int = 64,
        compare: list[str] | None = None,
        seed: int = 0,
    ):
        check_whole("draws", draws, least=2)
        if isinstance(every_n_steps, float):
            if not 0 < every_n_steps < 1:
                raise ValueError(f"every_n_steps must be a whole number, or a share below 1, got {every_n_steps}")
        else:
            check_whole("every_n_steps", every_n_steps)
        check_whole("batch_size", batch_size)
        check_whole("seed", seed, least=0)
        names = compare if isinstance(compare, list | tuple) else []
        strings = {name for name in names if isinstance(name, str)}
        if compare is not None and (not names or len(strings) < len(names)):
            raise ValueError(f"compare must be null or a list of estimators, each once, got {compare!r}")
        self.folder, self.every_n_steps, self.draws, self.batch_size = Path(folder), every_n_steps, draws, batch_size
        self.compare, self.seed = compare, seed
        self.batch: Any = None
        self.history: list[dict[str, float]] = []  # one row per measurement, with "step"

    def setup(self, trainer, pl_module, stage):
        name = type(pl_module).__name__
        if not callable(getattr(pl_module, "gradient_estimators", None)):
            raise ValueError(f"{name} has no method gradient_estimators(), so there is no variance to measure")
        known = pl_module.gradient_estimators()
        unknown = [e for e in self.compare or [] if e not in known]
        if unknown:
            raise ValueError(f"{name} has no gradient estimator {', '.join(unknown)}; it has {', '.join(known)}")

    def on_train_start(self, trainer, pl_module):
        loader = trainer.val_dataloaders  # not there yet where the first validation is some epochs off
        if loader is None and trainer.datamodule is not None and trainer.limit_val_batches:
            loader = trainer.datamodule.val_dataloader()
        if loader is None:
            raise ValueError(
                "the probe batch of EstimatorVariance comes from validation data, and there are none: have some "
                "(trainer.limit_val_batches), or leave the callback out (~callbacks.estimator_variance)"
            )
        with isolate_rng():
            batch = [first_images(t.to(pl_module.device), self.batch_size, trainer) for t in next(iter(loader))]
        if hasattr(pl_module, "probe_batch"):
            batch = pl_module.probe_batch(batch, chunk_generator(self.seed, -1))
        self.batch = batch
        self.interval = self.every_n_steps
        if isinstance(self.interval, float):
            if trainer.max_epochs in (None, -1):
                raise ValueError(f"every_n_steps={self.interval} is a share of a run, and this one has no end")
            self.interval = max(1, int(self.interval * trainer.max_epochs * trainer.num_training_batches))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.fit_loop.total_batch_idx
        if step % self.interval:
            return
        row: dict[str, float] = {"step": step}
        with isolate_rng():
            for name, estimator in pl_module.gradient_estimators().items():
                if self.compare is None or name in self.compare:
                    row |= self._measure(trainer, name, estimator)
        self.history.append(row)
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step=step)

    def _measure(self, trainer, name, estimator) -> dict[str, float]:
        mine = range(trainer.global_rank, self.draws, trainer.world_size)
        moments, seconds = gradient_moments(estimator, self.batch, mine, self.seed)
        moments = merge_over_ranks(moments, estimator.params, trainer)
        seconds = torch.tensor(seconds, device=trainer.strategy.root_device)
        row = {f"ms_per_draw/{name}": 1000 * float(trainer.strategy.reduce(seconds, reduce_op="mean"))}
        for group, values in moments.statistics().items():
            row[f"variance/{name}/{group}"] = values["variance"]
            row[f"snr/{name}/{group}"] = values["snr"]
        return row

    def state_dict(self):
        return {"history": self.history}

    def load_state_dict(self, state):
        self.history = state["history"]

    def on_train_end(self, trainer, pl_module):
        if trainer.is_global_zero and self.history:
            figure = plot(self.history)
            self.folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(self.folder / "estimator_variance.png", dpi=120)
            for logger in trainer.loggers:
                if hasattr(logger, "log_image"):
                    logger.log_image("estimator_variance", [str(self.folder / "estimator_variance.png")])


def first_images(mine: torch.Tensor, n: int, trainer) -> torch.Tensor:
    """The first ``n`` rows of a batch that processes hold in turns, row i with process i mod world size; on all."""
    if trainer.world_size == 1:
        return mine[:n]
    rows = trainer.strategy.reduce(torch.tensor(len(mine), device=mine.device), reduce_op="min")
    whole = mine.new_zeros(min(n, int(rows) * trainer.world_size), *mine.shape[1:])
    place = whole[trainer.global_rank :: trainer.world_size]
    place.copy_(mine[: len(place)])
    return trainer.strategy.reduce(whole, reduce_op="sum")  # every row has one owner, the others add zeros


def merge_over_ranks(moments: GradientMoments, params: dict[str, torch.Tensor], trainer) -> GradientMoments:
    """The moments of all processes' draws together, from sums over processes.

    mean = sum_i n_i mean_i / n, and the squared deviations about it are sum_i [ M_i + n_i |mean_i - mean|^2 ].
    """
    if trainer.world_size == 1:
        return moments
    total = lambda t: trainer.strategy.reduce(t, reduce_op="sum")  # noqa: E731
    device = trainer.strategy.root_device
    n = int(total(torch.tensor(moments.n, device=device)))
    whole = GradientMoments(n=n)
    for name, p in params.items():
        mean = moments.mean.get(name, torch.zeros_like(p, dtype=torch.float64))
        whole.mean[name] = total(mean * moments.n) / n
        about_whole = moments.squared_deviation.get(name, 0.0) + moments.n * (mean - whole.mean[name]).square().sum()
        whole.squared_deviation[name] = float(total(torch.as_tensor(about_whole, dtype=torch.float64, device=device)))
    return whole


def plot(history: list[dict[str, float]]) -> Figure:
    """Variance and signal-to-noise ratio against steps: a colour per estimator, a row per parameter group.

    Of a single estimator the groups share one row, with a colour each.
    """
    measured = {tuple(key.split("/", 2)[1:]) for row in history for key in row if key.startswith("variance/")}
    estimators = list(dict.fromkeys(name for name, _ in sorted(measured)))
    groups = sorted({group for _, group in measured}, key=lambda group: (group != "all", group))
    rows = [groups] if len(estimators) < 2 else [[group] for group in groups]
    figure = Figure(figsize=(11, 1 + 3 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False)
    for (left, right), shown in zip(panels, rows, strict=True):
        for axes, quantity in ((left, "variance"), (right, "snr")):
            for colour, (estimator, group) in enumerate((e, g) for g in shown for e in estimators):
                key = f"{quantity}/{estimator}/{group}"
                points = [(row["step"], row[key]) for row in history if row.get(key, 0) > 0]
                axes.plot(
                    *zip(*points, strict=True) if points else ([], []),
                    color=f"C{colour}",
                    marker="." if len(points) < 20 else None,
                    label=group if len(estimators) < 2 else estimator,
                )
            axes.set(xlabel="step", yscale="log")
            axes.grid(alpha=0.3)
        what = estimators[0] if len(estimators) == 1 else f"{shown[0]} parameters" if shown else ""
        left.set(ylabel="variance (trace of the covariance)", title=what)
        right.set(ylabel="signal-to-noise ratio", title=what)
    if estimators:
        panels[0][1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure
