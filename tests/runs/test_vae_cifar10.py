"""The recipe of CIFAR-10 on small files in the published format."""

import math

import pytest
import torch
from helpers import config, run
from published import make_cifar10
from torch.testing import assert_close

import zoo


@pytest.mark.parametrize("model", ["vae", *(pytest.param(m, marks=pytest.mark.slow) for m in ("cvae", "vade"))])
def test_autoencoders_train_on_cifar10_with_bits_per_dimension(model, tmp_path, monkeypatch):
    """Two epochs on 45 images. The networks are those of the recipe with fewer channels."""
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    make_cifar10(tmp_path / "data" / "CIFAR10", monkeypatch)
    recipe = ["experiment=vae_cifar10"] if model == "vae" else [f"model={model}", "data=cifar10", "model.net=conv"]
    if model == "vade":
        recipe += ["model.pretrain_epochs=1", "model.restarts=1"]
    small = ["model.likelihood=discretised_logistic", "model.hidden=[2]", "model.latent_dim=2", "data.batch_size=15"]
    small += ["trainer.max_epochs=2", "callbacks.log_likelihood.num_samples=3", "callbacks.samples.n=10"]
    metrics = run(tmp_path / "run", *recipe, *small)
    assert_close(metrics["test/bpd"], metrics["test/loss"] / (3072 * math.log(2)))
    assert metrics["test/bpd"] < 14 and ("test/accuracy" in metrics) == (model == "vade")
    trained = zoo.load(tmp_path / "run")
    assert trained.hparams.shape == [3, 32, 32]
    assert trained.sample(2, generator=torch.Generator().manual_seed(0)).shape == (2, 3, 32, 32)
    for name in ("samples", "reconstructions", *(("traversals", "manifold") if model == "vae" else ())):
        assert (tmp_path / "run" / name / "epoch_001.png").stat().st_size > 0


def test_the_recipe_of_cifar10_has_the_settings_of_the_paper():
    cfg = config("/nowhere", "experiment=vae_cifar10")
    assert (cfg.data.name, cfg.data.batch_size, cfg.model.lr) == ("cifar10", 128, 2e-4)
    assert abs(cfg.trainer.max_epochs * (45_000 // 128) - 250_000) < 45_000 // 128
