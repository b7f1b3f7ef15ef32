"""Train one model of the zoo: ``python train.py model=ddpm data=mnist trainer.max_epochs=2``."""

import os
import sys
from pathlib import Path

import hydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from zoo.training.command_line import check_kind, check_overrides, check_values, with_names_of_today
from zoo.training.error_lines import errors_for_people
from zoo.training.processes import end_with_parent, leaving_together, overrides_of_process

# torch and Lightning take seconds to import; they come in with the first `build`, after the configuration is composed.


def build(node: DictConfig, **kwargs):
    # _convert_="all": hyperparameters reach checkpoints as plain lists and dicts, which load with weights_only=True.
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        # Hydra says in words what it cannot find or call. What the call itself raised keeps its traceback.
        called, cause = "Error in call to target" in str(error), error.__cause__
        if called and cause is not None and cause.__traceback__.tb_next is not None:
            raise cause from None
        raise


def build_all(group: DictConfig | None) -> list:
    return [build(node) for node in (group or {}).values() if node and "_target_" in node]


def train(cfg: DictConfig) -> dict[str, float]:
    """Fit ``cfg.model`` on ``cfg.data``, test its best checkpoint, and return the final metrics."""
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint

    from zoo.callbacks import RunRecord
    from zoo.hub import check_resumable

    check_values(cfg)
    with_names_of_today(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data, model = build(cfg.data), build(cfg.model)
    check_kind(model, data)
    if cfg.compile:
        for network in model.children():
            if any(True for _ in network.parameters()):  # not a metric
                network.compile(backend=cfg.compile)  # in place: checkpoints keep the names of their weights
    if cfg.ckpt is not None:
        check_resumable(cfg.ckpt, model, cfg.seed, cfg.trainer.max_epochs)
    record = RunRecord(cfg.run_dir, OmegaConf.to_container(cfg, resolve=True))
    trainer = build(cfg.trainer, callbacks=[*build_all(cfg.callbacks), record], logger=build_all(cfg.logger))
    trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt, weights_only=True)
    metrics = dict(trainer.callback_metrics)
    if cfg.test:
        # Reloaded, and not test(ckpt_path=...): after fit the averaging callback would put the raw weights back.
        best = next((c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), "")
        model = type(model).load_from_checkpoint(best, weights_only=True) if best else model
        trainer.test(model, datamodule=data)
        metrics |= trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}


@hydra.main(config_path="configs", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    with errors_for_people(cfg.run_dir), leaving_together():
        return train(cfg).get(OmegaConf.select(cfg, "callbacks.best.monitor"))  # what a sweep minimises


if __name__ == "__main__":
    end_with_parent()
    with errors_for_people():
        check_overrides(sys.argv[1:], Path(__file__).parent / "configs")
    sys.argv += overrides_of_process(sys.argv[1:], os.environ)
    main()
