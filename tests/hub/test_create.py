"""Tests of ``zoo.create``: models and recipes by name, their options, and errors that suggest names."""

from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, config, tiers
from omegaconf import OmegaConf
from small_models import data_of

import zoo
from zoo.checks.errors import UserError

RECIPES = sorted(path.stem for path in (Path(CONFIGS) / "experiment").glob("*.yaml"))
SMALL = {"ddpm": {"widths": [8], "steps": 30}, "wgan_clip": {"width": 2}, "vae": {"hidden": [4]}}


@pytest.mark.parametrize("name", zoo.list_models())
def test_a_model_has_the_class_and_the_default_options_of_its_name(name):
    model = zoo.create(name)
    kind = getattr(zoo, zoo.MODELS[name].rpartition(".")[2])
    assert type(model) is kind and model.training and dict(model.hparams) == dict(kind().hparams)


@pytest.mark.parametrize("name", tiers(RECIPES, ("ddpm_guided", "iwae_burda", "classifier")))
def test_a_recipe_has_the_options_that_hydra_composes(name):
    """``auto`` has the value that the test gives, as if the data had ten classes."""
    composed = OmegaConf.to_container(config("/nowhere", f"experiment={name}").model)
    classes = {"num_classes": 10} if composed.get("num_classes") == "auto" else {}
    model = zoo.create(name, **classes)
    assert f"{type(model).__module__}.{type(model).__qualname__}" == composed.pop("_target_")
    for key, value in (composed | classes).items():
        if value != "auto" and key in model.hparams:  # a model may translate the old form of an option
            assert model.hparams[key] == value, key
    assert set(model.hparams) <= set(composed)


@pytest.mark.parametrize("name", SMALL)
def test_a_new_model_has_the_given_shape_and_trains_in_a_plain_loop(name):
    torch.manual_seed(0)
    model = zoo.create(name, shape=(3, 32, 32), **SMALL[name])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = [data_of(model, 8)]
    term = model.loss if name != "wgan_clip" else model.critic_loss
    losses = []
    for _ in range(10):
        loss = term(batch, generator=torch.Generator().manual_seed(0))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model.eval().sample(2).shape == (2, 3, 32, 32)


def test_options_of_the_caller_replace_those_of_a_recipe():
    assert zoo.create("wgan_clip").hparams.lr == 1e-3 != zoo.WGAN().hparams.lr
    model = zoo.create("wgan_clip", lr=3e-4, shape=[1, 8, 8])
    assert (model.hparams.lipschitz, model.hparams.lr, model.hparams.shape) == ("clip", 3e-4, [1, 8, 8])


def test_auto_is_the_default_of_the_class_or_is_asked_for():
    assert zoo.create("vae", shape="auto").hparams.shape == [1, 28, 28]
    assert zoo.create("cvae", num_classes="auto").hparams.num_classes == 10
    assert zoo.create("ddpm_guided", num_classes=7).hparams.num_classes == 7
    with pytest.raises(UserError, match="ddpm_guided takes num_classes from its data: give it a value, such as"):
        zoo.create("ddpm_guided")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dppm", {}, r"no model or recipe 'dppm'; the models are cvae, ddpm.*Did you mean ddpm\?"),
        ("VAE", {}, r"'VAE'.*Did you mean vae\?"),
        ("wgan-clip", {}, r"zoo.load\('wgan-clip'\) loads the pretrained checkpoint. Did you mean wgan_clip\?"),
        ("../model/vae", {}, "no model or recipe '../model/vae'"),
        (None, {}, "no model or recipe None"),
        ("vae", {"latent_dims": 3}, r"vae has no option 'latent_dims'; its options are latent, .*mean latent_dim\?"),
        ("wgan_clip", {"lrr": 3}, r"wgan_clip has no option 'lrr'; .*Did you mean lr\?"),
        ("vae", {"latent": "gausian"}, "latent must be gaussian, bernoulli or categorical, got 'gausian'"),
        ("ddpm", {"shape": (28, 28)}, r"shape must be \[C, H, W\] for images, got \[28, 28\]"),
    ],
)
def test_a_wrong_name_option_or_value_is_refused_with_what_is_allowed(name, options, message):
    with pytest.raises(UserError, match=message):
        zoo.create(name, **options)
