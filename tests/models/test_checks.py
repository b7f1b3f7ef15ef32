"""Tests of input checks: which inputs are allowed, and when a model reads the values of a tensor."""

from types import SimpleNamespace

import pytest
import torch
from small_models import made

from zoo.checks.calls import called_by_the_model, from_outside, reads_values
from zoo.checks.errors import UserError
from zoo.checks.inputs import MOST_NUMBERS, batch_of_any_shape, count, takes, whole
from zoo.checks.pixels import check_one_hot


@pytest.mark.parametrize(("batches", "looked_at"), [(0, True), (5, False)])
def test_values_are_looked_at_in_the_first_batch_of_a_run_and_not_of_each_epoch(batches, looked_at, monkeypatch):
    """A model checks pixels only in the first batch of a run. Each check makes the CPU wait for the GPU."""
    model = made("vae")
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(total_batch_idx=batches))
    monkeypatch.setattr(type(model), "trainer", trainer)
    batch = [torch.full((2, 1, 28, 28), 2.0)]
    model.on_train_batch_start(batch, 1)
    if not looked_at:
        model.on_train_batch_start(batch, 0)
        return
    with pytest.raises(UserError, match="pixels must be numbers from 0 to 1, got 2"):
        model.on_train_batch_start(batch, 0)


def test_the_label_of_none_is_for_noisy_images_alone():
    model = made("ddpm-labels")
    x, none, t = torch.zeros(1, 1, 28, 28), torch.tensor([model.hparams.num_classes]), torch.zeros(1, dtype=torch.long)
    assert model(x, t, none).shape == x.shape
    with pytest.raises(UserError, match="y must be labels, integers from 0 to"):
        model.log_likelihood(x, y=none)


def test_as_many_samples_as_fit_into_a_tensor_are_allowed():
    most = MOST_NUMBERS // 784
    assert count(made("vae"), "n", most, {}) == most
    with pytest.raises(UserError, match=f"n must be at most {most:,} per call"):
        count(made("vae"), "n", most + 1, {})


def test_a_call_within_a_call_leaves_the_outer_one_as_it_was():
    elsewhere = torch.empty(0, device="meta")
    with called_by_the_model(in_step=True):
        with called_by_the_model(in_step=False):
            assert reads_values(elsewhere) and not from_outside()
        assert not reads_values(elsewhere) and not from_outside()
    assert reads_values(elsewhere) and from_outside()


def test_one_hot_is_exactly_one():
    check_one_hot("x", torch.eye(3))
    for wrong in ([1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0]):
        with pytest.raises(UserError, match="x must be one-hot"):
            check_one_hot("x", torch.tensor([wrong]))


class Asked:
    """Stand-in for a model. Its methods return whether a check may read a tensor that is not on the CPU."""

    @takes(batch=batch_of_any_shape)
    def loss(self, batch):
        return reads_values(torch.empty(0, device="meta"))

    @takes(steps=whole)
    def sample(self, steps):
        return reads_values(torch.empty(0, device="meta"))


def test_what_is_given_a_batch_reads_no_values_and_inference_may():
    assert not Asked().loss(torch.zeros(1))
    assert Asked().sample(1)
