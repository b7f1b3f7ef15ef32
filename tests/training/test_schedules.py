"""Tests of schedules against their formulas."""

import math

from zoo.training.schedules import half_cosine


def test_half_a_cosine_after_a_linear_rise():
    for step in range(100):
        fall = math.cos(math.pi * step / 200) ** 2  # = 1/2 (1 + cos(pi step / 100))
        assert math.isclose(half_cosine(step, 100), fall)
        assert math.isclose(half_cosine(step, 100, 10), fall * min(step + 1, 10) / 10)
    assert half_cosine(100, 100) == half_cosine(250, 100, 10) == 0
    assert half_cosine(10**6, math.inf) == 1  # a run without an end keeps its learning rate
