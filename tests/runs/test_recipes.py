"""Tests that every model configuration composes, trains, tests, reloads and samples."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from helpers import CONFIGS, TINY, checkpoint, config, model_of, run, tiers
from hydra.utils import instantiate
from processes import done

import zoo
from zoo.training.trainer import make_trainer

EXPERIMENTS = sorted(p.stem for p in (Path(CONFIGS) / "experiment").glob("*.yaml"))
RECIPES = sorted(p.stem for p in (Path(CONFIGS) / "model").glob("*.yaml"))


def test_no_recipe_is_without_a_test_or_a_name():
    assert zoo.list_models() == RECIPES == sorted(TINY)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_every_argument_of_its_model(name):
    """A recipe has every argument of its model, with its default. The command line can override only these keys.

    ``auto`` takes the shape or the number of classes from the data.
    """
    node = config("/nowhere", f"model={name}").model
    module, _, cls = node._target_.rpartition(".")
    assert node._target_ == zoo.MODELS[name]
    parameters = inspect.signature(getattr(import_module(module), cls)).parameters
    assert set(node) - {"_target_"} == set(parameters)
    for key, parameter in parameters.items():
        value = node[key]
        from_data = value == "auto" and key in ("shape", "num_classes")
        assert from_data or (tuple(value) if isinstance(parameter.default, tuple) else value) == parameter.default, key


# Drawing the figure of estimator variances takes longer than a run. The first tier draws one.
DRAWN = [pytest.param(name, True, marks=() if name == "vae" else pytest.mark.slow) for name in RECIPES]


@pytest.mark.parametrize(("name", "figures"), [*DRAWN, *((name, False) for name in RECIPES if name != "vae")])
def test_recipe(name, figures, tmp_path):
    few = ["callbacks.estimator_variance.batch_size=8", "callbacks.estimator_variance.draws=2"]
    metrics = run(tmp_path, *TINY[name], "debug=fast", *few, figures=figures)
    monitored = config("/nowhere", *TINY[name]).callbacks.best.monitor
    assert monitored in metrics
    if monitored == "val/loss":
        assert metrics["test/loss"] > 0 and metrics["val/loss"] > 0
    else:  # adversarial models
        assert {"val/generator_loss", "test/generator_loss"} <= set(metrics)
    assert all(torch.tensor(v).isfinite() for v in metrics.values())
    expected = [
        "checkpoints/last.ckpt",
        "config.yaml",
        "estimator_variance.png",
        "metrics.csv",
        "neighbours/epoch_000.csv" if name == "skipgram" else "samples/epoch_000.png",
    ]
    for file in expected:
        assert (tmp_path / file).stat().st_size > 0, file
    assert list((tmp_path / "checkpoints").glob("best-*.ckpt"))
    assert checkpoint(tmp_path)["model"] == name
    recorded = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert (
        recorded["data_used"] == ("pydocs" if name == "skipgram" else "digits")
        and recorded["model"]["_target_"] == zoo.MODELS[name]
    )
    model = zoo.load(tmp_path)
    assert not model.training
    if name == "skipgram":
        assert len(model.nearest("class", 3)) == 3
        return
    assert model.sample(2, generator=torch.Generator().manual_seed(0)).shape == (2, 1, 28, 28)


def composes(*arguments):
    ended = done("train.py", *arguments)
    return ended.returncode, ended.stderr + ended.stdout


@pytest.mark.parametrize(
    ("argument", "choices"),
    [
        ("model=nonsense", "ddpm"),
        ("data=nonsense", "mnist_or_digits"),
        ("model.latentdim=3", "latent_dim"),
        ("modle=vae", "Did you mean model?"),
        ("trainer.max_epoch=3", "Did you mean trainer.max_epochs?"),
    ],
)
def test_a_wrong_word_is_answered_with_the_choices(argument, choices):
    code, message = composes(argument)
    assert code == 1
    assert choices in message
    assert "Traceback" not in message
    assert "nonsense" in message or argument.split("=")[0] in message


def test_a_wrong_value_is_one_message():
    code, message = composes("model.latent_dim=0", "hydra.run.dir=/nonexistent/never", "--cfg", "job")
    assert code == 0  # --cfg composes the configuration and does not build the model
    assert "latent_dim: 0" in message


@pytest.mark.parametrize("arguments", [["-c", "import zoo"], ["-m", "zoo", "list"]])
def test_looking_around_imports_no_torch(arguments):
    ended = done("-X", "importtime", *arguments)
    assert ended.returncode == 0, ended.stderr
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "zoo" in imported
    assert not imported & {"torch", "numpy", "lightning", "hydra"}


@pytest.mark.parametrize("group", ["trainer", "logger", "callbacks", "data", "experiment", "debug", "hparams_search"])
def test_every_choice_composes(group):
    for choice in (Path(CONFIGS) / group).glob("*.yaml"):
        assert config("/nowhere", f"{group}={choice.stem}").run_dir == "/nowhere"


@pytest.mark.parametrize("experiment", tiers(EXPERIMENTS, set(EXPERIMENTS) - {"ddpm_cifar10"}))  # a large network
def test_an_experiment_starts(experiment):
    """The model is built. If the experiment draws samples, the callback accepts their conditions."""
    cfg = config("/nowhere", f"experiment={experiment}")
    model = model_of(cfg).eval()
    if samples := cfg.callbacks.get("samples"):
        callback = instantiate(samples, _convert_="all")
        callback.setup(None, model, "fit")
        callback.on_train_start(None, model)


def test_a_run_shorter_than_the_validation_interval_is_validated():
    every = lambda epochs: make_trainer(max_epochs=epochs, check_val_every_n_epoch=5).check_val_every_n_epoch  # noqa: E731
    assert [every(n) for n in (2, 5, 7, -1)] == [2, 5, 5, 5]


def test_the_command_line_wins_over_the_recipe():
    cfg = config("/nowhere", "model=ddpm", "data=fashion_mnist", "callbacks=none", "trainer.max_epochs=1")
    assert cfg.data.name == "fashion_mnist" and cfg.data.batch_size == 64
    assert "ema" not in cfg.callbacks and cfg.trainer.max_epochs == 1
    assert config("/nowhere", "experiment=vae_gaussian").model.likelihood == "gaussian"
