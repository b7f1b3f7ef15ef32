"""Tests of the learning rates of adversarial models, which are optimised manually."""

import pytest
from helpers import TINY, run

from zoo.gan import GAN
from zoo.training.schedules import half_cosine
from zoo.wgan import WGAN

FEW = ["trainer.max_epochs=2", "trainer.limit_train_batches=5", "trainer.limit_val_batches=1", "data.batch_size=16"]
FEW += ["test=false", "~callbacks.estimator_variance", "~callbacks.samples", "callbacks.sample_distance.n=2"]


@pytest.mark.parametrize(
    ("model", "options", "rates"),
    [
        (GAN, [*TINY["gan"], "model.discriminator_steps=3"], (5e-4, 1e-3)),
        (WGAN, [*TINY["wgan"], "model.lr=2e-3", "trainer.steps_per_execution=1"], (2e-3, 2e-3)),
    ],
)
def test_both_learning_rates_follow_half_a_cosine_over_the_batches_of_the_run(
    model, options, rates, tmp_path, monkeypatch
):
    seen, step = [], model.training_step

    def watched(self, batch, batch_idx):
        seen.append([optimiser.param_groups[0]["lr"] for optimiser in self.optimizers()])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(model, "training_step", watched)
    run(tmp_path, *options, *FEW, "model.lr_decay=true")
    assert len(seen) == 10
    for batch, rates_of_batch in enumerate(seen):
        assert rates_of_batch == pytest.approx([rate * half_cosine(batch, 10) for rate in rates], rel=1e-6)
