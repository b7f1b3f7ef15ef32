"""Tests of runs on 600 PNG files of digits in ten folders, for each of the nine image models."""

import multiprocessing
import signal

import pytest
import torch
from helpers import TINY, assert_same, assert_same_run, checkpoint, config, logged, run, stop, tiers
from own_images import digit_folders
from processes import together

import zoo
from zoo.evaluation.protocol import evaluate
from zoo.hub.exporting import export
from zoo.hub.loading import read_card
from zoo.hub.recorded_data import data_of, record_of
from zoo.sampling.chunks import sample_chunks

IMAGE_MODELS = sorted(set(TINY) - {"skipgram"})
FIRST = ("cvae", "gan", "rbm")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder of 600 PNG files, in a folder for each class."""
    return digit_folders(tmp_path_factory.mktemp("photos"))


def on(name, digits):
    """Return the overrides of a small run of a model on the images."""
    own = [o for o in TINY[name] if o != "data=digits" and not o.startswith("data.digits_repeat")]
    return [*own, "data=images", f"data.path={digits}", "data.cache=false", "data.batch_size=48"]


@pytest.mark.parametrize("name", tiers(IMAGE_MODELS, FIRST))
def test_a_run_on_own_images_is_sampled_evaluated_exported_and_loaded(name, digits, tmp_path, monkeypatch):
    metrics = run(tmp_path / "run", *on(name, digits), "trainer.max_epochs=2", "callbacks.estimator_variance=null")
    assert all(torch.tensor(value).isfinite() for value in metrics.values())
    record = record_of(tmp_path / "run")
    data = data_of(record)
    assert record["data_digest"] == data.digest
    model = zoo.load(str(tmp_path / "run"))
    assert model.hparams.shape == [1, 28, 28]
    assert sample_chunks(model, 3, seed=0).shape == (3, 1, 28, 28)
    found = evaluate(model, data)
    assert found and all(torch.tensor(value).isfinite() for value in found.values())

    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    export(tmp_path / "run", "own")
    card = read_card("own")
    assert (card["data"], card["data_digest"]) == ("images", data.digest)
    published = zoo.load("own")
    assert torch.equal(sample_chunks(published, 3, seed=0), sample_chunks(model, 3, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [4, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_a_stopped_run_on_own_images_resumes_bit_for_bit(name, limit, digits, tmp_path):
    drawn = [c for c, node in config("/", *TINY[name]).callbacks.items() if "_target_" in node]
    kept = ("best", "last", "finite_loss", "exact_resume", "ema", "sample_distance")
    overrides = [o for o in on(name, digits) if not any(f"callbacks.{c}." in o for c in drawn if c not in kept)]
    overrides += [*(f"~callbacks.{c}" for c in drawn if c not in kept), "trainer.max_epochs=2", "test=false"]
    overrides += [f"data.memory_limit={limit}", "data.workers=1", "trainer.log_every_n_steps=4"]
    whole = run(tmp_path / "whole", *overrides, "trainer.steps_per_execution=1")
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", *overrides, *stop(13, signal.SIGTERM))  # the fourth batch of ten in the second epoch
    left = tmp_path / "parts" / "checkpoints" / "interrupted.ckpt"
    metrics = run(tmp_path / "parts", *overrides, f"ckpt={left}")
    whole = {k: v for k, v in whole.items() if k in metrics and "second" not in k}
    assert_same_run(metrics, tmp_path / "parts", (whole, tmp_path / "whole"))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


def run_with_workers(folder, *overrides):
    multiprocessing.current_process()._config["daemon"] = False  # processes of tests may start no others by default
    run(folder, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [4, 0], ids=["memory", "disk"])
def test_two_processes_train_on_the_batches_of_one(limit, digits, tmp_path):
    """The exact gradient of an RBM has no noise, so the weights agree up to rounding."""
    own = [o for o in on("rbm", digits) if not o.startswith("callbacks")]
    own += [
        "model.learning=exact",
        "model.binarisation=threshold",
        f"data.memory_limit={limit}",
        "data.workers=1",
        "callbacks=none",
        "test=false",
    ]
    own += ["~callbacks.best", "trainer.max_epochs=1", "trainer.limit_val_batches=0", "logger=none"]
    for n in (1, 2):
        ddp = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={n}"]
        together(n, run_with_workers, tmp_path / str(n), *own, *ddp)
    one, two = (checkpoint(tmp_path / str(n))["state_dict"] for n in (1, 2))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5, msg=key)
    assert_same(sorted(one), sorted(two))
