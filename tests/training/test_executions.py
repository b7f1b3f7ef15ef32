"""Tests that K batches in one execution train bitwise as one batch at a time does."""

import pytest
from helpers import TINY, assert_same_run, config, run, tiers
from test_resume import logged
