"""Tests of rows that are gathered from all processes, and of the overrides of processes other than rank 0."""

import lightning as L
import pytest
import torch
from processes import together

from zoo.training.processes import overrides_of_process
from zoo.training.ranks import all_rows, equal_rows, gathered
from zoo.training.trainer import quiet_lightning


def put_together(rows):
    """Return the results of all gathering functions on this process. Process r holds rows r, r + 2, r + 4, ..."""
    quiet_lightning()
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    trainer.strategy.setup_environment()
    x = 10.0 * torch.arange(rows)[:, None] + torch.arange(2)
    mine = x[trainer.global_rank :: 2]
    equal = equal_rows(mine, trainer).tolist() if rows % 2 == 0 else None
    return all_rows(mine, trainer).tolist(), gathered(mine, trainer).tolist(), equal


@pytest.mark.parametrize("rows", [6, 7])
def test_rows_come_together_in_their_order(rows):
    """All processes get the same rows. With seven rows, ``all_rows`` drops the last row, and ``gathered`` keeps it."""
    x = (10.0 * torch.arange(rows)[:, None] + torch.arange(2)).tolist()
    for everywhere, kept, equal in together(2, put_together, rows):
        assert everywhere == x[:6] and kept == x
        assert equal == (x if rows == 6 else None)


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_a_process_other_than_the_first_has_no_run_folder_and_no_log(variable):
    """The name of the run folder contains the time. With Hydra's default, each process would make another folder."""
    assert overrides_of_process(["model=vae"], {}) == overrides_of_process(["model=vae"], {variable: "0"}) == []
    quiet = ["hydra.output_subdir=null", "hydra/job_logging=none"]
    assert overrides_of_process(["model=vae"], {variable: "2"}) == ["hydra.run.dir=.", *quiet]
    assert overrides_of_process(["hydra.run.dir=a"], {variable: "2"}) == quiet
