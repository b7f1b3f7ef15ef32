"""Tests of gradient estimators of networks with dropout, whose random numbers come from torch's global generators."""

import pytest
import torch
from torch import nn

from zoo.ddpm import DDPM
from zoo.estimators.moments import gradients
from zoo.functional.noise import chunk_generator
from zoo.score import Score

KINDS = {
    "ddpm": lambda: DDPM(steps=30, widths=[16], shape=[1, 6, 6], dropout=0.5),
    "score": lambda: Score(num_sigmas=3, widths=[16], shape=[1, 6, 6], dropout=0.5),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_draw_with_dropout_depends_only_on_its_number(name):
    """Two draws with the same number are equal, whatever torch's global generator does. Other numbers drop others."""
    torch.manual_seed(0)
    model = KINDS[name]().train()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    batch = [torch.rand(4, 1, 6, 6)]
    for estimator in model.gradient_estimators().values():
        state = torch.get_rng_state()
        (first,) = gradients(estimator, batch, [3])
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(1)
        (again,) = gradients(estimator, batch, [3])
        for key in first:
            assert torch.equal(first[key], again[key]), (estimator.name, key)
        noise = estimator.noise(batch, chunk_generator(0, 3))
        values = [estimator.surrogate(estimator.params, batch, noise | {"dropout": torch.tensor(s)}) for s in (1, 2)]
        assert values[0] != values[1]
