"""Tests of learning rates of optimisers and of their states."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zoo.training.optimisers import reset_adam, with_half_cosine


def take_steps(optimiser, weight, numbers):
    for number in numbers:
        optimiser.zero_grad()
        (number * weight.square().sum()).backward()
        optimiser.step()


def test_adam_is_reset_in_place_to_the_state_of_a_new_optimiser():
    ours, theirs = (nn.Parameter(torch.arange(1.0, 4)) for _ in range(2))
    reset, cleared = (torch.optim.Adam([weight], lr=0.1) for weight in (ours, theirs))
    take_steps(reset, ours, range(3))
    take_steps(cleared, theirs, range(3))
    before = dict(reset.state[ours])
    reset_adam([reset])
    cleared.state.clear()
    assert all(reset.state[ours][name] is value and not value.any() for name, value in before.items())
    take_steps(reset, ours, range(4, 7))
    take_steps(cleared, theirs, range(4, 7))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("decays", [True, False])
def test_the_learning_rate_rises_and_then_decays_or_stays(decays):
    optimiser = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=2.0)
    found = with_half_cosine(optimiser, SimpleNamespace(estimated_stepping_batches=100), warmup=4, decays=decays)
    rates = []
    for _ in range(101):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        found["lr_scheduler"]["scheduler"].step()
    assert rates[:3] == sorted(rates[:3]) and rates[0] == pytest.approx(0.5, rel=0.01)
    assert rates[50] == pytest.approx(1.0 if decays else 2.0) and rates[100] == pytest.approx(0.0 if decays else 2.0)
