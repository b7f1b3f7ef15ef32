"""Tests that run the checks of ``tests/gpu`` on the CPU, to find errors in the checks without a GPU."""

import gpu_checks
import pytest
from helpers import tiers


@pytest.mark.parametrize("name", tiers(["vae", "wgan"], ["vae"]))
def test_a_run_passes_the_check_of_training(name, tmp_path):
    gpu_checks.trains(name, "cpu", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "vade"])
def test_a_run_passes_the_check_of_resuming(name, tmp_path):
    gpu_checks.resumes(name, "cpu", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rbm", "infogan"])
def test_a_run_passes_the_check_of_graphs(name, tmp_path):
    gpu_checks.equals_eager(name, "cpu", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vae-temperature", "rbm-schedules"])
def test_a_run_passes_the_check_of_changes(case, tmp_path):
    gpu_checks.changes_mid_run(case, "cpu", tmp_path)


@pytest.mark.slow
def test_a_run_passes_the_check_of_bfloat16(tmp_path):
    gpu_checks.bfloat16_learns("vae", "cpu", tmp_path)


@pytest.mark.slow
def test_a_run_passes_the_check_of_memory(tmp_path):
    gpu_checks.uses_little_memory("vae", "cpu", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["compile", "accumulation"])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # a warning inside torch's compiler
def test_on_the_cpu_no_run_says_that_it_has_no_graphs(case, tmp_path):
    assert gpu_checks.falls_back(case, "cpu", tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "rbm"])
def test_two_ranks_on_one_device_pass_their_check(name, tmp_path):
    gpu_checks.two_ranks_agree(name, "cpu", tmp_path)
