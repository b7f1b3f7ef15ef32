"""Train one model of the zoo: ``python train.py model=ddpm data=mnist trainer.max_epochs=2``."""

import errno
import os
import re
import sys
from pathlib import Path

import hydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from zoo.configuration import check_kind, check_overrides, check_values, raised_by_the_zoo
from zoo.processes import end_with_parent, overrides_of_process, speaker

# torch and Lightning take seconds to import; they come in with the first `build`, after the configuration is composed.


def build(node: DictConfig, **kwargs):
    # _convert_="all": hyperparameters reach checkpoints as plain lists and dicts, which load with weights_only=True.
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError) and raised_by_the_zoo(error.__cause__):
            raise error.__cause__ from None  # what is wrong with a value, without Hydra's account of where
        raise


def build_all(group: DictConfig | None) -> list:
    return [build(node) for node in (group or {}).values() if node and "_target_" in node]


def train(cfg: DictConfig) -> dict[str, float]:
    """Fit ``cfg.model`` on ``cfg.data``, test its best checkpoint, and return the final metrics."""
    import lightning as L

    from callbacks import RunRecord
    from zoo.hub import check_resumable

    check_values(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data, model = build(cfg.data), build(cfg.model)
    check_kind(model, data)
    if cfg.compile:
        for network in model.children():
            network.compile(backend=cfg.compile)  # in place: checkpoints keep the names of their weights
    if cfg.ckpt is not None:
        check_resumable(cfg.ckpt, model, cfg.seed, cfg.trainer.max_epochs)
    record = RunRecord(cfg.run_dir, OmegaConf.to_container(cfg, resolve=True))
    trainer = build(cfg.trainer, callbacks=[*build_all(cfg.callbacks), record], logger=build_all(cfg.logger))
    trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt, weights_only=True)
    metrics = dict(trainer.callback_metrics)
    if cfg.test:
        # Reloaded, and not test(ckpt_path=...): after fit the averaging callback would put the raw weights back.
        best = next((c.best_model_path for c in trainer.checkpoint_callbacks if hasattr(c, "best_model_path")), "")
        model = type(model).load_from_checkpoint(best, weights_only=True) if best else model
        trainer.test(model, datamodule=data)
        metrics |= trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}


@hydra.main(config_path="configs", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    try:
        return train(cfg).get(OmegaConf.select(cfg, "callbacks.best.monitor"))  # what a sweep minimises
    except ValueError as error:
        if not raised_by_the_zoo(error):
            raise
        raise SystemExit(f"{speaker()}error: {error}") from None
    except RuntimeError as error:
        if not re.search("closed by peer|reset by peer", str(error)):  # as gloo says it
            raise
        last = f"{cfg.run_dir}/checkpoints/last.ckpt"
        raise SystemExit(f"{speaker()}error: another process of this run is gone; ckpt={last} goes on") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        what, last = error.filename or cfg.run_dir, f"{cfg.run_dir}/checkpoints/last.ckpt"
        raise SystemExit(
            f"{speaker()}error: {what} cannot be written: {error.strerror}. Make room: ckpt={last} then goes on"
        ) from None


if __name__ == "__main__":
    end_with_parent()
    check_overrides(sys.argv[1:], Path(__file__).parent / "configs")
    sys.argv += overrides_of_process(sys.argv[1:], os.environ)
    main()
