"""Tests of training on a GPU: runs, resuming, graphs, precision, memory, and two processes. Run them with ``-m gpu``.

Graphs and eager steps are compared with deterministic algorithms, so the results must be bitwise equal.
"""

import gpu_checks
import pytest
import torch
from helpers import TINY

import zoo

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and -m gpu"),
]


@pytest.mark.parametrize("name", TINY)
def test_a_model_trains_and_no_step_waits(name, tmp_path):
    gpu_checks.trains(name, "gpu", tmp_path)


@pytest.mark.parametrize("name", TINY)
def test_a_run_resumes_in_the_middle_of_an_epoch_bit_for_bit(name, tmp_path):
    gpu_checks.resumes(name, "gpu", tmp_path)


@pytest.mark.parametrize("name", TINY)
def test_a_graph_trains_as_eager_steps_do(name, tmp_path):
    gpu_checks.equals_eager(name, "gpu", tmp_path)


@pytest.mark.parametrize("case", gpu_checks.CHANGES)
def test_graphs_follow_what_changes_from_step_to_step(case, tmp_path):
    gpu_checks.changes_mid_run(case, "gpu", tmp_path)


@pytest.mark.parametrize("name", ["vae", "ddpm"])
def test_bfloat16_reaches_the_loss_of_float32(name, tmp_path):
    gpu_checks.bfloat16_learns(name, "gpu", tmp_path)


@pytest.mark.parametrize("name", ["vae", "ddpm"])
def test_graphs_use_little_more_memory(name, tmp_path):
    gpu_checks.uses_little_memory(name, "gpu", tmp_path)


@pytest.mark.parametrize("case", gpu_checks.FALLBACKS)
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # a warning inside torch's compiler
def test_a_run_that_cannot_be_captured_says_why_once(case, tmp_path):
    said = gpu_checks.falls_back(case, "gpu", tmp_path)
    assert len(said) == 1, said


@pytest.mark.parametrize("name", ["vae", "rbm", "skipgram"])
def test_two_ranks_share_one_gpu(name, tmp_path):
    gpu_checks.two_ranks_agree(name, "gpu", tmp_path)


@pytest.mark.parametrize("name", ["vae", "ddpm", "rbm", "gan"])
def test_a_published_model_gives_the_same_numbers_on_the_gpu(name):
    """The same noise, drawn on the CPU, gives the same samples up to the rounding of float32 products."""
    model, given = zoo.load(name), {"steps": 2} if name == "rbm" else {"num_steps": 2} if name == "ddpm" else {}
    here = model.sample(16, generator=torch.Generator().manual_seed(0), **given)
    there = model.to("cuda").sample(16, generator=torch.Generator().manual_seed(0), **given).cpu()
    assert (here - there).abs().mean() < 0.02
