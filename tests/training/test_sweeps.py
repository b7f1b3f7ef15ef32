"""Tests of errors that end one job of a sweep, and of errors and signals that end the sweep."""

import pytest
from helpers import CONFIGS
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from zoo.training import sweeps


@pytest.fixture
def job(monkeypatch):
    """Return a function that runs a job of a sweep. The job ends with the given error."""
    monkeypatch.setattr(sweeps, "JOBS", [])
    monkeypatch.setattr(sweeps, "FAILED", [])
    monkeypatch.setattr(HydraConfig.instance(), "cfg", HydraConfig.instance().cfg)

    def end(error, *overrides):
        with initialize_config_dir(CONFIGS, version_base="1.3"):
            HydraConfig.instance().set_config(
                compose("train", [*overrides, "hydra.mode=MULTIRUN"], return_hydra_config=True)
            )
        with sweeps.report_failed_job():
            raise error

    return end


def test_a_single_job_that_failed_is_named_by_all_that_it_was_given(job, capsys):
    job(SystemExit("error: of the user"), "seed=1", "model=vae")
    with pytest.raises(SystemExit, match=r"^error: 1 of 1 jobs failed: 0 \(seed=1 model=vae\)$"):
        sweeps.end_of_sweep()
    assert capsys.readouterr().err == "error: of the user\n"


def test_what_is_no_error_of_a_job_ends_the_sweep(job):
    """An integer exit status, such as 141 for a closed standard output, ends the sweep."""
    with pytest.raises(SystemExit) as end:
        job(SystemExit(141))
    assert end.value.code == 141 and not sweeps.FAILED


@pytest.mark.parametrize("error", [SystemExit("of a library"), ValueError("of a library")])
def test_a_signal_ends_the_sweep_whatever_a_library_makes_of_it(error, job, monkeypatch):
    monkeypatch.setattr(sweeps, "interrupted", lambda: True)
    with pytest.raises(type(error), match="of a library"):
        job(error)
    assert not sweeps.FAILED
