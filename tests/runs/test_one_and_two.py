"""Tests that training on one process and on two gives the same gradients and weights, up to rounding.

Each of two processes has half of each batch. Every example has the same noise in both runs. Gradients are averaged over
processes, so they agree up to float32 rounding. Adam and adversarial steps then increase these differences. GroupNorm
replaces BatchNorm, because the result of BatchNorm depends on the split of the batch.
"""

import pytest
import torch
from helpers import TINY, assert_same, run, tiers
from processes import together

ALL = {name: [o for o in overrides if not o.startswith("callbacks.")] for name, overrides in TINY.items()} | {
    "vae, moving average": TINY["vae"] + ["model.latent=bernoulli", "model.estimator=score_function+moving_average"],
    "vae, relax": TINY["vae"] + ["model.latent=categorical", "model.estimator=relax"],
    "vae, wake-sleep": TINY["vae"] + ["model.objective=wake_sleep"],
    "vae, iwae": TINY["vae"] + ["model.objective=iwae", "model.num_samples=3"],
    "rbm": TINY["rbm"] + ["model.restarts=0.02"],  # two of 100 chains restart at each step, on average
    "rbm, contrastive divergence": TINY["rbm"] + ["model.learning=cd"],
    "ddpm, importance": TINY["ddpm"] + ["model.timesteps=importance", "model.steps=3"],
    "skipgram, own noise": TINY["skipgram"] + ["model.shared_noise=0"],
    "rbm, Gaussian units": TINY["rbm"] + ["model.visible=gaussian", "model.lr=0.005", "model.restarts=0.02"],
    "gan, labels": TINY["gan"] + ["model.num_classes=auto"],
    "score, labels": TINY["score"] + ["model.num_classes=auto"],
    "vae, discretised logistic": TINY["vae"] + ["model.likelihood=discretised_logistic"],
    "vae, dequantised": TINY["vae"] + ["model.likelihood=gaussian_dequantised"],
    "vade, convolutions": TINY["vade"] + ["model.net=conv", "model.hidden=[4]"],
    "ddpm, attention": TINY["ddpm"] + ["model.attention=[1]"],
}


def steps(folder, world_size, overrides):
    run(
        folder,
        *[o for o in overrides if not o.startswith("callbacks.")],
        *["callbacks=none", "~callbacks.best", "~callbacks.last", "logger=none", "test=false"],
        *["trainer.max_epochs=2", "trainer.limit_train_batches=3", "trainer.limit_val_batches=0"],
        *["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={world_size}"],
        *["+callbacks.norm._target_=helpers.NoBatchNorm", "+callbacks.keep._target_=helpers.KeepGradients"],
        f"+callbacks.keep.folder={folder}",
    )


def flat(tensors):
    return torch.cat([t.double().flatten() for t in tensors])


def distances(folder, overrides):
    """Return the relative differences between a run of two processes and a run of one process.

    Integer buffers must be equal. The two processes of one run must have equal weights and buffers.

    Returns:
        A pair. The first value is a list: for each step, the difference of the gradients, relative to the gradients.
        The second value is the larger of the differences of the weights and of the buffers. Each is relative to the
        change in training.
    """
    for n in (1, 2):
        (folder / str(n)).mkdir()
        together(n, steps, folder / str(n), n, overrides)
    one, two, other = (
        torch.load(folder / path, weights_only=True) for path in ("1/steps0.pt", "2/steps0.pt", "2/steps1.pt")
    )
    assert len(one["gradients"]) == len(two["gradients"]) >= 6
    apart = []
    for a, b in zip(one["gradients"], two["gradients"], strict=True):
        assert a.keys() == b.keys()
        apart.append(float(flat(a[k] - b[k] for k in a).norm() / flat(a.values()).norm()))
    assert_same(dict(two["after"]), dict(other["after"]))
    errors = []
    for weights in (True, False):
        names = [k for k in one["after"] if (k in one["parameters"]) == weights]
        moved = {k: one["after"][k] - one["before"][k] for k in names if one["after"][k].is_floating_point()}
        for k in set(names) - set(moved):
            assert torch.equal(one["after"][k], two["after"][k]), k
        if moved and (distance := flat(moved.values()).norm()) > 0:
            errors.append(float(flat(one["after"][k] - two["after"][k] for k in moved).norm() / distance))
    return apart, max(errors)


FIRST = ("vae", "vade", "rbm", "wgan", "ddpm, importance", "skipgram", "vae, moving average", "vae, relax")


@pytest.mark.parametrize("name", tiers(sorted(ALL), FIRST))
def test_gradients_and_weights_are_those_of_one_process(name, tmp_path):
    apart, error = distances(tmp_path, [*ALL[name], "+callbacks.noise._target_=helpers.NoiseOfTheExample"])
    assert apart[0] < 3e-5 and max(apart) < 1e-3, apart
    assert error < 2e-3


def test_noise_of_other_examples_would_be_seen(tmp_path):
    """Without NoiseOfTheExample, the noise depends on the process. The differences are then far too large."""
    apart, error = distances(tmp_path, ALL["vae"])
    assert min(apart) > 0.01 and error > 0.05
