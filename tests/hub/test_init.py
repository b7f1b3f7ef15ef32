"""Tests of ``init=``, which begins a run from the weights of a checkpoint."""

import hashlib
import logging
import shutil
import signal

import pytest
import torch
from helpers import TINY, assert_same, checkpoint, run, stop
from processes import together
from small_models import MODELS

import zoo
from zoo.checks.errors import CheckpointError, UserError
from zoo.hub.initialising import begin_from
from zoo.rbm import RBM
from zoo.vae import VAE

AVERAGED = [*TINY["vae"], "callbacks=ema", "callbacks.estimator_variance=null", "test=false", "trainer.max_epochs=1"]
NAMES = [name for name in MODELS if name in zoo.MODELS]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Return the folder of a finished run whose checkpoints hold weights and averaged weights."""
    folder = tmp_path_factory.mktemp("first")
    run(folder, *AVERAGED)
    return folder


def keep(folder):
    return ["+callbacks.keep._target_=helpers.KeepGradients", f"+callbacks.keep.folder={folder}"]


def begun(folder):
    """Return the weights of a run before its first step."""
    return torch.load(folder / "steps0.pt", weights_only=True)["before"]


def test_a_run_begins_from_the_averaged_weights_and_trains(first, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path, *AVERAGED, f"init={first}", "model.lr=0.01", "seed=7", *keep(tmp_path))
    best = next((first / "checkpoints").glob("best-*.ckpt"))
    saved = torch.load(best, weights_only=True)
    assert_same(dict(begun(tmp_path)), dict(saved["state_dict"]))
    averaged, raw = saved["state_dict"].values(), saved["current_model_state"].values()
    assert any(not torch.equal(*pair) for pair in zip(averaged, raw, strict=True))
    after = checkpoint(tmp_path)["current_model_state"].values()
    assert any(not torch.equal(*pair) for pair in zip(averaged, after, strict=True))
    assert "The run begins from the averaged weights of" in caplog.text
    assert "Options that differ: model.lr was 0.001 and is 0.01" in caplog.text
    digest = hashlib.sha256(best.read_bytes()).hexdigest()
    expected = {"source": str(first), "file": str(best), "sha256": digest, "averaged": True}
    assert checkpoint(tmp_path)["record"]["init"] == expected | {"changed": {"lr": [0.001, 0.01]}}


def test_a_run_that_began_from_a_checkpoint_resumes_bit_for_bit(first, tmp_path, caplog):
    arguments = [*AVERAGED, f"init={first}", "trainer.max_epochs=2", "trainer.limit_train_batches=4"]
    run(tmp_path / "whole", *arguments)
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", *arguments, *stop(5, signal.SIGTERM))
    with caplog.at_level(logging.INFO):
        run(tmp_path / "parts", *arguments, f"ckpt={tmp_path / 'parts' / 'checkpoints' / 'interrupted.ckpt'}")
    assert f"so init={first} has no effect" in caplog.text
    ours, theirs = checkpoint(tmp_path / "parts"), checkpoint(tmp_path / "whole")
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert_same(ours[key], theirs[key])
    assert ours["record"]["init"] == theirs["record"]["init"] is not None


@pytest.mark.slow
def test_two_processes_begin_from_the_same_weights(first, tmp_path):
    options = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.limit_train_batches=1"]
    together(2, run, tmp_path / "run", *AVERAGED, *options, f"init={first}", *keep(tmp_path))
    ranks = [torch.load(tmp_path / f"steps{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(dict(ranks[0]["before"]), dict(zoo.load(first).state_dict()))
    assert_same(dict(ranks[0]["before"]), dict(ranks[1]["before"]))
    assert_same(dict(ranks[0]["after"]), dict(ranks[1]["after"]))


def saved_as(name, model, path):
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "model": name}, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_model_takes_its_own_weights(name, tmp_path):
    torch.manual_seed(0)
    before, model = MODELS[name](), MODELS[name]()
    for value in before.state_dict().values():
        if value.is_floating_point():
            value.uniform_()
    record = begin_from(model, saved_as(name, before, tmp_path / "a.ckpt"))
    assert_same(dict(model.state_dict()), dict(before.state_dict()))
    assert record["changed"] == {} and record["averaged"] is False


def test_a_published_checkpoint_gives_its_weights_and_its_digest():
    published = zoo.load("vae")
    model = VAE(**{**published.hparams, "lr": 0.1})
    record = begin_from(model, "vae")
    assert_same(dict(model.state_dict()), dict(published.state_dict()))
    assert record["sha256"] == zoo.hub.read_card("vae")["sha256"] and record["source"] == "vae"


def test_every_difference_is_named_with_the_options_that_fit(first):
    model = VAE(latent_dim=3, hidden=[16, 4], lr=0.5)
    with pytest.raises(CheckpointError) as raised:
        begin_from(model, first)
    text = str(raised.value)
    theirs, ours = zoo.load(first).state_dict(), model.state_dict()
    for key in theirs.keys() | ours.keys():
        pair = [list(weights[key].shape) if key in weights else None for weights in (theirs, ours)]
        if None in pair:
            kind = "missing" if pair[0] is None else "unexpected"
            assert f"{kind}: {key} {pair[0] or pair[1]}" in text
        elif pair[0] != pair[1]:
            assert f"other shape: {key} {pair[0]} in the checkpoint, {pair[1]} in this model" in text
        else:
            assert f" {key} " not in text
    assert "These options fit the checkpoint: model.latent_dim=2 model.hidden=[16]" in text
    assert "model.hidden was [16] and is [16, 4]" in text and "model.lr" not in text
    begin_from(VAE(latent_dim=2, hidden=[16]), first)


def test_a_run_with_another_model_stops_before_training(first, tmp_path):
    with pytest.raises(CheckpointError, match="holds the model zoo.vae.VAE, and this run trains zoo.cvae.CVAE"):
        run(tmp_path, *TINY["cvae"], f"init={first}")
    assert not (tmp_path / "checkpoints").exists()


def test_weights_that_do_not_fit_change_nothing(first):
    model = VAE(latent_dim=3, hidden=[16])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    with pytest.raises(CheckpointError):
        begin_from(model, first)
    assert_same(dict(model.state_dict()), before)
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_an_unknown_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="'vaee' is neither a file nor a pretrained checkpoint.*Did you mean vae"):
        run(tmp_path, *TINY["vae"], "init=vaee")


def test_init_must_be_a_name(tmp_path):
    with pytest.raises(UserError, match="init must be the name or the path of a checkpoint, got 3"):
        run(tmp_path, *TINY["vae"], "init=3")


def test_chains_of_a_boltzmann_machine_start_again(tmp_path):
    path = saved_as("rbm", RBM(num_hidden=3), tmp_path / "a.ckpt")
    torch.save(torch.load(path, weights_only=True) | {"chains": torch.ones(4, 3, dtype=torch.bool)}, path)
    model = RBM(num_hidden=3)
    begin_from(model, path)
    assert model.chains is None and zoo.load(path).chains is not None


@pytest.mark.slow
def test_words_must_be_those_of_the_text(tmp_path):
    short = [*TINY["skipgram"], "callbacks.estimator_variance=null", "trainer.max_epochs=1", "test=false"]
    short += ["trainer.limit_train_batches=3"]
    run(tmp_path / "a", *short)
    run(tmp_path / "b", *short, "model.lr=0.01", f"init={tmp_path / 'a'}", *keep(tmp_path))
    assert_same(dict(begun(tmp_path)), dict(zoo.load(tmp_path / "a").state_dict()))
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(UserError, match="the model has a vocabulary of .* words, and the text has a different one"):
        run(tmp_path / "b", *short, "data.min_count=30", f"init={tmp_path / 'a'}")
