"""Tests of learning rates of optimisers and of their states."""

import torch
from torch import nn

from zoo.training.optimisers import reset_adam


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
